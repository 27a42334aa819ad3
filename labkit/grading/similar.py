"""Which students' solutions look alike, more than the exercise makes everybody's look alike?

    pairs(solutions) -> [Pair], those alike in most exercises first

A solution is cut into runs of tokens, once with its own names and once with each name replaced by the place of its
first use, so renaming hides nothing. Runs that many students share say what the exercise suggests; only rare ones
count. The comparison stays on this machine. It finds what a person should look at, and is no proof.
"""

from __future__ import annotations

import io
import itertools
import keyword
import token
import tokenize
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

RUN = 7  # tokens
ENOUGH = 12  # rare runs that a solution must have to be compared
ALIKE = 0.6  # share of the shorter one's rare runs that both have
SKIPPED = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.ENDMARKER, tokenize.COMMENT, token.ENCODING}


@dataclass(frozen=True)
class Pair:
    """Two students, the exercises in which they are alike, and the largest share, 0 to 1, of rare runs in common."""

    one: str
    other: str
    exercises: tuple[str, ...]
    share: float


def pairs(solutions: Mapping[str, Mapping[str, str]], common: float = 0.05) -> list[Pair]:
    """Pairs of students who share in some exercise most of what few others have.

    solutions: student -> exercise -> source. A run is rare if at most three students have it, or a share `common`.
    """
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for name in sorted({name for own in solutions.values() for name in own}):
        sources = {student: own[name] for student, own in sorted(solutions.items()) if name in own}
        for who, share in alike(sources, common).items():
            shares.setdefault(who, {})[name] = share
    found = [Pair(*who, tuple(own), max(own.values())) for who, own in shares.items()]
    return sorted(found, key=lambda pair: (-len(pair.exercises), -pair.share, pair.one, pair.other))


def alike(sources: Mapping[str, str], common: float) -> dict[tuple[str, str], float]:
    """(student, student) -> share, of those whose versions of one exercise are alike; names as they are, or renamed."""
    best: dict[tuple[str, str], float] = {}
    for renamed in (False, True):
        runs = {student: runs_of(source, renamed) for student, source in sources.items()}
        count = Counter(run for mine in runs.values() for run in mine)
        limit = max(3.0, common * len(runs))
        rare = {student: {run for run in mine if count[run] <= limit} for student, mine in runs.items()}
        for one, other in itertools.combinations(rare, 2):
            shorter = min(len(rare[one]), len(rare[other]))
            share = len(rare[one] & rare[other]) / shorter if shorter >= ENOUGH else 0.0
            if share >= ALIKE:
                best[one, other] = max(share, best.get((one, other), 0.0))
    return best


def runs_of(source: str, renamed: bool) -> set[int]:
    """Every run of RUN tokens as a number."""
    words, places = [], {}
    for kind, text in tokens(source):
        if renamed and kind == token.NAME and not keyword.iskeyword(text):
            text = f"name{places.setdefault(text, len(places))}"
        words.append(text)
    return {zlib.crc32("\0".join(words[i : i + RUN]).encode()) for i in range(len(words) - RUN + 1)}


def tokens(source: str) -> list[tuple[int, str]]:
    """(kind, text) without comments and layout; words, where it is no Python."""
    try:
        read = tokenize.generate_tokens(io.StringIO(source).readline)
        return [(one.type, one.string) for one in read if one.type not in SKIPPED]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return [(token.OP, word) for word in source.split()]
