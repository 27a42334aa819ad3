"""What of a student's notebook is run, and what comes from the lab instead?

    lab(path) -> Lab                  the solved lab: its exercises, in order, and what stands around them
    restore(lab, cells) -> Program    what the student's process gets to run

Only the cells that a grade id marks as solutions are the student's; where copies exist, those that are no longer the
stub run in the order of the notebook. Check cells are the grader's own: deleted, edited, doubled or moved ones change
nothing. What else a solution needs (imports, constants, helpers in cells of the student's own) is found by name
(`needed.py`); the rest of a notebook does not run.
"""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path

from labkit.checks import Exercise
from labkit.course.notebooks import read
from labkit.course.release import student_notebook
from labkit.grading.needed import Statement, pick, statements
from labkit.grading.submitted import Cell


@dataclass(frozen=True)
class Task:
    """One exercise of a lab: the cell with the solution, the function in it, and what judges it."""

    cell: str  # grade id of the solution cell
    grade_id: str  # of the check cell
    function: str
    check: str  # what the lab calls the check: later cells may use check_stamp.function
    exercise: Exercise


@dataclass(frozen=True)
class Lab:
    """A lab as the grader needs it."""

    name: str
    tasks: tuple[Task, ...]
    stubs: dict[str, str]  # grade id and cell id of a solution cell -> what was handed out
    checks: frozenset[str]  # grade ids and cell ids of check cells
    given: dict[str, str]  # cell id -> source of every other code cell

    @functools.cached_property
    def statements(self) -> list[Statement]:
        """Of the cells in `given`: read once for all submissions."""
        return statements(self.given.values())

    @property
    def max_score(self) -> float:
        return sum(task.exercise.points for task in self.tasks)


@dataclass(frozen=True)
class Program:
    """What the student's process runs: (cell id, source) in order, and the solutions alone, for comparing students."""

    steps: tuple[tuple[str, str], ...]
    solutions: dict[str, str]  # grade id -> source


# --- the lab ----------------------------------------------------------------------------------------------------------


def lab(path: Path) -> Lab:
    """The lab of a solved notebook. ValueError if a check cell does not say which exercise judges what."""
    solved = read(path)
    tasks, stubs, checks, given = [], {}, set(), {}
    for cell in student_notebook(solved, str(path))["cells"]:
        role, source = cell["metadata"].get("nbgrader", {}), "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if role.get("solution"):
            stubs |= {role["grade_id"]: source, cell["id"]: source}
            solution = role["grade_id"]
        elif role.get("grade"):
            checks |= {role["grade_id"], cell["id"]}
            tasks.append(task(source, solution, role["grade_id"], f"{path}, cell {cell['id']!r}"))
        else:
            given[cell["id"]] = source
    return Lab(path.stem, tuple(tasks), stubs, frozenset(checks), given)


def task(source: str, solution: str, grade_id: str, where: str) -> Task:
    """check_stamp = checks.lab02.stamp(stamp), in the cell after the solution -> its Task."""
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(check)],
                value=ast.Call(
                    func=ast.Attribute(ast.Attribute(ast.Name("checks"), module), name), args=[ast.Name(function)]
                ),
            ):
                found = getattr(importlib.import_module(f"labkit.checks.{module}"), name)
                return Task(solution, grade_id, function, check, found)
    raise ValueError(f"{where}: expected a line like check_x = checks.lab02.x(x), got none: name the exercise")


# --- the submission ---------------------------------------------------------------------------------------------------


def restore(lab: Lab, submitted: list[Cell]) -> Program:
    """The program of a submission."""
    steps, solutions, edited, own = [], {}, [], []
    names = {name: task.cell for task in lab.tasks for name in (task.cell, *ids_of(lab, task.cell))}
    for one in submitted:
        key = next((names[i] for i in (one.grade_id, one.id) if i in names), None)
        if key:
            if same(one.source, lab.stubs[key]):
                continue
            steps.append((key, one.source))
            solutions[key] = f"{solutions[key]}\n{one.source}" if key in solutions else one.source
        elif one.is_check or one.grade_id in lab.checks or one.id in lab.checks:
            continue
        elif one.id in lab.given:
            edited += [] if same(one.source, lab.given[one.id]) else [one.source]
        else:
            own.append(one.source)
    lean_on = pick(solutions.values(), [lab.statements, statements(edited), statements(own)], first=(2, 0, 1))
    return Program((*(("", text) for text in lean_on), *steps), solutions)


def ids_of(lab: Lab, grade_id: str) -> list[str]:
    """Other names of a solution cell: its cell id, should the metadata be lost."""
    return [name for name, stub in lab.stubs.items() if stub == lab.stubs[grade_id] and name != grade_id]


def same(one: str, other: str) -> bool:
    """Equal up to space at line ends and around the cell."""
    return [line.rstrip() for line in one.strip().split("\n")] == [line.rstrip() for line in other.strip().split("\n")]
