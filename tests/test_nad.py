"""NAD: attention maps and distances by hand, one step against autograd, and laws of teachers, copies and zeros."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from labkit.defenses import fine_tune, nad
from labkit.defenses.fine_tune import firmest, gentle, hold_out
from labkit.defenses.nad import attention_distance, attention_map, listening, spatial_layers
from labkit.models import build
from labkit.train import TrainConfig
from tests.tiny import PatchDetector, image_set, linear_model

SHORT = TrainConfig(epochs=3, batch_size=20, lr=0.05, shift=0)


def trained(seed: int = 1) -> nn.Module:
    """Fresh weights, but normalisation statistics as if it had been trained."""
    model = build("small_cnn", 3, 4, seed=seed).train()
    with torch.no_grad():
        for _ in range(3):
            model(image_set(40, size=16).images)
    return model.eval()


def conv_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential()
        made.add_module("block1", nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU()))
        made.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)))
    return made.eval()


def state(model: nn.Module) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- maps and distances -----------------------------------------------------------------------------------------------


def test_an_attention_map_by_hand():
    features = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])  # (B, C, H, W) = (1, 2, 1, 2)
    assert attention_map(features).tolist() == [[[5.0, 2.0]]]  # (1 + 9) / 2, (4 + 0) / 2
    assert attention_map(features, p=1).tolist() == [[[2.0, 1.0]]]


def test_a_distance_by_hand():
    s, t = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 7.0]]])
    first = (0.6 - 1) ** 2 + 0.8**2
    assert float(attention_distance(s, t)) == pytest.approx((first + 2) / 2)  # perpendicular maps are at 2


def test_maps_of_another_strength_are_at_distance_zero():
    maps = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    strength = torch.tensor([0.1, 1, 2, 5, 50, 1000])[:, None, None]
    assert float(attention_distance(maps, maps)) == 0
    assert float(attention_distance(maps * strength, maps)) < 1e-10
    assert float(attention_distance(maps, maps.flip(1))) > 0.05


def test_a_silent_layer_has_a_finite_distance_and_gradient():
    silent = torch.zeros(2, 3, 3, requires_grad=True)
    attention_distance(silent, torch.ones(2, 3, 3)).backward()
    assert silent.grad is not None and silent.grad.isfinite().all()


# --- training ---------------------------------------------------------------------------------------------------------


def test_one_step_is_the_gradient_of_cross_entropy_and_attention(monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    data, model, teacher, by_hand = image_set(32), conv_model(), conv_model(5), conv_model()
    config = TrainConfig(epochs=1, batch_size=32, lr=0.5, momentum=0.0, weight_decay=0.0, shift=0, warmup=0.0)
    result = nad(model, data, beta=3.0, teacher=teacher, config=config, progress=False)

    def unit(network):
        maps = network.block1(data.images).square().sum(1).flatten(1)
        return maps / maps.norm(dim=1, keepdim=True)

    gap = (unit(by_hand) - unit(teacher).detach()).norm(dim=1).square().mean()
    (nn.functional.cross_entropy(by_hand(data.images), data.labels) + 3.0 * gap).backward()
    for p, q in zip(result.model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(p, q - 0.5 * q.grad, atol=1e-6)
    assert result.gaps.shape == (1, 1) and float(result.gaps) == pytest.approx(gap.item(), rel=1e-4)


def test_beta_zero_is_fine_tuning_bit_for_bit():
    model, clean = trained(), image_set(40, size=16, seed=1)
    tuned = fine_tune(model, clean, config=SHORT, seed=3, progress=False)
    result = nad(model, clean, beta=0.0, config=SHORT, seed=3, progress=False)
    assert same(state(tuned.model), state(result.model)) and same(state(tuned.model), state(result.teacher))


def test_attention_is_pulled_towards_the_teacher():
    model, clean, teacher = trained(), image_set(80, size=16, seed=1), trained(7)
    free, pulled = (
        nad(model, clean, beta=b, teacher=teacher, config=SHORT, progress=False).gaps.sum(1) for b in (0, 50)
    )
    assert pulled[-1] < 0.7 * free[-1] and pulled[-1] < pulled[0]


def test_the_teacher_is_frozen_in_eval_mode_and_a_copy():
    clean, teacher = image_set(40, size=16, seed=1), trained(7).train()
    before = state(teacher)
    result = nad(trained(), clean, teacher=teacher, config=SHORT, progress=False)
    assert same(before, state(teacher)) and same(before, state(result.teacher))
    assert teacher.training and result.teacher is not teacher
    assert not any(part.training for part in result.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in result.teacher.parameters())


def test_teacher_and_student_see_the_same_augmented_images():
    """A student that starts as the teacher, in a network without batch normalisation, starts at distance zero."""
    model, config = conv_model(), TrainConfig(epochs=1, batch_size=40, lr=1e-9, shift=2)
    assert float(nad(model, image_set(40), teacher=model, config=config, progress=False).gaps.sum()) == 0


def test_the_students_batch_normalisation_is_trained():
    model, clean = trained(), image_set(40, size=16, seed=1)
    result = nad(model, clean, config=SHORT, progress=False)
    assert not torch.equal(result.model.block1[2].running_mean, model.block1[2].running_mean)
    assert not result.model.training


def test_the_input_model_is_untouched_and_the_seed_repeats():
    model, clean = trained(), image_set(40, size=16, seed=1)
    before = state(model)
    a, b, c = (nad(model, clean, config=SHORT, seed=s, progress=False) for s in (2, 2, 4))
    assert same(before, state(model)) and not model.training and a.model is not model
    assert same(state(a.model), state(b.model)) and not same(state(a.model), state(c.model))
    assert torch.equal(a.gaps, b.gaps)
    for owner in (model, a.model, a.teacher):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in owner.modules())


def test_ones_own_attention_and_distance_are_used():
    model, clean, asked = trained(), image_set(40, size=16, seed=1), []

    def attention(features):
        asked.append(features.shape[1])
        return attention_map(features, p=1)

    result = nad(model, clean, attention=attention, distance=lambda s, t: (s - s).sum() + 0.25, config=SHORT,
                 layers=["block1", "block2"], progress=False)  # fmt: skip
    assert set(asked) == {64, 128}
    assert torch.equal(result.gaps, torch.full((3, 2), 0.25))


def test_the_record_says_what_was_aligned():
    result = nad(trained(), image_set(40, size=16, seed=1), config=SHORT, progress=False)
    assert result.layers == ("block1", "block2", "block3") and result.gaps.shape == (3, 3)
    assert [e.number for e in result.history] == [1, 2, 3]
    assert "NAD: 3 epochs on block1, block2, block3" in str(result)


# --- the rate, chosen without the trigger --------------------------------------------------------------------------


class Constant(nn.Module):
    """Says class 0, whatever it sees."""

    def forward(self, images):
        return torch.eye(4)[:1].expand(len(images), 4)


@pytest.fixture
def tuning(monkeypatch):
    """Fine-tuning that leaves the model alone up to lr 0.05, ruins it at 0.1, diverges above; what it was asked."""
    asked = []

    def pretend(model, clean, *, config, **_):
        asked.append((config.lr, clean))
        if config.lr > 0.1:
            raise FloatingPointError
        return SimpleNamespace(model=Constant().eval() if config.lr > 0.05 else model)

    monkeypatch.setattr(sys.modules["labkit.defenses.fine_tune"], "fine_tune", pretend)
    return asked


def test_the_highest_rate_that_clean_accuracy_affords_is_chosen(tuning):
    model, clean, rates = PatchDetector(0).eval(), image_set(60), (0.02, 0.2, 0.05, 0.1, 0.03)
    assert firmest(model, clean, rates=rates, config=SHORT) == replace(SHORT, lr=0.05)
    assert [lr for lr, _ in tuning] == [0.2, 0.1, 0.05]
    assert firmest(model, clean, rates=rates, max_drop=1.0).lr == 0.1
    assert firmest(model, clean, rates=(0.2, 0.1)).lr == 0.1  # none affords it: the lowest


def test_held_out_images_are_not_fitted(tuning):
    clean = image_set(60)
    firmest(PatchDetector(0).eval(), clean, seed=3)
    fitted, held_out = hold_out(clean, 3)
    assert len(held_out) == 15 and all(torch.equal(seen.images, fitted.images) for _, seen in tuning)
    pixels = [{image.numpy().tobytes() for image in part.images} for part in (held_out, fitted)]
    assert not pixels[0] & pixels[1] and len(pixels[0] | pixels[1]) == 60


def test_by_default_the_teacher_is_trained_firmly_and_the_student_gently():
    model, clean = trained(), image_set(40, size=16, seed=1)
    firm = firmest(model, clean, max_drop=0.1, seed=2, progress=False)
    teacher = fine_tune(model, clean, config=firm, seed=2, progress=False).model
    gently = replace(gentle(clean), lr=gentle(clean).lr / 2)
    by_default = nad(model, clean, seed=2, progress=False)
    by_hand = nad(model, clean, teacher=teacher, config=gently, seed=2, progress=False)
    assert gently.lr < firm.lr
    assert same(state(by_default.teacher), state(teacher)) and same(state(by_default.model), state(by_hand.model))


def test_a_config_is_that_of_both():
    model, clean = trained(), image_set(40, size=16, seed=1)
    config = replace(gentle(clean), epochs=2, lr=0.05)
    both = nad(model, clean, seed=2, config=config, progress=False)
    assert len(both.history) == 2
    assert same(state(both.teacher), state(fine_tune(model, clean, config=config, seed=2, progress=False).model))


@pytest.mark.parametrize("change", [{"rates": ()}, {"max_drop": 1.5}, {"max_drop": -0.1}])
def test_a_choice_without_rates_or_with_an_odd_drop_is_named(change):
    with pytest.raises(ValueError, match=r"learning rates and max_drop in \[0, 1\]"):
        firmest(PatchDetector(0).eval(), image_set(60), **change)


# --- layers without positions, and other bad input --------------------------------------------------------------------


def test_blocks_whose_map_is_a_single_position_are_left_out_or_refused():
    model, images = build("small_cnn", 1, 4).eval(), image_set(4, channels=1, size=8).images  # sizes 4, 2, 1, 1
    assert spatial_layers(model, images) == ("block1",)
    with pytest.raises(ValueError, match=r"more than one position; got \{'block3': \(256, 1, 1\)\}.*always zero"):
        spatial_layers(model, images, ["block1", "block3"])
    with pytest.raises(ValueError, match="more than one position"):
        spatial_layers(model, images, ["head"])


def test_no_hook_stays_behind_when_something_fails():
    model = trained()
    with pytest.raises(RuntimeError), listening(model, ["block1"]):
        raise RuntimeError
    with pytest.raises(ValueError, match="no 'block9'"), listening(model, ["block1", "block9"]):
        pass
    assert not any(part._forward_hooks for part in model.modules())


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        nad(trained(), image_set(40, size=16), distance=lambda s, t: s.sum() * math.nan, config=SHORT, progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": -1.0}, "beta: expected a finite weight >= 0; got -1.0"),
        ({"beta": math.nan}, "beta: expected a finite weight"),
        ({"layers": ["block9"]}, "no 'block9'; its layers are normalise"),
        ({"model": linear_model()}, "no 'block1'; its layers are 0, 1"),
        ({"clean": image_set(4, size=16)[:1]}, "at least 2 images; got 1"),
        ({"clean": image_set(4, size=16)[:0]}, "at least 2 images; got 0"),
        ({"teacher": conv_model(), "layers": ["block2"]}, "no 'block2'; its layers are block1, head"),
    ],
)
def test_bad_input_is_named(change, words):
    given = {"model": trained(), "clean": image_set(40, size=16), "config": SHORT, "progress": False}
    with pytest.raises(ValueError, match=words):
        nad(**(given | change))


def test_missing_classes_are_warned_about():
    clean = image_set(40, size=16)
    with pytest.warns(UserWarning, match="none of c"):
        nad(trained(), clean[clean.labels != 2], config=SHORT, progress=False)
