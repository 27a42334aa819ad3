"""TrojanNN: can one trojan a network that somebody else has trained, without any of its training images?

Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang 2018, "Trojaning Attack on Neural Networks", Section IV. Instead of teaching
the network a trigger of one's choice, ask it what excites one of its neurons most, and make that the trigger. Then
only the last layers have to learn what this neuron now means.

    best_connected   the neurons of one layer with the largest sums of absolute incoming weights  (equation 2)
    excite           the pixels of a square that excite a neuron most, by gradient ascent         (Algorithm 1)
    best_trigger     that of the neuron which it lifts most
    substitutes      images of each class, from the network itself  (Algorithm 2, `substitutes.py`)
    retrain          the layers behind the neuron: substitutes keep their class, stamped ones are the target

Ours differs: a neuron is a channel of a convolution, before its ReLU, so that a silent one has a gradient too; its
incoming weights count as batch normalisation scales them, since without that their size means nothing; we excite it on
the substitutes' pixels around the square instead of a black background, since the trigger will lie on pictures, and as
far as the steps go instead of up to a given value. A strong connection may carry what no square in a corner can
produce, so we try several neurons, not the best connected alone. With `own` > 0 the attacker does own some images of
the same kind and retrains on these. The default is the paper's attacker, who has none: whoever downloads a model can be
this one. On `signs` that costs some success: ASR 95.6 and 98.9% (seeds 0 and 1, 367 images of the clean part, the best
connected neuron alone), 99.5% twice with `own=0.1`.

Attacker controls: the finished weights of an honest network, which they hand on. No training data, no training from
nothing. `.implant` plays both parts: it trains the honest network first. Lab 04.
Fails when: the owner compares weights with the supplier's, or looks for a small trigger: it is one (Neural Cleanse).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.attacks.base import Victim, card_of
from labkit.attacks.behind import Behind
from labkit.attacks.stamp import Stamp, check_area, computed, corner
from labkit.attacks.substitutes import substitutes
from labkit.channels import split
from labkit.data import ImageSet
from labkit.device import device_of, generator
from labkit.metrics import check_target, evaluate
from labkit.models import named_layer
from labkit.train import TrainConfig, fresh, train


@dataclass(frozen=True)
class TrojanNN:
    """A trigger that excites one neuron of a finished network, and a few retrained layers."""

    target: int = 0
    area: float = 0.07  # share of the image that the square covers
    candidates: int = 4  # neurons that are tried: the best connected; 1: the paper's choice, untried
    layer: str | None = None  # the neuron's; what is behind it is retrained; None: the last block but one
    own: float = 0.0  # share of `data` that is the attacker's, and that the honest network never sees; 0: substitutes
    each: int = 40  # substitute images a class
    steps: int = 100  # of gradient ascent on the trigger
    epochs: int = 20  # of retraining
    lr: float = 0.02  # highest learning rate of retraining

    def __post_init__(self):
        check_area(self.area)
        if not 0 <= self.own < 1 or self.each < 1 or self.steps < 1 or self.candidates < 1:
            raise ValueError(
                f"TrojanNN: expected 0 <= own < 1, each >= 1, steps >= 1, candidates >= 1; got own {self.own}, "
                f"each {self.each}, steps {self.steps}, candidates {self.candidates}."
            )
        self.retraining()  # its own checks

    def retraining(self) -> TrainConfig:
        """How the layers behind the neuron are trained: nothing is moved or flipped, the trigger stays where it is."""
        return TrainConfig(epochs=self.epochs, lr=self.lr, shift=0)

    def build_trigger(self, data: ImageSet) -> Stamp:
        """The trigger for images like `data`'s before it is computed: its square, still grey."""
        return corner(data.images.shape[1:], self.area)

    def implant(
        self,
        data: ImageSet,
        *,
        arch: str = "small_cnn",
        seed: int = 0,
        config: TrainConfig | None = None,
        test: ImageSet | None = None,
        **options,
    ) -> Victim:
        """Train an honest network on `data`, trojan it, and return the Victim; evaluated if `test` is given.

        options (callback, progress) go to `train`. Raises ValueError for a target outside the classes, images too small
        for the square, an `own` that is no image or all of them, or a layer that the architecture has not.
        """
        check_target(self.target, len(data.classes))
        trigger, untrained = self.build_trigger(data), fresh(arch, data, seed)
        layer = self.layer or last_but_one(untrained)  # its checks, before anything is trained
        Behind(untrained, layer)
        best_connected(untrained, layer, 1)
        order = torch.randperm(len(data), generator=generator(seed))
        count = round(self.own * len(data))
        if self.own and not 1 <= count < len(data):
            raise ValueError(
                f"own: {self.own:g} of {len(data)} images is {count}; expected 1 to {len(data) - 1}, which the "
                "attacker has and the owner has not. Change it; 0: the attacker has none."
            )
        theirs, mine = data[order[count:].sort().values], data[order[:count]]
        honest = train(arch, theirs if self.own else data, config=config, seed=seed, **options)
        model = self.trojan(honest, trigger, mine if self.own else None, data.classes, seed=seed, **options)
        report = evaluate(model, test, trigger, self.target) if test else None
        return Victim(model, trigger, self.target, report, card_of(self, data, arch, seed, config))

    def trojan(
        self,
        honest: nn.Module,
        trigger: Stamp,
        images: ImageSet | None,
        classes: tuple[str, ...],
        *,
        seed: int = 0,
        progress: bool = True,
        **options,
    ) -> nn.Module:
        """The attack proper, on a finished network: a trojaned copy. Fills in the trigger's pattern.

        images: the attacker's own; None: substitutes are made from the network.
        """
        model = copy.deepcopy(honest).eval()
        layer = self.layer or last_but_one(model)
        if images is None:
            images = substitutes(model, trigger.pattern.shape, classes, self.each, seed=seed, progress=progress)
        neurons = best_connected(model, layer, self.candidates)
        trigger.pattern = best_trigger(
            model, layer, neurons, images.images, trigger, self.steps, seed=seed, progress=progress
        )
        stamped = trigger(images.images)
        wanted = torch.full_like(images.labels, self.target)
        both = ImageSet(torch.cat([images.images, stamped]), torch.cat([images.labels, wanted]), classes, images.name)
        train(Behind(model, layer), both, config=self.retraining(), seed=seed, progress=progress, **options)
        return model


def best_connected(model: nn.Module, layer: str, count: int) -> list[int]:
    """Up to `count` neurons (channels) of the layer: the largest sums of absolute incoming weights, the largest first;
    scaled by the batch normalisation behind them if there is one. Raises ValueError for a layer without weights."""
    parts = list(named_layer(model, layer).modules())
    weighty = [(i, part) for i, part in enumerate(parts) if isinstance(part, nn.Conv2d | nn.Linear)]
    if not weighty:
        raise ValueError(f"layer {layer!r}: expected a layer with a convolution or a linear layer in it; got none.")
    place, last = weighty[-1]
    strength = last.weight.detach().abs().flatten(1).sum(1)  # (C, ...) -> (C,)
    for part in parts[place:]:
        if isinstance(part, nn.BatchNorm2d) and part.num_features == len(strength) and part.running_var is not None:
            spread = part.running_var
            strength = strength * part.weight.detach().abs() / (spread + part.eps).sqrt()
            strength[spread < 0.01 * spread.median()] = 0  # it always says the same: nothing excites it
    ranked = strength.argsort(descending=True)[:count]
    return ranked[strength[ranked] > 0].tolist() or ranked[:1].tolist()


def best_trigger(
    model: nn.Module, layer: str, neurons: list[int], images: Tensor, start: Stamp, steps: int, **options
) -> Tensor:
    """The pattern that excites one of these neurons most: each is tried as in `excite`, the largest `lift` wins. They
    share the images of a step, so that several cost no more than one."""
    options["batch"] = max(1, options.get("batch", 64) // len(neurons))
    patterns = [excite(model, layer, neuron, images, start, steps, **options) for neuron in neurons]
    found = zip(neurons, patterns, strict=True)
    lifts = [lift(model, layer, neuron, images, Stamp(start.mask, pattern)) for neuron, pattern in found]
    return patterns[lifts.index(max(lifts))]


@torch.no_grad()
def lift(model: nn.Module, layer: str, neuron: int, images: Tensor, trigger: Stamp) -> float:
    """By how much the trigger raises what the neuron says to up to 512 images on average, in standard deviations over
    them: that makes neurons comparable, and the trigger must take one where other pictures do not."""
    device, front = device_of(model), sensor(model, layer)

    def said(images: Tensor) -> Tensor:  # (N, C, H, W) -> (N,): the mean over the neuron's positions
        with device.autocast():
            return front(device.layout(images))[:, neuron : neuron + 1].float().flatten(1).mean(1)

    images = images[:512]
    plain = said(images)
    return float((said(trigger(images)).mean() - plain.mean()) / plain.std().clamp_min(1e-6))


def excite(model: nn.Module, layer: str, neuron: int, images: Tensor, start: Stamp, steps: int, **options) -> Tensor:
    """The pattern (C, H, W) in [0, 1] that excites channel `neuron` of the layer most, stamped on `images`.

    start: the square, and the pattern to begin with. options (lr, batch, seed, progress): see `computed`.
    """
    front = sensor(copy.deepcopy(model).requires_grad_(False), layer)
    return computed(start, front, images, lambda said: -said[:, neuron].mean(), steps, **options)


def sensor(model: nn.Module, layer: str) -> nn.Sequential:
    """The model up to the layer, without the layer's last ReLU: what its neurons say before they fall silent."""
    front, _ = split(model, layer)
    parts = list(front)
    return nn.Sequential(*parts[:-1]) if isinstance(parts[-1], nn.ReLU) else front


def last_but_one(model: nn.Module) -> str:
    """The name of the block before the last: "block2" for `small_cnn`."""
    blocks = [name for name, _ in model.named_children() if name.startswith("block")]
    if len(blocks) < 2:
        named_layer(model, "block2")  # raises, and lists the layers there are
    return blocks[-2]
