"""JPEG's losses: held against a real encoder, and against what the format promises."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import image_set

from labkit.data import signs
from labkit.jpeg import BRIGHTNESS, compressed, cosine_basis, steps


def drawn(n: int = 48) -> torch.Tensor:
    return torch.from_numpy(signs.draw(n, 5)[0]).permute(0, 3, 1, 2) / 255  # real contrasts and colours, 8 bits


def encoder(images: torch.Tensor, quality: int) -> torch.Tensor:
    """The images through Pillow's encoder and decoder, colour at half the resolution."""
    back = []
    for image in (images * 255).round().byte():
        pixels, file = image.permute(1, 2, 0).numpy(), io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        back.append(torch.from_numpy(np.array(Image.open(file))).view(*pixels.shape).permute(2, 0, 1) / 255)
    return torch.stack(back)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_it_does_what_a_real_encoder_does(quality):
    images = drawn()
    for x, levels in ((images, 1.5), (images[:, :1], 0.6)):  # in colour; in grey, where nothing is resampled
        ours, real = compressed(x, quality), encoder(x, quality)
        assert 255 * (ours - real).abs().mean() < levels
        assert (ours - real).abs().mean() < 0.5 * (x - real).abs().mean()


def test_each_image_has_its_own_quality_and_a_lower_one_loses_more():
    images = drawn(3)
    apart = compressed(images, torch.tensor([95, 75, 30]))
    for i, quality in enumerate((95, 75, 30)):
        assert torch.allclose(apart[i : i + 1], compressed(images[i : i + 1], quality), atol=1e-5)
    lost = [float((compressed(images, q) - images).abs().mean()) for q in (100, 90, 60, 20, 5)]
    assert lost == sorted(lost) and lost[0] < 0.02


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 20, 45)])
def test_shape_and_range_stay_and_the_images_are_left_alone(shape):
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    out = compressed(images, 50)
    assert out.shape == images.shape and out.dtype == images.dtype and torch.equal(images, before)
    assert 0 <= out.min() and out.max() <= 1 and not torch.equal(out, images)
    assert compressed(images[:0], 50).shape == (0, *shape)


def test_a_flat_image_loses_nothing_but_rounding():
    grey = torch.full((1, 3, 32, 32), 128 / 255)
    assert (compressed(grey, 75) - grey).abs().max() < 1e-4


def test_the_cosines_are_orthonormal_and_the_tables_scale_as_published():
    basis = cosine_basis()
    assert torch.allclose(basis @ basis.T, torch.eye(64), atol=1e-5)
    table = steps(BRIGHTNESS, torch.tensor([50.0, 100.0, 25.0]))
    assert table[0, 0, :3].tolist() == [16, 11, 10] and table[0, 7, 7] == 99
    assert (table[1] == 1).all() and table[2, 0, 0] == 32


def test_tiny_images_too():
    assert compressed(image_set(8).images, 75).shape == (8, 3, 12, 12)
