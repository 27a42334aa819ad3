"""Figures show what they are given; explorers redraw when a control moves and hold a still picture as well."""

import base64
import io

import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from labkit import plots, widgets
from labkit.attacks import BadNets
from labkit.metrics import detection
from labkit.train import Epoch
from tests.tiny import PatchDetector, image_set


def figures():
    data, history = image_set(8), [Epoch(i, 1 / i, 1 - 0.5 / i, 1.0) for i in (1, 2, 3)]
    clean, triggered = torch.rand(50) + 1, torch.rand(40)
    yield plots.grid(data.images, list("abcdefgh"), columns=4, title="t")
    yield plots.grid(image_set(3, channels=1).images)
    yield plots.before_after(data.images, BadNets(0).trigger(data.images), title="t", magnify=3)
    yield plots.training(history, title="t")
    yield plots.race(torch.rand(3, 50) + 1, torch.rand(3, 9), level=0.5, title="t")
    yield plots.sweep([0.1, 1], {"CA": [0.9, 0.8], "ASR": [0.0, 1.0]}, xlabel="rate (%)", title="t", log=True)
    yield plots.scores(clean, triggered, 1.0, xlabel="entropy (bits)", title="t")
    yield plots.scores(torch.ones(5), torch.ones(5), xlabel="constant")
    yield plots.errors(clean, triggered, title="t")
    yield plots.answer(data.images[0], torch.tensor([0.1, 0.2, 0.3, 0.4]), data.classes, mark=1, title="t")
    yield plots.attention([("a", data.images[0], [torch.rand(4, 4), torch.rand(2, 2)])], ("one", "two"), title="t")


def test_every_figure_renders_and_none_stays_open():
    for figure in figures():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        assert len(buffer.getvalue()) > 2000
    assert not plt.get_fignums()


def test_axes_carry_units():
    labels = [ax.get_xlabel() + ax.get_ylabel() for f in list(figures())[3:9] for ax in f.axes]
    assert all("(" in label and ")" in label for label in labels)


def test_attention_has_a_row_for_each_model_and_a_scale_for_each_map():
    image, low = image_set(1, channels=1).images[0], torch.tensor([[0.0, 0.1], [0.2, 0.1]])
    figure = plots.attention([("before", image, [low, 5 * low]), ("after", image, [low, low])], ("early", "late"))
    assert [ax.get_title() for ax in figure.axes] == ["image", "early", "late", "", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["before", "", "", "after", "", ""]
    scales = [ax.images[0].get_clim() for ax in figure.axes if ax.images[0].get_cmap().name == "magma"]
    assert [low for low, _ in scales] == [0] * 4
    assert [high for _, high in scales] == pytest.approx([0.2, 1.0, 0.2, 0.2])


def test_a_sweep_draws_per_cent():
    (ax,) = plots.sweep([1, 2], {"ASR": [0.25, 1.0]}, xlabel="x").axes
    assert list(ax.lines[0].get_ydata()) == [25.0, 100.0]


def test_the_trigger_explorer_redraws_and_says_what_the_model_says():
    data = image_set(12)
    made = widgets.trigger_explorer(PatchDetector(target=0).eval(), data, 0)
    first = made.png
    made.controls["image"].value = 5
    second = made.png
    made.controls["opacity"].value = 0.0
    assert len({first, second, made.png}) == 3
    titles = [made.draw(image=1, size=3, place="bottom right", opacity=o)._suptitle.get_text() for o in (0.0, 1.0)]
    assert titles[0].endswith(f"says {data.classes[1]}") and titles[1].endswith(f"says {data.classes[0]}")


def test_the_strip_explorer_shows_frr_and_far_of_its_sliders():
    rng = torch.Generator().manual_seed(0)
    clean, triggered = torch.rand(80, 10, generator=rng) + 0.5, torch.rand(60, 10, generator=rng)
    made = widgets.strip_explorer(clean, triggered, 0.8)
    made.controls["overlays"].value = 3
    found = detection(clean[:, :3].mean(1), triggered[:, :3].mean(1), 0.8)
    title = made.draw(overlays=3, threshold=0.8)._suptitle.get_text()
    assert f"FRR {found.frr:.1%}, FAR {found.far:.1%}" in title


def curves(start: float) -> dict[str, torch.Tensor]:
    return {name: torch.linspace(start, end, 5) for name, end in (("CA", 0.25), ("ASR", 0.0))}


def test_the_pruning_explorer_shows_the_chosen_victims_curves_at_its_slider():
    made = widgets.pruning_explorer({"ordinary": curves(1.0), "aware": curves(0.5)})
    assert made.controls["silenced"].max == 4 and made.controls["silenced"].value == 2
    first = made.png
    made.controls["silenced"].value = 4
    second = made.png
    made.controls["victim"].value = "aware"
    assert len({first, second, made.png}) == 3
    figure = made.draw(victim="aware", silenced=2)
    assert "aware, 2 of 4 channels silenced: CA 37.5%, ASR 25.0%" in figure._suptitle.get_text()
    assert list(figure.axes[0].lines[-1].get_xdata()) == [2, 2]  # where the dashed line stands


def test_long_sweeps_have_no_marks():
    marks = [plots.sweep(range(n), {"CA": [0.5] * n}, xlabel="x").axes[0].lines[0].get_marker() for n in (40, 41)]
    assert marks == ["o", "None"]


@pytest.mark.parametrize("kind", ["trigger", "strip", "pruning"])
def test_the_display_holds_the_widget_and_a_still_picture(kind):
    if kind == "trigger":
        made = widgets.trigger_explorer(PatchDetector().eval(), image_set(4), 0)
    elif kind == "pruning":
        made = widgets.pruning_explorer({"ordinary": curves(1.0)})
    else:
        made = widgets.strip_explorer(torch.rand(9, 4) + 1, torch.rand(9, 4), 1.0)
    bundle = made._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width > 300
