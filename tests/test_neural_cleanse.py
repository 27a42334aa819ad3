"""Neural Cleanse: outlier index against numpy, the schedule by hand, laws of the search, a backdoor it must find."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from labkit.attacks import BadNets
from labkit.defenses import SearchConfig, anomaly_index, neural_cleanse, reverse_triggers
from labkit.defenses.outliers import median
from labkit.defenses.paint import paint
from labkit.defenses.reverse import objective
from labkit.defenses.schedule import Schedule
from labkit.metrics import evaluate
from tests.tiny import SoftBackdoor, image_set, linear_model

QUICK = SearchConfig(steps=30, batch=8)


@pytest.fixture(scope="module")
def clean():
    return image_set(120, seed=3)


@pytest.fixture(scope="module")
def found(clean):
    return neural_cleanse(SoftBackdoor(target=1).eval(), clean, progress=False)


# --- outliers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 9, 10])
def test_the_index_is_numpys_median_and_mad_of_the_lower_tail(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 50
    v = values.double().numpy()
    below = np.median(v) - v
    expected = below / (1.4826 * np.median(np.abs(below)))
    assert np.allclose(anomaly_index(values).numpy(), expected, atol=1e-4)


def test_an_even_count_has_the_mean_of_the_middle_two_as_its_median():
    assert float(median(torch.tensor([1.0, 2, 4, 100]))) == 3.0  # torch.median says 2


def test_only_small_values_are_suspicious():
    index = anomaly_index(torch.tensor([50.0, 51, 49, 50.5, 500, 3]))
    assert index.argmax() == 5 and index[5] > 2 and index[4] < -2


def test_equal_values_are_no_outliers_and_a_lone_small_one_is():
    assert anomaly_index(torch.full((5,), 7.0)).tolist() == [0.0] * 5
    assert anomaly_index(torch.tensor([7.0, 7, 7, 7, 1]))[4] == math.inf


# --- the schedule -----------------------------------------------------------------------------------------------------


def run(schedule: Schedule, *updates: tuple[float, float]) -> list[bool]:
    return [schedule.update(*u) for u in updates]


def test_lambda_starts_at_zero_rises_with_success_and_falls_with_failure():
    s = Schedule(SearchConfig(patience=3, multiplier=2.0, first_lambda=0.01))
    run(s, *[(1.0, 50.0)] * 2)
    assert s.lambda_ == 0
    run(s, (1.0, 50.0))
    assert s.lambda_ == 0.01 and not s.went_up
    run(s, *[(1.0, 50.0)] * 3)
    assert s.lambda_ == 0.02 and s.went_up and not s.went_down
    run(s, *[(0.5, 50.0)] * 2, (1.0, 50.0), *[(0.5, 50.0)] * 2)  # a success in between starts the count again
    assert s.lambda_ == 0.02
    run(s, *[(1.0, 50.0)] * 2, (0.5, 50.0), *[(1.0, 50.0)] * 2, *[(0.5, 50.0)] * 2)  # and so does a failure
    assert s.lambda_ == 0.02
    run(s, (0.5, 50.0))
    assert s.lambda_ == pytest.approx(0.02 / 2**1.5) and s.went_down


def test_only_a_smaller_mask_that_works_is_kept():
    s = Schedule(SearchConfig())
    assert run(s, (0.98, 5.0), (0.99, 40.0), (1.0, 30.0), (0.5, 3.0), (1.0, 30.0), (1.0, 29.0)) == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    assert s.best_norm == 29


def test_the_search_ends_when_lambda_went_both_ways_and_the_mask_no_longer_shrinks():
    c = SearchConfig(patience=2, early_stop=4)
    rising = Schedule(c)
    run(rising, *[(1.0, 50.0)] * 40)
    assert not rising.done  # never went down
    run(rising, *[(0.0, 50.0)] * 2)
    assert rising.done
    run(rising, *[(1.0, 1.0)])
    assert not rising.done  # a smaller mask
    falling = Schedule(c)
    run(falling, *[(0.0, 50.0)] * 40)
    assert not falling.done and falling.lambda_ == 0


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_paint_keeps_the_images_layout_and_has_the_formulas_gradients(layout):
    rng = torch.Generator().manual_seed(0)
    flat = torch.rand(6, 3, 8, 8, generator=rng).contiguous(memory_format=layout)
    images = flat.unflatten(0, (2, 3))  # two classes, three images each
    start = torch.rand(2, 4, 8, 8, generator=rng)
    found = []
    for put_on in (paint, lambda x, m, p: (1 - m) * x + m * p):
        raw = start.clone().requires_grad_()
        painted = put_on(images, raw[:, None, :1], raw[:, None, 1:])
        (painted * torch.arange(3.0)[:, None, None]).sum().backward()
        found.append((painted.detach(), raw.grad))
    assert found[0][0].flatten(0, 1).is_contiguous(memory_format=layout)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


def test_paint_blends_by_the_mask_and_leaves_its_input_alone():
    images, mask, pattern = torch.rand(5, 3, 4, 4), torch.rand(1, 4, 4), torch.rand(3, 4, 4)
    before = images.clone()
    assert torch.allclose(paint(images, mask, pattern), (1 - mask) * images + mask * pattern, atol=1e-6)
    assert torch.equal(images, before)
    assert torch.equal(paint(images, torch.zeros(1, 4, 4), pattern), images)
    assert torch.allclose(paint(images, torch.ones(1, 4, 4), pattern), pattern.expand(5, 3, 4, 4))


def test_the_batched_objective_is_each_classs_own():
    model, targets, lambdas = linear_model(), torch.tensor([2, 0]), torch.tensor([0.1, 0.7])
    images, masks, patterns = torch.rand(2, 6, 3, 12, 12), torch.rand(2, 1, 12, 12), torch.rand(2, 3, 12, 12)
    losses, success, norms = objective(model, images, targets, masks, patterns, lambdas)
    for i in range(2):
        logits = model((1 - masks[i]) * images[i] + masks[i] * patterns[i])
        expected = -logits.log_softmax(1)[:, targets[i]].mean() + lambdas[i] * masks[i].sum()
        assert losses[i].item() == pytest.approx(expected.item(), rel=1e-4)
        assert success[i].item() == pytest.approx((logits.argmax(1) == targets[i]).float().mean().item())
        assert norms[i].item() == pytest.approx(masks[i].sum().item(), rel=1e-5)


def test_the_target_is_named_and_nothing_else(found):
    assert found.flagged == (1,)
    assert found.anomaly.argmax() == 1 and found.anomaly[1] > 2
    assert "flagged 1 (b): index" in str(found) and "4 classes" in str(found)


def test_the_reversed_mask_lies_on_the_trigger(found):
    mask = found.masks[1, 0]
    assert mask[-3:, -3:].sum() / mask.sum() > 0.7
    assert found.norms[1] < 9 < found.norms[[0, 2, 3]].min()


def test_the_reversed_trigger_works_like_a_trigger(found, clean):
    model, test = SoftBackdoor(target=1).eval(), image_set(80, seed=9)
    trigger, before = found.trigger(1), test.images.clone()
    stamped = trigger(test.images)
    assert stamped.shape == before.shape and stamped.dtype == before.dtype and torch.equal(test.images, before)
    assert 0 <= stamped.min() and stamped.max() <= 1 + 1e-6
    assert evaluate(model, test, trigger, 1).attack_success_rate > 0.9
    assert evaluate(model, test, BadNets(1).trigger, 1).attack_success_rate == 1  # the oracle's own


def test_shapes_ranges_and_norms(found, clean):
    assert found.masks.shape == (4, 1, 12, 12) and found.patterns.shape == (4, 3, 12, 12)
    assert all(0 <= t.min() and t.max() <= 1 for t in (found.masks, found.patterns, found.success))
    assert torch.allclose(found.norms, found.masks.sum((1, 2, 3)))
    model = SoftBackdoor(target=1).eval()
    for k in range(4):
        others = clean.images[clean.labels != k]
        hits = model(found.trigger(k)(others)).argmax(1) == k
        assert found.success[k].item() == pytest.approx(hits.float().mean().item(), abs=0.03)


def test_classes_leave_the_batch_when_they_are_done(found):
    assert found.met.all() and len(set(found.updates.tolist())) > 1 and found.updates.max() <= 400


class Counting(nn.Module):
    """Counts the images of forward passes that are differentiated."""

    def __init__(self):
        super().__init__()
        self.inner, self.sizes = SoftBackdoor(), []

    def __deepcopy__(self, memo):
        return self

    def forward(self, images):
        if images.requires_grad:
            self.sizes.append(len(images))
        return self.inner(images)


def test_one_forward_pass_serves_all_classes_that_are_left(clean):
    model = Counting().eval()
    found = reverse_triggers(model, clean, config=SearchConfig(batch=8), progress=False)
    assert model.sizes[0] == 4 * 8 and sorted(model.sizes, reverse=True) == model.sizes
    assert sum(model.sizes) == 8 * int(found.updates.sum())


def test_a_class_is_searched_alike_in_any_company(clean):
    model = SoftBackdoor().eval()
    together = reverse_triggers(model, clean, config=QUICK, progress=False)
    pair = reverse_triggers(model, clean, classes=(3, 1), config=QUICK, progress=False)
    assert pair.classes == (3, 1)
    assert torch.allclose(pair.masks, together.masks[[3, 1]], atol=1e-4)
    assert torch.allclose(pair.patterns, together.patterns[[3, 1]], atol=1e-4)


def test_every_search_starts_from_a_half_transparent_grey(clean):
    """From a random start, where the mask ended was a matter of luck: pixels that began faint were gone too soon."""
    first = reverse_triggers(linear_model(), clean, config=SearchConfig(steps=1, batch=8), progress=False)
    assert (first.masks == 0.5).all() and (first.patterns == 0.5).all()


def test_a_classs_own_images_are_not_used(clean):
    model, other = SoftBackdoor().eval(), image_set(120, seed=3)
    other.images[other.labels == 2] = torch.rand(30, 3, 12, 12)
    a, b = (reverse_triggers(model, s, classes=[2], config=QUICK, progress=False) for s in (clean, other))
    assert torch.equal(a.masks, b.masks) and torch.equal(a.success, b.success)


def test_the_model_is_left_as_it_was_and_the_seed_repeats(clean):
    model = linear_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b, c = (reverse_triggers(model, clean, config=QUICK, seed=s, progress=False) for s in (4, 4, 5))
    assert torch.equal(a.masks, b.masks) and not torch.equal(a.masks, c.masks)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_clean_model_has_nothing_flagged_and_says_so(clean):
    result = neural_cleanse(SoftBackdoor(pull=0).eval(), clean, progress=False)
    assert result.flagged == () and "nothing flagged; the most unusual is" in str(result)


def test_a_class_that_no_trigger_reaches_is_said_and_never_flagged(clean):
    class Never(SoftBackdoor):
        def forward(self, images):
            return super().forward(images) - torch.tensor([0.0, 0, 0, 1e4])

    result = neural_cleanse(
        Never().eval(), clean, config=QUICK, index=lambda norms: torch.full((4,), 9.0), progress=False
    )
    assert not result.met[3] and result.success[3] == 0 and 3 not in result.flagged
    assert "no working trigger found for" in str(result) and "3" in str(result)


def test_a_students_pieces_take_the_references_place(clean):
    seen = []

    def mine(images, mask, pattern):
        seen.append(images.shape)
        return paint(images, mask, pattern)

    result = neural_cleanse(
        SoftBackdoor().eval(), clean, config=QUICK, paint=mine, index=lambda n: n * 0 + 3, progress=False
    )
    assert seen[0] == (4, 8, 3, 12, 12) and result.anomaly.tolist() == [3.0] * 4


class Sick(SoftBackdoor):
    def forward(self, images):
        return super().forward(images) * (torch.nan if images.requires_grad else 1)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_class(clean):
    with pytest.raises(FloatingPointError, match="finite loss; got nan at step 1 for class 0"):
        reverse_triggers(Sick().eval(), clean, config=QUICK, progress=False)


def test_missing_classes_are_warned_about():
    some = image_set(120)
    with pytest.warns(UserWarning, match="no images of d"):
        reverse_triggers(linear_model(), some[some.labels != 3], config=QUICK, progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": (0, 1)}, "at least 3, .* got 2"),
        ({"classes": (0, 1, 4)}, "from 0 to 3; got 4"),
        ({"classes": (0, 1, 1)}, "different classes"),
        ({"clean": image_set(9)}, "batch of 8 images outside each searched class; got 6"),
        ({"clean": image_set(0)}, "batch of 8 .* got 0"),
        ({"model": linear_model(classes=6)}, "the 4 classes of `clean`; got 6"),
    ],
)
def test_bad_input_is_named(change, words):
    given = {"model": linear_model(), "clean": image_set(40), "config": QUICK, "progress": False}
    with pytest.raises(ValueError, match=words):
        neural_cleanse(**(given | change))


def test_bad_settings_are_named(found):
    for wrong in ({"steps": 0}, {"threshold": 1.5}, {"multiplier": 1.0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match="SearchConfig: expected"):
            SearchConfig(**wrong)
    with pytest.raises(ValueError, match="one of the searched classes"):
        found.trigger(7)
