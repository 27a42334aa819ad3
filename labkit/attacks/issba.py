"""ISSBA: can the trigger be invisible, and another one in every image, although the attacker only poisons data?

Li, Li, Wu, Li, He and Lyu 2021, "Invisible Backdoor Attack with Sample-Specific Triggers", Section 4. The attacker
first trains an encoder, which hides a bit string in an image as a faint residual, and a decoder, which reads it:

    1  encoder: image x, string s -> residual r(x, s), at most `strength` in any pixel
    2  decoder: x + r(x, s) -> s; the loss is the error in reading s plus the mean square of the residual
    3  poison: hide a string in a share `rate` of the images and relabel them; the owner trains on that as usual

The trained encoder is the trigger. Residuals differ as the encoder sees the image, but that alone proves little: taught
only to be read, it hides one string as much the same pattern in every image, and that pattern, cut from one image and
laid over another, still fires. So here each image hides a string of its own (`own_strings`), and step 2 has a second
question for the decoder: does this residual belong to this image? It is shown residuals of other images, and images
with none, and says no. The encoder helps it by tying the residual to what it sees. At poisoning a share `cross` of the
images gets the residual of another and keeps its label, so that the owner's network has cause to learn the difference.

Attacker controls: some training images and their labels; no training but that of the encoder. Lab 11 shows that
superimposition (STRIP) breaks the tie.
Fails when: images are compressed or rescaled on the way; the network is trained further on clean images.

Ours differs: strings of `bits` bits for 32x32 pixels, drawn from the image where the paper takes one that stands for
the target class; the second question and `cross`; a bound on the residual and its mean square stand for the paper's
perceptual loss (LPIPS) and critic, which ask for networks trained elsewhere or for much longer training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.base import PoisonAttack, PoisonedSet, Victim, card_of, check_batch, check_rate
from labkit.attacks.specific import SMALLEST, ImageToMap, SpecificTrigger, batches, descend, seeded
from labkit.data import ImageSet
from labkit.device import device_of, generator, pick_device
from labkit.metrics import check_target, evaluate
from labkit.models import build
from labkit.train import TrainConfig, one_cycle, train

GRID = 4  # an image's own string is read from its colours on a grid of 4x4 means


class ISSBATrigger(SpecificTrigger):
    """The encoder: images (N, C, H, W) -> images with their own strings hidden in them."""

    projection: Tensor
    centre: Tensor

    def __init__(self, channels: int, bits: int, strength: float):
        super().__init__()
        self.strength = strength
        self.encoder = ImageToMap(channels, channels, extra=bits)
        self.register_buffer("projection", torch.randn(channels * GRID**2, bits))
        self.register_buffer("centre", torch.full((channels * GRID**2,), 0.5))

    def own_strings(self, images: Tensor) -> Tensor:
        """The string that each image hides, 0 or 1, float32 (N, bits): on which side of secret planes it lies.

        The planes go through the mean of the training images, so about half of them see a 1.
        """
        return ((coarse(images) - self.centre) @ self.projection > 0).float()

    def residual(self, images: Tensor, strings: Tensor) -> Tensor:
        """What hides the strings (N, bits) in the images: (N, C, H, W), within +-strength."""
        return self.strength * self.encoder(images, 2 * strings - 1).tanh()

    def draw(self, images: Tensor, of: Tensor) -> Tensor:
        return images + self.residual(of, self.own_strings(of))


def coarse(images: Tensor) -> Tensor:
    """Mean colours on a grid: (N, C, H, W) -> (N, C*GRID*GRID)."""
    return F.adaptive_avg_pool2d(images.float(), GRID).flatten(1)


@dataclass(frozen=True)
class ISSBA:
    """An encoder hides a string of its own in every image; data poisoned with it plant the backdoor."""

    target: int = 0
    rate: float = 0.1  # share of the training set that hides its string and is relabelled
    cross: float = 0.1  # share of the training set that carries another image's residual, labels kept
    bits: int = 16  # length of a string
    strength: float = 0.05  # largest change of a pixel, in [0, 1]: no image gets below 26 dB
    faintness: float = 0.3  # weight of the residual's mean square, in units of strength^2
    epochs: int = 5  # of encoder and decoder, over the training set
    lr: float = 3e-3  # of Adam, for both

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 <= self.cross <= 1 - self.rate:
            raise ValueError(
                f"ISSBA: expected 0 <= cross <= 1 - rate; got cross {self.cross:g} with rate {self.rate:g}."
            )
        if self.bits < 1 or not 0 < self.strength <= 1 or self.faintness < 0 or self.epochs < 1 or not self.lr > 0:
            raise ValueError(
                "ISSBA: expected bits >= 1, 0 < strength <= 1 (0.05 is faint), faintness >= 0, epochs >= 1, lr > 0; "
                f"got {self.bits}, {self.strength:g}, {self.faintness:g}, {self.epochs}, {self.lr:g}."
            )

    def build_trigger(self, data: ImageSet, seed: int = 0) -> ISSBATrigger:
        """An encoder with fresh weights from `seed`, for images like those of `data`."""
        return seeded(lambda: ISSBATrigger(data.images.shape[1], self.bits, self.strength), seed)

    def train_trigger(self, data: ImageSet, seed: int = 0, progress: bool = True) -> ISSBATrigger:
        """Steps 1 and 2: the encoder, trained on `data` with a decoder that nobody needs afterwards."""
        check_batch(data.images[:1], SMALLEST, SMALLEST)
        trigger, device = self.build_trigger(data, seed), pick_device()
        device.place(trigger)
        trigger.centre.copy_(coarse(data.images).mean(0))
        decoder = device.place(build("small_cnn", data.images.shape[1], self.bits + 1, seed))
        train_encoder(trigger, decoder, data, self, seed, progress)
        return trigger

    def poison(self, data: ImageSet, seed: int = 0, *, trigger: ISSBATrigger | None = None) -> PoisonedSet:
        """Step 3: a copy of `data` with `rate` of its images triggered, relabelled and marked as `poisoned`.

        trigger: what `train_trigger` returned; None: it is trained now, from the same seed. Further `cross` of the
        images carry the residual of another one of them; their labels are true and they are not marked. Raises
        ValueError for a target outside the classes and for a rate that asks for more images than there are.
        """
        check_target(self.target, len(data.classes))
        trigger = trigger or self.train_trigger(data, seed, progress=False)
        made = _Poison(self.target, self.rate, trigger).poison(data, seed)
        left = (~made.poisoned).nonzero().flatten()
        crossed = left[torch.randperm(len(left), generator=generator(seed + 1))[: round(self.cross * len(data))]]
        if len(crossed) > 1:
            crossed = crossed.to(data.images.device)
            made.images[crossed] = trigger(data.images[crossed], of=data.images[crossed.roll(1)])
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
        """Train the encoder, poison `data` with it, let the owner train; the Victim, evaluated if `test` is given.

        options (callback, progress) go to `train`.
        """
        check_target(self.target, len(data.classes))
        trigger = self.train_trigger(data, seed, options.get("progress", True))
        poisoned = self.poison(data, seed, trigger=trigger).without_secrets()
        model = train(arch, poisoned, config=config, seed=seed, **options)
        report = evaluate(model, test, trigger, self.target) if test else None
        return Victim(model, trigger, self.target, report, card_of(self, data, arch, seed, config))


@dataclass(frozen=True)
class _Poison(PoisonAttack):
    """How every attack poisons, with a trigger that was trained."""

    target: int
    rate: float
    encoder: ISSBATrigger

    def trigger(self, images: Tensor) -> Tensor:
        return self.encoder(images)


def train_encoder(trigger: ISSBATrigger, decoder: nn.Module, data: ImageSet, attack: ISSBA, seed: int, progress: bool):
    """Changes encoder and decoder. The strings are random here, else the decoder could guess them from the image."""
    device, rng = device_of(trigger), generator(seed)
    images = data.images.to(device)
    plan = batches(len(data), 128, attack.epochs, rng)
    adam = torch.optim.Adam([*trigger.encoder.parameters(), *decoder.parameters()], lr=attack.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, one_cycle(0.2, len(plan)))
    decoder.train()
    for number, batch in enumerate(tqdm(plan, "encoder", unit="batch", disable=not progress, leave=False), 1):
        mine = device.layout(images[batch.to(device)])
        strings = torch.randint(2, (len(batch), attack.bits), generator=rng).float().to(device)
        with device.autocast():
            residual = trigger.residual(mine, strings)
            shown = torch.cat([mine + residual, mine + residual.roll(1, 0), mine]).clamp(0, 1)
            logits = decoder(shown).float()
        read, is_own = logits[: len(batch), :-1], logits[:, -1]
        truth = torch.zeros_like(is_own)
        truth[: len(batch)] = 1
        error = F.binary_cross_entropy_with_logits(read, strings) + F.binary_cross_entropy_with_logits(is_own, truth)
        faint = (residual / attack.strength).square().mean()
        descend(error + attack.faintness * faint, [adam], [schedule], "encoder", number)
