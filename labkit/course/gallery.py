"""The gallery of attacks: the same images under every trigger, and what each victim came to, from results/.

`benchmarks/attacks.py --save` leaves results/gallery/<attack>.png beside its cards: clean images in a row, the same
with the trigger below, pixel for pixel (`strip`). A page of the book then asks for

    {{ gallery }}           a table of all attacks on `signs`
    {{ gallery BadNets }}   one attack: its picture, with the difference magnified, and its figures on every data set
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from labkit.course.results import NOT_YET, read_card, script_of, table
from labkit.plots import before_after

ASKED = re.compile(r"\{\{ gallery(?: (\w+))? \}\}")
OVERVIEW = "signs"  # the data set of the table of all attacks
STRONGEST = 0.999  # quantile of the differences that a magnified one still shows without clipping
DPI = 130


def strip(clean: Tensor, triggered: Tensor) -> Image.Image:
    """Both batches (N, 3, H, W) in [0, 1] as one picture of 2H x NW pixels: the clean images above."""
    rows = [torch.cat(list(images.cpu().float()), 2) for images in (clean, triggered)]
    pixels = (torch.cat(rows, 1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def read_strip(path: Path) -> tuple[Tensor, Tensor]:
    """What `strip` has put together: (clean, triggered), float32 (N, 3, S, S) each. ValueError if it is no strip."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1) / 255
    side = pixels.shape[1] // 2
    if pixels.shape[1] % 2 or pixels.shape[2] % side:
        raise ValueError(
            f"{path}: expected two rows of square images; got {pixels.shape[1]}x{pixels.shape[2]} pixels. "
            "Measure it again: python benchmarks/attacks.py --save"
        )
    clean, triggered = (torch.stack(row.split(side, 2)) for row in pixels.split(side, 1))
    return clean, triggered


def with_gallery(text: str, results: Path, static: Path) -> str:
    """The page with every `{{ gallery ... }}` filled in; pictures are written to the folder `static`."""
    if not ASKED.search(text):
        return text
    cards: dict[str, dict[str, list[dict[str, Any]]]] = {}  # {attack: {data set: cards}}
    for path in sorted(results.glob("*.json")):
        card = read_card(path)
        named = card["name"].split(", ")
        if script_of(card) == "attacks.py" and len(named) == 3:
            cards.setdefault(named[0], {}).setdefault(named[1], []).append(card)
    return ASKED.sub(lambda asked: one(asked[1], cards, results, static) if asked[1] else overview(cards), text)


def overview(cards: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    found = [card for of_one in cards.values() for card in of_one.get(OVERVIEW, [])]
    return table(found) if found else NOT_YET


def one(attack: str, cards: dict[str, dict[str, list[dict[str, Any]]]], results: Path, static: Path) -> str:
    """The picture of one attack, and the table of its figures, as far as there are any."""
    found = [card for of_set in cards.get(attack, {}).values() for card in of_set]
    image = results / "gallery" / f"{attack}.png"
    if not found or not image.is_file():
        return table(found) if found else NOT_YET
    clean, triggered = read_strip(image)
    magnify = magnification(triggered - clean)
    figure = before_after(clean, triggered, title=finding(attack, cards), magnify=magnify)
    static.mkdir(parents=True, exist_ok=True)
    figure.savefig(static / f"gallery_{attack}.png", dpi=DPI)
    larger = f", {magnify} times" if magnify > 1 else ""
    alt = f"Clean images, the same with the trigger of {attack}, and the difference{larger}."
    return f"![{alt}](_static/gallery_{attack}.png)\n\n{table(found)}"


def magnification(difference: Tensor) -> int:
    """A power of 2, at most 16, by which the difference can be multiplied and still be shown around grey."""
    largest = float(difference.abs().flatten().quantile(STRONGEST))
    return next((times for times in (16, 8, 4, 2) if times * largest <= 1), 1)


def finding(attack: str, cards: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The title: how often the trigger works and how visible it is, as the cards of `signs` say."""
    value = {card["name"].rpartition(", ")[2]: card["value"] for card in cards[attack].get(OVERVIEW, [])}
    if not {"ASR", "PSNR"} <= set(value):
        return attack
    return f"{attack}: ASR {value['ASR']:.1f}% on {OVERVIEW}, at a PSNR of {value['PSNR']:.0f} dB"
