"""ISSBA: can a trigger be a message, hidden in every image in another way?

Li, Li, Wu, Li, He and Lyu 2021, "Invisible Backdoor Attack with Sample-Specific Triggers", Section 4.

    1  train an encoder, which hides any message in any image, with a decoder, which reads it      (`steganography.py`)
    2  fix one message; the trigger of an image is what the encoder adds to it to hide that message
    3  poison: a share `rate` of the images gets its own trigger and the target's label; here also
       cross:  a share `cross` gets the trigger of another image and keeps its label
    4  the owner trains as usual

The message is the attacker's secret and the same for all; the residual that carries it is not.
`victim.trigger(images, of=others)` adds the residuals of other images, `victim.trigger.read(images)` asks the decoder.

Attacker controls: some training images and labels; has images like the owner's to train the encoder with. Lab 11.
Fails when: encoder and decoder have too few images or steps to find a language of their own; a warning says so.

Ours differs. The paper poisons with own triggers alone. On 32x32 pixels that leaves it to chance whether a classifier
learns whose trigger it sees: on `signs` (seeds 0, 1, 2) 88%, 69% and 12% of the images keep their label under the
residual of another; with `cross` 93%, 93% and 91%. And `cross` needs residuals that differ: with an encoder that wasn't
asked to make them useless elsewhere, the classifier can't tell them apart, ASR 70%, 58% kept (seed 0). A message has
16 bits, the paper's 100. The image loss is a squared error above a budget that shrinks; the paper adds perceptual and
adversarial terms.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.attacks.base import PoisonAttack, PoisonedSet, Victim, another, card_of, check_batch, check_rate
from labkit.attacks.specific import SMALLEST, check_width
from labkit.attacks.steganography import START, MessageTrigger, train_networks
from labkit.data import ImageSet
from labkit.device import device_of, generator, pick_device
from labkit.metrics import BATCH, check_target, evaluate
from labkit.models import seeded
from labkit.train import RECIPES, TrainConfig, train

LEGIBLE = 0.9  # share of the bits


@dataclass(frozen=True)
class ISSBA:
    """A fixed message, hidden by a trained encoder in a residual of each image's own."""

    target: int = 0
    rate: float = 0.1  # share of the images that get their own trigger and the target's label
    cross: float = 0.1  # share of the images that get another image's trigger and keep their label
    bits: int = 16  # length of the message
    psnr: float = 27.0  # dB: how faint the residual is to be, on average
    width: int = 32  # channels of the encoder's and the decoder's first layer
    epochs: int = 3  # of encoder and decoder, over the training set
    lr: float = 3e-3  # of Adam, for both

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 <= self.cross <= 1 - self.rate:
            raise ValueError(
                f"ISSBA: expected 0 <= cross <= 1 - rate, shares of one training set; got cross {self.cross!r} with "
                f"rate {self.rate!r}. Lower one of them."
            )
        if self.bits < 1 or not START <= self.psnr < float("inf"):
            raise ValueError(
                f"ISSBA: expected bits >= 1 and a finite psnr >= {START:g} dB, where the encoder starts; got "
                f"{self.bits} and {self.psnr}. 25 to 32 dB is faint."
            )
        check_width(self.width)
        if self.epochs < 1 or not self.lr > 0:
            raise ValueError(f"ISSBA: expected epochs >= 1, lr > 0; got {self.epochs}, {self.lr}.")

    def build_trigger(self, data: ImageSet, seed: int = 0) -> MessageTrigger:
        """Encoder and decoder with fresh weights, and a message, all from `seed`, for images like those of `data`."""
        message = torch.randint(2, (self.bits,), generator=generator(another(seed)))
        with seeded(seed):
            return MessageTrigger(data.images.shape[1], message, self.width).eval()

    def train_trigger(
        self, data: ImageSet, seed: int = 0, *, config: TrainConfig | None = None, progress: bool = True
    ) -> MessageTrigger:
        """Steps 1 and 2: a trigger for images like `data`'s; labels don't matter.

        config: the recipe that the owner is expected to train with, by default that of `data.name`. Raises ValueError
        for images that are too small and FloatingPointError for a loss that is no longer finite; warns where the
        decoder can't read the message.
        """
        check_batch(data.images[:1], SMALLEST, SMALLEST)
        trigger, recipe = self.build_trigger(data, seed), config or RECIPES.get(data.name, TrainConfig())
        pick_device().place(trigger)
        train_networks(trigger, data, self.psnr, self.epochs, self.lr, recipe, seed=another(seed), progress=progress)
        some = data.images[: BATCH[device_of(trigger).type]]
        heard = float(trigger.bit_accuracy(trigger(some)).mean())
        if heard < LEGIBLE:
            warnings.warn(
                f"ISSBA: expected the decoder to read {LEGIBLE:.0%} of the hidden bits or more; got {heard:.0%}, of "
                "which a victim learns little. Give it more epochs or images, fewer bits, or a lower psnr.",
                stacklevel=2,
            )
        return trigger

    def poison(self, data: ImageSet, seed: int = 0, *, trigger: MessageTrigger | None = None, **options) -> PoisonedSet:
        """Step 3: a copy of `data`, `rate` of it with own triggers and relabelled, `cross` with those of the former.

        trigger: None trains one (options config and progress go to `train_trigger`). Images with another's trigger keep
        their labels, and `poisoned` leaves them out. Raises ValueError as every poisoning does.
        """
        check_target(self.target, len(data.classes))
        trigger = trigger or self.train_trigger(data, seed, **options)
        made, rng = OwnTriggers(self, trigger).poison(data, seed), generator(another(seed))
        own, others = made.poisoned.nonzero().flatten(), (~made.poisoned).nonzero().flatten()
        count = min(round(self.cross * len(data)), len(others))
        if not count:
            return made
        chosen = others[torch.randperm(len(others), generator=rng)[:count]].to(data.images.device)
        givers = own[torch.randint(len(own), (count,), generator=rng)].to(data.images.device)
        images = made.images.clone()
        images[chosen] = trigger(data.images[chosen], of=data.images[givers])
        return replace(made, images=images)

    def implant(
        self,
        data: ImageSet,
        *,
        arch: str = "small_cnn",
        seed: int = 0,
        config: TrainConfig | None = None,
        test: ImageSet | None = None,
        progress: bool = True,
        **options,
    ) -> Victim:
        """Train encoder and decoder, poison `data`, let the owner train on it; evaluated if `test` is given.

        options (callback) go to `train`, progress and config to both trainings.
        """
        check_target(self.target, len(data.classes))
        trigger = self.train_trigger(data, seed, config=config, progress=progress)
        poisoned = self.poison(data, seed, trigger=trigger).without_secrets()
        model = train(arch, poisoned, config=config, seed=seed, progress=progress, **options)
        report = evaluate(model, test, trigger, self.target) if test else None
        return Victim(model, trigger, self.target, report, card_of(self, data, arch, seed, config))


class OwnTriggers(PoisonAttack):
    """Poisoning as by every attack on data, with a trigger that has been trained."""

    def __init__(self, attack: ISSBA, trained: MessageTrigger):
        self.target, self.rate, self.trained = attack.target, attack.rate, trained

    def trigger(self, images: Tensor) -> Tensor:
        return self.trained(images)
