"""Pruning: can the backdoor be cut out with the neurons that clean images don't use?

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks". A
backdoor needs neurons that fire for the trigger. If they sleep on clean images, then cutting the least active
neurons cuts the backdoor first and the network's real work last.

    activity         mean activation of each channel of one layer on clean images
    dormant_first    the order of pruning: least active first
    pruning_curve    accuracy with the first 0, 1, 2, ... channels of that order silenced
    how_many         the largest number that costs at most `max_drop` of accuracy on the defender's images
    prune            the model with that many channels silenced

The defender has: the model, some clean images with labels. Not: the trigger, or whether there is one.
Ours differs: the paper prunes step by step until its threshold is passed; we know the whole curve from one pass over
the images and take the last point within the threshold. Fails when: clean and triggered images share neurons, by chance
or by design (`PruningAware`); what it cuts then is the network's real work. Lab 06.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.channels import last_block, layer_outputs, silenced, what_follows
from labkit.data import ImageSet, check_images
from labkit.device import device_of
from labkit.metrics import BATCH, eval_mode

# Layers that treat each channel alone and turn zeros into zeros: silencing before or behind them is the same.
CHANNELWISE = (nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU)


@dataclass(frozen=True, eq=False)
class PruneResult:
    """model: a copy with `pruned` channels of `layer` silenced. history: the defender's accuracy, all of the curve.

    activity float32 (C,): each channel's mean activation. order int64 (C,): channels, least active first; the first
    `pruned` of them are silent. history float32 (C+1,): accuracy on the clean set with n = 0 ... C channels silenced.
    """

    model: nn.Module
    history: Tensor
    activity: Tensor
    order: Tensor
    pruned: int
    layer: str
    max_drop: float

    def __str__(self) -> str:
        done = (
            f"{self.pruned} of {len(self.order)} channels of {self.layer} silenced"
            if self.pruned
            else (f"nothing pruned, the model is unchanged: no channel of {self.layer} can go")
        )
        return (
            f"Pruning: {done}; accuracy on the defender's clean images {float(self.history[0]):.1%} before, "
            f"{float(self.history[self.pruned]):.1%} after (allowed drop {self.max_drop:.1%})"
        )


def dormant_first(means: Tensor) -> Tensor:
    """Channel indices int64 (C,) in rising order of mean activation (C,); equal ones keep their order."""
    return means.argsort(stable=True)


def pruning_curve(model: nn.Module, images: Tensor, labels: Tensor, order: Tensor, layer: str | None = None) -> Tensor:
    """Share of images that get their label with the first n channels of `order` silenced: float32 (len(order) + 1,).

    images (N, C, H, W) in [0, 1]; labels int64 (N,); layer: by default the last block. Entry n silences order[:n].
    The defender calls it with clean images. The evaluator, who knows the trigger, also draws ASR with it (triggered
    images of the other classes, labels all target) and RA (the same images, true labels).
    """
    check_images(images)
    model, layer = eval_mode(model), layer or last_block(model)
    return curve_of_features(model, torch.cat(list(layer_outputs(model, images, layer))), labels, order, layer)


@torch.no_grad()
def curve_of_features(model: nn.Module, features: Tensor, labels: Tensor, order: Tensor, layer: str) -> Tensor:
    """`pruning_curve` from the layer's outputs (N, C, H, W): the layers up to there are not run again.

    All masks go through the rest of the network in batches. In the models here the rest begins with a pooling of each
    channel, which commutes with silencing, so it runs once and only the linear layer sees every mask.
    """
    device, rest = device_of(model), what_follows(model, layer)
    n, channels = features.shape[:2]
    rank = torch.full((channels,), len(order))  # place in the order; a channel not in it is never silenced
    rank[order] = torch.arange(len(order))
    masks = (rank >= torch.arange(len(order) + 1)[:, None]).to(features)  # (M, C)
    right = torch.zeros(len(masks))
    with device.autocast():
        while rest and isinstance(rest[0], CHANNELWISE):
            features, rest = torch.cat([rest[0](part) for part in features.split(BATCH[device.type])]), rest[1:]
        masks = masks.view(len(masks), 1, channels, *[1] * (features.ndim - 2))  # (M, 1, C, 1, 1)
        at_once = max(1, 2**22 // features.numel() * n // BATCH[device.type])  # masks that go together
        for x, y in zip(features.split(BATCH[device.type]), labels.split(BATCH[device.type]), strict=True):
            for i in range(0, len(masks), at_once):
                logits = (masks[i : i + at_once] * x).flatten(0, 1)  # (m, B, C, H, W) -> (m*B, C, H, W)
                for step in rest:
                    logits = step(logits)
                hits = logits.float().argmax(1).view(-1, len(x)).cpu() == y.cpu()  # (m, B)
                right[i : i + at_once] += hits.sum(1)
    return right / n


def how_many(curve: Tensor, max_drop: float) -> int:
    """The largest n with curve[n] >= curve[0] - max_drop; at least one channel stays."""
    return int((curve[:-1] >= curve[0] - max_drop - 1e-6).nonzero().max())


def prune(model: nn.Module, clean: ImageSet, *, layer: str | None = None, max_drop: float = 0.04) -> PruneResult:
    """A copy of the model with as many dormant channels silenced as the clean set allows.

    layer: by default the last block, where the paper prunes too: early layers hold edges and colours that everything
    uses. max_drop: share of the clean set that may be lost, 0.04 as in the paper's results ("about 4%"). The test set
    has no say. Silent channels stay silent in later fine-tuning (`labkit.channels` says how). The model is untouched.
    Raises ValueError for a layer that the model has not, an empty clean set, max_drop outside [0, 1).
    """
    if not 0 <= max_drop < 1:
        raise ValueError(f"max_drop: expected a share in [0, 1); got {max_drop!r}. For 4 points write 0.04.")
    check_clean(clean)
    ready, layer = eval_mode(model), layer or last_block(model)
    features = torch.cat(list(layer_outputs(ready, clean.images, layer)))  # (N, C, H, W): the one pass
    means = features.float().flatten(2).mean((0, 2)).cpu() if features.ndim > 2 else features.float().mean(0).cpu()
    order = dormant_first(means)
    curve = curve_of_features(ready, features, clean.labels, order, layer)
    count = how_many(curve, max_drop)
    pruned = silenced(model, layer, order[:count], len(order))  # a copy of its own: nothing later can change it
    return PruneResult(pruned.eval(), curve, means, order, count, layer, max_drop)


def check_clean(clean: ImageSet, least: int = 1) -> ImageSet:
    """The clean set, if it has `least` images; else a ValueError. Classes without an image earn a warning."""
    if len(clean) < least:
        raise ValueError(f"clean: expected at least {least} images; got {len(clean)}. Give the defender more.")
    if absent := sorted(set(range(len(clean.classes))) - set(clean.labels.tolist())):
        names = ", ".join(clean.classes[k] for k in absent[:5]) + (" ..." if len(absent) > 5 else "")
        warnings.warn(
            f"clean: expected images of all {len(clean.classes)} classes; none of {names}. What only they need "
            "looks useless to the defence and may be lost. Add some.",
            stacklevel=3,
        )
    return clean
