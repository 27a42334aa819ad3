"""How many points is one submission worth?

    mark(lab, content, sandbox, seed) -> {"score": ..., "status": ..., "exercises": [...], ...}

The student's process gets arguments and returns data; the points are counted here. Each exercise is asked for by
itself, and a process that dies is replaced, so a crash in one function costs that function alone.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from torch import Tensor

from labkit.checks.exercise import judge
from labkit.grading import wire
from labkit.grading.replies import cause, returned
from labkit.grading.restore import Lab, Program, Task, restore
from labkit.grading.sandbox import Lost, Sandbox, Session
from labkit.grading.submitted import Unreadable, cells

SEED = 20  # another one than the notebooks'; `labkit grade --seed` takes any
SAID = {
    "Timeout": "Your function did not come to an end in time. Look for a loop that never stops.",
    "Crash": "The process that ran your function ended before the function answered: it used too much memory, "
    "ended Python itself, or crashed.",
    "Garbage": "What your function gave back could not be read as numbers, text or tensors of a reasonable size.",
}
NO_DATA = "What your function gives back is neither a number, a text nor a tensor, nor made of these."
ONE_AT_A_TIME = threading.Lock()  # torch's global seed is shared by all threads


def mark(lab: Lab, content: bytes, sandbox: Sandbox, seed: int = SEED) -> dict[str, Any]:
    """The result of one submission, ready for JSON. Raises nothing because of what is submitted."""
    try:
        program = restore(lab, cells(content))
    except Unreadable as error:
        return unreadable(lab, str(error))
    with Asking(lab, program, sandbox) as asking:
        rows, references = [], {}
        for task in lab.tasks:
            one = asking.exercise(task, seed, references)
            rows.append(one)
            right = one["points"] == one["max_points"]
            references[task.check] = None if right else reference(task)
    worst = [s for s in ("timeout", "crash", "garbage", "error") if any(one["status"] == s for one in rows)]
    done = summary(lab, worst[0] if worst else "ok", rows)
    return done | {"solutions": program.solutions, "seconds": asking.seconds}


def summary(lab: Lab, status: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    score = round(sum(one["points"] for one in rows), 2)
    return {"lab": lab.name, "score": score, "max_score": lab.max_score, "status": status, "exercises": rows}


def unreadable(lab: Lab, message: str) -> dict[str, Any]:
    """The result of a file that is no notebook."""
    rows = [row(task, 0.0, message, "unreadable") for task in lab.tasks]
    return summary(lab, "unreadable", rows) | {"solutions": {}, "seconds": 0.0}


def row(task: Task, points: float, message: str, status: str) -> dict[str, Any]:
    maximum = float(task.exercise.points)
    names = {"name": task.exercise.name, "grade_id": task.grade_id}
    return names | {"points": points, "max_points": maximum, "status": status, "message": message}


def reference(task: Task) -> dict[str, Any]:
    """The reference's source, for later exercises, whose functions may use it where the student's is wrong."""
    return {"opaque": "reference"} | wire.program(task.exercise.reference)


class Asking:
    """The conversation with a student's process, which is started when needed and again if it is lost."""

    def __init__(self, lab: Lab, program: Program, sandbox: Sandbox):
        self.lab, self.program, self.sandbox = lab, program, sandbox
        self.session: Session | None = None
        self.errors: dict[str, Any] = {}
        self.lost, self.seconds = "", 0.0

    def __enter__(self) -> Asking:
        self.deadline = time.monotonic() + self.sandbox.limits.wall_seconds
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.session:
            self.session.close()
        self.session = None

    def ask(self, message: Any, tensors: list[Tensor] | None, seconds: float) -> tuple[Any, list[Tensor]]:
        """Ask within what is left of the submission's time; a process that fails to answer is gone afterwards."""
        started = time.monotonic()
        left = self.deadline - started
        try:
            if left <= 0:
                raise Lost("Timeout")
            if self.session is None:
                raise Lost("Crash")
            reply, data = self.session.ask(message, tensors, min(seconds, left))
            if not isinstance(reply, dict):
                raise Lost("Garbage")
            return reply, data
        except Lost:
            self.close()
            raise
        finally:
            self.seconds += time.monotonic() - started

    def run(self) -> None:
        """Start a process and run the cells in it. Lost if they end it, then and at every later try."""
        if self.session or self.lost:
            return
        self.session = self.sandbox.open()
        names = {task.check: task.function for task in self.lab.tasks}
        seconds = self.sandbox.limits.cell_seconds * max(1, len(self.program.steps))
        try:
            reply, _ = self.ask({"program": self.program.steps, "checks": names}, None, seconds)
        except Lost as error:
            self.lost = str(error)
            return
        self.errors = reply["cells"] if isinstance(reply.get("cells"), dict) else {}

    def exercise(self, task: Task, seed: int, references: dict[str, Any]) -> dict[str, Any]:
        """The result of one exercise."""
        if task.cell not in self.program.solutions and not self.program.solutions:
            return row(task, 0.0, "Not attempted yet.", "empty")
        self.run()
        if self.lost:
            return row(task, 0.0, SAID[self.lost].replace("Your function", "Your notebook", 1), self.lost.lower())
        with ONE_AT_A_TIME:
            given = task.exercise.cases(seed)
        tensors: list[Tensor] = []
        cases = [[wire.encode(one, tensors) for one in args] for args in given]
        message = {"call": task.function, "cases": cases, "references": references}
        try:
            reply, data = self.ask(message, tensors, self.sandbox.limits.call_seconds)
            if "died" in reply:
                raise Lost(reply["died"] if reply["died"] in SAID else "Garbage")
            if "missing" in reply:
                return self.missing(task)
            calls = returned(given, reply, data)
        except Lost as error:
            if str(error) == "Garbage":  # more of it may follow
                self.close()
            return row(task, 0.0, SAID[str(error)], str(error).lower())
        if all(isinstance(made.value, wire.Opaque) for made in calls if not made.error) and not calls[-1].error:
            return row(task, 0.0, NO_DATA, "ok")
        with ONE_AT_A_TIME:
            points = judge(task.exercise, seed, calls)
        status = "error" if calls and calls[-1].error else "ok"
        return row(task, float(points), points.message.replace(" The lab goes on with the reference.", ""), status)

    def missing(self, task: Task) -> dict[str, Any]:
        """No such function: was the cell never written, or did it fail?"""
        error = self.errors.get(task.cell)
        if task.cell not in self.program.solutions or not isinstance(error, dict):
            return row(task, 0.0, f"Not attempted yet: there is no function `{task.function}`.", "empty")
        return row(
            task, 0.0, f"The cell stopped before there was a function `{task.function}`: {cause(error)}.", "error"
        )
