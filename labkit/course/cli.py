"""The command `labkit`: what an instructor types.

    labkit release [--out DIR] [--labs DIR]     solved labs -> student notebooks and student.zip
    labkit site                                 the course website
    labkit grade SUBMISSIONS --out grades.csv [--jobs N] [--due DATE] [--scheduler ADDRESS] [--gradebook URL] ...
                                                a class's submissions -> grades, records, feedback

Exit code 0: done; 1: it failed, with one line that says why; 2: it was called wrongly.
Each command imports what it needs, so that one works without the tools of another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (argparse itself exits with 2 on a wrong call)."""
    arguments = parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except ImportError as error:
        return failed(f"{error}: install the instructor's tools with pip install 'labkit[course]'")
    except (ValueError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return failed(str(error))
    return 0


def parser() -> argparse.ArgumentParser:
    """Every command with its options; a new command is one `add_parser` here and one function below."""
    top = argparse.ArgumentParser(prog="labkit", description="The instructor's side of the labs on backdoors.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("release", help="write the student notebooks and student.zip")
    one.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR", help="where to (default: %(default)s)")
    one.add_argument(
        "--labs", type=Path, default=Path("labs"), metavar="DIR", help="solved labs (default: %(default)s)"
    )
    one.set_defaults(command=release)

    one = commands.add_parser("site", help="build the course website")
    one.set_defaults(command=site)

    one = commands.add_parser("grade", help="grade a class's submissions")
    one.add_argument("submissions", type=Path, help="folder STUDENT/NN_topic.ipynb, or a zip from Moodle or Canvas")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="grades.csv; the rest goes beside it")
    one.add_argument("--jobs", type=positive, default=1, metavar="N", help="submissions at a time (default: 1)")
    one.add_argument("--labs", type=Path, default=Path("labs"), metavar="DIR", help="solved labs (default: labs)")
    one.add_argument("--seed", type=int, metavar="N", help="another seed draws other hidden inputs")
    one.add_argument(
        "--due", type=datetime.fromisoformat, metavar="DATE", help="2026-10-12T23:59, local: counts late days"
    )
    one.add_argument("--scheduler", default="", metavar="ADDRESS", help="a Dask scheduler, tcp://HOST:8786")
    one.add_argument(
        "--gradebook", default="", metavar="URL", help="nbgrader's, sqlite:///gradebook.db: write there too"
    )
    one.set_defaults(command=grade)
    return top


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return int(text)


def release(arguments: argparse.Namespace) -> None:
    from labkit.course.release import release

    for path in release(arguments.labs, arguments.out):
        print(path)


def site(arguments: argparse.Namespace) -> None:
    from labkit.course.site import build

    print(build())


def grade(arguments: argparse.Namespace) -> None:
    if sys.platform == "win32":
        raise RuntimeError("submissions are run on Linux or macOS: on Windows, call this in WSL")
    from labkit.grading.grade import Settings, grade

    seed = {} if arguments.seed is None else {"seed": arguments.seed}
    settings = Settings(arguments.labs, due=arguments.due, **seed)
    run = grade(
        arguments.submissions, arguments.out, settings, arguments.jobs, arguments.scheduler, arguments.gradebook
    )
    for line in (*run["in_force"], *(f"passed over: {one}" for one in run["passed_over"])):
        print(line)
    print(f"{arguments.out}\n{arguments.out.with_suffix('') / 'overview.html'}")


def failed(message: str) -> int:
    print(f"labkit: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
