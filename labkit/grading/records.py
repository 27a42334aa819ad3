"""Where do the results of a class lie, and in which form?

Records(folder, submissions)   the records of a class, read one by one
table(records)                 grades.csv
put(path, content)             a file written whole or not at all
"""

from __future__ import annotations

import csv
import io
import json
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from labkit.cache import written_whole
from labkit.grading.collect import Submission

COLUMNS = ("student", "lab", "score", "max_score", "status", "late")


class Records:
    """The records of a class, read from the disk one by one each time they are asked for."""

    def __init__(self, folder: Path, submissions: list[Submission]):
        self.folder, self.submissions = folder, submissions

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for one in self.submissions:
            record = read_record(record_path(self.folder, one))
            assert record is not None, f"{one.student}, {one.lab}: its record has vanished"
            yield record


def record_path(folder: Path, one: Submission) -> Path:
    return folder / "records" / file_name(one.student) / f"{one.lab}.json"


def file_name(student: str) -> str:
    """A student's name as a name of a file, on every system: letters and digits as they are, the rest as %20."""
    return urllib.parse.quote(student, safe=" ", errors="backslashreplace").replace(".", "%2E").strip() or "%20"


def read_record(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def encode(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8", "replace")


def put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; the same content is not written again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_bytes(content)


def table(records: Iterable[dict[str, Any]]) -> bytes:
    """grades.csv: the exercises' columns in the order of the labs."""
    records, columns = list(map(slim, records)), {}
    for record in sorted(records, key=lambda record: record["lab"]):
        columns |= dict.fromkeys(record["points"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *columns])
    for record in records:
        first = [safe(record["student"]), record["lab"], f"{record['score']:g}", f"{record['max_score']:g}"]
        points = [f"{record['points'][name]:g}" if name in record["points"] else "" for name in columns]
        writer.writerow([*first, record["status"], record["late"], *points])
    return text.getvalue().encode("utf-8", "replace")


def slim(record: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of a record that tables are made of."""
    points = {one["name"]: one["points"] for one in record["exercises"]}
    kept = ("student", "id", "lab", "score", "max_score", "status", "late")
    return {name: record[name] for name in kept} | {"points": points}


def safe(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
