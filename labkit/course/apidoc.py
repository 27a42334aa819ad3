"""How does labkit's source become API pages? A Sphinx extension and the pages that call autodoc.

    write_api(package, folder)   one page per public module, and an overview that lists the question each one answers
    setup(app)                   turns docstrings, which are plain prose, into reStructuredText; also takes the
                                 download button off pages that are no labs

In a docstring `x` is code, nothing else is markup; a block with an indented or an aligned line is shown as it stands.
Comments behind the fields of a dataclass become the description of its parameters.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

NOT_SHOWN = re.compile(r"labkit\.checks\.lab\d\d$")  # exercises of one lab: their references are solutions
EARLY = 96  # a line of a docstring that could have been longer than this was broken on purpose
PAGE = """# {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :undoc-members:
   :ignore-module-all:
   :member-order: bysource
```
"""


# --- pages ------------------------------------------------------------------------------------------------------------


def write_api(package: Path, folder: Path) -> list[str]:
    """Write `<module>.md` for every public module of the package folder, and `index.md`; returns the modules' names."""
    modules = dict(public_modules(package))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, summary in modules.items():
        (folder / f"{name}.md").write_text(PAGE.format(name=name), encoding="utf-8")
        rows.append(f"| [`{name}`]({name}.md) | {summary} |")
    text = (
        f"# API\n\nEvery public module of `{package.name}`, in its own words, straight from the source.\n\n"
        "| module | what it answers |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    (folder / "index.md").write_text(text, encoding="utf-8")
    return list(modules)


def public_modules(package: Path) -> Iterator[tuple[str, str]]:
    """(dotted name, first line of the docstring) of each module file, packages before their parts."""
    for path in sorted(package.rglob("*.py"), key=lambda p: (p.parent, p.name != "__init__.py", p.name)):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if any(part.startswith("_") for part in name.split(".")) or NOT_SHOWN.search(name):
            continue
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield name, doc.split("\n")[0].replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


# --- docstrings -------------------------------------------------------------------------------------------------------


def setup(app) -> dict[str, object]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    app.connect("html-page-context", buttons, priority=900)  # after the theme has put its own
    return {"parallel_read_safe": True}


def process(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Rewrite one docstring in place, as autodoc wants it."""
    if dataclasses.is_dataclass(obj) and isinstance(obj, type) and "".join(lines).startswith(f"{obj.__name__}("):
        lines.clear()  # no docstring: dataclass put the signature there, which the page shows anyway
    lines[:] = "\n".join(as_rst("\n".join(lines))).split("\n")
    if isinstance(obj, type):
        lines += [f":param {field}: {escaped(text)}" for field, text in field_comments(obj).items()]


def skip(app, what: str, name: str, obj, would_skip: bool, options) -> bool | None:
    """Leave out constants, fields and whatever has no docstring inside a class; classes and functions stay."""
    shown = inspect.isclass(obj) or inspect.isroutine(obj) or isinstance(obj, property)
    return True if not shown or (what == "class" and not inspect.getdoc(obj)) else None


def buttons(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Keep the download button where there is something to work in: on the labs."""
    if not pagename.startswith("labs/"):
        kept = [one for one in context.get("header_buttons", []) if one.get("label") != "download-buttons"]
        context["header_buttons"] = kept


def as_rst(text: str) -> Iterator[str]:
    """Plain prose as lines of reStructuredText that mean the same and can't be ill-formed."""
    blocks = [list(block) for filled, block in groupby(text.split("\n"), key=lambda line: bool(line.strip())) if filled]
    for block in blocks:
        if block[0].startswith(("- ", "* ")):
            for item in re.split(r"\n[-*] ", "\n".join(block)[2:]):
                yield f"- {escaped(item)}"
        elif any(line[0] == " " or re.search(r"\S {2,}\S", line) for line in block):
            yield from (".. code-block:: none", "", *textwrap.indent("\n".join(block), "   ").split("\n"))
        else:
            yield "\n\n".join(map(escaped, paragraphs(block)))
        yield ""


def paragraphs(block: list[str]) -> list[str]:
    """Lines that fill up belong together; where the author broke a line early, a new paragraph starts."""
    joined = block[:1]
    for before, line in pairwise(block):
        early = len(before) + 1 + len(line.split()[0]) < EARLY
        joined = [*joined, line] if early else [*joined[:-1], f"{joined[-1]}\n{line}"]
    return joined


def escaped(prose: str) -> str:
    """One paragraph in one line: `x` as a literal, every other sign of markup as itself."""
    parts = re.split(r"`([^`]+)`", " ".join(prose.split()))
    parts[::2] = [re.sub(r"([\\*|_`<>\[\]:])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ ``{part.strip()}``\ " for part in parts[1::2]]
    return "\\ " + "".join(parts)  # the escaped blank keeps '1.' or '..' at the start from being markup


def field_comments(cls: type) -> dict[str, str]:
    """{field: comment behind it} of a dataclass, from its source."""
    if not dataclasses.is_dataclass(cls):
        return {}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (body,) = ast.parse(source).body
    fields = [node for node in ast.iter_child_nodes(body) if isinstance(node, ast.AnnAssign)]
    found = {ast.unparse(node.target): comments.get(node.end_lineno or 0, "") for node in fields}
    return {field: text for field, text in found.items() if text and not text.startswith(("type:", "noqa"))}
