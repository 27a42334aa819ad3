"""What do a student and an instructor read after grading?

    write(folder, records, run) -> folder/feedback/STUDENT.html for each student, and folder/overview.html

Plain pages that need no script, no network and no other file. A student's page holds points and a tutor's words, and
nothing of the hidden inputs; whatever comes from a student is escaped.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from labkit.grading.records import file_name, put, slim
from labkit.grading.similar import pairs

BARS = 10  # of the distribution
SHOWN = 20  # rows of a list


def write(folder: Path, records: Iterable[dict[str, Any]], run: dict[str, Any]) -> None:
    """All pages of a class. `records` is read once for the pages of students and once for each lab's likely copies."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"points": lambda value: f"{value:g}", "words": words}
    rows = []
    for student, own in itertools.groupby(records, key=lambda record: record["student"]):
        labs = list(own)
        page = pages.get_template("feedback.html").render(student=student, labs=labs)
        put(folder / "feedback" / f"{file_name(student)}.html", page.encode("utf-8", "replace"))
        rows += map(row, labs)
    names = sorted({one["lab"] for one in rows})
    labs = [lab(name, [one for one in rows if one["lab"] == name], records, run) for name in names]
    page = pages.get_template("overview.html").render(
        labs=labs, run=run, students=len({one["student"] for one in rows})
    )
    put(folder / "overview.html", page.encode("utf-8", "replace"))


def words(text: str) -> Markup:
    """Escaped text with `code` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def row(record: dict[str, Any]) -> dict[str, Any]:
    """What the overview needs of a record."""
    lost = [one for one in record["exercises"] if one["points"] < one["max_points"]]
    said = {one["name"]: one["message"] for one in lost if one["status"] != "empty"}
    first = next((one["message"] for one in lost if one["status"] not in ("ok", "empty")), "")
    maxima = {one["name"]: one["max_points"] for one in record["exercises"]}
    extra = {"said": said, "maxima": maxima, "first": record.get("problem", first)}
    return slim(record) | extra | {"page": f"feedback/{file_name(record['student'])}.html"}


def lab(
    name: str, rows: list[dict[str, Any]], records: Iterable[dict[str, Any]], run: dict[str, Any]
) -> dict[str, Any]:
    """The figures of one lab."""
    solutions = {one["student"]: one["solutions"] for one in records if one["lab"] == name}
    scores = [one["score"] for one in rows]
    seconds = {one["student"]: run["seconds"].get(f"{one['student']}/{name}", 0.0) for one in rows}
    return {
        "name": name,
        "n": len(rows),
        "max_score": rows[0]["max_score"],
        "mean": statistics.fmean(scores),
        "median": statistics.median(scores),
        "bars": bars(scores, rows[0]["max_score"]),
        "exercises": [exercise(one, rows) for one in rows[0]["points"]],
        "failures": [one for one in rows if one["status"] != "ok"],
        "late": [one for one in rows if one["late"] not in ("", "0")],
        "slowest": sorted(seconds.items(), key=lambda item: -item[1])[:5],
        "alike": pairs(solutions)[:SHOWN],
    }


def bars(scores: list[float], maximum: float) -> list[dict[str, Any]]:
    """The distribution: how many scores in each tenth of the maximum, the last one closed."""
    counts = [0] * BARS
    for score in scores:
        counts[min(BARS - 1, int(BARS * score / maximum))] += 1
    step = maximum / BARS
    return [
        {"label": f"{i * step:g}-{(i + 1) * step:g}", "count": count, "share": count / max(counts)}
        for i, count in enumerate(counts)
    ]


def exercise(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How an exercise went: share with full marks, mean share of its points, and what was most often said."""
    maximum = next(one["maxima"][name] for one in rows)
    said = [one["said"][name] for one in rows if name in one["said"]]
    return {
        "name": name,
        "full": sum(one["points"][name] == maximum for one in rows) / len(rows),
        "mean": statistics.fmean(one["points"][name] / maximum for one in rows),
        "said": statistics.mode(said) if said else "",
    }
