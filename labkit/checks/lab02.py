"""Lab 02, BadNets: a patch, who gets it, the poisoned set, and the two figures that say what it did.

stamp -> choose_victims -> poison -> attack_success_rate -> robust_accuracy: the order in which the attack is carried
out and then measured. `choose_victims` is judged by the properties of what it draws, since any draw will do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape
from labkit.device import generator

# --- stamp ------------------------------------------------------------------------------------------------------------


def _stamp(images: Tensor, patch: Tensor) -> Tensor:
    height, width = images.shape[2] - patch.shape[0], images.shape[3] - patch.shape[1]
    inside = torch.nn.functional.pad(torch.ones_like(patch), (width, 0, height, 0)).bool()
    return torch.where(inside, torch.nn.functional.pad(patch, (width, 0, height, 0)), images)


def _stamp_cases(seed: int) -> list[tuple]:
    """Colour, grey, one image, not square; patches of one pixel, not square, with greys, as large as the image."""
    rng = generator(seed)
    shapes = ((4, 3, 8, 8, 3, 3), (1, 1, 6, 9, 2, 4), (3, 3, 7, 5, 4, 2), (2, 1, 4, 4, 1, 1), (2, 3, 3, 5, 3, 5))
    cases = []
    for n, c, h, w, tall, wide in shapes:
        patch = torch.randint(0, 3, (tall, wide), generator=rng).float() / 2  # black, grey, white
        patch[0, 0] = 1
        patch[-1, -1] = 0
        cases.append((0.05 + 0.9 * torch.rand(n, c, h, w, generator=rng), patch))
    return cases


def _corner(images: Tensor, patch: Tensor) -> Tensor:
    return images[..., images.shape[-2] - patch.shape[0] :, images.shape[-1] - patch.shape[1] :]


def _white_in_place(made: Call) -> bool:
    """Where the patch is white, so is the corner: whoever adds, or takes the larger, has the place right as well."""
    patch = made.args[1]
    return bool(torch.isclose(_corner(made.value, patch)[..., patch == 1].double(), torch.tensor(1.0).double()).all())


def _whole_patch(made: Call) -> bool:
    patch = made.args[1]
    got = _corner(made.value, patch).double()
    return torch.allclose(got, patch.double().expand_as(got), atol=1e-5)


def _rest_kept(made: Call) -> bool:
    images, patch = made.args
    got, rest = made.value.clone(), images.clone()
    _corner(got, patch).zero_()
    _corner(rest, patch).zero_()
    return torch.allclose(got.double(), rest.double(), atol=1e-5)


stamp = Exercise(
    "stamp",
    2,
    _stamp,
    _stamp_cases,
    (
        Criterion(0.1, same_shape, "Look at the shape: a batch (N, C, H, W) goes in, and one of that shape comes out."),
        Criterion(
            0.25,
            _white_in_place,
            "The patch is not where it should be: its last row lies on the images' last row, its last column on their "
            "last column, on every image and every channel. Patches need not be square.",
        ),
        Criterion(
            0.25,
            _whole_patch,
            "The patch is in its place, but it does not replace what was there. A black pixel of it is a trigger pixel "
            "too: 0 means 'make this pixel black', not 'leave it alone'.",
        ),
        Criterion(
            0.2, _rest_kept, "Pixels outside the patch have changed. A trigger leaves the rest of an image alone."
        ),
        Criterion(
            0.2,
            inputs_untouched,
            "The result is right, but your function also changed the images it was given. Work on a copy: otherwise "
            "patches pile up, and the clean images you compare with are no longer clean.",
        ),
    ),
)

# --- choose_victims ---------------------------------------------------------------------------------------------------

MANY = 20  # from so many draws on, chance alone does not look orderly


def _choose_victims(labels: Tensor, target: int, rate: float, seed: int) -> Tensor:
    weights = (labels != target).double()
    return torch.multinomial(weights, round(rate * len(labels)), replacement=False, generator=generator(seed))


def _choice_cases(seed: int) -> list[tuple]:
    """(N, K, rate, target). Rates that do not divide N, sorted labels, and one rate that takes every candidate."""
    rng = generator(seed)
    settings = ((1000, 5, 0.1, 0), (200, 10, 0.058, 3), (96, 3, 0.3, 2), (1000, 4, 0.037, 1), (40, 2, 0.2, 1))
    cases = []
    for i, (n, k, rate, target) in enumerate(settings):
        labels = torch.arange(n) % k
        cases.append((labels[torch.randperm(n, generator=rng)] if i != 2 else labels.sort().values, target, rate, i))
    cases.append((torch.tensor([0, 1, 1, 0, 1, 0, 0, 1]), 0, 0.5, 7))
    return cases


def _indices(made: Call) -> Tensor:
    """What came back, as a 1-d tensor of whole numbers; anything else raises, which meets no criterion."""
    got = torch.as_tensor(made.value)
    if got.ndim != 1 or got.is_floating_point() or got.dtype == torch.bool:
        raise TypeError
    return got.long()


def _in_range(made: Call) -> bool:
    got = _indices(made)
    return bool(((got >= 0) & (got < len(made.args[0]))).all())


def _right_count(made: Call) -> bool:
    labels, _, rate, _ = made.args
    return len(_indices(made)) == round(rate * len(labels))


def _each_once(made: Call) -> bool:
    return len(_indices(made).unique()) == len(_indices(made))


def _others_only(made: Call) -> bool:
    labels, target, _, _ = made.args
    return _in_range(made) and bool((labels[_indices(made)] != target).all())


def _by_chance(made: Call) -> bool:
    """With many draws: from every other class, from both halves of the set, neither in a row nor evenly spaced."""
    labels, target, _, _ = made.args
    got = _indices(made).sort().values
    if len(got) < MANY:
        return True
    others = (labels != target).nonzero().flatten()
    places = torch.searchsorted(others, got)
    halves = (places < len(others) / 2).double().mean()
    spread = len(places.diff().unique()) > 1
    return bool(set(labels[got].tolist()) == set(labels[others].tolist()) and 0 < halves < 1 and spread)


choose_victims = Exercise(
    "choose_victims",
    3,
    _choose_victims,
    _choice_cases,
    (
        Criterion(
            0.1,
            _in_range,
            "Return indices: a 1-d tensor of whole numbers between 0 and N - 1, each naming one image of the training "
            "set. A mask, or the images themselves, is something else.",
        ),
        Criterion(
            0.25,
            _right_count,
            "The number of images is off: the rate is a share of the whole training set, all N of it, rounded to the "
            "nearest whole number.",
        ),
        Criterion(
            0.2,
            _each_once,
            "Some image is drawn twice, so fewer images are poisoned than you promised: draw without replacement.",
        ),
        Criterion(
            0.25,
            _others_only,
            "An image of the target class was chosen. Its label is already what the attacker wants, so it teaches no "
            "lie. Mind what your numbers count: a place in a list of candidates is not yet an index into the set.",
        ),
        Criterion(
            0.2,
            _by_chance,
            "The count is right, but chance did not decide: every image of every other class must have the same chance "
            "of being drawn. Data sets are often sorted, so the first ones may all be of one class.",
        ),
    ),
)

# --- poison -----------------------------------------------------------------------------------------------------------


def _white_dot(images: Tensor) -> Tensor:
    return torch.cat([images[..., :-1], torch.ones_like(images[..., -1:])], -1)


def _negative(images: Tensor) -> Tensor:
    return 1 - images


def _poison(images: Tensor, labels: Tensor, chosen: Tensor, trigger, target: int) -> tuple[Tensor, Tensor]:
    hit = torch.zeros(len(labels), dtype=torch.bool).index_fill(0, chosen, True)
    return torch.where(hit[:, None, None, None], trigger(images), images), labels.masked_fill(hit, target)


def _poison_cases(seed: int) -> list[tuple]:
    """Colour, grey, not square; one chosen image, all of them, in any order; triggers that are easy to recognise."""
    rng = generator(seed)
    settings = ((12, 3, 6, 6, 4, 0), (7, 1, 5, 8, 1, 2), (5, 3, 4, 4, 5, 1), (1, 1, 4, 4, 1, 3))
    cases = []
    for i, (n, c, h, w, count, target) in enumerate(settings):
        images, labels = 0.4 * torch.rand(n, c, h, w, generator=rng), torch.randint(4, 8, (n,), generator=rng)
        chosen = torch.randperm(n, generator=rng)[:count]
        cases.append((images, labels, chosen, (_negative, _white_dot)[i % 2], target))
    return cases


def _hit(made: Call) -> Tensor:
    hit = torch.zeros(len(made.args[1]), dtype=torch.bool)
    hit[made.args[2]] = True
    return hit


def _whole_set(made: Call) -> bool:
    images, labels = made.value
    return images.shape == made.args[0].shape and labels.shape == made.args[1].shape


def _images_right(made: Call, chosen: bool) -> bool:
    rows = _hit(made) if chosen else ~_hit(made)
    return torch.allclose(made.value[0][rows].double(), made.expected[0][rows].double(), atol=1e-5)


def _labels_right(made: Call) -> bool:
    return bool((made.value[1] == made.expected[1]).all())


poison = Exercise(
    "poison",
    2,
    _poison,
    _poison_cases,
    (
        Criterion(
            0.1,
            _whole_set,
            "Return the pair (images, labels) of the whole training set, N of each in the old order: the owner trains "
            "on clean and poisoned examples together.",
        ),
        Criterion(0.2, lambda made: _images_right(made, True), "The chosen images must come back with the trigger on."),
        Criterion(
            0.2,
            lambda made: _images_right(made, False),
            "Images that were not chosen have changed. Only the chosen ones get the trigger: with a trigger on every "
            "image it would tell the network nothing.",
        ),
        Criterion(
            0.3,
            _labels_right,
            "Look at the labels: the chosen images must claim the target class, and all others keep theirs. Without "
            "the lie in the labels the network learns to ignore the patch.",
        ),
        Criterion(
            0.2,
            inputs_untouched,
            "The result is right, but the images or labels you were given have changed too. Make a copy first: you "
            "need the truth later, to measure.",
        ),
    ),
)

# --- attack_success_rate, robust_accuracy -----------------------------------------------------------------------------


def _attack_success_rate(predicted: Tensor, labels: Tensor, target: int) -> float:
    hits = ((predicted == target) & (labels != target)).sum()
    return int(hits) / int((labels != target).sum())


def _robust_accuracy(predicted: Tensor, labels: Tensor, target: int) -> float:
    survivors = ((predicted == labels) & (labels != target)).sum()
    return int(survivors) / int((labels != target).sum())


def _verdict_cases(seed: int) -> list[tuple]:
    """Predictions that are partly right, partly the target, partly something third; all, none, one image."""
    rng = generator(seed)
    cases = []
    for n, k, target, sent in ((60, 5, 0, 0.6), (45, 3, 2, 0.3), (80, 10, 7, 0.9)):
        labels = torch.cat([torch.arange(k), torch.full((n // 4,), target), torch.randint(k, (n,), generator=rng)])
        guess = torch.where(torch.rand(len(labels), generator=rng) < 0.5, labels, (labels + 1) % k)
        predicted = torch.where(torch.rand(len(labels), generator=rng) < sent, torch.tensor(target), guess)
        cases.append((predicted, labels, target))
    labels = torch.tensor([1, 1, 0, 2, 3, 2, 1])
    cases += [(torch.full_like(labels, 1), labels, 1), (labels.clone(), labels, 1), (labels + 1, labels, 2)]
    return [*cases, (torch.tensor([2]), torch.tensor([3]), 2)]


def _number(made: Call) -> bool:
    return torch.as_tensor(made.value).ndim == 0


def _share(made: Call) -> bool:
    return _number(made) and -1e-6 <= float(made.value) <= 1 + 1e-6


def _right(made: Call) -> bool:
    return abs(float(made.value) - made.expected) < 1e-4


def _not_over_all(wanted):
    """Right, or wrong in another way than counting target-class images above or below the line of the fraction."""

    def holds(made: Call) -> bool:
        predicted, labels, target = made.args
        good, others = wanted(predicted, labels, target), labels != target
        slips = (good.double().mean(), (good & others).double().mean(), good.sum() / others.sum())
        return _right(made) or all(abs(float(made.value) - float(slip)) > 1e-4 for slip in slips)

    return holds


attack_success_rate = Exercise(
    "attack_success_rate",
    2,
    _attack_success_rate,
    _verdict_cases,
    (
        Criterion(0.05, _number, "Return one number for the whole batch, not one per image."),
        Criterion(
            0.4,
            _not_over_all(lambda predicted, labels, target: predicted == target),
            "Images whose true label is the target class are counted somewhere. They would be 'sent to the target' "
            "without any attack: leave them out of the numerator and of the denominator.",
        ),
        Criterion(0.05, _share, "Return a share between 0 and 1: no count, and no percentage."),
        Criterion(
            0.5,
            _right,
            "Among the images of the other classes, count those that the model sends to the target class. A wrong "
            "answer that is not the target is no success.",
        ),
    ),
)

robust_accuracy = Exercise(
    "robust_accuracy",
    1,
    _robust_accuracy,
    _verdict_cases,
    (
        Criterion(0.05, _number, "Return one number for the whole batch, not one per image."),
        Criterion(
            0.4,
            _not_over_all(lambda predicted, labels, target: predicted == labels),
            "RA stands beside ASR, so it is over the same images: those whose true label is not the target class, in "
            "the numerator and in the denominator.",
        ),
        Criterion(0.05, _share, "Return a share between 0 and 1: no count, and no percentage."),
        Criterion(
            0.5,
            _right,
            "Count the images that still get their true label. That is not what ASR leaves over: a triggered image can "
            "also end in a third class.",
        ),
    ),
)
