"""How do solved labs become the course website?

    build   1. release: student notebooks and student.zip, the download of each page
            2. run every solved lab                                                     (executed)
            3. assemble Sphinx's source: book/, labs, API pages, results, pictures  (pages, results, gallery, apidoc)
            4. jupyter-book, where every warning is an error
            5. downloads, MathJax; nothing may load from another host                   (offline)
            6. swap the finished site in

All of it happens in a temporary folder, so a failure leaves the last good site alone, and no solved notebook ever lies
where Sphinx could publish it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labkit.course.apidoc import write_api
from labkit.course.executed import beside, run_once
from labkit.course.gallery import with_gallery
from labkit.course.notebooks import encode, lab_paths, read
from labkit.course.offline import add_mathjax, outside_loads
from labkit.course.pages import contact_sheet, lab_page, without_missing_labs
from labkit.course.release import release
from labkit.course.results import results_page, with_results

JUPYTER_BOOK = "import sys; from jupyter_book.cli.main import main; sys.exit(main(prog_name='jupyter-book'))"
STRICT = ("-W", "-n", "--keep-going")
NOT_SOURCE = shutil.ignore_patterns("_build", "labs", "api", ".*")


def build(root: Path | str = ".", out: Path | str | None = None, *, strict: bool = True) -> Path:
    """Build the course website of the project at `root`; returns the folder of its pages, with `index.html`.

    out: where to, replaced as a whole, and only by a complete site; by default `root/book/_build/html`, and then the
    notebooks that were shown stay in `root/book/labs` for a look. strict: any Sphinx warning fails the build. Raises
    RuntimeError that names notebook and cell, or lists the warnings; ValueError for unsound labs.
    """
    root = Path(root).resolve()
    target = Path(out).resolve() if out else root / "book" / "_build" / "html"
    if not (root / "_config.yml").is_file():
        raise ValueError(f"expected the project's folder, got {root} without a _config.yml: run this in the project")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        release(root / "labs", work / "release")
        assemble(root, work / "release" / "student", work / "source")
        jupyter_book(root / "_config.yml", work / "source", work / "site", strict)
        html = work / "site" / "_build" / "html"
        finish(html, work / "release")
        if out is None:
            swap(work / "source" / "labs", root / "book" / "labs")
        swap(html, target)
    return target


def assemble(root: Path, students: Path, source: Path) -> None:
    """Write Sphinx's source folder: the book's own pages and everything that is generated from the project."""
    shutil.copytree(root / "book", source, ignore=NOT_SOURCE)
    (source / "labs").mkdir()
    labs = lab_paths(root / "labs")
    for path in labs:
        start, student = time.perf_counter(), read(students / path.name)
        page = beside(student, run_once(read(path), str(path.relative_to(root))), path.name)
        (source / "labs" / path.name).write_bytes(encode(lab_page(page, path.stem)))
        print(f"{path.name}: outputs after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    write_api(root / "labkit", source / "api")
    (source / "results.md").write_text(results_page(root / "results", root / "benchmarks"), encoding="utf-8")
    stamped = contact_sheet(source / "_static" / "signs.jpg")
    for page in source.glob("*.md"):
        text = without_missing_labs(page.read_text(encoding="utf-8"), {path.stem for path in labs})
        text = with_results(text.replace("{{ stamped }}", stamped), root / "results")
        text = with_gallery(text, root / "results", source / "_static")
        page.write_text(text, encoding="utf-8")


def jupyter_book(config: Path, source: Path, out: Path, strict: bool = True) -> None:
    """Run jupyter-book on a source folder with a `_toc.yml`; pages go to `out/_build/html`.

    RuntimeError with the warnings and errors if it fails, or if it reports success but wrote no start page.
    """
    options = ["--config", config, "--toc", source / "_toc.yml", "--path-output", out, "-q"]
    options += STRICT if strict else ()
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", source, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(config.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=source)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)  # Sphinx colours its warnings
    if done.returncode or not (out / "_build" / "html" / "index.html").is_file():
        wrong = [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line] or said.splitlines()[-20:]
        found = "\n".join(line.replace(f"{source}{os.sep}", "") for line in wrong)
        raise RuntimeError(f"expected a website without warnings, got from jupyter-book:\n{found}")


def finish(html: Path, released: Path) -> None:
    """Downloads and MathJax beside the pages; RuntimeError if a page would load anything from another host."""
    for notebook in (released / "student").glob("*.ipynb"):
        shutil.copy(notebook, html / "_sources" / "labs" / notebook.name)
    shutil.copy(released / "student.zip", html)
    add_mathjax(html)
    (html / ".nojekyll").touch()  # GitHub Pages: keep folders that start with _
    if found := outside_loads(html):
        raise RuntimeError("expected a site that renders offline, got loads from other hosts:\n" + "\n".join(found))


def swap(new: Path, old: Path) -> None:
    """Replace the folder `old` by `new`; if that fails, `old` is still there."""
    old.parent.mkdir(parents=True, exist_ok=True)
    near, spare = (old.with_name(f".{old.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    shutil.copytree(new, near)  # first onto the same disk, where renaming is instant
    if old.exists():
        old.rename(spare)
    near.rename(old)
    shutil.rmtree(spare, ignore_errors=True)
