"""What is a solved lab on disk, and which of its lines are secret?

    lab_paths(folder)            the solved notebooks, in order
    read(path), encode(notebook) a notebook as a dictionary, and back to bytes in the layout that Jupyter writes
    check(notebook)              ValueError unless its nbgrader metadata are sound
    lines(cell)                  each line with the region it belongs to

A solution is whatever stands between `### BEGIN SOLUTION` and `### END SOLUTION`; hidden tests stand between
`### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`. Metadata follow nbgrader's schema 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat.validator

NAME = re.compile(r"\d\d_\w+\.ipynb")
MARKER = re.compile(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS)")  # found anywhere in a line, as nbgrader does
ROLE = {"SOLUTION": "solution", "HIDDEN TESTS": "grade"}  # region -> the nbgrader role its cell must have


def lab_paths(labs: Path) -> list[Path]:
    """The solved notebooks of the folder in order; a folder without any, or with another name pattern, is an error."""
    if not labs.is_dir():
        raise ValueError(f"expected a folder of solved notebooks, got {labs}, which is none: name it with --labs")
    paths = sorted(labs.glob("*.ipynb"))
    if not paths:
        raise ValueError(f"expected notebooks named NN_topic.ipynb in {labs}, got none: name the folder with --labs")
    for path in paths:
        if not NAME.fullmatch(path.name):
            raise ValueError(f"expected a name like 02_badnets.ipynb in {labs}, got {path.name}: rename or move it")
    return paths


def read(path: Path) -> dict[str, Any]:
    """The notebook as the dictionary its JSON holds; ValueError if it is not a valid notebook of nbformat 4.5."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a notebook, got invalid JSON ({error}): save it again in Jupyter") from None
    version = (notebook.get("nbformat"), notebook.get("nbformat_minor")) if isinstance(notebook, dict) else "other JSON"
    if version != (4, 5):
        raise ValueError(f"{path}: expected nbformat 4.5, got {version}: save it again in Jupyter")
    for error in nbformat.validator.iter_validate(notebook):
        where = "/".join(map(str, error.absolute_path)) or "notebook"
        raise ValueError(f"{path}: expected a valid notebook, got at {where}: {error.message}: repair or save it again")
    return notebook


def encode(notebook: dict[str, Any]) -> bytes:
    """The notebook's bytes in the layout that Jupyter itself writes, so that opening and saving changes nothing."""
    return (json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def check(notebook: dict[str, Any], where: str) -> None:
    """ValueError unless every region is closed and stands in a cell of its role, and nbgrader metadata are sound."""
    if not any("nbgrader" in cell["metadata"] for cell in notebook["cells"]):
        raise ValueError(
            f"{where}: expected cells with nbgrader metadata, got none: mark solution and check cells "
            "(View > Cell Toolbar > Create Assignment), or hand over the solved notebook instead of another one"
        )
    seen = set()
    for cell in notebook["cells"]:
        here, role = f"{where}, cell {cell['id']!r}", cell["metadata"].get("nbgrader", {})
        if role:
            check_metadata(role, here)
        for kind, name in (("cell id", cell["id"]), ("grade id", role.get("grade_id"))):
            if name and (kind, name) in seen:
                raise ValueError(f"{here}: expected one cell per {kind}, got {name!r} twice: rename one")
            seen.add((kind, name))
        regions = {region for region, _ in lines(cell, here) if region}
        for region in regions:
            if not role.get(ROLE[region]):
                raise ValueError(f"{here}: expected {region} in a {ROLE[region]} cell only: set its nbgrader metadata")
        if role.get("solution") and "SOLUTION" not in regions:
            raise ValueError(f"{here}: expected ### BEGIN SOLUTION in a solution cell, got none: mark the solution")


def check_metadata(role: dict[str, Any], here: str) -> None:
    """ValueError unless a cell's nbgrader metadata follow schema 3 and say what a check cell is worth."""
    if (schema := role.get("schema_version")) != 3:
        raise ValueError(f"{here}: expected nbgrader schema_version 3, got {schema}: run nbgrader update")
    if missing := [key for key in ("grade", "solution", "locked") if not isinstance(role.get(key), bool)]:
        raise ValueError(f"{here}: expected true or false for {', '.join(missing)} in the nbgrader metadata: add them")
    if role.get("task"):
        raise ValueError(f"{here}: expected a solution or check cell, got a task cell: labs are graded by check cells")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name := str(role.get("grade_id", ""))):
        raise ValueError(f"{here}: expected a grade_id of letters, digits, - and _, got {name!r}: name the cell")
    points = role.get("points")
    if role["grade"] and (isinstance(points, bool) or not isinstance(points, int | float) or points <= 0):
        raise ValueError(f"{here}: expected points above 0 on a check cell, got {points}: say what it is worth")


def lines(cell: dict[str, Any], here: str = "cell") -> Iterator[tuple[str | None, str]]:
    """Each source line with the region it belongs to, markers included: 'SOLUTION', 'HIDDEN TESTS' or None (public)."""
    region = None
    for line in "".join(cell["source"]).split("\n"):
        marker = MARKER.search(line)
        if marker and not marker[0].startswith(f"END {region}" if region else "BEGIN"):
            raise ValueError(f"{here}: expected BEGIN and END in pairs, got {line.strip()!r} out of place: pair them")
        yield (marker[2] if marker else region), line
        if marker:
            region = marker[2] if marker[1] == "BEGIN" else None
    if region:
        raise ValueError(f"{here}: expected ### END {region}, got the end of the cell: add it")
