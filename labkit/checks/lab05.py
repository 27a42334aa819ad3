"""Lab 05, STRIP: blend, entropy, score, boundary, and the two error rates.

superimpose -> entropy_bits -> strip_score -> boundary -> frr_far: the five steps of Algorithm 1, in its order.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator

# --- superimpose ------------------------------------------------------------------------------------------------------


def _superimpose(images: Tensor, overlays: Tensor) -> Tensor:
    return torch.add(images, overlays)


def _image_cases(seed: int) -> list[tuple]:
    """Colour, grey and not square; one image, one overlay; as many images as overlays, where wrong axes still fit."""
    rng = generator(seed)
    shapes = ((2, 3, 3, 8, 8), (1, 4, 1, 6, 9), (3, 3, 3, 5, 4), (3, 1, 1, 4, 4))  # B, N, C, H, W
    return [
        (torch.rand(b, 1, c, h, w, generator=rng), torch.rand(b, n, c, h, w, generator=rng)) for b, n, c, h, w in shapes
    ]


def _in_small(made: Call) -> bool:
    """Right wherever the sum stays inside [0, 1]: what clipping does elsewhere is another criterion's matter."""
    inside = made.expected <= 1
    return bool(torch.allclose(made.value.double()[inside], made.expected.double()[inside], atol=1e-4))


superimpose = Exercise(
    "superimpose",
    1,
    _superimpose,
    _image_cases,
    (
        Criterion(
            0.3,
            same_shape,
            "Look at the shape: every one of the B images meets each of its N overlays, so (B, N, C, H, W) comes back. "
            "PyTorch stretches an axis of length 1 by itself (broadcasting).",
        ),
        Criterion(
            0.4,
            _in_small,
            "The blend is not the authors' sum: a pixel of the mixture is the image's pixel plus the overlay's, at "
            "full strength. Check too that image b meets the overlays of row b.",
        ),
        Criterion(0.2, same_values, "Where image and overlay are both bright the sum exceeds 1: leave it, don't clip."),
        Criterion(
            0.1, inputs_untouched, "The values are right, but an argument was changed in place. Return a new tensor."
        ),
    ),
)

# --- entropy_bits -----------------------------------------------------------------------------------------------------


def _entropy_bits(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1) / math.log(2)


def _distributions(rng: torch.Generator, *shape: int) -> Tensor:
    return (3 * torch.randn(*shape, generator=rng)).softmax(-1)


def _entropy_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    certain = torch.eye(5)
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    return [
        (_distributions(rng, 6, 4),),
        (_distributions(rng, 3, 7, 12),),
        (torch.full((2, 8), 1 / 8),),
        (_distributions(rng, 10),),
        (torch.cat([certain, _distributions(rng, 3, 5)]),),
        (half,),
    ]


def _has_zero(made: Call) -> bool:
    return bool((made.args[0] == 0).any())


entropy_bits = Exercise(
    "entropy_bits",
    2,
    _entropy_bits,
    _entropy_cases,
    (
        Criterion(
            0.25,
            same_shape,
            "Look at the shape: the sum runs over the classes, the last axis, and only that axis disappears: "
            "(..., K) becomes (...).",
        ),
        Criterion(
            0.25,
            lambda made: _has_zero(made) or same_values(_positive(made)),
            "The value is not an entropy: it is never negative, and 0 only when the model is certain.",
        ),
        Criterion(
            0.25,
            lambda made: _has_zero(made) or same_values(made),
            "The entropy is right but for a factor: the unit is bits, so one coin flip must give 1. Which logarithm?",
        ),
        Criterion(
            0.25,
            lambda made: not _has_zero(made) or same_values(_bits(made)),
            "A probability of exactly zero must add nothing: the limit of y log y is 0, but a computer says 0 times "
            "minus infinity is nan.",
        ),
    ),
)


def _rescaled(made: Call, factor: float) -> Call:
    return Call(made.args, made.value.double() * factor, expected=made.expected)


def _positive(made: Call) -> Call:
    """The same call with its values brought to bits, should they be in nats, bans or a share of the maximum."""
    total, wanted = float(made.value.double().sum()), float(made.expected.double().sum())
    return _rescaled(made, wanted / total if total > 0 else 1.0)


def _bits(made: Call) -> Call:
    """As `_positive`, but certain predictions alone (a sum of 0) have no factor to find."""
    return _positive(made) if float(made.expected.sum()) > 0 else made


# --- strip_score ------------------------------------------------------------------------------------------------------


def _strip_score(probs: Tensor) -> Tensor:
    return _entropy_bits(probs).mean(-1)


def _score_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    sure = torch.eye(6)[torch.randint(6, (2, 5), generator=rng)]  # each mixture certain, but of another class
    return [
        (_distributions(rng, 4, 7, 12),),
        (_distributions(rng, 1, 3, 5),),
        (_distributions(rng, 5, 5, 5),),
        (_distributions(rng, 3, 1, 10),),
        (torch.cat([sure, _distributions(rng, 2, 5, 6)]),),
    ]


def _same_order(made: Call) -> bool:
    """Right up to one positive factor for the whole batch: nats for bits, a sum for a mean."""
    return same_values(_positive(made))


strip_score = Exercise(
    "strip_score",
    2,
    _strip_score,
    _score_cases,
    (
        Criterion(0.2, same_shape, "Look at the shape: one score for each of the B inputs, so (B, N, K) becomes (B,)."),
        Criterion(
            0.5,
            _same_order,
            "First the entropy of every single mixture, over its classes (the last axis); only then one number for the "
            "N overlays. Another axis, or the other order, measures something else.",
        ),
        Criterion(
            0.3,
            same_values,
            "The ranking is right, the scale is not: the score is the mean over the N overlays of entropies in bits, "
            "which does not grow with N.",
        ),
    ),
)

# --- boundary ---------------------------------------------------------------------------------------------------------


def _boundary(clean_scores: Tensor, frr: float, kind: str = "quantile") -> float:
    if kind == "normal":
        return NormalDist(float(clean_scores.mean()), float(clean_scores.std())).inv_cdf(frr)
    return float(torch.quantile(clean_scores, frr))


def _boundary_cases(seed: int) -> list[tuple]:
    """Skewed scores, so that the two kinds differ; two rates each, so that no constant fits."""
    rng = generator(seed)
    skewed = torch.rand(1000, generator=rng) ** 2 * 2
    tight = 1.1 + 0.3 * torch.randn(400, generator=rng)
    return [(scores, frr, kind) for scores in (skewed, tight) for frr in (0.01, 0.1) for kind in ("quantile", "normal")]


def _number(made: Call) -> bool:
    return torch.as_tensor(made.value).numel() == 1 and math.isfinite(float(made.value))


def _lower_tail(made: Call) -> bool:
    """Below the middle of the clean scores: low entropy is what alarms."""
    return _number(made) and float(made.value) < float(made.args[0].median())


def _quantile_holds(made: Call) -> bool:
    """The promised share of clean scores lies at or below, to within one image: every textbook's quantile fits."""
    scores, frr, kind = made.args
    if kind != "quantile":
        return True
    value = float(made.value)
    share = float((scores.double() <= value + 1e-6 * abs(value)).double().mean())
    return abs(share - frr) <= 1.01 / len(scores)


def _normal_holds(made: Call) -> bool:
    """The normal quantile, whether the standard deviation divides by n or by n - 1, and with z from a table."""
    scores, _, kind = made.args
    spread = float(scores.std())
    return kind != "normal" or abs(float(made.value) - made.expected) <= spread * (0.01 + 3 / len(scores))


boundary = Exercise(
    "boundary",
    3,
    _boundary,
    _boundary_cases,
    (
        Criterion(0.05, _number, "A boundary is one finite number."),
        Criterion(
            0.15,
            _lower_tail,
            "That is the wrong tail: a trigger makes entropy low, so the boundary is at the low end of clean scores.",
        ),
        Criterion(
            0.4,
            _quantile_holds,
            'For kind "quantile", count: a share frr of the clean scores lies at or below the boundary, no more and no '
            "less. No bell curve is assumed, and frr is an argument.",
        ),
        Criterion(
            0.4,
            _normal_holds,
            'For kind "normal", forget the single scores: only their mean and standard deviation describe the bell '
            "curve, and frr picks the point below which that share of it lies.",
        ),
    ),
)

# --- frr_far ----------------------------------------------------------------------------------------------------------


def _frr_far(clean_scores: Tensor, triggered_scores: Tensor, threshold: float) -> tuple[float, float]:
    alarms, misses = clean_scores <= threshold, triggered_scores > threshold
    return float(alarms.double().mean()), float(misses.double().mean())


def _rate_cases(seed: int) -> list[tuple]:
    """Different numbers of clean and triggered inputs; a score exactly on the threshold; nothing and all flagged."""
    rng = generator(seed)
    clean, triggered = torch.rand(40, generator=rng) + 0.3, torch.rand(25, generator=rng)
    return [
        (clean, triggered, 0.6),
        (clean, triggered, float(clean.sort().values[3])),
        (torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([0.0, 0.125, 0.5, 0.5, 0.625]), 0.5),
        (clean, triggered, -1.0),
        (clean, triggered, 2.0),
        (torch.tensor([1.0]), torch.tensor([0.0]), 0.5),
    ]


def _pair(made: Call) -> tuple[float, float]:
    frr, far = made.value
    return float(frr), float(far)


def _tie(made: Call) -> bool:
    clean, triggered, threshold = made.args
    return bool((clean == threshold).any() or (triggered == threshold).any())


def _rate_right(which: int, ties: bool):
    def holds(made: Call) -> bool:
        return _tie(made) != ties or abs(_pair(made)[which] - made.expected[which]) < 1e-4

    return holds


frr_far = Exercise(
    "frr_far",
    2,
    _frr_far,
    _rate_cases,
    (
        Criterion(
            0.1,
            lambda made: all(0 <= rate <= 1 for rate in _pair(made)),
            "Return two shares between 0 and 1, FRR first and FAR second.",
        ),
        Criterion(
            0.35,
            _rate_right(0, ties=False),
            "FRR, false rejection: of the clean inputs alone, the share that is flagged. Flagged means a low score.",
        ),
        Criterion(
            0.35,
            _rate_right(1, ties=False),
            "FAR, false acceptance: of the triggered inputs alone, the share that is let through, not those caught.",
        ),
        Criterion(
            0.2,
            lambda made: _rate_right(0, ties=True)(made) and _rate_right(1, ties=True)(made),
            "Look at a score exactly on the threshold: Algorithm 1 flags H <= boundary, so equal means flagged.",
        ),
    ),
)
