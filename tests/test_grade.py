"""A class is graded: what is collected, the same bytes every time, nothing lost in a killed run, pages and files."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PROJECT
from submissions import blank, solutions, solved, submission, write

from labkit.course.cli import main
from labkit.course.notebooks import encode
from labkit.grading import platforms
from labkit.grading.collect import collect
from labkit.grading.grade import Settings, grade
from labkit.grading.records import Records, file_name

LABS = ["02_badnets", "05_strip"]
SETTINGS = Settings(PROJECT / "labs")


@pytest.fixture(scope="module")
def class_(tmp_path_factory) -> Path:
    """Five students: full marks, two labs, a wrong function, blank, damaged."""
    folder = tmp_path_factory.mktemp("class")
    write(folder, "ann", "02_badnets", solved("02_badnets"))
    write(folder, "bob", "02_badnets", submission("02_badnets", {"stamp": solutions("02_badnets")["stamp"]}))
    write(folder, "bob", "05_strip", solved("05_strip"))
    wrong = solutions("02_badnets") | {"robust_accuracy": "def robust_accuracy(p, y, t):\n    return 1 / 0"}
    write(folder, "Ötzi <b>", "02_badnets", submission("02_badnets", wrong))
    write(folder, "dan", "02_badnets", encode(blank("02_badnets")))
    write(folder, "eve", "02_badnets", b"{")
    return folder


@pytest.fixture(autouse=True, scope="module")
def shared(sandboxes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.grading.grade.Sandbox", sandboxes)
        yield


@pytest.fixture(scope="module")
def graded(class_, shared, tmp_path_factory) -> Path:
    """The class, graded in one thread."""
    out = tmp_path_factory.mktemp("graded") / "grades.csv"
    grade(class_, out, SETTINGS)
    return out


def rows(out: Path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))


def files(out: Path) -> dict[str, bytes]:
    """Everything that must be the same in every run: all but times."""
    folder = out.with_suffix("")
    made = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    return {name: made[name] for name in made if name not in ("run.json", "overview.html")} | {"": out.read_bytes()}


def test_the_table_has_a_row_for_each_student_and_lab_and_a_column_for_each_exercise(graded):
    first = "student lab score max_score status late stamp choose_victims poison attack_success_rate robust_accuracy"
    assert graded.read_text().split("\n")[0].split(",")[:11] == first.split()
    found = {(row["student"], row["lab"]): (row["score"], row["status"]) for row in rows(graded)}
    assert found == {
        ("ann", "02_badnets"): ("10", "ok"),
        ("bob", "02_badnets"): ("2", "ok"),
        ("bob", "05_strip"): ("10", "ok"),
        ("dan", "02_badnets"): ("0", "ok"),
        ("eve", "02_badnets"): ("0", "unreadable"),
        ("Ötzi <b>", "02_badnets"): ("9", "error"),
    }
    for row in rows(graded):
        points = [float(row[name]) for name in list(row)[6:] if row[name]]
        assert sum(points) == float(row["score"]) and float(row["max_score"]) == 10 and len(points) == 5


def test_a_student_reads_a_tutors_words_and_the_instructor_sees_the_class(graded):
    folder = graded.with_suffix("")
    page = (folder / "feedback" / f"{file_name('Ötzi <b>')}.html").read_text(encoding="utf-8")
    assert "Ötzi &lt;b&gt;" in page and "<b>" not in page and "ZeroDivisionError in line 2" in page
    assert page.count("Right.") == 4 and "src=" not in page and "<script" not in page
    overview = (folder / "overview.html").read_text(encoding="utf-8")
    for words in ("5 students, 2 labs", "Likely copies", "Slowest", "unreadable", "bubblewrap"):
        assert words in overview, words
    assert "src=" not in overview and "<script" not in overview


def test_two_runs_and_more_jobs_give_the_same_bytes(class_, graded, tmp_path):
    before = files(graded)
    again = tmp_path / "grades.csv"
    grade(class_, again, SETTINGS, jobs=2)
    assert files(again) == before
    stamp = (graded.with_suffix("") / "records" / "ann" / "02_badnets.json").stat().st_mtime_ns
    grade(class_, graded, SETTINGS)
    assert files(graded) == before
    assert (graded.with_suffix("") / "records" / "ann" / "02_badnets.json").stat().st_mtime_ns == stamp, "graded again"


def test_a_changed_notebook_a_changed_seed_and_a_damaged_record_are_graded_again(tmp_path):
    path = write(tmp_path / "class", "ann", "02_badnets", encode(blank("02_badnets")))
    out = tmp_path / "grades.csv"
    grade(path.parents[1], out, SETTINGS)
    assert rows(out)[0]["score"] == "0"
    path.write_bytes(solved("02_badnets"))
    grade(path.parents[1], out, SETTINGS)
    assert rows(out)[0]["score"] == "10"
    record = out.with_suffix("") / "records" / "ann" / "02_badnets.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:100])
    grade(path.parents[1], out, SETTINGS)
    assert record.read_bytes() == whole


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(class_, graded, tmp_path):
    out, rng = tmp_path / "grades.csv", random.Random(1)
    command = [sys.executable, "-m", "labkit.course.cli", "grade", str(class_), "--out", str(out), "--jobs", "2"]
    for _ in range(2):
        wanted = len(list(tmp_path.rglob("*.json"))) + rng.randint(1, 2)
        run = subprocess.Popen([*command, "--labs", str(PROJECT / "labs")], stdout=subprocess.DEVNULL)
        while run.poll() is None and len(list(tmp_path.rglob("*.json"))) < wanted:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not out.exists()
    assert main([*command[3:], "--labs", str(PROJECT / "labs")]) == 0
    assert files(out) == files(graded)


def test_one_submission_that_the_grader_itself_cannot_handle_does_not_stop_the_run(class_, tmp_path, monkeypatch):
    from labkit.grading import grade as module

    def failing(lab, content, sandbox, seed):
        raise MemoryError("ours")

    monkeypatch.setattr(module, "mark", failing)
    run = grade(class_, tmp_path / "grades.csv", SETTINGS)
    assert {row["status"] for row in rows(tmp_path / "grades.csv")} == {"not graded"} and run
    assert "MemoryError" in (tmp_path / "grades" / "overview.html").read_text(encoding="utf-8")


def test_a_sandbox_that_fails_once_costs_nobody_a_point(class_, graded, tmp_path, monkeypatch):
    from labkit.grading import grade as module

    seen = []

    def failing_once(lab, content, sandbox, seed):
        seen.append(content)
        if len(seen) == 1:
            raise RuntimeError("the system refuses to fork")
        return mark(lab, content, sandbox, seed)

    mark = module.mark
    monkeypatch.setattr(module, "mark", failing_once)
    grade(class_, tmp_path / "grades.csv", SETTINGS)
    assert files(tmp_path / "grades.csv") == files(graded)


# --- what is handed in ------------------------------------------------------------------------------------------------


def test_nothing_to_grade_is_an_error_in_words(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    for wrong in (tmp_path, tmp_path / "missing"):
        assert main(["grade", str(wrong), "--out", str(tmp_path / "g.csv"), "--labs", str(PROJECT / "labs")]) == 1
        assert capsys.readouterr().err.startswith("labkit: expected")
    with pytest.raises(SystemExit):
        main(["grade", str(tmp_path), "--out", "g.csv", "--jobs", "0"])


# --- files for others -------------------------------------------------------------------------------------------------


def test_nbgraders_gradebook_takes_the_scores(graded, class_, tmp_path):
    from nbgrader.api import Gradebook

    url = f"sqlite:///{tmp_path / 'gradebook.db'}"
    records = Records(graded.with_suffix(""), collect(class_, LABS)[0])
    for _ in range(2):  # a second import changes nothing
        assert platforms.into_gradebook(url, records) == 6
    with Gradebook(url) as book:
        assert book.find_submission("02_badnets", "ann").score == 10
        assert book.find_submission("02_badnets", "bob").score == 2
        assert book.find_grade("check-stamp", "02_badnets", "02_badnets", "bob").auto_score == 2
        assert book.find_assignment("05_strip").max_score == 10


# --- on a cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_ends_with_the_same_bytes(class_, graded, tmp_path):
    pytest.importorskip("distributed")
    from distributed import LocalCluster

    killed = []

    def kill(worker: int) -> None:
        while not list(tmp_path.rglob("records/*/*.json")):
            time.sleep(0.01)
        os.kill(worker, signal.SIGKILL)
        killed.append(len(list(tmp_path.rglob("records/*/*.json"))))

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        nanny = next(iter(cluster.workers.values()))
        killer = threading.Thread(target=kill, args=[nanny.pid], daemon=True)
        killer.start()
        grade(class_, tmp_path / "grades.csv", SETTINGS, scheduler=cluster.scheduler_address)
        killer.join(30)
    assert killed and killed[0] < len(rows(graded)), "no worker was killed in mid-run"
    assert files(tmp_path / "grades.csv") == files(graded)


def test_records_are_plain_json(graded):
    made = json.loads((graded.with_suffix("") / "records" / "bob" / "05_strip.json").read_text(encoding="utf-8"))
    assert made["score"] == 10 and made["exercises"][0]["name"] == "superimpose"
    assert made["solutions"].keys() == solutions("05_strip").keys()
