"""WaNet: can the trigger be a movement of the pixels, with no pattern at all?

Nguyen and Tran 2021, "WaNet - Imperceptible Warping-based Backdoor Attack", Section 3.

    1  draw k x k control points: displacements in [-1, 1]^2, divided by their mean absolute value, times s
    2  interpolate them bicubically: a displacement for each pixel (`field`)
    3  trigger: each pixel takes the value found at its place plus its displacement, bilinearly (`warp`)
    4  train; in each batch, anew,
         attack   a share `rate` is warped and labelled as the target
         noise    a share `noise_rate` is warped by the field plus noise, another for each image; labels stay
         clean    the rest

Without the noise mode the network learns what any warp does, a slight blur, and any warp fires; with it, this field.

Attacker controls: the training. `poison` makes a data set of the same three shares for an attacker who controls nothing
else; but there each image is warped once or never. On `signs` with strength 1, 7 epochs on such a set came to ASR 21%;
`implant` comes to 28% after 7 of its epochs, to 91% after 21. Lab 11.
Fails when: the training is short; a movement is a faint sign, which is learned late.

Ours differs: the paper's s = 0.5 is a quarter of a pixel on 32x32 images, learned in hundreds of epochs. A laptop has
seconds, so ours is bolder: 1.5 pixels, chosen on `signs` (seed 0, 21 epochs, 367 images of the clean part: ASR
95%, with 1 pixel 91%); the noise adds up to 1. Images are shifted before they are warped, not after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attacks.base import (
    PoisonAttack,
    PoisonedSet,
    Victim,
    another,
    card_of,
    check_batch,
    check_batch_share,
    check_rate,
)
from labkit.data import ImageSet
from labkit.device import device_of, generator
from labkit.metrics import check_target, evaluate
from labkit.train import RECIPES, TrainConfig, fresh, train


@dataclass(frozen=True)
class WaNet(PoisonAttack):
    """One fixed elastic warp, drawn from `field_seed`: the same displacement of each pixel on every image."""

    target: int = 0
    rate: float = 0.1  # share of the images that are warped and relabelled, the paper's rho_a
    noise_rate: float = 0.2  # share of the images that are warped with noise and keep their labels, the paper's rho_n
    points: int = 4  # control points along each side, the paper's k
    strength: float = 1.5  # mean absolute displacement of the control points, in pixels, each way
    noise: float = 1.0  # largest displacement that the noise mode adds, in pixels, each way
    field_seed: int = 0  # which field
    longer: float = 2.5  # `implant` trains for so many times the recipe's epochs

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 <= self.noise_rate <= 1 - self.rate:
            raise ValueError(
                f"WaNet: expected 0 <= noise_rate <= 1 - rate, shares of one training set; got noise_rate "
                f"{self.noise_rate!r} with rate {self.rate!r}. Lower one of them."
            )
        if self.points < 2 or not self.strength > 0 or not self.noise >= 0 or not self.longer > 0:
            raise ValueError(
                f"WaNet: expected points >= 2, strength > 0 and noise >= 0 pixels, longer > 0; got points "
                f"{self.points}, strength {self.strength}, noise {self.noise}, longer {self.longer}."
            )

    def trigger(self, images: Tensor) -> Tensor:
        check_batch(images, self.points, self.points)
        return warp(images, self.field(*images.shape[2:]))

    def noisy(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """New images (N, C, H, W), each warped by the field plus its own uniform noise for each pixel."""
        check_batch(images, self.points, self.points)
        shape = (len(images), *images.shape[2:], 2)
        return warp(images, self.field(*images.shape[2:]) + self.noise * (2 * torch.rand(shape, generator=rng) - 1))

    def field(self, height: int, width: int) -> Tensor:
        """Where each pixel's new value is fetched, from the pixel on: float32 (H, W, 2), pixels, right then down."""
        drawn = 2 * torch.rand(1, 2, self.points, self.points, generator=generator(self.field_seed)) - 1
        drawn *= self.strength / drawn.abs().mean()
        return F.interpolate(drawn, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)

    def poison(self, data: ImageSet, seed: int = 0) -> PoisonedSet:
        """As every poisoning; then `noise_rate` of the set, chosen among the other images, goes through `noisy`.

        These keep their labels, and `poisoned` leaves them out. Raises ValueError as every poisoning does.
        """
        made, rng = super().poison(data, seed), generator(another(seed))
        others = (~made.poisoned).nonzero().flatten()
        count = min(round(self.noise_rate * len(data)), len(others))
        if count:
            chosen = others[torch.randperm(len(others), generator=rng)[:count]].to(data.images.device)
            made.images[chosen] = self.noisy(data.images[chosen], rng)  # `made` is ours alone so far
        return made

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
        """Train on batches that are warped anew, and return the Victim; evaluated if `test` is given.

        options (callback, progress) go to `train`; an epoch's accuracy counts true labels. Images are moved, flipped or
        compressed as the recipe says before they are warped, so the field stays in its place. The shares of a batch are
        rounded; a rate that is none of a batch raises ValueError.
        """
        check_target(self.target, len(data.classes))
        check_batch(data.images[:1], self.points, self.points)
        recipe = config or RECIPES.get(data.name, TrainConfig())
        check_batch_share(self.rate, min(recipe.batch_size, len(data)))
        model = fresh(arch, data, seed)
        warped, long = Warped(model, self, seed), replace(recipe, epochs=max(1, round(self.longer * recipe.epochs)))
        train(warped, data, config=long, seed=seed, loss=warped.loss, **options)
        report = evaluate(model, test, self.trigger, self.target) if test else None
        return Victim(model, self.trigger, self.target, report, card_of(self, data, arch, seed, config))


class Warped(nn.Module):
    """Step 4, as what `train` sees of a model: the first images of a batch are warped, the next warped with noise."""

    def __init__(self, model: nn.Module, attack: WaNet, seed: int):
        super().__init__()
        self.model, self.attack, self.rng = model, attack, generator(another(seed))

    def shares(self, count: int) -> tuple[int, int]:
        """Of `count` images, how many are attacked; and up to where the noise goes on from there."""
        return round(self.attack.rate * count), round((self.attack.rate + self.attack.noise_rate) * count)

    def forward(self, images: Tensor) -> Tensor:
        attacked, noisy = self.shares(len(images))
        parts = [images[noisy:]]
        if attacked:
            parts.append(self.attack.trigger(images[:attacked]))
        if noisy > attacked:
            parts.append(self.attack.noisy(images[attacked:noisy], self.rng))
        return self.model(device_of(self).layout(torch.cat(parts[1:] + parts[:1])))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        wanted = labels.clone()
        wanted[: self.shares(len(labels))[0]] = self.attack.target
        return F.cross_entropy(logits, wanted)


def warp(images: Tensor, field: Tensor) -> Tensor:
    """New images (N, C, H, W): each pixel has the value found `field` pixels from its place, between four neighbours.

    field: (H, W, 2) for all images or (N, H, W, 2), right then down. Places outside are moved to the edge. A field of
    zeros changes nothing, but for rounding.
    """
    height, width = images.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([columns, rows], -1) + field  # (..., H, W, 2)
    grid = 2 * places / torch.tensor([width - 1, height - 1]) - 1  # grid_sample: -1 and 1 are the outermost pixels
    grid = grid.clamp(-1, 1).to(images).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=True).clamp(0, 1)
