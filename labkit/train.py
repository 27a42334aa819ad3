"""train("small_cnn", data): a training loop that fits on a screen, with everything on the device.

The usual loop decodes, augments and collates images one by one in worker processes. Ours keeps the whole set on the
device as one tensor, augments a batch with a few tensor operations, and runs convolutions in the number format that
the device is fast at. Lab 01 builds this loop; `benchmarks/train_speed.py` compares the two.

`augment.py` tells what augmentation does to a trigger. No label smoothing: it flattens the entropies that STRIP reads
and the losses that ABL ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.augment import augment, some_compressed
from labkit.data import ImageSet
from labkit.device import Device, device_of, generator, pick_device
from labkit.models import Normalise, build


@dataclass(frozen=True)
class TrainConfig:
    """How to train. SGD with Nesterov momentum; the learning rate rises linearly, then falls linearly to zero."""

    epochs: int = 8
    batch_size: int = 128  # images
    lr: float = 0.1  # highest learning rate, for the mean loss of a batch
    warmup: float = 0.2  # share of the steps in which the rate rises
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on convolution and linear weights
    shift: int = 2  # pixels, up to, in each direction
    flip: bool = False  # mirror half of the images left to right
    jpeg: float = 0.0  # share of the images that go through a JPEG file's losses, quality 50 to 95 (`labkit/jpeg.py`)

    def __post_init__(self):
        if (
            self.epochs < 1
            or self.batch_size < 2
            or not self.lr > 0
            or not 0 <= self.warmup < 1
            or self.shift < 0
            or not 0 <= self.jpeg <= 1
        ):
            raise ValueError(
                f"TrainConfig: expected epochs >= 1, batch_size >= 2, lr > 0, 0 <= warmup < 1, shift >= 0, "
                f"0 <= jpeg <= 1; got {self}."
            )


RECIPES = {  # by ImageSet.name; measured by benchmarks/victims.py
    "signs": TrainConfig(epochs=7),  # at 5, one seed of three did not learn the patch at all
    "digits": TrainConfig(epochs=30, shift=1),
    "mnist": TrainConfig(epochs=2),
    "gtsrb": TrainConfig(epochs=7),
    "cifar10": TrainConfig(epochs=22, batch_size=256, lr=0.2, flip=True, jpeg=0.3),
}


@dataclass(frozen=True)
class Epoch:
    """What one epoch did: its number from 1, mean loss (nats) and accuracy on the augmented batches, time."""

    number: int
    loss: float
    accuracy: float
    seconds: float

    def __str__(self) -> str:
        return f"epoch {self.number}: loss {self.loss:.3f}, accuracy {self.accuracy:.1%}, {self.seconds:.1f} s"


def train(
    model: str | nn.Module,
    data: ImageSet,
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    callback: Callable[[Epoch], None] | None = None,
    progress: bool = True,
) -> nn.Module:
    """A model trained on `data`, in eval mode, on the device it was trained on.

    model: an architecture's name (fresh weights from `seed`, on `pick_device()`), or a module, which is trained in
    place where it is. config: by default the recipe of `data.name`. loss: (logits float32 (B, K), labels int64
    (B,)) -> the batch's mean. callback: called with an `Epoch` after each.
    On the CPU the same seed gives the same weights, bit for bit. Raises ValueError for an unknown architecture and
    FloatingPointError, with the step, when the loss is no longer finite. Labs 00 and 01.
    """
    config = config or RECIPES.get(data.name, TrainConfig())
    model = fresh(model, data, seed) if isinstance(model, str) else model
    device = device_of(model)
    device.place(model)
    images, labels = data.images.to(device), data.labels.to(device)
    rng = generator(seed)
    steps = max(1, round(len(data) / config.batch_size))
    optimizer = sgd(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(config.warmup, config.epochs * steps))

    model.train()
    with tqdm(total=config.epochs * steps, desc="training", unit="batch", disable=not progress, leave=False) as bar:
        for number in range(1, config.epochs + 1):
            start, total_loss, right = (
                time.perf_counter(),
                torch.zeros((), device=device),
                torch.zeros((), device=device),
            )
            for batch in torch.randperm(len(data), generator=rng).tensor_split(steps):
                batch = batch.to(device)
                logits, value = step(model, varied(images[batch], config, rng), labels[batch], optimizer, device, loss)
                schedule.step()
                total_loss += value.detach() * len(batch)
                right += (logits.argmax(1) == labels[batch]).sum()
                bar.update()
            mean = float(total_loss) / len(data)
            if not mean < float("inf"):
                raise FloatingPointError(
                    f"training: expected a finite loss; got {mean} in epoch {number} (steps {(number - 1) * steps + 1} "
                    f"to {number * steps}). Lower lr (now {config.lr}) or check the images."
                )
            epoch = Epoch(number, mean, float(right) / len(data), time.perf_counter() - start)
            bar.set_postfix_str(f"loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.1%}")
            if callback:
                callback(epoch)
    return model.eval()


def fresh(arch: str, data: ImageSet, seed: int) -> nn.Module:
    """An untrained network of that name for these images and classes, on `pick_device()`: where `train` begins."""
    model = build(arch, data.images.shape[1], len(data.classes), seed).to(pick_device())
    if isinstance(layer := getattr(model, "normalise", None), Normalise):
        layer.fit(data.images)
    return model


def step(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer, device: Device, loss=F.cross_entropy
) -> tuple[Tensor, Tensor]:
    """One gradient step. Changes the model; returns the logits (B, K) and the mean loss."""
    with device.autocast():
        logits = model(device.layout(images)).float()
    value = loss(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    optimizer.step()
    return logits.detach(), value


def sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on matrices and kernels only, not on biases and normalisation."""
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())  # one pass over the weights
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)


def one_cycle(warmup: float, steps: int) -> Callable[[int], float]:
    """The learning rate's factor at each step: linearly up to 1 for the warm-up, then linearly down to 0."""
    peak = max(1.0, warmup * steps)
    return lambda i: min((i + 1) / peak, (steps - i) / max(1.0, steps - peak + 1), 1.0)


def varied(images: Tensor, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """A batch (B, C, H, W) as a training step sees it: moved, mirrored and compressed as the config says."""
    moved = augment(images, config.shift, config.flip, rng)
    return some_compressed(moved, config.jpeg, rng) if config.jpeg else moved
