"""Does anything that is published hold a line of a solution?

    secret_lines(solved), secret_names(solved, public)   what only the author may know
    find_leaks(folder, lines, names)                     where it is published nevertheless

A text is compared as a sequence of words and signs, so indentation, spacing, quotes and line breaks make no difference.
Each file is read as several texts, because each format hides a line in its own way: HTML wraps words in <span>s and
escapes `<`, JSON (notebooks, search index, widget states) escapes quotes and line ends, and one can hold the other.
Archives are opened, also archives in archives. Sphinx's search index keeps no lines, only stemmed words: there a name
that exists in solutions alone gives the leak away. Not seen: what is encoded further (base64) and pictures of code.
"""

from __future__ import annotations

import ast
import bisect
import html
import io
import re
import textwrap
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.course.notebooks import MARKER, lines

WORD = re.compile(r"\w+")
TOKEN = re.compile(r"\w+|[^\w\s]")
TAG = re.compile(r"<!--|-->|</?\w[^<>]*>")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
# Lines of three words and more that any PyTorch text contains.
IDIOMS = ("with torch.no_grad():", "with torch.inference_mode():", "optimizer.zero_grad(set_to_none=True)")


@dataclass(frozen=True)
class Leak:
    """One secret in one published file. `file` reads 'student.zip!labs/02_badnets.ipynb' inside an archive."""

    file: str
    line: int
    secret: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.secret}"


# --- what is secret ---------------------------------------------------------------------------------------------------


def secret_lines(solved: dict[str, Any]) -> set[str]:
    """The lines of a solved notebook's solutions and hidden tests in normal form: words and signs, one space apart.

    Left out as trivial: comments; imports; lines of fewer than three words, numbers and keywords (`return x`, `else:`,
    `loss.backward()`, `i += 1`); `IDIOMS`; and lines that a code cell of the same notebook also has outside the
    regions, where every student reads them. A comment after code is cut off. A text cell excuses nothing: a solution
    in a hint is a leak.
    """
    secret = {normal(line) for region, line in code(solved) if region}
    public = {normal(line) for region, line in code(solved) if not region} | {normal(line) for line in IDIOMS}
    return {
        line for line in secret - public if len(WORD.findall(line)) >= 3 and not line.startswith(("import ", "from "))
    }


def secret_names(solved: dict[str, Any], public: Iterable[str]) -> set[str]:
    """The names that solutions and hidden tests assign and whose stem no public text uses (indexes keep stems only).

    public: the texts that everybody may read: the package's source, pages, and `public_text` of every lab.
    """
    stems = {stem(word) for word in {word for source in public for word in WORD.findall(source)}}
    names = set()
    for cell in solved["cells"]:
        if cell["cell_type"] == "code":
            names |= assigned("\n".join(line for region, line in lines(cell) if region and not MARKER.search(line)))
    return {name for name in names if stem(name) not in stems and len(name) > 3}


def public_text(solved: dict[str, Any]) -> str:
    """Everything of a solved notebook that stands outside solutions and hidden tests."""
    return "\n".join(line for cell in solved["cells"] for region, line in lines(cell) if not region)


def code(solved: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """(region, line) of every code cell, without marker lines and comments."""
    for cell in solved["cells"]:
        for region, line in lines(cell):
            in_code = cell["cell_type"] == "code" or region
            if in_code and not MARKER.search(line) and not line.strip().startswith("#"):
                yield region, re.sub(r"\s+# .*", "", line)


def assigned(region: str) -> set[str]:
    """The names a piece of code binds; empty if it is no Python by itself."""
    try:
        tree = ast.parse(textwrap.dedent(region))
    except SyntaxError:
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def normal(source: str) -> str:
    """The words and signs of a text, one space apart, both quotes alike."""
    return " ".join(TOKEN.findall(source.replace("'", '"')))


# --- where it is published --------------------------------------------------------------------------------------------


def find_leaks(
    published: Path | str | Iterable[Path | str], secrets: Iterable[str], names: Iterable[str] = ()
) -> list[Leak]:
    """Every published place of a secret line, and of a secret name in a search index: [] is what one hopes for.

    published: files or folders (searched through, hidden files too). secrets, names: from the functions above.
    Raises ValueError if there is nothing to read (an empty folder would pass every test) and for a damaged archive.
    """
    paths = [published] if isinstance(published, (str, Path)) else published
    secrets = {secret: [w for w in WORD.findall(secret) if w.isascii()] for secret in secrets}
    stems, leaks, seen = {stem(name): name for name in names}, set(), 0
    for path in map(Path, paths):
        for name, content in contents(path):
            seen += 1
            leaks |= set(leaks_in(name, content, secrets))
            if name.endswith("searchindex.js"):
                leaks |= set(stems_in(name, content, stems))
    if not seen:
        raise ValueError(f"expected published files, got none in {paths}: publish first")
    return sorted(leaks, key=lambda leak: (leak.file, leak.line, leak.secret))


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a file, or of every file in a folder, with what archives hold."""
    if not path.exists():
        raise ValueError(f"expected a published file or folder, got {path}, which does not exist: publish first")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            yield from unpacked(str(file), file.read_bytes())


def unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    if content[:4] != b"PK\x03\x04" and not name.endswith((".zip", ".whl")):
        yield name, content
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as folder:
            for entry in sorted(folder.namelist()):
                yield from unpacked(f"{name}!{entry}", folder.read(entry))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name}: expected an archive, got a damaged one ({error}): publish it again") from None


def leaks_in(name: str, content: bytes, secrets: dict[str, list[str]]) -> Iterator[Leak]:
    """Look for the lines whose every word occurs (quick), in every reading of the file (slow)."""
    raw = content.decode("utf-8", errors="ignore")
    likely = [secret for secret, words in secrets.items() if all(word in raw for word in words)]
    for view in readings(raw) if likely else ():
        rows = [normal(row) for row in view.split("\n")]
        starts, position = [], 1
        for row in rows:
            starts.append(position)
            position += len(row) + (1 if row else 0)
        flat = f" {' '.join(row for row in rows if row)} "
        for secret in likely:
            if (found := flat.find(f" {secret} ")) >= 0:
                yield Leak(name, bisect.bisect_right(starts, found + 1), secret)


def readings(raw: str) -> set[str]:
    """The texts a file may stand for: as it is, JSON strings decoded, tags dropped; line numbers stay as they are."""
    decoded = ESCAPE.sub(unescape, raw)
    return {raw, decoded, untagged(raw), untagged(decoded)}


def unescape(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) == 5 else {"n": " ", "t": " ", "r": " "}.get(code, code)


def untagged(raw: str) -> str:
    return html.unescape(TAG.sub(lambda tag: "\n" * tag[0].count("\n"), raw))


def stems_in(name: str, content: bytes, stems: dict[str, str]) -> Iterator[Leak]:
    words = set(WORD.findall(content.decode("utf-8", errors="ignore")))
    return (Leak(name, 1, secret) for stemmed, secret in stems.items() if stemmed in words)


def stem(name: str) -> str:
    """The word as Sphinx's English search index stores it."""
    from sphinx.search.en import SearchEnglish

    return SearchEnglish({}).stem(name.lower()).lower()
