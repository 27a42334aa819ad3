"""A lab is built as DESIGN.md says: objectives, minutes, threat model and one setup cell first; 3-5 exercises; then
summary, questions, further reading; short cells, plain CommonMark, nothing stored. The lint is itself tested below."""

import ast
import re
import statistics

import pytest
from conftest import NAMES, cell, lab


@pytest.mark.parametrize("name", NAMES)
def test_a_lab_is_built_as_a_lab(name):
    assert complaints(lab(name)) == []


def complaints(notebook: dict) -> list[str]:
    """What is not as a lab should be, in words for its author; [] if all is well."""
    cells = [
        (c["id"], c["cell_type"], "".join(c["source"]), c["metadata"].get("nbgrader", {})) for c in notebook["cells"]
    ]
    code = [i for i, (_, kind, _, _) in enumerate(cells) if kind == "code"]
    opening = "\n".join(text for _, _, text, _ in cells[: code[0]])
    ending = "\n".join(text for _, _, text, _ in cells[code[-1] + 1 :])
    found = [] if re.match(r"# \S", opening) else ["the first cell must start with the title, '# ...'"]
    for word, pattern in (
        ("objectives", "objective"),
        ("the minutes", r"\d+ min"),
        ("a threat-model box", "threat model"),
    ):
        found += [] if re.search(pattern, opening, re.I) else [f"the opening lacks {word}"]
    for word in ("Summary", "Questions", "Further reading"):
        found += [] if re.search(rf"^#+ .*{word}", ending, re.M | re.I) else [f"the end lacks a heading {word!r}"]
    found += exercise_complaints(cells)
    for i, (name, kind, text, _) in enumerate(cells):
        if kind == "code":
            stored = notebook["cells"][i]
            found += [f"{name}: stored outputs"] if stored["outputs"] or stored["execution_count"] else []
            found += [f"{name}: {n} lines, at most 25"] if (n := len(text.splitlines())) > 25 else []
            found += (
                [f"{name}: imports belong in the setup cell {cells[code[0]][0]}"]
                if i != code[0] and imports(text)
                else []
            )
        else:
            found += [f"{name}: not CommonMark: {found_[0].strip()!r}"] if (found_ := MYST.search(text)) else []
            found += [f"{name}: an image without alt text"] if NO_ALT.search(text) else []
            if text.count("<details") != text.count("</details>") or text.count("<details") > text.count("<summary"):
                found.append(f"{name}: <details> and </details> in pairs, each with a <summary>")
    if (middle := statistics.median(len(cells[i][2].splitlines()) for i in code)) > 8:
        found.append(f"the median code cell has {middle:g} lines, at most 8")
    return found


MYST = re.compile(r"^\s*(`{3,}|~{3,})\{.*|^:::.*|\{[\w:-]+\}`[^`]+`|^\([\w-]+\)=$", re.M)
NO_ALT = re.compile(r"!\[\s*\]\(|<img(?![^>]*\balt=[\"'][^\"'])")


def exercise_complaints(cells: list[tuple]) -> list[str]:
    """3-5 exercises, each: text with difficulty and minutes / stub / check / hints / the function used."""
    found = []
    solutions = [i for i, (*_, role) in enumerate(cells) if role.get("solution")]
    checks = [i for i, (*_, role) in enumerate(cells) if role.get("grade")]
    if not 3 <= len(solutions) <= 5 or len(checks) != len(solutions):
        found.append(f"{len(solutions)} solution and {len(checks)} check cells, 3-5 pairs")
    for i in solutions:
        name, text = cells[i][0], cells[i - 1][2]
        if cells[i - 1][1] != "markdown" or not (re.search("difficulty", text, re.I) and re.search(r"\d+ min", text)):
            found.append(f"{name}: the text before it must give difficulty and minutes")
        rest = cells[i + 1 :]
        if not rest or not rest[0][3].get("grade"):
            found.append(f"{name}: its check cell must come next")
            continue
        if len(rest) < 2 or rest[1][1] != "markdown" or "<details" not in rest[1][2]:
            found.append(f"{name}: hints in <details> must follow its check cell")
        shown = rest[0][2].strip().splitlines()[-1]
        if not shown.isidentifier() or not any(f"{shown}.function" in c[2] for c in rest[1:] if c[1] == "code"):
            found.append(f"{name}: the check must end with a name whose .function later code uses, got {shown!r}")
    return found


def imports(text: str) -> bool:
    """Whether the cell imports at top level (a cell with a magic counts as not)."""
    try:
        return any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(text).body)
    except SyntaxError:
        return False


# --- the lint itself, on a notebook that is right and on what can go wrong with it ------------------------------------


def good_lab() -> dict:
    opening = "# Overlay\n\n**Objectives.** Blend. **Time.** 45 minutes.\n\n> **Threat model.** None."
    cells = [cell("title", opening, "markdown"), cell("setup", "import torch")]
    for name in ("one", "two", "three"):
        cells += [
            cell(f"ask-{name}", "### Exercise\nDifficulty: 2 of 5, 5 minutes.", "markdown"),
            cell(name, "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION", solution=True),
            cell(f"check-{name}", f"check_{name} = 1\ncheck_{name}", grade=True, locked=True, points=1),
            cell(f"hints-{name}", "<details><summary>Hint 1</summary>\nThink.\n</details>", "markdown"),
            cell(f"use-{name}", f"check_{name}.function()"),
        ]
    cells.append(cell("end", "## Summary\nx\n## Questions\nx\n## Further reading\nx", "markdown"))
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def replace(name: str, old: str, new: str):
    """A change to the good lab: `new` instead of `old` in one cell."""

    def change(cells: list[dict]) -> None:
        (one,) = (c for c in cells if c["id"] == name)
        before = "".join(one["source"])
        assert old in before
        one["source"] = before.replace(old, new).splitlines(keepends=True)

    return change


def drop(*names: str):
    return lambda cells: cells.__setitem__(slice(None), [c for c in cells if c["id"] not in names])


FLAWS = {
    "no title": (replace("title", "# Overlay", "Overlay"), "title"),
    "no objectives": (replace("title", "Objectives", "Hello"), "lacks objectives"),
    "no time": (replace("title", "45 minutes", "long"), "lacks the minutes"),
    "no threat model": (replace("title", "Threat model", "Note"), "lacks a threat-model box"),
    "no summary": (replace("end", "Summary", "Done"), "'Summary'"),
    "no questions": (replace("end", "## Questions", "Questions"), "'Questions'"),
    "no reading": (replace("end", "Further reading", "More"), "'Further reading'"),
    "two exercises": (drop("ask-one", "one", "check-one", "hints-one", "use-one"), "2 solution and 2 check cells"),
    "no check": (drop("check-two"), "two: its check cell must come next"),
    "no hints": (drop("hints-two"), "two: hints in <details>"),
    "no difficulty": (replace("ask-two", "Difficulty", "Hard"), "two: the text before it"),
    "function unused": (drop("use-two"), "two: the check must end with a name"),
    "check ends elsewhere": (replace("check-two", "\ncheck_two", "\nprint(check_two)"), "got 'print(check_two)'"),
    "long cell": (replace("use-two", "check", "x\n" * 25 + "check"), "use-two: 26 lines"),
    "late import": (replace("use-two", "check", "import os\ncheck"), "use-two: imports belong"),
    "directive": (replace("end", "x", "```{note}\nx\n```"), "end: not CommonMark"),
    "colon fence": (replace("end", "x", ":::{note}\nx\n:::"), "end: not CommonMark"),
    "role": (replace("end", "x", "{cite}`a`"), "end: not CommonMark"),
    "picture": (replace("end", "x", "![](a.png)"), "end: an image without alt"),
    "open details": (replace("hints-two", "</details>", ""), "hints-two: <details> and"),
    "output": (lambda cells: cells[1].update(outputs=[{"output_type": "stream"}]), "setup: stored outputs"),
    "count": (lambda cells: cells[1].update(execution_count=3), "setup: stored outputs"),
}  # fmt: skip


def test_the_lint_likes_a_good_lab():
    assert complaints(good_lab()) == []


@pytest.mark.parametrize(("change", "message"), FLAWS.values(), ids=FLAWS.keys())
def test_the_lint_names_the_flaw(change, message):
    flawed = good_lab()
    change(flawed["cells"])
    assert [text for text in complaints(flawed) if message in text], complaints(flawed)


def test_the_lint_counts_the_lines_of_the_middle_cell():
    wordy = good_lab()
    for one in wordy["cells"]:
        if one["cell_type"] == "code":
            one["source"] = ["x = 1\n"] * 9 + one["source"]
    assert any("median code cell has" in text for text in complaints(wordy))
