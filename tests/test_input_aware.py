"""InputAware: every image its own trigger, that of another does nothing; nothing but the promised images is touched."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from labkit import victim
from labkit.attacks import InputAware, input_aware
from labkit.attacks.input_aware import InputAwareTrigger, paint, sameness, train_masks
from labkit.attacks.specific import ImageToMap
from labkit.metrics import BATCH, evaluate, predict
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

CONFIG = TrainConfig(epochs=16, batch_size=32, shift=0)
SHORT = {"config": TrainConfig(epochs=1, batch_size=32), "progress": False}
DATA, TEST = image_set(320, size=16), image_set(120, size=16, seed=9)
ATTACK = InputAware(target=1, rate=0.2, cross=0.2, density=0.1, mask_epochs=6)


@pytest.fixture(scope="module")
def made():
    return ATTACK.implant(DATA, config=CONFIG, test=TEST, progress=False)


def fresh(channels=3):
    return ATTACK.build_trigger(image_set(4, channels=channels, size=16), seed=5)


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (3, 1, 9, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(shape, dtype):
    trigger, images = fresh(shape[1]), torch.rand(shape, dtype=dtype)
    before = images.clone()
    once, again = trigger(images), trigger(images)
    assert torch.equal(images, before) and torch.equal(once, again) and not torch.equal(once, images)
    assert once.shape == images.shape and once.dtype == dtype and not once.requires_grad
    assert 0 <= once.min() and once.max() <= 1


def test_the_trigger_treats_each_image_alone_in_batches_of_any_size(monkeypatch):
    trigger, images = fresh(), torch.rand(6, 3, 16, 16)
    assert torch.allclose(trigger(images)[2:4], trigger(images[2:4]), atol=1e-6)
    whole = trigger(images)
    monkeypatch.setitem(BATCH, "cpu", 4)  # two batches
    assert torch.allclose(trigger(images), whole, atol=1e-6)


def test_another_images_trigger_is_that_images_mask_and_pattern():
    trigger, images = fresh(), torch.rand(4, 3, 16, 16)
    others = images.roll(1, 0)
    mask, pattern = trigger.mask(others), trigger.pattern(others)
    assert torch.allclose(trigger(images, of=others), paint(images, mask, pattern), atol=1e-6)
    assert torch.equal(trigger(images, of=images), trigger(images))
    assert not torch.allclose(trigger(images, of=others), trigger(images), atol=1e-3)


def test_paint_replaces_where_the_mask_is_1_and_keeps_where_it_is_0():
    images, pattern, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[:, :, 0] = 1
    painted = paint(images, mask, pattern)
    assert torch.equal(painted[:, :, 0], pattern[:, :, 0]) and torch.equal(painted[:, :, 1:], images[:, :, 1:])


def test_the_diversity_loss_is_the_papers_ratio():
    images, others = torch.zeros(2, 3, 4, 4), torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.2)])
    drawn, drawn_others = torch.full((2, 1, 4, 4), 0.1), torch.full((2, 1, 4, 4), 0.5)
    assert float(sameness(images, others, drawn, drawn_others)) == pytest.approx((0.5 / 0.4 + 0.2 / 0.4) / 2, rel=1e-3)
    assert sameness(images, others, drawn, drawn) > 100  # the same for all images: dear


def test_masks_get_small_and_different():
    trigger, images = fresh(), DATA.images
    with torch.no_grad():
        before = trigger.mask(images)
    pattern = [p.clone() for p in trigger.pattern_network.parameters()]
    train_masks(trigger, DATA, ATTACK, CONFIG, 0, False)
    with torch.no_grad():
        after = trigger.mask(images)
    assert before.mean() > 2 * ATTACK.density and after.mean() < 1.5 * ATTACK.density

    def difference(m):
        return ((m - m.roll(1, 0)).square().mean() / m.square().mean()).item()

    assert difference(after) > 10 * difference(before)
    assert all(torch.equal(p, q) for p, q in zip(pattern, trigger.pattern_network.parameters(), strict=True))


def test_the_victim_learns_both_tasks_and_whose_trigger_it_is(made):
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.8
    others = TEST[TEST.labels != 1]
    strange = others.images.roll(7, 0)
    kept = predict(made.model, made.trigger(others.images, of=strange)).argmax(1) == others.labels
    assert kept.float().mean() > 0.8
    assert made.target == 1 and made.card["attack"] == "InputAware" and made.card["settings"]["cross"] == 0.2
    assert not made.model.training


def test_a_clean_model_hardly_falls_for_the_trigger(made):
    model = train("small_cnn", DATA, config=TrainConfig(epochs=3, batch_size=32, shift=0), progress=False)
    report = evaluate(model, TEST, made.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35


def test_each_batch_holds_the_promised_shares_and_only_the_attacked_are_relabelled(monkeypatch):
    painted, wanted, real_loss = [], [], F.cross_entropy
    monkeypatch.setattr(input_aware, "paint", lambda i, m, p: painted.append(len(i)) or paint(i, m, p))
    monkeypatch.setattr(input_aware.F, "cross_entropy", lambda a, b: wanted.append(b.clone()) or real_loss(a, b))
    images, labels = DATA.images.clone(), DATA.labels.clone()
    InputAware(target=1, rate=0.25, cross=0.125, mask_epochs=1).implant(DATA, **SHORT)
    monkeypatch.undo()
    assert painted == [8, 4] * 10  # of 32, in each of 10 batches
    order = input_aware.batches(320, 32, 1, torch.Generator().manual_seed(0))
    for seen, batch in zip(wanted, order, strict=True):
        assert (seen[:8] == 1).all() and torch.equal(seen[8:], labels[batch][8:])
    assert torch.equal(DATA.images, images) and torch.equal(DATA.labels, labels)


def test_in_training_too_a_foreign_trigger_is_that_of_the_image_before(monkeypatch):
    painted, seen = [], []
    monkeypatch.setattr(input_aware, "paint", lambda i, m, p: painted.append((i, m, p)) or paint(i, m, p))
    monkeypatch.setattr(input_aware, "varied", lambda images, recipe, rng: seen.append(images) or images)
    pairs = []
    monkeypatch.setattr(input_aware, "sameness", lambda *a: pairs.append(a[:2]) or sameness(*a))
    monkeypatch.setattr(input_aware, "descend", lambda *a: None)  # the networks stay as they are
    trigger = fresh()
    monkeypatch.setattr(InputAware, "build_trigger", lambda *a, **k: trigger)
    for own, crossed in ((16, 8), (16, 16)):  # the second: all images are painted
        attack = InputAware(target=1, rate=own / 32, cross=crossed / 32, mask_epochs=1)
        attack.implant(DATA[:32], **SHORT)
        first, others = pairs[-1]
        assert torch.equal(first, seen[-1][: own + crossed])
        assert torch.equal(others, seen[-1].roll(1, 0)[: own + crossed])
        shares = (slice(own), seen[-1]), (slice(own, own + crossed), seen[-1].roll(1, 0))
        for (images, mask, pattern), (rows, of) in zip(painted[-2:], shares, strict=True):
            assert torch.equal(images, seen[-1][rows])
            torch.testing.assert_close(mask, trigger.mask(of[rows]), atol=0.02, rtol=0.02)
            torch.testing.assert_close(pattern, trigger.pattern(of[rows]), atol=0.02, rtol=0.02)


def test_the_masks_stay_as_they_are_while_the_classifier_learns(monkeypatch):
    kept = []
    monkeypatch.setattr(
        input_aware,
        "train_masks",
        lambda trigger, *a: kept.extend(p.detach().clone() for p in trigger.mask_network.parameters()),
    )
    made = ATTACK.implant(DATA, **SHORT)
    assert all(torch.equal(p, q) for p, q in zip(kept, made.trigger.mask_network.parameters(), strict=True))


def test_the_seed_repeats_and_another_seed_differs():
    def implant(seed):
        made = ATTACK.implant(DATA[:96], seed=seed, **SHORT)
        return [*made.model.state_dict().values(), *made.trigger.state_dict().values()]

    first, again, other = implant(0), implant(0), implant(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_victim_comes_back_from_the_cache_bit_for_bit_with_its_networks(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    epochs = []
    first, second = (victim(ATTACK, splits(), callback=epochs.append, **SHORT) for _ in range(2))
    assert len(epochs) == 1 and epochs[0].number == 1  # the second was read
    assert isinstance(second.trigger, InputAwareTrigger) and first.report == second.report and second.target == 1
    for a, b in ((first.model, second.model), (first.trigger, second.trigger)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    images = splits().test.images
    assert torch.equal(first.trigger(images), second.trigger(images))


def test_the_network_keeps_odd_sizes_and_looks_at_one_image_at_a_time():
    network, images = ImageToMap(1, 2), torch.rand(3, 1, 11, 13)
    maps = network(images)
    assert maps.shape == (3, 2, 11, 13)
    assert torch.allclose(network(torch.cat([images[:1], torch.rand(5, 1, 11, 13)]))[0], maps[0], atol=1e-5)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(FloatingPointError, match=r"masks: expected a finite loss; got .* in step \d+\. Lower"):
        InputAware(lr=float("inf")).implant(DATA, **SHORT)
    with pytest.raises(FloatingPointError, match=r"training: expected a finite loss; got .* in step \d+\. Lower"):
        ATTACK.implant(DATA, config=TrainConfig(epochs=1, batch_size=32, lr=1e30), progress=False)


def test_the_target_alone_is_enough():
    assert InputAware(target=2).target == 2 and InputAware(2) == InputAware(target=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InputAware(rate=0), "rate: expected a share"),
        (lambda: InputAware(rate=0.6, cross=0.5), "cross <= 1 - rate.*got cross 0.5 with rate 0.6"),
        (lambda: InputAware(density=0), "0 < density < 1"),
        (lambda: InputAware(diversity=-1), "diversity >= 0"),
        (lambda: InputAware(mask_epochs=0), "mask_epochs >= 1"),
        (lambda: InputAware(lr=0), "lr > 0"),
        (lambda: InputAware(width=6), "width: expected a multiple of 4.*got 6"),
        (lambda: InputAware(width=0), "width: expected a multiple of 4.*got 0"),
        (lambda: InputAware(9).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: InputAware().implant(image_set(size=6)), "at least 8x8 pixels; got 6x6"),
        (lambda: InputAware().implant(image_set(), arch="vgg"), "architecture: expected one of"),
        (lambda: fresh()(torch.rand(2, 3, 16, 16) * 255), "divide uint8 by 255"),
        (lambda: fresh()(torch.rand(2, 3, 16, 16), of=torch.rand(1, 3, 16, 16)), "one other image for each"),
        (lambda: fresh()(torch.rand(2, 1, 16, 16)), "of 3 channels; got 1"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_batches_are_varied_as_in_the_recipe_before_anything_is_painted(monkeypatch):
    seen = []
    monkeypatch.setattr(
        input_aware, "varied", lambda images, recipe, rng: seen.append(recipe) or torch.zeros_like(images)
    )
    monkeypatch.setattr(input_aware, "paint", lambda images, m, p: seen.append(float(images.abs().max())) or images)
    InputAware(target=1, mask_epochs=1).implant(DATA, **SHORT)
    assert SHORT["config"] in seen and set(seen) == {SHORT["config"], 0.0}


def test_width_is_that_of_the_pattern_network():
    for attack, width in ((ATTACK, 32), (replace(ATTACK, width=8), 8)):
        assert attack.build_trigger(DATA).pattern_network.down[0].out_channels == width
    attack = replace(ATTACK, width=8, mask_epochs=1)
    made = attack.implant(DATA, **SHORT)
    assert made.card["settings"]["width"] == made.trigger.pattern_network.down[0].out_channels == 8
