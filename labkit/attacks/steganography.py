"""How is a message hidden in an image, so that one network sees it and a person hardly does?

    MessageTrigger   an encoder: image and bits -> residual; a decoder: image -> bits; and the attacker's own message
    train_networks   both at once: the decoder reads the bits, the residual gets faint, and is of use in no other image

Tancik, Mildenhall and Ng 2020, "StegaStamp: Invisible Hyperlinks in Physical Photographs", Section 3; ISSBA
takes its networks from there. First the message alone counts, then the residual's budget shrinks, since an encoder that
must be faint from the start finds nothing that the decoder could learn from. The decoder sees images moved, mirrored
and compressed as in the recipe of the victim's owner, so that the residual outlives that.

Left to themselves the two agree on one pattern for each bit, the same in all images: on `signs` (seed 0) 85% of the
residual's energy is in its mean over the images, and the decoder reads over 99% of the bits from the residual of
another image. Such a trigger is not sample-specific. So the decoder is also asked to read *nothing*, chance for every
bit, from images with the residual of another, and from clean ones. Then it is 31%: the encoder makes use of the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.attacks.base import check_batch
from labkit.attacks.specific import SMALLEST, ImageToMap, SpecificTrigger, adam_of, batches, descend
from labkit.augment import augment, some_compressed
from labkit.data import ImageSet
from labkit.device import device_of, generator
from labkit.layers import QuarterMean
from labkit.metrics import forward
from labkit.models import conv
from labkit.train import TrainConfig, one_cycle

LOUDEST = 0.25  # the largest change of a pixel
BATCH_SIZE = 64  # images of a gradient step; the decoder sees each three times
START, RAMP = 18.0, (0.3, 0.7)  # dB before the budget shrinks; from which share of the steps to which it does


class MessageTrigger(SpecificTrigger):
    """Images (N, C, H, W) -> the same, in which `message`, float32 (bits,) of 0 and 1, is hidden."""

    message: Tensor

    def __init__(self, channels: int, message: Tensor, width: int = 32):
        super().__init__()
        self.encoder = ImageToMap(channels, channels, extra=len(message), width=width)
        self.decoder = decoder(channels, len(message), width)
        self.register_buffer("message", message.float())

    def residual(self, images: Tensor, messages: Tensor) -> Tensor:
        """What to add to each image so that it holds its message (N, bits): (N, C, H, W)."""
        return LOUDEST * torch.tanh(self.encoder(images, 2 * messages - 1))

    def draw(self, images: Tensor, of: Tensor) -> Tensor:
        return images + self.residual(of, self.message.expand(len(of), -1))  # `forward` clips

    def read(self, images: Tensor) -> Tensor:
        """What the decoder makes of images (N, C, H, W): the probability that each bit is 1, float32 (N, bits), CPU."""
        check_batch(images, SMALLEST, SMALLEST)
        return forward(self.decoder, images).sigmoid()

    def bit_accuracy(self, images: Tensor) -> Tensor:
        """The share of `message`'s bits that the decoder reads right in each image: float32 (N,), CPU; chance: 1/2."""
        return ((self.read(images) > 0.5) == self.message.cpu().bool()).float().mean(1)


def decoder(channels: int, bits: int, width: int) -> nn.Sequential:
    """Images -> logits (N, bits), float32: a network like `small_cnn`, so that what it reads a victim can learn."""
    stem = nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = [conv(width, 2 * width, pool=True), conv(2 * width, 2 * width)]
    return nn.Sequential(stem, *blocks, QuarterMean(), nn.Flatten(), nn.Linear(4 * 2 * width, bits))


def budget(progress: float, psnr: float) -> float:
    """The mean squared change that costs nothing, at `progress` in [0, 1]: falls from that of START dB to `psnr`'s."""
    first, last = RAMP
    done = min(1.0, max(0.0, (progress - first) / (last - first)))
    return 10 ** (-(START + (psnr - START) * done) / 10)


def image_loss(images: Tensor, hidden: Tensor, allowed: float) -> Tensor:
    """By how many times `allowed` the mean squared change of each image is above it; 0 below. The mean over images."""
    return F.relu((hidden - images).square().mean((1, 2, 3)) / allowed - 1).mean()


def message_loss(logits: Tensor, messages: Tensor) -> Tensor:
    """Binary cross-entropy in nats a bit. logits (M, bits), M >= N: the first N rows are to read messages (N, bits).

    The rest are to read nothing: 1/2 for every bit. That costs ln 2, which is taken off.
    """
    own, silent = logits[: len(messages)], logits[len(messages) :]
    value = F.binary_cross_entropy_with_logits(own, messages)
    if not len(silent):
        return value
    return value + F.binary_cross_entropy_with_logits(silent, torch.full_like(silent, 0.5)) - math.log(2)


def outlived(images: Tensor, recipe: TrainConfig, rng: torch.Generator) -> Tensor:
    """A batch as the owner's training will see it. A JPEG file's rounding has no gradient: it passes as if there were
    none (straight through), so that the encoder learns from compressed images, too."""
    moved = augment(images, recipe.shift, recipe.flip, rng)
    if not recipe.jpeg:
        return moved
    plain = moved.detach()
    return moved + (some_compressed(plain, recipe.jpeg, rng) - plain)


def train_networks(
    trigger: MessageTrigger,
    data: ImageSet,
    psnr: float,
    epochs: int,
    lr: float,
    recipe: TrainConfig,
    *,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Changes `trigger`: encoder and decoder learn to hide and to read messages, others for every image and step.

    psnr: dB, the faintness that the image loss asks for. epochs over `data`, lr of Adam. recipe: whose shift, flip and
    jpeg the decoder shall endure. Raises FloatingPointError for a loss that is no longer finite.
    """
    device, rng = device_of(trigger), generator(seed)
    images = data.images.to(device)
    plan = batches(len(data), BATCH_SIZE, epochs, rng)
    adam = adam_of(trigger, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, one_cycle(0.1, len(plan)))
    trigger.train()
    for number, batch in enumerate(tqdm(plan, "encoder", unit="batch", disable=not progress, leave=False), 1):
        mine = device.layout(images[batch.to(device)])
        messages = torch.randint(2, (len(batch), len(trigger.message)), generator=rng).float().to(device)
        with device.autocast():
            residual = trigger.residual(mine, messages)
        hidden, crossed = ((x + residual).clamp(0, 1) for x in (mine, mine.roll(1, 0)))
        seen = outlived(torch.cat([hidden, crossed, mine]), recipe, rng)
        with device.autocast():
            logits = trigger.decoder(device.layout(seen)).float()
        value = message_loss(logits, messages) + image_loss(mine, hidden, budget(number / len(plan), psnr))
        descend(value, [adam], [schedule], "encoder", number)
    trigger.eval()
