"""NAD, neural attention distillation: can a half-repaired copy teach the model where to look?

Li, Lyu, Koren, Lyu, Li and Ma 2021, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural
Networks", Section 3; attention maps after Zagoruyko and Komodakis 2017. Fine-tuning turns the model's eyes away from
the trigger, but not all the way. NAD fine-tunes twice. The first copy becomes the teacher; the second is trained on the
same clean images, and layer by layer its attention is pulled towards the teacher's.

    attention_map       A(F), the mean over channels of |F|^p, p = 2: where the layer is active
    attention_distance  || A_S/||A_S|| - A_T/||A_T|| ||^2, the mean over images
    nad                 teacher = fine_tune(copy); student: cross-entropy + beta * sum over layers

The defender has: the model, some clean images with labels. Not: the trigger. Ours differs: the distance is squared, so
that its gradient fades as the maps meet; normalised, a sum over channels and their mean are the same map.
The paper trains both at one rate. By default ours lets the teacher pay: a high rate takes the backdoor out of it, and
some accuracy; the student learns at a low rate, keeps more accuracy, and takes over where to look. The rates, the 10
points that the teacher may lose and beta = 100 were found on one CIFAR-10 victim and 4,000 of the test images.
A pull as strong as that also shakes the weights, as a high rate does: with the victim itself for a teacher, signs'
backdoor goes too (batch normalisation makes the maps differ), but more accuracy with it.
Fails when: fine-tuning alone leaves the backdoor whole, and the pull is weak: then there is nothing to copy. Lab 09.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.data import ImageSet
from labkit.defenses.fine_tune import fine_tune, firmest, gentle
from labkit.defenses.prune import check_clean
from labkit.device import device_of
from labkit.metrics import eval_mode, forward
from labkit.models import named_layer
from labkit.train import Epoch, TrainConfig, train


@dataclass(frozen=True, eq=False)
class NADResult:
    """model: the student, repaired, in eval mode. history: its epochs (loss with the attention term). teacher: frozen.

    layers: whose attention was aligned. gaps float32 (epochs, layers): mean attention distance in each epoch.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    teacher: nn.Module
    layers: tuple[str, ...]
    gaps: Tensor

    def __str__(self) -> str:
        first, last = self.gaps[0].sum(), self.gaps[-1].sum()
        return (
            f"NAD: {len(self.history)} epochs on {', '.join(self.layers)}; attention distance to the teacher "
            f"{float(first):.4f} in the first, {float(last):.4f} in the last; accuracy "
            f"{self.history[-1].accuracy:.1%} on the augmented clean images"
        )


def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """Where a layer is active: features (B, C, H, W) -> (B, H, W), the mean over channels of |F|^p."""
    return features.float().abs().pow(p).mean(1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two attention maps (B, H, W), each scaled to length 1; mean over images, in [0, 2].

    It compares where the layers look, not how strongly: a map and twice that map are at distance 0.
    """
    s, t = (F.normalize(maps.flatten(1), dim=1) for maps in (student, teacher))  # (B, H*W)
    return (s - t).square().sum(1).mean()


@contextlib.contextmanager
def listening(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that holds each layer's latest output, (B, C, H, W), whenever the model has run."""
    said: dict[str, Tensor] = {}
    hooks = []
    try:
        for name in layers:
            hook = lambda _m, _i, output, name=name: said.update({name: output})  # noqa: E731
            hooks.append(named_layer(model, name).register_forward_hook(hook))
        yield said
    finally:
        for handle in hooks:
            handle.remove()


def spatial_layers(model: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> tuple[str, ...]:
    """The layers, if their outputs have more than one position; by default all blocks of which that is true.

    The normalised map of a single position is 1 in every model, so its distance is zero and teaches nothing.
    Raises ValueError for a layer that the model has not, and for one without positions.
    """
    names = layers or [name for name, _ in model.named_children() if name.startswith("block")]
    if not names:
        named_layer(model, "block1")  # raises, and lists the layers there are
    with listening(model, names) as said:
        forward(eval_mode(model), images[:2])
    shapes = {name: tuple(said[name].shape[1:]) for name in names}
    spatial = tuple(name for name in names if len(shapes[name]) == 3 and shapes[name][1] * shapes[name][2] > 1)
    if not spatial or (layers and len(spatial) < len(names)):
        flat = {name: shape for name, shape in shapes.items() if name not in spatial}
        raise ValueError(
            f"layers: expected outputs (C, H, W) with more than one position; got {flat}. A 1x1 map scaled to length 1 "
            "is always 1, so its attention distance is always zero. Name earlier layers."
        )
    return spatial


def nad(
    model: nn.Module,
    clean: ImageSet,
    *,
    layers: Sequence[str] | None = None,
    beta: float = 100.0,
    attention: Callable[[Tensor], Tensor] = attention_map,
    distance: Callable[[Tensor, Tensor], Tensor] = attention_distance,
    teacher: nn.Module | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> NADResult:
    """A repaired copy of the model: fine-tuned on the clean set with its attention pulled towards a teacher's.

    layers: by default every block whose output has more than one position. beta: weight of the attention distance,
    summed over layers. attention, distance: your own versions, if you like. teacher: by default
    `fine_tune(model, clean, config=config, seed=seed)`; it runs in eval mode and is never trained. config: of both
    trainings, as in the paper; by default the teacher's is `firmest(model, clean, max_drop=0.1)`, which tries several
    learning rates, and the student's `gentle(clean)` at half its rate. The input model is untouched.
    Raises ValueError for layers without positions, beta < 0, a clean set of fewer than two images (four without a
    config); FloatingPointError when the loss is no longer finite.
    """
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta: expected a finite weight >= 0; got {beta!r}. 0 is plain fine-tuning.")
    check_clean(clean, least=2)
    names = spatial_layers(model, clean.images, layers)
    if teacher is None:
        firm = config or firmest(model, clean, max_drop=0.1, seed=seed, progress=progress)
        teacher = fine_tune(model, clean, config=firm, seed=seed, progress=progress).model
    config = config or replace(gentle(clean), lr=gentle(clean).lr / 2)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    student = copy.deepcopy(model).requires_grad_(True)
    device_of(student).place(teacher)
    history: list[Epoch] = []
    gaps: list[Tensor] = []

    def show(_module, inputs):  # the teacher sees each batch just before the student does
        with torch.no_grad():
            teacher(inputs[0])

    with listening(student, names) as looked, listening(teacher, names) as wanted:

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            apart = torch.stack([distance(attention(looked[n]), attention(wanted[n])) for n in names])  # (L,)
            gaps.append(apart.detach())
            return F.cross_entropy(logits, labels) + beta * apart.sum()

        hook = student.register_forward_pre_hook(show)
        try:
            train(student, clean, config=config, seed=seed, loss=loss, callback=history.append, progress=progress)
        finally:
            hook.remove()
    mean_gaps = torch.stack(gaps).unflatten(0, (len(history), -1)).mean(1).cpu()  # (epochs * steps, L) -> (epochs, L)
    return NADResult(student, tuple(history), teacher, names, mean_gaps)
