"""Fine-pruning: how fast it learns, whose images decide that, and what comes back."""

import importlib

import pytest
import torch

from labkit.channels import activity
from labkit.defenses.fine_prune import fine_prune, standard_error
from labkit.defenses.fine_tune import FineTuneResult, fine_tune, hold_out
from labkit.defenses.prune import prune
from labkit.metrics import evaluate, predict
from labkit.models import named_layer
from tests.test_pruning import SHORT, oracle, trained
from tests.tiny import image_set

CLEAN = image_set(48, seed=1)  # 12 of each class: 3 of each judge


@pytest.fixture
def given(monkeypatch):
    """What fine-tuning was given, (images, learning rate) each time; here a rate breaks floor(10 * rate) classes."""
    seen = []

    def stand_in(model, clean, config, **_options):
        seen.append((clean, config.lr))
        made = oracle()
        with torch.no_grad():
            named_layer(made, "head.2").weight[: int(10 * config.lr + 1e-6), :4] = 0
        return FineTuneResult(made, ())

    for module in ("fine_prune", "fine_tune"):
        monkeypatch.setattr(importlib.import_module(f"labkit.defenses.{module}"), "fine_tune", stand_in)
    return seen


def test_the_largest_rate_that_accuracy_allows_is_taken(given):
    result = fine_prune(oracle(), CLEAN, rates=(0.02, 0.3, 0.1, 0.2, 0.05), max_drop=0.0)
    assert result.tried == (0.3, 0.2, 0.1, 0.05) and given[-1][1] == 0.05
    assert torch.allclose(result.held_out, torch.tensor([1.0, 0.25, 0.5, 0.75, 1.0])) and result.allowed == 1 / 12
    assert evaluate(result.model, image_set(40, seed=2)).clean_accuracy == 1
    assert "at lr 0.05 (tried: 0.3, 0.2, 0.1, 0.05)" in str(result) and "no rate" not in str(result)


def test_where_no_rate_is_gentle_enough_the_lowest_is_taken_and_that_is_said(given):
    result = fine_prune(oracle(), CLEAN, rates=(0.1, 0.2), max_drop=0.0)
    assert result.tried == (0.2, 0.1) and "(no rate kept it within that)" in str(result)


def test_the_images_that_judge_are_not_trained_on_until_the_rate_is_chosen(given):
    fine_prune(oracle(), CLEAN, rates=(0.2, 0.1, 0.05), seed=5)
    train_on, judges = hold_out(CLEAN, 5)
    assert len(given) == 4 and all(torch.equal(one.images, train_on.images) for one, _ in given[:3])
    assert given[3][0] is CLEAN and len(train_on) + len(judges) == 48


def test_the_cut_is_that_of_pruning(given):
    for max_drop, pruned in ((0.0, 2), (0.3, 3), (0.5, 4)):
        result = fine_prune(oracle(), CLEAN, max_drop=max_drop)
        assert result.pruning.pruned == pruned == prune(oracle(), CLEAN, max_drop=max_drop).pruned
        assert f"{pruned} of 6 channels of block1 silenced" in str(result)


def test_a_fourth_of_each_class_is_kept_aside_and_nothing_is_lost():
    train_on, judges = hold_out(CLEAN, 0)
    assert judges.labels.bincount().tolist() == [3, 3, 3, 3]
    rows = torch.cat([train_on.images, judges.images]).flatten(1)
    assert {tuple(r.tolist()) for r in rows} == {tuple(r.tolist()) for r in CLEAN.images.flatten(1)}
    again, other = hold_out(CLEAN, 0)[1], hold_out(CLEAN, 1)[1]
    assert torch.equal(judges.images, again.images) and not torch.equal(judges.images, other.images)


def test_a_standard_error_is_that_of_a_share_and_at_least_one_image():
    draws = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0)) < 0.8
    assert standard_error(0.8, 50) == pytest.approx(float(draws.double().mean(1).std()), rel=0.05)
    assert standard_error(1.0, 50) == 0.02


def test_fine_tuning_repairs_a_deep_cut_and_the_channels_stay_silent():
    train_set, clean, test = (image_set(n, size=16, seed=n, strength=0.12) for n in (200, 100, 80))
    model = fine_tune(trained(), train_set, config=SHORT, progress=False).model
    result = fine_prune(model, clean, config=SHORT, progress=False)
    assert [e.number for e in result.history] == [1, 2, 3] and result.pruning.pruned > 50
    before, after = (evaluate(m, test).clean_accuracy for m in (result.pruning.model, result.model))
    assert after > before + 0.1
    loud = activity(result.model, clean.images, "block3")
    assert torch.equal(loud[result.pruning.order[: result.pruning.pruned]], torch.zeros(result.pruning.pruned))


def test_the_seed_repeats():
    model, clean = trained(), image_set(40, size=16, seed=1)
    first, again = (fine_prune(model, clean, config=SHORT, seed=2, progress=False) for _ in range(2))
    assert torch.equal(predict(first.model, clean.images), predict(again.model, clean.images))
    assert torch.equal(first.held_out, again.held_out)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fine_prune(oracle(), image_set(8), rates=()), "rates: expected learning rates above 0"),
        (lambda: fine_prune(oracle(), image_set(8), rates=(0.1, 0.0)), "got \\(0.1, 0.0\\)"),
        (lambda: fine_prune(oracle(), image_set(3)), "clean: expected at least 4 images; got 3"),
        (lambda: fine_prune(oracle(), image_set(8), max_drop=4), "For 4 points write 0.04"),
        (lambda: fine_prune(trained(), image_set(8, size=16), layer="block9"), "no 'block9'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
