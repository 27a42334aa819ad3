"""A plugin for pytest: nbval has just run a notebook from top to bottom, so why should the website run it again?

    python -m pytest -p labkit.course.keep_runs --nbval-lax --nbval-current-env labs

What each cell put out is kept as `run_once` keeps its own runs (`executed.py`), if all cells ran and none raised. The
website and the tests of the labs then read that run.
"""

from __future__ import annotations

from typing import Any

from labkit.course.executed import keep
from labkit.course.notebooks import read

done: dict[Any, list[Any]] = {}  # notebook -> its cells that have been run, in order


def pytest_runtest_teardown(item, nextitem) -> None:
    if type(item).__name__ != "IPyNbCell":
        return
    notebook = item.parent
    done.setdefault(notebook, []).append(item)
    if nextitem is not None and nextitem.parent is notebook:
        return
    ran, solved = [cell.test_outputs for cell in done.pop(notebook)], read(notebook.path)
    raised = any(out["output_type"] == "error" for outputs in ran for out in outputs or ())
    whole = len(ran) == sum(cell["cell_type"] == "code" for cell in solved["cells"]) and None not in ran
    if whole and not raised and not notebook.timed_out:
        keep(solved, ran)
