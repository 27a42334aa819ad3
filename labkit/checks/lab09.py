"""Lab 09, distil and connect: attention maps, NAD's loss, a point between two models, and which point to take.

attention_map -> nad_loss -> bezier_point -> choose_t: the two defences of the lab in the order they are built. A map's
place is judged apart from its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator

# --- attention_map ----------------------------------------------------------------------------------------------------


def _attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    strength = features.abs().pow(p).sum(1)  # (B, C, H, W) -> (B, H, W)
    return F.normalize(strength.flatten(1)).view_as(strength)


def _feature_cases(seed: int) -> list[tuple]:
    """Features of both signs, not square; one channel, one image; p other than 2; an image whose layer is silent.

    They require gradients, as a network's do in training.
    """
    rng = generator(seed)
    shapes = ((4, 5, 3, 6), (1, 3, 4, 4), (3, 1, 2, 5), (3, 3, 3, 3))
    drawn = [torch.randn(*shape, generator=rng) for shape in shapes]
    silent = drawn[0].clone()
    silent[1] = 0
    cases = [(features, 2.0) for features in drawn] + [(drawn[0], 1.0), (drawn[3], 3.0), (silent, 2.0)]
    return [(features.clone().requires_grad_(), p) for features, p in cases]


def _silent(made: Call) -> bool:
    return bool((made.expected == 0).flatten(1).all(1).any())


def _same_place(made: Call) -> bool:
    """The reference's map in every image, up to a positive factor of that image."""
    got, wanted = made.value.double().flatten(1), made.expected.double().flatten(1)
    return got.shape == wanted.shape and bool((F.cosine_similarity(got, wanted) > 1 - 1e-5).all())


attention_map = Exercise(
    "attention_map",
    2,
    _attention_map,
    _feature_cases,
    (
        Criterion(
            0.2,
            same_shape,
            "Look at the shape: one value for each position of each image. The channels disappear: (B, C, H, W) "
            "becomes (B, H, W).",
        ),
        Criterion(
            0.3,
            lambda made: made.args[1] != 2 or _silent(made) or _same_place(made),
            "The map does not show where the layer is active: at each position, raise every channel's value to the "
            "power p first, and add up over the channels then.",
        ),
        Criterion(
            0.2,
            lambda made: made.args[1] == 2 or _same_place(made),
            "Right for p = 2 only. p is an argument, and at odd p positive and negative values would cancel: take "
            "absolute values first.",
        ),
        Criterion(
            0.2,
            lambda made: _silent(made) or same_values(made),
            "The pattern is right, the scale is not: each image's map, as one long vector, has length 1. Length is the "
            "root of the sum of squares, and each image has its own.",
        ),
        Criterion(
            0.1,
            lambda made: not _silent(made) or same_values(made),
            "A layer can be silent on an image: 0 divided by 0 is nan. Such a map stays zero.",
        ),
    ),
)

# --- nad_loss ---------------------------------------------------------------------------------------------------------


def _nad_loss(
    logits: Tensor, labels: Tensor, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], beta: float
) -> Tensor:
    apart = [(s - t).square().sum((1, 2)).mean() for s, t in zip(student_maps, teacher_maps, strict=True)]
    return F.cross_entropy(logits, labels) + beta * sum(apart)


def _loss_cases(seed: int) -> list[tuple]:
    """beta 0, one layer, and three layers of different sizes; maps of length 1, of which some agree."""
    rng = generator(seed)

    def maps(batch: int, *sizes: tuple[int, int]) -> list[Tensor]:
        return [_attention_map(torch.rand(batch, 1, *size, generator=rng), p=3) for size in sizes]

    sizes = ((8, 8), (4, 6), (2, 2))
    cases = []
    for batch, some, beta in ((6, 1, 0.0), (5, 1, 10.0), (1, 1, 2.0), (7, 3, 3.0)):
        logits, labels = 2 * torch.randn(batch, 4, generator=rng), torch.randint(4, (batch,), generator=rng)
        cases.append((logits, labels, maps(batch, *sizes[:some]), maps(batch, *sizes[:some]), beta))
    logits, labels, student, teacher, beta = cases[-1]
    return [*cases, (logits, labels, student, [student[0], *teacher[1:]], beta)]


def _scalar(made: Call) -> bool:
    return isinstance(made.value, Tensor | float) and torch.as_tensor(made.value).ndim == 0


def _one_number_right(made: Call) -> bool:
    return abs(float(made.value) - float(made.expected)) <= 1e-4 * (1 + abs(float(made.expected)))


nad_loss = Exercise(
    "nad_loss",
    3,
    _nad_loss,
    _loss_cases,
    (
        Criterion(0.1, _scalar, "A loss is one number: a tensor without axes, the mean over the batch."),
        Criterion(
            0.25,
            lambda made: made.args[4] != 0 or _one_number_right(made),
            "With beta 0 nothing must be left but the cross-entropy of logits and labels, averaged over the batch. It "
            "takes logits as they are, without a softmax before.",
        ),
        Criterion(
            0.4,
            lambda made: len(made.args[2]) != 1 or _one_number_right(made),
            "The attention term is off for a single layer: the squared differences of two maps add up over their "
            "positions, and are averaged over the images alone; then comes beta.",
        ),
        Criterion(
            0.25,
            lambda made: len(made.args[2]) == 1 or _one_number_right(made),
            "Right for one layer, not for several. Every layer has its say: their distances are added up, whatever the "
            "sizes of their maps.",
        ),
    ),
)

# --- bezier_point -----------------------------------------------------------------------------------------------------

Weights = dict[str, Tensor]


def _bezier_point(start: Weights, bend: Weights, end: Weights, t: float) -> Weights:
    return {k: (1 - t) ** 2 * start[k] + 2 * t * (1 - t) * bend[k] + t**2 * end[k] for k in start}


def _weight_cases(seed: int) -> list[tuple]:
    """A kernel, a matrix and a bias; both ends, the middle, and two points that tell the ends apart."""
    rng = generator(seed)
    shapes = {"stem.weight": (4, 3, 2, 2), "head.weight": (5, 4), "head.bias": (5,)}

    def weights() -> Weights:
        return {name: torch.randn(*shape, generator=rng) for name, shape in shapes.items()}

    return [(weights(), weights(), weights(), t) for t in (0.0, 1.0, 0.5, 0.25, 0.9)]


def _names(made: Call) -> bool:
    return isinstance(made.value, dict) and made.value.keys() == made.expected.keys()


bezier_point = Exercise(
    "bezier_point",
    3,
    _bezier_point,
    _weight_cases,
    (
        Criterion(0.1, _names, "Return a dictionary with the same names as the three that came in."),
        Criterion(
            0.3,
            lambda made: made.args[3] not in (0, 1) or same_values(made),
            "The ends are not where they should be: the curve begins in start at t = 0 and arrives in end at t = 1.",
        ),
        Criterion(
            0.4,
            lambda made: made.args[3] in (0, 1) or same_values(made),
            "Between the ends the curve is not the quadratic one. Its three weights add up to 1 at every t, and at "
            "t = 1/2 they are 1/4, 1/2, 1/4.",
        ),
        Criterion(
            0.2,
            inputs_untouched,
            "The point is right, but a model that was handed in has changed. Make new tensors: it is needed again.",
        ),
    ),
)

# --- choose_t ---------------------------------------------------------------------------------------------------------


def _choose_t(grid: Sequence[float], accuracy: Tensor, max_drop: float) -> float:
    allowed = [i for i in range(len(grid)) if float(accuracy[i]) >= float(accuracy.max()) - max_drop]
    return grid[min(allowed, key=lambda i: (round(abs(grid[i] - 0.5), 6), -float(accuracy[i])))]


def _choice_cases(seed: int) -> list[tuple]:
    """Middle allowed; middle in a dip; the best point alone allowed; all alike; a tie for distance; uneven grids."""
    rng = generator(seed)
    tenths = [i / 10 for i in range(11)]
    level = torch.full((11,), 0.93) + 0.01 * torch.rand(11, generator=rng)
    dip = level.clone()
    dip[3:8] -= torch.tensor([0.06, 0.2, 0.3, 0.2, 0.3])
    near = torch.tensor([0.95, 0.9, 0.915, 0.7, 0.92, 0.9, 0.95])
    return [
        (tenths, level, 0.04),
        (tenths, dip, 0.03),
        (tenths, dip, 0.1),
        (tenths, torch.linspace(0.9, 0.98, 11), 0.005),
        (tenths, torch.full((11,), 0.9), 0.0),
        ([0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0], near, 0.05),
        ([0.1, 0.35, 0.9], torch.tensor([0.9, 0.5, 0.91]), 0.02),
    ]


def _index(made: Call) -> int:
    """Which point of the grid came back; raises for a number that is none of them."""
    (found,) = [i for i, t in enumerate(made.args[0]) if abs(t - float(made.value)) < 1e-6]
    return found


def _distance(t: float) -> float:
    return round(abs(float(t) - 0.5), 6)


choose_t = Exercise(
    "choose_t",
    2,
    _choose_t,
    _choice_cases,
    (
        Criterion(0.2, lambda made: _index(made) >= 0, "Return a point t of the grid, not its index or its accuracy."),
        Criterion(
            0.3,
            lambda made: made.args[1][_index(made)] >= made.args[1].max() - made.args[2] - 1e-6,
            "The point chosen costs too much: its accuracy may lie at most max_drop below the best on the path.",
        ),
        Criterion(
            0.4,
            lambda made: _distance(made.value) <= _distance(made.expected),
            "There is a point nearer to the middle that clean accuracy allows. Accuracy says which points are allowed; "
            "among those, distance from both ends decides.",
        ),
        Criterion(
            0.1,
            same_values,
            "Two allowed points are as near to the middle: take the one of higher accuracy.",
        ),
    ),
)
