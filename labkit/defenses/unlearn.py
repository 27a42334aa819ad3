"""Can a model unlearn its backdoor, once the defender knows roughly what the trigger looks like?

Wang et al. 2019, "Neural Cleanse", Section VI-C ("patching DNNs via unlearning"): fine-tune for one epoch on 10% of the
training data, with the reversed trigger stamped on 20% of the images and the labels left as they are. What the network
took for the target class it now sees under every label.

    stamp_some  the trigger on a share of the images, every image with its true label
    unlearn     fine-tune a copy on that

The defender has: the model, clean labelled images, a trigger (reversed; or the true one, as a yardstick; or none, which
is plain fine-tuning). Not: the poisoned data. Fails when: the trigger is not the one the backdoor answers to. Labels
must be the true ones: stamped images with the target's label would teach the backdoor again. Lab 08.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labkit.data import ImageSet, check_images
from labkit.device import generator
from labkit.metrics import eval_mode, forward
from labkit.train import Epoch, TrainConfig, train


@dataclass(frozen=True, eq=False)
class UnlearnResult:
    """model: the repaired copy, in eval mode. history: one Epoch of fine-tuning each. stamped: how many images of
    `images` carried the trigger."""

    model: nn.Module
    history: tuple[Epoch, ...]
    stamped: int
    images: int

    def __str__(self) -> str:
        what = f"trigger on {self.stamped:,} of {self.images:,} images"
        return f"unlearning: {what if self.stamped else 'no trigger, clean data only'}; {self.history[-1]}"


def stamp_some(clean: ImageSet, trigger: Callable[[Tensor], Tensor], share: float = 0.2, seed: int = 0) -> ImageSet:
    """A new ImageSet in which `share` of the images, at random positions, carry the trigger. Labels stay true.

    Not `randperm`: `train` shuffles with that, and from the same seed it would put all stamped images first.
    """
    count = round(share * len(clean))
    chosen = torch.rand(len(clean), generator=generator(seed)).argsort()[:count].to(clean.images.device)
    images = clean.images.clone()
    if count:
        images[chosen] = check_stamped(trigger(clean.images[chosen]), clean.images[chosen])
    return replace(clean, images=images)


def unlearn(
    model: nn.Module,
    clean: ImageSet,
    trigger: Callable[[Tensor], Tensor] | None,
    *,
    share: float = 0.2,
    epochs: int = 1,
    lr: float = 0.01,
    batch_size: int = 32,
    stamp: Callable[..., ImageSet] = stamp_some,
    seed: int = 0,
    progress: bool = False,
) -> UnlearnResult:
    """A repaired copy of the model, fine-tuned on `clean` with the trigger on a share of it, labels unchanged.

    trigger: images -> images, used as it is, in floats: `neural_cleanse(...).trigger(k)`, or any other; None stamps
    nothing. share in (0, 1]. lr, batch_size: of labkit's SGD, which rises and falls within the epochs; the paper names
    neither. A few hundred images want more epochs (Lab 08). No augmentation, which would move the trigger. The input
    model is untouched.
    stamp: your own `stamp_some`, if you like. Raises ValueError for a share or epochs out of range, a set smaller than
    a batch, a trigger that changes the images' shape or range; FloatingPointError when the loss is no longer finite.
    Warns of classes that `clean` lacks, and of a trigger that changes nothing.
    """
    if not 0 < share <= 1 or epochs < 1:
        raise ValueError(f"unlearn: expected 0 < share <= 1 and epochs >= 1; got share {share!r}, epochs {epochs!r}.")
    check_clean(clean, batch_size)
    if (k := forward(eval_mode(model), clean.images[:1]).shape[1]) != len(clean.classes):
        raise ValueError(f"clean: expected labels of the model's {k} classes; got a set with {len(clean.classes)}.")
    if trigger is not None and not (count := round(share * len(clean))):
        raise ValueError(
            f"share: expected it to be one image or more; a share of {share:g} of {len(clean)} images is none."
        )
    stamped = clean if trigger is None else stamp(clean, trigger, share, seed)
    if stamped.images.shape != clean.images.shape:
        raise ValueError(f"stamp: expected the {len(clean)} images back in their order; got {len(stamped)}.")
    changed = (stamped.images != clean.images).flatten(1).any(1)
    if trigger is not None and not changed.any():
        warnings.warn(
            f"trigger: expected it to change images; all {count} came back as they were. This is plain fine-tuning.",
            stacklevel=2,
        )
    history: list[Epoch] = []
    config = TrainConfig(epochs=epochs, batch_size=batch_size, lr=lr, shift=0)
    repaired = copy.deepcopy(model).requires_grad_(True)
    train(repaired, stamped, config=config, seed=seed, callback=history.append, progress=progress)
    return UnlearnResult(repaired, tuple(history), int(changed.sum()), len(clean))


def check_clean(clean: ImageSet, batch: int) -> None:
    """A ValueError for fewer images than a batch; a warning for classes without images, which the repair may harm."""
    if len(clean) < batch:
        raise ValueError(
            f"clean: expected at least a batch of {batch} images; got {len(clean)}. Give more, or a smaller batch."
        )
    if missing := sorted(set(range(len(clean.classes))) - set(clean.labels.tolist())):
        names = ", ".join(clean.classes[m] for m in missing)
        warnings.warn(f"clean: no images of {names}; the repaired model may forget them. Add some.", stacklevel=3)


def check_stamped(stamped: Tensor, images: Tensor) -> Tensor:
    """The stamped images, if a Trigger may have made them; else a ValueError."""
    if not isinstance(stamped, Tensor) or stamped.shape != images.shape:
        got = tuple(stamped.shape) if isinstance(stamped, Tensor) else type(stamped).__name__
        raise ValueError(f"trigger: expected images of shape {tuple(images.shape)} back; got {got}.")
    return check_images(stamped, "trigger's result")
