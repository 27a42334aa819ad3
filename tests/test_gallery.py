"""The gallery: what is in results/ is on the page, pixel for pixel and figure for figure, and nothing else."""

import json
from pathlib import Path

import pytest
import torch

from labkit.course.gallery import NOT_YET, magnification, read_strip, strip, with_gallery
from labkit.stealth import psnr

PROJECT = Path(__file__).parent.parent
CLEAN = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TRIGGERED = (CLEAN + 0.1).clamp(0, 1)


def keep(folder, attack: str, picture: bool = True, **figures: float):
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for what, value in figures.items():
        for data in ("signs", "cifar10"):
            card = {
                "name": f"{attack}, {data}, {what}", "value": value, "unit": "%", "spread": [value, value], "n": "9",
                "seeds": [0], "machine": "m", "recipe": "r", "command": "python benchmarks/attacks.py", "date": "d",
            }  # fmt: skip
            (folder / f"{attack}_{data}_{what}.json").write_text(json.dumps(card))
    if picture:
        strip(CLEAN, TRIGGERED).save(folder / "gallery" / f"{attack}.png")


def test_a_strip_comes_back_as_it_was_but_for_rounding(tmp_path):
    strip(CLEAN, TRIGGERED).save(tmp_path / "a.png")
    for made, was in zip(read_strip(tmp_path / "a.png"), (CLEAN, TRIGGERED), strict=True):
        assert made.shape == was.shape and (made - was).abs().max() <= 0.5 / 255 + 1e-6


def test_a_picture_that_is_no_strip_is_refused(tmp_path):
    strip(CLEAN, TRIGGERED).crop((0, 0, 40, 32)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="two rows of square images; got 32x40"):
        read_strip(tmp_path / "a.png")


@pytest.mark.parametrize("largest, times", [(1.0, 1), (0.6, 1), (0.5, 2), (0.1, 8), (0.001, 16), (0.0, 16)])
def test_a_difference_is_magnified_as_far_as_grey_has_room(largest, times):
    assert magnification(torch.linspace(-largest, largest, 101)) == times


def test_a_page_gets_its_pictures_and_figures(tmp_path):
    keep(tmp_path / "results", "BadNets", CA=97.25, ASR=99.75, PSNR=21.5)
    keep(tmp_path / "results", "Blend", picture=False, CA=96.5)
    static = tmp_path / "static"
    page = with_gallery(
        "all {{ gallery }} one {{ gallery BadNets }} two {{ gallery Blend }} three {{ gallery DFST }} end",
        tmp_path / "results",
        static,
    )
    every, bad, blend, missing = (page.split(w)[1] for w in ("all ", " one ", " two ", " three "))
    every, bad, blend = every.split(" one ")[0], bad.split(" two ")[0], blend.split(" three ")[0]
    assert "BadNets, signs" in every and "Blend, signs" in every and "cifar10" not in every
    assert "99.8" in bad and "BadNets, cifar10" in bad and "Blend" not in bad
    assert "(_static/gallery_BadNets.png)" in bad and (static / "gallery_BadNets.png").stat().st_size > 5000
    assert "96.5" in blend and "_static" not in blend
    assert missing.split(" end")[0] == NOT_YET
    assert [path.name for path in static.iterdir()] == ["gallery_BadNets.png"]


@pytest.mark.parametrize("path", sorted((PROJECT / "results/gallery").glob("*.png")), ids=lambda path: path.stem)
def test_a_picture_that_is_published_is_of_the_trigger_that_its_cards_measure(path):
    card = json.loads((PROJECT / f"results/{path.stem.lower()}_signs_psnr.json").read_text())
    clean, triggered = read_strip(path)
    assert float(psnr(clean, triggered).mean()) == pytest.approx(card["value"], abs=2.5)  # dB; eight images of many


def test_a_page_that_asks_for_nothing_is_left_alone(tmp_path):
    assert with_gallery("a {{ stamped }} page", tmp_path, tmp_path) == "a {{ stamped }} page"
    assert with_gallery("{{ gallery }}", tmp_path / "none", tmp_path) == NOT_YET
