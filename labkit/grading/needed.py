"""Which statements does a piece of code need in order to run?

    statements(cells) -> [Statement]
    pick(code, groups of statements) -> the texts of those that are needed

A student's function may lean on an import of the setup cell, on a constant, or on a helper in a cell of the student's
own; the rest of the notebook trains networks and draws figures, which a grade does not need. So names are followed:
from the code to the statements that bind them, from these to the next. Nothing is run here, only read.
"""

from __future__ import annotations

import ast
import contextlib
import symtable
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Statement:
    """One statement at the top level of a cell: its text, the names it uses, and the names it binds or changes."""

    text: str
    uses: frozenset[str]
    binds: frozenset[str]


def pick(code: Iterable[str], groups: Sequence[Sequence[Statement]], first: Sequence[int] | None = None) -> list[str]:
    """The statements of the groups that `code` needs, in the order of the groups.

    A name that several groups bind is taken from one of them, the earliest in `first` (indices into groups; default:
    their order).
    """
    order = list(first if first is not None else range(len(groups)))
    wanted = [name for text in code for name in sorted(uses(text))]
    chosen, done = {(g, i) for g, rows in enumerate(groups) for i, one in enumerate(rows) if "*" in one.binds}, set()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        for g in order:
            found = [(g, i) for i, one in enumerate(groups[g]) if name in one.binds]
            if found:
                chosen.update(found)
                wanted += [used for g, i in found for used in sorted(groups[g][i].uses)]
                break
    return [groups[g][i].text for g, i in sorted(chosen)]


def statements(cells: Iterable[str]) -> list[Statement]:
    """The top-level statements of cells, imports one name each. Cells that are no Python are passed over."""
    made = []
    for cell in cells:
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            for one in (part for node in ast.parse(cell).body for part in split(node)):
                text = ast.unparse(one)
                made.append(Statement(text, frozenset(uses(text)), frozenset(binds(one, text))))
    return made


def split(node: ast.stmt) -> list[ast.stmt]:
    if isinstance(node, ast.Import):
        return [ast.Import([alias]) for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module != "__future__":
        return [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
    return [node]


def uses(text: str) -> set[str]:
    """The global names that a piece of code reads, in its functions too; empty if it is no Python."""
    try:
        tables = [symtable.symtable(text, "cell", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return names


def binds(node: ast.stmt, text: str) -> set[str]:
    """The global names that a statement binds, or whose object it visibly changes; "*" for an import of everything."""
    names = {s.get_name() for s in symtable.symtable(text, "cell", "exec").get_symbols() if bound(s)}
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        names.add("*")
    parts = list(ast.walk(node)) if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
    for part in parts:
        stored = isinstance(getattr(part, "ctx", None), ast.Store)
        called = isinstance(part, ast.Expr) and isinstance(part.value, ast.Call)
        if called or (stored and isinstance(part, ast.Subscript | ast.Attribute)):
            owner = part.value.func if called else part  # type: ignore[attr-defined]
            while isinstance(owner, ast.Subscript | ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and not (called and owner is part.value.func):  # type: ignore[attr-defined]
                names.add(owner.id)
    return names


def bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
