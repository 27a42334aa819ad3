"""Lab 00, tour: bytes become an image, logits become an answer, answers become a share, seconds become a speed."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, same_shape, same_values
from labkit.device import generator

# --- to_images(pixels): uint8 (N, H, W, 3) -> float (N, 3, H, W) in [0, 1] --------------------------------------------


def _to_images(pixels: Tensor) -> Tensor:
    return torch.einsum("nhwc->nchw", pixels.true_divide(255))


def _cameras(seed: int) -> list[tuple]:
    """Square, tall, wide and single pictures; black and white occur in each, so the range is visible."""
    rng = generator(seed)
    photos = [torch.randint(256, shape, generator=rng) for shape in ((4, 8, 8, 3), (1, 5, 9, 3), (3, 7, 2, 3))]
    for photo in photos:
        photo[0, 0, 0], photo[0, -1, -1] = torch.tensor([0, 120, 40]), torch.tensor([90, 255, 10])
    return [(photo.to(torch.uint8),) for photo in photos]


def _floats(made: Call) -> bool:
    return made.value.is_floating_point()


def _full_range(made: Call) -> bool:
    low, high = (float(v) for v in torch.aminmax(made.value))
    return abs(low - float(made.expected.min())) < 1e-3 and abs(high - float(made.expected.max())) < 1e-3


to_images = Exercise(
    name="to_images",
    points=2,
    reference=_to_images,
    cases=_cameras,
    criteria=(
        Criterion(
            0.25,
            same_shape,
            "The shape is not (N, 3, H, W) yet. Colour is the last axis of what the camera sends; a network wants it "
            "right after the batch axis, and height still before width.",
        ),
        Criterion(
            0.15,
            _floats,
            "These are still whole numbers. A network computes with floating-point numbers, so the dtype must change.",
        ),
        Criterion(
            0.2,
            _full_range,
            "The range is off. The darkest byte must become exactly 0 and the brightest a byte can be exactly 1, "
            "whatever else is in the batch.",
        ),
        Criterion(
            0.4,
            same_values,
            "Shape and range are right, but the pixels are in the wrong places: red, green and blue of neighbours "
            "got mixed. Moving an axis is not the same as cutting the same numbers into another shape.",
        ),
    ),
)


# --- top_class(logits): (N, K) -> classes (N,), confidence (N,) -------------------------------------------------------


def _top_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    best = logits.topk(1, dim=1)
    return best.indices[:, 0], torch.exp(best.values[:, 0] - logits.logsumexp(1))


def _logits(seed: int) -> list[tuple]:
    """Many images, one image, two classes, more classes than images, and logits too large for a plain exponential."""
    rng = generator(seed)
    usual = [(3 * torch.randn(shape, generator=rng),) for shape in ((6, 4), (1, 10), (5, 2), (3, 12))]
    return [*usual, (300 + 100 * torch.randn(4, 5, generator=rng),), (-2 - torch.rand(4, 3, generator=rng),)]


def _two_results(made: Call) -> bool:
    classes, confidence = made.value
    return classes.shape == confidence.shape == (len(made.args[0]),)


def _same_classes(made: Call) -> bool:
    return bool((made.value[0] == made.expected[0]).all())


def _probabilities(made: Call) -> bool:
    confidence = made.value[1].double()
    return bool(((confidence >= 0) & (confidence <= 1 + 1e-4)).all())  # also False for NaN


def _same_confidence(made: Call) -> bool:
    return torch.allclose(made.value[1].double(), made.expected[1].double(), rtol=1e-3, atol=1e-4)


top_class = Exercise(
    name="top_class",
    points=3,
    reference=_top_class,
    cases=_logits,
    criteria=(
        Criterion(
            0.2,
            _two_results,
            "Two results are asked for, classes and confidence, each with one entry for every image: both of shape "
            "(N,). Check what you return, and along which axis you reduce.",
        ),
        Criterion(
            0.3,
            _same_classes,
            "The classes are off. Each row of logits is one image; its class is a position in that row. Check the "
            "axis, and the order of your two results: classes first.",
        ),
        Criterion(
            0.2,
            _probabilities,
            "A confidence is a probability: never outside [0, 1] and never NaN. A logit is not one yet; and where "
            "logits are in the hundreds, a plain exponential overflows.",
        ),
        Criterion(
            0.3,
            _same_confidence,
            "These confidences lie in [0, 1] but are not those of the softmax: the probabilities of one image, over "
            "all its classes, must add up to 1.",
        ),
    ),
)


# --- accuracy(predicted, labels, counted): share of the counted images that are named right ---------------------------


def _accuracy(predicted: Tensor, labels: Tensor, counted: Tensor) -> float:
    judged = zip(predicted.tolist(), labels.tolist(), counted.tolist(), strict=True)
    return statistics.fmean(said == true for said, true, counts in judged if counts)


def _answers(seed: int) -> list[tuple]:
    """Some images counted, all, one; all right, none right. Uncounted images are right in another proportion."""
    rng = generator(seed)
    cases = []
    for n, wrong, left_out in ((40, 0.3, 0.5), (501, 0.1, 0.2), (7, 0.5, 0.4), (12, 0.0, 0.0), (9, 1.0, 0.6)):
        labels = torch.randint(5, (n,), generator=rng)
        counted = torch.rand(n, generator=rng) >= left_out
        counted[0] = True
        slips = (torch.rand(n, generator=rng) < wrong) & (torch.arange(n) != 0)
        slips[0] = wrong == 1.0
        cases.append(((labels + slips) % 5, labels, counted))
    one = torch.tensor([3])
    return [*cases, (one, one, one == 3), (one - 1, one, one == 3)]


def _one_number(made: Call) -> bool:
    return torch.as_tensor(made.value).shape == ()


def _a_share(made: Call) -> bool:
    return 0 <= float(made.value) <= 1


accuracy = Exercise(
    name="accuracy",
    points=3,
    reference=_accuracy,
    cases=_answers,
    criteria=(
        Criterion(
            0.1,
            _one_number,
            "One number is asked for, not one per image. Sum up what the images say.",
        ),
        Criterion(
            0.2,
            _a_share,
            "A share lies between 0 and 1. A count has no denominator yet, and a percentage is for people: it is "
            "made when the number is printed.",
        ),
        Criterion(
            0.7,
            same_values,
            "The share is off. Ask twice: which images are in the numerator, and which in the denominator? An image "
            "that is not counted belongs in neither.",
        ),
    ),
)


# --- images_per_second(n, seconds): a speed from repeated runs, the first a warm-up -----------------------------------


def _images_per_second(n: int, seconds: list[float]) -> float:
    return n / float(torch.quantile(torch.tensor(seconds[1:], dtype=torch.float64), 0.5))


def _runs(seed: int) -> list[tuple]:
    """Equal runs after a slow start, then spread-out runs: odd, even, with an outlier; and a single run."""
    rng = generator(seed)
    spread = [(0.05 + torch.rand(count, generator=rng)).tolist() for count in (5, 6, 3, 4)]
    spread[0][2] += 8  # the machine was busy with something else
    equal = [[2.0, 0.25, 0.25, 0.25], [0.9, 0.3]]
    return [(n, seconds) for n, seconds in zip((64, 1, 256, 1000, 8, 3), [*equal, *spread], strict=True)]


def _unit(made: Call) -> bool:
    n, seconds = made.args
    return n / max(seconds) * 0.999 <= float(made.value) <= n / min(seconds) * 1.001


def _skips_warm_up(made: Call) -> bool:
    """Judged where all runs but the first are equal: there every kind of average gives the same."""
    return len(set(made.args[1][1:])) > 1 or same_values(made)


images_per_second = Exercise(
    name="images_per_second",
    points=2,
    reference=_images_per_second,
    cases=_runs,
    criteria=(
        Criterion(
            0.3,
            _unit,
            "The unit is off: the answer counts images in one second, for one run of n images. Check what is divided "
            "by what, and that a single number comes back.",
        ),
        Criterion(
            0.3,
            _skips_warm_up,
            "The warm-up still counts. The first run pays for memory and for choosing algorithms, once; it says "
            "little about the runs that follow.",
        ),
        Criterion(
            0.4,
            same_values,
            "Warm-up and unit are right, but the typical run is not the median. One disturbed run must not move the "
            "answer; and of an even number of runs the median is the mean of the middle two.",
        ),
    ),
)
