"""The layers for tiny maps against PyTorch's own: same outputs, same gradients, same names of weights."""

import pytest
import torch
from torch import nn

from labkit.layers import QuarterMean, TinyMapConv, patches


def images(*size: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(*size, generator=torch.Generator().manual_seed(seed))
    return made.to(memory_format=torch.channels_last)


def gradients(layer: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, gradient of x, gradient of the weight: one step in bfloat16."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.backward(upstream.to(y.dtype))
    grad = next(layer.parameters()).grad
    assert x.grad is not None and grad is not None
    return y.detach().float(), x.grad, grad


@pytest.mark.parametrize("side", (1, 3, 4))
def test_the_convolutions_gradients_are_pytorchs(side):
    ours, theirs = TinyMapConv(5, 7), nn.Conv2d(5, 7, 3, padding=1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x, upstream = images(6, 5, side, side), images(6, 7, side, side, seed=1)
    for mine, reference in zip(gradients(ours, x, upstream), gradients(theirs, x, upstream), strict=True):
        assert mine.dtype == reference.dtype and mine.shape == reference.shape
        torch.testing.assert_close(mine, reference, rtol=0.02, atol=0.02 * reference.abs().max().item())


def test_the_convolutions_own_way_is_taken_only_when_its_weights_learn_in_bfloat16():
    layer, x = TinyMapConv(2, 3), images(2, 2, 4, 4).requires_grad_()
    assert "Convolution" in layer(x).grad_fn.name()  # float32
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Convolve" in layer(x).grad_fn.name()
        assert "Convolution" in layer.requires_grad_(False)(x).grad_fn.name()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer.requires_grad_(True)(x).grad_fn is None


def test_patches_times_the_weights_is_the_convolution():
    x, layer = images(2, 3, 4, 5), TinyMapConv(3, 6)
    flat = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    torch.testing.assert_close((patches(x) @ flat).view(2, 4, 5, 6).permute(0, 3, 1, 2), layer(x))


@pytest.mark.parametrize("size", ((4, 4), (2, 2), (7, 7), (3, 5), (1, 1)))
def test_the_mean_of_quarters_is_pytorchs(size):
    x = images(3, 5, *size)
    torch.testing.assert_close(QuarterMean()(x), nn.AdaptiveAvgPool2d(2)(x).flatten(2))
