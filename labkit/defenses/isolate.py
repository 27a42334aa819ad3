"""Which training images does a network learn suspiciously fast? The first half of anti-backdoor learning (ABL).

Li et al. 2021, "Anti-Backdoor Learning", Section 3. "The trigger means the target" is an easier task than telling the
classes apart, so the loss of poisoned images falls within the first passes, and that of clean ones over many.

    image_losses            the cross-entropy l of every training image, in one batched pass, without augmentation
    local_gradient_ascent   sign(l - gamma) l for each image: below gamma its loss is pushed up again (LGA)
    flooding                |L - b| + b for the batch's mean L: the same push for all of the batch (Ishida et al. 2020)
    train_early             train a fresh network for a few epochs with such a loss; l of every image after each
    lowest                  the share of the images whose loss was lowest

The defender has: the training set, as it came. Not: a clean image, a trigger, a target, the poisoning rate, or whether
there is any poison at all. Fails when: poisoned images are not the fastest learned (few of them, a faint or a
clean-label trigger), or a class is as easy as a trigger. Lab 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.data import ImageSet
from labkit.metrics import eval_mode, forward
from labkit.train import Epoch, TrainConfig, fresh, train

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, K), labels (B,) -> the batch's mean, as `train` takes it
EARLY = TrainConfig(epochs=2, lr=0.02, shift=0)  # a tenth of the usual rate: at 0.1 some clean classes come first too


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """l in nats of each image: logits (B, K), labels (B,) -> (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def image_losses(model: nn.Module, data: ImageSet) -> Tensor:
    """The cross-entropy in nats of every image, float32 (N,) on the CPU, in input order; the model is left as it is."""
    return cross_entropies(forward(eval_mode(model), data.images), data.labels.cpu())


def local_gradient_ascent(gamma: float = 0.5) -> Loss:
    """LGA, for `train`: the mean of sign(l - gamma) l over a batch's images; gamma in nats, the paper's 0.5.

    An image whose loss is above gamma descends, one below it ascends. The sign is each image's own: the sign of the
    batch's mean would push all images alike, which is flooding.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        each = cross_entropies(logits, labels)
        return ((each.detach() - gamma).sign() * each).mean()

    return loss


def flooding(level: float = 0.5) -> Loss:
    """Flooding, for `train`: |L - b| + b, where L is the mean loss of a batch and b the level, in nats."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (F.cross_entropy(logits, labels) - level).abs() + level

    return loss


@dataclass(frozen=True, eq=False)
class EarlyTraining:
    """model: after the last epoch, in eval mode. losses float32 (epochs, N): every image's, in nats, after each epoch;
    their mean over the epochs is steadier than any of them."""

    model: nn.Module
    losses: Tensor


def train_early(
    training_set: ImageSet,
    *,
    arch: str = "small_cnn",
    loss: Loss | None = None,
    config: TrainConfig = EARLY,
    seed: int = 0,
    progress: bool = True,
) -> EarlyTraining:
    """A short training of a fresh network, and what it believed of each image after each epoch.

    loss: what the training minimises, by default `flooding()`. config: a low rate, no augmentation: see `EARLY`.
    Raises FloatingPointError, with the epoch, when a loss is not finite.
    """
    network = fresh(arch, training_set, seed)
    rows: list[Tensor] = []

    def look(_epoch: Epoch) -> None:
        rows.append(image_losses(network.eval(), training_set))
        network.train()

    train(network, training_set, config=config, seed=seed, loss=loss or flooding(), callback=look, progress=progress)
    return EarlyTraining(network, check_finite(torch.stack(rows)))


def lowest(losses: Tensor, share: float) -> Tensor:
    """The round(share * N) images of lowest loss: losses (N,) -> int64 indices (n,), lowest first, ties in order."""
    return losses.argsort(stable=True)[: round(share * len(losses))]


def check_finite(losses: Tensor) -> Tensor:
    """The losses (epochs, N), if all are finite; else a FloatingPointError that names the epoch."""
    if not losses.isfinite().all():
        epoch = int((~losses.isfinite()).any(1).nonzero()[0]) + 1
        raise FloatingPointError(
            f"isolation: expected finite losses; got {int((~losses[epoch - 1].isfinite()).sum())} others after epoch "
            f"{epoch}. Lower the learning rate of the early training."
        )
    return losses
