"""Can a clean model be trained on poisoned data? Anti-backdoor learning, ABL.

Li et al. 2021, "Anti-Backdoor Learning", Section 3. Two weaknesses of a backdoor: it is learned faster than the classes,
and it leads to a single class. So ABL first isolates the few images that are learned fastest (`isolate.py`), and then
trains on the rest while it climbs the loss of those few: the network learns that the trigger does *not* mean the target.
A few images suffice, because they all carry the trigger; that is why isolating need not find every poisoned image.

    early_losses, lowest  stage 1: the isolated images, a share of the lowest losses after a short training
    one_class             do they share a label, as poisoned images do? If not, there is nothing to unlearn
    set_apart             the training set with the isolated images marked, some copies of each
    descend_and_ascend    mean loss of the rest - mean loss of the isolated, the latter capped
    abl                   stage 2: train a fresh network with that loss

The defender has: the training set, as it came. Not: a clean image, a trigger, a target, the poisoning rate.
Ours differs: stage 1 is a short training of its own, whose network is thrown away, instead of the first 20 of 100
epochs; the ascended loss stops growing at `ceiling`, beyond which the paper's objective has no lower bound; and nothing
is unlearned when the fastest images are of several classes. Fails when: stage 1 isolates clean images, which are then
unlearned; the poisoned share is so large that the rest teaches the trigger harder than the isolated ones unteach it.
Lab 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.data import ImageSet
from labkit.defenses.isolate import EARLY, Loss, cross_entropies, early_losses, fresh, lowest
from labkit.train import Epoch, TrainConfig, train

SHARE_OF_BATCH = 0.1  # isolated images are repeated until about a tenth of each batch are theirs: a steadier ascent


@dataclass(frozen=True, eq=False)
class ABLResult:
    """model: trained, in eval mode. isolated int64 (n,): what was unlearned, lowest loss first; empty if nothing was.

    losses float32 (N,): each image's loss in nats, mean over the epochs of stage 1. early float32 (epochs, N): after each
    of them. history: stage 2, one `Epoch` each (its loss is the objective, negative when the isolated images' is high).
    label: the commonest class among the fastest images; agreement: the share of them that has it.
    """

    model: nn.Module
    isolated: Tensor
    losses: Tensor
    early: Tensor
    history: tuple[Epoch, ...]
    label: str
    agreement: float

    def __str__(self) -> str:
        n, which = len(self.losses), f"{self.agreement:.0%} of the fastest learned images are labelled {self.label!r}"
        if not len(self.isolated):
            return f"ABL: nothing unlearned; only {which}, so no one class stands out; trained on all {n:,} images"
        low, rest = self.losses[self.isolated].mean(), self.losses.mean()
        return (
            f"ABL: {len(self.isolated):,} of {n:,} images isolated (mean loss {low:.3f}, of all {rest:.3f} nats) and "
            f"unlearned; {which}"
        )


def one_class(labels: Tensor) -> tuple[int, float]:
    """The commonest of some labels (n,), and the share of them that it has."""
    counts = labels.bincount()
    return int(counts.argmax()), float(counts.max()) / len(labels)


def set_apart(training_set: ImageSet, isolated: Tensor, copies: int = 1) -> ImageSet:
    """The images that are not isolated, then the isolated ones, `copies` of each, marked by their labels: y -> y + K.

    So the set has 2K classes, of which the network predicts the first K: "not a" follows "a" by K places.
    """
    rest = torch.ones(len(training_set), dtype=torch.bool)
    rest[isolated] = False
    order = torch.cat([rest.nonzero().flatten(), isolated.repeat(copies)])
    k, labels = len(training_set.classes), training_set.labels.cpu()
    labels = torch.cat([labels[rest], labels[isolated].repeat(copies) + k]).to(training_set.labels.device)
    classes = (*training_set.classes, *(f"not {name}" for name in training_set.classes))
    return ImageSet(training_set.images[order.to(training_set.images.device)], labels, classes, training_set.name)


def descend_and_ascend(classes: int, weight: float = 1.0, ceiling: float = 5.0) -> Loss:
    """For `train` on a set that `set_apart` made: the mean of l over ordinary images, of -weight min(l, ceiling) over
    marked ones.

    classes: K. ceiling: in nats; above it an isolated image is let alone: its label has a probability below exp(-5).
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        marked = labels >= classes
        each = cross_entropies(logits, labels % classes)  # (B,)
        return torch.where(marked, -weight * each.clamp_max(ceiling), each).mean()

    return loss


def abl(
    training_set: ImageSet,
    *,
    arch: str = "small_cnn",
    isolate: float = 0.01,
    early: Loss | None = None,
    early_config: TrainConfig = EARLY,
    config: TrainConfig | None = None,
    weight: float = 10.0,
    ceiling: float = 5.0,
    agreement: float = 0.8,
    seed: int = 0,
    progress: bool = True,
) -> ABLResult:
    """A network trained on a set that nobody vouches for, in which what was learned fastest is unlearned.

    arch: an architecture's name. isolate: share in (0, 1) of the images to isolate; the paper's 1%, far below the
    poisoning rate it expects. early: the loss of stage 1, by default `flooding()`; `local_gradient_ascent()` is the
    other. early_config, config: of stage 1 and of stage 2, by default `EARLY` and the data set's recipe. weight, ceiling:
    of the ascended loss. agreement: the share of the lowest 1% (or of `isolate`, if less) that must have one label;
    below it nothing is unlearned. 0 unlearns in any case, as the paper does.
    Raises ValueError for a share that leaves no image on either side, and for weights out of range;
    FloatingPointError when a loss is no longer finite.
    """
    n, k = len(training_set), len(training_set.classes)
    if not 1 <= round(isolate * n) < n:
        raise ValueError(f"isolate: {isolate!r} of {n:,} images is {round(isolate * n)}; expected 1 to {n - 1}.")
    if not (0 < weight < float("inf") and 0 < ceiling < float("inf") and 0 <= agreement <= 1):
        raise ValueError(
            f"abl: expected finite weight > 0 and ceiling > 0, and agreement in [0, 1]; got weight {weight!r}, ceiling "
            f"{ceiling!r}, agreement {agreement!r}."
        )
    table = early_losses(training_set, arch=arch, loss=early, config=early_config, seed=seed, progress=progress)
    losses = table.mean(0)  # (epochs, N) -> (N,)
    fastest = training_set.labels.cpu()[lowest(losses, min(isolate, max(0.01, 1 / n)))]
    label, share = one_class(fastest)
    isolated = lowest(losses, isolate) if share >= agreement else torch.empty(0, dtype=torch.int64)
    copies = max(1, round(SHARE_OF_BATCH * n / max(1, len(isolated))))
    history: list[Epoch] = []
    model = train(
        fresh(arch, training_set, k, seed),
        set_apart(training_set, isolated, copies),
        config=config,
        seed=seed,
        loss=descend_and_ascend(k, weight, ceiling),
        callback=history.append,
        progress=progress,
    )
    return ABLResult(model, isolated, losses, table, tuple(history), training_set.classes[label], share)
