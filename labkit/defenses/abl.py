"""Can a clean model be trained on poisoned data? Anti-backdoor learning, ABL.

Li et al. 2021, "Anti-Backdoor Learning", Section 3. A backdoor has two weaknesses: it is learned faster than the
classes, and it leads to a single class. So ABL isolates the few images that are learned fastest (`isolate.py`), then
trains on the rest while it climbs the loss of those few: what they have in common does *not* mean their label. A few
are enough, since all of them carry the trigger; so isolating need not find every poisoned image.

    train_early, lowest  stage 1: after a short training, the share of the images whose loss is lowest
    learned_first        have they one label, as poisoned images do? If not, there is nothing to unlearn (`suspect.py`)
    all_suspects         what else of that label was learned at once: not trained on again
    set_apart            the training set with the isolated images marked
    odds_against         ln((1 - p) / p) for an image's label: its loss, but with a slope where the loss has none
    descend_and_ascend   the loss of the rest, minus the odds of the isolated; above a ceiling an image is let alone
    disbelieved          images of that label whose loss the ascent has raised, though they were not isolated
    all_doubted          these and the suspects; the suspects alone where the ascent has unlearned the class itself
    abl                  stage 2: train, backdoor and all; unlearn, the suspects left out; train a fresh network without
                         them and without what is disbelieved

The defender has: the training set, as it came. Not: a clean image, a trigger, a target, the poisoning rate.
Ours differs. The paper climbs l = -ln p itself: nearly without gradient where it is needed most, at p = 1, and without
end where the work is done; it subtracts mean losses, so that 1% of the images weigh like the other 99%. Ours climbs the
odds, has a ceiling, and `balance`. In the paper poisoned images that were not isolated go on teaching the trigger; on
CIFAR-10 the network then learns the isolated ones by heart and keeps the backdoor, so ours leaves the suspects out. The
paper keeps the network that has unlearned; its triggered images may end in some other wrong class, so we ask it which
images it no longer believes, and train anew without these and the suspects, still climbing on the isolated ones,
against what was missed. And nothing is unlearned when no one class stands out.
Fails when: stage 1 isolates clean images, which are then unlearned; poisoned images do not share a label; the ascent
goes on for so long that the network learns the isolated images by heart, instead of unlearning what they share. Lab 10.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labkit.data import ImageSet
from labkit.defenses.isolate import (
    EARLY,
    Loss,
    cross_entropies,
    image_losses,
    lowest,
    train_early,
)
from labkit.defenses.suspect import all_suspects, learned_first
from labkit.train import RECIPES, Epoch, TrainConfig, fresh, train

SHARE_OF_BATCH = 0.1  # isolated images are repeated until about a tenth of each batch are theirs: a steadier ascent
CLASS_LOST = 0.9  # of the label's images that are no suspects: above it the ascent has unlearned what they are


@dataclass(frozen=True, eq=False)
class ABLResult:
    """model: trained, in eval mode. isolated int64 (n,): what was unlearned, lowest loss first; empty if nothing was.

    disbelieved int64 (m,): left out of the last training: suspects, isolated images, and what the ascent brought out.
    losses float32 (N,): each image's in nats, mean over the epochs of stage 1. history: the last training, one `Epoch`
    each; its loss is the objective. unlearned: the network after the ascent, before the last training; None if nothing
    was unlearned. label: the commonest class among the fastest images; agreement: the share of them that has it.
    """

    model: nn.Module
    isolated: Tensor
    disbelieved: Tensor
    losses: Tensor
    history: tuple[Epoch, ...]
    unlearned: nn.Module | None
    label: str
    agreement: float

    def __str__(self) -> str:
        n, which = len(self.losses), f"{self.agreement:.0%} of the fastest learned images are labelled {self.label!r}"
        if not len(self.isolated):
            return f"ABL: nothing unlearned; only {which}, so no one class stands out; trained on all {n:,} images"
        return (
            f"ABL: {len(self.isolated):,} of {n:,} images isolated (mean loss {self.losses[self.isolated].mean():.3f}, "
            f"of all {self.losses.mean():.3f} nats) and unlearned; {which}; {len(self.disbelieved):,} disbelieved"
        )


def set_apart(data: ImageSet, isolated: Tensor, copies: int = 1, without: Tensor | None = None) -> ImageSet:
    """The images that are not isolated, then the isolated ones, `copies` of each, marked by their labels: y -> y + K.

    So the set has 2K classes, of which the network predicts the first K. without: indices to leave out of the rest.
    """
    rest = torch.ones(len(data), dtype=torch.bool)
    for out in (isolated, isolated if without is None else without):
        rest[out] = False
    order = torch.cat([rest.nonzero().flatten(), isolated.repeat(copies)]).to(data.images.device)
    labels = data.labels[order.to(data.labels.device)].clone()
    labels[int(rest.sum()) :] += len(data.classes)
    classes = (*data.classes, *(f"not {name}" for name in data.classes))
    return ImageSet(data.images[order], labels, classes, data.name)


def balance(apart: ImageSet, label: int) -> float:
    """The weight at which the marked images of `apart` pull as hard as its ordinary images with this label.

    A feature that all images of the label have is then pulled both ways alike. The trigger, which every isolated image
    has and only some of the others, is unlearned, whatever the poisoning rate.
    """
    marked = int((apart.labels >= len(apart.classes) // 2).sum())
    return int((apart.labels == label).sum()) / max(1, marked)


def odds_against(logits: Tensor, labels: Tensor) -> Tensor:
    """ln((1 - p) / p) of each image, p the probability of its label: logits (B, K), labels (B,) -> (B,), in nats.

    It equals ln(e^l - 1): about l where the loss l is large, and far below 0 where l is close to 0.
    """
    own = labels[:, None]
    others = logits.scatter(1, own, float("-inf")).logsumexp(1)
    return others - logits.gather(1, own)[:, 0]


def descend_and_ascend(classes: int, weight: float, ceiling: float = 5.0) -> Loss:
    """For `train` on a set that `set_apart` made: descent on the rest's losses, ascent on the marked images' odds.

    The batch's mean of min(l, ceiling) over the rest and of -weight min(odds, ceiling) over marked images. classes: K.
    ceiling: in nats. Above it there is no gradient: at 5, the label has a probability below 0.7%.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        marked, own = labels >= classes, labels % classes
        values = torch.where(marked, odds_against(logits, own), cross_entropies(logits, own)).clamp_max(ceiling)  # (B,)
        return torch.where(marked, -weight * values, values).mean()

    return loss


def disbelieved(model: nn.Module, data: ImageSet, label: int, threshold: float) -> Tensor:
    """Indices int64 (m,) of the images with this label whose loss is above the threshold, in nats."""
    return ((image_losses(model, data) > threshold) & (data.labels.cpu() == label)).nonzero().flatten()


def all_doubted(raised: Tensor, suspected: Tensor, own: Tensor) -> Tensor:
    """What the last training leaves out, int64 (m,), sorted: the suspects, and what the ascent has raised.

    own: all images of the label. Where there are suspects, and the ascent has raised nearly all of the label's other
    images (more than CLASS_LOST), it has unlearned the class and not the trigger: then the suspects alone.
    """
    others = own[~torch.isin(own, suspected)]
    lost = len(suspected) and float(torch.isin(others, raised).float().mean()) > CLASS_LOST
    return (suspected if lost else torch.cat([raised, suspected])).unique()


def same_steps(config: TrainConfig, kept: float) -> TrainConfig:
    """The recipe for a smaller set, with as many steps as on the whole. kept: its size over the whole set's."""
    return replace(config, epochs=round(config.epochs / min(kept, 1.0)))


def short(config: TrainConfig, kept: float = 1.0) -> TrainConfig:
    """The recipe for the ascent: the steps of two epochs of the whole set, at a low rate, with the usual augmentation.

    kept: see `same_steps`.
    """
    return same_steps(replace(config, epochs=2, lr=0.02), kept)


def abl(
    training_set: ImageSet,
    *,
    arch: str = "small_cnn",
    isolate: float = 0.01,
    early: Loss | None = None,
    early_config: TrainConfig = EARLY,
    config: TrainConfig | None = None,
    unlearn_config: TrainConfig | None = None,
    start: nn.Module | None = None,
    strength: float = 0.5,
    ceiling: float = 5.0,
    agreement: float = 0.6,
    seed: int = 0,
    progress: bool = True,
) -> ABLResult:
    """A network trained on a set that nobody vouches for, in which what was learned fastest is unlearned.

    arch: an architecture's name. isolate: share in (0, 1) of the images to isolate; the paper's 1%, far below the
    poisoning rate it expects. early: the loss of stage 1, by default `flooding()`; `local_gradient_ascent()` is the
    other. early_config, config: of stage 1 and of the trainings, by default `EARLY` and the data set's recipe;
    unlearn_config: of the ascent, by default `short(config)`. start: a network already trained on this set without a
    defence, if there is one; it is left as it is, and saves a training. strength: of the ascent in the last training,
    times `balance`. ceiling: in nats, see `descend_and_ascend`; above half of it an image is disbelieved. agreement:
    the share of the lowest 1% (of `isolate`, if that is less) that must have one label; below it nothing is unlearned.
    0: in any case, as the paper.
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
    config, shared = config or RECIPES.get(training_set.name, TrainConfig()), {"seed": seed, "progress": progress}
    stage_1 = {"arch": arch, "loss": early, "config": early_config, **shared}
    losses, history = train_early(training_set, **stage_1).losses.mean(0), list[Epoch]()
    label, share = learned_first(losses, training_set.labels.cpu(), isolate)
    found = training_set.classes[label], share
    if share < agreement:
        model, none = train(arch, training_set, config=config, callback=history.append, **shared), losses[:0].long()
        return ABLResult(model, none, none, losses, tuple(history), None, *found)

    def objective(apart: ImageSet, times: float) -> Loss:
        return descend_and_ascend(k, times * balance(apart, label), ceiling)

    isolated = lowest(losses, isolate)
    copies = max(1, round(SHARE_OF_BATCH * n / len(isolated)))
    suspected = all_suspects(training_set, losses, label, isolate, agreement, **stage_1)
    apart = set_apart(training_set, isolated, copies, without=suspected)
    doubter = copy.deepcopy(start) if start else train(arch, training_set, config=config, **shared)
    ascent = unlearn_config or short(config, len(apart) / n)
    train(doubter, apart, config=ascent, loss=objective(apart, 1.0), **shared)
    raised = disbelieved(doubter, training_set, label, ceiling / 2)
    doubted = all_doubted(raised, suspected, (training_set.labels.cpu() == label).nonzero().flatten())
    apart = set_apart(training_set, isolated, copies, without=doubted)
    model, recipe = fresh(arch, training_set, seed), same_steps(config, len(apart) / n)
    train(model, apart, config=recipe, loss=objective(apart, strength), callback=history.append, **shared)
    return ABLResult(model, isolated, doubted, losses, tuple(history), doubter, *found)
