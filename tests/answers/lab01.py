"""Right answers that look different, and wrong ones as students write them, each with the concept the tutor names."""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F

# --- cross_entropy ----------------------------------------------------------------------------------------------------


def _loss_in_numpy(logits, labels):
    z = logits.double().numpy()
    z = z - z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(z).sum(axis=1))
    return (log_sum - z[np.arange(len(z)), labels.numpy()]).mean()


def _loss_in_a_loop(logits, labels):
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        top = max(row)
        total += top + math.log(sum(math.exp(v - top) for v in row)) - row[label]
    return total / len(labels)


def _loss_one_hot(logits, labels):
    return -(F.one_hot(labels, logits.shape[1]) * torch.log_softmax(logits, -1)).sum() / len(labels)


def _probs_then_log(logits, labels):
    return -torch.softmax(logits, 1)[torch.arange(len(labels)), labels].log().mean()


def _exp_unprotected(logits, labels):
    e = logits.exp()
    return -(e[torch.arange(len(labels)), labels] / e.sum(1)).log().mean()


def _surest_class(logits, labels):
    return -logits.log_softmax(1).max(1).values.mean()


def _over_images(logits, labels):
    return -logits.log_softmax(0)[torch.arange(len(labels)), labels].mean()


def _no_logarithm(logits, labels):
    return -logits.softmax(1)[torch.arange(len(labels)), labels].mean()


# --- train_steps ------------------------------------------------------------------------------------------------------


def _steps_with_optimizer(model, batches, lr):
    optimizer, history = torch.optim.SGD(model.parameters(), lr=lr), []
    for images, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        history.append(loss.detach())
    return torch.stack(history)


def _steps_by_hand(model, batches, lr):
    history = []
    for images, labels in batches:
        for p in model.parameters():
            p.grad = None
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        for p in model.parameters():
            p.data = p.data - lr * p.grad
        history.append(loss)
    return history


def _steps_clearing_after(model, batches, lr):
    history = np.zeros(len(batches))
    for i, batch in enumerate(batches):
        loss = -model(batch[0]).log_softmax(1)[range(len(batch[1])), batch[1]].mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=lr)
        model.zero_grad()
        history[i] = loss.item()
    return history


def _steps(model, batches, lr, *, clear=True, sign=-1, rate=None, after=False, reduction="mean", move=True, decay=0.0):
    """The same steps with one thing wrong."""
    history = []
    for images, labels in batches:
        if clear:
            model.zero_grad()
        loss = F.cross_entropy(model(images), labels, reduction=reduction)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if move:
                    p += sign * (lr if rate is None else rate) * (p.grad + decay * p)
        history.append((F.cross_entropy(model(images), labels) if after else loss).item())
    return history


def _wrong_steps(**flaw):
    def answer(model, batches, lr):
        return _steps(model, batches, lr, **flaw)

    return answer


def _steps_on_a_copy(model, batches, lr):
    return _steps(copy.deepcopy(model), batches, lr)


def _last_loss(model, batches, lr):
    return _steps(model, batches, lr)[-1:]


def _one_step_at_the_end(model, batches, lr):
    history = [F.cross_entropy(model(images), labels) for images, labels in batches]
    sum(history).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= lr * p.grad
    return [float(v) for v in history]


# --- shift_batch ------------------------------------------------------------------------------------------------------


def _shift_pixel_by_pixel(images, dy, dx):
    moved = np.zeros_like(images.numpy())
    n, _, height, width = images.shape
    for i in range(n):
        for r in range(height):
            for c in range(width):
                y, x = r - int(dy[i]), c - int(dx[i])
                if 0 <= y < height and 0 <= x < width:
                    moved[i, :, r, c] = images[i, :, y, x]
    return moved


def _shift_by_padding(images, dy, dx):
    height, width = images.shape[2:]
    padded = F.pad(images, (width, width, height, height))
    cuts = [
        one[:, height - y : 2 * height - y, width - x : 2 * width - x]
        for one, y, x in zip(padded, dy.tolist(), dx.tolist(), strict=True)
    ]
    return torch.stack(cuts)


def _shift_by_rolling(images, dy, dx):
    moved = images.double()
    for i, (y, x) in enumerate(zip(dy.tolist(), dx.tolist(), strict=True)):
        moved[i] = moved[i].roll((y, x), (1, 2))
        moved[i, :, : max(y, 0)] = 0
        moved[i, :, images.shape[2] + min(y, 0) :] = 0
        moved[i, :, :, : max(x, 0)] = 0
        moved[i, :, :, images.shape[3] + min(x, 0) :] = 0
    return moved


def _shift_wraps(images, dy, dx):
    shifts = zip(images, dy.tolist(), dx.tolist(), strict=True)
    return torch.stack([one.roll((y, x), (1, 2)) for one, y, x in shifts])


def _shift_smears(images, dy, dx):
    height, width = images.shape[2:]
    padded = F.pad(images, (width - 1, width - 1, height - 1, height - 1), mode="replicate")
    cuts = [
        one[:, height - 1 - y : 2 * height - 1 - y, width - 1 - x : 2 * width - 1 - x]
        for one, y, x in zip(padded, dy.tolist(), dx.tolist(), strict=True)
    ]
    return torch.stack(cuts)


def _shift_all_like_the_first(images, dy, dx):
    return _shift_by_padding(images, dy[:1].expand(len(images)), dx[:1].expand(len(images)))


def _shift_in_place(images, dy, dx):
    images.copy_(_shift_by_padding(images, dy, dx))
    return images


def _shift_cropped(images, dy, dx):
    return _shift_by_padding(images, dy, dx)[:, :, 1:, 1:]


# --- confusion --------------------------------------------------------------------------------------------------------


def _confusion_loop(labels, predicted, k):
    table = [[0] * k for _ in range(k)]
    for true, said in zip(labels.tolist(), predicted.tolist(), strict=True):
        table[true][said] += 1
    return torch.tensor(table)


def _confusion_bincount(labels, predicted, k):
    return torch.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)


def _confusion_one_hot(labels, predicted, k):
    return F.one_hot(labels, k).float().T @ F.one_hot(predicted, k).float()


def _confusion_numpy(labels, predicted, k):
    table = np.zeros((k, k))
    np.add.at(table, (labels.numpy(), predicted.numpy()), 1)
    return table


def _overwritten(labels, predicted, k):
    table = torch.zeros(k, k)
    table[labels, predicted] += 1
    return table


def _only_classes_that_occur(labels, predicted, k):
    k = int(max(labels.max(), predicted.max())) + 1
    return _confusion_bincount(labels, predicted, k)


def _no_diagonal(labels, predicted, k):
    return _confusion_bincount(labels, predicted, k).fill_diagonal_(0)


def _row_shares(labels, predicted, k):
    table = _confusion_bincount(labels, predicted, k).double()
    return table / table.sum(1, keepdim=True).clamp_min(1)


def _shifted_column(labels, predicted, k):
    return _confusion_bincount(labels, predicted, k).roll(1, 1)


RIGHT = {
    "cross_entropy": [_loss_in_numpy, _loss_in_a_loop, _loss_one_hot, F.cross_entropy],
    "train_steps": [_steps_with_optimizer, _steps_by_hand, _steps_clearing_after, _steps],
    "shift_batch": [_shift_pixel_by_pixel, _shift_by_padding, _shift_by_rolling],
    "confusion": [_confusion_loop, _confusion_bincount, _confusion_one_hot, _confusion_numpy],
    "standard_error": [
        lambda accuracy, n: (accuracy * (1 - accuracy) / n) ** 0.5,
        lambda accuracy, n: np.sqrt(accuracy - accuracy**2) / np.sqrt(n),
        lambda accuracy, n: torch.tensor(accuracy * (1 - accuracy)).div(n).sqrt(),
    ],
}

WRONG = {
    "cross_entropy": [
        (_probs_then_log, "rounds to 0"),
        (_exp_unprotected, "overflow"),
        (_surest_class, "own label"),
        (_over_images, "softmax over the classes"),
        (_no_logarithm, "logarithm"),
        (lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum"), "mean"),
        (lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"), "one number"),
        (lambda logits, labels: F.cross_entropy(logits, labels) / math.log(2), "nats"),
        (lambda logits, labels: -F.cross_entropy(logits, labels), "sign"),
        (lambda logits, labels: F.cross_entropy(logits.softmax(1), labels), "softmax"),
    ],
    "train_steps": [
        (_wrong_steps(clear=False), "cleared"),
        (_wrong_steps(sign=1), "uphill"),
        (_wrong_steps(rate=0.1), "learning rate"),
        (_wrong_steps(decay=0.1), "decay"),
        (_wrong_steps(after=True), "before"),
        (_wrong_steps(reduction="sum"), "mean"),
        (_wrong_steps(move=False), "not changed"),
        (_steps_on_a_copy, "given model itself"),
        (_last_loss, "one loss for each batch"),
        (_one_step_at_the_end, "its own step"),
    ],
    "shift_batch": [
        (_shift_wraps, "opposite edge"),
        (_shift_smears, "black"),
        (_shift_all_like_the_first, "its own dy and dx"),
        (_shift_in_place, "copy"),
        (_shift_cropped, "size"),
        (lambda images, dy, dx: _shift_by_padding(images, -dy, -dx), "direction"),
        (lambda images, dy, dx: _shift_by_padding(images, dx, dy), "height"),
        (lambda images, dy, dx: images, "nothing has moved"),
        (lambda images, dy, dx: _shift_by_padding(images, dy, 0 * dx), "dx columns"),
    ],
    "confusion": [
        (lambda labels, predicted, k: _confusion_bincount(predicted, labels, k), "transposed"),
        (_overwritten, "overwrite"),
        (_only_classes_that_occur, "do not occur"),
        (_no_diagonal, "diagonal"),
        (_row_shares, "counts"),
        (_shifted_column, "column"),
    ],
    "standard_error": [
        (lambda accuracy, n: accuracy * (1 - accuracy) / n, "variance"),
        (lambda accuracy, n: (accuracy * (1 - accuracy)) ** 0.5 / n, "four times"),
        (lambda accuracy, n: (accuracy * (1 - accuracy)) ** 0.5, "number of images"),
        (lambda accuracy, n: 100 * (accuracy * (1 - accuracy) / n) ** 0.5, "factor of 100"),
        (lambda accuracy, n: 1.96 * (accuracy * (1 - accuracy) / n) ** 0.5, "95%"),
        (lambda accuracy, n: n**-0.5, "gives 0"),
        (lambda accuracy, n: (accuracy / n) ** 0.5, "gives 0"),
        (lambda accuracy, n: (accuracy * (1 - accuracy) / (n + 1)) ** 0.5, "square root of the number"),
    ],
}
