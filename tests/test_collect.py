"""What was handed in: folders, and the zips of Moodle and Canvas; whose, of which lab, how late."""

import os
import zipfile
from datetime import datetime
from pathlib import Path

from submissions import write

from labkit.grading.collect import collect
from tests import demo_class

LABS = ["02_badnets", "05_strip"]


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as folder:
        for name, content in entries.items():
            folder.writestr(zipfile.ZipInfo(name, (2026, 10, 12, 8, 0, 0)), content)
    return path


def test_the_zips_of_moodle_and_canvas_are_read(tmp_path):
    moodle = {
        "Ann Lee_4711_assignsubmission_file_/02_badnets.ipynb": b"a",
        "Ann Lee_4711_assignsubmission_file_/notes.txt": b"",
        "Bob_12_assignsubmission_file/02_badnets (1).ipynb": b"b",
        "__MACOSX/Bob_12_assignsubmission_file/02_badnets.ipynb": b"",
    }
    found, passed = collect(archive(tmp_path / "moodle.zip", **moodle), LABS)
    assert [(one.student, one.id, one.lab, one.read()) for one in found] == [
        ("Ann Lee", "4711", "02_badnets", b"a"),
        ("Bob", "12", "02_badnets", b"b"),
    ]
    assert len(passed) == 1 and "no notebook" in passed[0]
    canvas = {
        "leeann_LATE_101_9001_02_badnets.ipynb": b"a",
        "roybob_102_9002_02_badnets-1.ipynb": b"old",
        "roybob_102_9003_02_badnets-10.ipynb": b"new",
        "roybob_102_9004_essay.ipynb": b"",
    }
    found, passed = collect(archive(tmp_path / "canvas.zip", **canvas), LABS)
    assert [(one.student, one.id, one.read(), one.days_late(None)) for one in found] == [
        ("leeann", "101", b"a", "late"),
        ("roybob", "102", b"new", ""),
    ]
    assert len(passed) == 2 and any("has handed in 02_badnets again" in line for line in passed)


def test_nbgraders_folders_and_days_late(tmp_path):
    path = write(tmp_path, "ann/ps1", "05_strip", b"x")
    ((one,), passed) = collect(tmp_path, LABS)
    assert (one.student, one.lab, passed) == ("ann", "05_strip", [])
    due = datetime(2026, 10, 12, 23, 59)
    for hours, days in ((-1, "0"), (1, "1"), (23, "1"), (25, "2")):
        os.utime(path, (due.timestamp() + 3600 * hours,) * 2)
        assert collect(tmp_path, LABS)[0][0].days_late(due) == days


def test_a_zip_in_a_students_folder_is_the_students(tmp_path):
    (tmp_path / "ann").mkdir()
    archive(tmp_path / "ann" / "work.zip", **{"labs/02_badnets.ipynb": b"a", "../bob/05_strip.ipynb": b"b"})
    (one,), passed = collect(tmp_path, LABS)
    assert (one.student, one.lab, one.read()) == ("ann", "02_badnets", b"a")
    assert len(passed) == 1 and "leads out" in passed[0]


def test_the_demo_class_has_thirty_students_and_the_same_bytes_each_time(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        demo_class.main(folder)
    found, passed = collect(tmp_path / "one", LABS)
    assert len(found) == 30 and not passed
    for one in found:
        again = tmp_path / "two" / one.path.relative_to(tmp_path / "one")
        assert one.read() == again.read_bytes()
    assert 20 <= len({one.read() for one in found}) < 30, "no two are alike, or too many"
