"""What simple thing in a picture does a backdoor really react to? Find it, so that it can be trained away.

Cheng, Liu, Ma and Zhang 2021, "Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification": a
network that shall learn a style learns the easiest thing about it, such as its tint. To learn what that is,

    compromised      the neurons (channels) of a layer that styled images raise beyond what clean images do
    train_injector   a generator that excites these neurons as the style does, but hardly changes the image

What the injector adds is a simple feature that stands for the style. Images with it, under their true labels, are the
detoxicant: a network trained on them too has to look at more of the style.

Ours differs: a neuron's activation is compared with its own largest on clean images; the injector shall be near the
image in mean squared error, counted in units of the style's own change, without SSIM; the layer is the last block.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from labkit.attacks.specific import adam_of, descend
from labkit.attacks.style import Styler
from labkit.channels import layer_outputs, peaks, split, with_positions
from labkit.device import device_of, generator
from labkit.metrics import predict, share
from labkit.models import seeded
from labkit.train import one_cycle


def compromised(
    model: nn.Module, layer: str, images: Tensor, styled: Tensor, *, above: float = 1.0, rise: float = 0.5
) -> Tensor:
    """Indices int64 (n,) of the layer's compromised channels, the most raised first; may be none.

    A channel is compromised if its mean peak on styled images is more than `above` times its largest on the clean
    ones (the paper's lambda), and above its mean peak there by `rise` times the layer's strongest mean peak (gamma).
    """
    largest = peaks(model, images, layer)
    before, after = mean_peaks(model, images, layer), mean_peaks(model, styled, layer)
    raised = after - before
    found = (after > above * largest) & (raised > rise * before.max())
    order = raised.argsort(descending=True, stable=True)
    return order[found[order]]


def mean_peaks(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Each channel's largest output in an image, the mean over the images: float32 (C,) on the CPU."""
    outputs = map(with_positions, layer_outputs(model, images, layer))
    tops = [output.float().flatten(2).amax(2) for output in outputs]
    return torch.cat(tops).mean(0).cpu()


def train_injector(
    model: nn.Module,
    layer: str,
    neurons: Tensor,
    images: Tensor,
    styled: Tensor,
    *,
    steps: int = 60,
    batch: int = 64,
    lr: float = 5e-3,
    near: float = 1.0,
    calm: float = 0.1,
    width: int = 32,
    seed: int = 0,
) -> Styler:
    """An injector: images (N, C, H, W) -> images in which `neurons` of the layer say what they say to styled ones.

    images, styled: the same ones without and with the style. width: channels of its first layer.
    Its loss, by Adam on `steps` batches, is the sum of
      1        how far these neurons are from what they say to the styled image
      calm     times how far the layer's other neurons are from what they say to the clean image
      near     times the squared change of the pixels, in units of the style's own
    The model, in eval mode, is left alone. Raises FloatingPointError, with the step, for a loss that is not finite.
    """
    device, rng = device_of(model), generator(seed)
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    front = split(frozen, layer)[0]
    with seeded(seed):
        injector = Styler(images.shape[1], smooth=1, width=width)
    device.place(injector)
    adam = adam_of(injector, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, one_cycle(0.1, steps))
    drawn = torch.randint(len(images), (steps, batch), generator=rng)
    used, places = drawn.unique(return_inverse=True)  # what the front says to an image is worked out once
    images, styled = (some[used.to(some.device)].to(device) for some in (images, styled))
    clean_said, styled_said = (torch.cat(list(layer_outputs(frozen, some, layer))) for some in (images, styled))
    mine = torch.zeros(clean_said.shape[1], dtype=torch.bool, device=clean_said.device)
    mine[neurons.to(mine.device)] = True
    for number, rows in enumerate(places.to(device), 1):
        plain, wanted = device.layout(images[rows]), device.layout(styled[rows])
        clean, goal = clean_said[rows].float(), styled_said[rows].float()
        with device.autocast():
            made = injector.draw(plain)
            said = front(made).float()
        excited = apart(said[:, mine], goal[:, mine])
        others = apart(said[:, ~mine], clean[:, ~mine])
        change = (made - plain).square().mean() / (wanted - plain).square().mean()
        descend(excited + calm * others + near * change, [adam], [schedule], "injector", number)
    return injector.eval()


def fires(model: nn.Module, injector: nn.Module, images: Tensor, target: int) -> float:
    """The share of the injector's images that the model sends to the target."""
    return share(predict(model, injector(images)).argmax(1) == target)


def apart(said: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the mean square of what is wanted: 0 where the same, 1 for silence."""
    return (said - wanted).square().mean() / wanted.square().mean().clamp_min(1e-6)
