"""Lab 01, classifier: the loss, the gradient step, the moved batch, what is mixed up, and how sure we are.

Each exercise's diagnoses (criteria worth nothing) stand before the criterion they explain, so that the tutor names the
likely misunderstanding and the points come from what the text asks.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator


def equals(value, other, tolerance: float = 1e-4) -> bool:
    """Same shape and numbers, whatever holds them."""
    return same_values(Call((), value=value, expected=other), tolerance)


def one_number(made: Call) -> bool:
    """A float, or a tensor without dimensions."""
    return torch.as_tensor(made.value).ndim == 0


# --- cross_entropy ----------------------------------------------------------------------------------------------------


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    log_probs = logits - logits.logsumexp(dim=1, keepdim=True)
    return -log_probs.gather(1, labels[:, None]).mean()


def _cross_entropy_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    cases = [(torch.randn(n, k, generator=rng), torch.randint(k, (n,), generator=rng)) for n, k in ((5, 3), (1, 12))]
    confident = 3 * torch.randn(40, 10, generator=rng) - 6
    cases.append((confident, torch.randint(10, (40,), generator=rng)))
    for sign in (1, -1):  # exp(1500) overflows, exp(-1500) rounds to 0
        huge = sign * (1000 + 500 * torch.rand(4, 3, generator=rng))
        cases.append((huge, torch.tensor([0, 1, 2, 0])))
    return cases


def _huge(made: Call) -> bool:
    return float(made.args[0].abs().max()) > 80


def _per_image(made: Call) -> Tensor:
    logits, labels = made.args
    return (logits.logsumexp(1) - logits[torch.arange(len(labels)), labels]).double()


def _of_surest_class(made: Call) -> Tensor:
    return -made.args[0].log_softmax(1).max(1).values.mean()


cross_entropy = Exercise(
    name="cross_entropy",
    points=2,
    reference=_cross_entropy,
    cases=_cross_entropy_cases,
    criteria=(
        Criterion(
            0,
            one_number,
            "The loss of a batch is one number, the mean over its images; a tensor that holds one number for each "
            "image still has to be averaged.",
        ),
        Criterion(
            0,
            lambda made: len(made.args[1]) == 1 or _huge(made) or not equals(made.value, _per_image(made).sum()),
            "This grows with the number of images. A loss is compared across batches of different size, so it is the "
            "mean over the images.",
        ),
        Criterion(
            0,
            lambda made: _huge(made) or not equals(made.value, _per_image(made).mean() / math.log(2)),
            "These are bits. The course's loss is in nats: natural logarithm, as in torch.",
        ),
        Criterion(
            0,
            lambda made: _huge(made) or not equals(made.value, -_per_image(made).mean()),
            "The sign is off: a loss is positive and falls as the network gets better. The log of a probability is "
            "negative.",
        ),
        Criterion(
            0,
            lambda made: (
                _huge(made)
                or equals(made.expected, _of_surest_class(made))
                or not equals(made.value, _of_surest_class(made))
            ),
            "You look at the class the network finds most likely. The loss asks how likely it finds the image's own "
            "label, right or not.",
        ),
        Criterion(
            0.7,
            lambda made: _huge(made) or same_values(made),
            "Not yet the cross-entropy. For each image: softmax over the classes (each row adds up to 1), the "
            "probability of its own label, the natural logarithm of it, the minus; then the mean.",
        ),
        Criterion(
            0.3,
            lambda made: not _huge(made) or same_values(made, 1e-3),
            "Right for moderate logits, but with logits of 1,000 the exponential overflows, or rounds to 0 before the "
            "logarithm. A stable version never takes exp of a large number: softmax does not change when the same "
            "amount is subtracted from every logit of a row.",
        ),
    ),
)


# --- train_steps ------------------------------------------------------------------------------------------------------


def _train_steps(model: nn.Module, batches: list, lr: float) -> list[float]:
    weights, losses = list(model.parameters()), []
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= lr * gradient
        losses.append(loss.item())
    return losses


def _train_steps_cases(seed: int) -> list[tuple]:
    rng = generator(seed)

    def batch(n: int, channels: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
        return torch.rand(n, channels, height, width, generator=rng), torch.randint(classes, (n,), generator=rng)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        deep = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 2, 5))
    return [
        (linear, [batch(6, 1, 3, 4, 3)], 0.5),
        (copy.deepcopy(linear), [batch(n, 1, 3, 4, 3) for n in (8, 8, 5)], 0.2),
        (deep, [batch(7, 3, 5, 4, 5) for _ in range(4)], 0.3),
    ]


def _losses(made: Call) -> Tensor:
    return torch.stack([torch.as_tensor(v).double().reshape(()) for v in made.value])


def _weights_after(made: Call) -> dict:
    model = copy.deepcopy(made.args[0])
    _train_steps(model, *made.args[1:])
    return dict(model.state_dict())


def _moved(made: Call) -> bool:
    return not equals(dict(made.args_after[0].state_dict()), dict(made.args[0].state_dict()))


def _moved_right(made: Call) -> bool:
    return equals(dict(made.args_after[0].state_dict()), _weights_after(made))


train_steps = Exercise(
    name="train_steps",
    points=3,
    reference=_train_steps,
    cases=_train_steps_cases,
    criteria=(
        Criterion(
            0,
            lambda made: _losses(made).shape == (len(made.args[1]),),
            "Return one loss for each batch, in order: the history is what one looks at when training goes wrong.",
        ),
        Criterion(
            0.3,
            lambda made: equals(_losses(made)[0], made.expected[0]),
            "The first loss is off. Each loss is the mean cross-entropy of the batch before the model has learned "
            "from it, so it is measured before that batch's step.",
        ),
        Criterion(0, _moved, "The model's weights have not changed: the step has to change the given model itself."),
        Criterion(
            0.3,
            lambda made: len(made.args[1]) > 1 or _moved_right(made),
            "After one batch the weights are not where they should be. The gradient points uphill; a step goes the "
            "other way, as far as the given learning rate times the gradient, without momentum or decay.",
        ),
        Criterion(
            0.4,
            lambda made: (
                len(made.args[1]) == 1 or (equals(_losses(made), torch.tensor(made.expected)) and _moved_right(made))
            ),
            "One batch is right, several are not. Each batch needs its own gradient and its own step; in torch, "
            "backward adds to the gradients that are already stored, so old ones have to be cleared.",
        ),
    ),
)


# --- shift_batch ------------------------------------------------------------------------------------------------------


def _shift_batch(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    n, _, height, width = images.shape
    rows, columns = torch.arange(height) - dy[:, None], torch.arange(width) - dx[:, None]  # (N, H), (N, W): sources
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    picked = images[
        torch.arange(n)[:, None, None], :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    ]  # (N, H, W, C)
    return picked.permute(0, 3, 1, 2) * inside[:, None]


def _shift_batch_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    cases = [(torch.rand(1, 1, 4, 5, generator=rng), torch.tensor([1]), torch.tensor([-2]))]
    for n, c, h, w in ((5, 3, 6, 4), (12, 1, 5, 5)):
        shifts = torch.randint(-3, 4, (2, n), generator=rng)
        shifts[:, 0], shifts[:, 1] = torch.tensor([2, -1]), torch.tensor([0, 0])
        cases.append((0.1 + 0.9 * torch.rand(n, c, h, w, generator=rng), shifts[0], shifts[1]))
    return cases


def _rolled(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    moved = [one.roll((int(y), int(x)), (1, 2)) for one, y, x in zip(images, dy, dx, strict=True)]
    return torch.stack(moved)


def _stretched(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    rows = (torch.arange(images.shape[2]) - dy[:, None]).clamp(0, images.shape[2] - 1)
    columns = (torch.arange(images.shape[3]) - dx[:, None]).clamp(0, images.shape[3] - 1)
    return images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _is_not(made: Call, other: Tensor) -> bool:
    return equals(made.expected, other) or not equals(made.value, other)


shift_batch = Exercise(
    name="shift_batch",
    points=2,
    reference=_shift_batch,
    cases=_shift_batch_cases,
    criteria=(
        Criterion(0.1, same_shape, "Moving an image does not change its size: same shape as the images that came in."),
        Criterion(
            0,
            lambda made: _is_not(made, made.args[0]),
            "The images come back where they were: nothing has moved.",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, _rolled(*made.args)),
            "What leaves at one edge comes in again at the opposite edge. A camera that moves does not wrap around: "
            "what comes in from outside is black here.",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, _shift_batch(made.args[0], -made.args[1], -made.args[2])),
            "The direction is reversed: positive dy moves the picture down, positive dx to the right. Row r of the "
            "result shows what stood dy rows above it.",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, _shift_batch(made.args[0], made.args[2], made.args[1])),
            "Rows and columns are swapped: dy moves along the height (dimension 2), dx along the width (dimension 3).",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, _stretched(*made.args)),
            "What comes in from outside is black (0) here, not a copy of the edge's pixels.",
        ),
        Criterion(
            0.3,
            lambda made: len(made.args[0]) > 1 or same_values(made),
            "A single image is not where it should be: dy rows down, dx columns to the right, negative the other way, "
            "black where nothing is known.",
        ),
        Criterion(
            0.4,
            lambda made: len(made.args[0]) == 1 or same_values(made),
            "One image alone is right, a batch is not: each image has its own dy and dx, and a shift of 0 leaves its "
            "image as it is.",
        ),
        Criterion(
            0.2,
            lambda made: same_values(made) and inputs_untouched(made),
            "Right, but your function changed the images it was given. Later cells still need them: work on a copy.",
        ),
    ),
)


# --- confusion --------------------------------------------------------------------------------------------------------


def _confusion(labels: Tensor, predicted: Tensor, k: int) -> Tensor:
    counts = torch.zeros(k, k, dtype=torch.int64)
    return counts.index_put((labels, predicted), torch.ones_like(labels), accumulate=True)


def _confusion_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    cases = [(torch.tensor([2]), torch.tensor([0]), 4)]  # classes 1 and 3 never occur
    for n, k in ((30, 3), (200, 12)):
        labels = torch.randint(k, (n,), generator=rng)
        slips = torch.randint(0, 3, (n,), generator=rng).clamp_max(k - 1)
        cases.append((labels, (labels + slips) % k, k))
    few = torch.randint(3, (25,), generator=rng)
    cases.append((few, few.roll(1), 6))  # classes 3 to 5 never occur
    return cases


def _counts(made: Call) -> Tensor:
    return torch.as_tensor(made.value).double()


confusion = Exercise(
    name="confusion",
    points=2,
    reference=_confusion,
    cases=_confusion_cases,
    criteria=(
        Criterion(
            0.2,
            lambda made: _counts(made).shape == (made.args[2], made.args[2]),
            "The table has k rows and k columns for every one of the k classes, also for those that do not occur in "
            "these images.",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, made.expected.T),
            "The table is transposed: a row stands for the true class, a column for the class that was predicted.",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, made.expected * (1 - torch.eye(made.args[2], dtype=torch.int64))),
            "The diagonal is empty. Images that are classified right are counted there.",
        ),
        Criterion(
            0,
            lambda made: _is_not(made, made.expected.clamp_max(1)),
            "Each cell is at most 1: several images with the same pair of classes each count, they do not overwrite "
            "one another.",
        ),
        Criterion(
            0.3,
            lambda made: float(_counts(made).sum()) == len(made.args[0]) and float(_counts(made).min()) >= 0,
            "The entries are counts of images: every image is counted in exactly one cell, so all cells together give "
            "the number of images.",
        ),
        Criterion(
            0.5,
            same_values,
            "Each image is counted once, but not in the right cell: its row is its true class, its column the "
            "predicted class.",
        ),
    ),
)


# --- standard_error ---------------------------------------------------------------------------------------------------


def _standard_error(accuracy: float, n: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy) / n)


def _standard_error_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    shares = 0.1 + 0.8 * torch.rand(3, generator=rng)
    drawn = [(round(float(p), 3), n) for p, n in zip(shares, (25, 359, 7_000), strict=True)]
    return [(0.97, 2000), (0.5, 10), (1.0, 400), (0.0, 30), *drawn]


def _not_times(factor):
    """The value is not the expected one times factor(accuracy, n): a mix-up that can be told apart."""
    return lambda made: made.expected == 0 or not equals(made.value, made.expected * factor(*made.args), 1e-6)


standard_error = Exercise(
    name="standard_error",
    points=1,
    reference=_standard_error,
    cases=_standard_error_cases,
    criteria=(
        Criterion(
            0,
            _not_times(_standard_error),
            "That is the variance. It has the unit of accuracy squared; the standard error is its square root.",
        ),
        Criterion(
            0,
            _not_times(lambda accuracy, n: n**-0.5),
            "It shrinks too fast: four times as many images halve the standard error, they do not quarter it.",
        ),
        Criterion(
            0,
            _not_times(lambda accuracy, n: n**0.5),
            "The number of images is missing: this is the spread of one single answer, right or wrong. The mean of n "
            "answers spreads less.",
        ),
        Criterion(
            0,
            _not_times(lambda accuracy, n: 100),
            "Off by a factor of 100: accuracy is a share from 0 to 1, and so is its standard error.",
        ),
        Criterion(
            0,
            _not_times(lambda accuracy, n: 1.96),
            "That is half a 95% interval. The standard error itself is one standard deviation.",
        ),
        Criterion(
            0,
            lambda made: made.expected > 0 or same_values(made),
            "Where every answer is right, or every one wrong, answers do not differ and this formula gives 0.",
        ),
        Criterion(
            1,
            lambda made: made.expected == 0 or same_values(made, 1e-6),
            "Not yet the standard error of a share: the spread of one answer that is right with probability p, over "
            "the square root of the number of answers.",
        ),
    ),
)
