"""What has been handed in?

    collect(path, labs) -> [Submission], [what was passed over]

path: a folder `<student>/<NN_topic>.ipynb`, as nbgrader's `submitted/` too, or the zip file that Moodle or Canvas hands
out, or a folder of such. Nothing is unpacked and no link is followed: a file is read when its turn comes, up to a size,
so names like `../../x`, links and zip bombs reach nothing. Who hands in the same lab twice is graded on the last file.
"""

from __future__ import annotations

import math
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from labkit.grading.submitted import LARGEST, Unreadable

MOODLE = re.compile(r"(?P<name>[^/]+)_(?P<id>\d+)_assignsubmission_file_?")
CANVAS = re.compile(r"(?P<name>[^_/]+)_(?P<late>LATE_)?(?P<id>\d+)_\d+_(?P<file>.+\.ipynb)", re.IGNORECASE)
COPY = re.compile(r"[ _-]*(?:\(\d+\)|-\d+|copy\d*)$", re.IGNORECASE)  # what browsers, Canvas and Jupyter append
HIDDEN = {".ipynb_checkpoints", "__MACOSX"}


@dataclass(frozen=True)
class Submission:
    """One notebook of one student. `id` is the learning platform's number for the student, '' for a plain folder."""

    student: str
    lab: str
    path: Path  # of the file, or of the zip that holds it
    entry: str = ""  # its name in the zip
    id: str = ""
    late: bool = False  # as the platform says
    when: float = field(default=0.0, compare=False)  # local seconds, for late days

    def read(self) -> bytes:
        """The file's bytes. Unreadable for what is no plain file of a notebook's size."""
        try:
            return from_zip(self.path, self.entry) if self.entry else from_disk(self.path)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable("The file could not be read. Hand it in again.") from None

    def days_late(self, due: datetime | None) -> str:
        """'' without a date, else days after it, begun ones counted; 'late' if only the platform says so."""
        if due is None:
            return "late" if self.late else ""
        return str(max(0, math.ceil((self.when - due.timestamp()) / 86_400)))


def collect(path: Path, labs: Iterable[str]) -> tuple[list[Submission], list[str]]:
    """All submissions in order of student and lab, and a line for each file that was passed over."""
    if not path.exists():
        raise ValueError(f"expected a folder or a zip of submissions, got {path}, which does not exist")
    names = sorted(labs)
    last: dict[tuple[str, str], Submission] = {}
    passed = []
    for file, entry, when in entries(path):
        inside = file.parent.relative_to(path).as_posix() if path.is_dir() else ""
        shown = str(PurePosixPath(inside) / entry) if entry else file.relative_to(path).as_posix()
        found = identify(shown, file, entry, when, names)
        if isinstance(found, str):
            passed.append(f"{shown}: {found}")
            continue
        key = (found.student, found.lab)
        if key in last:
            older, found = sorted((last[key], found), key=lambda one: (one.when, natural(one.entry or str(one.path))))
            passed.append(f"{older.entry or older.path.name}: {found.student} has handed in {found.lab} again")
        last[key] = found
    return [last[key] for key in sorted(last)], sorted(passed)


def entries(path: Path) -> Iterator[tuple[Path, str, float]]:
    """(file, entry, when) of every file; entry is '' outside zips. Links stand for themselves, a damaged zip too."""
    if path.is_dir() and not path.is_symlink():
        for one in sorted(path.iterdir()):
            if one.name not in HIDDEN:
                yield from entries(one)
    elif path.suffix.lower() == ".zip" and path.is_file() and not path.is_symlink():
        try:
            with zipfile.ZipFile(path) as folder:
                infos = [one for one in folder.infolist() if not one.is_dir()]
        except (zipfile.BadZipFile, OSError):
            yield path, "", 0.0
            return
        for one in sorted(infos, key=lambda one: one.filename):
            if not HIDDEN & set(PurePosixPath(one.filename).parts):
                yield path, one.filename, datetime(*one.date_time).timestamp()
    else:
        yield path, "", path.lstat().st_mtime


def identify(shown: str, file: Path, entry: str, when: float, labs: list[str]) -> Submission | str:
    """Whose notebook of which lab this is; or, in words, why it is none."""
    parts = PurePosixPath(shown.replace("\\", "/")).parts
    if ".." in parts or shown.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", shown):
        return "its name leads out of the archive"
    if not shown.lower().endswith(".ipynb"):
        return "no notebook"
    canvas = CANVAS.fullmatch(parts[-1])
    moodle = next((m for m in map(MOODLE.fullmatch, parts) if m), None)
    lab = which_lab(canvas["file"] if canvas else parts[-1], labs)
    if lab is None:
        return f"expected a name like {labs[0]}.ipynb" if labs else "there is no lab to compare with"
    if canvas:
        return Submission(canvas["name"], lab, file, entry, canvas["id"], bool(canvas["late"]), when)
    if moodle:
        return Submission(moodle["name"], lab, file, entry, moodle["id"], when=when)
    if len(parts) < 2:
        return "expected STUDENT/NN_topic.ipynb: whose is it?"
    return Submission(parts[0], lab, file, entry, when=when)


def which_lab(name: str, labs: list[str]) -> str | None:
    """02_badnets (1).ipynb, 02_badnets-2.ipynb -> 02_badnets."""
    stem = name[: -len(".ipynb")].lower()
    while COPY.search(stem) and stem not in labs:
        stem = COPY.sub("", stem)
    return stem if stem in labs else None


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which x-10 comes after x-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# --- bytes ------------------------------------------------------------------------------------------------------------


def from_disk(path: Path) -> bytes:
    if any(part.is_symlink() for part in (path, path.parent)):
        raise Unreadable("This is a link to a file, not a file. Hand in the notebook itself.")
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise Unreadable("This is not a plain file. Hand in the notebook itself.")
        return file.read(LARGEST + 1)


def from_zip(path: Path, entry: str) -> bytes:
    with zipfile.ZipFile(path) as folder:
        info = folder.getinfo(entry)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise Unreadable("This is a link to a file, not a file. Hand in the notebook itself.")
        with folder.open(info) as file:
            return file.read(LARGEST + 1)
