"""What is the smallest change that sends every image to this class? For all classes at once.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao 2019, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in
Neural Networks", Sections III-B and IV: the search that `neural_cleanse` judges. In the order of the algorithm:

    paint             x' = (1 - m) * x + m * pattern, in `paint.py`                                   (equation 2)
    objective         cross-entropy(model(x'), class) + lambda * |m|_1, each class with its own batch (equation 3)
    Schedule          lambda goes up while the attack works, down while it does not (`schedule.py`)
    reverse_triggers  Adam on masks and patterns; a class that is done leaves the batch

The defender has: the model and some clean images. Not: the trigger, the target, or whether there is one. Lab 07.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.data import ImageSet
from labkit.defenses.paint import ReversedTrigger, paint
from labkit.defenses.schedule import Schedule, SearchConfig
from labkit.device import device_of, generator
from labkit.metrics import check_target, eval_mode, forward, share


def unit(raw: Tensor) -> Tensor:
    """Any real number -> (0, 1): (tanh(raw) + 1) / 2, so that Adam needs no clipping (as in the paper's search)."""
    return (raw.tanh() + 1) / 2


def objective(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    masks: Tensor,
    patterns: Tensor,
    lambdas: Tensor,
    paint: Callable[[Tensor, Tensor, Tensor], Tensor] = paint,
) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 3 for k classes in one forward pass: losses, success shares and mask norms, each (k,).

    images (k, B, C, H, W): a batch for each class; targets int64 (k,); masks (k, 1, H, W); patterns (k, C, H, W).
    """
    painted = paint(images, masks[:, None], patterns[:, None])  # (k, B, C, H, W)
    logits = model(painted.flatten(0, 1)).float()  # (k*B, K)
    wanted = targets.repeat_interleave(images.shape[1])  # (k*B,)
    errors = F.cross_entropy(logits, wanted, reduction="none").view(len(targets), -1).mean(1)
    success = (logits.argmax(1) == wanted).view(len(targets), -1).float().mean(1)
    norms = masks.abs().sum((1, 2, 3))
    return errors + lambdas * norms, success, norms


@dataclass(frozen=True, eq=False)
class ReversedTriggers:
    """The smallest working mask and its pattern for each searched class, in the order of `classes`, on the CPU.

    masks float32 (K, 1, H, W) and patterns (K, C, H, W) in [0, 1]; norms (K,): the masks' sums, in pixels. success
    (K,): share of clean images not of the class that the trigger sends there, measured afterwards on up to 500 of them.
    met bool (K,): whether any update met the threshold (if none did: the last mask); updates int64 (K,): how many.
    """

    classes: tuple[int, ...]
    masks: Tensor
    patterns: Tensor
    norms: Tensor
    success: Tensor
    met: Tensor
    updates: Tensor

    def trigger(self, k: int) -> ReversedTrigger:
        """The Trigger that was found for class k: images -> images."""
        if k not in self.classes:
            raise ValueError(f"trigger: expected one of the searched classes {self.classes}; got {k!r}.")
        row = self.classes.index(k)
        return ReversedTrigger(self.masks[row], self.patterns[row])


def reverse_triggers(
    model: nn.Module,
    clean: ImageSet,
    *,
    classes: Sequence[int] | None = None,
    config: SearchConfig | None = None,
    paint: Callable[[Tensor, Tensor, Tensor], Tensor] = paint,
    seed: int = 0,
    progress: bool = True,
) -> ReversedTriggers:
    """The smallest trigger for each class (None: for all of them), from one batched search.

    Images of a class are left out of its own search: they are there already, and would count as successes. Each class's
    images depend on the seed and the class alone, whichever classes are searched beside it. Every search starts from a
    half-transparent grey, where gradients are largest; the paper's code starts at random, and then a pixel that begins
    faint, or with the wrong colour, is gone before the pattern is learned, perhaps one of the trigger's. The model is
    left as it is: a copy with frozen weights is searched. Raises ValueError for classes that are none, fewer clean
    images than a batch, a model with other classes; FloatingPointError, with step and class, for a loss that is not
    finite.
    """
    c = config or SearchConfig()
    model = eval_mode(model)
    targets, pools = check_search(model, clean, classes, c.batch, generator(seed))
    device = device_of(model)
    frozen = device.place(copy.deepcopy(model)).requires_grad_(False)
    images, shape = device.layout(clean.images), clean.images.shape[1:]
    raw = torch.zeros(len(targets), shape[0] + 1, *shape[1:]).to(device).requires_grad_()  # (K, 1 + C, H, W)
    optimizer = torch.optim.Adam([raw], lr=c.lr, betas=c.betas)
    schedules = [Schedule(c) for _ in targets]
    best, updates = unit(raw).detach(), torch.zeros(len(targets), dtype=torch.int64)
    active = list(range(len(targets)))

    for number in (bar := tqdm(range(c.steps), "searching", unit="update", disable=not progress, leave=False)):
        turn = torch.arange(number * c.batch, (number + 1) * c.batch)
        picks = torch.stack([pools[i][turn % len(pools[i])] for i in active])  # (k, B)
        batch = images[picks.flatten().to(device)].unflatten(0, picks.shape)  # (k, B, C, H, W)
        lambdas = torch.tensor([schedules[i].lambda_ for i in active], device=device)
        tried = unit(raw[active])  # (k, 1 + C, H, W): mask, then pattern
        with device.autocast():
            losses, success, norms = objective(
                frozen, batch, targets[active].to(device), tried[:, :1], tried[:, 1:], lambdas, paint
            )
        optimizer.zero_grad()
        losses.sum().backward()  # a class's mask is in its own loss only
        optimizer.step()
        updates[active] += 1
        figures = torch.stack([losses.detach(), success, norms.detach()], 1).tolist()
        for i, made, (loss, works, norm) in zip(list(active), tried.detach(), figures, strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"search: expected a finite loss; got {loss} at step {number + 1} for class {int(targets[i])}. "
                    "Check that the model's logits are finite on clean images, or lower lr."
                )
            if schedules[i].update(works, norm) or schedules[i].best_norm == math.inf:
                best[i] = made
            if schedules[i].done:
                active.remove(i)
        bar.set_postfix_str(f"{len(active)} classes left")
        if not active:
            break

    masks, patterns = best.cpu()[:, :1], best.cpu()[:, 1:]
    met = torch.tensor([s.best_norm < math.inf for s in schedules])
    reached = []
    for target, pool, mask, pattern in zip(targets, pools, masks, patterns, strict=True):
        painted = paint(clean.images[pool[:500].to(clean.images.device)].cpu(), mask, pattern)
        reached.append(share(forward(frozen, painted).argmax(1) == target))
    searched = tuple(targets.tolist())
    return ReversedTriggers(searched, masks, patterns, masks.sum((1, 2, 3)), torch.tensor(reached), met, updates)


def check_search(
    model: nn.Module, clean: ImageSet, classes: Sequence[int] | None, batch: int, rng: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """The classes to search, int64 (K,), and for each the shuffled positions of the clean images not of that class."""
    k, labels = len(clean.classes), clean.labels.cpu()
    targets = list(range(k)) if classes is None else [check_target(t, k) for t in classes]
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(f"classes: expected different classes from 0 to {k - 1}, at least one; got {classes!r}.")
    if len(clean) and (got := forward(model, clean.images[:1]).shape[1]) != k:
        raise ValueError(
            f"model: expected logits for the {k} classes of `clean`; got {got}. Give it its own clean set."
        )
    order = torch.randperm(len(clean), generator=rng)
    pools = [order[labels[order] != t] for t in targets]
    if (fewest := min(len(pool) for pool in pools)) < batch:
        raise ValueError(
            f"clean: expected at least a batch of {batch} images outside each searched class; got {fewest}. "
            "Give more clean images, or a smaller batch in SearchConfig."
        )
    if missing := sorted(set(range(k)) - set(labels.tolist())):
        names = ", ".join(clean.classes[m] for m in missing)
        warnings.warn(
            f"clean: no images of {names}; triggers are reversed without them, and may not work on them.", stacklevel=3
        )
    return torch.tensor(targets), pools
