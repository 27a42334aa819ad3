"""Submissions made up for tests: a lab's notebook with these answers in its solution cells."""

import copy
import inspect
import json
from importlib import import_module
from pathlib import Path

from conftest import PROJECT, lab

from labkit.course.notebooks import encode
from labkit.course.release import student_notebook
from labkit.grading.restore import Lab
from labkit.grading.restore import lab as read_lab


def source_lab(name: str) -> Lab:
    return read_lab(PROJECT / "labs" / f"{name}.ipynb")


def solved(name: str) -> bytes:
    return (PROJECT / "labs" / f"{name}.ipynb").read_bytes()


def blank(name: str) -> dict:
    """The student's notebook as handed out, to be changed."""
    return copy.deepcopy(student_notebook(lab(name), name))


def submission(name: str, answers: dict[str, str], notebook: dict | None = None) -> bytes:
    """The handed-out notebook with this source in place of the stub, for each grade id."""
    made = notebook or blank(name)
    for cell in made["cells"]:
        role = cell["metadata"].get("nbgrader", {})
        if role.get("solution") and role["grade_id"] in answers:
            cell["source"] = answers[role["grade_id"]].splitlines(keepends=True)
    return encode(made)


def solutions(name: str) -> dict[str, str]:
    """The lab's own solutions by grade id."""
    cells = (one for one in json.loads(solved(name))["cells"] if one["metadata"].get("nbgrader", {}).get("solution"))
    return {one["metadata"]["nbgrader"]["grade_id"]: "".join(one["source"]) for one in cells}


def from_answers(name: str, choice: dict[str, str]) -> bytes:
    """A submission of tests/answers: choice maps functions to 'RIGHT["stamp"][0]' or 'WRONG["stamp"][0][0]'."""
    source = inspect.getsource(import_module(f"tests.answers.lab{name[:2]}"))
    lines = [source, *(f"{function} = {answer}" for function, answer in choice.items())]
    first, *rest = solutions(name)
    return submission(name, {first: "\n".join(lines)} | dict.fromkeys(rest, "# written above"))


def write(folder: Path, student: str, name: str, content: bytes) -> Path:
    """Hand in: folder/student/name.ipynb."""
    path = folder / student / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
