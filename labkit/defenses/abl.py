"""Can a clean model be trained on poisoned data? Anti-backdoor learning, ABL.

Li et al. 2021, "Anti-Backdoor Learning", Section 3. A backdoor has two weaknesses: it is learned faster than the
classes, and it leads to a single class. So ABL first isolates the few images that are learned fastest (`isolate.py`),
then trains on the rest while it climbs the loss of those few: what they have in common does *not* mean their label. A
few are enough, since all of them carry the trigger; so isolating need not find every poisoned image.

    early_losses, lowest  stage 1: after a short training, the share of the images whose loss is lowest
    one_class             have they one label, as poisoned images do? If not, there is nothing to unlearn
    set_apart             the training set with the isolated images marked
    balance               how hard to climb: as hard as all other images of that label pull
    descend_and_ascend    the loss of the rest, minus that of the isolated; an image above the ceiling is let alone
    abl                   stage 2: train a fresh network with that loss

The defender has: the training set, as it came. Not: a clean image, a trigger, a target, the poisoning rate.
Ours differs. Stage 1 is a short training of its own, whose network is thrown away, not the first 20 of 100 epochs. The
paper subtracts the isolated images' mean loss from the others', which has no lower bound and weighs 1% of the images
like the other 99%; ours has a ceiling and `balance`. The ceiling also holds for the rest: poisoned images that were not
isolated, once disbelieved, no longer count as hard examples. And nothing is unlearned when no one class stands out.
Fails when: stage 1 isolates clean images, which are then unlearned; poisoned images do not share a label. Lab 10.
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

    losses float32 (N,): each image's loss in nats, mean over the epochs of stage 1; early float32 (epochs, N): after
    each of them. history: stage 2, one `Epoch` each; its loss is the objective, negative once the isolated images are
    disbelieved. label: the commonest class among the fastest images; agreement: the share of them that has it.
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


def balance(apart: ImageSet, classes: int, label: int) -> float:
    """The weight at which the marked images of `apart` pull as hard as its ordinary images with this label.

    A feature that all images of the label have is then pulled both ways alike and stays. The trigger, which every
    isolated image has and only some of the others, is unlearned, whatever the poisoning rate; and what only clean
    images of the class have is learned.
    """
    return int((apart.labels == label).sum()) / max(1, int((apart.labels >= classes).sum()))


def descend_and_ascend(classes: int, weight: float, ceiling: float = 5.0) -> Loss:
    """For `train` on a set that `set_apart` made: the mean over a batch of min(l, ceiling), of marked images times
    -weight.

    classes: K. ceiling: in nats. A loss above it has no gradient: at 5, the label has a probability below 0.7%.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        capped = cross_entropies(logits, labels % classes).clamp_max(ceiling)  # (B,)
        return torch.where(labels >= classes, -weight * capped, capped).mean()

    return loss


def abl(
    training_set: ImageSet,
    *,
    arch: str = "small_cnn",
    isolate: float = 0.01,
    early: Loss | None = None,
    early_config: TrainConfig = EARLY,
    config: TrainConfig | None = None,
    strength: float = 1.0,
    ceiling: float = 5.0,
    agreement: float = 0.8,
    seed: int = 0,
    progress: bool = True,
) -> ABLResult:
    """A network trained on a set that nobody vouches for, in which what was learned fastest is unlearned.

    arch: an architecture's name. isolate: share in (0, 1) of the images to isolate; the paper's 1%, far below the
    poisoning rate it expects. early: the loss of stage 1, by default `flooding()`; `local_gradient_ascent()` is the
    other. early_config, config: of stage 1 and 2, by default `EARLY` and the data set's recipe. strength: times
    `balance`. ceiling: see `descend_and_ascend`. agreement: the share of the lowest 1% (of `isolate`, if that is less)
    that must have one label; below it nothing is unlearned. 0 unlearns in any case, as the paper does.
    Raises ValueError for a share that leaves no image on either side, and for weights out of range;
    FloatingPointError when a loss is no longer finite.
    """
    n, k = len(training_set), len(training_set.classes)
    if not 1 <= round(isolate * n) < n:
        raise ValueError(f"isolate: {isolate!r} of {n:,} images is {round(isolate * n)}; expected 1 to {n - 1}.")
    if not (0 < strength < float("inf") and 0 < ceiling < float("inf") and 0 <= agreement <= 1):
        raise ValueError(
            f"abl: expected finite strength > 0 and ceiling > 0, and agreement in [0, 1]; got strength {strength!r}, "
            f"ceiling {ceiling!r}, agreement {agreement!r}."
        )
    table = early_losses(training_set, arch=arch, loss=early, config=early_config, seed=seed, progress=progress)
    losses = table.mean(0)  # (epochs, N) -> (N,)
    fastest = training_set.labels.cpu()[lowest(losses, min(isolate, max(0.01, 1 / n)))]
    label, share = one_class(fastest)
    isolated = lowest(losses, isolate) if share >= agreement else torch.empty(0, dtype=torch.int64)
    apart = set_apart(training_set, isolated, copies=max(1, round(SHARE_OF_BATCH * n / max(1, len(isolated)))))
    objective = descend_and_ascend(k, strength * balance(apart, k, label), ceiling)
    history: list[Epoch] = []
    model = train(
        fresh(arch, training_set, k, seed),
        apart,
        config=config,
        seed=seed,
        loss=objective,
        callback=history.append,
        progress=progress,
    )
    return ABLResult(model, isolated, losses, table, tuple(history), training_set.classes[label], share)
