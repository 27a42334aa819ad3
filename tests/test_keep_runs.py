"""What nbval ran is what the website would have run: the same outputs, kept only if whole."""

import os
import subprocess
import sys

import pytest
from conftest import cell

from labkit.course import executed
from labkit.course.notebooks import encode

CELLS = {
    "printed": "print('one')\nprint('two')",
    "result": "1 + 1",
    "picture": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    "widget": "import ipywidgets\nwidget = ipywidgets.IntSlider()\nwidget",
    "nothing": "x = 1",
}


def notebook(**sources: str) -> dict:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [cell("title", "# Title", "markdown"), *(cell(name, source) for name, source in sources.items())]
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def nbval(folder, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "labkit.course.keep_runs", "--nbval-lax"]
    command += ["--nbval-current-env", "-p", "no:cacheprovider", "-o", "addopts=", *options, str(folder)]
    subprocess.run(command, capture_output=True, env=dict(os.environ))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """How often `run_once` had to run a notebook itself; the cache is empty at first."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    calls, run = [], executed.run
    monkeypatch.setattr(executed, "run", lambda *args, **options: calls.append(1) or run(*args, **options))
    return calls


@pytest.mark.slow
def test_a_run_by_nbval_is_read_and_equals_a_run_of_our_own(tmp_path, ran):
    (tmp_path / "00_all.ipynb").write_bytes(encode(notebook(**CELLS)))
    nbval(tmp_path)
    kept = executed.run_once(notebook(**CELLS), "all")
    assert not ran
    own = executed.run(notebook(**CELLS), "all")
    for mine, theirs in zip(kept["cells"], own["cells"], strict=True):
        assert mine.get("execution_count") == theirs.get("execution_count")
        assert [shape(out) for out in mine.get("outputs", [])] == [shape(out) for out in theirs.get("outputs", [])]


def shape(out: dict) -> tuple:
    """An output without what differs from run to run: a widget's number, a picture's bytes."""
    data = {
        kind: "" if kind.startswith(("image/", "application/")) else text for kind, text in out.get("data", {}).items()
    }
    return out["output_type"], out.get("name"), out.get("text"), str(data)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "options"), [("1 / 0", ()), ("1", ("-k", "not result"))], ids=["error", "part"])
def test_a_run_with_an_error_or_of_some_cells_is_not_kept(tmp_path, ran, source, options):
    broken = notebook(fine="1", result=source)
    (tmp_path / "00_broken.ipynb").write_bytes(encode(broken))
    nbval(tmp_path, *(option.replace("result", "1") for option in options))
    assert not list((tmp_path / "cache").rglob("*.ipynb"))
