"""Which neurons carry the backdoor, and what if we watch them, or silence them?

Wang et al. 2019, "Neural Cleanse", Sections VI-A and VI-B. Lay the reversed trigger over clean images and see which
inputs of the last linear layer (the second to last layer's neurons) rise the most. Two repairs follow:

    trigger_neurons        neurons ranked by how much the trigger raises their mean activation
    neuron_filter          reject inputs that excite the top 1% of them as no clean image does     (Section VI-A)
    prune_trigger_neurons  silence them, the most excited first, until the trigger stops working   (Section VI-B)

The defender has: the model, clean labelled images, a reversed trigger. Not: the true trigger. Fails when: the reversed
trigger excites other neurons than the true one (the paper sees it in its Trojan models), or the neurons that carry the
backdoor also carry the task: pruning them costs accuracy, and the curve shows how much. Lab 08.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.data import ImageSet, check_images
from labkit.defenses.unlearn import check_stamped
from labkit.device import device_of
from labkit.metrics import eval_mode, forward
from labkit.metrics import share as share_of
from labkit.models import named_layer

Trigger = Callable[[Tensor], Tensor]


def last_linear(model: nn.Module, layer: str | None = None) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose inputs are the neurons: the model's last one, or the one named."""
    linears = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if layer is None and not linears:
        raise ValueError("model: expected a linear layer, whose inputs are the neurons; got none. Name one: layer=...")
    name = linears[-1] if layer is None else layer
    found = named_layer(model, name)
    if not isinstance(found, nn.Linear):
        raise ValueError(f"layer: expected a linear layer, such as {linears}; {name!r} is a {type(found).__name__}.")
    return name, found


def activations(model: nn.Module, images: Tensor, layer: str | None = None) -> Tensor:
    """float32 (N, F) on the CPU: what enters the last linear layer, or the one called `layer`, for each image."""
    name, linear = last_linear(model, layer)
    kept: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach().float().cpu()))
    try:
        forward(model, images)
    finally:
        handle.remove()
    if kept[0].ndim != 2:
        shape = (len(images), *kept[0].shape[1:])
        raise ValueError(f"layer {name!r}: expected one row of neurons for each image, (N, F); got shape {shape}.")
    return torch.cat(kept)


def trigger_neurons(plain: Tensor, triggered: Tensor) -> Tensor:
    """int64 (F,): neurons by how much the trigger raises their mean activation, most first. Both inputs (N, F)."""
    return (triggered.mean(0) - plain.mean(0)).argsort(descending=True, stable=True)


@dataclass(frozen=True, eq=False)
class FilterResult:
    """scores float32 (N,): mean activation of the watched neurons, HIGH is suspicious; flagged bool (N,): scores >
    threshold. clean_scores (M,) set the threshold. neurons: those watched. For `metrics.detection`, where low is
    suspicious, negate scores and threshold."""

    scores: Tensor
    threshold: float
    flagged: Tensor
    clean_scores: Tensor
    neurons: tuple[int, ...]
    frr: float

    def __str__(self) -> str:
        n = int(self.flagged.sum())
        return (
            f"neuron filter: {f'{n:,} inputs' if n else 'nothing'} flagged of {len(self.flagged):,}; "
            f"{len(self.neurons)} neuron(s) watched, threshold {self.threshold:.3f} at FRR {self.frr:.1%} of "
            f"{len(self.clean_scores):,} clean images"
        )


def neuron_filter(
    model: nn.Module,
    inputs: Tensor,
    clean: ImageSet,
    trigger: Trigger,
    *,
    share: float = 0.01,
    frr: float = 0.05,
    layer: str | None = None,
) -> FilterResult:
    """Which inputs excite the trigger's neurons more than all but a share `frr` of the clean images do.

    share: of the layer's neurons that are watched, at least one; 1% in the paper. frr: false rejections among clean
    images, 5% in the paper. layer: a linear layer, the last by default. The model is left as it is.
    """
    check_images(inputs, "inputs")
    check_images(clean.images, "clean")
    if not 0 < share <= 1 or not 0 < frr < 1:
        raise ValueError(f"neuron_filter: expected 0 < share <= 1 and 0 < frr < 1; got share {share!r}, frr {frr!r}.")
    model = eval_mode(model)
    stamped = check_stamped(trigger(clean.images), clean.images)
    plain, triggered = activations(model, clean.images, layer), activations(model, stamped, layer)
    neurons = trigger_neurons(plain, triggered)[: max(1, round(share * plain.shape[1]))]
    clean_scores, scores = plain[:, neurons].mean(1), activations(model, inputs, layer)[:, neurons].mean(1)
    threshold = float(torch.quantile(clean_scores, 1 - frr))
    return FilterResult(scores, threshold, scores > threshold, clean_scores, tuple(neurons.tolist()), frr)


@dataclass(frozen=True, eq=False)
class NeuronPruneResult:
    """model: the repaired copy. pruned: the silenced neurons. label: the class that the trigger sends images to.

    order int64 (F,): all neurons, the most excited first. With n = 0..F of them silenced: response float32 (F+1,),
    share of stamped clean images, not of `label`, still sent there; accuracy float32 (F+1,), on the clean images.
    """

    model: nn.Module
    pruned: tuple[int, ...]
    label: int
    order: Tensor
    response: Tensor
    accuracy: Tensor

    def __str__(self) -> str:
        n = len(self.pruned)
        before, after = float(self.response[0]), float(self.response[n])
        cost = f"accuracy on the clean set {float(self.accuracy[0]):.1%} -> {float(self.accuracy[n]):.1%}"
        if not n:
            return f"neuron pruning: nothing pruned, model unchanged; response to the trigger {before:.1%}"
        return (
            f"neuron pruning: {n} of {len(self.order)} neurons; response to the trigger {before:.1%} -> {after:.1%}; "
            + cost
        )


def prune_trigger_neurons(
    model: nn.Module, clean: ImageSet, trigger: Trigger, *, response: float = 0.01
) -> NeuronPruneResult:
    """A copy with the fewest trigger neurons silenced that brings the response to the trigger down to `response`.

    The paper prunes until the model no longer responds to the reversed trigger; ours says when that is. All of it is
    judged on the defender's clean set, from one pass of features: the model must end in its last linear layer, else
    ValueError. A model that doesn't respond, or never stops to, comes back unchanged (`pruned` is empty). The input
    model is untouched.
    """
    if not 0 <= response < 1:
        raise ValueError(f"prune_trigger_neurons: expected 0 <= response < 1, a share of images; got {response!r}.")
    check_images(clean.images, "clean")
    model = eval_mode(model)
    name, linear = last_linear(model)
    labels = clean.labels.cpu()
    stamped = check_stamped(trigger(clean.images), clean.images)
    plain, triggered = activations(model, clean.images, name), activations(model, stamped, name)
    order = trigger_neurons(plain, triggered)
    answers = forward(model, stamped).argmax(1)
    weight = linear.weight.detach().float().cpu().clone()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float().cpu()
    if share_of((triggered @ weight.T + bias).argmax(1) == answers) < 0.9:  # rounding turns a few
        raise ValueError(f"model: expected it to end in its last linear layer, {name!r}; more follows. Wrap it.")
    label = int(answers.bincount(minlength=len(clean.classes)).argmax())
    others = labels != label
    if not others.any():
        raise ValueError(f"clean: expected images outside class {label}, where the trigger leads; got none. Add some.")

    responses, accuracies = [], []
    for n in range(len(order) + 1):
        weight[:, order[max(0, n - 1) : n]] = 0  # silencing a neuron = not listening to it
        responses.append(share_of((triggered[others] @ weight.T + bias).argmax(1) == label))
        accuracies.append(share_of((plain @ weight.T + bias).argmax(1) == labels))
    works = [n for n, r in enumerate(responses[:-1]) if r <= response]
    pruned = order[: works[0]] if works else order[:0]

    repaired = copy.deepcopy(model)
    with torch.no_grad():
        last_linear(repaired, name)[1].weight[:, pruned.to(device_of(model).name)] = 0
    return NeuronPruneResult(
        repaired, tuple(pruned.tolist()), label, order, torch.tensor(responses), torch.tensor(accuracies)
    )
