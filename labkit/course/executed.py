"""What does a lab show on the website? The student's code beside the outputs of the solved run.

    run(solved, where)          the notebook with outputs, executed by this Python in an empty folder
    run_once(solved, where)     the same, kept until the notebook or any file of labkit changes
    keep(solved, outputs)       keeps a run that something else made (`keep_runs.py`)
    beside(student, solved)     the student's cells with those outputs, matched by cell id, fit for a page

A page has no kernel and no network, so a widget stays only as the picture it carries, and progress bars go.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat

from labkit.cache import CacheUnavailable, cache_folder, locked, source_hash, written_whole
from labkit.course.notebooks import encode
from labkit.profiles import profile

SECONDS_PER_CELL = 300
WIDGET = "application/vnd.jupyter.widget-view+json"
CAPTION = re.compile(r"\*(Figure .+)\*", re.DOTALL)


def run(solved: dict[str, Any], where: str, timeout: int = SECONDS_PER_CELL) -> dict[str, Any]:
    """A copy of the notebook with the outputs of a run from top to bottom, in a temporary folder.

    The kernel is the Python that runs this, whatever kernels are registered. RuntimeError names notebook and cell if
    a cell fails, takes more than `timeout` seconds, or its kernel dies.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return KernelSpec(**get_kernel_dict(["--log-level=ERROR"]))  # its argv starts with sys.executable

    class OwnKernel(AsyncKernelManager):  # a class, because nbclient shuts down only the kernels that it made
        def __init__(self, **options):
            super().__init__(kernel_spec_manager=ThisPython(), **options)

    notebook, running = nbformat.reads(json.dumps(solved), as_version=4), ["none"]
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_manager_class=OwnKernel,
            timeout=timeout,
            resources={"metadata": {"path": folder}},
            on_cell_start=lambda cell, cell_index: running.append(cell["id"]),
        )
        try:
            client.execute()
        except (CellExecutionError, CellControlSignal, DeadKernelError, TimeoutError) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            if isinstance(error, CellExecutionError):
                reason = [f"{error.ename}: {error.evalue}"]
            elif isinstance(error, TimeoutError):
                reason = [f"no end after {timeout} seconds"]
            raise RuntimeError(
                f"{where}, cell {running[-1]!r}: expected it to run, got {reason[0]}: repair the lab or what it calls"
            ) from None
    return json.loads(nbformat.writes(notebook))


def run_once(solved: dict[str, Any], where: str, timeout: int = SECONDS_PER_CELL) -> dict[str, Any]:
    """As `run`, but a run of the same notebook with the same code, versions and LABKIT_ settings is read from disk.

    Only whole runs without an error are kept.
    """
    try:
        path = kept_at(solved)
        with locked(path):
            if path.is_file():
                with contextlib.suppress(ValueError):  # a damaged file is run again
                    return json.loads(path.read_text(encoding="utf-8"))
            done = run(solved, where, timeout)
            with written_whole(path) as part:
                part.write_bytes(encode(done))
            return done
    except CacheUnavailable:
        return run(solved, where, timeout)


def keep(solved: dict[str, Any], outputs: list[list[dict[str, Any]]]) -> None:
    """Keeps a whole run made elsewhere, for `run_once`: the outputs of each code cell, in order."""
    done = copy.deepcopy(solved)
    cells = [cell for cell in done["cells"] if cell["cell_type"] == "code"]
    for number, (cell, shown) in enumerate(zip(cells, outputs, strict=True), 1):
        cell["execution_count"], cell["outputs"] = number, shown
    with contextlib.suppress(CacheUnavailable):
        path = kept_at(solved)
        with locked(path), written_whole(path) as part:
            part.write_bytes(encode(json.loads(nbformat.writes(nbformat.from_dict(done)))))


def kept_at(solved: dict[str, Any]) -> Path:
    """Where a run of this notebook is kept, with today's code, versions and settings."""
    others = {k: v for k, v in os.environ.items() if k.startswith("LABKIT_")}
    others.pop("LABKIT_CACHE", None)
    others["LABKIT_PROFILE"] = profile().name  # `quick` whether that is said or not
    settings = sorted(others.items())
    versions = [sys.version, *(version(name) for name in ("torch", "numpy", "matplotlib", "ipywidgets"))]
    key = hashlib.sha256(encode(solved) + repr([source_hash("."), versions, settings]).encode()).hexdigest()[:24]
    return cache_folder("runs") / f"{key}.ipynb"


def beside(student: dict[str, Any], executed: dict[str, Any], where: str = "notebook") -> dict[str, Any]:
    """The student's notebook with the outputs of the solved run, fit for a page; both inputs stay as they are.

    Raises ValueError if a code cell of one has no counterpart in the other.
    """
    ran = {cell["id"]: cell for cell in executed["cells"] if cell["cell_type"] == "code"}
    shown = copy.deepcopy(student)
    ids = [cell["id"] for cell in shown["cells"] if cell["cell_type"] == "code"]
    if set(ids) != set(ran):
        odd = sorted(set(ids) ^ set(ran))
        raise ValueError(
            f"{where}: expected the same code cells in both versions, got {odd} in one only: release again"
        )
    shown["metadata"].pop("widgets", None)
    for cell, after in zip(shown["cells"], [*shown["cells"][1:], None], strict=True):
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = [kept for out in ran[cell["id"]]["outputs"] if (kept := still(out))]
        cell["execution_count"] = ran[cell["id"]]["execution_count"]
        if any(kind.startswith("image/") for out in cell["outputs"] for kind in out.get("data", {})):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt_text(after)}}
    return shown


def still(output: dict[str, Any]) -> dict[str, Any] | None:
    """The output without what only a running kernel can show; None if nothing is left."""
    if output["output_type"] == "stream":
        return output if output["name"] == "stdout" else None  # tqdm draws its bars on stderr
    data = output.get("data", {})
    if WIDGET not in data:
        return output
    kept = {kind: content for kind, content in data.items() if kind != WIDGET}
    if not any(kind.startswith("image/") or kind == "text/html" for kind in kept):
        return None  # a widget's text is its repr, or a bar
    metadata = {kind: content for kind, content in output.get("metadata", {}).items() if kind != WIDGET}
    return {**output, "data": kept, "metadata": metadata}


def alt_text(after: dict[str, Any] | None) -> str:
    """What a figure shows, in words: the caption in the text cell after it."""
    caption = CAPTION.search("".join(after["source"])) if after and after["cell_type"] == "markdown" else None
    return re.sub(r"[*`$\\]|\s+", lambda m: " " if m[0].isspace() else "", caption[1]) if caption else "Figure"
