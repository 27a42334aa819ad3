"""Lab 08, unlearning: stamp a share with true labels, choose a repair, rank neurons, watch them, silence few.

stamp_some -> choose_repair -> rank_neurons -> neuron_alarm -> fewest: the three repairs of Neural Cleanse's Section VI,
and how to read their figures. `stamp_some` and `neuron_alarm` are judged by properties: any draw will do, and every
textbook's quantile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched
from labkit.device import generator

# --- stamp_some -------------------------------------------------------------------------------------------------------

MANY = 20  # from so many draws on, chance alone does not look orderly


class Corner(nn.Module):
    """A trigger for the cases: the last 2x2 pixels become 2, which no image holds. A new tensor."""

    def forward(self, images: Tensor) -> Tensor:
        stamped = images.clone()
        stamped[:, :, -2:, -2:] = 2.0
        return stamped


def _stamp_some(images: Tensor, labels: Tensor, trigger, share: float, seed: int) -> tuple[Tensor, Tensor]:
    keys = torch.rand(len(images), generator=generator(seed))
    chosen = keys.argsort()[: round(share * len(images))]
    inside = torch.zeros(len(images), dtype=torch.bool).index_fill_(0, chosen, True)
    return torch.where(inside[:, None, None, None], trigger(images), images), labels.clone()


def _stamp_cases(seed: int) -> list[tuple]:
    """Shares that don't divide N, labels in order and shuffled, colour and grey, and all of the images."""
    rng = generator(seed)
    cases = []
    for i, (n, c, h, w, share) in enumerate(
        ((200, 3, 4, 5, 0.2), (150, 1, 5, 4, 0.3), (120, 3, 3, 3, 0.254), (9, 1, 4, 4, 0.2), (30, 3, 4, 4, 1.0))
    ):
        labels = torch.arange(n) % 5
        labels = labels.sort().values if i % 2 else labels[torch.randperm(n, generator=rng)]
        cases.append((torch.rand(n, c, h, w, generator=rng), labels, Corner(), share, i))
    return cases


def _set(made: Call) -> tuple[Tensor, Tensor]:
    """The images and labels that came back; anything else raises, which meets no criterion."""
    images, labels = made.value
    if images.shape != made.args[0].shape or labels.shape != made.args[1].shape:
        raise TypeError
    return images.double(), labels


def _changed(made: Call) -> Tensor:
    images, _ = _set(made)
    return (images - made.args[0].double()).abs().flatten(1).amax(1) > 1e-6


def _whole_trigger(made: Call) -> bool:
    """Where an image changed, it is what the trigger makes of it."""
    images, changed = _set(made)[0], _changed(made)
    return bool(changed.any()) and torch.allclose(images[changed], made.args[2](made.args[0][changed]).double())


def _by_chance(made: Call) -> bool:
    """With many draws: from both halves of the set, neither in a row nor evenly spaced."""
    places, n = _changed(made).nonzero().flatten(), len(made.args[0])
    if not MANY <= len(places) < n:
        return True
    half = float((places < n / 2).double().mean())
    return 0.15 < half < 0.85 and len(places.diff().unique()) > 1


stamp_some = Exercise(
    "stamp_some",
    3,
    _stamp_some,
    _stamp_cases,
    (
        Criterion(
            0.1,
            lambda made: _set(made) is not None,
            "Return two things, images (N, C, H, W) and labels (N,): as many as there were, stamped in place of the "
            "originals and not beside them.",
        ),
        Criterion(
            0.25,
            lambda made: torch.equal(_set(made)[1].long(), made.args[1]),
            "A label changed or moved. Stamped images keep their true labels, each at its place: that is what the "
            "model has to learn. Any other label would teach it that the trigger means something.",
        ),
        Criterion(
            0.2,
            _whole_trigger,
            "Stamped images must be what `trigger` makes of them, whole, and used as it is.",
        ),
        Criterion(
            0.25,
            lambda made: int(_changed(made).sum()) == round(made.args[3] * len(made.args[0])),
            "Count the stamped images: round(share * N) different ones. Drawn with replacement, some come twice.",
        ),
        Criterion(
            0.1,
            _by_chance,
            "The right number, but not by chance: with the first images, or every fifth, whole classes may go without "
            "a stamp when the set is sorted.",
        ),
        Criterion(
            0.1,
            inputs_untouched,
            "The result is right, but your function also changed the images or labels it was given. Work on a copy.",
        ),
    ),
)

# --- choose_repair ----------------------------------------------------------------------------------------------------


def _choose_repair(rows: dict, max_asr: float, max_drop: float) -> str | None:
    floor = rows["before"][0] - max_drop
    good = {name: ra for name, (ca, asr, ra) in rows.items() if name != "before" and asr <= max_asr and ca >= floor}
    return max(good, key=good.__getitem__) if good else None


def _repair_cases(seed: int) -> list[tuple]:
    """The best RA behind too high an ASR, or too low a CA; a class that was lost; a good model before; nothing good."""
    rng = generator(seed)
    a, b, c, d = (f"repair {i}" for i in torch.randperm(9, generator=rng)[:4].tolist())
    before = (0.97, 0.99, 0.01)
    lost, fine, plain = (0.90, 0.0, 0.55), (0.96, 0.02, 0.93), (0.97, 0.94, 0.05)
    costly, ruined = (0.91, 0.01, 0.94), (0.30, 0.0, 0.25)
    return [
        ({"before": before, a: fine, b: plain, c: lost}, 0.05, 0.02),
        ({"before": before, a: lost, b: plain, c: fine, d: (0.965, 0.04, 0.90)}, 0.05, 0.02),
        ({"before": before, a: costly, b: fine}, 0.05, 0.02),
        ({"before": before, a: costly, b: fine}, 0.05, 0.10),
        ({"before": before, a: (0.96, 0.00, 0.80), b: (0.95, 0.03, 0.92)}, 0.05, 0.03),
        ({"before": (0.97, 0.03, 0.95), a: fine, b: lost}, 0.05, 0.02),
        ({"before": before, a: plain, b: ruined}, 0.05, 0.02),
        ({"before": before, a: (0.97, 0.2, 0.8), b: fine}, 0.25, 0.02),
        ({"before": before, a: (0.97, 0.2, 0.95), b: fine}, 0.25, 0.02),
    ]


def _cleared(made: Call) -> bool:
    """The chosen one is a repair that meets both limits; or there was none to choose."""
    rows, max_asr, max_drop = made.args
    if made.expected is None:
        return True
    ca, asr, _ = rows[made.value]
    return made.value != "before" and asr <= max_asr and ca >= rows["before"][0] - max_drop


choose_repair = Exercise(
    "choose_repair",
    2,
    _choose_repair,
    _repair_cases,
    (
        Criterion(
            0.4,
            _cleared,
            "A repair has to pass two limits before anything else counts: ASR at most max_asr, and CA at most max_drop "
            "below the CA before. And doing nothing is no repair.",
        ),
        Criterion(
            0.4,
            lambda made: made.expected is None or made.value == made.expected,
            "Among the repairs within the limits take the one that gives most triggered images their true label. ASR "
            "can be 0 because a class was destroyed, or because the answers are merely wrong in another way.",
        ),
        Criterion(
            0.2,
            lambda made: made.expected is not None or made.value is None,
            "When no repair passes, say so: return None rather than the least bad one.",
        ),
    ),
)

# --- rank_neurons -----------------------------------------------------------------------------------------------------


def _rank_neurons(plain: Tensor, triggered: Tensor) -> Tensor:
    return (plain - triggered).mean(0).argsort()


def _rank_cases(seed: int) -> list[tuple]:
    """Raised, lowered and untouched neurons; some loud without the trigger; few images, and as many as neurons."""
    rng = generator(seed)
    cases = []
    for n, f in ((30, 12), (6, 20), (8, 8)):
        loud = 5 * torch.rand(f, generator=rng)
        change = torch.linspace(-4, 4, f)[torch.randperm(f, generator=rng)]
        plain = loud + torch.rand(n, f, generator=rng)
        spread = torch.randn(n, f, generator=rng)
        cases.append((plain, plain + change + 2 * (spread - spread.mean(0))))
    return cases


def _order(made: Call) -> list[int]:
    """What came back, as neuron numbers; anything else raises, which meets no criterion."""
    got = torch.as_tensor(made.value)
    if got.ndim != 1 or got.is_floating_point() or got.dtype == torch.bool:
        raise TypeError
    return got.tolist()


rank_neurons = Exercise(
    "rank_neurons",
    2,
    _rank_neurons,
    _rank_cases,
    (
        Criterion(
            0.2,
            lambda made: sorted(_order(made)) == list(range(made.args[0].shape[1])),
            "Return every neuron's number once: whole numbers (F,), one for each column of the tables.",
        ),
        Criterion(
            0.3,
            lambda made: _order(made) in (made.expected.tolist(), made.expected.flip(0).tolist()),
            "What ranks a neuron is how much the trigger raises its mean activation over the images, with its sign. A "
            "neuron that is loud without the trigger as well, or that falls silent, is not what fires for it.",
        ),
        Criterion(0.5, lambda made: _order(made) == made.expected.tolist(), "The most raised neuron comes first."),
    ),
)

# --- neuron_alarm -----------------------------------------------------------------------------------------------------


def _neuron_alarm(clean: Tensor, inputs: Tensor, neurons: Tensor, frr: float) -> Tensor:
    usual, scores = clean[:, neurons].mean(1), inputs[:, neurons].mean(1)
    return scores > torch.quantile(usual, 1 - frr)


def _alarm_cases(seed: int) -> list[tuple]:
    """One watched neuron and several; the others are louder; quiet and loud inputs, more and fewer than clean ones."""
    rng = generator(seed)
    cases = []
    for m, n, f, watched, frr in ((200, 60, 10, 1, 0.05), (100, 150, 12, 3, 0.1), (80, 80, 6, 2, 0.2)):
        neurons = torch.randperm(f, generator=rng)[:watched]
        clean, inputs = 6 * torch.rand(m, f, generator=rng), 6 * torch.rand(n, f, generator=rng)
        clean[:, neurons] = torch.randn(m, watched, generator=rng)
        inputs[:, neurons] = torch.randn(n, watched, generator=rng) + torch.linspace(-2, 5, n)[:, None]
        cases.append((clean, inputs, neurons, frr))
    return cases


def _flags(made: Call) -> Tensor:
    """What came back, as bool (N,); zeros and ones will do. Anything else raises, which meets no criterion."""
    got = torch.as_tensor(made.value)
    if got.shape != (len(made.args[1]),) or not ((got == 0) | (got == 1)).all():
        raise TypeError
    return got.bool()


def _surely(made: Call) -> tuple[Tensor, Tensor]:
    """bool (N,) each: inputs far enough above, or below, the boundary that every textbook's quantile agrees."""
    clean, inputs, neurons, frr = made.args
    usual, scores = clean[:, neurons].mean(1).sort().values, inputs[:, neurons].mean(1)
    place = (1 - frr) * len(usual)
    low, high = usual[max(0, math.floor(place) - 2)], usual[min(len(usual) - 1, math.ceil(place) + 1)]
    return scores > high, scores < low


def _flags_the_high(made: Call) -> bool:
    high, low = (float(_flags(made)[part].double().mean()) for part in _surely(made))
    return high > low


neuron_alarm = Exercise(
    "neuron_alarm",
    2,
    _neuron_alarm,
    _alarm_cases,
    (
        Criterion(0.1, lambda made: _flags(made) is not None, "Return one yes or no for each input: bool (N,)."),
        Criterion(
            0.3,
            _flags_the_high,
            "Look at the direction: here a HIGH activation of the watched neurons is suspicious.",
        ),
        Criterion(
            0.6,
            lambda made: bool(_flags(made)[_surely(made)[0]].all()) and not _flags(made)[_surely(made)[1]].any(),
            "The score of an image is the mean over the watched neurons alone. The threshold comes from the clean "
            "images' scores: a share frr of them lies above it, and the inputs have no say in it.",
        ),
    ),
)

# --- fewest -----------------------------------------------------------------------------------------------------------


def _fewest(response: Tensor, limit: float) -> int | None:
    return next((n for n, value in enumerate(response.tolist()) if value <= limit), None)


def _fewest_cases(seed: int) -> list[tuple]:
    """Falling curves and one that rises again; at the limit exactly; quiet from the start; never quiet."""
    rng = generator(seed)
    falling = torch.rand(12, generator=rng).sort(descending=True).values * 0.8 + 0.1
    falling[7:] = torch.tensor([0.02, 0.015, 0.0, 0.0, 0.0])
    again = torch.tensor([1.0, 0.9, 0.005, 0.4, 0.3, 0.0])
    return [
        (falling, 0.05),
        (again, 0.01),
        (torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0]), 0.25),
        (torch.tensor([0.0, 0.0, 0.0]), 0.01),
        (torch.tensor([1.0, 0.9, 0.8, 0.85]), 0.01),
        (falling, 0.0),
    ]


def _same_count(made: Call) -> bool:
    value = torch.as_tensor(made.value)
    return value.numel() == 1 and value.dtype != torch.bool and float(value) == made.expected


fewest = Exercise(
    "fewest",
    1,
    _fewest,
    _fewest_cases,
    (
        Criterion(
            0.7,
            lambda made: made.expected is None or _same_count(made),
            "Entry n of the curve belongs to n silenced neurons, n = 0, 1, 2, ... Take the first n at which the "
            "response is at most the limit; what the curve does later does not matter.",
        ),
        Criterion(
            0.3,
            lambda made: made.expected is not None or made.value is None,
            "A curve may never come down to the limit. Then no number is right: return None.",
        ),
    ),
)
