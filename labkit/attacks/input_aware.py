"""InputAware: can a network paint every image a trigger of its own, that works on no other image?

Nguyen and Tran 2020, "Input-Aware Dynamic Backdoor Attack", Section 3. A trigger is a mask m and a pattern p, painted
as x (1 - m) + p m; one network draws m from the image x, another one p.

    1  train the mask network alone: masks of different images differ (diversity), and are small (density)
    2  train the classifier and the pattern network together. In each batch
         attack   a share `rate`: an image with its own trigger is the target
         cross    a share `cross`: an image with the trigger of another keeps its label
         clean    the rest
       plus the diversity of the patterns

The diversity loss of a pair is |x - x'| / |g(x) - g(x')|: networks that draw the same for all images pay most.

Attacker controls: the training. The victim's owner gets the classifier; the two networks stay with the attacker, as
`victim.trigger`. `victim.trigger(images, of=others)` paints the triggers of other images. Lab 11.
Fails when: the defender trains further on clean images (fine-pruning); nothing there asks for the backdoor any more.

Ours differs: each network is a U-Net of five convolutions, since the paper's would take a CPU minutes; density is the
share of the image that a mask covers, and costs nothing below the promised share; masks are painted as drawn, without
the authors' code's step that makes them nearly black and white; patterns learn at the pace of the
classifier's schedule, a few epochs where the paper has hundreds. So ours cover twice what the paper's do: on `signs`
(367 images of the clean part, seeds 0, 1, 2) ASR is 95, 93 and 91%; at a density of 0.03 seeds 0 and 1
came to 94 and 87%.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.base import Victim, card_of, check_batch, check_batch_share, check_rate
from labkit.attacks.specific import SMALLEST, ImageToMap, SpecificTrigger, adam_of, batches, check_width, descend
from labkit.data import ImageSet
from labkit.device import device_of, generator, pick_device
from labkit.metrics import check_target, evaluate
from labkit.models import seeded
from labkit.train import RECIPES, Epoch, TrainConfig, fresh, one_cycle, sgd, varied


class InputAwareTrigger(SpecificTrigger):
    """The mask network and the pattern network: images (N, C, H, W) -> images with their triggers."""

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        self.mask_network = ImageToMap(channels, 1, width=16)
        self.pattern_network = ImageToMap(channels, channels, width=width)

    def mask(self, images: Tensor) -> Tensor:
        """Opacity of the trigger at each pixel: (N, 1, H, W) in [0, 1]."""
        return self.mask_network(images).sigmoid()

    def pattern(self, images: Tensor) -> Tensor:
        """Colours of the trigger: (N, C, H, W) in [0, 1]."""
        return self.pattern_network(images).sigmoid()

    def draw(self, images: Tensor, of: Tensor) -> Tensor:
        return paint(images, self.mask(of), self.pattern(of))


def paint(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return images * (1 - mask) + pattern * mask


def sameness(images: Tensor, others: Tensor, drawn: Tensor, drawn_others: Tensor) -> Tensor:
    """The diversity loss: mean over the pairs of |x - x'| / |g(x) - g(x')|, root mean squares per pixel."""
    apart, drawn_apart = (
        ((a - b).flatten(1).square().mean(1) + 1e-6).sqrt() for a, b in ((images, others), (drawn, drawn_others))
    )
    return (apart / drawn_apart).mean()


COVERAGE = 100.0  # weight of what a mask covers beyond its density: beside it, diversity is a small matter


@dataclass(frozen=True)
class InputAware:
    """Mask and pattern drawn per image, and a classifier that was trained to know whose they are."""

    target: int = 0
    rate: float = 0.1  # share of each batch with its own trigger, labelled as the target (the paper's rho_b)
    cross: float = 0.1  # share of each batch with another image's trigger, labels kept (the paper's rho_c)
    density: float = 0.06  # share of an image that its mask may cover
    diversity: float = 1.0  # weight of the diversity loss beside the cross entropy (nats)
    width: int = 32  # channels of the pattern network's first layer
    mask_epochs: int = 2  # over the training set, before the classifier's
    lr: float = 3e-3  # of Adam, for both networks

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 <= self.cross <= 1 - self.rate or not 0 < self.density < 1 or not self.diversity >= 0:
            raise ValueError(
                "InputAware: expected 0 <= cross <= 1 - rate, 0 < density < 1, diversity >= 0; got cross "
                f"{self.cross:g} with rate {self.rate:g}, density {self.density:g}, diversity {self.diversity:g}."
            )
        check_width(self.width)
        if self.mask_epochs < 1 or not self.lr > 0:
            raise ValueError(f"InputAware: expected mask_epochs >= 1, lr > 0; got {self.mask_epochs}, {self.lr:g}.")

    def build_trigger(self, data: ImageSet, seed: int = 0) -> InputAwareTrigger:
        """Both networks with fresh weights from `seed`, for images like those of `data`."""
        with seeded(seed):
            return InputAwareTrigger(data.images.shape[1], self.width)

    def implant(
        self,
        data: ImageSet,
        *,
        arch: str = "small_cnn",
        seed: int = 0,
        config: TrainConfig | None = None,
        test: ImageSet | None = None,
        callback=None,
        progress: bool = True,
    ) -> Victim:
        """Train masks, then patterns and classifier, and return the Victim; evaluated if `test` is given.

        config: the classifier's recipe, by default that of `data.name`. callback: called with an `Epoch` after each.
        The shares of a batch are rounded. Raises ValueError for a target outside the classes and for a rate that is no
        image of a batch, and FloatingPointError for a loss that is no longer finite.
        """
        check_target(self.target, len(data.classes))
        recipe = config or RECIPES.get(data.name, TrainConfig())
        check_batch(data.images[:1], SMALLEST, SMALLEST)
        check_batch_share(self.rate, min(recipe.batch_size, len(data)))
        device = pick_device()
        trigger = self.build_trigger(data, seed)
        device.place(trigger)
        train_masks(trigger, data, self, recipe, seed, progress)
        model = device.place(fresh(arch, data, seed))
        train_together(model, trigger, data, self, recipe, seed, callback, progress)
        report = evaluate(model, test, trigger, self.target) if test else None
        return Victim(model, trigger, self.target, report, card_of(self, data, arch, seed, config))


def train_masks(trigger: InputAwareTrigger, data: ImageSet, attack: InputAware, recipe, seed: int, progress: bool):
    """Step 1. Changes the mask network: masks that differ, and cover no more of an image than `attack.density`."""
    device = device_of(trigger)
    images = data.images.to(device)
    plan = batches(len(data), recipe.batch_size, attack.mask_epochs, generator(seed))
    adam = adam_of(trigger.mask_network, lr=attack.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, one_cycle(recipe.warmup, len(plan)))
    for number, batch in enumerate(tqdm(plan, "masks", unit="batch", disable=not progress, leave=False), 1):
        mine = images[batch.to(device)]
        with device.autocast():
            masks = trigger.mask(device.layout(mine))
        excess = F.relu(masks.mean((1, 2, 3)) - attack.density).mean()
        value = sameness(mine, mine.roll(1, 0), masks, masks.roll(1, 0)) + COVERAGE * excess
        descend(value, [adam], [schedule], "masks", number)


def train_together(
    model: nn.Module, trigger: InputAwareTrigger, data: ImageSet, attack: InputAware, recipe, seed, callback, progress
):
    """Step 2. Changes the classifier and the pattern network, one gradient step for both in every batch."""
    device, rng = device_of(model), generator(seed)
    images, labels = data.images.to(device), data.labels.to(device)
    plan = batches(len(data), recipe.batch_size, recipe.epochs, rng)
    adam = adam_of(trigger.pattern_network, lr=attack.lr)
    optimizers = [sgd(model, recipe), adam]
    pace = one_cycle(recipe.warmup, len(plan))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, pace) for optimizer in optimizers]
    model.train()
    epoch_steps, start, losses, right = len(plan) // recipe.epochs, time.perf_counter(), 0.0, 0.0
    for number, batch in enumerate(tqdm(plan, "training", unit="batch", disable=not progress, leave=False), 1):
        batch = batch.to(device)
        mine, wanted = device.layout(varied(images[batch], recipe, rng)), labels[batch].clone()
        own, drawn = (round(share * len(batch)) for share in (attack.rate, attack.rate + attack.cross))
        chain = torch.cat([mine[-1:], mine[:drawn]])  # each image behind the one whose trigger is foreign to it
        others, first = chain[:-1], chain[1:]
        with device.autocast():
            with torch.no_grad():  # the masks are done
                masks = trigger.mask(chain)
            patterns = trigger.pattern(chain)
            (other_mask, mask), (other_pattern, pattern) = ((x[:-1], x[1:]) for x in (masks, patterns))
            attacked = paint(first[:own], mask[:own], pattern[:own])
            crossed = paint(first[own:], other_mask[own:], other_pattern[own:])
            wanted[:own] = attack.target
            logits = model(torch.cat([attacked, crossed, mine[drawn:]])).float()
        classified = F.cross_entropy(logits, wanted)
        value = classified + attack.diversity * sameness(first, others, pattern, other_pattern)
        descend(value, optimizers, schedules, "training", number)
        losses, right = losses + classified.detach() * len(batch), right + (logits.argmax(1) == wanted).sum()
        if number % epoch_steps == 0:
            if callback:
                seconds = time.perf_counter() - start
                callback(Epoch(number // epoch_steps, float(losses) / len(data), float(right) / len(data), seconds))
            start, losses, right = time.perf_counter(), 0.0, 0.0
    model.eval()
