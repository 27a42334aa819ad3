"""Right answers that look different, and wrong ones as students write them, each with the concept the tutor names."""

import statistics

import numpy as np
import torch


def _shuffled(pixels):
    n, height, width, _ = pixels.shape
    return pixels.reshape(n, 3, height, width) / 255


def _pixel_loop(pixels):
    n, height, width, _ = pixels.shape
    out = torch.empty(n, 3, height, width)
    for channel in range(3):
        out[:, channel] = pixels[..., channel].float() / 255
    return out


def _two_transposes(pixels):
    return pixels.transpose(2, 3).transpose(1, 2).double().mul(1 / 255)


def _rows(logits):
    classes, confidence = [], []
    for row in logits:
        probs = torch.softmax(row, 0)
        classes.append(int(probs.argmax()))
        confidence.append(float(probs.max()))
    return torch.tensor(classes), torch.tensor(confidence)


def _numpy_softmax(logits):
    shifted = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    probs = shifted / shifted.sum(1, keepdims=True)
    return probs.argmax(1), probs.max(1)


def _max_of_softmax(logits):
    values, indices = logits.softmax(dim=1).max(dim=1)
    return [indices, values]


def _plain_exponential(logits):
    probs = logits.exp() / logits.exp().sum(1, keepdim=True)
    return logits.argmax(1), probs.max(1).values


def _count_loop(predicted, labels, counted):
    right = total = 0
    for said, true, counts in zip(predicted, labels, counted, strict=True):
        if counts:
            total += 1
            right += int(said == true)
    return right / total


def _sorted_middle(n, seconds):
    runs = sorted(seconds[1:])
    middle = len(runs) // 2
    return n / runs[middle] if len(runs) % 2 else n / ((runs[middle - 1] + runs[middle]) / 2)


RIGHT = {
    "to_images": [
        _pixel_loop,
        _two_transposes,
        lambda pixels: np.moveaxis(pixels.numpy(), 3, 1).astype(np.float32) / 255,
        lambda pixels: pixels.movedim(-1, 1) / 255,
    ],
    "top_class": [
        _rows,
        _numpy_softmax,
        _max_of_softmax,
        lambda logits: (logits.argmax(1), torch.nn.functional.log_softmax(logits, 1).max(1)[0].exp()),
    ],
    "accuracy": [
        _count_loop,
        lambda predicted, labels, counted: (predicted[counted] == labels[counted]).float().mean(),
        lambda predicted, labels, counted: np.mean(
            predicted.numpy()[counted.numpy()] == labels.numpy()[counted.numpy()]
        ),
        lambda predicted, labels, counted: float(((predicted == labels) & counted).sum() / counted.sum()),
    ],
    "images_per_second": [
        _sorted_middle,
        lambda n, seconds: n / np.median(seconds[1:]),
        lambda n, seconds: n / torch.tensor(seconds[1:]).quantile(0.5),
    ],
}

WRONG = {
    "to_images": [
        (lambda pixels: pixels / 255, "axis"),
        (lambda pixels: pixels.permute(0, 3, 2, 1) / 255, "height"),
        (lambda pixels: pixels.permute(0, 3, 1, 2), "floating-point"),
        (lambda pixels: pixels.permute(0, 3, 1, 2) // 255, "floating-point"),
        (lambda pixels: pixels.permute(0, 3, 1, 2).float(), "range"),
        (lambda pixels: pixels.permute(0, 3, 1, 2) / 256, "range"),
        (lambda pixels: pixels.permute(0, 3, 1, 2) / 255 * 2 - 1, "range"),
        (_shuffled, "moving an axis"),
        (lambda pixels: pixels.flip(-1).permute(0, 3, 1, 2) / 255, "wrong places"),
    ],
    "top_class": [
        (lambda logits: logits.argmax(1), "two results"),
        (lambda logits: (logits.argmax(), logits.softmax(1).max()), "two results"),
        (lambda logits: (logits.argmax(1), logits.softmax(1)), "two results"),
        (lambda logits: logits.softmax(1).max(1), "order"),
        (lambda logits: (logits.argmin(1), logits.softmax(1).max(1).values), "position"),
        (lambda logits: (logits.argmax(1), logits.max(1).values), "probability"),
        (_plain_exponential, "overflow"),
        (lambda logits: (logits.argmax(1), logits.softmax(0).max(1).values), "add up to 1"),
        (lambda logits: (logits.argmax(1), logits.sigmoid().max(1).values), "add up to 1"),
    ],
    "accuracy": [
        (lambda predicted, labels, counted: predicted == labels, "one number"),
        (lambda predicted, labels, counted: (predicted == labels)[counted].sum(), "count"),
        (lambda predicted, labels, counted: 100 * (predicted == labels)[counted].double().mean(), "percentage"),
        (lambda predicted, labels, counted: (predicted == labels).double().mean(), "denominator"),
        (lambda predicted, labels, counted: ((predicted == labels) & counted).double().mean(), "denominator"),
        (lambda predicted, labels, counted: float((predicted == labels).sum()) / int(counted.sum()), "denominator"),
        (lambda predicted, labels, counted: (predicted != labels)[counted].double().mean(), "numerator"),
        (lambda predicted, labels, counted: int((predicted == labels)[counted].sum()) // int(counted.sum()), "share"),
    ],
    "images_per_second": [
        (lambda n, seconds: statistics.median(seconds[1:]) / n, "unit"),
        (lambda n, seconds: 1 / statistics.median(seconds[1:]), "unit"),
        (lambda n, seconds: [n / run for run in seconds[1:]], "unit"),
        (lambda n, seconds: n / statistics.mean(seconds), "warm-up"),
        (lambda n, seconds: n / seconds[0], "warm-up"),
        (lambda n, seconds: n / statistics.mean(seconds[1:]), "median"),
        (lambda n, seconds: n / min(seconds[1:]), "median"),
        (lambda n, seconds: n / torch.tensor(seconds[1:]).median(), "median"),
        (lambda n, seconds: n / statistics.median(seconds), "warm-up"),
    ],
}
