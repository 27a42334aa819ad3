"""LabelConsistent: how can a patch be learnt from images whose labels are all true?

Turner, Tsipras and Madry 2019, "Label-Consistent Backdoor Attacks", Sections 4.1 (adversarial perturbations), 4.3 and
4.4 (a fainter trigger, in all corners). A patch on honest images of the target class teaches nothing: the network knows
them by their own features. So the attacker spoils these features first.

    1  train a surrogate, an honest network of the attacker's own, on the clean set
    2  x' = argmax over |x' - x| <= epsilon of the surrogate's loss on (x, target), by projected gradient   `pgd`
    3  stamp x' in all four corners, so that shifts and flips leave some corner whole; keep the label       `stamped`

Such perturbations transfer: they hide the class from the victim's network too, and the trigger is what is left to
learn. In training the trigger may be faint, `amplitude`; at test `trigger` always stamps it in full.

Attacker controls: some training images of one class; no labels. The attacker needs the training set, or one like it, to
train the surrogate. Lab 03. `rate` is a share of the *target class*, as with SIG.
Fails when: few images of the class are poisoned or epsilon is small, so that the class's own features suffice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attacks.badnets import checkerboard
from labkit.attacks.base import PoisonAttack, PoisonedSet, Victim, another, card_of, check_batch, check_rate
from labkit.data import ImageSet
from labkit.device import device_of, generator
from labkit.metrics import BATCH, check_target, evaluate
from labkit.train import TrainConfig, train


@dataclass(frozen=True)
class LabelConsistent(PoisonAttack):
    """A checkerboard in each corner of perturbed images of the target class, labels untouched."""

    target: int = 0
    rate: float = 0.5  # share of the target class that is perturbed and stamped
    epsilon: float = 16 / 255  # largest change of a pixel by the perturbation, in pixel values of [0, 1]
    steps: int = 20  # gradient steps of the perturbation, each of 2.5 epsilon / steps
    size: int = 3  # pixels, of each corner's patch
    amplitude: float = 1.0  # of the trigger in training: what white pixels gain and black ones lose, before clipping
    surrogate: str = "small_cnn"  # the attacker's guess at the victim's architecture

    clean_label = True

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 < self.epsilon <= 1 or self.steps < 1 or self.size < 1 or not 0 < self.amplitude <= 1:
            raise ValueError(
                f"LabelConsistent: expected 0 < epsilon <= 1 (16/255 is usual), steps >= 1, size >= 1, "
                f"0 < amplitude <= 1; got {self.epsilon}, {self.steps}, {self.size}, {self.amplitude}."
            )

    def trigger(self, images: Tensor) -> Tensor:
        return self.stamped(images, 1.0)

    def stamped(self, images: Tensor, amplitude: float) -> Tensor:
        """New images (N, C, H, W): amplitude added where the corners are white, taken away where black; clipped."""
        check_batch(images, 2 * self.size, 2 * self.size)
        return (images + amplitude * corners(self.size, *images.shape[2:]).to(images)).clamp(0, 1)

    def poison(
        self,
        data: ImageSet,
        seed: int = 0,
        *,
        surrogate: nn.Module | None = None,
        config: TrainConfig | None = None,
        **options,
    ) -> PoisonedSet:
        """`rate` of the target class, chosen from `seed`, perturbed against the surrogate and stamped.

        surrogate: an honestly trained network that maps these images to logits; it is left alone. None: one is trained
        on `data`, with a seed made from `seed`; config and options (callback, progress) go to that `train`.
        Raises ValueError as every poisoning does.
        """
        chosen = super().poison(data, seed)  # which images; the rest of it is made anew
        own = another(seed)
        if surrogate is None:
            surrogate = train(self.surrogate, data, config=config, seed=own, **options)
        originals, labels = data.images[chosen.poisoned], data.labels[chosen.poisoned]
        perturbed = pgd(surrogate, originals, labels, self.epsilon, self.steps, generator(own))
        images = data.images.clone()
        images[chosen.poisoned] = self.stamped(perturbed, self.amplitude)
        return replace(chosen, images=images)

    def implant(
        self,
        data: ImageSet,
        *,
        arch: str = "small_cnn",
        seed: int = 0,
        config: TrainConfig | None = None,
        test: ImageSet | None = None,
        **options,
    ) -> Victim:
        """Poison `data`, let the owner train on it, and return the Victim; evaluated if `test` is given.

        The surrogate is trained with the owner's config and options (callback, progress), but from its own seed.
        """
        check_target(self.target, len(data.classes))
        poisoned = self.poison(data, seed, config=config, **options).without_secrets()
        model = train(arch, poisoned, config=config, seed=seed, **options)
        report = evaluate(model, test, self.trigger, self.target) if test else None
        return Victim(model, self.trigger, self.target, report, card_of(self, data, arch, seed, config))


def pgd(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int, rng: torch.Generator) -> Tensor:
    """New images (N, C, H, W) in [0, 1], at most epsilon from the old in each pixel, on which the model's loss is high.

    Starts at a random place of that box; each of `steps` steps follows the sign of the loss's gradient for
    2.5 epsilon / steps, and returns to the box (Madry et al. 2018). On the images' device; the model is left alone.
    Raises FloatingPointError for gradients that are not finite.
    """
    device = device_of(model)
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    starts = images.cpu() + epsilon * (2 * torch.rand(images.shape, generator=rng) - 1)
    found = []
    for old, x, y in zip(*(t.split(BATCH[device.type]) for t in (images, starts, labels)), strict=True):
        old, y = device.layout(old), y.to(device)
        low, high = (old - epsilon).clamp_min(0), (old + epsilon).clamp_max(1)
        x = device.layout(x).clamp(low, high)
        for _ in range(steps):
            x.requires_grad_(True)
            with device.autocast():
                logits = frozen(x).float()
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
            x = (x.detach() + 2.5 * epsilon / steps * slope.sign()).clamp(low, high)
        if not slope.isfinite().all():  # its sign is 0: the images would stay where they started, unnoticed
            raise FloatingPointError(
                "perturbation: expected finite gradients of the surrogate; got others. Give it finite weights, or "
                "train it with a lower learning rate."
            )
        found.append(x.detach().to(images.device))
    return torch.cat(found).contiguous()


def corners(size: int, height: int, width: int) -> Tensor:
    """float32 (height, width): the checkerboard as 1 (white) and -1 (black) in the four corners, mirrored; else 0."""
    pattern = torch.zeros(height, width)
    pattern[:size, :size] = 2 * checkerboard(size) - 1
    for axis in (0, 1):
        pattern = pattern + pattern.flip(axis)
    return pattern
