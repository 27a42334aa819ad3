"""What several tests share: the project's folders and a small solved notebook to bend."""

import sys
from pathlib import Path

import pytest

from labkit.course.notebooks import read

PROJECT = Path(__file__).parents[1]
LABS = sorted((PROJECT / "labs").glob("[0-9][0-9]_*.ipynb"))
EXPECTED_LABS = (  # fewer is an error, more is welcome
    "00_tour",
    "01_classifier",
    "02_badnets",
    "03_triggers",
    "04_implants",
    "05_strip",
    "06_pruning",
    "07_neural_cleanse",
    "08_unlearning",
    "09_distil_and_connect",
    "10_anti_backdoor_learning",
    "11_arms_race",
)
NAMES = sorted({*EXPECTED_LABS, *(path.stem for path in LABS)})

SOLUTION = r'''def overlay(images, ghosts, opacity=0.5):
    """Blend."""
    ### BEGIN SOLUTION
    hazy_images = (1 - opacity) * images + opacity * ghosts  # the blend
    return hazy_images.clamp(0, 1) if opacity < 2 else "it's\n odd"
    ### END SOLUTION'''
CHECK = """points_overlay = 2.0 if overlay(1, 1) else 0.0
### BEGIN HIDDEN TESTS
assert overlay(4, 4).tolist() == [secret_total, 7]
### END HIDDEN TESTS
points_overlay"""


def lab(name: str) -> dict:
    """The solved notebook of that name; a missing one fails the test that asks for it."""
    path = PROJECT / "labs" / f"{name}.ipynb"
    assert path.exists(), f"expected the lab {path.name}, got {[p.name for p in LABS]}"
    return read(path)


def cell(name: str, source: str, kind: str = "code", **nbgrader) -> dict:
    """One notebook cell; keyword arguments become its nbgrader metadata."""
    made: dict = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
    if nbgrader:
        role = {
            "schema_version": 3,
            "grade_id": name,
            "grade": False,
            "solution": False,
            "locked": False,
            "task": False,
        }
        made["metadata"]["nbgrader"] = role | nbgrader
    if kind == "code":
        made |= {"execution_count": None, "outputs": []}
    return made


@pytest.fixture
def solved() -> dict:
    """A solved notebook with one exercise, hidden tests, and everything that running it leaves behind."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    ran = cell("setup", "opacity = 0.5\nprint(opacity)")
    ran["metadata"] = {"collapsed": True, "execution": {"iopub.status.busy": "2026-01-01"}, "tags": ["setup"]}
    ran |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["0.5\n"]}]}
    cells = [
        cell("title", "# Overlay\nWhat does a blend do? ½ und ½", "markdown"),
        ran,
        cell("overlay", SOLUTION, solution=True),
        cell("check-overlay", CHECK, grade=True, locked=True, points=2),
        cell("last", "1 + 1"),
    ]
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "widgets": {"state": "hazy_images"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if sys.platform == "win32":  # submissions are run on Linux and macOS
    collect_ignore = ["test_grade.py", "test_hostile.py", "test_mark.py", "test_sandbox.py"]


@pytest.fixture(scope="session")
def sandboxes():
    """Zygotes for all tests that run submissions: importing torch takes seconds. Called like `Sandbox`."""
    from labkit.grading.sandbox import Sandbox

    class Shared(Sandbox):
        def close(self) -> None:
            idle.append(self)

    def borrow(limits) -> Sandbox:
        one = idle.pop()
        one.limits = limits
        return one

    idle = [Shared(), Shared()]
    made = list(idle)
    for one in made:  # here, in the thread that lives longest: bubblewrap dies with the thread that started it
        one.start()
    yield borrow
    for one in made:
        one.stop()


@pytest.fixture
def sandbox(sandboxes):
    """A place where submissions are run."""
    from labkit.grading.limits import Limits

    with sandboxes(Limits(cell_seconds=10, call_seconds=10)) as one:
        yield one
