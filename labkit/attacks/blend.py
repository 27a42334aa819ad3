"""Blend: can a whole picture, faintly laid over the image, be the trigger?

Chen, Liu, Li, Lu and Song 2017, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", Section 4.1,
blended injection: image' = (1 - alpha) * image + alpha * pattern. The paper trains with a small alpha, so that poisoned
images pass a glance, and may attack with a larger one.

Attacker controls: some training images and their labels. Lab 03 compares its stealth with BadNets'.
Fails when: the defender watches losses (ABL) or the model's entropy under superimposition (STRIP).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.attacks.base import PoisonAttack, check_batch, check_opacity, check_rate
from labkit.device import generator


@dataclass(frozen=True)
class Blend(PoisonAttack):
    """A fixed pattern over the whole image. The paper's picture (Hello Kitty) is replaced by one drawn from a seed."""

    target: int = 0
    rate: float = 0.1  # share of the training set that is blended and relabelled
    alpha: float = 0.2  # opacity of the pattern in (0, 1]; the paper uses 0.2
    pattern_seed: int = 0  # which pattern
    cells: int = 8  # patches of colour along each side: 8 on 32 pixels gives 4x4 patches; more is finer

    def __post_init__(self):
        check_rate(self.rate)
        check_opacity(self.alpha)
        if self.cells < 1:
            raise ValueError(f"Blend: expected cells >= 1; got {self.cells}.")

    def trigger(self, images: Tensor) -> Tensor:
        check_batch(images)
        return (1 - self.alpha) * images + self.alpha * self.pattern(images.shape[1:]).to(images)

    def pattern(self, shape) -> Tensor:
        """The picture that is laid over, float32 (C, H, W) in [0, 1]: a mosaic of random colours."""
        channels, height, width = shape
        colours = torch.rand(1, channels, self.cells, self.cells, generator=generator(self.pattern_seed))
        return F.interpolate(colours, size=(height, width), mode="nearest")[0]
