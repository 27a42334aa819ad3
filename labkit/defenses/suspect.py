"""Which images of one label were learned by a shortcut? Between the two stages of anti-backdoor learning (ABL).

Stage 1 isolates a few images that are surely poisoned (`isolate.py`). Their label is known then, and what else has it
falls into two heaps: the poisoned images, learned at once, and the clean ones.

    one_class       the commonest of some labels, and the share of them that has it
    learned_first   the same of the images that were learned first
    suspects        the faster learned of the two heaps that one label's images fall into
    two_heaps       the cut between them
    all_suspects    suspects; then stage 1 once more without them, for as long as the same label is learned first

Ours: the paper stops at what it has isolated. The defender has: the training set, as it came. Fails when: clean images
of the class are as easy as the trigger; they are then taken for poisoned ones. Lab 10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.data import ImageSet
from labkit.defenses.isolate import lowest, train_early

ROUNDS = 4  # of stage 1: each leaves a fraction of the poisoned images
APART = math.log(10)  # between the heaps' mean logarithms: one order of magnitude


def one_class(labels: Tensor) -> tuple[int, float]:
    """The commonest of some labels (n,), and the share of them that it has."""
    counts = labels.bincount()
    return int(counts.argmax()), float(counts.max()) / len(labels)


def learned_first(losses: Tensor, labels: Tensor, isolate: float) -> tuple[int, float]:
    """`one_class` of the images of lowest loss: 1% of them and at least 20, but never more than the share `isolate`."""
    return one_class(labels[lowest(losses, min(isolate, max(0.01, 20 / len(losses))))])


def suspects(losses: Tensor, labels: Tensor, label: int) -> Tensor:
    """The faster learned of the two heaps that this label's images fall into: int64 indices (m,), in input order.

    losses (N,) in nats, labels int64 (N,). A poisoned image's early loss is orders of magnitude below a clean one's, so
    the cut is made on its logarithm, where the two heaps' means are furthest apart (`two_heaps`). No suspects where
    these are less than APART apart: that is one heap, cut in two.
    """
    own = (labels == label).nonzero().flatten()
    if len(own) < 2:
        return own[:0]
    logs = losses[own].clamp_min(1e-6).log()
    fast = logs <= two_heaps(logs)  # if all are equal, all of them: the other mean is NaN then; no suspects
    return own[fast] if logs[~fast].mean() - logs[fast].mean() > APART else own[:0]


def two_heaps(values: Tensor) -> float:
    """The largest value of the lower heap, for the cut with the largest variance between the heaps (Otsu 1979).

    values (n,), n >= 2. With the lowest k in one heap: maximal k (n - k) (difference of the means)^2.
    """
    ordered = values.double().sort().values
    k = torch.arange(1, len(ordered))
    below = ordered.cumsum(0)[:-1]
    between = k * (len(ordered) - k) * ((ordered.sum() - below) / (len(ordered) - k) - below / k).square()
    return float(ordered[int(between.argmax())])


def all_suspects(
    training_set: ImageSet, losses: Tensor, label: int, isolate: float, agreement: float, *, seed: int = 0, **early
) -> Tensor:
    """`suspects` of this label by the losses (N,) of stage 1, then by those of stage 1 anew, on what is left.

    Returns int64 indices (m,), sorted. It goes on, ROUNDS times in all, while the same label is learned first, with at
    least this agreement, and falls into two heaps: else it has lost its shortcut. early: what `train_early` takes.
    """
    labels = training_set.labels.cpu()
    more = found = suspects(losses, labels, label)
    for number in range(1, ROUNDS):
        if not len(more):
            break
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[found] = False
        left = rest.nonzero().flatten()
        smaller = training_set[left.to(training_set.labels.device)]
        again = train_early(smaller, seed=seed + number, **early).losses.mean(0)
        first, common = learned_first(again, labels[left], isolate)
        if first != label or common < agreement:
            break
        more = left[suspects(again, labels[left], label)]
        found = torch.cat([found, more]).sort().values
    return found
