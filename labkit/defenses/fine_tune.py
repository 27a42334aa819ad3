"""Fine-tuning: does a little more training, on clean images only, make the network forget its backdoor?

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning" (the lecture's comparison). Start from the given weights,
not from random ones, and train on the defender's clean images at a low learning rate.

The defender has: the model, some clean images with labels. Not: the trigger. Fails when: the backdoor lives in neurons
that sleep on clean images. They get no gradient, so nothing makes them change; that is why `fine_prune` cuts first.
Lab 06.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from labkit.data import ImageSet
from labkit.defenses.prune import check_clean
from labkit.device import generator
from labkit.metrics import evaluate
from labkit.train import RECIPES, Epoch, TrainConfig, train


@dataclass(frozen=True, eq=False)
class FineTuneResult:
    """model: a fine-tuned copy, in eval mode. history: one `Epoch` each (loss in nats and accuracy while training)."""

    model: nn.Module
    history: tuple[Epoch, ...]

    def __str__(self) -> str:
        first, last = self.history[0], self.history[-1]
        return (
            f"Fine-tuning: {len(self.history)} epochs; loss {first.loss:.3f} in the first, {last.loss:.3f} in the "
            f"last, accuracy {first.accuracy:.1%} and {last.accuracy:.1%} on the augmented clean images"
        )


def gentle(clean: ImageSet) -> TrainConfig:
    """The data set's own recipe at a lower learning rate, for a small set: 20 epochs, batches of 64, lr 0.02."""
    return replace(RECIPES.get(clean.name, TrainConfig()), epochs=20, batch_size=64, lr=0.02, warmup=0.1)


def fine_tune(
    model: nn.Module, clean: ImageSet, *, config: TrainConfig | None = None, seed: int = 0, progress: bool = True
) -> FineTuneResult:
    """A copy of the model, trained on the clean set; the model is untouched.

    config: by default `gentle(clean)`. Silenced channels stay silent. Raises ValueError for fewer than two clean
    images and FloatingPointError, with the step, when the loss is no longer finite.
    """
    check_clean(clean, least=2)  # batch normalisation has no variance over one image
    history: list[Epoch] = []
    tuned = train(
        copy.deepcopy(model),
        clean,
        config=config or gentle(clean),
        seed=seed,
        callback=history.append,
        progress=progress,
    )
    return FineTuneResult(tuned, tuple(history))


def firmest(
    model: nn.Module,
    clean: ImageSet,
    *,
    rates: Sequence[float] = (0.1, 0.07, 0.05, 0.035, 0.025, 0.02),
    max_drop: float = 0.03,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> TrainConfig:
    """The training at the highest of `rates` that clean accuracy affords: chosen without the trigger.

    A higher rate removes more of a backdoor and costs more accuracy, and only the second can be seen. A quarter of
    the clean set is held out (`hold_out`), the rest fine-tunes the model at each rate, highest first, until the
    held-out accuracy is at most max_drop (a share) below the model's own; if no rate affords it, the lowest.
    config: all but the rate, by default `gentle(clean)`. Raises ValueError for no rates, a max_drop outside [0, 1],
    fewer than four clean images.
    """
    if not rates or not 0 <= max_drop <= 1:
        raise ValueError(f"firmest: expected learning rates and max_drop in [0, 1]; got {rates!r}, {max_drop!r}.")
    fitted, held_out = hold_out(clean, seed)
    least = evaluate(model, held_out).clean_accuracy - max_drop - 1e-6
    trials = [replace(config or gentle(clean), lr=rate) for rate in sorted(rates, reverse=True)]
    accuracies = tried(model, fitted, held_out, trials[:-1], least, seed=seed, progress=progress)
    return trials[len(accuracies) - 1] if accuracies and accuracies[-1] >= least else trials[-1]


def tried(
    model: nn.Module, fitted: ImageSet, held_out: ImageSet, trials: Sequence[TrainConfig], least: float, **options
) -> list[float]:
    """Held-out accuracy after fine-tuning with each of the trials, in order, up to the first that reaches `least`.

    A training that diverges has none (NaN). options (seed, progress) go to `fine_tune`.
    """
    accuracies: list[float] = []
    for trial in trials:
        try:
            tuned = fine_tune(model, fitted, config=trial, **options).model
            accuracies.append(evaluate(tuned, held_out).clean_accuracy)
        except FloatingPointError:
            accuracies.append(math.nan)
        if accuracies[-1] >= least:
            break
    return accuracies


def hold_out(clean: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """The clean set in two: to train on, and every fourth image of each class to judge by.

    Raises ValueError for fewer than four images.
    """
    check_clean(clean, least=4)
    order = torch.randperm(len(clean), generator=generator(seed))
    order = order[clean.labels[order].argsort(stable=True)]  # class by class, shuffled within each
    aside = torch.zeros(len(clean), dtype=torch.bool)
    aside[order[1::4]] = True
    return clean[~aside], clean[aside]
