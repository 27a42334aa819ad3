"""Fine-pruning: cut the neurons that clean images don't use, then train what is left on clean images.

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning". The two halves cover for each other. Against an ordinary backdoor
pruning does the work, and fine-tuning gives back the accuracy it cost. Against a pruning-aware backdoor pruning finds
decoys first, but then clean images and the trigger share neurons: those get gradients, and change.

    hold_out     a quarter of the clean images is kept aside to judge by
    deepest_cut  cut deep, fine-tune, judge; then less deep, until accuracy is back within `max_drop`
    fine_prune   that cut, fine-tuned on all clean images

How deep, how fast? Fine-tuning repairs what pruning costs, so one can cut much deeper than with pruning alone, and
should: after a shallow cut at a low learning rate the trigger comes back together with the accuracy, since the layers
below still see it and some channel that listens to them is left. So a deep cut is tried first, and the rate is the
one that networks here are trained with (`brisk`), five times that of fine-tuning alone.

The defender has: the model, some clean images with labels. Not: the trigger, and so no ASR to choose by. Lab 06.
Fails when: the clean set is too small to learn from; what it can't teach again, the cut has destroyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labkit.channels import silenced
from labkit.data import ImageSet
from labkit.defenses.fine_tune import fine_tune
from labkit.defenses.prune import PruneResult, check_clean, prune
from labkit.device import generator
from labkit.metrics import eval_mode, evaluate
from labkit.train import RECIPES, Epoch, TrainConfig


@dataclass(frozen=True, eq=False)
class FinePruneResult:
    """model: a pruned and fine-tuned copy. history: its epochs. pruning: the cut, and the model before fine-tuning.

    tried: numbers of silenced channels, deepest first; the last is the one taken. held_out float32 (len(tried) + 1,):
    accuracy on the images kept aside, of the model as it came and after each try.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    pruning: PruneResult
    tried: tuple[int, ...]
    held_out: Tensor

    def __str__(self) -> str:
        cut, before, after = self.pruning, float(self.held_out[0]), float(self.held_out[-1])
        missed = " (no cut kept it within that)" if after < before - cut.max_drop - 1e-6 else ""
        return (
            f"Fine-pruning: {cut.pruned} of {len(cut.order)} channels of {cut.layer} silenced, {len(self.history)} "
            f"epochs of fine-tuning; accuracy on clean images kept aside {before:.1%} before, {after:.1%} after, "
            f"allowed drop {cut.max_drop:.1%}{missed}; cuts tried: {', '.join(map(str, self.tried))}"
        )


def brisk(clean: ImageSet) -> TrainConfig:
    """The data set's own recipe for a small set, at a full learning rate: 20 epochs, batches of 64, lr 0.1."""
    return replace(RECIPES.get(clean.name, TrainConfig()), epochs=20, batch_size=64, lr=0.1, warmup=0.1)


def hold_out(clean: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """The clean set in two: to train on, and every fourth image of each class to judge by."""
    order = torch.randperm(len(clean), generator=generator(seed))
    order = order[clean.labels[order].argsort(stable=True)]  # class by class, shuffled within each
    aside = torch.zeros(len(clean), dtype=torch.bool)
    aside[order[1::4]] = True
    return clean[~aside], clean[aside]


def deepest_cut(
    model: nn.Module, clean: ImageSet, pruning: PruneResult, shares: Sequence[float], config: TrainConfig, **options
) -> tuple[nn.Module, list[int], list[float]]:
    """The model with the largest of these shares silenced that fine-tuning repairs; the cuts tried; held-out accuracy.

    The smallest share is taken if none is repaired. The list of accuracies begins with the model as it came.
    """
    train_on, judges = hold_out(clean, options["seed"])
    total, accuracy = len(pruning.order), [evaluate(model, judges).clean_accuracy]
    tried: list[int] = []
    cut = model
    for share in sorted(shares, reverse=True):
        tried.append(min(round(share * total), total - 1))  # one channel stays
        cut = silenced(model, pruning.layer, pruning.order[: tried[-1]], total).eval()
        tuned = fine_tune(cut, train_on, config=config, **options).model
        accuracy.append(evaluate(tuned, judges).clean_accuracy)
        if accuracy[-1] >= accuracy[0] - pruning.max_drop - 1e-6:
            break
    return cut, tried, accuracy


def fine_prune(
    model: nn.Module,
    clean: ImageSet,
    *,
    layer: str | None = None,
    max_drop: float = 0.04,
    shares: Sequence[float] = (0.875, 0.75, 0.5),
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FinePruneResult:
    """A copy of the model: cut as deep as fine-tuning can repair (`shares` of the layer's channels), and fine-tuned.

    max_drop: accuracy that may be lost, as a share of the clean images kept aside, against the model as it came.
    config: by default `brisk(clean)`. Costs one fine-tuning for each cut tried, and one more. The pruned channels stay
    at exactly zero. The model is untouched. Raises ValueError for shares outside [0, 1) or none, and what `prune` and
    `fine_tune` raise.
    """
    shares = tuple(shares)
    if not shares or not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares: expected shares of the channels in [0, 1), such as (0.75, 0.5); got {shares!r}.")
    check_clean(clean, least=4)
    config, options = config or brisk(clean), {"seed": seed, "progress": progress}
    pruning = prune(model, clean, layer=layer, max_drop=max_drop)
    cut, tried, accuracy = deepest_cut(eval_mode(model), clean, pruning, shares, config, **options)
    tuned = fine_tune(cut, clean, config=config, **options)
    pruning = replace(pruning, model=cut, pruned=tried[-1])
    return FinePruneResult(tuned.model, tuned.history, pruning, tuple(tried), torch.tensor(accuracy))
