"""The set-up says the same everywhere: pyproject, conda, README, Makefile, workflows; and git holds no ballast."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import LABS, PROJECT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from labkit.course.notebooks import read

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def git(*command: str) -> list[str]:
    """The lines that git prints; the test is skipped where the project is no clone (a downloaded zip)."""
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git clone")
    done = subprocess.run(["git", *command], cwd=PROJECT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.split("\0" if "-z" in command else "\n") if line]


def files() -> list[Path]:
    """Every file that is in git or would be added, as it is now."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [path for name in names if (path := PROJECT / name).is_file()]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


# --- requirements -----------------------------------------------------------------------------------------------------


def requirements(lines: list[str]) -> set[str]:
    """Requirements in one spelling; labkit itself, by name or by `-e .`, is none."""
    made = {Requirement(line) for line in lines if not line.startswith("-e")}
    return {str(one) for one in made if one.name != "labkit"}


def test_conda_and_pyproject_ask_for_the_same():
    extras = PYPROJECT["optional-dependencies"]
    conda = yaml.safe_load(text(PROJECT / "environment.yml"))
    (pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert requirements(pip) == requirements(
        [*PYPROJECT["dependencies"], *(one for lines in extras.values() for one in lines)]
    )
    assert "-e ." in pip and len(requirements(pip)) > 20


def test_a_changed_bound_a_missing_and_a_new_requirement_are_differences():
    ours = ["torch>=2.6", "jupyter-book>=1.0.4,<2"]
    assert requirements(ours) == requirements(["-e .", "jupyter-book<2,>=1.0.4", "torch >= 2.6", "labkit[course]"])
    for other in (["torch>=2.5", ours[1]], ours[:1], [*ours, "numpy"], ["torch>=2.6", "jupyter-book>=1.0.4"]):
        assert requirements(other) != requirements(ours)


def test_the_supported_versions_are_the_same_everywhere():
    supported = [line[-4:] for line in PYPROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert supported == ["3.11", "3.12", "3.13"] and PYPROJECT["requires-python"] == f">={supported[0]}"
    (matrix,) = (job["strategy"]["matrix"]["python"] for job in workflow("ci")["jobs"].values())
    conda = yaml.safe_load(text(PROJECT / "environment.yml"))["dependencies"][0]
    assert matrix == supported and conda.removeprefix("python=") in supported
    assert "Python 3.11, 3.12 or 3.13" in README and "torch 2.6 or later" in README
    assert "torch>=2.6" in PYPROJECT["dependencies"]


def test_pre_commit_formats_with_the_version_that_ci_checks_with():
    (rev,) = (
        repo["rev"] for repo in yaml.safe_load(text(PROJECT / ".pre-commit-config.yaml"))["repos"] if "rev" in repo
    )
    (bound,) = (Requirement(r).specifier for r in PYPROJECT["optional-dependencies"]["dev"] if r.startswith("ruff"))
    assert rev.removeprefix("v") in bound and version("ruff") in bound
    assert rev.split(".")[:2] == f"v{version('ruff')}".split(".")[:2]
    assert "99" not in SpecifierSet(str(bound)), "ruff's formatting changes between minor versions: bound it above"


# --- one set of commands ----------------------------------------------------------------------------------------------


def workflow(name: str) -> dict:
    return yaml.safe_load(text(PROJECT / ".github" / "workflows" / f"{name}.yml"))


def commands(name: str) -> list[str]:
    return [step["run"] for job in workflow(name)["jobs"].values() for step in job["steps"] if "run" in step]


def test_the_workflows_and_ci_run_what_the_readme_says():
    assert commands("ci") == ["make test"] and commands("pages") == ["make book"]
    assert text(PROJECT / ".ci" / "run").rstrip().endswith("exec make test")
    for command in ("make book", "make test", "make lab"):
        assert re.search(rf"^{command}\b", README, re.M), f"README: expected `{command}` at the start of a line"


def test_every_make_target_in_the_documents_exists():
    targets = set(re.findall(r"^([a-z]+):", text(PROJECT / "Makefile"), re.M))
    for page in ("README.md", "CONTRIBUTING.md"):
        told = set(re.findall(r"(?:^|`)make ([a-z]+)", text(PROJECT / page), re.M))
        assert told and told <= targets, f"{page}: {told - targets}"


@pytest.mark.parametrize(("release", "fine"), [("3.10", False), ("3.11", True), ("3.13", True), ("3.14", False)])
def test_make_refuses_another_python_with_the_way_out(release, fine, tmp_path):
    """make with a python3 that says it is this release, and that makes no environment."""
    python, environment = tmp_path / "python3", f".venv-{tmp_path.name}"
    claim = f"import sys; sys.version_info = (*map(int, '{release}'.split('.')), 0); exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in\n--version) echo "Python {release}.0" ;;\n-m) echo "stop here"; exit 1 ;;\n'
        f'*) exec {sys.executable} -c "{claim}" "$2" ;;\nesac\n'
    )
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={environment}", "book"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode != 0 and not (PROJECT / environment).exists()
    assert ("stop here" in done.stdout) == fine
    refused = f"expected Python 3.11, 3.12 or 3.13; got Python {release}.0" in done.stderr
    assert refused != fine and ("make PYTHON=python3.12 book" in done.stderr) == refused


# --- README -----------------------------------------------------------------------------------------------------------


def tree(page: str) -> dict[str, str]:
    """The README's tree: path -> its line of description. Two spaces a level, folders end with a slash."""
    (block,) = re.findall(r"^## The tree\n.*?^```\n(.*?)^```", page, re.M | re.S)
    found, folders = {}, []
    for line in block.splitlines():
        match = re.fullmatch(r"( *)(\S+)(?:  +(.*))?", line)
        assert match, f"README tree: expected `name  description`, got {line!r}"
        depth = len(match[1]) // 2
        folders[depth:] = [match[2].rstrip("/")]
        found["/".join(folders)] = match[3] or ""
    return found


def test_the_readmes_tree_names_every_entry_and_every_module_and_nothing_else():
    relative = [path.relative_to(PROJECT) for path in files()]
    expected = {path.parts[0] for path in relative}
    expected |= {path.as_posix() for path in relative if path.parts[0] == "labkit" and path.suffix == ".py"}
    expected = {name for name in expected if not name.endswith("__init__.py")}
    expected = {re.sub(r"lab\d\d\.py", "labNN.py", name) for name in expected}
    listed = tree(README)
    missing = {name for name in expected if name not in listed}
    assert not missing, f"README tree: add a line for {sorted(missing)}"
    gone = [n for n in listed if "NN" not in n and not (PROJECT / n).exists()]
    assert not gone, f"README tree: {gone} do not exist"
    assert all(line for name, line in listed.items() if (PROJECT / name).is_file()), "README tree: a line says nothing"


def test_the_tree_is_read_by_its_indentation():
    page = "## The tree\n\n```\na/  one\n  b.py    two words\n  c/\n    d.py  three\ne  four\n```\n"
    assert tree(page) == {"a": "one", "a/b.py": "two words", "a/c": "", "a/c/d.py": "three", "e": "four"}


@pytest.mark.whole  # after the labs, which leave its victim in the cache
def test_the_readmes_example_runs_and_shows_what_it_says(capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(example.splitlines()) <= 25
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    for report in (names["report"], names["v"].report):
        assert report.clean_accuracy >= 0.95 and report.attack_success_rate >= 0.995
    flagged = names["result"].flagged
    assert flagged[500:].float().mean() >= 0.99 and flagged[:500].float().mean() <= 0.05
    assert "CA" in capsys.readouterr().out


# --- notebooks and ballast --------------------------------------------------------------------------------------------


def test_solved_notebooks_carry_no_outputs():
    for path in LABS:
        code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), f"{path}: strip outputs"


def test_no_file_is_large():
    large = {path.name: size for path in files() if (size := path.stat().st_size) > 1_000_000}
    assert not large


MACHINE_PATH = re.compile(r"(?<![\w.$~)}/-])/(?:work|tmp|root|home/\w+|Users/\w+)/")


def test_no_file_names_a_folder_of_one_machine():
    found = [f"{path}: {match[0]}" for path in files() for match in MACHINE_PATH.finditer(text(path))]
    assert not found


def test_a_planted_machine_path_is_found_and_links_are_not():
    slash = "/"
    for planted in (f"{slash}work/main", f"'{slash}home/ann/labs'", f"({slash}tmp/x)", f"={slash}root/.cache"):
        assert MACHINE_PATH.search(planted), planted
    for fine in ("https://x.org/work/1", "book/work/", "~/work/", "$HOME/tmp/x", "/tmp", "../work/"):
        assert not MACHINE_PATH.search(fine), fine
