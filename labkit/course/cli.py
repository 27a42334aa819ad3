"""The command `labkit`: what an instructor types.

    labkit release [--out DIR] [--labs DIR]     solved labs -> student notebooks and student.zip
    labkit site                                 the course website

Exit code 0: done; 1: it failed, with one line that says why; 2: it was called wrongly.
Each command imports what it needs, so that one works without the tools of another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
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
    return top


def release(arguments: argparse.Namespace) -> None:
    from labkit.course.release import release

    for path in release(arguments.labs, arguments.out):
        print(path)


def site(arguments: argparse.Namespace) -> None:
    from labkit.course.site import build

    print(build())


def failed(message: str) -> int:
    print(f"labkit: {' '.join(message.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
