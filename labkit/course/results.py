"""The page of results: every number that is published outside an executed lab, from its card in results/.

One section for each script in benchmarks/, one row for each thing measured, one column for each quantity:

    "BadNets on signs, CA", "BadNets on signs, ASR"  ->  row "BadNets on signs", columns "CA" and "ASR"

Below each table: for every row the recipe, how many runs and images, the machine, and the command that measures again.
Another page of the book asks for one script's table with {{ results latent.py }}.
"""

from __future__ import annotations

import ast
import html
import json
import re
from pathlib import Path
from typing import Any

CARD = ("name", "value", "unit", "spread", "n", "seeds", "machine", "recipe", "command", "date")
ASKED = re.compile(r"\{\{ results ([\w.-]+) \}\}")
NOT_YET = "*Not measured yet.*\n"
INTRO = (
    "# Results\n\nEvery number that this course publishes outside an executed lab: the mean over several runs, and in "
    "brackets the smallest and the largest. *How it was measured*, below each table, names the recipe, the machine, "
    "and the command that measures it again.\n\n"
)


def results_page(folder: Path, scripts: Path) -> str:
    """Markdown: all cards of `folder`, by the script in `scripts` that made them; one sentence if there are none.

    Raises ValueError for a file that is no card.
    """
    by_script: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        card = read_card(path)
        by_script.setdefault(script_of(card), []).append(card)
    if not by_script:
        return INTRO + "No card has been stored yet: the numbers in the labs come from the runs shown there.\n"
    titled = {title_of(scripts / name): cards for name, cards in by_script.items()}
    return INTRO + "\n".join(f"## {title}\n\n{section(titled[title])}" for title in sorted(titled))


def with_results(text: str, folder: Path) -> str:
    """The page with every `{{ results SCRIPT }}` replaced by the table of that script's cards."""
    if not ASKED.search(text):
        return text
    cards = [read_card(path) for path in sorted(folder.glob("*.json"))]

    def filled(asked: re.Match[str]) -> str:
        found = [card for card in cards if script_of(card) == asked[1]]
        return table(found) if found else NOT_YET

    return ASKED.sub(filled, text)


def read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a results card, got invalid JSON ({error}): measure it again") from None
    if missing := [key for key in CARD if not isinstance(card, dict) or key not in card]:
        raise ValueError(
            f"{path}: expected a card with {', '.join(CARD)}; got none of {', '.join(missing)}: measure it again"
        )
    return card


def script_of(card: dict[str, Any]) -> str:
    """'python benchmarks/strip.py --data signs' -> 'strip.py'; a command without a script is its own name."""
    found = re.search(r"([\w.-]+\.py)\b", card["command"])
    return found[1] if found else card["command"]


def title_of(script: Path) -> str:
    """What the script's first line says before its colon; the file's name where there is no such file."""
    if not script.is_file():
        return script.stem
    says = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
    return says.split("\n")[0].split(":")[0].rstrip(".")


def section(cards: list[dict[str, Any]]) -> str:
    """A table of the cards and, folded away, what is behind its rows."""
    behind = "".join(f"<li>{source(what, row)}</li>\n" for what, row in in_rows(cards).items())
    return f"{table(cards)}<details><summary>How it was measured</summary>\n<ul>\n{behind}</ul>\n</details>\n"


def table(cards: list[dict[str, Any]]) -> str:
    """The cards as an HTML table: a row for each thing measured, a column for each quantity.

    A unit that a whole column shares stands in its head, in brackets; else beside each value.
    """
    rows = in_rows(cards)
    columns = sorted({quantity for row in rows.values() for quantity in row}, key=place)
    units = {name: {row[name]["unit"] for row in rows.values() if name in row} for name in columns}
    shared = {name: units[name].pop() if len(units[name]) == 1 else "" for name in columns}
    titles = [f"{name} ({shared[name]})" if shared[name] else name for name in columns]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("", *titles))
    body = "".join(
        f"<tr><td>{html.escape(what)}</td>"
        + "".join(f"<td>{figure(row[name], not shared[name]) if name in row else ''}</td>" for name in columns)
        + "</tr>\n"
        for what, row in rows.items()
    )
    return f'<div class="wide-table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def in_rows(cards: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{thing: {quantity: card}}; a name without a quantity is a thing whose quantity is "value"."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for card in cards:
        what, _, quantity = card["name"].rpartition(", ")
        rows.setdefault(what or quantity, {})[quantity if what else "value"] = card
    return rows


def place(quantity: str) -> tuple[int, str]:
    """Where a column stands: CA, ASR and RA first, time last, the others by name."""
    first = ("CA", "CA change", "ASR", "RA")
    return (first.index(quantity) if quantity in first else len(first) + (quantity == "time"), quantity)


def figure(card: dict[str, Any], unit: bool = True) -> str:
    """A card's value, unit (if wanted) and spread as HTML: 97.4 % (96.8 to 97.8)."""
    spread = card["spread"]
    if isinstance(spread, list):  # smallest and largest
        around = "" if spread[0] == spread[1] else f"({' to '.join(map(shown, spread))})"
    else:
        around = "" if spread is None else f"± {shown(spread)}"
    value = f"<strong>{shown(card['value'])}</strong> {html.escape(card['unit']) if unit else ''}".rstrip()
    return f"{value} <small>{around}</small>" if around else value


def source(what: str, row: dict[str, dict[str, Any]]) -> str:
    """How one row was measured: its recipe, seeds, images, machine, date and command."""
    card, counts = next(iter(row.values())), {}
    for quantity, one in row.items():
        counts.setdefault(shown(one["n"]), []).append(quantity)
    n = "; ".join(f"{', '.join(names)}: {count}" for count, names in counts.items())
    told = (card["recipe"], n, f"seeds {shown(card['seeds'])}", card["machine"], card["date"])
    commands = dict.fromkeys(one["command"] for one in row.values())
    code = " ".join(f"<code>{html.escape(command)}</code>" for command in commands)
    return f"<strong>{html.escape(what)}</strong>: {html.escape('; '.join(map(shown, told)))}; {code}"


def shown(value: Any) -> str:
    """A number with three digits; a list as its parts, in a row."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else "" if value is None else str(value)
