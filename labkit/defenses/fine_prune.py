"""Fine-pruning: cut the neurons that clean images don't use, then train what is left on clean images.

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning", Section 3.3. The two halves cover for each other. Against an ordinary
backdoor pruning does the work, and fine-tuning gives back the accuracy it cost. Against a pruning-aware backdoor
pruning finds decoys only, but now clean images and the trigger share neurons: those get gradients, and change.

The defender has: the model, some clean images with labels. Not: the trigger. Lab 06.
Fails when: the clean set is too small, or fine-tuning too gentle. Pruning one layer leaves the layers below it, and
what they know of the trigger can come back together with the accuracy: look at ASR before and after the second half.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from labkit.data import ImageSet
from labkit.defenses.fine_tune import fine_tune
from labkit.defenses.prune import PruneResult, prune
from labkit.train import Epoch, TrainConfig


@dataclass(frozen=True, eq=False)
class FinePruneResult:
    """model: a pruned and fine-tuned copy. history: the epochs of fine-tuning. pruning: the first half's record."""

    model: nn.Module
    history: tuple[Epoch, ...]
    pruning: PruneResult

    def __str__(self) -> str:
        last = self.history[-1]
        return f"{self.pruning}; then {len(self.history)} epochs of fine-tuning, loss {last.loss:.3f} in the last"


def fine_prune(
    model: nn.Module,
    clean: ImageSet,
    *,
    layer: str | None = None,
    max_drop: float = 0.04,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FinePruneResult:
    """A copy of the model, pruned (`prune`: layer, max_drop) and then fine-tuned (`fine_tune`: config, seed).

    The pruned channels stay at exactly zero. The model is untouched. Raises what the two halves raise.
    """
    pruning = prune(model, clean, layer=layer, max_drop=max_drop)
    tuned = fine_tune(pruning.model, clean, config=config, seed=seed, progress=progress)
    return FinePruneResult(tuned.model, tuned.history, pruning)
