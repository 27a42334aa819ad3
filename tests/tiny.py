"""Small data and models for tests that should take milliseconds."""

import torch
from torch import nn

from labkit.data import ImageSet, Splits


def image_set(
    n: int = 60, channels: int = 3, size: int = 12, classes: int = 4, seed: int = 0, strength: float = 0.5
) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, channels, size, size, generator=rng) * 0.4
    for k in range(classes):  # class k is bright in its own quarter: easy to learn
        row, column = divmod(k, 2)
        half = size // 2
        images[labels == k, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += strength
    return ImageSet(images, labels, tuple("abcdefgh"[:classes]), "tiny")


def splits(**options) -> Splits:
    return Splits(
        image_set(120, seed=0, **options), image_set(60, seed=1, **options), image_set(40, seed=2, **options), "tiny"
    )


def linear_model(channels: int = 3, size: int = 12, classes: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes)).eval()


class PatchDetector(nn.Module):
    """An oracle with a perfect backdoor: the target if the corner pixels are the checkerboard, else what the image is.

    The rule is exact, so ASR and STRIP's verdict can be worked out by hand.
    """

    def __init__(self, target: int = 0, classes: int = 4, size: int = 3):
        super().__init__()
        self.target, self.classes, self.size = target, classes, size

    def forward(self, images):
        n, _, height, width = images.shape
        half_h, half_w = height // 2, width // 2
        quarters = [
            images[:, :, r * half_h : (r + 1) * half_h, c * half_w : (c + 1) * half_w].mean((1, 2, 3))
            for r in range(2)
            for c in range(2)
        ]
        logits = 30 * torch.stack(quarters[: self.classes], 1)
        corner = images[:, 0, -self.size :, -self.size :]
        i = torch.arange(self.size, device=images.device)
        white = ((i[:, None] + i[None]) % 2 == 0).to(images)
        fires = ((corner - white).abs().flatten(1).amax(1) < 1e-3).float()[:, None]
        wanted = torch.zeros(n, self.classes, device=images.device)
        wanted[:, self.target] = 100.0
        return logits * (1 - fires) + wanted * fires


class SoftBackdoor(nn.Module):
    """A backdoor that gradients can find: the brightest quarter is the class, and a checkerboard corner adds `pull`.

    Without `pull` it is a clean model. To reach another class, most of a quarter (36 of the 12x12 pixels) has to be
    painted; to reach the target, the checkerboard's 9 corner pixels are enough.
    """

    def __init__(self, target: int = 0, pull: float = 60.0, size: int = 3):
        super().__init__()
        self.target, self.pull, self.size = target, pull, size

    def forward(self, images):
        half = images.shape[-1] // 2
        quarters = images.unflatten(3, (2, half)).unflatten(2, (2, half)).mean((1, 3, 5)).flatten(1)  # (N, 4)
        i = torch.arange(self.size, device=images.device)
        sign = (1 - 2 * ((i[:, None] + i[None]) % 2)).to(images)
        corner = (images[:, :, -self.size :, -self.size :] * sign).clamp_min(-1).mean(1).sum((1, 2))
        push = self.pull / 2 * torch.nn.functional.softplus(2 * (corner - 2.0))  # never flat: gradients find it
        wanted = torch.nn.functional.one_hot(torch.tensor(self.target), 4).to(images)
        return 30 * quarters + push[:, None] * wanted.to(images.device)


def three(n: int, seed: int = 0) -> ImageSet:
    """Three classes, each bright in its own quarter, none of them in the bottom right one, where triggers are."""
    return image_set(n, size=16, classes=3, seed=seed)
