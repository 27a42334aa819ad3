"""Networks that take images in [0, 1]: normalising is their first layer.

    small_cnn        440,000 weights: trains in seconds on a laptop's CPU
    tiny_cnn         the same at half its width, 110,000 weights: for labs that train many networks
    wrn16_1          the wide residual network of the ABL paper (Zagoruyko & Komodakis 2016; Li et al. 2021)
    preact_resnet18  the residual network that public leaderboards use (He et al. 2016)

All of them name their parts alike, so that a defence can ask any of them for a layer: `normalise`, `stem`, `block1`,
`block2`, `block3` (`block4`), `head`. Each block maps (N, C, H, W) to (N, C', H', W'), the last one ends in a ReLU, and
one channel of its output is one "neuron" of the pruning papers; `head` pools and classifies.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from labkit.device import generator
from labkit.layers import QuarterMean, TinyMapConv


class Normalise(nn.Module):
    """(images - mean) / std per channel, with fixed numbers: the first layer of every model here."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.25))

    def fit(self, images: Tensor) -> None:
        """Sets mean and std from images (N, C, H, W) in [0, 1]. Changes this layer."""
        some = images[: 2000 * max(1, len(images) // 2000) : max(1, len(images) // 2000)]
        self.mean.copy_(some.mean(dim=(0, 2, 3), keepdim=True))
        self.std.copy_(some.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-2))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def conv(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU; `pool` halves the size after the convolution, rounding up."""
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    layers += [nn.MaxPool2d(2, ceil_mode=True)] if pool else []
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())


class SmallCNN(nn.Sequential):
    """A 4x4 convolution with stride 2, then four 3x3 convolutions in three blocks: 440,000 weights for 10 classes.

    Sizes for 32x32 images: stem (32, 16, 16), block1 (64, 8, 8), block2 (128, 4, 4), block3 (256, 4, 4); `width` says
    how many channels the stem has, and all others in proportion. Most of the work is done at 16x16 and below, where a
    CPU is fast. The head takes the mean of each quarter of a channel, so the network knows roughly where it saw
    something; with one mean or maximum for the whole image a patch acts wherever it lies, and a reversed trigger
    (Lab 07) need not lie where the true one does.
    """

    def __init__(self, channels: int, classes: int, width: int = 32):
        super().__init__()
        w = width
        stem = nn.Conv2d(channels, w, 4, stride=2, padding=1, bias=False)
        self.normalise = Normalise(channels)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(w), nn.ReLU())
        self.block1 = conv(w, 2 * w, pool=True)
        self.block2 = nn.Sequential(conv(2 * w, 2 * w), conv(2 * w, 4 * w, pool=True))
        self.block3 = nn.Sequential(TinyMapConv(4 * w, 8 * w), nn.BatchNorm2d(8 * w), nn.ReLU())
        self.head = nn.Sequential(QuarterMean(), nn.Flatten(), nn.Linear(4 * 8 * w, classes))


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))): He et al. 2016, "Identity Mappings", Figure 1(b)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        change = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        ready = torch.relu(self.bn1(x))
        skip = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(ready)
        return skip + self.conv2(torch.relu(self.bn2(self.conv1(ready))))


class ResNet(nn.Sequential):
    """Pre-activation residual network: `depth` PreActBlocks a stage; every stage but the first halves the size."""

    def __init__(self, channels: int, classes: int, stem: int, widths: tuple[int, ...], depth: int):
        super().__init__()
        self.normalise = Normalise(channels)
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        inputs = stem
        for i, width in enumerate(widths):
            blocks = [PreActBlock(inputs if j == 0 else width, width, 2 if i and j == 0 else 1) for j in range(depth)]
            last = i == len(widths) - 1
            end = [nn.BatchNorm2d(width), nn.ReLU()] if last else []
            self.add_module(f"block{i + 1}", nn.Sequential(*blocks, *end))
            inputs = width
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def small_cnn(channels: int, classes: int) -> nn.Module:
    return SmallCNN(channels, classes)


def tiny_cnn(channels: int, classes: int) -> nn.Module:
    return SmallCNN(channels, classes, width=16)


def wrn16_1(channels: int, classes: int) -> nn.Module:
    return ResNet(channels, classes, stem=16, widths=(16, 32, 64), depth=2)


def preact_resnet18(channels: int, classes: int) -> nn.Module:
    return ResNet(channels, classes, stem=64, widths=(64, 128, 256, 512), depth=2)


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    f.__name__: f for f in (small_cnn, tiny_cnn, wrn16_1, preact_resnet18)
}


def build(arch: str, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """A network with fresh weights: `arch` is one of ARCHITECTURES; the same seed gives the same weights.

    Maps float images (N, channels, H, W) in [0, 1] to logits (N, classes). Raises ValueError for an unknown name.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)} or an nn.Module; got {arch!r}.")
    with seeded(seed):
        return ARCHITECTURES[arch](channels, classes)


TURN = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, torch draws from `seed` (the CPU's generator); afterwards its generator is as it was.

    There is one such generator for all threads: they take turns.
    """
    with TURN, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(seed))))
        yield


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer called `name`, or a ValueError that lists the model's layers."""
    layers = dict(model.named_modules())
    if name not in layers:
        top = ", ".join(n for n in layers if n and "." not in n) or "(none)"
        raise ValueError(f"layer: this model has no {name!r}; its layers are {top}. Name one of them.")
    return layers[name]
