"""A class of cheats and vandals: nobody gets more than the honest part earns, nobody hurts anybody else, the run ends.

Their code is run, so these tests are skipped where bubblewrap does not work.
"""

import csv
import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
from conftest import PROJECT
from hostile import CODE, FILES, HONEST, LAB, SLEEP, coded
from submissions import solved, submission, write

from labkit.checks import lab02
from labkit.grading.grade import Settings, grade
from labkit.grading.limits import Limits

LIMITS = Limits(cell_seconds=3, call_seconds=3, wall_seconds=30, cpu_seconds=10, memory=1 << 30, file_size=16 << 20)
# What a function earns, attack or not, that gives the images back as they came: the shape, the pixels outside the
# patch, and arguments left alone.
HARMLESS = lab02.stamp(lambda images, patch: images)


@pytest.fixture(scope="module")
def results(tmp_path_factory, sandboxes):
    """The class, graded: {student: row of grades.csv}, and the folders around it."""
    with sandboxes(LIMITS) as one:
        one.open().close()
        if not one.wrapped:
            pytest.skip(f"bubblewrap does not work here: {one.refused}")
    home = tmp_path_factory.mktemp("hostile")
    canary, class_ = home / "canary" / "solved.ipynb", home / "class"
    canary.parent.mkdir()
    canary.write_text("untouched")
    for name in CODE:
        write(class_, name, LAB, coded(name, str(canary)))
    for name, (make, _) in FILES.items():
        write(class_, name, LAB, make())
    for name in ("a_neighbour", "z_neighbour"):
        write(class_, name, LAB, solved(LAB))
    odd_files(class_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.grading.grade.Sandbox", sandboxes)
        patch.setenv("LABKIT_SECRET", "hidden")
        run = grade(class_, home / "out" / "grades.csv", Settings(PROJECT / "labs", limits=LIMITS), jobs=2)
    rows = {row["student"]: row for row in csv.DictReader(open(home / "out" / "grades.csv", encoding="utf-8"))}
    return rows, home, run


def odd_files(class_: Path) -> None:
    """Links, a pipe, a folder with a notebook's name, names with formulas, and a zip that leads out of itself."""
    for name in ("link_to_neighbour", "pipe", "folder_as_file", "=1+1"):
        (class_ / name).mkdir()
    (class_ / "link_to_neighbour" / f"{LAB}.ipynb").symlink_to(class_ / "a_neighbour" / f"{LAB}.ipynb")
    (class_ / "linked_folder").symlink_to(class_ / "a_neighbour")
    os.mkfifo(class_ / "pipe" / f"{LAB}.ipynb")
    (class_ / "folder_as_file" / f"{LAB}.ipynb").mkdir()
    (class_ / "=1+1" / f"{LAB}.ipynb").write_bytes(submission(LAB, HONEST))
    with zipfile.ZipFile(class_ / "more.zip", "w", zipfile.ZIP_DEFLATED) as folder:
        folder.writestr(f"../../../canary/{LAB}.ipynb", submission(LAB, HONEST))
        folder.writestr(f"/etc/{LAB}.ipynb", submission(LAB, HONEST))
        link = zipfile.ZipInfo(f"zip_link/{LAB}.ipynb")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        folder.writestr(link, f"../a_neighbour/{LAB}.ipynb")
        folder.writestr(f"zip_bomb/{LAB}.ipynb", bytes(200 << 20))


def test_there_are_more_than_thirty_kinds():
    assert len(CODE) + len(FILES) + 6 >= 55


OWN_GOALS = {"ast_hook", "torch_patched", "runner_patched"}  # they break their own honest function too


@pytest.mark.parametrize("name", [*CODE, *FILES])
def test_a_hostile_submission_gets_what_it_has_earned_and_ends_as_it_should(name, results):
    row = results[0][name]
    status = (CODE | FILES)[name][1]
    assert row["status"] == status, row
    assert float(row["robust_accuracy"]) == (status != "unreadable" and name not in OWN_GOALS), row
    assert float(row["stamp"]) <= HARMLESS, row
    assert float(row["score"]) == pytest.approx(float(row["stamp"]) + float(row["robust_accuracy"])), row
    assert float(row["max_score"]) == 10


def test_the_neighbours_have_all_their_points(results):
    for name in ("a_neighbour", "z_neighbour"):
        assert float(results[0][name]["score"]) == 10 and results[0][name]["status"] == "ok"


def test_links_and_pipes_are_not_followed(results):
    rows, _, run = results
    for name in ("link_to_neighbour", "pipe", "zip_link", "zip_bomb"):
        assert (rows[name]["status"], float(rows[name]["score"])) == ("unreadable", 0), rows[name]
    assert "linked_folder" not in rows and "folder_as_file" not in rows
    assert sum("leads out of the archive" in line for line in run["passed_over"]) == 2


def test_a_name_is_no_formula(results):
    assert "'=1+1" in results[0] and float(results[0]["'=1+1"]["score"]) == 1


def test_nothing_outside_was_touched(results):
    home = results[1]
    assert [(p.name, p.read_text()) for p in (home / "canary").iterdir()] == [("solved.ipynb", "untouched")]
    for folder in ("/usr", "/tmp", "/dev/shm"):
        assert not Path(folder, "canary").exists()
    assert (home / "class" / "a_neighbour" / f"{LAB}.ipynb").read_bytes() == solved(LAB)


def test_nothing_is_left_running(results):
    def command(path: Path) -> bytes:
        try:
            return (path / "cmdline").read_bytes()
        except OSError:
            return b""

    running = [path.name for path in Path("/proc").glob("[0-9]*") if SLEEP.encode() in command(path).split(b"\0")]
    assert not running


def test_nobody_outlives_the_limit(results):
    assert max(results[2]["seconds"].values()) < LIMITS.wall_seconds + 10


def test_no_page_holds_a_hidden_input(results):
    home = results[1]
    record = json.loads((home / "out" / "grades" / "records" / "smuggle" / f"{LAB}.json").read_text())
    assert record["exercises"][0]["message"].startswith("Your function stopped with an error. ValueError in line 3")
    page = (home / "out" / "grades" / "feedback" / "smuggle.html").read_text()
    assert "X0" not in page and "tensor(" not in page
