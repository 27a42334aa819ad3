"""Student notebooks: solutions gone, everything else kept, the same bytes each time, and what nbgrader would make."""

import copy
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import LABS, PROJECT, cell

from labkit.course import release as module
from labkit.course.cli import main
from labkit.course.notebooks import encode
from labkit.course.release import CODE_STUB, release, student_notebook


def project(folder: Path, **notebooks: dict) -> Path:
    """A project folder with these labs; returns its labs folder."""
    (folder / "labs").mkdir(parents=True)
    (folder / "labkit" / "__pycache__").mkdir(parents=True)
    (folder / "labkit" / "__init__.py").write_bytes(b"import torch\r\n")
    (folder / "labkit" / "__pycache__" / "secret.py").write_text("")
    for name in ("environment.yml", "pyproject.toml", "LICENSE"):
        (folder / name).write_text(f"# {name}\n")
    for name, notebook in notebooks.items():
        (folder / "labs" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return folder / "labs"


def sources(notebook: dict) -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}


def test_the_region_becomes_one_indented_stub_and_hidden_tests_vanish(solved):
    student = sources(student_notebook(solved))
    assert student["overlay"] == f'def overlay(images, ghosts, opacity=0.5):\n    """Blend."""\n    {CODE_STUB}'
    assert student["check-overlay"] == "points_overlay = 2.0 if overlay(1, 1) else 0.0\npoints_overlay"
    assert student["title"] == sources(solved)["title"] and student["last"] == "1 + 1"
    for secret in ("hazy_images", "secret_total", "SOLUTION", "HIDDEN"):
        assert secret not in encode(student_notebook(solved)).decode()


def test_a_stub_returns_none(solved):
    namespace: dict = {}
    exec(sources(student_notebook(solved))["overlay"], namespace)
    assert namespace["overlay"](1, 2) is None


def test_two_regions_in_one_cell_become_two_stubs(solved):
    solved["cells"][2]["source"] = (
        "def f():\n\t### BEGIN SOLUTION\n\treturn 1\n\t### END SOLUTION\n"
        "if f():\n    ### BEGIN SOLUTION\n    g = 2\n    ### END SOLUTION\nh = 3\n"
    )
    assert sources(student_notebook(solved))["overlay"] == (
        f"def f():\n\t{CODE_STUB}\nif f():\n    {CODE_STUB}\nh = 3\n"
    )


def test_traces_of_running_are_gone_and_the_rest_is_kept(solved):
    before = copy.deepcopy(solved)
    student = student_notebook(solved)
    assert solved == before, "the solved notebook was changed"
    setup, exercise, check = student["cells"][1:4]
    assert (setup["execution_count"], setup["outputs"], setup["metadata"]) == (None, [], {"tags": ["setup"]})
    assert [c["id"] for c in student["cells"]] == [c["id"] for c in solved["cells"]]
    assert exercise["metadata"]["nbgrader"] == before["cells"][2]["metadata"]["nbgrader"]
    assert check["metadata"]["nbgrader"] == before["cells"][3]["metadata"]["nbgrader"]
    assert student["metadata"].keys() == {"kernelspec", "language_info"}


def spoil(change):
    """A malformed notebook: `change` gets the cells by their ids."""
    return lambda notebook: change({c["id"]: c for c in notebook["cells"]})


def role(cells: dict, name: str) -> dict:
    return cells[name]["metadata"]["nbgrader"]


MALFORMED = {
    "no metadata": (
        lambda nb: [c["metadata"].pop("nbgrader", None) for c in nb["cells"]],
        "nbgrader metadata, got none",
    ),
    "no end": (spoil(lambda c: c["overlay"].update(source="### BEGIN SOLUTION\nx = 1")), "END SOLUTION, got the end"),
    "no begin": (spoil(lambda c: c["overlay"].update(source="x = 1\n### END SOLUTION")), "out of place"),
    "nested": (spoil(lambda c: c["overlay"]["source"].insert(3, "### BEGIN SOLUTION\n")), "out of place"),
    "crossed": (spoil(lambda c: c["check-overlay"]["source"].insert(2, "### END SOLUTION\n")), "out of place"),
    "unmarked solution": (spoil(lambda c: c["overlay"].update(source="x = 1")), "in a solution cell, got none"),
    "solution elsewhere": (
        spoil(lambda c: c["last"].update(source=c["overlay"]["source"])),
        "SOLUTION in a solution cell only",
    ),
    "hidden elsewhere": (
        spoil(lambda c: c["last"].update(source=c["check-overlay"]["source"])),
        "HIDDEN TESTS in a grade cell only",
    ),
    "no points": (spoil(lambda c: role(c, "check-overlay").pop("points")), "points above 0 on a check cell, got None"),
    "points no number": (spoil(lambda c: role(c, "check-overlay").update(points="2")), "points above 0"),
    "no grade id": (spoil(lambda c: role(c, "overlay").pop("grade_id")), "grade_id of letters"),
    "grade id twice": (
        spoil(lambda c: role(c, "overlay").update(grade_id="check-overlay")),
        "grade id, got 'check-overl",
    ),
    "cell id twice": (spoil(lambda c: c["last"].update(id="setup")), "cell id, got 'setup' twice"),
    "no cell id": (spoil(lambda c: c["last"].pop("id")), "'id' is a required property"),
    "old format": (lambda nb: nb.update(nbformat_minor=4), "nbformat 4.5, got (4, 4)"),
    "no cell type": (spoil(lambda c: c["last"].pop("cell_type")), "a valid notebook, got at cells/4"),
    "source is a number": (spoil(lambda c: c["last"].update(source=3)), "a valid notebook, got at cells/4"),
    "old schema": (spoil(lambda c: role(c, "overlay").update(schema_version=1)), "schema_version 3, got 1"),
    "half a role": (spoil(lambda c: role(c, "overlay").pop("locked")), "true or false for locked"),
    "task cell": (spoil(lambda c: role(c, "overlay").update(task=True)), "got a task cell"),
}


@pytest.mark.parametrize(("change", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_notebook_is_refused_by_name_and_nothing_is_written(change, message, solved, tmp_path, capsys):
    good = copy.deepcopy(solved)
    change(solved)
    labs = project(tmp_path, **{"01_good": good, "02_bad": solved})
    assert main(["release", "--labs", str(labs), "--out", str(tmp_path / "dist")]) == 1
    said = capsys.readouterr()
    assert message in said.err and "02_bad.ipynb" in said.err
    assert said.err.startswith("labkit: ") and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"cells": 1, "nbformat": 4, "nbformat_minor": 5}', b"\xff"])
def test_what_is_no_notebook_is_refused(content, tmp_path):
    labs = project(tmp_path)
    (labs / "03_triggers.ipynb").write_bytes(content)
    with pytest.raises(ValueError, match=r"03_triggers\.ipynb.*expected (a notebook|a valid notebook|nbformat)"):
        release(labs, tmp_path / "dist")


def test_wrong_folders_and_names_are_refused(solved, tmp_path):
    with pytest.raises(ValueError, match="expected a folder"):
        release(tmp_path / "missing", tmp_path / "dist")
    with pytest.raises(ValueError, match="got none"):
        release(project(tmp_path / "empty"), tmp_path / "dist")
    with pytest.raises(ValueError, match=r"got 2_badnets\.ipynb: rename"):
        release(project(tmp_path / "name", **{"2_badnets": solved}), tmp_path / "dist")
    labs = project(tmp_path / "bare", **{"02_badnets": solved})
    (labs.parent / "environment.yml").unlink()
    with pytest.raises(ValueError, match=r"expected environment\.yml beside the labs"):
        release(labs, tmp_path / "dist")
    labs = project(tmp_path / "same", **{"02_badnets": solved}).rename(tmp_path / "same" / "student")
    with pytest.raises(ValueError, match="overwrite"):
        release(labs, tmp_path / "same")
    assert "hazy_images" in (labs / "02_badnets.ipynb").read_text(), "a solved notebook was overwritten"


def test_the_zip_holds_what_a_student_needs(solved, tmp_path):
    labs = project(tmp_path, **{"02_badnets": solved, "05_strip": solved})
    written = release(labs, tmp_path / "dist")
    expected = ["student/02_badnets.ipynb", "student/05_strip.ipynb", "student.zip"]
    assert [path.relative_to(tmp_path / "dist").as_posix() for path in written] == expected
    with zipfile.ZipFile(written[-1]) as folder:
        held = {name.removeprefix("labs/"): folder.read(name) for name in folder.namelist()}
    notebooks = {"02_badnets.ipynb", "05_strip.ipynb"}
    package = {"README.md", "environment.yml", "pyproject.toml", "LICENSE", "labkit/__init__.py"}
    assert held.keys() == notebooks | package
    assert held["02_badnets.ipynb"] == written[0].read_bytes()
    assert held["labkit/__init__.py"] == b"import torch\n"  # written on Windows above
    assert b"conda env create -f environment.yml" in held["README.md"]


def test_two_runs_in_different_folders_give_the_same_bytes(solved, tmp_path, monkeypatch):
    first = project(tmp_path / "one", **{"02_badnets": solved, "05_strip": solved})
    reordered = json.loads(json.dumps(solved, sort_keys=True))
    second = project(tmp_path / "two" / "deeper", **{"05_strip": reordered, "02_badnets": reordered})
    (second.parent / "pyproject.toml").chmod(0o600)
    monkeypatch.setattr("time.time", lambda: 2e9)
    written = [path.read_bytes() for path in release(first, tmp_path / "out1")]
    assert written == [path.read_bytes() for path in release(second, tmp_path / "two" / "dist")]
    assert written == [path.read_bytes() for path in release(first, tmp_path / "out1")], "a second run differs"
    with zipfile.ZipFile(tmp_path / "out1" / "student.zip") as folder:
        assert folder.namelist() == sorted(folder.namelist())
        assert {(e.date_time, e.external_attr, e.create_system) for e in folder.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 0o100644 << 16, 3)
        }


def test_a_failed_write_leaves_the_old_file(solved, tmp_path, monkeypatch):
    labs = project(tmp_path, **{"02_badnets": solved})
    old = release(labs, tmp_path / "dist")[0]
    before = old.read_bytes()
    solved["cells"][-1]["source"] = ["2 + 2"]
    (labs / "02_badnets.ipynb").write_text(json.dumps(solved))

    def full(path, content):
        if isinstance(content, bytes):
            open(path, "wb").write(content[:10])
        raise OSError("no space left on device")

    for target, name in ((module.Path, "write_bytes"), (module.os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(OSError, match="no space"):
                release(labs, tmp_path / "dist")
        assert old.read_bytes() == before and [p.name for p in old.parent.iterdir()] == ["02_badnets.ipynb"]


def test_the_command_says_what_it_wrote_and_how_to_call_it(solved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project(tmp_path, **{"02_badnets": solved}).parent)
    assert main(["release"]) == 0
    assert capsys.readouterr().out.split() == [
        str(Path("dist/student/02_badnets.ipynb")),
        str(Path("dist/student.zip")),
    ]
    for wrong in ([], ["publish"], ["release", "--nowhere"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert "usage: labkit" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["release", "--out", str(blocked)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_site_command_says_where_the_site_is_or_why_not(monkeypatch, capsys):
    monkeypatch.setattr("labkit.course.site.build", lambda: Path("book/_build/html"))
    assert main(["site"]) == 0
    assert capsys.readouterr().out.strip() == str(Path("book/_build/html"))
    monkeypatch.setitem(sys.modules, "labkit.course.site", None)  # as if jupyter-book were not installed
    assert main(["site"]) == 1
    assert "pip install 'labkit[course]'" in capsys.readouterr().err


# --- nbgrader is the oracle -------------------------------------------------------------------------------------------


def nbgrader_release(folder: Path, notebooks: dict[str, bytes]) -> dict[str, dict]:
    """What `nbgrader generate_assignment` makes of these notebooks."""
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    source = folder / "source" / "ps1"
    source.mkdir(parents=True)
    for name, content in notebooks.items():
        (source / name).write_bytes(content)
    config = Config()
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.assignment_id = "ps1"
    config.CourseDirectory.db_url = f"sqlite:///{folder / 'gradebook.db'}"
    config.ClearSolutions.code_stub = {"python": CODE_STUB}
    GenerateAssignment(coursedir=CourseDirectory(config=config), config=config).start()
    made = folder / "release" / "ps1"
    return {name: json.loads((made / name).read_text(encoding="utf-8")) for name in notebooks}


def comparable(notebook: dict) -> list[tuple]:
    """Id, type, source, metadata and outputs of each cell, without the two fields of nbgrader's checksums."""
    rows = []
    for one in copy.deepcopy(notebook["cells"]):
        for field in ("checksum", "cell_type"):
            one["metadata"].get("nbgrader", {}).pop(field, None)
        one["metadata"].pop("execution", None)  # timings, which nbgrader leaves
        rows.append((one["id"], one["cell_type"], "".join(one["source"]), one["metadata"], one.get("outputs")))
    return rows


def test_nbgrader_makes_the_same_of_every_lab_and_of_hidden_tests(solved, tmp_path):
    solved["cells"].append(cell("essay", "Why?\n### BEGIN SOLUTION\nBecause.\n### END SOLUTION", "markdown",
                                solution=True, grade=True, points=1))  # fmt: skip
    solved["cells"].append(cell("given", "fixed = 1", locked=True))
    notebooks = {"99_synthetic.ipynb": encode(solved)} | {path.name: path.read_bytes() for path in LABS}
    for name, theirs in nbgrader_release(tmp_path, notebooks).items():
        assert comparable(student_notebook(json.loads(notebooks[name]), name)) == comparable(theirs), name


def test_the_comparison_would_notice_a_different_stub(solved, tmp_path, monkeypatch):
    theirs = nbgrader_release(tmp_path, {"99_synthetic.ipynb": encode(solved)})["99_synthetic.ipynb"]
    monkeypatch.setattr(module, "CODE_STUB", "pass")
    assert comparable(student_notebook(solved)) != comparable(theirs)


@pytest.mark.skipif(not LABS or not (PROJECT / "environment.yml").exists(), reason="no labs or environment yet")
def test_the_projects_own_labs_are_released(tmp_path):
    written = release(PROJECT / "labs", tmp_path)
    assert [path.name for path in written] == [path.name for path in LABS] + ["student.zip"]
    shutil.unpack_archive(written[-1], tmp_path / "unzipped")
    assert (tmp_path / "unzipped" / "labs" / "labkit" / "course" / "student_readme.md").exists()
