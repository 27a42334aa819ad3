"""A class is graded: how, so that no work is lost and two runs give the same bytes?

    grade(submissions, labs, out, jobs=2) -> out, and beside it the folder of the same name:

    grades.csv                        one row for each student and lab
    grades/records/STUDENT/LAB.json   all there is to know about one submission
    grades/feedback/STUDENT.html ...  pages, and files for learning platforms (`pages.py`, `platforms.py`)
    grades/run.json                   seconds, and what the sandbox had in force: all that may differ between two runs

A record is written whole or not at all, as soon as its submission is done, under a key of all that determines it: the
notebook's bytes, the lab, the seed, this code. A run that was killed goes on where it was; a changed notebook is graded
again. Nothing is kept in memory of a submission that is done.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from labkit.cache import locked, source_hash
from labkit.course.notebooks import lab_paths
from labkit.grading.collect import Submission, collect
from labkit.grading.limits import Limits
from labkit.grading.mark import SEED, mark, summary, unreadable
from labkit.grading.records import Records, encode, put, read_record, record_path, table
from labkit.grading.restore import Lab, lab
from labkit.grading.sandbox import Sandbox
from labkit.grading.submitted import Unreadable


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a grade depends on besides the notebook."""

    labs: Path = Path("labs")
    seed: int = SEED
    due: datetime | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)


def grade(
    path: Path, out: Path, settings: Settings, jobs: int = 1, scheduler: str = "", gradebook: str = ""
) -> dict[str, Any]:
    """Grade everything in `path` and write `out` and what belongs to it; returns what `run.json` holds."""
    from labkit.grading import pages, platforms

    names = [one.stem for one in lab_paths(settings.labs)]
    submissions, passed = collect(path, names)
    if not submissions:
        raise ValueError(
            f"expected STUDENT/NN_topic.ipynb or a platform's zip in {path}, got none ({len(passed)} files)"
        )
    folder, records = out.with_suffix(""), Records(out.with_suffix(""), submissions)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        for part in folder.rglob(".*.part"):  # left by a run that was killed
            part.unlink()
        before = read_record(folder / "run.json") or {}
        run = {"passed_over": passed} | {name: before.get(name) or [] for name in ("in_force",)}
        seconds = dict(before.get("seconds") or {})
        for one, extra in results(submissions, folder, settings, jobs, scheduler):
            seconds[f"{one.student}/{one.lab}"] = round(extra["seconds"], 3)
            run["in_force"] = extra.get("in_force") or run["in_force"]
        run["seconds"] = {name: seconds[name] for name in sorted(seconds)}
        put(out, table(records))
        pages.write(folder, records, run)
        platforms.write(folder, records)
        if gradebook:
            platforms.into_gradebook(gradebook, records)
        put(folder / "run.json", encode(run))
    return run


def results(
    submissions: list[Submission], folder: Path, settings: Settings, jobs: int, scheduler: str
) -> Iterator[tuple[Submission, dict[str, Any]]]:
    """Mark what has no valid record yet, a few at a time; yields each with its times once its record is on the disk."""
    todo = []
    keys = {name: source_key(settings, name) for name in {one.lab for one in submissions}}
    for one in submissions:
        content = content_of(one)
        key = hashlib.sha256(keys[one.lab] + (content if isinstance(content, bytes) else content.encode())).hexdigest()
        record = read_record(record_path(folder, one)) or {}
        wanted = (key, one.days_late(settings.due))
        if (record.get("key"), record.get("late")) != wanted or record.get("status") == "not graded":
            todo.append((one, key))
    with engine(settings, jobs, scheduler) as send:
        for one, key, made in in_turn(send, todo, 4 * jobs + 4):
            extra = {name: made.pop(name, None) for name in ("seconds", "in_force")}
            record = {"student": one.student, "id": one.id, "late": one.days_late(settings.due), "key": key} | made
            put(record_path(folder, one), encode(record))
            yield one, extra


def in_turn(
    send: Any, todo: list[tuple[Submission, str]], ahead: int
) -> Iterator[tuple[Submission, str, dict[str, Any]]]:
    """Hand out the work, at most `ahead` pieces before their results are taken; yields results as they come."""
    waiting: dict[Any, tuple[Submission, str]] = {}
    rest = iter(tqdm(todo, unit=" submissions", file=sys.stderr, disable=not todo or not sys.stderr.isatty()))
    while True:
        while len(waiting) < ahead and (piece := next(rest, None)):
            waiting[send(piece[0].lab, content_of(piece[0]))] = piece
        if not waiting:
            return
        done, _ = send.wait(list(waiting))
        for future in done:
            yield *waiting.pop(future), future.result()


def content_of(one: Submission) -> bytes | str:
    """The notebook's bytes; or, for a file that can't be read, the words for its student."""
    try:
        return one.read()
    except Unreadable as error:
        return str(error)


def source_key(settings: Settings, name: str) -> bytes:
    """Everything but the notebook that decides a record."""
    solved = (settings.labs / f"{name}.ipynb").read_bytes()
    return repr((solved, settings.seed, settings.limits, source_hash("grading", "checks"))).encode()


# --- who does the work ------------------------------------------------------------------------------------------------


def engine(settings: Settings, jobs: int, scheduler: str):
    """A context whose value sends one submission to be marked and returns a future."""
    if scheduler:
        from labkit.grading.cluster import Cluster

        return Cluster(settings, scheduler)
    return Threads(settings, jobs)


class Threads:
    """`jobs` threads, each with a sandbox of its own: the work is done in the students' processes."""

    def __init__(self, settings: Settings, jobs: int):
        self.marker, self.jobs = Marker(settings), jobs

    def __enter__(self) -> Threads:
        self.pool = concurrent.futures.ThreadPoolExecutor(self.jobs)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.marker.close()

    def __call__(self, name: str, content: bytes | str) -> concurrent.futures.Future:
        return self.pool.submit(self.marker, name, content)

    def wait(self, futures: list) -> Any:
        return concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)


class Marker:
    """Marks submissions; every thread that calls it has its own sandbox, kept until `close`."""

    def __init__(self, settings: Settings):
        self.settings, self.own, self.all = settings, threading.local(), []
        self.labs: dict[str, Lab] = {}

    def __call__(self, name: str, content: bytes | str) -> dict[str, Any]:
        if name not in self.labs:
            self.labs[name] = lab(self.settings.labs / f"{name}.ipynb")
        if isinstance(content, str):
            return unreadable(self.labs[name], content)
        if not hasattr(self.own, "sandbox"):
            self.own.sandbox = Sandbox(self.settings.limits)
            self.all.append(self.own.sandbox)
        for _ in range(2):  # what fails here is ours, not the student's: once more, in a fresh sandbox
            try:
                made = mark(self.labs[name], content, self.own.sandbox, self.settings.seed)
                break
            except Exception as error:  # say so, and go on with the others
                self.own.sandbox.stop()
                made = failed(self.labs[name], error)
        return made | {"in_force": self.own.sandbox.in_force}

    def close(self) -> None:
        for sandbox in self.all:
            sandbox.close()


def failed(lab: Lab, error: Exception) -> dict[str, Any]:
    """The record of a submission that the grader itself could not handle; the next run tries again."""
    rows = unreadable(lab, "This could not be graded. Your teacher has been told.")["exercises"]
    made = summary(lab, "not graded", rows)
    return made | {"solutions": {}, "seconds": 0.0, "problem": f"{error!r}"[:300]}
