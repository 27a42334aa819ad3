"""Which students' solutions look alike, more than the exercise makes everybody's look alike?

    pairs(solutions) -> [Pair], the most alike first

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
    """Two students and the share, 0 to 1, of rare runs of the shorter solution that the other one has too."""

    one: str
    other: str
    share: float


def pairs(solutions: Mapping[str, str], common: float = 0.1) -> list[Pair]:
    """Pairs of students whose solutions (student -> source) share most of what few others have."""
    best: dict[tuple[str, str], float] = {}
    for renamed in (False, True):
        runs = {student: runs_of(source, renamed) for student, source in solutions.items()}
        count = Counter(run for mine in runs.values() for run in mine)
        limit = max(2.0, common * len(runs))
        rare = {student: {run for run in mine if count[run] <= limit} for student, mine in runs.items()}
        for one, other in itertools.combinations(sorted(rare), 2):
            shorter = min(len(rare[one]), len(rare[other]))
            share = len(rare[one] & rare[other]) / shorter if shorter >= ENOUGH else 0.0
            if share >= ALIKE:
                best[one, other] = max(share, best.get((one, other), 0.0))
    return [Pair(*who, share) for who, share in sorted(best.items(), key=lambda item: (-item[1], item[0]))]


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
