"""What every attack shares: poisoned data, a victim, and the one way to poison.

An attacker who poisons data controls some training images, perhaps their labels, and nothing else: `PoisonAttack`.
The victim's owner trains as usual. Attacks that need more control have `.implant` alone. Lab 02.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from labkit.data import ImageSet, check_images
from labkit.device import generator
from labkit.metrics import Report, check_target, evaluate
from labkit.train import RECIPES, TrainConfig, train

Trigger = Callable[[Tensor], Tensor]  # images -> images: same shape, dtype and range; pure; deterministic


@dataclass(frozen=True, eq=False, repr=False)
class PoisonedSet(ImageSet):
    """An ImageSet that knows what was done to it, for the evaluator's eyes only.

    poisoned bool (N,): which images carry the trigger; those that `WaNet` warps with noise do not: they teach the
    network when not to fire. true_labels int64 (N,): the labels before poisoning.
    """

    poisoned: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    true_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def without_secrets(self) -> ImageSet:
        """What the trainer and the defender get: images and labels."""
        return ImageSet(self.images, self.labels, self.classes, self.name)


@dataclass(frozen=True, eq=False)
class Victim:
    """A backdoored model with the attacker's secrets. card: everything that determines it, as plain data."""

    model: nn.Module
    trigger: Trigger
    target: int
    report: Report | None
    card: dict[str, Any]

    def __repr__(self) -> str:
        return f"Victim of {self.card.get('attack')} on {self.card.get('data')}: {self.report or 'not evaluated'}"


class PoisonAttack(ABC):
    """An attack on data alone. A subclass is a frozen dataclass with `target`, `rate`, and a `trigger`.

    rate: share in (0, 1] of the images that may be poisoned. Dirty-label attacks poison images of the other classes and
    relabel them; the promised number is `rate` of the whole set. Clean-label attacks poison images of the target class
    and keep their labels, so `rate` is the share of that class.
    """

    target: int
    rate: float
    clean_label = False

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """New images (N, C, H, W) with the trigger; same shape, dtype and range. Pure and deterministic."""

    def choose(self, data: ImageSet, seed: int = 0) -> Tensor:
        """Indices, int64 on the CPU, of the images that `poison` takes from `seed`; raises ValueError as it does."""
        check_target(self.target, len(data.classes))
        labels = data.labels.cpu()
        candidates = (labels == self.target if self.clean_label else labels != self.target).nonzero().flatten()
        where = f"{'of' if self.clean_label else 'outside'} target class {self.target}"
        if not len(candidates):
            raise ValueError(f"poisoning: expected images {where}; got none. Choose another target, or add some.")
        whole = len(candidates) if self.clean_label else len(data)
        count = round(self.rate * whole)
        if not 1 <= count <= len(candidates):
            raise ValueError(
                f"rate: {self.rate:g} of {whole} images is {count}; expected 1 to {len(candidates)}, the images "
                f"{where}. Change the rate."
            )
        return candidates[torch.randperm(len(candidates), generator=generator(seed))[:count]]

    def poison(self, data: ImageSet, seed: int = 0) -> PoisonedSet:
        """A copy of `data` with `rate` of its images triggered, chosen from `seed` without replacement.

        Raises ValueError for a target outside the classes, and for a rate that asks for more images than there are.
        """
        chosen, labels = self.choose(data, seed), data.labels.cpu()
        images, new_labels = data.images.clone(), data.labels.clone()
        images[chosen.to(images.device)] = self.trigger(data.images[chosen.to(images.device)])
        if not self.clean_label:
            new_labels[chosen.to(labels.device)] = self.target
        poisoned = torch.zeros(len(data), dtype=torch.bool)
        poisoned[chosen] = True
        return PoisonedSet(images, new_labels, data.classes, data.name, poisoned, labels.clone())

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

        options (callback, progress) go to `train`.
        """
        model = train(arch, self.poison(data, seed).without_secrets(), config=config, seed=seed, **options)
        report = evaluate(model, test, self.trigger, self.target) if test else None
        return Victim(model, self.trigger, self.target, report, card_of(self, data, arch, seed, config))


def card_of(attack, data: ImageSet, arch: str, seed: int, config: TrainConfig | None = None) -> dict[str, Any]:
    """Everything that determines a victim, but for the code and the device, as plain data that JSON can hold."""
    return {
        "attack": type(attack).__name__,
        "settings": plain({f.name: getattr(attack, f.name) for f in fields(attack)}),
        "data": data.name,
        "fingerprint": data.fingerprint,
        "arch": arch,
        "seed": seed,
        "train": asdict(config or RECIPES.get(data.name, TrainConfig())),
    }


def another(seed: int) -> int:
    """A second seed, made from `seed`: for random numbers that must not repeat those that `seed` itself gives."""
    return int(torch.randint(2**31, (2,), generator=generator(seed))[1])  # the first one is `models.build`'s


def plain(value: Any) -> Any:
    """Tensors as nested lists, tuples as lists, an attack inside an attack with its type: what JSON can hold.

    A field that its dataclass doesn't compare is left out: another, such as a fingerprint, stands for it.
    """
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if is_dataclass(value):
        compared = [f.name for f in fields(value) if f.compare]
        return {"type": type(value).__name__} | {name: plain(getattr(value, name)) for name in compared}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def check_rate(rate: float) -> float:
    """The rate, if it is in (0, 1]; else a ValueError."""
    if not 0 < rate <= 1:
        raise ValueError(f"rate: expected a share in (0, 1]; got {rate!r}. For 5% write 0.05.")
    return rate


def check_batch_share(rate: float, batch: int) -> None:
    """A ValueError if `rate` of a batch of so many images, rounded, is none: then nothing would be attacked."""
    if round(rate * batch) < 1:
        raise ValueError(
            f"rate: {rate:g} of a batch of {batch} images is {rate * batch:.2g}; expected at least 1 in each batch, "
            f"rounded. Raise the rate to {1 / batch:.2g}, or the recipe's batch_size."
        )


def check_opacity(alpha: float) -> float:
    """The opacity, if it is in (0, 1]; else a ValueError."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: expected an opacity in (0, 1]; got {alpha!r}. 1 replaces the pixels, 0.1 is faint.")
    return alpha


def check_batch(images: Tensor, height: int = 1, width: int = 1) -> Tensor:
    """The images, if they are images and at least height x width pixels; else a ValueError."""
    check_images(images)
    if images.shape[2] < height or images.shape[3] < width:
        raise ValueError(
            f"trigger: expected images of at least {height}x{width} pixels; got {images.shape[2]}x{images.shape[3]}. "
            "Make the trigger smaller or the images larger."
        )
    return images


__all__ = ["PoisonAttack", "PoisonedSet", "Trigger", "Victim", "replace"]
