"""Which students' solutions look alike, more than the exercise makes everybody's look alike?

    pairs(solutions) -> [Pair], those who share most first

A solution is cut into runs of tokens, once with its own names and once with each name replaced by the place of its
first use, so renaming hides nothing. Runs that many students share say what the exercise suggests; only rare ones
count. The comparison stays on this machine. It finds what a person should look at, and is no proof.
"""

from __future__ import annotations

import io
import keyword
import token
import tokenize
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, triu

RUN = 7  # tokens
ENOUGH = 12  # rare runs that a solution must have to be compared
ALIKE = 0.6  # share of the shorter one's rare runs that both have
SKIPPED = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.ENDMARKER, tokenize.COMMENT, token.ENCODING}


@dataclass(frozen=True)
class Pair:
    """Two students, the exercises in which they are alike, the rare runs they have in common there, names aside, and
    the largest share, 0 to 1, of an exercise's rare runs that both have."""

    one: str
    other: str
    exercises: tuple[str, ...]
    shared: int
    share: float


def pairs(solutions: Mapping[str, Mapping[str, str]], common: float = 0.05) -> list[Pair]:
    """Pairs of students who share in some exercise most of what few others have.

    solutions: student -> exercise -> source. A run is rare if at most three students have it, or a share `common`.
    """
    found: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
    for name in sorted({name for own in solutions.values() for name in own}):
        sources = {student: own[name] for student, own in sorted(solutions.items()) if name in own}
        for who, much in alike(sources, common).items():
            found.setdefault(who, {})[name] = much
    made = [
        Pair(*who, tuple(own), sum(runs for runs, _ in own.values()), max(share for _, share in own.values()))
        for who, own in found.items()
    ]
    return sorted(made, key=lambda pair: (-pair.shared, -pair.share, pair.one, pair.other))


def alike(sources: Mapping[str, str], common: float) -> dict[tuple[str, str], tuple[int, float]]:
    """(student, student) -> (rare runs in common, their share of the shorter solution's), of those who are alike in
    one exercise; names as they are, or replaced, whichever says more."""
    students, best = list(sources), {}
    for renamed in (False, True):
        runs = [runs_of(source, renamed) for source in sources.values()]
        rare = rare_runs(runs, max(3.0, common * len(runs)))
        sizes, both = np.diff(rare.indptr), triu(rare @ rare.T, k=1).tocoo()
        for i, j, shared in zip(both.row, both.col, both.data, strict=True):
            shorter = min(sizes[i], sizes[j])
            if shorter >= ENOUGH and shared >= ALIKE * shorter:
                much = int(shared), float(shared / shorter)
                best[students[i], students[j]] = max(much, best.get((students[i], students[j]), (0, 0.0)))
    return best


def rare_runs(runs: list[np.ndarray], limit: float) -> csr_matrix:
    """Which solution (a row) has which run (a column)? Columns with more than `limit` solutions are left out."""
    every, column, count = np.unique(np.concatenate(runs), return_inverse=True, return_counts=True)
    ends = np.cumsum([0, *map(len, runs)])
    table = csr_matrix((np.ones(len(column), np.int32), column, ends), (len(runs), len(every)))
    return table[:, np.flatnonzero(count <= limit)]


def runs_of(source: str, renamed: bool) -> np.ndarray:
    """Every run of RUN tokens as a number, each once."""
    words, places = [], {}
    for kind, text in tokens(source):
        if renamed and kind == token.NAME and not keyword.iskeyword(text):
            text = f"name{places.setdefault(text, len(places))}"
        words.append(text)
    numbers = (zlib.crc32("\0".join(words[i : i + RUN]).encode()) for i in range(len(words) - RUN + 1))
    return np.unique(np.fromiter(numbers, np.uint32))


def tokens(source: str) -> list[tuple[int, str]]:
    """(kind, text) without comments and layout; words, where it is no Python."""
    try:
        read = tokenize.generate_tokens(io.StringIO(source).readline)
        return [(one.type, one.string) for one in read if one.type not in SKIPPED]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return [(token.OP, word) for word in source.split()]
