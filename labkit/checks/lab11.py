"""Lab 11, the arms race: whose trigger is it, do the triggers differ, what passes the filter, training against it.

cross_trigger -> sameness -> escaped -> against_strip: the attacker's measures, and the attacker's answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_values
from labkit.device import generator


def _number(made: Call) -> bool:
    return torch.as_tensor(made.value).numel() == 1 and math.isfinite(float(made.value))


# --- cross_trigger ----------------------------------------------------------------------------------------------------


def _cross_trigger(crossed: Tensor, labels: Tensor, target: int) -> tuple[float, float]:
    others = labels != target
    answers = crossed[others].argmax(1)
    kept, fired = answers == labels[others], answers == target
    return float(kept.double().mean()), float(fired.double().mean())


def _crossed_cases(seed: int) -> list[tuple]:
    """Images of the target class or none; answers that are right, the target, or a third class; as many as classes."""
    rng = generator(seed)
    cases = []
    for n, k, target in ((40, 6, 0), (30, 5, 3), (7, 7, 2)):
        labels = torch.randint(k, (n,), generator=rng)
        labels[:3] = torch.tensor([target, target, (target + 1) % k])  # both kinds are there
        crossed = torch.randn(n, k, generator=rng)
        strong = torch.arange(n) % 2 == 0
        crossed[strong, labels[strong]] += 4
        crossed[1::5, target] += 5
        cases.append((crossed, labels, target))
    stranger = torch.randint(1, 6, (24,), generator=rng)  # no image of the target class at all
    cases.append((2 * torch.randn(24, 6, generator=rng), stranger, 0))
    return cases


def _pair(made: Call) -> tuple[float, float]:
    kept, fired = made.value
    return float(kept), float(fired)


def _has_target(made: Call) -> bool:
    return bool((made.args[1] == made.args[2]).any())


def _share_right(which: int, with_target: bool):
    def holds(made: Call) -> bool:
        return _has_target(made) != with_target or abs(_pair(made)[which] - made.expected[which]) < 1e-4

    return holds


cross_trigger = Exercise(
    "cross_trigger",
    2,
    _cross_trigger,
    _crossed_cases,
    (
        Criterion(
            0.1,
            lambda made: all(0 <= share <= 1 for share in _pair(made)),
            "Return two shares between 0 and 1: those that keep their label first, those sent to the target second.",
        ),
        Criterion(
            0.35,
            _share_right(0, with_target=False),
            "Kept: the network's answer, the class with the largest logit, is the image's own label. An image that is "
            "sent to some third class has not kept it.",
        ),
        Criterion(
            0.25,
            _share_right(1, with_target=False),
            "Fired: the answer is the target. A wrong answer of another kind is the trigger's damage, not its success.",
        ),
        Criterion(
            0.3,
            lambda made: _share_right(0, with_target=True)(made) and _share_right(1, with_target=True)(made),
            "Which images count? One of the target class gives the target without any trigger: it can say nothing "
            "about whose trigger fires, neither above the line nor below it.",
        ),
    ),
)

# --- sameness ---------------------------------------------------------------------------------------------------------


def _rms(differences: Tensor) -> Tensor:
    return differences.flatten(1).square().mean(1).sqrt()


def _sameness(images: Tensor, drawn: Tensor) -> Tensor:
    return (_rms(images - images.roll(1, 0)) / _rms(drawn - drawn.roll(1, 0))).mean()


def _drawn_cases(seed: int) -> list[tuple]:
    """Masks of one channel, patterns of three; all images alike in distance, or not; a pair of two; not square."""
    rng = generator(seed)
    cases = []
    for n, c, d, h, w in ((5, 3, 1, 6, 6), (4, 3, 3, 5, 7), (2, 1, 1, 4, 4), (6, 1, 3, 4, 3)):
        scales = 0.2 + 0.8 * torch.rand(n, 1, 1, 1, generator=rng)  # near and far pairs
        images = scales * torch.rand(n, c, h, w, generator=rng)
        cases.append((images, torch.rand(n, 1, 1, 1, generator=rng) * torch.rand(n, d, h, w, generator=rng)))
    return cases


def _factor_off(made: Call) -> bool:
    """Right but for a factor that sizes alone decide: norms without their means."""
    images, drawn = made.args
    many, few = images[0].numel(), drawn[0].numel()
    wanted = float(made.expected)
    return any(
        abs(float(made.value) - f * wanted) <= 1e-3 * (1 + abs(f * wanted)) for f in (1.0, math.sqrt(many / few))
    )


sameness = Exercise(
    "sameness",
    3,
    _sameness,
    _drawn_cases,
    (
        Criterion(0.1, _number, "Return one number for the batch, not one for each pair."),
        Criterion(
            0.6,
            _factor_off,
            "Take the pairs one by one: how far apart are the two images, and how far apart what was drawn for them? "
            "Each pair has a ratio of its own, images above the line; the mean over the pairs comes last.",
        ),
        Criterion(
            0.2,
            same_values,
            "A distance here is a root of a MEAN square: images and masks have different numbers of channels, and a "
            "sum would count that.",
        ),
        Criterion(
            0.1, inputs_untouched, "The value is right, but an argument was changed in place. Shift a copy instead."
        ),
    ),
)

# --- escaped ----------------------------------------------------------------------------------------------------------


def _escaped(clean_scores: Tensor, scores: Tensor, hit: Tensor, frr: float) -> float:
    boundary = torch.quantile(clean_scores, frr)
    return float((hit & (scores > boundary)).double().mean())


def _score_cases(seed: int) -> list[tuple]:
    """Hits and misses on both sides of the boundary; other numbers of clean and triggered inputs; two rates."""
    rng = generator(seed)
    clean = 0.3 + torch.rand(201, generator=rng)
    low, spread = 0.35 * torch.rand(50, generator=rng), 1.2 * torch.rand(40, generator=rng)
    cases = []
    for scores, frr in ((spread, 0.01), (spread, 0.25), (low, 0.02), (torch.cat([low, spread]), 0.1)):
        hit = torch.rand(len(scores), generator=rng) < 0.6
        cases.append((clean, scores, hit, frr))
    many = torch.ones(40, dtype=torch.bool)
    return [*cases, (clean, spread, many, 0.1), (clean, spread, ~many, 0.1)]


def _all_hit(made: Call) -> bool:
    return bool(made.args[2].all())


def _near(made: Call) -> bool:
    """Equal up to one triggered input: textbooks' quantiles differ by less than a step of the clean scores."""
    return abs(float(made.value) - made.expected) <= 1.01 / len(made.args[1])


escaped = Exercise(
    "escaped",
    2,
    _escaped,
    _score_cases,
    (
        Criterion(
            0.1,
            lambda made: _number(made) and 0 <= float(made.value) <= 1,
            "Return one number between 0 and 1: a share of the triggered inputs.",
        ),
        Criterion(
            0.5,
            lambda made: not _all_hit(made) or _near(made),
            "Where every input hits, this is the plain FAR: set the boundary where a share frr of the CLEAN scores "
            "lies below it; what scores above it passes. Low entropy is what alarms.",
        ),
        Criterion(
            0.4,
            lambda made: _all_hit(made) or _near(made),
            "An input counts only if it does both: it reaches the target and it passes. The share is one of ALL "
            "triggered inputs, since the attacker pays for those that miss as well.",
        ),
    ),
)

# --- against_strip ----------------------------------------------------------------------------------------------------


def _against_strip(
    images: Tensor, labels: Tensor, stamped: Tensor, true_labels: Tensor, overlays: Tensor
) -> tuple[Tensor, Tensor]:
    mixtures = (stamped + overlays).clamp(max=1)
    return torch.cat([images, mixtures]), torch.cat([labels, true_labels])


def _training_cases(seed: int) -> list[tuple]:
    """Bright images, so that sums leave [0, 1]; grey and colour; more and fewer mixtures than poisoned images."""
    rng = generator(seed)
    cases = []
    for n, m, c, h, w in ((6, 3, 3, 5, 5), (3, 5, 1, 4, 6), (4, 4, 3, 4, 4)):
        images, stamped, overlays = (torch.rand(k, c, h, w, generator=rng) for k in (n, m, m))
        labels, true_labels = torch.zeros(n, dtype=torch.int64), torch.randint(1, 6, (m,), generator=rng)
        labels[0] = 2
        cases.append((images, labels, stamped, true_labels, overlays))
    return cases


def _sets(made: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels: the poisoned set's part, then the rest."""
    images, labels = made.value
    n = len(made.args[0])
    return images[:n], images[n:], labels[:n], labels[n:]


def _joined(made: Call) -> bool:
    images, labels = made.value
    wanted, wanted_labels = made.expected
    return images.shape == wanted.shape and labels.shape == wanted_labels.shape and not labels.is_floating_point()


def _poison_stays(made: Call) -> bool:
    old, _, old_labels, _ = _sets(made)
    return torch.equal(old.double(), made.args[0].double()) and torch.equal(old_labels.long(), made.args[1])


def _mixed(made: Call) -> bool:
    """Right wherever the sum stays inside [0, 1]."""
    _, new, _, _ = _sets(made)
    wanted = made.expected[0][len(made.args[0]) :]
    inside = wanted < 1
    return bool(torch.allclose(new.double()[inside], wanted.double()[inside], atol=1e-4))


def _clipped(made: Call) -> bool:
    _, new, _, _ = _sets(made)
    return bool(torch.allclose(new.double(), made.expected[0][len(made.args[0]) :].double(), atol=1e-4))


def _true(made: Call) -> bool:
    _, _, _, new_labels = _sets(made)
    return torch.equal(new_labels.long(), made.args[3])


against_strip = Exercise(
    "against_strip",
    3,
    _against_strip,
    _training_cases,
    (
        Criterion(
            0.15,
            _joined,
            "Return a pair, images and labels of one larger training set: the poisoned set with its n images, and "
            "behind it the m mixtures.",
        ),
        Criterion(
            0.2,
            _poison_stays,
            "The poisoned set comes first and stays as it is: without it, nothing teaches the network the trigger.",
        ),
        Criterion(
            0.25,
            _mixed,
            "A mixture is what STRIP will make of a stamped image: the two images added, each at full strength, image "
            "i with overlay i.",
        ),
        Criterion(
            0.1,
            _clipped,
            "A training set holds images: values above 1 can't be stored in one, so clip the sum there.",
        ),
        Criterion(
            0.2,
            _true,
            "Which label should a mixture teach? With the target's it would make the trigger survive overlays even "
            "better. STRIP's alarm is a certain answer, so under an overlay the trigger must count for nothing.",
        ),
        Criterion(0.1, inputs_untouched, "The set is right, but an argument was changed in place. Build a new one."),
    ),
)
