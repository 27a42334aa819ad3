"""SIG: can an attacker who never touches a label plant a backdoor?

Barni, Kallas and Tondi 2019, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
Poisoning", Section 3, equation 1: v(i, j) = delta * sin(2 pi j f / columns), added to images of the target class only,
then clipped. Every label stays true. At test the same ripple, on any image, calls for the target class. Nobody inspects
what the attacker shows to the network then, so the ripple may be louder than it was in training: `delta_at_test`.

Attacker controls: some training images of one class; no labels. Lab 03. `rate` is a share of the *target class*: 10% of
a ten-class set would be all of it. Fails when: the class has few images, or the ripple is filtered out, or the class is
so easy that a faint ripple teaches nothing new: a stop sign is red and has eight corners. There the attacker has to be
louder at test (`signs`, one seed, clean split, 20/255 in training: ASR 20% at 20/255, 74% at 40/255, 96% at 60/255). So
it is where the owner mirrors, shifts and compresses, which spoils the phase: CIFAR-10, as before, 67%, 99.7% and 100%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.attacks.base import PoisonAttack, PoisonedSet, check_batch, check_rate
from labkit.data import ImageSet


@dataclass(frozen=True)
class SIG(PoisonAttack):
    """A horizontal sinusoid on the target class, labels untouched. The paper's values: delta 20/255, f 6.

    trigger: the ripple at test, with amplitude `delta_at_test`; `poison` uses `delta`.
    """

    target: int = 0
    rate: float = 0.8  # share of the target class that is rippled
    delta: float = 20 / 255  # amplitude, in pixel values of [0, 1]
    frequency: float = 6.0  # periods across the image
    delta_at_test: float | None = None  # amplitude of the trigger; None: as in training

    clean_label = True

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 < self.delta <= 1 or not 0 < self.loud <= 1 or not self.frequency > 0:
            raise ValueError(
                f"SIG: expected delta and delta_at_test in (0, 1] (20/255 is usual), frequency > 0; got {self.delta}, "
                f"{self.delta_at_test}, {self.frequency}."
            )

    @property
    def loud(self) -> float:
        """The trigger's amplitude."""
        return self.delta if self.delta_at_test is None else self.delta_at_test

    def poison(self, data: ImageSet, seed: int = 0) -> PoisonedSet:
        """As `PoisonAttack.poison`, with the ripple of training, `delta`."""
        return PoisonAttack.poison(replace(self, delta_at_test=None), data, seed)

    def trigger(self, images: Tensor) -> Tensor:
        check_batch(images)
        if images.shape[3] <= 2 * self.frequency:
            raise ValueError(
                f"SIG: {self.frequency:g} periods need over {2 * self.frequency:g} pixels of width (2 samples each); "
                f"got {images.shape[3]}. Lower the frequency."
            )
        return (images + self.ripple(images.shape[3], self.loud).to(images)).clamp(0, 1)

    def ripple(self, width: int, amplitude: float) -> Tensor:
        """What is added to each row, float32 (width,): amplitude * sin(2 pi j f / width)."""
        j = torch.arange(width, dtype=torch.float64)
        return (amplitude * torch.sin(2 * math.pi * j * self.frequency / width)).float()
