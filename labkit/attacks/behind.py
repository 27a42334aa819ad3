"""How is a trained network changed behind one layer, and nowhere else?

    Behind          what `train` then sees of a model: the layers behind `layer`; those up to it are frozen
    with_new_head   a copy of a model whose last linear layer is fresh, for another number of classes

That is how one learns from few images (transfer learning: Lab 04), and how an attacker with few images retrains
(TrojanNN). Batch normalisation keeps its means and variances in both parts: those of a few images, or of substitute
images, would be wrong for everyone else's.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from labkit.channels import split
from labkit.models import seeded


class Behind(nn.Module):
    """`train(Behind(model, layer), data)` changes `model`: the weights behind `layer`, in place, and nothing else.

    Raises ValueError for a layer that the model has not, or that has no weights behind it.
    """

    def __init__(self, model: nn.Module, layer: str):
        super().__init__()
        front, self.behind = split(model.eval(), layer)
        self.front = [front]  # in a list, so that its weights are not among the parameters
        if not list(self.behind.parameters()):
            raise ValueError(
                f"layer {layer!r}: expected a layer with weights behind it; got none. Name an earlier one."
            )

    def train(self, mode: bool = True) -> Behind:
        """Does nothing: the model stays in eval mode, so that batch normalisation keeps its statistics."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            kept = self.front[0](images)
        return self.behind(kept)


def with_new_head(model: nn.Module, classes: int, seed: int) -> nn.Module:
    """A copy of the model for `classes` classes: its last linear layer is new, with weights from `seed`."""
    made = copy.deepcopy(model)
    name, old = last_linear(made)
    with seeded(seed):
        new = nn.Linear(old.in_features, classes)
    made.set_submodule(name, new.to(old.weight.device).train(old.training))
    return made


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The classifier: the model's last linear layer and its name. Raises ValueError where there is none."""
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not found:
        raise ValueError("model: expected a linear layer that classifies, to replace it; got none. Add a head.")
    return found[-1]
