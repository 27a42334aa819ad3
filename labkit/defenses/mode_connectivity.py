"""Mode connectivity repair (MCR): is there a clean model on the way between two backdoored ones?

Zhao, Chen, Das, Ramamurthy and Lin 2020, "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness";
curves and their training by Garipov, Izmailov, Podoprikhin, Vetrov and Wilson 2018, "Loss Surfaces, Mode Connectivity,
and Fast Ensembling of DNNs". Two trained networks can be joined by a curve in weight space along which the training
loss stays low. If the curve is trained on clean images, the clean task is all that is kept. In its middle, where the
mixed weights are wrong about most images, the network is rebuilt from clean images, and without the backdoor.

    bezier, polygon     phi(t), the point between two ends and one bend
    Path                the module with weights phi(t), t drawn anew for each batch; only the bend is trained
    reestimate          batch normalisation's statistics, measured anew for the weights phi(t)
    middlemost          the point furthest from both ends that keeps the clean accuracy
    mode_connectivity   ends, bend trained on clean images, point chosen

The defender has: the model, some clean images with labels; a second model of the same architecture if there is one.
Without it the other end is `fine_tune(model, clean)`, as the paper does with a single tampered model.
Not: the trigger. Fails when: both ends reach the backdoor by the same weights, as a model and its fine-tuned copy do;
the path between them need not leave it. Two models that were trained apart share no weights, only what they do. Lab 09.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from labkit.data import ImageSet
from labkit.defenses.fine_tune import fine_tune, firmest, gentle, hold_out
from labkit.device import device_of, generator
from labkit.metrics import BATCH, evaluate
from labkit.train import Epoch, TrainConfig, train

GRID = tuple(i / 10 for i in range(11))
Curve = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # start, bend, end, t in [0, 1] -> a tensor of their shape


def bezier(start: Tensor, bend: Tensor, end: Tensor, t: float) -> Tensor:
    """phi(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end: smooth, and drawn towards the bend."""
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


def polygon(start: Tensor, bend: Tensor, end: Tensor, t: float) -> Tensor:
    """Straight from start to the bend, which it reaches at t = 1/2, and straight on to the end."""
    return (1 - 2 * t) * start + 2 * t * bend if t <= 0.5 else (2 - 2 * t) * bend + (2 * t - 1) * end


class Path(nn.Module):
    """A curve of models from `start` to `end`; as a module, the model at one of its points.

    Its only trainable weights are the bend's, at first half-way between the ends. Called in train mode it draws t
    evenly from [0, 1] for the batch (one sample of the expected loss over the path), in eval mode it is the middle.
    """

    def __init__(self, start: nn.Module, end: nn.Module, curve: Curve = bezier, seed: int = 0):
        super().__init__()
        self.curve, self.rng = curve, generator(seed)
        self.start = copy.deepcopy(start).requires_grad_(False)
        self.end = copy.deepcopy(end).requires_grad_(False)
        self.network = copy.deepcopy(start).requires_grad_(False)  # runs with weights that are not its own
        ends = zip(self.start.parameters(), self.end.parameters(), strict=True)
        self.bend = nn.ParameterList([nn.Parameter((a + b) / 2) for a, b in ends])

    def weights(self, t: float) -> dict[str, Tensor]:
        """phi(t) by parameter name; gradients flow to the bend. Fixed numbers (means, masks) run straight."""
        points = zip(self.start.named_parameters(), self.bend, self.end.parameters(), strict=True)
        found = {name: self.curve(a, b, c, t) for (name, a), b, c in points}
        ends = zip(self.start.named_buffers(), self.end.buffers(), strict=True)
        return found | {name: a.lerp(b, t) for (name, a), b in ends if a.is_floating_point()}

    def forward(self, images: Tensor) -> Tensor:
        t = float(torch.rand((), generator=self.rng)) if self.training else 0.5
        return functional_call(self.network, self.weights(t), (images,))

    @torch.no_grad()
    def at(self, t: float, images: Tensor) -> nn.Module:
        """The model at t, a copy in eval mode, its batch normalisation re-estimated on images (N, C, H, W).

        t = 0 and t = 1 are the two ends as they were given, statistics included.
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t: expected a point of the path, 0 (start) to 1 (end); got {t!r}.")
        if t in (0, 1):
            return copy.deepcopy(self.end if t else self.start).requires_grad_(True).eval()
        model = copy.deepcopy(self.start)
        model.load_state_dict(self.weights(t), strict=False)
        return reestimate(model, images).requires_grad_(True)


@torch.no_grad()
def reestimate(model: nn.Module, images: Tensor) -> nn.Module:
    """The model itself, in eval mode, with batch normalisation's mean and variance measured anew on clean images.

    images (N, C, H, W) in [0, 1]. Changes the model's statistics, none of its weights. Statistics that belong to other
    weights, or averages of two models' statistics, are wrong for phi(t).
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    device = device_of(model)
    parts = images.tensor_split(max(1, round(len(images) / BATCH[device.type])))  # of equal size: each counts alike
    with device.autocast():
        for batch in parts:
            model(device.layout(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@dataclass(frozen=True, eq=False)
class ModeConnectivityResult:
    """model: the chosen point, t, in eval mode. history: the epochs of the bend's training (each batch at its own t).

    path: the curve. grid: the points tried; accuracy float32 (len(grid),): there, on the images that chose.
    clean: the images that re-estimate batch normalisation, so that `at(t)` is the model anywhere on the path.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    path: Path
    t: float
    grid: tuple[float, ...]
    accuracy: Tensor
    max_drop: float
    clean: ImageSet

    def at(self, t: float) -> nn.Module:
        """The model at t in [0, 1], a new copy in eval mode, batch normalisation re-estimated."""
        return self.path.at(t, self.clean.images)

    def __str__(self) -> str:
        low = int(self.accuracy.argmin())
        return (
            f"Mode connectivity: t = {self.t:g} of {len(self.grid)} points, furthest from both ends within "
            f"{self.max_drop:.1%} of the best; held-out accuracy there "
            f"{float(self.accuracy[self.grid.index(self.t)]):.1%}, lowest {float(self.accuracy[low]):.1%} at "
            f"t = {self.grid[low]:g}"
        )


def middlemost(grid: Sequence[float], accuracy: Tensor, max_drop: float) -> float:
    """The t of the grid nearest to 1/2 whose accuracy is within max_drop of the best; of two alike, the better one.

    Clean accuracy cannot tell where the backdoor is gone, but the backdoor is what the ends have: stay away from both.
    """
    within = [i for i in range(len(grid)) if accuracy[i] >= accuracy.max() - max_drop - 1e-6]
    return grid[min(within, key=lambda i: (round(abs(grid[i] - 0.5), 6), -float(accuracy[i])))]


def patient(clean: ImageSet) -> TrainConfig:
    """`gentle(clean)` for 60 epochs: half-way between two networks trained apart there is nothing yet to fine-tune."""
    return replace(gentle(clean), epochs=60)


def quicker(config: TrainConfig, curve: Curve) -> TrainConfig:
    """The same training at the rate that moves the middle of the curve as fast as it would move a model.

    With w = d phi(1/2) / d bend, the bend gets w times the middle's gradient, and the middle goes w times as far as
    the bend: w^2 in all, 1/4 on a Bezier curve, 1 on a polygon.
    """
    zero, one = torch.zeros(()), torch.ones(())
    w = float(curve(zero, one, zero, 0.5)) - float(curve(zero, zero, zero, 0.5))
    return replace(config, lr=config.lr / w**2) if w else config


def mode_connectivity(
    model: nn.Module,
    clean: ImageSet,
    *,
    other: nn.Module | None = None,
    curve: Curve = bezier,
    grid: Sequence[float] = GRID,
    max_drop: float = 0.2,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ModeConnectivityResult:
    """The model in the middle of a path of low clean loss that starts at `model`; the input models are untouched.

    A quarter of the clean set is held out to choose t; the rest trains the bend and, without `other`, fine-tunes the
    other end. other: a second model of the same architecture, backdoored or not. curve: `bezier`, `polygon` or your
    own. grid: the points tried. max_drop: how far below the best point's held-out accuracy the chosen one may lie, a
    share; so large by default that the middle, where least is left of either end, is taken unless it is useless.
    config: of both trainings; by default `patient(clean)` for the bend, whose rate `quicker` then raises, and
    `firmest(model, clean)` for the other end. `result.at(t)` is the model anywhere on the path.
    Raises ValueError for ends of different architecture, fewer than four clean images, a grid or max_drop outside
    [0, 1]; FloatingPointError when the loss is no longer finite.
    """
    grid = tuple(float(t) for t in grid)
    if not grid or not all(0 <= t <= 1 for t in grid) or not 0 <= max_drop <= 1:
        raise ValueError(
            f"mode_connectivity: expected points and max_drop in [0, 1]; got grid {grid}, max_drop {max_drop!r}."
        )
    fitted, held_out = hold_out(clean, seed)
    shared = {"seed": seed, "progress": progress}
    if other is None:
        firm = config or firmest(model, clean, **shared)
        other = fine_tune(model, fitted, config=firm, **shared).model
    check_ends(model, other)
    path = Path(model, other, curve, seed)
    history: list[Epoch] = []
    train(path, fitted, config=quicker(config or patient(clean), curve), callback=history.append, **shared)
    accuracy = torch.tensor([evaluate(path.at(t, clean.images), held_out).clean_accuracy for t in grid])
    t = middlemost(grid, accuracy, max_drop)
    return ModeConnectivityResult(path.at(t, clean.images), tuple(history), path, t, grid, accuracy, max_drop, clean)


def check_ends(start: nn.Module, end: nn.Module) -> None:
    """A ValueError unless both have the same weights by name and shape, without which there is no path."""
    a, b = ({k: tuple(v.shape) for k, v in model.state_dict().items()} for model in (start, end))
    if a != b:
        odd = next(k for k in [*a, *b] if a.get(k) != b.get(k))
        raise ValueError(
            f"other: expected a model of the same architecture; {odd!r} is {a.get(odd, 'missing')} in one and "
            f"{b.get(odd, 'missing')} in the other. Give two models that differ in their weights alone."
        )
