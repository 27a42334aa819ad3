"""Which parts of the website are computed when it is built, and from what?

without_missing_labs(text)   links to labs that don't exist yet become plain text
lab_page(notebook, name)     a lab with its download link under the title
contact_sheet(path)          drawn signs, one of them with a patch, for the start page
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

LAB_LINK = re.compile(r"\[([^\]]+)\]\(labs/(\w+)\.ipynb\)")
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
