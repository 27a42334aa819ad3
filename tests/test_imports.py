"""Who may import whom, and no pickle: rules about the source, read with `ast` and never by running it."""

import ast
import itertools
from pathlib import Path

import pytest
from conftest import PROJECT

# A module imports from its own part and from earlier tiers.
TIERS = (
    ("cache", "device", "jpeg", "layers", "profiles"),
    ("models", "kept", "augment", "at_once"),
    ("data",),
    ("metrics", "train", "channels", "stealth"),
    ("attacks", "defenses"),
    ("victims",),
    ("checks", "plots", "widgets"),
    ("course", "grading"),
)
# What a defence can import is what a defender knows: no trigger, no target, no list of poisoned images.
NEVER = {("defenses", "attacks"), ("attacks", "defenses"), ("defenses", "victims"), ("victims", "defenses")}
TIER = {part: tier for tier, parts in enumerate(TIERS) for part in parts}

PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MODULES = sorted((PROJECT / "labkit").rglob("*.py"))


def part_of(path: Path, package: Path) -> str:
    """labkit/data/signs.py -> 'data', labkit/train.py -> 'train', labkit/__init__.py -> '' (the front door)."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def front_door(package: Path) -> dict[str, str]:
    """What labkit/__init__.py offers -> the part it comes from: load -> data."""
    found = {}
    for node in ast.walk(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = (f"{node.module}.{alias.name}").split(".")[1]
    return found


def imported_parts(tree: ast.AST, path: Path, package: Path) -> set[str]:
    """The parts of labkit that a module imports, inside functions too; the front door's names count as their home."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = path.relative_to(package.parent).parts[: -node.level] if node.level else ()
            origin = ".".join((*folder, *([node.module] if node.module else [])))
            names += [f"{origin}.{alias.name}" for alias in node.names] if origin == "labkit" else [origin]
    parts = {name.split(".")[1] if "." in name else "" for name in names if name.split(".")[0] == "labkit"}
    home = front_door(package)
    return {home.get(part, part) for part in parts}


def wrong_imports(path: Path, package: Path = PROJECT / "labkit") -> list[str]:
    """What is wrong with a module's imports, one sentence each."""
    part = part_of(path, package)
    if part == "":
        return []
    if part not in TIER:
        return [f"{path.name}: labkit.{part} is in no tier: give it a place in the table of tests/test_imports.py"]
    found = []
    for other in sorted(imported_parts(ast.parse(path.read_text(encoding="utf-8")), path, package) - {part}):
        if other not in TIER:
            found.append(f"{path.name}: imports labkit.{other}, which is in no tier")
        elif TIER[other] > TIER[part] or (part, other) in NEVER:
            found.append(f"{path.name}: labkit.{part} must not import labkit.{other}")
    return found


def unsafe_loading(source: str) -> list[str]:
    """Lines that can run code from a data file: pickle and its relatives, torch.load, numpy with allow_pickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            bad = any(name.split(".")[0] in PICKLING for name in names)
            bad |= getattr(node, "module", "") == "torch" and any(a.name in ("load", "save") for a in node.names)
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            bad = (owner == "torch" and node.attr in ("load", "save")) or "pickle" in node.attr
        elif isinstance(node, ast.keyword):
            bad = node.arg == "allow_pickle" and not (
                isinstance(node.value, ast.Constant) and node.value.value is False
            )
        else:
            continue
        if bad:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_a_module_imports_only_what_its_place_allows(path):
    assert not wrong_imports(path)


def test_the_table_speaks_of_every_part_that_exists():
    parts = {part_of(path, PROJECT / "labkit") for path in MODULES} - {""}
    assert len(MODULES) > 15 and {"attacks", "defenses", "victims", "course"} <= parts <= set(TIER)


PLANTED = [
    ("defenses/strip.py", "from labkit.attacks import BadNets"),
    ("defenses/strip.py", "from labkit import victim"),
    ("defenses/strip.py", "from labkit import Victim"),
    ("defenses/strip.py", "import labkit.victims as v"),
    ("defenses/strip.py", "def f():\n    from ..attacks.base import Victim"),
    ("attacks/adaptive.py", "from labkit.defenses.strip import strip"),
    ("victims.py", "from labkit.defenses import strip"),
    ("victims.py", "from .defenses import strip"),
    ("data/loading.py", "from labkit import train"),
    ("train.py", "from . import plots"),
    ("checks/lab02.py", "from labkit.course import release"),
    ("utils.py", "import torch"),
    ("plots.py", "from labkit.utils import helper"),
]
ALLOWED = [
    ("checks/lab05.py", "from labkit import attacks, defenses, victim"),
    ("plots.py", "from labkit.victims import victim\nfrom labkit.defenses import strip"),
    ("course/release.py", "from labkit import widgets"),
    ("data/loading.py", "from . import signs\nfrom .imageset import ImageSet\nimport numpy"),
]


@pytest.mark.parametrize(
    ("name", "source", "fine"), [(*p, False) for p in PLANTED] + [(*a, True) for a in ALLOWED], ids=itertools.count()
)
def test_a_planted_import_is_judged_right(name, source, fine, tmp_path):
    path = tmp_path / "labkit" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "labkit" / "__init__.py").write_bytes((PROJECT / "labkit" / "__init__.py").read_bytes())
    path.write_text(source)
    assert (wrong_imports(path, tmp_path / "labkit") == []) == fine


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_nothing_is_read_or_written_with_pickle(path):
    assert not unsafe_loading(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch as t, dill.session",
        "model = torch.load(path)",
        "torch.save(model.state_dict(), path)",
        "from torch import nn, load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "frame.read_pickle(path)",
    ],
)
def test_planted_pickling_is_found(source):
    assert unsafe_loading(source)


def test_safe_loading_is_left_alone():
    fine = "from safetensors.torch import load_file\nimport torch\nnp.load(p, allow_pickle=False)\nload_file(p)"
    assert unsafe_loading(fine) == []
