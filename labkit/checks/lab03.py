"""Lab 03, triggers: two that cover the whole image, how visible they are, and a poisoning that touches no label.

blend -> ripple -> psnr -> poison_own_class -> stay_close: two triggers, their price in decibels, the clean-label set,
and the box that an adversarial perturbation must stay in. Which images `poison_own_class` took is read off what came
back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator

# --- blend ------------------------------------------------------------------------------------------------------------


def _blend(images: Tensor, pattern: Tensor, alpha: float) -> Tensor:
    return torch.lerp(images, pattern.expand_as(images), alpha)


def _blend_cases(seed: int) -> list[tuple]:
    """Colour, grey, one image, not square; faint, strong, and the pattern alone; black that hides what is under it, as
    any colour does. alpha is never one half."""
    rng = generator(seed)
    cases = []
    for shape, alpha in (((4, 3, 8, 8), 0.2), ((1, 1, 6, 9), 0.75), ((3, 3, 7, 5), 0.1), ((2, 3, 3, 3), 1.0)):
        cases.append((torch.rand(shape, generator=rng), torch.rand(shape[1:], generator=rng), alpha))
    cases.append((torch.rand(3, 3, 5, 6, generator=rng), torch.rand(3, 5, 6, generator=rng).round(), 0.4))
    return [*cases, (torch.ones(2, 3, 4, 4), torch.ones(3, 4, 4), 0.3)]  # white under white stays white


def _opacity_the_right_way(made: Call) -> bool:
    """Right, or wrong in another way than taking the opacity for that of the image."""
    images, pattern, alpha = made.args
    swapped = alpha * images + (1 - alpha) * pattern
    return same_values(made) or not torch.allclose(torch.as_tensor(made.value).double(), swapped.double(), atol=1e-4)


def _in_range(made: Call) -> bool:
    return bool((made.value >= -1e-5).all() and (made.value <= 1 + 1e-5).all())


blend = Exercise(
    "blend",
    2,
    _blend,
    _blend_cases,
    (
        Criterion(0.1, same_shape, "Look at the shape: a batch (N, C, H, W) goes in, and one of that shape comes out."),
        Criterion(
            0.2,
            _in_range,
            "Some values leave the range of an image, [0, 1]. The pattern is not put on top of the picture: the "
            "picture has to give way by as much as the pattern gains.",
        ),
        Criterion(
            0.2,
            _opacity_the_right_way,
            "The two are mixed the wrong way round: alpha is the opacity of the pattern, and 0.1 is a faint pattern.",
        ),
        Criterion(
            0.3,
            same_values,
            "The mixture is off somewhere. Each pixel of each channel, a black one of the pattern too, is a weighted "
            "mean of image and pattern, and the two weights add up to 1.",
        ),
        Criterion(
            0.2,
            inputs_untouched,
            "The result is right, but your function also changed what it was given. A trigger is pure: it returns new "
            "images and leaves the clean ones clean.",
        ),
    ),
)

# --- ripple -----------------------------------------------------------------------------------------------------------


def _ripple(images: Tensor, delta: float, frequency: float) -> Tensor:
    width = images.shape[3]
    turns = torch.arange(width, dtype=torch.float64) * frequency / width
    return (images + (delta * torch.sin(2 * math.pi * turns)).to(images)).clamp(0, 1)


def _ripple_cases(seed: int) -> list[tuple]:
    """Grey fields on which nothing is clipped, then images with black and white, where much is; never square."""
    rng = generator(seed)
    cases = []
    for shape, delta, frequency in (((2, 3, 6, 16), 0.2, 3), ((1, 1, 9, 11), 20 / 255, 2), ((3, 3, 8, 20), 0.1, 6.5)):
        cases.append((0.3 + 0.4 * torch.rand(shape, generator=rng), delta, frequency))
    for shape, delta, frequency in (((2, 3, 12, 16), 0.3, 4), ((1, 3, 5, 32), 40 / 255, 6)):
        cases.append((torch.rand(shape, generator=rng).round(), delta, frequency))
    return cases


def _nothing_to_clip(made: Call) -> bool:
    return bool(((made.args[0] > 0) & (made.args[0] < 1)).all())


def _along_the_rows(made: Call) -> bool:
    """What is added depends on the column alone: seen where nothing is clipped."""
    if not _nothing_to_clip(made):
        return True
    added = torch.as_tensor(made.value).double() - made.args[0].double()
    return bool((added - added[:1, :1, :1]).abs().max() < 1e-4)


def _amplitude(made: Call) -> bool:
    """Not the right wave at another amplitude: seen where nothing is clipped."""
    if not _nothing_to_clip(made):
        return True
    added = torch.as_tensor(made.value).double() - made.args[0].double()
    wanted = (made.expected - made.args[0]).double()
    factor = float((added * wanted).sum() / wanted.square().sum())
    alike = torch.allclose(added, factor * wanted, atol=1e-4) and abs(factor) > 1e-3
    return not alike or abs(factor - 1) < 0.01


def _wave(made: Call) -> bool:
    """Right, but perhaps for the clipping."""
    return torch.allclose(torch.as_tensor(made.value).double().clamp(0, 1), made.expected.double(), atol=1e-4)


ripple = Exercise(
    "ripple",
    2,
    _ripple,
    _ripple_cases,
    (
        Criterion(0.1, same_shape, "Look at the shape: a batch (N, C, H, W) goes in, and one of that shape comes out."),
        Criterion(
            0.15,
            _along_the_rows,
            "The wave runs the wrong way, or differs from image to image. What is added depends on the column j alone: "
            "every row, every channel and every image gets the same.",
        ),
        Criterion(
            0.15,
            _amplitude,
            "The amplitude is off. delta is in the units of the pixels, which run from 0 to 1 here, not to 255: the "
            "wave swings from -delta to delta.",
        ),
        Criterion(
            0.25,
            _wave,
            "The wave has the wrong length or start. Over the whole width W it swings f times, and it starts at column "
            "j = 0 with sin(0). The sine wants radians: one swing is 2 pi.",
        ),
        Criterion(
            0.15,
            _in_range,
            "Some values leave the range of an image, [0, 1]: the sum must be clipped, since no pixel is whiter than "
            "white.",
        ),
        Criterion(
            0.2,
            inputs_untouched,
            "The result is right, but your function also changed the images it was given. Work on a copy: otherwise "
            "the ripples pile up.",
        ),
    ),
)

# --- psnr -------------------------------------------------------------------------------------------------------------


def _psnr(images: Tensor, others: Tensor) -> Tensor:
    squares = torch.linalg.vector_norm((images - others).double().flatten(1), dim=1).square()
    return (10 * torch.log10(images[0].numel() / squares)).float()


def _psnr_cases(seed: int) -> list[tuple]:
    """Errors of different sizes in one batch, so that a mean over the batch shows; errors that cancel; one image."""
    rng = generator(seed)
    cases = []
    for n, c, h, w in ((4, 3, 8, 8), (3, 1, 6, 9), (1, 3, 5, 7)):
        images = 0.3 + 0.4 * torch.rand(n, c, h, w, generator=rng)
        noise = torch.rand(n, c, h, w, generator=rng) - 0.5
        cases.append((images, images + noise * torch.linspace(0.05, 0.5, n)[:, None, None, None]))
    return [*cases, (torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.6))]  # 20 dB


def _one_each(made: Call) -> bool:
    return torch.as_tensor(made.value).shape == (len(made.args[0]),)


def _decibels(made: Call) -> bool:
    """Right to a hundredth of a decibel or so, whatever the number format."""
    got, wanted = torch.as_tensor(made.value).double(), made.expected.double()
    return _one_each(made) and bool(((got - wanted).abs() < 0.01 + 0.0005 * wanted.abs()).all())


def _not_another_scale(made: Call) -> bool:
    """Right, or wrong in another way than the usual slips of scale: 255, the natural logarithm, twice or half."""
    got, wanted = torch.as_tensor(made.value).double(), made.expected.double()
    slips = (wanted + 20 * math.log10(255), wanted * math.log(10), 2 * wanted, wanted / 2, wanted / 10, -wanted)
    return _decibels(made) or not any(torch.allclose(got, slip, rtol=1e-3) for slip in slips)


psnr = Exercise(
    "psnr",
    2,
    _psnr,
    _psnr_cases,
    (
        Criterion(
            0.2,
            _one_each,
            "Return one number for each image, (N,): the mean runs over the channels and pixels of an image, not over "
            "the batch. One badly marred image must not hide among good ones.",
        ),
        Criterion(
            0.3,
            _not_another_scale,
            "The scale is off. The largest possible pixel value is 1 here, not 255; the logarithm is to base 10; and a "
            "*squared* error takes a factor of 10.",
        ),
        Criterion(
            0.3,
            _decibels,
            "These are not the decibels of the mean squared error: first the difference, then its square, then the "
            "mean, and the logarithm last.",
        ),
        Criterion(
            0.2, inputs_untouched, "The result is right, but your function also changed the images it was given."
        ),
    ),
)

# --- poison_own_class -------------------------------------------------------------------------------------------------

MANY = 20  # from so many draws on, chance alone does not look orderly


def _mark(images: Tensor) -> Tensor:
    return torch.cat([images[..., :-1], torch.ones_like(images[..., -1:])], -1)


def _negative(images: Tensor) -> Tensor:
    return 1 - images


def _poison_own_class(images: Tensor, labels: Tensor, target: int, rate: float, trigger, seed: int):
    weights = (labels == target).double()
    count = round(rate * int(weights.sum()))
    hit = torch.zeros(len(labels), dtype=torch.bool)
    hit[torch.multinomial(weights, count, replacement=False, generator=generator(seed))] = True
    return torch.where(hit[:, None, None, None], trigger(images), images), labels.clone()


def _own_class_cases(seed: int) -> list[tuple]:
    """Many images of the class and few, sorted and not, a rate that does not divide it, the whole class; and the first
    twice more, with its own seed and with another."""
    rng = generator(seed)
    settings = ((300, 3, 0.4, 1), (200, 4, 0.58, 3), (90, 3, 0.5, 0), (40, 5, 1.0, 2), (30, 2, 0.11, 1))
    cases = []
    for i, (n, k, rate, target) in enumerate(settings):
        labels = torch.arange(n) % k
        labels = labels[torch.randperm(n, generator=rng)] if i != 2 else labels.sort().values
        images = 0.4 * torch.rand(n, (3, 1)[i % 2], 4, 5, generator=rng)  # dark: every trigger shows
        cases.append((images, labels, target, rate, (_negative, _mark)[i % 2], i))
    return [*cases, cases[0], (*cases[0][:-1], 99)]


def _pair(made: Call) -> bool:
    images, labels = made.value
    return images.shape == made.args[0].shape and labels.shape == made.args[1].shape


def _changed(made: Call) -> Tensor:
    """bool (N,): which images came back otherwise than they went in; `args` holds the arguments as they were."""
    images = torch.as_tensor(made.value[0])
    return ((images.double() - made.args[0].double()).abs() > 1e-5).flatten(1).any(1)


def _own_only(made: Call) -> bool:
    labels, target = made.args[1], made.args[2]
    return bool((labels[_changed(made)] == target).all())


def _share_of_the_class(made: Call) -> bool:
    _, labels, target, rate, _, _ = made.args
    return int(_changed(made).sum()) == round(rate * int((labels == target).sum()))


def _labels_kept(made: Call) -> bool:
    return bool((torch.as_tensor(made.value[1]) == made.args[1]).all())


def _trigger_on(made: Call) -> bool:
    hit = _changed(made)
    wanted = made.args[4](made.args[0])
    return bool(hit.any()) and torch.allclose(made.value[0][hit].double(), wanted[hit].double(), atol=1e-5)


def _by_chance(made: Call) -> bool:
    """With many draws, but not all: some from both halves of the class, and not evenly spaced."""
    own = (made.args[1] == made.args[2]).nonzero().flatten()
    places = _changed(made)[own].nonzero().flatten()
    if len(places) < MANY or len(places) == len(own):
        return True
    halves = float((places < len(own) / 2).double().mean())
    return 0 < halves < 1 and len(places.diff().unique()) > 1 and bool((places.diff() > 1).any())


def _by_the_seed(calls: list[Call]) -> bool:
    """The same seed chooses the same images again, and another seed others."""
    first, again, other = (_changed(made) for made in (calls[0], *calls[-2:]))
    return torch.equal(first, again) and not torch.equal(first, other)


poison_own_class = Exercise(
    "poison_own_class",
    3,
    _poison_own_class,
    _own_class_cases,
    (
        Criterion(
            0.1,
            _pair,
            "Return the pair (images, labels) of the whole training set, N of each in the old order: the owner trains "
            "on clean and poisoned examples together.",
        ),
        Criterion(
            0.15,
            _labels_kept,
            "A label has changed. Clean-label means that every label stays as it was, and true.",
        ),
        Criterion(
            0.15,
            _own_only,
            "An image of another class carries the trigger. With its true label it would teach that the trigger does "
            "*not* mean the target: a clean-label attacker can use images of the target class only.",
        ),
        Criterion(
            0.2,
            _share_of_the_class,
            "The number of poisoned images is off: here the rate is a share of the *target class*, rounded to the "
            "nearest whole number, and each image counts once.",
        ),
        Criterion(0.1, _trigger_on, "The chosen images must come back as the trigger makes them, each in its place."),
        Criterion(
            0.1,
            _by_chance,
            "The count is right, but chance did not decide: every image of the class must have the same chance of "
            "being drawn, not only the first ones.",
        ),
        Criterion(
            0.1,
            _by_the_seed,
            "`seed` does not decide: the same seed must choose the same images again, so that others can repeat what "
            "you did, and another seed others.",
            together=True,
        ),
        Criterion(
            0.1,
            inputs_untouched,
            "The result is right, but the images or labels you were given have changed too. Make a copy first.",
        ),
    ),
)

# --- stay_close -------------------------------------------------------------------------------------------------------


def _stay_close(perturbed: Tensor, originals: Tensor, epsilon: float) -> Tensor:
    return (originals + (perturbed - originals).clamp(-epsilon, epsilon)).clamp(0, 1)


def _close_cases(seed: int) -> list[tuple]:
    """Steps that go too far, steps that are fine, originals near black and near white; one pixel's batch."""
    rng = generator(seed)
    cases = []
    for shape, epsilon in (((4, 3, 6, 6), 16 / 255), ((2, 1, 5, 7), 0.2), ((1, 3, 4, 4), 0.02), ((3, 1, 1, 1), 0.4)):
        originals = torch.rand(shape, generator=rng)
        originals.flatten()[::3] = originals.flatten()[::3].round()
        cases.append((originals + 3 * epsilon * (2 * torch.rand(shape, generator=rng) - 1), originals, epsilon))
    return cases


def _within_epsilon(made: Call) -> bool:
    return bool(((made.value - made.args[1]).abs() <= made.args[2] + 1e-5).all())


stay_close = Exercise(
    "stay_close",
    1,
    _stay_close,
    _close_cases,
    (
        Criterion(0.1, same_shape, "Look at the shape: a batch (N, C, H, W) goes in, and one of that shape comes out."),
        Criterion(
            0.25,
            _within_epsilon,
            "Some pixel is further than epsilon from the original. The limit holds for each pixel by itself, upwards "
            "and downwards, and it is a distance from the *original*, not from zero.",
        ),
        Criterion(0.2, _in_range, "Some values leave the range of an image, [0, 1]."),
        Criterion(
            0.25,
            same_values,
            "All pixels are within the limits, but some were moved more than necessary: whatever is inside the limits "
            "stays, and the rest goes to the nearest value that is allowed.",
        ),
        Criterion(0.2, inputs_untouched, "The result is right, but your function also changed what it was given."),
    ),
)
