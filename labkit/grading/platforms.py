"""How do grades get into Canvas, Moodle and nbgrader?

    write(folder, records)      canvas.csv, and moodle_LAB.csv for each lab
    into_gradebook(url, records) nbgrader's database, as if its own autograder had run

Both platforms know a student by the number in the names of the files that they hand out; who was collected from a plain
folder is written with the folder's name, which must then be the login name there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labkit.grading.records import put, safe, slim

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE = ("Identifier", "Full name", "Grade", "Maximum Grade", "Feedback comments")


def write(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """The files for both platforms."""
    rows = list(map(slim, records))
    put(folder / "canvas.csv", canvas(rows))
    for lab in sorted({row["lab"] for row in rows}):
        put(folder / f"moodle_{lab}.csv", moodle([row for row in rows if row["lab"] == lab]))


def canvas(rows: list[dict[str, Any]]) -> bytes:
    """Canvas, Grades > Import: a row for each student, a column for each lab, the maximum in the second row."""
    labs = {row["lab"]: row["max_score"] for row in sorted(rows, key=lambda row: row["lab"])}
    students: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        students.setdefault((row["student"], row["id"]), {})[row["lab"]] = row["score"]
    lines = [[*CANVAS, *labs], ["    Points Possible", "", "", "", "", *(f"{points:g}" for points in labs.values())]]
    for (student, number), scores in students.items():
        who = [safe(student), number, "", "" if number else safe(student), ""]
        lines.append(who + [f"{scores[lab]:g}" if lab in scores else "" for lab in labs])
    return text(lines)


def moodle(rows: list[dict[str, Any]]) -> bytes:
    """Moodle, the assignment's offline grading worksheet (Upload grading worksheet)."""
    lines: list[list[str]] = [[*MOODLE]]
    for row in rows:
        who = f"Participant {row['id']}" if row["id"] else safe(row["student"])
        said = "; ".join(f"{name}: {points:g}" for name, points in row["points"].items())
        lines.append([who, safe(row["student"]), f"{row['score']:.2f}", f"{row['max_score']:.2f}", said])
    return text(lines)


def text(lines: list[list[str]]) -> bytes:
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows(lines)
    return made.getvalue().encode("utf-8", "replace")


def into_gradebook(url: str, records: Iterable[dict[str, Any]]) -> int:
    """Write scores into nbgrader's gradebook, e.g. sqlite:///course/gradebook.db; returns how many submissions."""
    from nbgrader.api import Gradebook

    count = 0
    with Gradebook(url) as book:
        for record in records:
            lab, student = record["lab"], record["student"]
            book.update_or_create_assignment(lab)
            book.update_or_create_notebook(lab, lab)
            for one in record["exercises"]:
                settings = {"max_score": one["max_points"], "cell_type": "code"}
                book.update_or_create_grade_cell(one["grade_id"], lab, lab, **settings)
            book.update_or_create_student(student)
            book.update_or_create_submission(lab, student)
            for one in record["exercises"]:
                grade: Any = book.find_grade(one["grade_id"], lab, lab, student)
                grade.auto_score, grade.needs_manual_grade = one["points"], False
            book.db.commit()
            count += 1
    return count
