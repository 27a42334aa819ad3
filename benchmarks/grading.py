"""Grading a class: wall time against whole runs of the notebooks, overhead, the grader's memory, and killed runs.

python benchmarks/grading.py [--only speed memory kills] [--submissions 300] [--kills 20] [--save]

A whole run is the solved lab from top to bottom, its victims already in the cache. Own time is what a student's process
takes from its first request to its last answer, as the grader's clock sees it: a grade needs a few cells, not the lab.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from card import arguments, card

from labkit.course.executed import run
from labkit.course.notebooks import read

PROJECT = Path(__file__).parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
JOBS = 2
LAB = "02_badnets"


def hand_in(folder: Path, n: int) -> None:
    """n students: the demo class again and again, none of whom waits for a limit, so that the clock measures work."""
    from submissions import write

    from tests import demo_class

    quick = [one for one in demo_class.STUDENTS if one not in ("fran", "lise", "vint")]
    for i in range(n):
        write(folder, f"{quick[i % len(quick)]}{i:03d}", LAB, demo_class.content(quick[i % len(quick)]))


def command(folder: Path, out: Path) -> list[str]:
    made = [sys.executable, "-m", "labkit.course.cli", "grade", str(folder), "--out", str(out), "--jobs", str(JOBS)]
    return [*made, "--labs", str(PROJECT / "labs")]


def timed(folder: Path, out: Path) -> tuple[float, float, list[float]]:
    """(wall seconds, sum of the submissions' own seconds, the grader's memory in MB, many times while it works)."""
    start = time.perf_counter()
    process, memory = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL, cwd=PROJECT), []
    while process.poll() is None:
        memory.append(held(process.pid))
        time.sleep(0.05)
    assert process.returncode == 0, "the grader failed"
    wall = time.perf_counter() - start
    own = sum(json.loads((out.with_suffix("") / "run.json").read_bytes())["seconds"].values())
    return wall, own, memory


def held(number: int) -> float:
    """The memory of a process in MB, without its children's and without mapped files; 0 when it has ended."""
    text = Path("/proc", str(number), "status").read_text()
    return next((float(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0.0)


def whole_runs(n: int = 3) -> list[float]:
    """Seconds of running the lab from top to bottom, after a first run has filled the cache."""
    solved, seconds = read(PROJECT / "labs" / f"{LAB}.ipynb"), []
    for _ in range(n + 1):
        start = time.perf_counter()
        run(solved, LAB)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def killed(folder: Path, out: Path, rng: random.Random, longest: float) -> bool:
    """Kill the grader at a random moment; True if it had not finished."""
    process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL, cwd=PROJECT)
    time.sleep(rng.uniform(0, longest))
    process.send_signal(signal.SIGKILL)
    return process.wait() != 0


def made(out: Path) -> dict[str, bytes]:
    """The bytes of everything but times."""
    paths = [path for path in out.with_suffix("").rglob("*") if path.is_file() and not path.name.startswith(".")]
    rest = {
        str(p.relative_to(out.parent)): p.read_bytes() for p in paths if p.name not in ("run.json", "overview.html")
    }
    return rest | {"grades.csv": out.read_bytes()}


def main():
    options = arguments(__doc__, submissions=["300"], kills=["20"], only=["speed", "memory", "kills"])
    n, few = int(options.submissions[0]), max(1, int(options.submissions[0]) // 10)
    shared = {"seeds": [0], "save": options.save, "recipe": f"lab {LAB}, {JOBS} jobs"}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        hand_in(home / "few", few)
        hand_in(home / "all", n)
        few_wall, *_ = timed(home / "few", home / "few_out" / "grades.csv")
        if {"speed", "memory"} & set(options.only):
            wall, own, memory = timed(home / "all", home / "all_out" / "grades.csv")
            if "speed" in options.only:
                speed(wall, own, n, shared)
            if "memory" in options.only:
                half, size = len(memory) // 2, f"{n} submissions"
                card("grading, memory of the grader", [max(memory)], "MB", n=size, bar="-", **shared)
                grown = [max(memory) - max(memory[:half])]
                card("grading, growth of its memory", grown, "MB", n="from half time on", bar="about 0", **shared)
        if "kills" in options.only:
            kills(home, few_wall, int(options.kills[0]), shared)


def speed(wall: float, own: float, n: int, shared: dict) -> None:
    size, whole = f"{n} submissions", whole_runs()
    card("grading, wall time", [wall], "s", n=size, bar="-", **shared)
    card("grading, a whole run of the notebook", whole, "s", n="1 notebook, warm cache", bar="-", **shared)
    ratios = [wall / (n * one / JOBS) for one in whole]
    card("grading, time over whole runs / jobs", ratios, "x", n=size, bar="<= 1.15", **shared)
    card("grading, time over own time / jobs", [wall / (own / JOBS)], "x", n=size, bar="-", **shared)
    card("grading, overhead a submission", [(wall * JOBS - own) / n], "s", n=size, bar="<= 2", **shared)


def kills(home: Path, longest: float, n: int, shared: dict) -> None:
    """Runs that are killed and go on, against one that was left alone."""
    same, stopped, rng = [], 0, random.Random(0)
    expected, out = made(home / "few_out" / "grades.csv"), home / "killed" / "grades.csv"
    for _ in range(n):
        stopped += killed(home / "few", out, rng, longest)
        timed(home / "few", out)
        same.append(float(made(out) == expected))
        shutil.rmtree(out.parent)
    note = f"{stopped} stopped before the end"
    card("grading, same bytes after a kill", same, "share", n=note, bar="1", **shared)


main()
