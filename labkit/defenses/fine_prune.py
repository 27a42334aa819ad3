"""Fine-pruning: cut the neurons that clean images don't use, then train what is left on clean images.

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning". The two halves cover for each other. Against an ordinary backdoor
pruning does the work, and fine-tuning gives back the accuracy it cost. Against a pruning-aware backdoor pruning finds
decoys first, but then clean images and the trigger share neurons: those get gradients, and change.

    prune         as in `prune`, but far deeper: fine-tuning repairs what it costs
    largest_rate  the fastest fine-tuning that leaves accuracy where it was, on clean images kept aside
    fine_prune    the cut, fine-tuned on all clean images at that rate

How deep, how fast? After a shallow cut at a low learning rate the trigger comes back together with the accuracy: the
layers below still see it, and a channel that listens to them is left. A high rate forgets the trigger, and some of the
signs. The defender has no ASR to choose by, so the rule is: as much as clean accuracy allows. "Where it was" means
within one standard error of the model's own accuracy on the images kept aside; less can't be told from chance.

The defender has: the model, some clean images with labels. Not: the trigger. Lab 06.
Ours differs: the paper leaves the depth and the rate to the defender. Our defaults were found by looking at the ASR of
a few victims of one seed (10), on drawn signs outside the test set and on 3,000 of GTSRB's test images. Fails when: the
clean set is too small to learn from, since what it can't teach again, the cut has destroyed; or the trigger is all over
the image and every layer reads it (Blend).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labkit.data import ImageSet
from labkit.defenses.fine_tune import fine_tune, gentle, hold_out, tried
from labkit.defenses.prune import PruneResult, check_clean, prune
from labkit.metrics import eval_mode, evaluate
from labkit.train import Epoch, TrainConfig


@dataclass(frozen=True, eq=False)
class FinePruneResult:
    """model: a pruned and fine-tuned copy. history: its epochs. pruning: the cut, and the model before fine-tuning.

    tried: learning rates, highest first; the last is the one taken. held_out float32 (len(tried) + 1,): accuracy on
    the images kept aside, of the model as it came and after each try. allowed: by how much it may be lower.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    pruning: PruneResult
    tried: tuple[float, ...]
    held_out: Tensor
    allowed: float

    def __str__(self) -> str:
        cut, before, after = self.pruning, float(self.held_out[0]), float(self.held_out[-1])
        missed = "" if after >= before - self.allowed - 1e-6 else " (no rate kept it within that)"
        tried = ", ".join(f"{rate:g}" for rate in self.tried)
        return (
            f"Fine-pruning: {cut.pruned} of {len(cut.order)} channels of {cut.layer} silenced, then "
            f"{len(self.history)} epochs at lr {self.tried[-1]:g} (tried: {tried}); accuracy on clean images kept "
            f"aside {before:.1%} before, {after:.1%} after, allowed drop {self.allowed:.1%}{missed}"
        )


def standard_error(accuracy: float, n: int) -> float:
    """How far an accuracy over n images is from the true one, typically; never less than one image's share."""
    return max(math.sqrt(accuracy * (1 - accuracy) / n), 1 / n)


def largest_rate(
    model: nn.Module, cut: nn.Module, clean: ImageSet, rates: Sequence[float], config: TrainConfig, **options
) -> tuple[tuple[float, ...], Tensor, float]:
    """The rates tried, highest first, up to the one taken; held-out accuracy (tries + 1,); how much it may drop.

    `cut` is fine-tuned at each rate until its accuracy is within a standard error of the model's; else the lowest rate
    is taken.
    """
    fitted, held_out = hold_out(clean, options["seed"])
    before, rates = evaluate(model, held_out).clean_accuracy, sorted(rates, reverse=True)
    allowed = standard_error(before, len(held_out))
    trials = [replace(config, lr=rate) for rate in rates]
    after = tried(cut, fitted, held_out, trials, before - allowed - 1e-6, **options)
    return tuple(rates[: len(after)]), torch.tensor([before, *after]), allowed


def fine_prune(
    model: nn.Module,
    clean: ImageSet,
    *,
    layer: str | None = None,
    max_drop: float = 0.3,
    rates: Sequence[float] = (0.1, 0.05),
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FinePruneResult:
    """A copy of the model, pruned (`prune`: layer, max_drop), then fine-tuned at the largest rate that it bears.

    max_drop: of accuracy on the clean set, before fine-tuning. config: by default `gentle(clean)`; its learning rate
    is replaced. Costs a fine-tuning for each rate tried, and one more. The pruned channels stay at exactly zero. The
    model is untouched. Raises ValueError for fewer than 4 clean images, and what `prune` and `fine_tune` raise.
    """
    check_clean(clean, least=4)
    if not (rates := tuple(rates)) or not min(rates) > 0:
        raise ValueError(f"rates: expected learning rates above 0, such as (0.1, 0.02); got {rates!r}.")
    config, options = config or gentle(clean), {"seed": seed, "progress": progress}
    pruning = prune(model, clean, layer=layer, max_drop=max_drop)
    used, held_out, allowed = largest_rate(eval_mode(model), pruning.model, clean, rates, config, **options)
    tuned = fine_tune(pruning.model, clean, config=replace(config, lr=used[-1]), **options)
    return FinePruneResult(tuned.model, tuned.history, pruning, used, held_out, allowed)
