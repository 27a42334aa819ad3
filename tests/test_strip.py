"""STRIP against oracles: entropy by hand, a perfect backdoor that must score zero, laws of order and independence."""

import math

import pytest
import torch
from torch import nn

from labkit.attacks import BadNets
from labkit.defenses import strip as run_strip
from labkit.defenses.strip import (
    average,
    clipped_sum,
    detection_boundary,
    draw_overlays,
    entropy,
    perturbed_entropies,
    superimpose,
)
from tests.tiny import PatchDetector, image_set, linear_model


class AnyPatch(nn.Module):
    """Fires when the corner's white pixels outshine its black ones by almost 1 on average: survives superimposition."""

    def __init__(self):
        super().__init__()
        self.inner = PatchDetector(target=0)

    def forward(self, images):
        corner = images[:, 0, -3:, -3:].flatten(1)
        contrast = corner[:, ::2].mean(1) - corner[:, 1::2].mean(1)
        fires = (contrast > 0.7).float()[:, None]
        wanted = torch.tensor([[100.0, 0, 0, 0]]).to(images)
        return self.inner(images) * (1 - fires) / 10 + wanted * fires


def test_entropy_is_in_bits_over_the_classes():
    probs = torch.tensor([[[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0, 0], [0.75, 0.25, 0, 0]]])
    expected = torch.tensor([[0.0, 2.0], [1.0, 2 - 0.75 * math.log2(3)]])
    assert torch.allclose(entropy(probs), expected, atol=1e-6)  # (2, 2, 4) -> (2, 2): the last axis, not the overlays


def test_scores_lie_between_zero_and_log2_k():
    result = run_strip(linear_model(), image_set(30).images, image_set(40, seed=1), overlays=10)
    assert 0 <= result.scores.min() and result.scores.max() <= 2 + 1e-5


def test_a_perfect_trigger_scores_zero_and_is_flagged_and_clean_inputs_are_not():
    model, data, clean = AnyPatch().eval(), image_set(60), image_set(80, seed=1)
    triggered = BadNets(0).trigger(data.images[data.labels != 0])
    result = run_strip(model, triggered, clean, overlays=20)
    assert result.flagged.all() and result.scores.max() < 1e-3
    assert run_strip(model, data.images, clean, overlays=20).flagged.float().mean() < 0.2


def test_permuting_the_inputs_permutes_the_scores():
    model, images, pool = linear_model(), image_set(30).images, image_set(20, seed=1).images
    picks, order = draw_overlays(30, 20, 8, torch.Generator().manual_seed(0)), torch.randperm(30)
    once = perturbed_entropies(model, images, pool, picks)
    assert torch.allclose(perturbed_entropies(model, images[order], pool, picks[order]), once[order], atol=2e-2)


def test_scores_equal_a_plain_loop():
    model, images, pool = linear_model(), image_set(3).images, image_set(9, seed=1).images
    picks = draw_overlays(3, 9, 5, torch.Generator().manual_seed(0))
    scores = perturbed_entropies(model, images, pool, picks).mean(1)
    for i in range(3):
        bits = 0.0
        for n in picks[i]:
            with torch.no_grad():
                probs = model((images[i] + pool[n])[None]).softmax(1)[0].double()
            bits -= float((probs * probs.log2()).sum())
        assert scores[i] == pytest.approx(bits / 5, abs=2e-2)  # bfloat16 where the device has it


def test_an_image_is_never_laid_over_itself():
    picks = draw_overlays(12, 12, 11, torch.Generator().manual_seed(0), own=True)
    for i in range(12):
        assert sorted(picks[i].tolist()) == [j for j in range(12) if j != i]  # distinct, and all but itself


def test_the_three_blends():
    x, o = torch.full((1, 1, 3, 2, 2), 0.75), torch.full((1, 4, 3, 2, 2), 0.5)
    assert torch.equal(superimpose(x, o), torch.full((1, 4, 3, 2, 2), 1.25))
    assert torch.equal(clipped_sum(x, o), torch.ones(1, 4, 3, 2, 2))
    assert torch.equal(average(x, o), torch.full((1, 4, 3, 2, 2), 0.625))


def test_a_students_blend_takes_the_place_of_the_reference():
    called = []

    def mine(images, overlays):
        called.append((images.shape, overlays.shape))
        return superimpose(images, overlays)

    inputs, clean = image_set(6).images, image_set(20, seed=1)
    mine_result, ours = (run_strip(linear_model(), inputs, clean, overlays=5, blend=b) for b in (mine, superimpose))
    assert torch.equal(mine_result.scores, ours.scores)
    assert all(a[1] == 1 and b[1] == 5 and a[2:] == b[2:] for a, b in called)


def test_the_threshold_comes_from_the_clean_images_alone():
    model, clean = linear_model(), image_set(50, seed=1)
    a = run_strip(model, image_set(10).images, clean, overlays=10)
    b = run_strip(model, image_set(25, seed=7).images, clean, overlays=10)
    assert a.threshold == b.threshold
    assert torch.equal(a.flagged, a.scores <= a.threshold)


def test_boundaries_hold_their_false_rejection_rate():
    scores = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.3 + 1.1
    for kind in ("quantile", "normal"):
        boundary = detection_boundary(scores, 0.01, kind)
        assert float((scores <= boundary).float().mean()) == pytest.approx(0.01, abs=0.0015)
    assert detection_boundary(torch.arange(1.0, 101), 0.05) == pytest.approx(5.95)


def test_the_model_is_left_as_it_was_and_the_seed_repeats():
    model = linear_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs, clean = image_set(10).images, image_set(30, seed=1)
    a, b = (run_strip(model, inputs, clean, overlays=6, seed=4) for _ in range(2))
    assert torch.equal(a.scores, b.scores)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training


def test_nothing_flagged_is_said():
    result = run_strip(PatchDetector().eval(), image_set(10).images, image_set(30, seed=1), overlays=5, frr=0.001)
    assert ("nothing flagged" in str(result)) == (int(result.flagged.sum()) == 0)
    assert "bits" in str(result) and "FRR 0.1%" in str(result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlays": 40}, "at least overlays \\+ 1 = 41 images .* got 40"),
        ({"overlays": 0}, "at least overlays"),
        ({"frr": 0.0}, "0 < frr < 1"),
        ({"boundary": "guess"}, "'quantile' or 'normal'"),
        ({"inputs": torch.rand(3, 3, 12, 12) * 255}, "inputs: expected values in \\[0, 1\\]"),
        ({"inputs": torch.full((3, 3, 12, 12), torch.nan)}, "NaN"),
        ({"inputs": torch.rand(0, 3, 12, 12)}, "at least one image"),
        ({"model": nn.Identity().eval()}, "expected logits \\(N, K\\)"),
    ],
)
def test_bad_input_is_named(change, words):
    given = {"model": linear_model(), "inputs": image_set(10).images, "clean": image_set(40, seed=1), "overlays": 5}
    with pytest.raises(ValueError, match=words):
        run_strip(**(given | change))


def test_train_mode_is_warned_about():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(432, 4)).train()
    with pytest.warns(UserWarning, match="got train mode"):
        run_strip(model, image_set(4).images, image_set(20, seed=1), overlays=4)
    assert model.training
