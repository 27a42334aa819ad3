"""Sliders over a figure; where no kernel runs (the website, a preview), the same figure stands still.

An `Explorer` draws with a function of its controls. Its display holds both forms, the live widget and a PNG of the
opening figure, and whoever shows the notebook takes the one it can. Labs 02, 05 and 06.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from labkit import plots
from labkit.attacks.badnets import PLACES, BadNets
from labkit.data import ImageSet
from labkit.metrics import detection, predict


class Explorer:
    """draw(**values) -> Figure, redrawn whenever one of the controls (ipywidgets by name) moves.

    `controls[name].value = ...` moves one from code; `png` is the figure now on display.
    """

    def __init__(self, draw: Callable[..., Figure], **controls: ipywidgets.ValueWidget):
        self.draw, self.controls = draw, controls
        self._view = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self._box = ipywidgets.VBox([*controls.values(), self._view])
        for control in controls.values():
            control.observe(self._redraw, names="value")
        self._redraw()

    @property
    def png(self) -> bytes:
        return bytes(self._view.value)  # ipywidgets keeps a memoryview, which Jupyter would send as a list of numbers

    def _redraw(self, _change=None) -> None:
        buffer = io.BytesIO()
        self.draw(**{name: control.value for name, control in self.controls.items()}).savefig(buffer, format="png")
        self._view.value = buffer.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = dict(self._box._repr_mimebundle_(include=include, exclude=exclude) or {})
        png = base64.b64encode(self.png).decode()  # a bundle is JSON, which holds no bytes
        return bundle | {"image/png": png, "text/plain": f"Explorer({', '.join(self.controls)})"}


def _slider(description: str, value: float, low: float, high: float, step: float) -> ipywidgets.ValueWidget:
    kind = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
    style = {"description_width": "9em"}
    return kind(
        value=value, min=low, max=high, step=step, description=description, style=style, continuous_update=False
    )


def trigger_explorer(model: nn.Module, data: ImageSet, target: int, *, size: int = 3) -> Explorer:
    """Change the image and the patch (size, place, opacity); see the poisoned image and what the model says. Lab 02."""

    def draw(image: int, size: int, place: str, opacity: float) -> Figure:
        one = data[image]
        stamped = BadNets(target, size=size, place=place, alpha=opacity).trigger(one.images) if opacity else one.images
        probs = predict(model, stamped)[0]
        said, true = data.classes[int(probs.argmax())], data.classes[int(one.labels)]
        title = f"A {true} with a {size}x{size} patch at {opacity:.0%} opacity: the model says {said}"
        return plots.answer(stamped[0], probs, data.classes, mark=target, title=title)

    side = min(data.images.shape[2:])
    return Explorer(
        draw,
        image=_slider("image", 0, 0, min(len(data), 100) - 1, 1),
        size=_slider("patch size (pixels)", size, 1, min(8, side), 1),
        place=ipywidgets.Dropdown(
            options=PLACES, value="bottom right", description="place", style={"description_width": "9em"}
        ),
        opacity=_slider("opacity", 1.0, 0.0, 1.0, 0.05),
    )


def strip_explorer(clean: Tensor, triggered: Tensor, threshold: float) -> Explorer:
    """Change the number of overlays and the threshold; see FRR and FAR. Lab 05.

    clean, triggered: entropies in bits of every perturbed input, (N, overlays), from `strip.perturbed_entropies`.
    """

    def draw(overlays: int, threshold: float) -> Figure:
        a, b = clean[:, :overlays].mean(1), triggered[:, :overlays].mean(1)
        result = detection(a, b, threshold)
        title = f"{overlays} overlays, threshold {threshold:.2f} bits: FRR {result.frr:.1%}, FAR {result.far:.1%}"
        return plots.scores(a, b, threshold, xlabel="STRIP score: mean entropy (bits)", title=title)

    top = round(float(torch.cat([clean, triggered]).mean(1).max()), 2)
    return Explorer(
        draw,
        overlays=_slider("overlays", clean.shape[1], 1, clean.shape[1], 1),
        threshold=_slider("threshold (bits)", float(threshold), 0.0, max(top, threshold), 0.01),
    )


def pruning_explorer(victims: dict[str, dict[str, Tensor]]) -> Explorer:
    """Choose a victim and a number of silenced channels; see CA, ASR and RA there. Lab 06.

    victims: for each name its curves {"CA": (C + 1,), "ASR": ..., "RA": ...}, shares, as `pruning_curve` draws them.
    """
    most = min(len(curve) for curves in victims.values() for curve in curves.values()) - 1

    def draw(victim: str, silenced: int) -> Figure:
        curves = {name: curve.tolist() for name, curve in victims[victim].items()}
        there = ", ".join(f"{name} {curve[silenced]:.1%}" for name, curve in curves.items())
        title = f"{victim}, {silenced} of {most} channels silenced: {there}"
        figure = plots.sweep(
            range(most + 1), victims[victim], xlabel="silenced channels, least active first", title=title
        )
        figure.axes[0].axvline(silenced, color="black", linestyle="--", linewidth=1)
        return figure

    names = ipywidgets.Dropdown(options=list(victims), description="victim", style={"description_width": "9em"})
    return Explorer(draw, victim=names, silenced=_slider("silenced channels", most // 2, 0, most, 1))
