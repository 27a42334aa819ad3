"""Which parts of the website are computed when it is built, and from what?

without_missing_labs(text)   links to labs that don't exist yet become plain text
lab_page(notebook, name)     a lab with its download link under the title
results_page(folder)         every published number, from the cards in results/
contact_sheet(path)          drawn signs, one of them with a patch, for the start page
"""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

LAB_LINK = re.compile(r"\[([^\]]+)\]\(labs/(\w+)\.ipynb\)")
CARD = ("name", "value", "unit", "spread", "n", "seeds", "machine", "recipe", "command", "date")
COLUMNS, ROWS, ZOOM = 16, 6, 3  # of the contact sheet: signs across, signs down, pixels per pixel
STAMPED = 37  # which sign carries the patch


def without_missing_labs(text: str, labs: set[str]) -> str:
    """The page with `[text](labs/name.ipynb)` kept for the labs there are, and `text` alone for the others."""
    return LAB_LINK.sub(lambda link: link[0] if link[2] in labs else link[1], text)


def lab_page(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """A copy of the notebook with a line under its title: download it; what you see is a run of the solved lab."""
    link = (
        f'<p class="lab-download"><a href="../_sources/labs/{name}.ipynb" download="{name}.ipynb">Download this '
        "notebook</a> without outputs, to work in. The outputs below come from the solved lab, so they show what your "
        "own run should look like once the exercises are done.</p>"
    )
    page, first = copy.deepcopy(notebook), "".join(notebook["cells"][0]["source"]).split("\n")
    title = next((i for i, line in enumerate(first) if line.startswith("# ")), None)
    if title is None:
        raise ValueError(f"{name}: expected a title '# ...' in the first cell, got {first[0]!r}: give the lab one")
    lines = [*first[: title + 1], "", link, "", *first[title + 1 :]]
    page["cells"][0]["source"] = "\n".join(lines).splitlines(keepends=True)
    return page


def results_page(folder: Path) -> str:
    """Markdown: a table of all cards of the folder, with the command behind each; one sentence if there are none.

    Raises ValueError for a file that is no card.
    """
    intro = (
        "# Results\n\nEvery number that this course publishes outside an executed lab: with its spread, how often it "
        "was measured, on which machine, and the command that measures it again.\n\n"
    )
    cards = [read_card(path) for path in sorted(folder.glob("*.json"))]
    if not cards:
        return intro + "No card has been stored yet: the numbers in the labs come from the runs shown there.\n"
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells(card)) + "</tr>\n" for card in cards)
    heads = "".join(
        f"<th>{name}</th>" for name in ("what", "value", "n", "seeds", "machine", "recipe, command", "date")
    )
    table = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"
    return f'{intro}<div class="wide-table">\n{table}\n</div>\n'


def read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a results card, got invalid JSON ({error}): measure it again") from None
    if missing := [key for key in CARD if not isinstance(card, dict) or key not in card]:
        raise ValueError(
            f"{path}: expected a card with {', '.join(CARD)}; got none of {', '.join(missing)}: measure it again"
        )
    return card


def cells(card: dict[str, Any]) -> list[str]:
    """One card as the HTML of its table cells."""
    plain = {key: html.escape(shown(value)) for key, value in card.items()}
    spread = card["spread"]
    if isinstance(spread, list):  # smallest and largest
        plain["spread"] = f"({' to '.join(map(shown, spread))})"
    elif spread is not None:
        plain["spread"] = f"± {plain['spread']}"
    value = f"<strong>{plain['value']}</strong> {plain['unit']} {plain['spread']}"
    recipe = f"{plain['recipe']}<br><code>{plain['command']}</code>"
    return [plain["name"], value, plain["n"], plain["seeds"], plain["machine"], recipe, plain["date"]]


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else "" if value is None else str(value)


def contact_sheet(path: Path) -> str:
    """Write a JPEG of 96 drawn signs, one of them with the BadNets patch, and return the name of that sign's class.

    The same picture each time: seed 2 is the course's test set.
    """
    from PIL import Image

    from labkit.attacks import BadNets
    from labkit.data import signs

    pixels, labels = signs.draw(COLUMNS * ROWS, 2)  # uint8 (N, 32, 32, 3)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    one = slice(STAMPED, STAMPED + 1)
    images[one] = BadNets().trigger(images[one])
    pixels = np.asarray((images * 255).round().byte().permute(0, 2, 3, 1))
    side = pixels.shape[1]
    grid = pixels.reshape(ROWS, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(ROWS * side, COLUMNS * side, 3)
    sheet = Image.fromarray(grid)
    size = (sheet.width * ZOOM, sheet.height * ZOOM)
    sheet.resize(size, Image.Resampling.BICUBIC).save(path, quality=88)
    return signs.CLASSES[labels[STAMPED]]
