"""STRIP: is this input carrying a trigger?

Gao, Xu, Wang, Chen, Ranasinghe and Nepal 2019, "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks",
Section 4, Algorithm 1. Lay other clean images over the input. A clean input becomes ambiguous and the predictions vary:
high entropy. A trigger that works on any image goes on working: low entropy.

    superimpose       x + x_n^t, each input with N overlays
    entropy           H_n = -sum_i y_i log2 y_i over the classes, in bits (equation 2)
    perturbed_entropies  H_n of each of the N perturbed inputs; their mean is the score H (Algorithm 1, line 7)
    boundary          the score below which FRR of the clean inputs lie (Section 5.2)
    strip             flag every input with H <= boundary

The defender has: the model, inputs to judge, some clean images. Not: the trigger, the target, or whether there is one.
Fails when: the trigger depends on the image (ISSBA, input-aware), fades in the blend, or the attacker trained against
STRIP. Lab 05.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from labkit.data import ImageSet, check_images
from labkit.device import device_of, generator
from labkit.metrics import BATCH, eval_mode, forward


@dataclass(frozen=True)
class StripResult:
    """scores float32 (N,): mean entropy in bits, in input order. flagged bool (N,): scores <= threshold.

    clean_scores float32 (M,): the defender's own images, which set the threshold. boundary: how it was set.
    """

    scores: Tensor
    threshold: float
    flagged: Tensor
    clean_scores: Tensor
    boundary: str
    frr: float

    def __str__(self) -> str:
        n = int(self.flagged.sum())
        found = f"{n:,} inputs" if n else "nothing"
        return (
            f"STRIP: {found} flagged of {len(self.flagged):,}; threshold {self.threshold:.3f} bits "
            f"({self.boundary} of {len(self.clean_scores):,} clean images at FRR {self.frr:.1%}); "
            f"mean entropy {float(self.scores.mean()):.3f} bits"
        )


def superimpose(images: Tensor, overlays: Tensor) -> Tensor:
    """images (B, 1, C, H, W) + overlays (B, N, C, H, W) -> (B, N, C, H, W), the authors' own blend: a plain sum.

    The sum leaves [0, 1] and is not clipped: clipping or averaging fades a small trigger along with the image, and
    with it the entropy gap (Lab 05 measures how much).
    """
    return images + overlays


def average(images: Tensor, overlays: Tensor) -> Tensor:
    """The mean of the two: stays in [0, 1] but halves the trigger's contrast."""
    return (images + overlays) / 2


def clipped_sum(images: Tensor, overlays: Tensor) -> Tensor:
    """The sum, clipped to [0, 1]: a sensor's saturation; white trigger pixels survive, dark ones don't."""
    return (images + overlays).clamp(0, 1)


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy over the last dimension, in bits: (..., K) -> (...), between 0 and log2 K."""
    return torch.special.entr(probs).sum(-1) / torch.log(torch.tensor(2.0))


def draw_overlays(n: int, pool: int, overlays: int, rng: torch.Generator, own: bool = False) -> Tensor:
    """int64 (n, overlays): for each input, distinct positions in a pool of clean images.

    own: the inputs are the pool itself, in order, and no image is laid over itself.
    """
    order = torch.rand(n, pool, generator=rng)
    if own:
        order.fill_diagonal_(2.0)  # random numbers stay below 1, so this one is never among the smallest
    return order.topk(overlays, largest=False).indices


def perturbed_entropies(
    model: nn.Module,
    inputs: Tensor,
    pool: Tensor,
    picks: Tensor,
    blend: Callable[[Tensor, Tensor], Tensor] = superimpose,
) -> Tensor:
    """H_n in bits of every perturbed input, float32 (N, overlays) on the CPU; their mean over n is the STRIP score.

    inputs (N, C, H, W); pool (M, C, H, W), clean images; picks int64 (N, overlays): which of them lie over each input.
    """
    device = device_of(model)
    inputs, pool = device.layout(inputs), device.layout(pool)  # mixtures then come out in that layout too
    rows = []
    chunk = max(1, BATCH[device.type] // picks.shape[1])  # inputs at a time: their mixtures fill one batch
    with device.autocast():  # around the loop: the weights are cast once, not for every batch
        for x, pick in zip(inputs.split(chunk), picks.split(chunk), strict=True):
            mixed = blend(x[:, None], pool[pick.to(device)])  # (B, 1, C, H, W) and (B, n, C, H, W) -> (B, n, C, H, W)
            probs = forward(model, mixed.flatten(0, 1)).softmax(1)  # (B*n, K)
            rows.append(entropy(probs).view(len(x), -1))
    return torch.cat(rows)


def strip(
    model: nn.Module,
    inputs: Tensor,
    clean: ImageSet,
    *,
    overlays: int = 100,
    frr: float = 0.01,
    blend: Callable[[Tensor, Tensor], Tensor] = superimpose,
    boundary: str = "quantile",
    seed: int = 0,
) -> StripResult:
    """Entropy scores of the inputs and which of them are flagged at a false rejection rate of `frr`.

    model: (N, C, H, W) in [0, 1] -> logits (N, K), in eval mode. inputs: the images to judge. clean: the defender's
    images; they are scored too, to set the threshold, and serve as overlays. boundary: "quantile", the empirical frr
    quantile of the clean scores, or "normal", the frr quantile of a normal distribution with their mean and standard
    deviation (what the paper does). The model is left as it is.
    Raises ValueError for images outside [0, 1], fewer clean images than overlays + 1, frr outside (0, 1).
    """
    check_images(inputs, "inputs")
    if not 1 <= overlays < len(clean):
        raise ValueError(
            f"clean: expected at least overlays + 1 = {overlays + 1} images (none lies over itself); got {len(clean)}. "
            "Give more clean images or ask for fewer overlays."
        )
    if not 0 < frr < 1 or boundary not in ("quantile", "normal"):
        raise ValueError(
            f"strip: expected 0 < frr < 1 and boundary 'quantile' or 'normal'; got frr {frr!r}, boundary {boundary!r}."
        )
    model, rng = eval_mode(model), generator(seed)
    m = len(clean)
    clean_scores = perturbed_entropies(
        model, clean.images, clean.images, draw_overlays(m, m, overlays, rng, own=True), blend
    ).mean(1)
    scores = perturbed_entropies(model, inputs, clean.images, draw_overlays(len(inputs), m, overlays, rng), blend).mean(
        1
    )
    threshold = detection_boundary(clean_scores, frr, boundary)
    return StripResult(scores, threshold, scores <= threshold, clean_scores, boundary, frr)


def detection_boundary(clean_scores: Tensor, frr: float, boundary: str = "quantile") -> float:
    """The score that a share `frr` of the clean scores lies at or below. Raises nothing for a constant model."""
    if boundary == "normal":
        spread = float(clean_scores.std()) if len(clean_scores) > 1 else 0.0
        return NormalDist(float(clean_scores.mean()), max(spread, 1e-9)).inv_cdf(frr)
    return float(torch.quantile(clean_scores, frr))
