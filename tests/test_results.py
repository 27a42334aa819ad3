"""The page of results: what is in a card is on the page, in its row and column, and nothing else."""

import json
import re
from pathlib import Path

import pytest
from conftest import PROJECT

from labkit.course.results import NOT_YET, place, results_page, script_of, title_of, with_results

CARD = {
    "name": "STRIP on <a>, FAR", "value": 0.0041239, "unit": "share", "spread": 0.001, "n": "900 images",
    "seeds": [0, 1, 2], "machine": "2 cores", "recipe": "signs", "command": "python benchmarks/strip.py --data a",
    "date": "2026-01-01",
}  # fmt: skip


def page(folder: Path, *cards: dict) -> str:
    folder.mkdir(exist_ok=True)
    for i, card in enumerate(cards):
        (folder / f"{i}.json").write_text(json.dumps(card))
    return results_page(folder, PROJECT / "benchmarks")


def table(text: str) -> list[list[str]]:
    """The cells' text, row by row, without tags."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_without_cards_the_page_says_so(tmp_path):
    assert "No card" in results_page(tmp_path / "none", PROJECT / "benchmarks")


def test_a_card_is_a_cell_and_what_is_behind_it_a_line(tmp_path):
    text = page(tmp_path, CARD)
    assert table(text) == [["", "FAR (share)"], ["STRIP on &lt;a&gt;", "0.00412 ± 0.001"]]
    line = text[text.index("<li>") :]
    for part in (
        "signs",
        "FAR: 900 images",
        "seeds 0, 1, 2",
        "2 cores",
        "2026-01-01",
        f"<code>{CARD['command']}</code>",
    ):
        assert part in line
    assert "## STRIP with 100 overlays at FRR 1%\n" in text


def test_the_quantities_of_one_thing_share_a_row_and_a_missing_one_is_empty(tmp_path):
    def named(name, **change):
        return CARD | {"name": name, "spread": [1.0, 2.0], "value": 1.5, "unit": "s"} | change

    made = page(
        tmp_path, named("A, x, time"), named("A, x, CA", unit="%"), named("B, zeal"), named("B, ASR", spread=None)
    )
    assert table(made) == [
        ["", "CA (%)", "ASR (s)", "zeal (s)", "time (s)"],
        ["A, x", "1.5 (1 to 2)", "", "", "1.5 (1 to 2)"],
        ["B", "", "1.5", "1.5 (1 to 2)", ""],
    ]


def test_where_units_differ_each_value_has_its_own(tmp_path):
    made = page(tmp_path, CARD | {"name": "A, time", "unit": "s"}, CARD | {"name": "B, time", "unit": "ms"})
    assert table(made) == [["", "time"], ["A", "0.00412 s ± 0.001"], ["B", "0.00412 ms ± 0.001"]]


def test_large_numbers_and_equal_ends_are_short(tmp_path):
    many = CARD | {"value": 12073.4, "unit": "images/s", "spread": [11900.0, 12200.0]}
    assert "<strong>12,073</strong> <small>(11,900 to 12,200)</small>" in page(tmp_path, many)
    assert table(page(tmp_path, CARD | {"value": 100.0, "unit": "%", "spread": [100.0, 100.0]}))[1][1] == "100"


def test_each_script_has_a_section(tmp_path):
    text = page(tmp_path, CARD, CARD | {"command": "python benchmarks/victims.py"}, CARD | {"command": "make bench"})
    assert re.findall(r"^## (.*)", text, re.M) == [
        "BadNets victims on each data set",
        "STRIP with 100 overlays at FRR 1%",
        "make bench",
    ]
    assert script_of(CARD) == "strip.py" and title_of(Path("gone.py")) == "gone"
    assert sorted(["time", "zeal", "RA", "CA"], key=place) == ["CA", "RA", "zeal", "time"]


@pytest.mark.parametrize("broken", ["{", "[]", json.dumps({"name": "x"})])
def test_a_file_that_is_no_card_is_named(tmp_path, broken):
    (tmp_path / "far.json").write_text(broken)
    with pytest.raises(ValueError, match=r"far\.json: expected a"):
        results_page(tmp_path, PROJECT / "benchmarks")


def test_every_card_of_the_project_is_on_its_page():
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in (PROJECT / "results").glob("*.json")]
    shown = table(results_page(PROJECT / "results", PROJECT / "benchmarks"))
    assert sum(bool(cell) for row in shown for cell in row[1:] if row[0]) == len(cards) > 30


def test_a_page_gets_one_scripts_table_and_is_otherwise_left_alone(tmp_path):
    page(tmp_path, CARD, CARD | {"name": "Other, CA", "command": "python benchmarks/latent.py --save"})
    text = with_results("a {{ results latent.py }} b {{ results none.py }} c {{ stamped }}", tmp_path)
    assert table(text) == [["", "CA (share)"], ["Other", "0.00412 ± 0.001"]]
    assert text.startswith("a <div") and text.endswith(f" b {NOT_YET} c {{{{ stamped }}}}")
    assert with_results("nothing asked", tmp_path / "none") == "nothing asked"
