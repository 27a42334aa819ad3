"""How good is a model, and how well does an attack work? CA, ASR, RA, each with its denominator; ROC figures.

    CA   clean accuracy: share of clean test images classified right
    ASR  attack success rate: share of triggered test images, not of the target class, that are sent to the target
    RA   robust accuracy: share of those same images that still get their true label

ASR leaves the target class out: those images would count as successes of an attack that does nothing. ASR and RA need
not add up to 1, and a repair that destroys the target class has ASR 0 too, so RA stands beside every ASR. Labs 01, 02.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.data import ImageSet, check_images
from labkit.device import device_of

BATCH = {"cpu": 256, "cuda": 4096, "mps": 1024}  # images a forward pass; `benchmarks/forward.py` measures it


@dataclass(frozen=True)
class Report:
    """Shares in [0, 1]; the attack's figures are None when no trigger was given. n_*: how many images each is over."""

    clean_accuracy: float
    attack_success_rate: float | None
    robust_accuracy: float | None
    n_clean: int
    n_triggered: int

    def __str__(self) -> str:
        clean = f"CA {self.clean_accuracy:.1%} of {self.n_clean:,} clean images"
        if self.attack_success_rate is None or self.robust_accuracy is None:
            return clean
        return (
            f"{clean}; ASR {self.attack_success_rate:.1%}, RA {self.robust_accuracy:.1%} "
            f"of {self.n_triggered:,} triggered images not of the target class"
        )


def predict(model: nn.Module, images: Tensor, *, logits: bool = False, batch_size: int | None = None) -> Tensor:
    """Probabilities (N, K) of each class, float32, on the CPU, in input order; with `logits=True` the raw logits.

    images: float (N, C, H, W) in [0, 1], on any device; the model's device decides where the work is done. Neither
    weights nor mode are changed: a model in train mode is run as if in eval mode, with a warning. Raises ValueError for
    images outside [0, 1], NaN or none, and for a model whose output is not (N, K). Lab 00.
    """
    check_images(images)
    return (
        forward(eval_mode(model), images, batch_size)
        if logits
        else forward(eval_mode(model), images, batch_size).softmax(1)
    )


@torch.no_grad()
def forward(model: nn.Module, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits (N, K) of a model in eval mode, float32 on the CPU: batches, autocast and memory layout in one place.

    Unlike `predict` it doesn't look at the images: superimposed images leave [0, 1] on purpose.
    """
    device = device_of(model)
    size = batch_size or BATCH[device.type]
    out = []
    with device.autocast():
        for batch in images.split(size):
            logits = model(device.layout(batch))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(
                    f"model: expected logits (N, K), here ({len(batch)}, K); got {got}. Flatten its output, or wrap it."
                )
            out.append(logits.float())
    return torch.cat(out).cpu()


def eval_mode(model: nn.Module) -> nn.Module:
    """The model itself if all of it is in eval mode; else a warning and a copy that is."""
    if not any(part.training for part in model.modules() if list(part.children()) == [] or part is model):
        return model
    warnings.warn(
        "model: expected eval mode; got train mode, in which batch normalisation makes each answer depend on the rest "
        "of the batch. Going on with a copy in eval mode: call model.eval() first.",
        stacklevel=3,
    )
    return copy.deepcopy(model).eval()


def evaluate(
    model: nn.Module,
    data: ImageSet,
    trigger: Callable[[Tensor], Tensor] | None = None,
    target: int | None = None,
) -> Report:
    """CA on `data`; with a trigger and its target class also ASR and RA, over the images not of that class.

    Raises ValueError when only one of trigger and target is given, or the target is not a class. Lab 02.
    """
    if (trigger is None) != (target is None):
        raise ValueError("evaluate: expected both trigger and target, or neither; got one. ASR needs to know both.")
    predicted = predict(model, data.images).argmax(1)
    clean_accuracy = share(predicted == data.labels.cpu())
    if trigger is None or target is None:
        return Report(clean_accuracy, None, None, len(data), 0)
    check_target(target, len(data.classes))
    others = data[data.labels != target]
    if not len(others):
        raise ValueError(f"evaluate: expected images that are not of the target class {target}; got none. Add some.")
    predicted = predict(model, trigger(others.images)).argmax(1)
    return Report(
        clean_accuracy, share(predicted == target), share(predicted == others.labels.cpu()), len(data), len(others)
    )


def check_target(target: int, classes: int) -> int:
    """The target as an int, if it is one of the classes; else a ValueError."""
    if int(target) != target or not 0 <= target < classes:
        raise ValueError(f"target: expected a class from 0 to {classes - 1}; got {target!r}.")
    return int(target)


def share(hits: Tensor) -> float:
    """The share of True in a bool tensor."""
    return float(hits.double().mean())


# --- a detector's errors: scores where LOW means suspicious, as entropy does -----------------------------------------


@dataclass(frozen=True)
class Detection:
    """What a detector that flags score <= threshold gets wrong. frr: of clean inputs; far: of triggered ones."""

    threshold: float
    frr: float
    far: float
    auc: float
    n_clean: int
    n_triggered: int

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.3f}: FRR {self.frr:.2%} of {self.n_clean:,} clean, "
            f"FAR {self.far:.2%} of {self.n_triggered:,} triggered; AUC {self.auc:.4f}"
        )


def detection(clean_scores: Tensor, triggered_scores: Tensor, threshold: float) -> Detection:
    """FRR, FAR and AUC of "flag what scores at or below the threshold". Scores are 1-d. Lab 05."""
    frr, far = share(clean_scores <= threshold), share(triggered_scores > threshold)
    auc = area_under_roc(clean_scores, triggered_scores)
    return Detection(float(threshold), frr, far, auc, len(clean_scores), len(triggered_scores))


def area_under_roc(clean_scores: Tensor, triggered_scores: Tensor) -> float:
    """Chance that a random clean input scores above a random triggered one, ties counted half (Mann-Whitney)."""
    ordered = triggered_scores.double().sort().values
    below = torch.searchsorted(ordered, clean_scores.double(), right=False)
    not_above = torch.searchsorted(ordered, clean_scores.double(), right=True)
    return float((below + not_above).double().mean() / 2 / len(ordered))


def roc(clean_scores: Tensor, triggered_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """thresholds, FRR, FAR: three 1-d tensors, one entry for each score that occurs, thresholds rising."""
    thresholds = torch.cat([clean_scores, triggered_scores]).double().unique()
    clean, triggered = clean_scores.double().sort().values, triggered_scores.double().sort().values
    frr = torch.searchsorted(clean, thresholds, right=True).double() / len(clean)
    far = 1 - torch.searchsorted(triggered, thresholds, right=True).double() / len(triggered)
    return thresholds, frr, far
