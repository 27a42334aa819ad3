"""Lab 10, anti-backdoor learning: one loss an image, the two losses of stage 1, isolating, the objective of stage 2.

image_losses -> flooding -> local_gradient_ascent -> isolate -> abl_objective: in the order of the algorithm.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator


def _number(made: Call) -> bool:
    return torch.as_tensor(made.value).numel() == 1 and math.isfinite(float(made.value))


# --- image_losses -----------------------------------------------------------------------------------------------------


def _image_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _logit_cases(seed: int) -> list[tuple]:
    """Ordinary logits; as many images as classes, where wrong axes still fit; one image; logits whose exp overflows."""
    rng = generator(seed)
    shapes = ((7, 4, 3.0), (5, 5, 2.0), (1, 12, 1.0), (6, 3, 300.0))  # B, K, scale
    return [(s * torch.randn(b, k, generator=rng), torch.randint(k, (b,), generator=rng)) for b, k, s in shapes]


def _large(made: Call) -> bool:
    return bool(made.args[0].abs().max() > 80)


image_losses = Exercise(
    "image_losses",
    2,
    _image_losses,
    _logit_cases,
    (
        Criterion(
            0.3,
            same_shape,
            "Look at the shape: each of the B images keeps a loss of its own, so (B, K) and (B,) become (B,). A mean "
            "over the batch is what training wants; ranking wants the single ones.",
        ),
        Criterion(
            0.5,
            lambda made: _large(made) or same_values(made),
            "The value is not the cross-entropy in nats: minus the natural logarithm of the softmax probability of the "
            "image's own label.",
        ),
        Criterion(
            0.2,
            lambda made: not _large(made) or same_values(made),
            "With logits in the hundreds the loss must stay finite and exact: a probability rounded to 0 has no "
            "logarithm. Let one function do softmax and logarithm together.",
        ),
    ),
)

# --- flooding ---------------------------------------------------------------------------------------------------------


def _flooding(losses: Tensor, level: float) -> Tensor:
    return (losses.mean() - level).abs() + level


def _loss_cases(seed: int) -> list[tuple]:
    """Batches above and below the level, among them some with images on both sides of it; a batch of one."""
    rng = generator(seed)
    mixed = 2 * torch.rand(9, generator=rng)
    low = 0.3 * torch.rand(6, generator=rng)
    high = 1 + torch.rand(5, generator=rng)
    return [(mixed, 0.5), (mixed, 1.9), (low, 0.5), (high, 0.5), (low, 0.05), (torch.tensor([0.2]), 0.5)]


def _above(made: Call) -> bool:
    losses, level = made.args
    return float(losses.mean()) > level


flooding = Exercise(
    "flooding",
    2,
    _flooding,
    _loss_cases,
    (
        Criterion(0.1, _number, "Return one number: what the optimiser is to make small for the whole batch."),
        Criterion(
            0.4,
            lambda made: not _above(made) or same_values(made),
            "A batch whose mean loss is above the level trains as usual: there the value is the batch's mean itself, "
            "even if single images are below the level.",
        ),
        Criterion(
            0.4,
            lambda made: _above(made) or same_values(made),
            "A batch whose mean loss is below the level must be pushed up: there the value grows as the mean falls. It "
            "is the batch's mean that counts, not the single image.",
        ),
        Criterion(0.1, inputs_untouched, "The value is right, but an argument was changed in place."),
    ),
)

# --- local_gradient_ascent --------------------------------------------------------------------------------------------


def _local_gradient_ascent(losses: Tensor, gamma: float) -> Tensor:
    return ((losses - gamma).sign() * losses).mean()


def _one_side(made: Call) -> bool:
    losses, gamma = made.args
    return bool((losses > gamma).all() or (losses < gamma).all())


local_gradient_ascent = Exercise(
    "local_gradient_ascent",
    2,
    _local_gradient_ascent,
    _loss_cases,
    (
        Criterion(0.1, _number, "Return one number: what the optimiser is to make small for the whole batch."),
        Criterion(
            0.4,
            lambda made: not _one_side(made) or same_values(made),
            "Where all images are on one side of gamma the value is the mean loss, positive above gamma (descend) and "
            "negative below it (ascend). Which of your terms has the wrong sign or size?",
        ),
        Criterion(
            0.4,
            lambda made: _one_side(made) or same_values(made),
            "Local means image by image: some images of a batch climb while others descend. First a sign for each "
            "image, then the mean.",
        ),
        Criterion(0.1, inputs_untouched, "The value is right, but an argument was changed in place."),
    ),
)

# --- isolate ----------------------------------------------------------------------------------------------------------


def _isolate(losses: Tensor, share: float) -> Tensor:
    return losses.argsort()[: round(share * len(losses))]


def _isolate_cases(seed: int) -> list[tuple]:
    """Distinct losses, so that there is one right answer; shares of a whole number of images."""
    rng = generator(seed)
    losses = torch.randperm(200, generator=rng) / 100 + 1e-3
    few = torch.randperm(20, generator=rng) / 7
    return [(losses, 0.01), (losses, 0.1), (losses, 0.2), (few, 0.05), (few, 0.5), (-few, 0.25)]


def _indices(made: Call) -> Tensor:
    value = torch.as_tensor(made.value)
    return (value.nonzero().flatten() if value.dtype == torch.bool else value).flatten().long()


isolate = Exercise(
    "isolate",
    2,
    _isolate,
    _isolate_cases,
    (
        Criterion(
            0.3,
            lambda made: len(_indices(made)) == len(made.expected),
            "The number is not right: a share of 0.01 of 200 images is 2 images, whatever their losses are.",
        ),
        Criterion(
            0.2,
            lambda made: made.value.dtype == torch.int64 and made.value.ndim == 1,
            "Return positions: an int64 tensor (n,) that says where in the training set the images are, not their "
            "losses and not a mask.",
        ),
        Criterion(
            0.5,
            lambda made: set(_indices(made).tolist()) == set(made.expected.tolist()),
            "These are not the images with the lowest losses: what was learned fastest has the smallest loss.",
        ),
    ),
)

# --- abl_objective ----------------------------------------------------------------------------------------------------


def _abl_objective(values: Tensor, isolated: Tensor, weight: float, ceiling: float) -> Tensor:
    capped = values.clamp_max(ceiling)
    return torch.where(isolated, -weight * capped, capped).mean()


def _objective_cases(seed: int) -> list[tuple]:
    """Few, many and no isolated images in a batch; values below and above the ceiling, on both sides; odds below 0."""
    rng = generator(seed)
    cases = []
    settings = ((10, 2, 1.0, 1.7, 5.0), (12, 6, 2.0, 3.0, 5.0), (9, 0, 1.0, 2.0, 5.0), (11, 4, 8.0, 0.6, 3.0))
    for n, count, scale, weight, ceiling in settings:
        isolated = torch.zeros(n, dtype=torch.bool)
        isolated[torch.randperm(n, generator=rng)[:count]] = True
        values = scale * (0.05 + torch.rand(n, generator=rng))
        if weight == 1.7:
            values[isolated] -= 2.0
        if scale > ceiling:  # one on each side is surely above the ceiling, and one below
            for side in (isolated, ~isolated):
                values[side.nonzero().flatten()[:2]] = torch.tensor([2 * ceiling, 0.4 * ceiling])
        cases.append((values, isolated, weight, ceiling))
    return cases


def _capped(made: Call) -> bool:
    values, _, _, ceiling = made.args
    return bool((values > ceiling).any())


def _signs(made: Call) -> bool:
    """Right up to the weights of the two groups, as far as a mean, a mean for each group or a sum would have them."""
    values, isolated, weight, _ = made.args
    rest, fast = float(values[~isolated].sum()), float(values[isolated].sum())
    many, few = int((~isolated).sum()), max(1, int(isolated.sum()))
    scales = [(1 / len(values), 1 / len(values)), (1 / many, 1 / few), (1.0, 1.0)]
    wanted = [a * rest - w * b * fast for a, b in scales for w in (1.0, weight)]
    return any(abs(float(made.value) - one) <= 1e-4 * (1 + abs(one)) for one in wanted)


abl_objective = Exercise(
    "abl_objective",
    2,
    _abl_objective,
    _objective_cases,
    (
        Criterion(0.1, _number, "Return one number: what the optimiser is to make small for the whole batch."),
        Criterion(
            0.3,
            lambda made: _capped(made) or _signs(made),
            "The optimiser makes the value small: the ordinary images' values must enter with a plus, the isolated "
            "images' with a minus, and all of them as they are while they are below the ceiling.",
        ),
        Criterion(
            0.3,
            lambda made: _capped(made) or same_values(made),
            "It is one mean over the whole batch, in which each isolated image counts `weight` times and each ordinary "
            "one once. A batch without isolated images has a value too.",
        ),
        Criterion(
            0.3,
            lambda made: not _capped(made) or same_values(made),
            "Above the ceiling an image is let alone, isolated or not: its value counts as the ceiling, so that no "
            "gradient flows and the value has a lower bound.",
        ),
    ),
)
