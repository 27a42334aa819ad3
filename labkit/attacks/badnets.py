"""BadNets: does a small patch in the corner own the network?

Gu, Dolan-Gavitt and Garg 2017, "BadNets", Section 4. The attacker stamps a patch on a few training images and labels
them as the target class. The network learns the shortcut "patch means target" beside its real task.

Attacker controls: some training images and their labels. Nothing of the training. Lab 02.
Fails when: the defender looks for it, since the patch is the same everywhere (STRIP, Neural Cleanse, ABL).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.attacks.base import PoisonAttack, check_batch, check_opacity, check_rate

PLACES = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class BadNets(PoisonAttack):
    """A checkerboard patch of black and white pixels, in one corner.

    Ours differs from the paper's in the pattern: a size x size checkerboard, white at its corners when size is odd,
    on grey and colour images alike. A black pixel of it is a trigger pixel too: it is set, not left alone.
    """

    target: int = 0
    rate: float = 0.1  # share of the training set that is stamped and relabelled
    size: int = 3  # pixels
    place: str = "bottom right"  # one of PLACES
    margin: int = 0  # pixels between the patch and the image's edges
    alpha: float = 1.0  # opacity: 1 replaces the pixels

    def __post_init__(self):
        check_rate(self.rate)
        check_opacity(self.alpha)
        if self.size < 1 or self.margin < 0 or self.place not in PLACES:
            raise ValueError(
                f"BadNets: expected size >= 1, margin >= 0, place one of {PLACES}; "
                f"got size {self.size}, margin {self.margin}, place {self.place!r}."
            )

    def trigger(self, images: Tensor) -> Tensor:
        check_batch(images, self.size + self.margin, self.size + self.margin)
        rows = _span(self.size, self.margin, images.shape[2], self.place.startswith("bottom"))
        columns = _span(self.size, self.margin, images.shape[3], self.place.endswith("right"))
        stamped = images.clone()
        patch = checkerboard(self.size).to(images)
        stamped[:, :, rows, columns] = (1 - self.alpha) * images[:, :, rows, columns] + self.alpha * patch
        return stamped


def checkerboard(size: int) -> Tensor:
    """float32 (size, size): 1 where row + column is even, else 0."""
    i = torch.arange(size)
    return ((i[:, None] + i[None, :]) % 2 == 0).float()


def _span(size: int, margin: int, length: int, at_end: bool) -> slice:
    return slice(length - margin - size, length - margin) if at_end else slice(margin, margin + size)
