"""How does a solved lab become the notebook that a student gets?

    solved notebook -> student_notebook: regions cut, outputs cleared, cell ids and nbgrader metadata kept
    labs/           -> release: out/student/NN_topic.ipynb and out/student.zip, the same bytes on every run

Each solution region becomes one stub line and hidden tests vanish. Cells and their metadata come out as `nbgrader
generate_assignment` writes them, apart from nbgrader's checksums. Where nbgrader guesses (a solution cell without a
region is emptied, a stray END is dropped), this refuses: an author's slip must not reach 300 students.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

from labkit.course.notebooks import check, encode, lab_paths, lines, read

CODE_STUB = "...  # YOUR CODE HERE"  # legal as a whole function body, which then returns None
TEXT_STUB = "YOUR ANSWER HERE"
TRACES = ("collapsed", "scrolled", "execution", "ExecuteTime", "widgets", "celltoolbar")  # metadata that running leaves
PACKAGE_FILES = (".py", ".md", ".html", ".typed")  # what of labkit/ goes into the zip
OLDEST = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold


def release(labs: Path | str, out: Path | str) -> list[Path]:
    """Write the student's side of every lab; returns the paths: out/student/NN_topic.ipynb ..., out/student.zip.

    labs: folder of solved `NN_topic.ipynb`; its parent is the project, whose environment.yml, pyproject.toml and
    labkit/ go into the zip, so that students install from the unzipped folder. Nothing is written unless every lab is
    sound. Raises ValueError that names file and cell.
    """
    labs, out = Path(labs), Path(out)
    if (out / "student").resolve() == labs.resolve():
        raise ValueError(f"expected an output folder apart from the labs, got {out}: it would overwrite solved ones")
    notebooks = {path.name: encode(student_notebook(read(path), str(path))) for path in lab_paths(labs)}
    files = {f"student/{name}": content for name, content in notebooks.items()}
    files["student.zip"] = archive(notebooks | handout(labs.resolve().parent))
    return [write(out / name, content) for name, content in files.items()]


# --- one notebook -----------------------------------------------------------------------------------------------------


def student_notebook(solved: dict[str, Any], where: str = "notebook") -> dict[str, Any]:
    """A new dictionary, the student's version of a solved notebook. `where` names the notebook in errors."""
    check(solved, where)
    kept = {key: value for key, value in solved["metadata"].items() if key not in TRACES}
    return {**solved, "metadata": kept, "cells": [student_cell(cell) for cell in solved["cells"]]}


def student_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with its regions cut and its outputs cleared, locked as nbgrader locks it."""
    role = cell["metadata"].get("nbgrader", {})
    stub = CODE_STUB if cell["cell_type"] == "code" else TEXT_STUB
    text = []
    for region, line in lines(cell):
        if region is None:
            text.append(line)
        elif "BEGIN SOLUTION" in line:
            text.append(line[: len(line) - len(line.lstrip())] + stub)
    metadata = {key: value for key, value in cell["metadata"].items() if key not in TRACES}
    if role.get("grade") or role.get("solution") or role.get("locked"):
        metadata["deletable"] = False
    if (role.get("grade") or role.get("locked")) and not role.get("solution"):
        metadata["editable"] = False
    cleared = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
    return {**cell, "metadata": metadata, "source": "\n".join(text).splitlines(keepends=True), **cleared}


# --- bytes ------------------------------------------------------------------------------------------------------------


def handout(project: Path) -> dict[str, bytes]:
    """What the zip holds besides notebooks: the students' README, the environment, and labkit as pip installs it."""
    for name in ("environment.yml", "pyproject.toml", "labkit"):
        if not (project / name).exists():
            raise ValueError(f"expected {name} beside the labs folder for student.zip, got none in {project}: add it")
    package = [p for p in (project / "labkit").rglob("*") if p.suffix in PACKAGE_FILES and "__pycache__" not in p.parts]
    paths = [project / "environment.yml", project / "pyproject.toml", *project.glob("LICENSE"), *package]
    readme = Path(__file__).with_name("student_readme.md")
    return {"README.md": text(readme)} | {path.relative_to(project).as_posix(): text(path) for path in paths}


def text(path: Path) -> bytes:
    """A text file's bytes with \\n line ends: a Windows checkout releases the same zip."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def archive(files: dict[str, bytes]) -> bytes:
    """A zip of these files in a folder `labs/`, always the same bytes: sorted, one date, fixed permissions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as folder:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"labs/{name}", OLDEST)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, -rw-r--r--, on Windows too
            folder.writestr(entry, files[name], zipfile.ZIP_STORED)  # compressed bytes differ between zlib versions
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
