"""Lab 07, Neural Cleanse: paint a trigger, say what a good one is, adjust lambda, find the outlier, name the target.

paint -> objective -> next_lambda -> anomaly_index -> name_targets: equations 2 and 3, the schedule, and the verdict.
Some arguments of `paint` and `objective` want gradients: what cuts them stops with PyTorch's own error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator

# --- paint ------------------------------------------------------------------------------------------------------------


def _paint(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return torch.lerp(images, pattern, mask)


def _paint_cases(seed: int) -> list[tuple]:
    """Colour and grey, not square; hard masks and soft ones; one trigger, and one for each of k groups."""
    rng = generator(seed)
    cases = []
    for hard, lead, c, h, w in (
        (True, (4,), 3, 5, 7),
        (False, (2,), 1, 6, 4),
        (False, (3,), 3, 5, 5),
        (False, (2, 3), 3, 4, 5),
        (True, (3, 3), 3, 3, 3),
    ):
        own = (lead[0], 1) if len(lead) == 2 else ()  # each group's own trigger, with an axis for its images
        mask = torch.rand(*own, 1, h, w, generator=rng)
        mask = (mask > 0.5).float() if hard else mask
        pattern = torch.rand(*own, c, h, w, generator=rng)
        cases.append((torch.rand(*lead, c, h, w, generator=rng), mask.requires_grad_(), pattern.requires_grad_()))
    return cases


def _where(made: Call, value: float) -> bool:
    """Right wherever the mask has this value."""
    there = (made.args[1] == value).expand_as(made.expected)
    return torch.allclose(made.value.double()[there], made.expected.double()[there], atol=1e-4)


paint = Exercise(
    "paint",
    2,
    _paint,
    _paint_cases,
    (
        Criterion(
            0.2,
            same_shape,
            "Look at the shape: painted images have the shape of the images. The mask has one channel for all colours, "
            "and PyTorch stretches axes of length 1 by itself (broadcasting).",
        ),
        Criterion(0.2, lambda made: _where(made, 0), "Where the mask is 0 the image must stay as it was."),
        Criterion(
            0.2,
            lambda made: _where(made, 1),
            "Where the mask is 1 the pattern must stand, and nothing of the image: painting replaces, it doesn't add.",
        ),
        Criterion(
            0.3,
            same_values,
            "Zeros and ones of the mask are right; between them equation 2 mixes: a mask of 0.25 leaves three quarters "
            "of the image and takes a quarter of the pattern. The search could not move a mask of only zeros and ones.",
        ),
        Criterion(
            0.1, inputs_untouched, "The values are right, but an argument was changed in place. Return a new tensor."
        ),
    ),
)

# --- objective --------------------------------------------------------------------------------------------------------


def _objective(logits: Tensor, target: int, mask: Tensor, weight: float) -> Tensor:
    return (logits.logsumexp(1) - logits[:, target]).mean() + weight * mask.sum()


def _objective_cases(seed: int) -> list[tuple]:
    """Without and with a weight; one image; logits so large that a probability rounds to zero."""
    rng = generator(seed)
    cases = []
    for n, k, target, weight, scale in (
        (6, 4, 2, 0.0, 2.0),
        (5, 5, 0, 0.0, 3.0),
        (8, 12, 3, 0.01, 2.0),
        (1, 3, 1, 0.5, 1.0),
        (4, 6, 5, 0.0, 300.0),
    ):
        logits = scale * torch.randn(n, k, generator=rng)
        logits[0, target] = logits[0].min() - (150 if scale > 100 else 0)  # one image is far from the target
        mask = torch.rand(1, 5, 7, generator=rng)
        cases.append((logits.requires_grad_(), target, mask.requires_grad_(), weight))
    return cases


def _number(made: Call) -> float:
    """What came back, as a number; anything else raises, which meets no criterion."""
    value = torch.as_tensor(made.value)
    if value.numel() != 1:
        raise TypeError
    return float(value)


def _near(made: Call, expected: float) -> bool:
    return math.isclose(_number(made), expected, rel_tol=1e-3, abs_tol=1e-5)


def _large(made: Call) -> bool:
    return float(made.args[0].detach().abs().max()) > 100


objective = Exercise(
    "objective",
    2,
    _objective,
    _objective_cases,
    (
        Criterion(0.1, lambda made: torch.as_tensor(made.value).numel() == 1, "One number for the whole batch."),
        Criterion(
            0.4,
            lambda made: _large(made) or made.args[3] > 0 or _near(made, float(made.expected)),
            "Look at weight 0, where only the first term is left: the mean over the images of the cross-entropy "
            "towards the target. Every image has the same wanted class, whatever its label; small is good.",
        ),
        Criterion(
            0.3,
            lambda made: made.args[3] == 0 or _near(made, float(made.expected)),
            "The first term is right; the second is the weight times the mask's L1 norm, the sum of its absolute "
            "values. It is not an average, so that it counts pixels, and it is added.",
        ),
        Criterion(
            0.2,
            lambda made: not _large(made) or _near(made, float(made.expected)),
            "Right, but not for large logits: a probability rounds to 0 there, and its logarithm is minus infinity. "
            "Take the logarithm of the softmax in one step.",
        ),
    ),
)

# --- next_lambda ------------------------------------------------------------------------------------------------------


def _next_lambda(weight: float, worked: list[bool]) -> float:
    last = [bool(w) for w in worked[-5:]]
    if last == [True] * 5:
        return weight * 2 if weight else 0.001
    return weight / 2**1.5 if last == [False] * 5 else weight


def _lambda_cases(seed: int) -> list[tuple]:
    """Five in a row and four, a run that was broken, no update yet; weights from 0 on."""
    rng = generator(seed)
    weight = 0.001 + float(torch.rand(1, generator=rng))
    yes, no = [True], [False]
    runs = (yes * 5, yes * 7, no * 2 + yes * 5, no * 5, yes * 3 + no * 5, yes * 4, no * 4, [])
    broken = (yes * 4 + no + yes * 4, no * 4 + yes + no * 2, yes * 5 + no, no * 5 + yes)
    return [(weight, list(run)) for run in (*runs, *broken)] + [(0.0, yes * 5), (0.0, no * 5), (0.0, yes * 4)]


def _lambda_right(when) -> Callable[[Call], bool]:
    def holds(made: Call) -> bool:
        weight, worked = made.args
        return not when(weight, worked) or math.isclose(_number(made), made.expected, rel_tol=1e-4, abs_tol=1e-9)

    return holds


def _five(value: bool):
    return lambda weight, worked: weight > 0 and len(worked) >= 5 and worked[-5:] == [value] * 5


next_lambda = Exercise(
    "next_lambda",
    2,
    _next_lambda,
    _lambda_cases,
    (
        Criterion(
            0.25,
            _lambda_right(_five(True)),
            "After five successes in a row the attack works: ask for a smaller mask, with twice the weight.",
        ),
        Criterion(
            0.25,
            _lambda_right(_five(False)),
            "After five failures in a row the weight was too much: it must come down again, by a factor of 2 to the "
            "power of 1.5. A weight that only rises ends with a mask that does not work.",
        ),
        Criterion(
            0.25,
            _lambda_right(lambda weight, worked: len(set(worked[-5:])) != 1 or len(worked) < 5),
            "The weight changed too early. Only the last five updates count, all five must agree, and with fewer than "
            "five nothing has been shown yet.",
        ),
        Criterion(
            0.25,
            _lambda_right(lambda weight, worked: weight == 0),
            "The search starts with a weight of 0, and twice nothing is nothing: the first success needs a rule of its "
            "own.",
        ),
    ),
)

# --- anomaly_index ----------------------------------------------------------------------------------------------------


def _anomaly_index(norms: Tensor) -> Tensor:
    middle = torch.quantile(norms, 0.5)
    return (middle - norms) / (1.4826 * torch.quantile((norms - middle).abs(), 0.5))


def _index_cases(seed: int) -> list[tuple]:
    """Odd and even counts, a small outlier, a large one."""
    rng = generator(seed)
    cases = []
    for k, outlier in ((5, 2.0), (9, 300.0), (11, 5.0), (4, 3.0), (10, 4.0), (12, 200.0)):
        norms = 40 + 20 * torch.rand(k, generator=rng)
        norms[int(torch.randint(k, (1,), generator=rng))] = outlier
        cases.append((norms,))
    return cases


def _odd(made: Call) -> bool:
    return len(made.args[0]) % 2 == 1


def _up_to_a_factor(made: Call) -> bool:
    """Sizes right but for one factor, sign aside: the median as the middle, and a spread that is a MAD."""
    got, wanted = made.value.double().abs(), made.expected.double().abs()
    factor = float(wanted.sum() / got.sum())
    return 1 / 2.5 < factor < 2.5 and torch.allclose(got * factor, wanted, rtol=1e-3, atol=1e-3)


def _deviation_is_a_median(made: Call) -> bool:
    """The spread, read from the result: 1.4826 times the MAD, or the bare MAD."""
    return _up_to_a_factor(made) and any(
        torch.allclose(made.value.double().abs() * f, made.expected.double().abs(), rtol=1e-3, atol=1e-3)
        for f in (1.0, 1 / 1.4826)
    )


anomaly_index = Exercise(
    "anomaly_index",
    3,
    _anomaly_index,
    _index_cases,
    (
        Criterion(0.1, same_shape, "Look at the shape: one index for each class, (K,) in and (K,) out."),
        Criterion(
            0.15,
            lambda made: float(made.value[made.args[0].argmin()]) > 0 > float(made.value[made.args[0].argmax()]),
            "Look at the sign: a small mask is suspicious, so an index is positive below the median and negative above "
            "it. A huge mask is no sign of a backdoor.",
        ),
        Criterion(
            0.3,
            lambda made: not _odd(made) or _deviation_is_a_median(made),
            "The middle is the median of the norms; the spread is the median of their absolute distances from it. A "
            "mean or a standard deviation is pulled along by the very outlier that you are looking for.",
        ),
        Criterion(
            0.2,
            lambda made: not _odd(made) or same_values(made, 1e-3),
            "Right but for a factor: 1.4826 times the MAD is what equals one standard deviation for a bell curve.",
        ),
        Criterion(
            0.25,
            lambda made: _odd(made) or same_values(made, 1e-3),
            "Right for odd counts. Of an even count the median is the mean of the middle two; torch.median returns the "
            "lower of them.",
        ),
    ),
)

# --- name_targets -----------------------------------------------------------------------------------------------------


def _name_targets(index: Tensor, works: Tensor) -> list[int]:
    order = index.argsort(descending=True)
    return [k for k in order.tolist() if index[k] > 2 and works[k]]


def _target_cases(seed: int) -> list[tuple]:
    """Nobody, one, two in an order that isn't theirs; far above the median; exactly 2; a mask that does not work."""
    rng = generator(seed)
    quiet = 1.8 * torch.rand(8, generator=rng) - 0.9
    all_work = torch.ones(8, dtype=torch.bool)
    one, two, large, edge = (quiet.clone() for _ in range(4))
    one[5] = 3.5
    two[2], two[6], two[7] = 2.5, 4.5, 3.0
    large[1], large[4] = -6.0, 2.25
    edge[3] = 2.0
    broken = all_work.clone()
    broken[6] = False
    return [(quiet, all_work), (one, all_work), (two, all_work), (large, all_work), (edge, all_work), (two, broken)]


def _classes(made: Call) -> list[int]:
    """What came back, as class numbers; anything else raises, which meets no criterion."""
    got = torch.as_tensor(made.value)
    if got.ndim != 1 or got.dtype == torch.bool:
        raise TypeError
    return [int(k) for k in got.tolist()]


def _all_work(made: Call) -> bool:
    return bool(made.args[1].all())


name_targets = Exercise(
    "name_targets",
    1,
    _name_targets,
    _target_cases,
    (
        Criterion(0.1, lambda made: _classes(made) is not None, "Return a list of class numbers, empty if none is."),
        Criterion(
            0.5,
            lambda made: not _all_work(made) or set(_classes(made)) == set(made.expected),
            "Exactly the classes whose index is larger than 2: it may be none, and it may be several. The index is "
            "one-sided, so large negative values are no alarm.",
        ),
        Criterion(
            0.2,
            lambda made: not _all_work(made) or _classes(made) == list(made.expected),
            "The right classes in another order: the most unusual comes first.",
        ),
        Criterion(
            0.2,
            lambda made: _all_work(made) or _classes(made) == list(made.expected),
            "A mask that never worked is no trigger, however small it is: look at `works`.",
        ),
    ),
)
