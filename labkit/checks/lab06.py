"""Lab 06, pruning: how active is a channel, how is it silenced, how many may go, and does the trigger share them?

activity -> silence -> how_many -> overlap: the defence in the order of its steps, then the attacker's answer to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator

# --- activity ---------------------------------------------------------------------------------------------------------


def _activity(features: Tensor) -> Tensor:
    return features.mean((0, 2, 3))


def _feature_cases(seed: int) -> list[tuple]:
    """Not square, and with as many images as channels or rows, where a wrong axis still fits; a channel that sleeps."""
    rng = generator(seed)
    cases = []
    for shape in ((8, 5, 4, 4), (6, 6, 3, 5), (1, 7, 2, 2), (4, 4, 4, 4), (9, 3, 1, 1)):  # N, C, H, W
        features = (torch.randn(shape, generator=rng) + torch.randn(1, shape[1], 1, 1, generator=rng)).relu()
        features[:, 1] = 0
        cases.append((features,))
    return cases


def _scaled(made: Call) -> bool:
    """Right up to one positive factor: a sum over images or positions in place of a mean."""
    total, wanted = float(made.value.double().sum()), float(made.expected.double().sum())
    return same_values(Call(made.args, made.value.double() * wanted / total, expected=made.expected))


activity = Exercise(
    "activity",
    2,
    _activity,
    _feature_cases,
    (
        Criterion(
            0.3,
            same_shape,
            "Look at the shape: one number for each channel, so (N, C, H, W) becomes (C,). Three axes disappear.",
        ),
        Criterion(
            0.4,
            _scaled,
            "The numbers don't belong to the channels' mean output. Which axis of (N, C, H, W) is the channel? All "
            "outputs count, zeros too, each with its value.",
        ),
        Criterion(
            0.3, same_values, "The order is right, the scale is not: a mean does not grow with images or positions."
        ),
    ),
)

# --- silence ----------------------------------------------------------------------------------------------------------


def _silence(features: Tensor, channels: Tensor) -> Tensor:
    made = features.clone()
    made[:, channels] = 0
    return made


def _silence_cases(seed: int) -> list[tuple]:
    rng = generator(seed)
    chosen = ((6, [0, 3]), (5, [4]), (4, [2, 0, 1]), (4, []), (3, [0, 1, 2]))  # channels, those that go
    shapes = ((3, 4, 4), (2, 3, 5), (4, 4, 4), (2, 2, 3), (5, 1, 1))  # N, H, W
    return [
        (torch.rand(n, c, h, w, generator=rng) + 0.1, torch.tensor(gone, dtype=torch.long))
        for (c, gone), (n, h, w) in zip(chosen, shapes, strict=True)
    ]


def _part(silent: bool):
    def holds(made: Call) -> bool:
        """The chosen channels, or the others, are as they should be."""
        features, channels = made.args
        picked = torch.zeros(features.shape[1], dtype=torch.bool)
        picked[channels] = True
        mine, wanted = (values[:, picked == silent] for values in (made.value, made.expected))
        return same_values(Call(made.args, mine, expected=wanted))

    return holds


silence = Exercise(
    "silence",
    2,
    _silence,
    _silence_cases,
    (
        Criterion(
            0.2,
            same_shape,
            "Look at the shape: a silenced channel is still there and says 0, so (N, C, H, W) stays (N, C, H, W).",
        ),
        Criterion(
            0.3,
            _part(silent=True),
            "A chosen channel still speaks somewhere: it must be 0 for every image at every position. The indices "
            "count channels, the second axis.",
        ),
        Criterion(0.3, _part(silent=False), "A channel that was not chosen has changed: leave the others as they are."),
        Criterion(
            0.2, inputs_untouched, "The values are right, but `features` was changed in place. Return a new tensor."
        ),
    ),
)

# --- how_many ---------------------------------------------------------------------------------------------------------


def _how_many(curve: Tensor, max_drop: float) -> int:
    allowed = (curve[:-1] >= curve[0] - max_drop).nonzero()
    return int(allowed.max())


def _curve_cases(seed: int) -> list[tuple]:
    """Eighths and sixteenths, exact in binary: a point on the threshold is on it whatever way one subtracts."""
    rng = generator(seed)
    smooth = torch.cat([torch.tensor([1.0]), torch.rand(12, generator=rng).sort(descending=True).values])
    return [
        (torch.tensor([0.5, 0.5, 0.4375, 0.3125, 0.125, 0.0625]), 0.25),  # falls all the way
        (torch.tensor([0.75, 0.6875, 0.5, 0.71875, 0.25, 0.125]), 0.0625),  # comes back: the dip is passed over
        (torch.tensor([0.875, 0.875, 0.75, 0.5, 0.125]), 0.125),  # one point exactly on the threshold
        (torch.tensor([0.5, 0.25, 0.125, 0.0625]), 0.0),  # nothing can go
        (torch.tensor([0.5, 0.5, 0.5, 0.5]), 0.0625),  # all could go, but one channel stays
        ((smooth * 64).round() / 64, 0.25),
    ]


def _kind(*which: int):
    """The criterion looks at these cases only; a case is known by its curve's length and drop."""
    keys = [(len(curve), drop) for curve, drop in _curve_cases(0)]

    def holds(made: Call) -> bool:
        curve, drop = made.args
        return (len(curve), drop) not in [keys[i] for i in which] or same_values(
            Call(made.args, torch.as_tensor(made.value).double().reshape(()), expected=float(made.expected))
        )

    return holds


def _whole_number(made: Call) -> bool:
    value = torch.as_tensor(made.value)
    return value.numel() == 1 and float(value) == int(value) and 0 <= int(value) < len(made.args[0])


how_many = Exercise(
    "how_many",
    3,
    _how_many,
    _curve_cases,
    (
        Criterion(0.1, _whole_number, "Return one whole number: how many channels go, from 0 to C - 1."),
        Criterion(
            0.3,
            _kind(0, 3, 5),
            "Count the channels: curve[n] is the accuracy with n of them silenced, and it may lie `max_drop` below "
            "curve[0], the accuracy of the whole network. A drop is a difference.",
        ),
        Criterion(
            0.25,
            _kind(1),
            "The curve is not smooth: it may dip and recover. Ask for the largest n that is allowed, not for the first "
            "point that is not.",
        ),
        Criterion(0.2, _kind(2), "Look at a point exactly on the threshold: a drop of `max_drop` is still allowed."),
        Criterion(
            0.15, _kind(4), "One channel has to stay, else nothing is left to prune: the last point doesn't count."
        ),
    ),
)

# --- overlap ----------------------------------------------------------------------------------------------------------


def _overlap(clean: Tensor, triggered: Tensor, k: int) -> float:
    woken = (triggered - clean).topk(k).indices
    busy = clean.topk(len(clean) // 2).indices
    return float(torch.isin(woken, busy).double().mean())


def _overlap_cases(seed: int) -> list[tuple]:
    """Distinct values; the trigger wakes sleepers, busy channels, or both; loud channels may stay as loud as ever."""
    rng = generator(seed)
    cases = []
    for channels, sleepers, rise, busy, more, k in (  # how many of each kind wake, by how much; k are counted
        (16, 4, 0.4, 0, 0.0, 4),
        (16, 4, 0.2, 4, 0.5, 4),
        (20, 2, 0.3, 3, 0.3, 5),
        (12, 3, 0.4, 3, 0.4, 6),
        (30, 6, 0.3, 2, 0.6, 8),
    ):
        clean = (torch.randperm(channels, generator=rng) + 1) / channels
        order = clean.argsort()
        triggered = clean * (1 - 0.1 * torch.rand(channels, generator=rng))
        triggered[order[:sleepers]] += rise
        triggered[order[channels - busy - 2 : channels - 2]] += more  # busy, not the busiest
        cases.append((clean, triggered, k))
    return cases


def _is_share(made: Call) -> bool:
    value = torch.as_tensor(made.value).double()
    return value.numel() == 1 and 0 <= float(value) <= 1


overlap = Exercise(
    "overlap",
    3,
    _overlap,
    _overlap_cases,
    (
        Criterion(0.2, _is_share, "Return one number, a share of the k woken channels: from 0 to 1."),
        Criterion(
            0.4,
            lambda made: (float(made.value) > 0) == (made.expected > 0),
            "Woken channels are the k whose activity rises most from clean to triggered images: take the difference. "
            "A channel that is always loud was not woken.",
        ),
        Criterion(
            0.4,
            lambda made: same_values(_single(made)),
            "Of the k woken channels, count those among the busier half: the C // 2 channels most active on *clean* "
            "images. Divide by k.",
        ),
    ),
)


def _single(made: Call) -> Call:
    return Call(made.args, torch.as_tensor(made.value).double().reshape(()), expected=float(made.expected))
