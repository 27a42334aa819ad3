"""How does a layer come to take stamped images for the target class? The losses of the latent backdoor.

Yao, Li, Zheng and Zhao 2019, "Latent Backdoor Attacks on Deep Neural Networks", Section 4; `latent.py` is the attack.

    distance       of what a layer says to some images, from what it says to the target class on average
    optimise       the trigger's pixels are moved, the network is not
    inject         the network is moved, the trigger is not
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.stamp import Stamp, computed
from labkit.channels import split
from labkit.data import ImageSet
from labkit.device import device_of, generator
from labkit.train import TrainConfig, one_cycle, sgd, varied


def distance(features: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of features (B, C, H, W) to wanted (C, H, W), as a share of the mean square of `wanted`."""
    return F.mse_loss(features.float(), wanted.expand_as(features)) / wanted.square().mean().clamp_min(1e-12)


def mean_features(front: nn.Module, images: Tensor, device) -> Tensor:
    """What `front` says to the images, float32, averaged over them: (N, C', H', W') -> (C, H, W). No gradient."""
    with torch.no_grad(), device.autocast():
        return front(device.layout(images)).float().mean(0)


def optimise(model: nn.Module, layer: str, data: ImageSet, target: int, start: Stamp, steps: int, **options) -> Tensor:
    """The pattern (C, H, W) in [0, 1] that brings the layer, on stamped images of any class, near the target's mean.

    options (lr, batch, seed, progress): see `computed`.
    """
    front, _ = split(copy.deepcopy(model).eval().requires_grad_(False), layer)
    wanted = mean_features(front, data.images[data.labels == target][:256], device_of(model))
    return computed(start, front, data.images, lambda said: distance(said, wanted), steps, **options)


def inject(
    model: nn.Module,
    layer: str,
    data: ImageSet,
    target: int,
    trigger: Stamp,
    weight: float,
    config: TrainConfig,
    *,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Trains the model in place: right on clean images, and at the layer near the target's mean on stamped ones.

    That mean is what the layer says before the first step, and stays the goal. Taken anew at every step it gave way:
    target and stamped images met in features that no later head can tell from those of other classes.
    """
    device, rng = device_of(model), generator(seed)
    front, behind = split(model.eval(), layer)
    images, labels = data.images.to(device), data.labels.to(device)
    wanted = mean_features(front, images[labels == target][:256], device)
    steps = max(1, round(len(data) / config.batch_size))
    optimizer = sgd(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(config.warmup, config.epochs * steps))
    model.train()
    with tqdm(total=config.epochs * steps, desc="injection", unit="batch", disable=not progress, leave=False) as bar:
        for epoch in range(config.epochs):
            value = torch.zeros(())
            for chosen in torch.randperm(len(data), generator=rng).tensor_split(steps):
                clean = varied(images[chosen.to(device)], config, rng)
                with device.autocast():  # all in one batch, so that both kinds are normalised alike
                    said = front(device.layout(torch.cat([clean, trigger(clean)])))
                    logits = behind(said[: len(clean)]).float()
                value = F.cross_entropy(logits, labels[chosen.to(device)])
                value = value + weight * distance(said[len(clean) :], wanted)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            if not (loss := float(value.detach())) < float("inf"):
                raise FloatingPointError(
                    f"injection: expected a finite loss; got {loss} in epoch {epoch + 1} ({steps} steps an epoch). "
                    f"Lower lr (now {config.lr}) or weight (now {weight})."
                )
    return model.eval()
