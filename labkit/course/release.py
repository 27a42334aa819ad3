"""How does a solved lab become the notebook that a student gets?

    solved notebook -> student_notebook: regions cut, outputs cleared, cell ids and nbgrader metadata kept
    labs/           -> release: out/student/NN_topic.ipynb and out/student.zip, the same bytes on every run

A solution is whatever stands between `### BEGIN SOLUTION` and `### END SOLUTION`; the region becomes one stub line.
Hidden tests stand between `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS` and vanish. Cells and their metadata come
out as `nbgrader generate_assignment` writes them, apart from nbgrader's checksums. Where nbgrader guesses (a solution
cell without a region is emptied, a stray END is dropped), this refuses: an author's slip must not reach 300 students.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat.validator

CODE_STUB = "...  # YOUR CODE HERE"  # legal as a whole function body, which then returns None
TEXT_STUB = "YOUR ANSWER HERE"
NAME = re.compile(r"\d\d_\w+\.ipynb")
MARKER = re.compile(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS)")  # found anywhere in a line, as nbgrader does
ROLE = {"SOLUTION": "solution", "HIDDEN TESTS": "grade"}  # region -> the nbgrader role its cell must have
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
        raise ValueError(
            f"expected an output folder apart from the labs, got {out}: it would overwrite solved notebooks"
        )
    notebooks = {path.name: encode(student_notebook(read(path), str(path))) for path in lab_paths(labs)}
    files = {f"student/{name}": content for name, content in notebooks.items()}
    files["student.zip"] = archive(notebooks | handout(labs.resolve().parent))
    return [write(out / name, content) for name, content in files.items()]


def lab_paths(labs: Path) -> list[Path]:
    """The solved notebooks of the folder in order; a folder without any, or with another name pattern, is an error."""
    if not labs.is_dir():
        raise ValueError(f"expected a folder of solved notebooks, got {labs}, which is none: name it with --labs")
    paths = sorted(labs.glob("*.ipynb"))
    if not paths:
        raise ValueError(
            f"expected notebooks named NN_topic.ipynb in {labs}, got none: name the right folder with --labs"
        )
    for path in paths:
        if not NAME.fullmatch(path.name):
            raise ValueError(f"expected a name like 02_badnets.ipynb in {labs}, got {path.name}: rename or move it")
    return paths


def read(path: Path) -> dict[str, Any]:
    """The notebook as the dictionary its JSON holds; ValueError if it is not a valid notebook of nbformat 4.5."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a notebook, got invalid JSON ({error}): save it again in Jupyter") from None
    version = (notebook.get("nbformat"), notebook.get("nbformat_minor")) if isinstance(notebook, dict) else "other JSON"
    if version != (4, 5):
        raise ValueError(f"{path}: expected nbformat 4.5, got {version}: save it again in Jupyter")
    for error in nbformat.validator.iter_validate(notebook):
        where = "/".join(map(str, error.absolute_path)) or "notebook"
        raise ValueError(
            f"{path}: expected a valid notebook, got at {where}: {error.message}: save it again in Jupyter"
        )
    return notebook


# --- one notebook -----------------------------------------------------------------------------------------------------


def student_notebook(solved: dict[str, Any], where: str = "notebook") -> dict[str, Any]:
    """A new dictionary, the student's version of a solved notebook. `where` names the notebook in errors."""
    if not any("nbgrader" in cell["metadata"] for cell in solved["cells"]):
        raise ValueError(
            f"{where}: expected cells with nbgrader metadata, got none: mark solution and check cells "
            "(View > Cell Toolbar > Create Assignment), or hand over the solved notebook instead of another one"
        )
    cells, seen = [], set()
    for cell in solved["cells"]:
        here = f"{where}, cell {cell['id']!r}"
        check_metadata(cell, here)
        for kind, name in (("cell id", cell["id"]), ("grade id", cell["metadata"].get("nbgrader", {}).get("grade_id"))):
            if name and (kind, name) in seen:
                raise ValueError(f"{here}: expected one cell per {kind}, got {name!r} twice: rename one")
            seen.add((kind, name))
        cells.append(student_cell(cell, here))
    kept = {key: value for key, value in solved["metadata"].items() if key not in ("widgets", "celltoolbar")}
    return {**solved, "metadata": kept, "cells": cells}


def check_metadata(cell: dict[str, Any], here: str) -> None:
    """ValueError unless the cell's nbgrader metadata, if any, follow schema 3 and fit what the cell holds."""
    meta = cell["metadata"].get("nbgrader")
    if meta is None:
        return
    if meta.get("schema_version") != 3:
        raise ValueError(
            f"{here}: expected nbgrader schema_version 3, got {meta.get('schema_version')}: nbgrader update"
        )
    if missing := [key for key in ("grade", "solution", "locked") if not isinstance(meta.get(key), bool)]:
        raise ValueError(f"{here}: expected true or false for {', '.join(missing)} in the nbgrader metadata: add them")
    if meta.get("task"):
        raise ValueError(f"{here}: expected a solution or check cell, got a task cell: labs are graded by check cells")
    if not re.fullmatch(r"[\w-]+", str(meta.get("grade_id", ""))):
        raise ValueError(
            f"{here}: expected a grade_id of letters, digits, - and _, got {meta.get('grade_id')!r}: name it"
        )
    points = meta.get("points")
    if meta["grade"] and (isinstance(points, bool) or not isinstance(points, int | float) or points <= 0):
        raise ValueError(f"{here}: expected points above 0 on a check cell, got {points}: say what it is worth")
    if meta["solution"] and "SOLUTION" not in {region for region, _ in lines(cell, here)}:
        raise ValueError(
            f"{here}: expected ### BEGIN SOLUTION and ### END SOLUTION in a solution cell, got neither: add them"
        )


def student_cell(cell: dict[str, Any], here: str) -> dict[str, Any]:
    """The cell with its regions cut and its outputs cleared, locked as nbgrader locks it."""
    role = cell["metadata"].get("nbgrader", {})
    stub = CODE_STUB if cell["cell_type"] == "code" else TEXT_STUB
    text = []
    for region, line in lines(cell, here):
        if region and not role.get(ROLE[region]):
            raise ValueError(
                f"{here}: expected {region} markers in a {ROLE[region]} cell only: set its nbgrader metadata"
            )
        if region is None:
            text.append(line)
        elif "BEGIN SOLUTION" in line:
            text.append(line[: len(line) - len(line.lstrip())] + stub)
    metadata = {
        k: v for k, v in cell["metadata"].items() if k not in ("collapsed", "scrolled", "execution", "ExecuteTime")
    }
    if role.get("grade") or role.get("solution") or role.get("locked"):
        metadata["deletable"] = False
    if (role.get("grade") or role.get("locked")) and not role.get("solution"):
        metadata["editable"] = False
    cleared = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
    return {**cell, "metadata": metadata, "source": "\n".join(text).splitlines(keepends=True), **cleared}


def lines(cell: dict[str, Any], here: str = "cell") -> Iterator[tuple[str | None, str]]:
    """Each source line with the region it belongs to, markers included: 'SOLUTION', 'HIDDEN TESTS' or None (public)."""
    region = None
    for line in "".join(cell["source"]).split("\n"):
        marker = MARKER.search(line)
        if marker and not marker[0].startswith(f"END {region}" if region else "BEGIN"):
            raise ValueError(f"{here}: expected BEGIN and END in pairs, got {line.strip()!r} out of place: pair them")
        yield (marker[2] if marker else region), line
        if marker:
            region = marker[2] if marker[1] == "BEGIN" else None
    if region:
        raise ValueError(f"{here}: expected ### END {region}, got the end of the cell: add it")


# --- bytes ------------------------------------------------------------------------------------------------------------


def encode(notebook: dict[str, Any]) -> bytes:
    """The notebook's bytes in the layout that Jupyter itself writes, so that opening and saving changes nothing."""
    return (json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


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
