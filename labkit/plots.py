"""Figures of the labs: each function draws one kind of picture and returns the matplotlib Figure.

The title is the caller's, because a title states the finding. Clean is blue, triggered is red-orange, everywhere; both
stay apart for colour-blind readers, and line styles differ as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from labkit.metrics import roc
from labkit.train import Epoch

CLEAN, TRIGGERED, NEUTRAL = "#2f6db3", "#d1495b", "#6b7280"


def new_figure(width: float = 6.4, height: float = 3.6, **subplots) -> tuple[Figure, Axes]:
    """A figure in the house style and its axes: (width, height) in inches; further arguments as for plt.subplots.

    The figure is closed for pyplot, so a notebook shows it once, where it is returned, and memory does not grow.
    """
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained", **subplots)
    plt.close(figure)
    return figure, axes


def titled(figure: Figure, title: str) -> Figure:
    """The figure with its finding on top, at the left. Changes the figure."""
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def picture(image: Tensor):
    """(C, H, W) in [0, 1] -> what imshow takes: (H, W, 3), or (H, W) for grey."""
    image = image.detach().cpu().float().clamp(0, 1)
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()


def grid(
    images: Tensor, captions: Sequence[str] = (), *, columns: int = 8, title: str = "", size: float = 1.1
) -> Figure:
    """Images (N, C, H, W) in rows of `columns`, each with its caption, pixels shown as they are."""
    rows = -(-len(images) // columns)
    room = 0.22 * max((c.count("\n") + 1 for c in captions), default=0)
    width, height = size * min(columns, len(images)), (size + room) * rows + (0.4 if title else 0)
    figure, axes = new_figure(max(width, 3.0), height, nrows=rows, ncols=min(columns, len(images)), squeeze=False)
    for i, ax in enumerate(axes.flat):  # type: ignore[attr-defined]
        ax.set_axis_off()
        if i < len(images):
            ax.imshow(picture(images[i]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(captions[i] if i < len(captions) else "", fontsize=8, fontweight="normal", loc="center")
    return titled(figure, title)


def before_after(clean: Tensor, triggered: Tensor, *, title: str = "", magnify: float = 1.0) -> Figure:
    """Three rows: clean images, the same triggered, and what was added, grey where nothing was (times `magnify`)."""
    residual = ((triggered - clean) * magnify / 2 + 0.5).clamp(0, 1)
    names = ("clean", "triggered", "difference" + (f" x{magnify:g}" if magnify != 1 else ""))
    figure, axes = new_figure(1.1 * len(clean) + 0.8, 3.9, nrows=3, ncols=len(clean), squeeze=False)
    for row, (name, images) in enumerate(zip(names, (clean, triggered, residual), strict=True)):
        for ax, image in zip(axes[row], images, strict=True):  # type: ignore[index]
            ax.imshow(picture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[row][0].set_ylabel(name, fontsize=9)  # type: ignore[index]
    return titled(figure, title)


def attention(
    rows: Sequence[tuple[str, Tensor, Sequence[Tensor]]], columns: Sequence[str], *, title: str = "", size: float = 1.6
) -> Figure:
    """Where layers look: a row for each (name, image (C, H, W), maps (h, w), one a layer); bright is much, dark little.

    Each map is stretched over the image's frame and has a scale of its own, from 0 to its largest value. Lab 09.
    """
    figure, axes = new_figure(
        size * (1 + len(columns)) + 0.6, size * len(rows) + 0.7, nrows=len(rows), ncols=1 + len(columns), squeeze=False
    )
    for line, (name, image, maps) in zip(axes, rows, strict=True):  # type: ignore[arg-type]
        line[0].imshow(picture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        line[0].set_ylabel(name, fontsize=9)
        for ax, one in zip(line[1:], maps, strict=True):
            ax.imshow(one.detach().cpu().float().numpy(), cmap="magma", vmin=0, interpolation="nearest")
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    for ax, name in zip(axes[0], ("image", *columns), strict=True):  # type: ignore[index]
        ax.set_title(name, fontsize=9)
    return titled(figure, title)


def training(history: Sequence[Epoch], *, title: str = "") -> Figure:
    """Loss (nats) and accuracy (%) over epochs, side by side."""
    figure, (left, right) = new_figure(8.0, 3.0, ncols=2)  # type: ignore[misc]
    epochs = [e.number for e in history]
    left.plot(epochs, [e.loss for e in history], "o-", color=CLEAN)
    left.set(xlabel="epoch", ylabel="mean training loss (nats)", ylim=(0, None))
    right.plot(epochs, [100 * e.accuracy for e in history], "o-", color=CLEAN)
    right.set(xlabel="epoch", ylabel="training accuracy (%)", ylim=(None, 100))
    return titled(figure, title)


def race(
    clean: Tensor, poisoned: Tensor, *, level: float | None = None, xlabel: str = "epoch", title: str = ""
) -> Figure:
    """Losses (nats) of clean (T, N) and poisoned (T, M) images at times 0 to T - 1: medians, bands that hold 80%."""
    figure, ax = new_figure()
    for values, colour, label, mark in ((clean, CLEAN, "clean", "o-"), (poisoned, TRIGGERED, "poisoned", "s--")):
        low, middle, high = values.float().quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1)
        ax.fill_between(range(len(values)), low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(range(len(values)), middle, mark, color=colour, label=f"{label} ({values.shape[1]:,})")
    if level is not None:
        ax.axhline(level, color="black", linestyle=":", linewidth=1, label=f"{level:g} nats")
    ax.set(xlabel=xlabel, ylabel="loss of an image (nats)", ylim=(0, None), xticks=range(len(clean)))
    ax.legend(frameon=False)
    return titled(figure, title)


def sweep(
    x: Sequence[float],
    series: Mapping[str, Sequence[float] | Tensor],
    *,
    xlabel: str,
    title: str = "",
    log: bool = False,
) -> Figure:
    """Shares in [0, 1] over a knob, drawn in %: series is {"CA": [...], "ASR": [...]}, one value for each x.

    Each point gets a mark, unless there are more than 40.
    """
    figure, ax = new_figure()
    colours = {"CA": CLEAN, "ASR": TRIGGERED, "RA": NEUTRAL, "FRR": CLEAN, "FAR": TRIGGERED}
    marks = ("o-", "s--", "^:", "D-.") if len(x) <= 40 else ("-", "--", ":", "-.")
    for (name, values), mark in zip(series.items(), marks, strict=False):
        ax.plot(x, [100 * float(v) for v in values], mark, label=name, color=colours.get(name))
    if log:
        ax.set_xscale("log")
        ax.set_xticks(list(x), [f"{v:g}" for v in x])
        ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel="share of images (%)", ylim=(-3, 103))
    ax.legend(frameon=False)
    return titled(figure, title)


def scores(clean: Tensor, triggered: Tensor, threshold: float | None = None, *, xlabel: str, title: str = "") -> Figure:
    """Histograms of a detector's scores on clean and triggered inputs, as shares of each, with the threshold."""
    figure, ax = new_figure()
    both = torch.cat([clean, triggered]).float()
    edges = torch.linspace(float(both.min()), max(float(both.max()), float(both.min()) + 1e-6), 41)
    for values, colour, label, hatch in ((clean, CLEAN, "clean", None), (triggered, TRIGGERED, "triggered", "//")):
        counts = torch.histogram(values.float(), edges).hist / len(values) * 100
        ax.stairs(counts, edges, fill=True, color=colour, alpha=0.55, hatch=hatch, label=f"{label} ({len(values):,})")
    if threshold is not None:
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    ax.set(xlabel=xlabel, ylabel="share of inputs (%)")
    ax.legend(frameon=False)
    return titled(figure, title)


def errors(clean: Tensor, triggered: Tensor, *, title: str = "") -> Figure:
    """FAR over FRR of a detector that flags low scores, both on a log axis in %, down to one input."""
    figure, ax = new_figure(5.0, 3.6)
    _, frr, far = roc(clean, triggered)
    floor = 50 / max(len(clean), len(triggered))  # half an input, in %
    ax.plot((100 * frr).clamp_min(floor), (100 * far).clamp_min(floor), color=TRIGGERED, drawstyle="steps-post")
    ax.axvline(1, color=NEUTRAL, linestyle=":", label="FRR 1%")
    ax.axhline(1, color=NEUTRAL, linestyle="--", label="FAR 1%")
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="false rejection rate, clean inputs flagged (%)", ylabel="false acceptance rate (%)")
    ax.legend(frameon=False)
    return titled(figure, title)


def answer(image: Tensor, probs: Tensor, classes: Sequence[str], *, mark: int | None = None, title: str = "") -> Figure:
    """An image (C, H, W) beside the model's probabilities (K,); class `mark` (the target) in the trigger's colour."""
    figure, (left, right) = new_figure(7.2, 0.24 * len(classes) + 1.0, ncols=2, width_ratios=(1, 1.6))  # type: ignore[misc]
    left.imshow(picture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_axis_off()
    colours = [TRIGGERED if k == mark else CLEAN for k in range(len(classes))]
    right.barh(range(len(classes)), [100 * float(p) for p in probs], color=colours)
    right.set_yticks(range(len(classes)), list(classes), fontsize=8)
    right.invert_yaxis()
    right.set(xlim=(0, 100), xlabel="probability (%)")
    return titled(figure, title)


def confusion(table: Tensor, classes: Sequence[str], *, title: str = "") -> Figure:
    """Counts (K, K), rows the true class, columns the predicted one; only the mistakes are coloured. Lab 01."""
    k = len(classes)
    figure, ax = new_figure(0.38 * k + 2.2, 0.3 * k + 2.0)
    mistakes = table.clone().fill_diagonal_(0)
    shown = mistakes.double().masked_fill(mistakes == 0, float("nan"))  # nothing is drawn there
    ax.imshow(shown, cmap="Reds", vmin=0, vmax=max(1, int(mistakes.max())) * 1.4, aspect="auto")
    for i, j in table.nonzero().tolist():
        ax.text(j, i, str(int(table[i, j])), ha="center", va="center", fontsize=7, color=NEUTRAL if i == j else "black")
    ax.set_xticks(range(k), list(classes), rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(k), list(classes), fontsize=8)
    ax.set(xlabel="the model's answer", ylabel="true class")
    return titled(figure, title)
