"""No line of a solution in anything that is published: planted ones are found, and the real artefacts are clean."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from conftest import EXPECTED_LABS, LABS, PROJECT, cell

from labkit.course.leaks import Leak, find_leaks, public_text, secret_lines, secret_names
from labkit.course.notebooks import encode, read
from labkit.course.release import release, student_notebook

BLEND = "hazy_images = ( 1 - opacity ) * images + opacity * ghosts"
ODD = 'return hazy_images . clamp ( 0 , 1 ) if opacity < 2 else " it " s \\ n odd "'
HIDDEN = "assert overlay ( 4 , 4 ) . tolist ( ) = = [ secret_total , 7 ]"


def exercise(body: str) -> dict:
    """A solved notebook with this solution, and code outside it."""
    solution = f"def f(x):\n    ### BEGIN SOLUTION\n{body}\n    ### END SOLUTION"
    cells = [cell("a", "shown = x.mean() + 1"), cell("b", "`spread = x.std() + 1`", "markdown")]
    cells.append(cell("s", solution, solution=True))
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def highlighted(source: str) -> str:
    """Source the way pygments puts it on a page: every word and sign in its own span, signs escaped."""
    spans = re.sub(r"\w+|[^\w\s]", lambda m: f'<span class="n">{html.escape(m[0])}</span>', source)
    return f'<html><body><div class="highlight"><pre>{spans}</pre></div></body></html>'


def zipped(**files: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as folder:
        for name, content in files.items():
            folder.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


# --- what is secret ---------------------------------------------------------------------------------------------------


def test_solutions_and_hidden_tests_are_secret_without_their_comments(solved):
    assert secret_lines(solved) == {BLEND, ODD, HIDDEN}


TRIVIAL = """return x
else:
# a long comment that says a lot
i += 1
loss.backward()
with torch.no_grad():
import torch.nn.functional as F
shown = x.mean()   +  1""".split("\n")  # the last one also stands outside the region
TELLING = ["return x + 1", "return x.mean(0)", "y = x.std() * 2", "spread = x.std() + 1", '"""Say why it is."""']


@pytest.mark.parametrize("line", TRIVIAL)
def test_a_trivial_line_is_no_secret(line):
    assert secret_lines(exercise(f"    {line}")) == set()


@pytest.mark.parametrize("line", TELLING)
def test_any_other_line_is_secret_even_if_a_text_cell_tells_it(line):
    assert len(secret_lines(exercise(f"    {line}"))) == 1


def test_secret_names_are_those_that_only_solutions_use(solved):
    assert secret_names(solved, []) == {"hazy_images"}
    assert secret_names(solved, ["see Hazy_Images there"]) == secret_names(solved, ["one hazy_image"]) == set()
    assert "hazy_images" not in public_text(solved) and "# Overlay" in public_text(solved)


# --- planted leaks ----------------------------------------------------------------------------------------------------

LINE = '    return hazy_images.clamp(0, 1) if opacity < 2 else "it\'s\\n odd"\n'
CODE = f"def overlay():\n{LINE}"
NOTEBOOK = {"cells": [{"cell_type": "code", "source": CODE.splitlines(keepends=True)}]}
WITH_OUTPUT = {"cells": [{"cell_type": "code", "source": [], "outputs": [{"data": {"text/html": highlighted(CODE)}}]}]}
BROKEN = highlighted(CODE).replace("<span ", "<span\n")
INDEX = "Search.setIndex(" + json.dumps({"alltitles": {"Overlay": [[0, None]], CODE: [[1, "x"]]}}) + ")"

PLANTED = {
    "plain text": ("output.txt", CODE.encode(), 2),
    "other layout": ("page.md", b"return hazy_images.clamp( 0,1 )\n    if opacity<2 else 'it's\\n odd'  # why", 1),
    "page": ("labs/overlay.html", highlighted(CODE).encode(), 2),
    "page, tags over lines": ("labs/b.html", BROKEN.encode(), BROKEN[: BROKEN.index("return")].count("\n") + 1),
    "notebook source": ("_sources/labs/02_overlay.ipynb", json.dumps(NOTEBOOK, indent=1).encode(), None),
    "notebook in one line": ("_sources/labs/02_overlay.ipynb", json.dumps(NOTEBOOK).encode(), 1),
    "output in a notebook": ("02_overlay.ipynb", json.dumps(WITH_OUTPUT).encode(), 1),
    "JSON in a page": ("widgets.html", f"<script>{json.dumps({'state': CODE})}</script>".encode(), 1),
    "unicode escapes": ("a.json", json.dumps(CODE).replace("<", "\\u003c").replace(" ", "\\u0020").encode(), 1),
    "search index": ("searchindex.js", INDEX.encode(), 1),
    "zip": ("student.zip", zipped(labs__02_overlay__ipynb=json.dumps(NOTEBOOK).encode()), 1),
    "wheel": ("labkit-0.1.0-py3-none-any.whl", zipped(labkit__checks__lab02=CODE.encode()), 2),
    "zip in a zip": ("all.zip", zipped(inner__zip=zipped(deep=CODE.encode())), 2),
    "zip without its suffix": ("download", zipped(deep=CODE.encode()), 2),
    "hidden file": (".hidden/notes", CODE.encode(), 2),
    "not quite utf-8": ("latin.txt", b"\xff\xfe\n" + CODE.encode(), 3),
}


@pytest.mark.parametrize(("name", "content", "line"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_line_is_found_where_it_is(name, content, line, solved, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<p>Fine. return hazy images, clamp, opacity, odd, if else.</p>")
    file = tmp_path / "site" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    found = find_leaks(tmp_path / "site", secret_lines(solved))
    assert found and {leak.secret for leak in found} == {ODD}
    assert found[0].file.startswith(str(file))
    if line:
        assert found[0].line == line
    file.unlink()
    assert find_leaks(tmp_path / "site", secret_lines(solved)) == []


def test_a_leak_in_an_archive_is_named_with_the_way_to_it(tmp_path):
    (tmp_path / "all.zip").write_bytes(zipped(inner=zipped(notes=b"\na = b + c")))
    assert find_leaks(tmp_path / "all.zip", {"a = b + c"}) == [Leak(f"{tmp_path}/all.zip!inner!notes", 2, "a = b + c")]


def test_a_part_of_a_word_is_no_leak(tmp_path):
    (tmp_path / "page.txt").write_text("alpha = b + cell\nmax_a = b + c\na = b\n")
    assert find_leaks(tmp_path, {"a = b + c"}) == []


def test_an_escaped_umlaut_hides_nothing(tmp_path):
    (tmp_path / "page.json").write_text(json.dumps("größe = a + b"))
    assert [leak.secret for leak in find_leaks(tmp_path, {"größe = a + b"})] == ["größe = a + b"]


def test_a_name_is_found_stemmed_in_the_search_index_only(solved, tmp_path):
    (tmp_path / "searchindex.js").write_text('Search.setIndex({"terms":{"hazy_imag":[3],"train":[1]}})')
    (tmp_path / "page.txt").write_text("hazy_images hazy_imag")
    found = find_leaks(tmp_path, secret_lines(solved), secret_names(solved, []))
    assert [(Path(leak.file).name, leak.secret) for leak in found] == [("searchindex.js", "hazy_images")]
    (tmp_path / "searchindex.js").write_text('Search.setIndex({"terms":{"hazy_imagine":[3],"train":[1]}})')
    assert find_leaks(tmp_path, secret_lines(solved), secret_names(solved, [])) == []


def test_a_real_sphinx_site_with_a_solution_is_caught_in_page_source_and_index(solved, tmp_path):
    source = tmp_path / "book"
    source.mkdir()
    (source / "conf.py").write_text("project = 'x'\n")
    (source / "index.rst").write_text(f"X\n=\n\n.. code-block:: python\n\n   def overlay():\n   {LINE}")
    command = [sys.executable, "-m", "sphinx", "-q", "-d", "doctrees", "book", "site"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    found = find_leaks(tmp_path / "site", secret_lines(solved), secret_names(solved, []))
    names = {Path(leak.file).relative_to(tmp_path / "site").as_posix() for leak in found}
    assert names == {"index.html", "_sources/index.rst.txt", "searchindex.js"}


def test_nothing_to_read_is_an_error_not_a_pass(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_leaks(tmp_path / "missing", {"a = b + c"})
    with pytest.raises(ValueError, match="got none"):
        find_leaks(tmp_path, {"a = b + c"})
    (tmp_path / "broken.whl").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="damaged"):
        find_leaks(tmp_path, {"a = b + c"})


def test_the_release_of_a_solved_notebook_is_clean_and_the_notebook_itself_is_not(solved, tmp_path):
    (tmp_path / "student.ipynb").write_bytes(encode(student_notebook(solved)))
    assert find_leaks(tmp_path, secret_lines(solved)) == []
    (tmp_path / "solved.ipynb").write_bytes(encode(solved))
    assert {leak.secret for leak in find_leaks(tmp_path, secret_lines(solved))} == {BLEND, ODD, HIDDEN}


# --- what is really published -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secrets() -> tuple[set[str], set[str]]:
    """(lines, names) that are secret in the project's labs."""
    labs = [read(path) for path in LABS]
    lines = set().union(*(secret_lines(lab) for lab in labs))
    public = [public_text(lab) for lab in labs]
    for folder, pattern in (("labkit", "*.py"), ("book", "*.md"), ("book", "*.bib")):
        public += [p.read_text(encoding="utf-8") for p in (PROJECT / folder).rglob(pattern) if "_build" not in p.parts]
    return lines, set().union(*(secret_names(lab, public) for lab in labs))


def test_every_expected_lab_has_secrets():
    found = {path.stem: len(secret_lines(read(path))) for path in LABS}
    assert all(found.get(name, 0) >= 3 for name in EXPECTED_LABS), found


def report(leaks: list[Leak]) -> str:
    return "\n".join(map(str, leaks))


def test_the_student_notebooks_and_zip_are_clean(secrets, tmp_path):
    assert len(release(PROJECT / "labs", tmp_path)) > len(EXPECTED_LABS)
    assert not (found := find_leaks(tmp_path, *secrets)), report(found)


def test_the_wheel_is_clean(secrets, tmp_path):
    shutil.copytree(PROJECT / "labkit", tmp_path / "src" / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (PROJECT / name).exists():
            shutil.copy(PROJECT / name, tmp_path / "src")
    (tmp_path / "src" / "README.md").touch()
    command = "-m pip wheel --no-deps --no-build-isolation --disable-pip-version-check -q -w".split()
    built = subprocess.run(
        [sys.executable, *command, str(tmp_path), str(tmp_path / "src")],
        capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as folder:
        assert "labkit/course/student_readme.md" in folder.namelist()
        assert not [name for name in folder.namelist() if name.endswith(".ipynb") or name.startswith("labs/")]
    assert not (found := find_leaks(wheel, *secrets)), report(found)


@pytest.mark.parametrize("folder", ["book/_build/html", "dist"])
def test_what_was_built_last_is_clean(folder, secrets):
    if not (PROJECT / folder).exists():
        pytest.skip(f"{folder} is not built")
    assert not (found := find_leaks(PROJECT / folder, *secrets)), report(found)
