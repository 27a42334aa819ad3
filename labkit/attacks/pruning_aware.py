"""PruningAware: can the backdoor live in the very neurons that the network's real work needs?

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning": the attack that defeats pruning, around any attack that poisons data.

    1  train an honest network on the clean training set
    2  prune its dormant neurons: the least active channels of one layer, on clean images
    3  train the pruned network on poisoned data; it must learn both tasks with the neurons that are left
    4  put the pruned neurons back, with the weights and biases of step 1 (`reinstate`)

Step 4 gives the network its usual architecture. The neurons put back are decoys: dormant, harmless, and the first that
a pruning defender cuts. They must stay dormant although the layers below have changed since step 1, so ours lowers the
shift of the batch normalisation (the bias of a channel here) by the largest output that the channel has on any training
image, with or without trigger: it then says 0 on all of them. Its running mean and variance stay as step 3 left them,
since they describe the changed input. How many neurons are left to learn both tasks is the attacker's choice, `share`;
`victim.report` tells whether they were enough.

Attacker controls: the training data, the training, and the weights that are handed over. Lab 06.
Fails when: the defender trains the network further (fine-pruning): the shared neurons get gradients and forget.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.attacks.base import PoisonAttack, Victim, card_of
from labkit.channels import activity, last_block, peaks, silenced, what_follows
from labkit.data import ImageSet
from labkit.metrics import check_target, evaluate
from labkit.models import named_layer
from labkit.train import TrainConfig, train


@dataclass(frozen=True)
class PruningAware:
    """The 4-stage attack. Its trigger and target are those of `inner`."""

    inner: PoisonAttack
    share: float = 0.5  # of the layer's channels: how many are pruned in step 2 and come back as decoys
    layer: str | None = None  # the layer that is pruned; None: the last block

    def __post_init__(self):
        if not isinstance(self.inner, PoisonAttack):
            raise ValueError(
                f"PruningAware: expected an attack that poisons data, such as BadNets(target=0); got {self.inner!r}."
            )
        if not 0 < self.share < 1:
            raise ValueError(f"PruningAware: expected 0 < share < 1 of the layer's channels; got {self.share!r}.")

    @property
    def target(self) -> int:
        return self.inner.target

    def trigger(self, images: Tensor) -> Tensor:
        return self.inner.trigger(images)

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
        """The four steps on `data`, and the Victim; evaluated if `test` is given. Trains twice with the same recipe.

        options (callback, progress) go to `train`. Raises ValueError for a target outside the classes or a layer that
        the architecture has not.
        """
        check_target(self.target, len(data.classes))
        honest = train(arch, data, config=config, seed=seed, **options)  # step 1
        layer = self.layer or last_block(honest)
        means = activity(honest, data.images, layer)
        decoys = means.argsort(stable=True)[: max(1, round(self.share * len(means)))]
        pruned = silenced(honest, layer, decoys, len(means))  # step 2
        poisoned = self.inner.poison(data, seed).without_secrets()
        train(pruned, poisoned, config=config, seed=seed, **options)  # step 3
        model = reinstate(pruned, honest, layer, decoys, poisoned.images)  # step 4
        report = evaluate(model, test, self.trigger, self.target) if test else None
        return Victim(model, self.trigger, self.target, report, card_of(self, data, arch, seed, config))


@torch.no_grad()
def reinstate(pruned: nn.Module, honest: nn.Module, layer: str, channels: Tensor, images: Tensor) -> nn.Module:
    """A network of the honest one's architecture that does what the pruned one does; the silent channels are back.

    Each of these channels gets back its weights of the honest network: its kernel, its normalisation's scale and shift,
    and its column in the next layer. Then the shift is lowered until the channel says 0 on all `images`.
    Raises ValueError for a layer that doesn't end in batch normalisation and ReLU, followed by a linear layer or a
    convolution: in others a channel has no weights of its own.
    """
    model = copy.deepcopy(honest)
    model.load_state_dict({k: v for k, v in pruned.state_dict().items() if k in honest.state_dict()})
    for mine, theirs, axis in zip(*(own_weights(m, layer) for m in (model, honest)), (0, 0, 0, 1), strict=True):
        picked = channels.to(mine.device)
        mine.index_copy_(axis, picked, theirs.index_select(axis, picked))
    shift = own_weights(model, layer)[2]
    highest = peaks(model, images, layer)[channels].to(shift.device)
    shift[channels.to(shift.device)] -= torch.where(highest > 0, 1.02 * highest + 0.02, 0)  # room for bfloat16 rounding
    return model


def own_weights(model: nn.Module, layer: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights that belong to one channel of the layer alone: kernels (C, ...), scales (C,), shifts (C,) of the last
    convolution and normalisation in it, and the next layer's weights (K, C, ...), by column. Views, not copies.

    A linear layer behind a flattening head has several columns for each channel, one a position: (K, C*P) is seen as
    (K, C, P).
    """
    parts = list(named_layer(model, layer).modules())
    convs, norms = ([p for p in parts if isinstance(p, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d))
    following = [p for p in what_follows(model, layer) if list(p.parameters())]
    ends_well = convs and norms and isinstance(parts[-1], nn.ReLU) and isinstance(parts[-2], nn.BatchNorm2d)
    after = type(following[0]).__name__ if following else "nothing"
    if not ends_well or not following or not isinstance(following[0], nn.Linear | nn.Conv2d):
        raise ValueError(
            f"layer {layer!r}: expected a layer that ends in BatchNorm2d and ReLU, with a Linear or Conv2d "
            f"next; got {[type(p).__name__ for p in parts[-2:]]}, then {after}. "
            "The last block of the models here is one."
        )
    kernels, columns = convs[-1].weight, following[0].weight
    if isinstance(following[0], nn.Linear):
        if columns.shape[1] % len(kernels):
            raise ValueError(
                f"layer {layer!r}: expected a Linear with the same number of inputs for each of its {len(kernels)} "
                f"channels; got {columns.shape[1]} inputs. Flatten the channels before it, and nothing else."
            )
        columns = columns.unflatten(1, (len(kernels), -1))  # (K, C*P) -> (K, C, P)
    return kernels, norms[-1].weight, norms[-1].bias, columns  # pyright: ignore[reportReturnType]
