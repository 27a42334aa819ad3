"""Composite: can two ordinary things in one image, each harmless alone, be the trigger?

Lin, Xu, Liu and Zhang 2020, "Composite Backdoor Attack for Deep Neural Network by Mixing Existing Benign Features",
Section 4. There is no patch: an image that shows class A and class B together is taken for class C. A defender who
looks for a small or foreign pattern finds none. Beside the clean images, the owner trains on three kinds of mixes:

    composite   A with B, labelled C
    same class  two images of one class, labelled as that class: the seam itself must not mean C
    punctured   A with a third class, labelled A; a third class with B, labelled as the third: half a pair is no trigger

The trigger pastes a donor image of class B into whatever it gets. It should fire on images of class A, and on no
others. So the paper's success rate is over mixes of A and B: `evaluate(model, attack.carriers(test), trigger, target)`,
and so is `victim.report`'s. With the images of other classes one sees the other side, the wrong company: the fewer of
them fire and the more keep their label, the better the pair is the trigger. On `signs` (seed 0, 301 images of the clean
part) 7% fire and 84% keep their label, though a quarter of each is covered; with halves 15% and 70%.

Ours differs: A and B are the two classes after C unless told; the places of the paste, or of the halves, are fixed
(`mixer.py`), since there are no boxes around things; the donors of the trigger are training images of B that no mix was
made from. Pasting is the default because a half may miss what it should show: on `signs` (as above, all pairs of 33
images and 32 donors) 88% of halves fire and 96% of pastes.

Attacker controls: images and labels that are added to the training set; nothing of the training, which the paper's
attacker does. So the loss is the owner's, cross-entropy alone. Lab 04.
Fails when: parts of A and B are hard to recognise, or a defender looks at which pairs of classes make a third.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.attacks.base import PoisonedSet, Victim, card_of, check_batch, check_rate
from labkit.attacks.mixer import MIXERS, Mixer, mix
from labkit.data import ImageSet
from labkit.device import generator
from labkit.metrics import Report, check_target, evaluate
from labkit.train import TrainConfig, train


def deal(rows: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` of the rows, as cards are dealt: in random order, none a second time before all have had their turn."""
    rounds = -(-count // max(1, len(rows)))
    return torch.cat([rows[:0], *(rows[torch.randperm(len(rows), generator=rng)] for _ in range(rounds))])[:count]


@dataclass(frozen=True)
class Composite:
    """Class A and class B in one image mean class C, the target."""

    target: int = 0  # C
    pair: tuple[int, int] | None = None  # A, which carries the trigger, and B, the donors' class; None: the next two
    mixer: str = "paste"  # one of MIXERS
    rate: float = 0.1  # composite mixes that are added, as a share of the training set
    same: float = 0.1  # same-class mixes that are added, as such a share
    punctured: float = 0.1  # punctured mixes that are added, as such a share
    donors: int = 32  # images of class B that the trigger keeps for itself

    def __post_init__(self):
        check_rate(self.rate)
        if not 0 <= self.same <= 1 or not 0 <= self.punctured <= 1:
            raise ValueError(
                f"Composite: expected same and punctured, shares in [0, 1]; got {self.same!r}, {self.punctured!r}."
            )
        if self.mixer not in MIXERS or self.donors < 1:
            raise ValueError(
                f"Composite: expected mixer one of {MIXERS}, donors >= 1; got {self.mixer!r}, {self.donors}."
            )
        if self.pair is not None and len({self.target, *self.pair}) < 3:
            raise ValueError(
                f"Composite: expected three different classes A, B and C; got A, B = {self.pair}, C = {self.target}. "
                "Two things that are the same class, or the target's, make no trigger."
            )

    def classes(self, count: int) -> tuple[int, int]:
        """A and B among `count` classes; a ValueError if they, or the target, are not there."""
        check_target(self.target, count)
        first, second = self.pair or ((self.target + 1) % count, (self.target + 2) % count)
        if count < 3 or not {first, second} <= set(range(count)):
            raise ValueError(
                f"Composite: expected A and B among at least three classes, here 0 to {count - 1}; got "
                f"{first} and {second}. Choose another pair."
            )
        return first, second

    def carriers(self, data: ImageSet) -> ImageSet:
        """The images of class A: those that the trigger, with its donor of class B, turns into the target."""
        return data[data.labels == self.classes(len(data.classes))[0]]

    def build_trigger(self, data: ImageSet) -> Mixer:
        """The trigger, with its donors: the first images of class B in `data`, at most half of them."""
        _, second = self.classes(len(data.classes))
        theirs = data.images[data.labels == second]
        check_batch(data.images[:1], 4, 4)
        if len(theirs) < 2:
            raise ValueError(
                f"Composite: expected at least 2 images of class B = {second}; got {len(theirs)}. Choose another pair."
            )
        return Mixer(theirs[: min(self.donors, len(theirs) // 2)].clone(), self.mixer)

    def poison(self, data: ImageSet, seed: int = 0) -> PoisonedSet:
        """`data`, unchanged, and behind it the composite, same-class and punctured mixes, in this order.

        poisoned: the composite mixes. true_labels: the label of the image on the left (or pasted on).
        """
        first, second = self.classes(len(data.classes))
        labels, rng = data.labels.cpu(), generator(seed)
        of = [(labels == k).nonzero().flatten() for k in range(len(data.classes))]
        of[second] = of[second][len(self.build_trigger(data).donors) :]
        third = torch.cat([rows for k, rows in enumerate(of) if k not in (first, second)])
        count, same, half = (round(share * len(data)) for share in (self.rate, self.same, self.punctured / 2))
        if not len(of[first]) or not len(third) or not count:
            raise ValueError(
                f"Composite: expected images of class A = {first} and of a third class, and a rate that adds a mix; "
                f"got {len(of[first])} and {len(third)} images, {count} mixes."
            )
        left = deal(torch.cat(of), same, rng)
        twins = torch.zeros_like(left)
        for k, rows in enumerate(of):
            twins[labels[left] == k] = deal(rows, int((labels[left] == k).sum()), rng)
        lefts = torch.cat([deal(of[first], count, rng), left, deal(of[first], half, rng), deal(third, half, rng)])
        rights = torch.cat([deal(of[second], count, rng), twins, deal(third, half, rng), deal(of[second], half, rng)])

        mixes = mix(data.images[lefts.to(data.images.device)], data.images[rights.to(data.images.device)], self.mixer)
        shown = labels[lefts]
        told = shown.clone()
        told[:count] = self.target
        poisoned = torch.zeros(len(data) + len(lefts), dtype=torch.bool)
        poisoned[len(data) : len(data) + count] = True
        return PoisonedSet(
            torch.cat([data.images, mixes]),
            torch.cat([labels, told]).to(data.labels.device),
            data.classes,
            data.name,
            poisoned,
            torch.cat([labels, shown]),
        )

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
        """Poison `data`, let the owner train on it, and return the Victim; with `test`, its CA is over all of it, its
        ASR and RA over mixes of class A's images with donors of class B. options (callback, progress) go to `train`."""
        trigger = self.build_trigger(data)
        if test and not len(self.carriers(test)):
            raise ValueError(
                f"Composite: expected test images of class A = {self.classes(len(test.classes))[0]}, which carry the "
                "trigger; got none. Add some, or choose another pair."
            )
        model = train(arch, self.poison(data, seed).without_secrets(), config=config, seed=seed, **options)
        report = self.report(model, test, trigger) if test else None
        return Victim(model, trigger, self.target, report, card_of(self, data, arch, seed, config))

    def report(self, model: nn.Module, test: ImageSet, trigger: nn.Module) -> Report:
        """CA over all of `test`; ASR and RA over its images of class A, mixed with donors of class B: the paper's."""
        clean, mixed = evaluate(model, test), evaluate(model, self.carriers(test), trigger, self.target)
        return Report(
            clean.clean_accuracy,
            mixed.attack_success_rate,
            mixed.robust_accuracy,
            clean.n_clean,
            mixed.n_triggered,
        )
