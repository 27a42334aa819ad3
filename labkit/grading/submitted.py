"""Which code cells does a submitted file hold, in whatever state it is?

    cells(bytes) -> [Cell]    in order; Unreadable says, in words for its student, why there are none

Damaged JSON, other encodings and old formats are met here, so that nobody else has to expect them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

LARGEST = 32 << 20  # bytes of a notebook; one full of figures has a few million


class Unreadable(ValueError):
    """A submission that is no notebook. The message is for its student."""


@dataclass(frozen=True)
class Cell:
    """A code cell of a submission; an id that it lacks is ''."""

    id: str
    grade_id: str
    is_check: bool
    source: str


def cells(content: bytes) -> list[Cell]:
    """The code cells of a submitted notebook, in order, whatever state it is in."""
    if len(content) > LARGEST:
        raise Unreadable(
            f"The file has {len(content) >> 20} MB; a notebook may have {LARGEST >> 20}. Clear its outputs."
        )
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unreadable("The file is not text in UTF-8, as notebooks are. Save it again in Jupyter.") from None
    except (ValueError, RecursionError, MemoryError):
        raise Unreadable("The file is no notebook: its JSON is damaged. Save it again in Jupyter.") from None
    rows = notebook.get("cells") if isinstance(notebook, dict) else None
    if rows is None and isinstance(notebook, dict) and isinstance(notebook.get("worksheets"), list):
        rows = [c for s in notebook["worksheets"] if isinstance(s, dict) for c in as_list(s.get("cells"))]  # nbformat 3
    if not isinstance(rows, list):
        raise Unreadable("The file holds JSON but no notebook: it has no cells. Save it again in Jupyter.")
    found = (cell(one) for one in rows if isinstance(one, dict) and one.get("cell_type") == "code")
    return [one for one in found if one]


def cell(row: dict[str, Any]) -> Cell | None:
    source = row.get("source", row.get("input"))
    source = "".join(source) if isinstance(source, list) and all(isinstance(s, str) for s in source) else source
    if not isinstance(source, str):
        return None
    metadata = row.get("metadata")
    role = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    role = role if isinstance(role, dict) else {}
    is_check = bool(role.get("grade")) and not role.get("solution")
    return Cell(as_text(row.get("id")), as_text(role.get("grade_id")), is_check, plain(source))


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else []


def plain(source: str) -> str:
    """Without IPython's own syntax (%magic, !command), which becomes calls that do nothing in a student's process."""
    if not any(line.lstrip().startswith(("%", "!", "?")) or line.rstrip().endswith("?") for line in source.split("\n")):
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return TransformerManager().transform_cell(source)
    except Exception:  # what IPython can't read is left as it is, and won't run
        return source
