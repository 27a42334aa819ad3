"""Fine-pruning: how deep a cut is taken, whose images decide it, and what comes back."""

import importlib

import pytest
import torch

from labkit.channels import activity
from labkit.defenses import fine_prune as the_package_exports_the_function
from labkit.defenses.fine_prune import brisk, fine_prune, hold_out
from labkit.defenses.fine_tune import FineTuneResult
from labkit.metrics import evaluate, predict
from tests.test_pruning import SHORT, oracle, trained
from tests.tiny import image_set

SIXTHS = tuple(n / 6 for n in (5, 4, 3, 2, 1))  # the oracle has 4 channels that work, and 2 that can go


@pytest.fixture
def given(monkeypatch):
    """The image sets that fine-tuning was given, one after the other; here it changes nothing."""
    seen = []

    def stand_in(model, clean, **_options):
        seen.append(clean)
        return FineTuneResult(model, ())

    monkeypatch.setattr(importlib.import_module("labkit.defenses.fine_prune"), "fine_tune", stand_in)
    return seen


def test_the_deepest_cut_within_the_threshold_is_taken(given):
    for max_drop, tried, accuracy in ((0.0, (5, 4, 3, 2), 1.0), (0.3, (5, 4, 3), 0.75), (0.5, (5, 4), 0.5)):
        result = fine_prune(oracle(), image_set(48, seed=1), shares=SIXTHS[::-1], max_drop=max_drop)
        assert result.tried == tried and result.pruning.pruned == tried[-1]
        assert result.held_out[0] == 1 and result.held_out[-1] == accuracy and len(result.held_out) == len(tried) + 1
        assert evaluate(result.model, image_set(40, seed=2)).clean_accuracy == accuracy
        assert f"{tried[-1]} of 6 channels of block1 silenced" in str(result) and "no cut" not in str(result)


def test_where_no_cut_can_be_repaired_the_least_is_taken_and_that_is_said(given):
    result = fine_prune(oracle(), image_set(40, seed=1), shares=(3 / 6, 4 / 6), max_drop=0.1)
    assert result.tried == (4, 3) and result.pruning.pruned == 3 and "(no cut kept it within that)" in str(result)


def test_the_images_that_judge_are_not_trained_on_until_the_cut_is_chosen(given):
    clean = image_set(40, seed=1)
    fine_prune(oracle(), clean, shares=SIXTHS, max_drop=0.3, seed=5)
    train_on, judges = hold_out(clean, 5)
    assert len(given) == 4 and all(torch.equal(one.images, train_on.images) for one in given[:3])
    assert given[3] is clean and len(train_on) + len(judges) == 40


def test_a_fourth_of_each_class_is_kept_aside_and_nothing_is_lost():
    clean = image_set(50)
    train_on, judges = hold_out(clean, 0)
    assert judges.labels.bincount().tolist() in ([3, 3, 3, 3], [4, 3, 3, 3], [3, 3, 3, 4], [3, 3, 4, 3], [3, 4, 3, 3])
    rows = torch.cat([train_on.images, judges.images]).flatten(1)
    assert {tuple(r.tolist()) for r in rows} == {tuple(r.tolist()) for r in clean.images.flatten(1)}
    again, other = hold_out(clean, 0)[1], hold_out(clean, 1)[1]
    assert torch.equal(judges.images, again.images) and not torch.equal(judges.images, other.images)


def test_fine_tuning_repairs_a_deep_cut():
    clean, test = image_set(80, size=16, seed=1), image_set(80, size=16, seed=2)
    model = trained()
    result = fine_prune(model, clean, config=SHORT, progress=False)
    total = len(result.pruning.order)
    assert result.tried[0] == total * 7 // 8 and [e.number for e in result.history] == [1, 2, 3]
    before, after = (evaluate(m, test).clean_accuracy for m in (result.pruning.model, result.model))
    assert after > before + 0.2
    loud = activity(result.model, clean.images, "block3")
    assert torch.equal(loud == 0, torch.isin(torch.arange(total), result.pruning.order[: result.pruning.pruned]))


def test_the_seed_repeats():
    model, clean = trained(), image_set(40, size=16, seed=1)
    first, again = (fine_prune(model, clean, config=SHORT, seed=2, progress=False) for _ in range(2))
    assert torch.equal(predict(first.model, clean.images), predict(again.model, clean.images))
    assert torch.equal(first.held_out, again.held_out)


def test_by_default_it_learns_at_a_full_rate():
    config = brisk(image_set(8))
    assert (config.lr, config.epochs, config.batch_size) == (0.1, 20, 64)
    assert the_package_exports_the_function is fine_prune


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fine_prune(oracle(), image_set(8), shares=()), "shares: expected shares of the channels in"),
        (lambda: fine_prune(oracle(), image_set(8), shares=(0.5, 1.0)), "got \\(0.5, 1.0\\)"),
        (lambda: fine_prune(oracle(), image_set(3)), "clean: expected at least 4 images; got 3"),
        (lambda: fine_prune(oracle(), image_set(8), max_drop=4), "For 4 points write 0.04"),
        (lambda: fine_prune(trained(), image_set(8, size=16), layer="block9"), "no 'block9'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
