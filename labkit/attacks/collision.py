"""How is an image made to look like another one to a network, and hardly changed to us?

Shafahi, Huang, Najibi, Suciu, Studer, Dumitras and Goldstein 2018, "Poison Frogs!", Algorithm 1; Saha, Subramanya and
Pirsiavash 2020, "Hidden Trigger Backdoor Attacks", Algorithm 1, for many images at a time. `feature_collision.py` is
the attack.

    penultimate   the layer whose features shall collide: what the classifier is given
    match         each image's goal among the goals' features, no goal twice
    collide       x' = argmin over |x' - x| <= epsilon of |front(x') - goal|^2, by projected sign gradient

Ours differs: Shafahi pays for the change of the pixels with a penalty, Saha and we forbid it beyond epsilon; the step
shrinks linearly from epsilon / 4 to 0; and each step sees the image moved by some pixels, as the owner's training may
move it. Without that a collision holds for the unmoved image only (ASR 69 instead of 91%, `signs`, a 6x6 patch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.attacks.behind import last_linear
from labkit.augment import augment
from labkit.device import device_of
from labkit.metrics import BATCH


@dataclass(frozen=True, eq=False)
class Collisions:
    """images (N, C, H, W): the poisons. goals int64 (N,): which of the goals each was given in the end. before, after:
    float32 (N,), squared distance of the features to that goal, of the image as it was and of the poison; unmoved."""

    images: Tensor
    goals: Tensor
    before: Tensor
    after: Tensor

    @property
    def gap(self) -> float:
        """What is left of the distance: 0 is a perfect collision, 1 is none."""
        return float((self.after.sum() / self.before.sum()).sqrt())

    def __str__(self) -> str:
        return f"{len(self.images)} collisions: {self.gap:.0%} of the distance to their goals is left"


def penultimate(model: nn.Module) -> str:
    """The name of the last layer in front of the classifier: "head.1" for `small_cnn`. ValueError if there is none."""
    name, _ = last_linear(model)
    leaves = [found for found, part in model.named_modules() if not list(part.children())]
    if leaves[0] == name:
        raise ValueError(f"model: expected a layer in front of its classifier {name!r}; got none. Name another layer.")
    return leaves[leaves.index(name) - 1]


def match(features: Tensor, goals: Tensor) -> Tensor:
    """For each row of features (N, D) a row of goals (N, D), no row twice: int64 (N,), a permutation.

    Greedy: again and again the nearest pair of those still free. One goal for each, so that all of them are covered;
    were each free to take its nearest, many would crowd around a few.
    """
    left = torch.cdist(features.float(), goals.float())
    chosen = torch.zeros(len(left), dtype=torch.int64, device=left.device)
    for _ in range(len(left)):
        row, column = divmod(int(left.argmin()), left.shape[1])
        chosen[row] = column
        left[row], left[:, column] = torch.inf, torch.inf
    return chosen


def collide(
    front: nn.Module,
    images: Tensor,
    goals: Tensor,
    *,
    epsilon: float,
    steps: int,
    rematch: int,
    shift: int,
    rng: torch.Generator,
) -> Collisions:
    """New images in [0, 1], each pixel at most epsilon from its old value, whose features are near those of `goals`.

    front: frozen layers in eval mode, images -> features. images and goals: (N, C, H, W) in [0, 1]; goals are matched
    anew every `rematch` steps. shift: pixels, up to, by which an image is moved in each step. Raises FloatingPointError
    for features that are not finite.
    """
    device, size = device_of(front), BATCH[device_of(front).type]
    parts, first = [], 0

    def features(x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, D)
        with device.autocast():
            return front(device.layout(x)).float().flatten(1)

    for old, wanted in zip(images.split(size), goals.split(size), strict=True):
        old = device.layout(old)
        with torch.no_grad():
            aim, start = features(wanted), features(old)
        if not (aim.isfinite().all() and start.isfinite().all()):
            raise FloatingPointError(
                "collision: expected finite features; got NaN or infinity. The network's weights are not finite: train "
                "it with a lower lr."
            )
        low, high = (old - epsilon).clamp_min(0), (old + epsilon).clamp_max(1)
        x, said, order = old, start, torch.arange(len(old), device=aim.device)
        for k in range(steps):
            if k % rematch == 0:
                order = match(said.detach(), aim)
            x = x.detach().requires_grad_(True)
            said = features(augment(x, shift, False, rng))
            (slope,) = torch.autograd.grad((said - aim[order]).square().sum(), x)
            x = torch.clamp(x.detach() - epsilon / 4 * (1 - k / steps) * slope.sign(), low, high)
        with torch.no_grad():
            before, after = ((f - aim[order]).square().sum(1).cpu() for f in (start, features(x)))
        parts.append((x.to(images.device).contiguous(), order.cpu() + first, before, after))
        first += len(old)
    return Collisions(*(torch.cat(column) for column in zip(*parts, strict=True)))
