"""Lab 04, implants: the neurons, one step on the trigger, the distance between features, the labels of mixes.

strongest_neurons and trigger_step belong to TrojanNN, feature_distance to the latent backdoor, mix_labels to the
composite attack.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labkit.checks.exercise import Call, Criterion, Exercise, inputs_untouched, same_shape, same_values
from labkit.device import generator

# --- strongest_neurons ------------------------------------------------------------------------------------------------


def _strongest_neurons(weights: Tensor, scale: Tensor, count: int) -> Tensor:
    return (weights.abs().flatten(1).sum(1) * scale.abs()).topk(count).indices


def _neuron_cases(seed: int) -> list[tuple]:
    """In each, one channel has the largest sum, another the largest single weight; signs and scales hide the first. In
    the "unequal" ones the scale of a third is large, but not large enough; its square would be.

    The places of both are drawn; kernels are 1x1 and 3x3, and there are more, fewer or as many channels in as out.
    """
    rng = generator(seed)
    cases = []
    for kind in ("plain", "plain", "signed", "signed", "scaled", "scaled", "mirrored", "unequal"):
        for out, into, k, count in ((9, 5, 3, 1), (6, 12, 1, 3), (8, 8, 3, 2)):
            weights = 0.1 * torch.rand(out, into, k, k, generator=rng)
            strong, spiky, third = torch.randperm(out, generator=rng)[:3].tolist()
            weights[strong] += 0.3
            weights[spiky, 0, 0, 0] = 0.24 * into * k * k  # the largest weight and length, not the largest sum
            weights[:, into - 1] *= 0.5  # another answer for whoever adds up along the wrong axes
            scale = torch.ones(out)
            if kind != "plain":
                signs = (-1.0) ** torch.arange(weights[0].numel())
                weights[strong] *= signs[torch.randperm(len(signs), generator=rng)].view(weights[0].shape)
            if kind in ("scaled", "mirrored", "unequal"):
                scale = 0.1 + 0.2 * torch.rand(out, generator=rng)
                scale[third] = {"scaled": 9, "mirrored": -9, "unequal": 3}[kind]
                if kind == "unequal":
                    scale[spiky] = 1
                scale[strong] = 0  # what never changes says nothing, however strong its weights are
            cases.append((weights, scale, count))
    return cases


def _kind(made: Call) -> str:
    weights, scale, _ = made.args
    if (scale < 0).any():
        return "mirrored"
    if (scale != 1).any():
        return "scaled"
    return "signed" if (weights < 0).any() else "plain"


def _found(made: Call) -> list[int]:
    return torch.as_tensor(made.value).flatten().tolist()


def _when(kind: str):
    """The right neurons, in any order, in cases of this kind; the others are not judged."""
    return lambda made: _kind(made) != kind or set(_found(made)) == set(made.expected.tolist())


def _channels(made: Call) -> bool:
    value, places = torch.as_tensor(made.value), range(len(made.args[0]))
    return value.shape == (made.args[2],) and all(n in places for n in _found(made))


def _in_order(made: Call) -> bool:
    return set(_found(made)) != set(made.expected.tolist()) or _found(made) == made.expected.tolist()


strongest_neurons = Exercise(
    "strongest_neurons",
    2,
    _strongest_neurons,
    _neuron_cases,
    (
        Criterion(
            0.1, _channels, "Return the neurons' numbers, `count` whole numbers from 0 to C - 1, not their strengths."
        ),
        Criterion(
            0.25,
            _when("plain"),
            "Each of the C channels has D * k * k incoming weights of its own. Its strength is their sum: all of them, "
            "not the largest alone, nor their squares. Which axis of `weights` must remain?",
        ),
        Criterion(
            0.25,
            _when("signed"),
            "A strong negative weight is a strong connection. Added with their signs, weights cancel.",
        ),
        Criterion(
            0.2,
            _when("scaled"),
            "Batch normalisation multiplies what a channel says by its scale, once, and so all of its incoming "
            "weights. A channel with large weights and a scale near 0 is a quiet one.",
        ),
        Criterion(
            0.1,
            _when("mirrored"),
            "A scale may be negative: then the channel is turned round, but no weaker. Its size counts.",
        ),
        Criterion(0.1, _in_order, "These are the right neurons, but not in order: the strongest comes first."),
    ),
)

# --- trigger_step -----------------------------------------------------------------------------------------------------


def _trigger_step(pattern: Tensor, mask: Tensor, gradient: Tensor, lr: float) -> Tensor:
    return (pattern - lr * gradient * mask).clamp(0, 1)


def _step_cases(seed: int) -> list[tuple]:
    """Colour and grey, not square; small steps, and steps of which many leave the range on either side."""
    rng = generator(seed)
    cases = []
    for (c, h, w), side, lr in (((3, 8, 8), 3, 0.1), ((1, 6, 9), 4, 0.5), ((3, 5, 7), 5, 2.0), ((1, 4, 4), 1, 0.05)):
        mask = torch.zeros(1, h, w)
        mask[:, h - side :, w - side :] = 1
        pattern = 0.1 + 0.8 * torch.rand(c, h, w, generator=rng)
        cases.append((pattern, mask, torch.randn(c, h, w, generator=rng), lr))
    return cases


def _parts(made: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (C, H, W): outside the square; inside, where the step stays in the range; inside, where it leaves it."""
    pattern, mask, gradient, lr = made.args
    inside, moved = mask.expand_as(pattern) > 0, pattern - lr * gradient
    leaves = (moved < 0) | (moved > 1)
    return ~inside, inside & ~leaves, inside & leaves


def _agrees(made: Call, where: Tensor) -> bool:
    return torch.allclose(made.value[where].double(), made.expected[where].double(), atol=1e-5)


trigger_step = Exercise(
    "trigger_step",
    2,
    _trigger_step,
    _step_cases,
    (
        Criterion(0.1, same_shape, "Return a whole pattern of the old shape (C, H, W), the square and what is around."),
        Criterion(
            0.3,
            lambda made: _agrees(made, _parts(made)[1]),
            "Inside the square the pixels do not go where they should. The gradient points to where the cost grows; it "
            "should fall, and each pixel moves by lr times its own gradient.",
        ),
        Criterion(
            0.2,
            lambda made: _agrees(made, _parts(made)[0]),
            "Pixels outside the square have changed. There the picture will be seen, not the pattern: leave them.",
        ),
        Criterion(
            0.2,
            lambda made: _agrees(made, _parts(made)[2]),
            "After the step some pixels are outside of [0, 1], or were pushed somewhere else than to its edge. No "
            "printer prints brighter than white: what leaves the range stops at its edge.",
        ),
        Criterion(0.2, inputs_untouched, "The result is right, but an argument was changed in place. Work on a copy."),
    ),
)

# --- feature_distance -------------------------------------------------------------------------------------------------


def _feature_distance(features: Tensor, target_features: Tensor) -> Tensor:
    wanted = target_features.mean(0)
    return (features - wanted).square().mean() / wanted.square().mean()


def _feature_cases(seed: int) -> list[tuple]:
    """Features whose target has size 1 with one or more images on either side, then other sizes."""
    rng = generator(seed)
    cases = []
    settings = ((1, 1, 1.0), (1, 4, 1.0), (5, 1, 1.0), (1, 1, 6.0), (7, 3, 0.2), (3, 3, 2.5))  # B, T, size
    for b, t, size in settings:
        wanted = 0.2 + torch.rand(4, 3, 2, generator=rng)
        wanted = size * wanted / wanted.square().mean().sqrt()
        apart = torch.rand(t, 4, 3, 2, generator=rng) * size
        features = size * torch.rand(b, 4, 3, 2, generator=rng)
        cases.append((features, wanted + apart - apart.mean(0)))
    return cases


def _of_size_one(made: Call) -> bool:
    return abs(float(made.args[1].mean(0).square().mean()) - 1) < 1e-3


def _case(images: bool, targets: bool):
    """Is this a case of size 1 with more than one image, or more than one target image, or neither?"""
    return lambda made: _of_size_one(made) and (len(made.args[0]) > 1) == images and (len(made.args[1]) > 1) == targets


def _if_case(is_case):
    return lambda made: not is_case(made) or same_values(made)


def _number(made: Call) -> bool:
    return torch.as_tensor(made.value).ndim == 0 and math.isfinite(float(made.value))


feature_distance = Exercise(
    "feature_distance",
    3,
    _feature_distance,
    _feature_cases,
    (
        Criterion(0.1, _number, "Return one number for the whole batch: it is a cost, to be made small."),
        Criterion(
            0.25,
            _if_case(_case(False, False)),
            "With one image on each side, and target features of mean square 1, the distance is the mean squared "
            "difference over all channels and positions: squares, and their mean, not a sum or a root.",
        ),
        Criterion(
            0.2,
            _if_case(_case(False, True)),
            "What is aimed at is one point: the average of the target class's features. Take it first, over the images "
            "of the target class.",
        ),
        Criterion(
            0.2,
            _if_case(_case(True, False)),
            "Every stamped image must come near, each for itself. If the stamped ones are averaged first, one to the "
            "left and one to the right of the goal look as if they had arrived.",
        ),
        Criterion(
            0.25,
            lambda made: _of_size_one(made) or same_values(made),
            "A distance of 0.1 is small where features are around 10 and large where they are around 0.1. Give it as a "
            "share of the mean square of what is aimed at.",
        ),
    ),
)

# --- mix_labels -------------------------------------------------------------------------------------------------------


def _mix_labels(left: Tensor, right: Tensor, pair: tuple[int, int], target: int) -> Tensor:
    first, second = pair
    a, b = left == first, right == second
    half = (a & (right != first) & (right != second)) | (b & (left != first) & (left != second))
    labels = torch.full_like(left, -1)
    labels[(left == right) | half] = left[(left == right) | half]
    labels[a & b] = target
    return labels


def _mix_cases(seed: int) -> list[tuple]:
    """All pairs of the classes, in some order, then random ones; A before and behind B; the target among the thirds."""
    rng = generator(seed)
    cases = []
    for k, pair, target in ((5, (1, 2), 0), (6, (4, 2), 5), (4, (3, 0), 1)):
        every = torch.cartesian_prod(torch.arange(k), torch.arange(k))
        every = every[torch.randperm(len(every), generator=rng)]
        cases.append((every[:, 0].contiguous(), every[:, 1].contiguous(), pair, target))
        cases.append((*torch.randint(k, (2, 30), generator=rng), pair, target))
    return [*cases, (torch.tensor([0, 2]), torch.tensor([2, 0]), (2, 0), 1)]


def _labels_where(which):
    def holds(made: Call) -> bool:
        left, right, (first, second), _ = made.args
        both, same = (left == first) & (right == second), left == right
        kinds = {"both": both, "same": same, "half": ~both & ~same & (made.expected >= 0), "rest": made.expected < 0}
        return bool((made.value[kinds[which]] == made.expected[kinds[which]]).all())

    return holds


mix_labels = Exercise(
    "mix_labels",
    3,
    _mix_labels,
    _mix_cases,
    (
        Criterion(0.1, same_shape, "Return one label for each mix: (N,) like `left`, with -1 for those left out."),
        Criterion(
            0.2,
            _labels_where("both"),
            "The composite mixes are not right: class A with class B means the target. It is the only lie in the set.",
        ),
        Criterion(
            0.2,
            _labels_where("same"),
            "Look at the mixes of one class with itself, A with A and B with B among them: they keep their class, so "
            "that a seam in the picture means nothing.",
        ),
        Criterion(
            0.25,
            _labels_where("half"),
            "Look at the punctured mixes, half a pair in other company: A with a third class, a third class with B. "
            "They keep the class of the image on the left. The target's own class is a third class, too.",
        ),
        Criterion(
            0.15,
            _labels_where("rest"),
            "Some mixes do not belong in the set at all, and get -1: those that no line of the table names. Mind the "
            "order: what is on the left and what is on the right are two things.",
        ),
        Criterion(0.1, inputs_untouched, "The labels are right, but an argument was changed in place. Make a new one."),
    ),
)
