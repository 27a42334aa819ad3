"""PSNR and SSIM against values worked out by hand, and against the definition, window by window."""

import math

import numpy as np
import pytest
import torch

from labkit.stealth import psnr, ssim


def constant(value: float, size: int = 12) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


@pytest.mark.parametrize(("step", "decibels"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0)])
def test_a_constant_step_is_known_in_decibels(step, decibels):
    assert float(psnr(constant(0.0), constant(step))) == pytest.approx(decibels, abs=1e-3)


def test_one_white_pixel_of_many_is_known_in_decibels():
    images = torch.zeros(2, 1, 10, 10)
    others = images.clone()
    others[1, 0, 4, 4] = 1  # mean squared error 1/100
    assert torch.equal(psnr(images, others), torch.tensor([math.inf, 20.0]))


def test_identical_images_have_ssim_one_and_infinite_psnr():
    images = torch.rand(3, 3, 16, 14)
    assert torch.allclose(ssim(images, images), torch.ones(3)) and psnr(images, images).isinf().all()


def test_both_are_symmetric_and_treat_each_image_alone():
    images, others = torch.rand(2, 4, 3, 16, 16)
    for measure in (psnr, ssim):
        assert torch.allclose(measure(images, others), measure(others, images))
        assert torch.allclose(measure(images, others)[2:3], measure(images[2:3], others[2:3]))
        assert measure(images, others).shape == (4,)


def test_constant_images_differ_in_brightness_alone():
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(constant(0.2), constant(0.6))) == pytest.approx(expected, abs=1e-6)


def test_a_negative_is_anticorrelated():
    images = torch.rand(4, 1, 16, 16)
    assert (ssim(images, 1 - images) < -0.5).all()


@pytest.mark.parametrize(("height", "width", "window"), [(13, 15, 11), (11, 11, 11), (8, 9, 7)])
def test_ssim_is_the_papers_equation_window_by_window(height, width, window):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, height, width))
    line = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for i in range(height - window + 1):
        for j in range(width - window + 1):
            p, q = a[i : i + window, j : j + window], b[i : i + window, j : j + window]
            mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
            var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
            both = (weight * (p - mean_p) * (q - mean_q)).sum()
            found.append(
                (2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4)
                / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
            )  # fmt: skip
    images, others = (torch.from_numpy(x).float()[None, None] for x in (a, b))
    assert float(ssim(images, others)) == pytest.approx(np.mean(found), abs=1e-5)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_bad_input_is_named(measure):
    with pytest.raises(ValueError, match=r"same shape, image for image; got \(1, 3, 12, 12\) and \(1, 3, 9, 9\)"):
        measure(constant(0.5), constant(0.5, 9))
    with pytest.raises(ValueError, match=r"the other images: expected values in \[0, 1\]"):
        measure(constant(0.5), constant(0.5) * 255)
