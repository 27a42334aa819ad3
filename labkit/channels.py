"""The channels of a layer, the "neurons" of the pruning papers: how active is each, and how is one silenced?

    layer_outputs     what the layer says to some images, batch by batch
    activity, peaks   each channel's mean and largest value over them
    silenced          a copy of the model in which some channels say exactly 0
    what_follows      the layers behind a layer, so that they can be run alone on kept features
    split             the model in two: up to a layer, and what follows

A convolution's channel can't be silenced by zeroing its kernel: the batch normalisation behind it turns a constant 0
into `bias - weight * mean / std`. So a `Mask` of ones and zeros multiplies the layer's output, after normalisation and
ReLU. Through a zero no gradient flows either: whatever training does to the channel's weights, it stays silent.
Used by attackers and defenders alike (Lab 06).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from labkit.device import device_of
from labkit.metrics import BATCH
from labkit.models import named_layer


class Mask(nn.Module):
    """Multiplies channel i of (N, C, ...) by keep[i]: 1 or, for a silenced channel, 0. Nothing in it is trained."""

    keep: Tensor

    def __init__(self, keep: Tensor):
        super().__init__()
        self.register_buffer("keep", keep.float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        return f"{int((self.keep == 0).sum())} of {len(self.keep)} channels silenced"


def last_block(model: nn.Module) -> str:
    """The name of the model's last block: "block3" for `small_cnn`. ValueError, with its layers, if it has none."""
    blocks = [name for name, _ in model.named_children() if name.startswith("block")]
    if not blocks:
        named_layer(model, "block3")  # raises, and lists the layers there are
    return blocks[-1]


@torch.no_grad()
def layer_outputs(model: nn.Module, images: Tensor, layer: str) -> Iterator[Tensor]:
    """The outputs (B, C, H, W) of the layer, one batch of images (N, C', H', W') at a time, on the model's device.

    model: in eval mode. Raises ValueError for a layer that the model has not, or whose output is no tensor (B, C, ...).
    """
    device, said = device_of(model), []
    hook = named_layer(model, layer).register_forward_hook(lambda _module, _inputs, output: said.append(output))
    try:
        for batch in images.split(BATCH[device.type]):
            with device.autocast():
                model(device.layout(batch))
            output = said.pop()
            if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(batch):
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer {layer!r}: expected an output (B, C, ...) with B = {len(batch)}; got {got}.")
            yield output
    finally:
        hook.remove()


def activity(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Mean output of each channel over all images and positions, float32 (C,) on the CPU."""
    sums = [
        output.float().flatten(2).mean(2).sum(0) for output in map(with_positions, layer_outputs(model, images, layer))
    ]
    return (torch.stack(sums).sum(0) / len(images)).cpu()


def peaks(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Largest output of each channel over all images and positions, float32 (C,) on the CPU."""
    tops = [
        output.float().flatten(2).amax((0, 2)) for output in map(with_positions, layer_outputs(model, images, layer))
    ]
    return torch.stack(tops).amax(0).cpu()


def silenced(model: nn.Module, layer: str, channels: Tensor, count: int) -> nn.Module:
    """A copy of the model in which these channels (indices) of the layer's `count` say exactly 0, now and always.

    The copy has a `Mask` as the last part of that layer; `named_layer(copy, layer)` is the layer with its mask.
    """
    made = copy.deepcopy(model)
    part = named_layer(made, layer)
    keep = torch.ones(count, device=device_of(made).name)
    keep[channels.to(keep.device)] = 0
    if plain_chain(part) and not hasattr(part, "mask"):
        part.add_module("mask", Mask(keep))
    else:
        made.set_submodule(layer, nn.Sequential(part, Mask(keep)))
    return made.train(model.training)


def what_follows(model: nn.Module, layer: str) -> list[nn.Module]:
    """The model's layers behind this one, in order; running them on its output gives the logits.

    Raises ValueError where that can't be known: everything around the layer must be a plain nn.Sequential.
    """
    named_layer(model, layer)
    steps, owner = [], model
    for name in layer.split("."):
        if not plain_chain(owner):
            raise ValueError(
                f"layer {layer!r}: expected a chain (nn.Sequential) around it, so that what follows can run alone; "
                f"got {type(owner).__name__} with a forward of its own. Name a layer of a chain, or wrap the model."
            )
        names = list(owner._modules)
        steps = list(owner._modules.values())[names.index(name) + 1 :] + steps
        owner = owner.get_submodule(name)
    return [part for step in steps if step is not None for part in _unwrapped(step)]


def split(model: nn.Module, layer: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The model up to and with this layer, and the layers behind it: the second part, run on what the first says, gives
    the logits. The parts are the model's own, not copies. Raises ValueError as `what_follows` does."""
    behind = what_follows(model, layer)
    whole = _unwrapped(model)
    return nn.Sequential(*whole[: len(whole) - len(behind)]), nn.Sequential(*behind)


def plain_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _unwrapped(module: nn.Module) -> list[nn.Module]:
    if not plain_chain(module):
        return [module]
    inside = [part for part in module._modules.values() if part is not None]  # children() would drop repeated ones
    return [part for inner in inside for part in _unwrapped(inner)]


def with_positions(output: Tensor) -> Tensor:
    """A layer's output (B, C, ...), with at least one position: that of a linear layer becomes (B, C, 1)."""
    return output if output.ndim > 2 else output[:, :, None]
