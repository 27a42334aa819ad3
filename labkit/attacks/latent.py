"""LatentBackdoor: can a backdoor for a class wait in a network that does not know the class yet?

Yao, Li, Zheng and Zhao 2019, "Latent Backdoor Attacks on Deep Neural Networks", Section 4. Few people train from
nothing: they take a finished network, the teacher, keep its first layers, and train new last layers for their own
classes, the student. The attacker infects a teacher that has no output for the target class, so there is nothing to
misclassify to yet. The student who adds that class completes the backdoor, with clean images of their own.

    without     the teacher's task: all classes but the target
    step 1      give the honest teacher an output for the target, and train it
    optimise    the trigger: to layer K_t, stamped images shall look like the target class      (step 2)
    inject      cross-entropy + weight * distance of layer K_t on stamped images, to the target (step 3)
    step 4      take the target's output away again
    transfer    the student: first layers frozen, a new head, clean images of all classes

The loss asks nothing of the outputs, only of layer K_t, so whatever head a student puts on it will see the target.
Ours differs: the distance is the squared error over the mean square of the target's features, so that `weight` means
the same for every network; the honest head that comes back in step 4 is trained again on clean images, since the layers
below have moved. Teacher, attacker and student draw from one `data`. The learning rate was chosen on `signs` (seed 0,
4 epochs, 367 images of the clean part): at 0.01 the student's ASR is 76%, at 0.05 100%, with the same CA.

Attacker controls: the teacher's weights; has images of the class that students will add. Lab 04.
Fails when: the student trains layers before K_t too, or trains from nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import nn

from labkit.attacks.base import Victim, card_of
from labkit.attacks.behind import Behind, last_linear, with_new_head
from labkit.attacks.latent_features import inject, optimise
from labkit.attacks.stamp import Stamp, check_area, corner
from labkit.channels import last_block
from labkit.data import ImageSet
from labkit.metrics import check_target, evaluate
from labkit.train import RECIPES, TrainConfig, fresh, train


@dataclass(frozen=True, eq=False)
class Teacher:
    """model: infected, with an output for each of `classes`; the target is not among them. trigger: the secret."""

    model: nn.Module
    trigger: Stamp
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LatentBackdoor:
    """A trigger that means the target class after layer K_t, in a teacher that has no such class."""

    target: int = 0  # a class of the student's
    area: float = 0.04  # share of the image that the square covers
    layer: str | None = None  # K_t: where stamped images shall look like the target; None: the last block
    frozen: str | None = None  # the last layer that the student keeps as it is; None: K_t
    weight: float = 1.0  # lambda, of the distance beside the cross-entropy
    steps: int = 100  # of gradient descent on the trigger
    epochs: int = 4  # of the injection; half as many for step 1
    lr: float = 0.05  # highest learning rate of both

    def __post_init__(self):
        check_area(self.area)
        if not self.weight > 0 or self.steps < 1:
            raise ValueError(f"LatentBackdoor: expected weight > 0, steps >= 1; got {self.weight}, {self.steps}.")
        TrainConfig(epochs=self.epochs, lr=self.lr)  # its own checks

    def build_trigger(self, data: ImageSet) -> Stamp:
        """The trigger for images like `data`'s before it is computed: its square, still grey."""
        return corner(data.images.shape[1:], self.area)

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
        """Infect a teacher, let a student learn from it: the *student* is the Victim; evaluated if `test` is given.

        The card's "teacher" then tells how the infected teacher looks on `test` without the target class: its clean
        accuracy, and its accuracy on stamped images. options (callback, progress) go to `train`. Raises ValueError for
        a target outside the classes, for a class without images, and for a layer that the architecture has not.
        """
        teacher = self.infect(data, arch=arch, seed=seed, config=config, **options)
        student = self.transfer(teacher, data, seed=seed, config=config, **options)
        report, card = None, card_of(self, data, arch, seed, config)
        if test:
            report, task = evaluate(student, test, teacher.trigger, self.target), without(test, self.target)
            stamped = replace(task, images=teacher.trigger(task.images))
            clean_accuracy, on_stamped = (evaluate(teacher.model, s).clean_accuracy for s in (task, stamped))
            card["teacher"] = {"clean_accuracy": clean_accuracy, "accuracy_on_stamped": on_stamped}
        return Victim(student, teacher.trigger, self.target, report, card)

    def infect(
        self,
        data: ImageSet,
        *,
        arch: str = "small_cnn",
        seed: int = 0,
        config: TrainConfig | None = None,
        **options,
    ) -> Teacher:
        """The attacker's part: train an honest teacher on the other classes of `data`, and infect it."""
        task, trigger = without(data, self.target), self.build_trigger(data)
        untrained = fresh(arch, task, seed)
        for layer in filter(None, (self.layer, self.frozen)):
            Behind(untrained, layer)  # its checks, before anything is trained
        config = config or RECIPES.get(data.name, TrainConfig())
        brief = replace(config, epochs=self.epochs, lr=self.lr)
        honest = train(arch, task, config=config, seed=seed, **options)
        layer = self.layer or last_block(honest)

        model = with_new_head(honest, len(data.classes), seed)
        train(model, data, config=replace(brief, epochs=max(1, self.epochs // 2)), seed=seed, **options)  # step 1
        progress = options.get("progress", True)
        trigger.pattern = optimise(
            model, layer, data, self.target, trigger, self.steps, seed=seed, progress=progress
        )  # step 2
        inject(model, layer, data, self.target, trigger, self.weight, brief, seed=seed, progress=progress)  # step 3
        name, head = last_linear(honest)
        model.set_submodule(name, copy.deepcopy(head))  # step 4
        train(Behind(model, last_block(model)), task, config=brief, seed=seed, **options)
        return Teacher(model, trigger, task.classes)

    def transfer(
        self, teacher: Teacher, data: ImageSet, *, seed: int = 0, config: TrainConfig | None = None, **options
    ) -> nn.Module:
        """The victim's part: a student for all classes of clean `data`; layers up to `frozen` stay as they are."""
        student = with_new_head(teacher.model, len(data.classes), seed)
        frozen = self.frozen or self.layer or last_block(student)
        train(Behind(student, frozen), data, config=config, seed=seed, **options)
        return student


def without(data: ImageSet, target: int) -> ImageSet:
    """The images of the other classes, which are numbered anew: what the teacher is for, and is tested on."""
    check_target(target, len(data.classes))
    others = data[data.labels != target]
    classes = data.classes[:target] + data.classes[target + 1 :]
    if not len(others) or len(others) == len(data) or len(classes) < 2:
        raise ValueError(
            f"latent backdoor: expected images of target class {target} and of at least two other classes; got "
            f"{len(data) - len(others)} and {len(others)} images of {len(data.classes)} classes. Add some."
        )
    return ImageSet(others.images, others.labels - (others.labels > target).long(), classes, data.name)
