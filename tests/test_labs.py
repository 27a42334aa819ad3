"""Every lab runs blank with 0 points and solved with all of them, and is built as a lab should be.

Whole runs are read where nbval has kept them (`make notebooks`), and made where not.
"""

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import NAMES, PROJECT, cell, lab
from nbgrader.utils import determine_grade

from labkit.course.executed import run_once
from labkit.course.notebooks import encode
from labkit.course.release import student_notebook

NO_ALT = re.compile(r"<img(?![^>]*\balt=[\"'][^\"'])")
every_lab = pytest.mark.parametrize("name", NAMES)


@cache
def executed(name: str, blank: bool) -> nbformat.NotebookNode:
    """The lab, solved or as students get it, after running all its cells."""
    notebook = student_notebook(lab(name), name) if blank else lab(name)
    return nbformat.reads(encode(run_once(notebook, name)).decode(), as_version=4)


def points(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """What each check cell earned, as nbgrader reads it: the one result's text as a float, nothing on stderr."""
    earned = {}
    for one in notebook.cells:
        role = one.metadata.get("nbgrader", {})
        if role.get("grade") and not role["solution"]:
            (result,) = (out for out in one.outputs if out.output_type == "execute_result")
            earned[role.grade_id] = float(result.data["text/plain"])
            assert determine_grade(one) == (earned[role.grade_id], role.points), (
                f"nbgrader reads {role.grade_id} otherwise"
            )
    return earned


def maximum(notebook: dict) -> dict[str, float]:
    roles = (one["metadata"].get("nbgrader", {}) for one in notebook["cells"])
    return {role["grade_id"]: float(role["points"]) for role in roles if role.get("grade")}


@pytest.mark.whole
@every_lab
def test_a_blank_notebook_runs_through_with_no_error_and_no_point(name):
    ran = executed(name, blank=True)
    assert points(ran) == dict.fromkeys(maximum(lab(name)), 0.0)
    shown = [str(one.outputs) for one in ran.cells if one.metadata.get("nbgrader", {}).get("grade")]
    assert all("Not attempted yet" in text for text in shown), "0 points for another reason than an untouched stub"


@pytest.mark.whole
@every_lab
def test_the_solved_notebook_earns_every_point(name):
    ran = executed(name, blank=False)
    assert points(ran) == maximum(lab(name)) != {}


@pytest.mark.whole
@every_lab
def test_every_figure_has_a_caption_and_every_picture_its_alt_text(name):
    assert uncaptioned(executed(name, blank=False)) == []


def test_nbval_collects_every_code_cell(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.ipynb").write_bytes(encode(student_notebook(lab(name), name)))
    solved, blank = collected(PROJECT / "labs"), collected(tmp_path)
    code_cells = {name: sum(c["cell_type"] == "code" for c in lab(name)["cells"]) for name in NAMES}
    assert solved == blank == code_cells and min(code_cells.values()) > 5


def collected(folder: Path) -> dict[str, int]:
    """How many cells `pytest --nbval-lax` finds in each notebook of a folder."""
    options = ["--collect-only", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-o", "addopts="]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    return dict(Counter(Path(line.split("::")[0]).stem for line in output.splitlines() if ".ipynb::" in line))


def uncaptioned(ran: dict) -> list[str]:
    """Cells that show a picture and are not followed by a text cell '*Figure ...', and <img> without alt text."""
    found = []
    for one, after in zip(ran["cells"], [*ran["cells"][1:], None], strict=True):
        data = [out["data"] for out in one.get("outputs", []) if "data" in out]
        pages = ["".join(d.get("text/html", "")) for d in data]
        if any(kind.startswith("image/") for d in data for kind in d) or any("<img" in page for page in pages):
            if after is None or after["cell_type"] != "markdown" or not "".join(after["source"]).startswith("*Figure"):
                found.append(f"{one['id']}: expected a text cell that starts with *Figure after the picture")
        found += [f"{one['id']}: <img> without alt text" for page in pages if NO_ALT.search(page)]
    return found


# --- what the helpers above say, on outputs made by hand -------------------------------------------------------------


def with_output(*outputs: dict) -> nbformat.NotebookNode:
    ran = cell("check-one", "check_one", grade=True, points=1) | {"outputs": list(outputs)}
    return nbformat.from_dict({"cells": [ran, cell("after", "Text.", "markdown")]})


def shown(**data: str) -> dict:
    return {"output_type": "execute_result", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in data.items()}}


def test_points_are_read_as_nbgrader_reads_them():
    assert points(with_output(shown(text_plain="0.5"))) == {"check-one": 0.5}
    noisy = {"output_type": "stream", "name": "stderr", "text": "warning"}
    for wrong in ([], [shown(text_plain="fine")], [noisy, shown(text_plain="0.5")], [shown(text_plain="7.0")]):
        with pytest.raises((AssertionError, ValueError)):
            points(with_output(*wrong))


def test_a_picture_wants_a_caption_and_alt_text():
    assert len(uncaptioned(with_output(shown(image_png="abc")))) == 1
    assert len(uncaptioned(with_output(shown(text_html="<img src='a'>")))) == 2
    captioned = with_output(shown(image_png="abc"), shown(text_html="<img alt='A stop sign' src='a'>"))
    captioned.cells[1].source = "*Figure 1. What it shows.*"
    assert uncaptioned(captioned) == []
