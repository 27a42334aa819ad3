"""Neural Cleanse: is this model backdoored, and towards which class?

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao 2019, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in
Neural Networks", Sections III and IV. A backdoor is a shortcut: a tiny change sends every image to the target class.
So find, for each class, the smallest change that does it, and look for a class where it is much smaller than usual.

    reverse_triggers  the smallest mask and pattern for every class (`reverse.py`)
    anomaly_index     how far below the median is each mask's norm? (`outliers.py`)
    neural_cleanse    flag the classes with an index above 2

The defender has: the model and some clean images. Not: the trigger, the target, or whether there is one.
Fails when: the trigger is large or depends on the image (Blend, WaNet, ISSBA: no small mask does what it does), there
are too few classes for a median, or most classes are targets. A clean model can pass 2 as well: some class may simply
be easy to reach. So read all norms and indices, not the verdict alone. And the reversed trigger need not look like the
true one, or lie where it does: a network with global pooling, trained on shifted images, answers to the patch in other
places too, and the search takes whichever comes first. Lab 07; `unlearn` repairs (Lab 08).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.data import ImageSet
from labkit.defenses.outliers import anomaly_index
from labkit.defenses.reverse import ReversedTriggers, paint, reverse_triggers
from labkit.defenses.schedule import SearchConfig

OUTLIER = 2.0  # Section IV: under a normal distribution a value so far off has a chance below 5%, but K are looked at


@dataclass(frozen=True, eq=False)
class NeuralCleanseResult(ReversedTriggers):
    """Every class's reversed trigger, norm and index; rows in the order of `classes`, on the CPU.

    anomaly float32 (K,): robust standard deviations below the median norm, negative above it. flagged: the class
    numbers with an index above 2 whose trigger works, the most unusual first; empty if there are none. names: of the
    searched classes. masks, patterns, norms, success, met, updates: see `ReversedTriggers`.
    """

    anomaly: Tensor
    flagged: tuple[int, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        def row(i: int) -> str:
            return (
                f"{self.classes[i]} ({self.names[i]}): index {float(self.anomaly[i]):.2f}, norm "
                f"{float(self.norms[i]):.1f} pixels, success {float(self.success[i]):.1%}"
            )

        found = "; ".join(row(self.classes.index(k)) for k in self.flagged)
        nearest = row(int(self.anomaly.argmax()))
        text = f"flagged {found}" if found else f"nothing flagged; the most unusual is {nearest}"
        text += f"; {len(self.classes)} classes, median norm {float(torch.quantile(self.norms, 0.5)):.1f} pixels"
        if failed := [k for k, met in zip(self.classes, self.met.tolist(), strict=True) if not met]:
            text += f"; no working trigger found for {failed}"
        return f"Neural Cleanse: {text}"


def neural_cleanse(
    model: nn.Module,
    clean: ImageSet,
    *,
    classes: Sequence[int] | None = None,
    config: SearchConfig | None = None,
    paint: Callable[[Tensor, Tensor, Tensor], Tensor] = paint,
    index: Callable[[Tensor], Tensor] = anomaly_index,
    seed: int = 0,
    progress: bool = True,
) -> NeuralCleanseResult:
    """The reversed trigger, norm and anomaly index of each class, and which classes are flagged as backdoored.

    model: (N, C, H, W) in [0, 1] -> logits (N, K), in eval mode; it is left as it is. clean: the defender's images, any
    labels. classes: those to compare, at least 3; None for all. config: the search's settings. paint, index: your own
    versions, if you like. Raises what `reverse_triggers` raises; ValueError for fewer than 3 classes.
    """
    compared = len(clean.classes) if classes is None else len(classes)
    if compared < 3:
        raise ValueError(
            f"classes: expected at least 3, to tell which one is unusual; got {compared}. Name more of them, or use "
            "`reverse_triggers`, which finds triggers without comparing them."
        )
    found = reverse_triggers(model, clean, classes=classes, config=config, paint=paint, seed=seed, progress=progress)
    anomaly = index(found.norms)
    rows = [i for i in anomaly.argsort(descending=True).tolist() if anomaly[i] > OUTLIER and found.met[i]]
    flagged = tuple(found.classes[i] for i in rows)
    names = tuple(clean.classes[k] for k in found.classes)
    return NeuralCleanseResult(**vars(found), anomaly=anomaly, flagged=flagged, names=names)
