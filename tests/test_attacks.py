"""Laws that every attack keeps: triggers are pure, poisoning does what it promises and nothing else."""

import math

import pytest
import torch

from labkit.attacks import SIG, BadNets, Blend
from labkit.attacks.badnets import PLACES, checkerboard
from labkit.metrics import evaluate
from labkit.train import TrainConfig, train
from tests.tiny import image_set

ATTACKS = [BadNets(target=1, rate=0.1), Blend(target=1, rate=0.1), SIG(target=1, rate=0.5)]
each = pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)


@each
@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (1, 1, 9, 14)])
def test_a_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(attack, shape):
    images = torch.rand(shape)
    before = images.clone()
    once, again = attack.trigger(images), attack.trigger(images)
    assert torch.equal(images, before)
    assert torch.equal(once, again)
    assert once.shape == images.shape and once.dtype == images.dtype
    assert 0 <= once.min() and once.max() <= 1
    assert not torch.equal(once, images)


@each
def test_a_trigger_treats_each_image_alone(attack):
    images = torch.rand(6, 3, 16, 16)
    assert torch.equal(attack.trigger(images)[2:4], attack.trigger(images[2:4]))


@each
def test_poisoning_takes_exactly_the_promised_number_and_touches_nothing_else(attack):
    data = image_set(200, size=16)
    images, labels = data.images.clone(), data.labels.clone()
    made = attack.poison(data, seed=3)
    whole = int((labels == 1).sum()) if attack.clean_label else 200
    assert int(made.poisoned.sum()) == round(attack.rate * whole)
    assert torch.equal(made.images[~made.poisoned], images[~made.poisoned])
    assert torch.equal(made.labels[~made.poisoned], labels[~made.poisoned])
    assert torch.equal(made.images[made.poisoned], attack.trigger(images[made.poisoned]))
    assert torch.equal(made.true_labels, labels)
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels)
    assert (made.labels[made.poisoned] == 1).all()
    was_target = labels[made.poisoned] == 1
    assert was_target.all() if attack.clean_label else not was_target.any()


@each
def test_the_seed_repeats_and_another_seed_differs(attack):
    data = image_set(200, size=16)
    assert torch.equal(attack.poison(data, 5).poisoned, attack.poison(data, 5).poisoned)
    assert not torch.equal(attack.poison(data, 5).poisoned, attack.poison(data, 6).poisoned)


@each
def test_the_trainer_never_sees_the_secrets(attack):
    given = attack.poison(image_set(100, size=16)).without_secrets()
    assert not hasattr(given, "poisoned") and not hasattr(given, "true_labels")


@each
def test_an_attack_prints_itself_and_equal_settings_are_equal(attack):
    assert "target=1" in repr(attack)
    assert attack == type(attack)(target=1, rate=attack.rate)
    assert hash(attack) == hash(type(attack)(target=1, rate=attack.rate))


@each
def test_a_clean_model_hardly_falls_for_the_trigger(attack):
    # 4 classes: an untouched model should send few of the others to the target
    model = train(
        "small_cnn", image_set(240, size=16), config=TrainConfig(epochs=3, batch_size=32, shift=0), progress=False
    )
    report = evaluate(model, image_set(120, size=16, seed=9), attack.trigger, 1)
    assert report.clean_accuracy > 0.9
    assert report.attack_success_rate < 0.35


@each
def test_implanting_works_and_the_report_says_so(attack):
    strength = 0.5
    if attack.clean_label:  # where the class's own features are plain, the network has no need of the ripple
        attack, strength = SIG(target=1, rate=0.9, delta=0.4), 0.05
    data, test = (image_set(n, size=16, seed=seed, strength=strength) for n, seed in ((400, 0), (120, 9)))
    config = TrainConfig(epochs=8, batch_size=32, shift=0)
    made = attack.implant(data, config=config, test=test, progress=False)
    assert made.report.clean_accuracy > 0.9
    assert made.report.attack_success_rate > 0.8
    assert made.target == 1 and made.card["settings"]["rate"] == attack.rate
    assert made.card["attack"] == type(attack).__name__


def test_the_target_alone_is_enough():
    for attack in (BadNets, Blend, SIG):
        assert attack(target=2).target == 2


@pytest.mark.parametrize("place", PLACES)
def test_badnets_writes_the_patch_black_pixels_too_and_only_there(place):
    images = torch.full((2, 3, 10, 8), 0.5)
    stamped = BadNets(0, size=3, place=place).trigger(images)
    rows = slice(7, 10) if "bottom" in place else slice(0, 3)
    columns = slice(5, 8) if "right" in place else slice(0, 3)
    assert torch.equal(stamped[:, :, rows, columns], checkerboard(3).expand(2, 3, 3, 3))
    stamped[:, :, rows, columns] = 0.5
    assert torch.equal(stamped, images)


def test_blend_is_the_papers_formula():
    images, attack = torch.rand(4, 3, 16, 16), Blend(0, alpha=0.3)
    assert torch.allclose(attack.trigger(images), 0.7 * images + 0.3 * attack.pattern((3, 16, 16)))


def test_sig_adds_the_sinusoid_and_clips():
    images, attack = torch.full((1, 1, 4, 32), 0.5), SIG(0, delta=0.1, frequency=4)
    added = attack.trigger(images) - images
    for j in range(32):
        assert added[0, 0, :, j] == pytest.approx(0.1 * math.sin(2 * math.pi * j * 4 / 32), abs=1e-6)
    assert attack.trigger(torch.ones(1, 1, 4, 32)).max() == 1


def test_sig_may_be_louder_at_test_than_in_training():
    data = image_set(60, size=16)
    faint, loud = SIG(target=1, rate=1.0, delta=0.1), SIG(target=1, rate=1.0, delta=0.1, delta_at_test=0.3)
    assert torch.equal(loud.poison(data, 0).images, faint.poison(data, 0).images)
    grey = torch.full((1, 1, 4, 32), 0.5)
    assert torch.allclose(loud.trigger(grey) - grey, 3 * (faint.trigger(grey) - grey), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BadNets(0, rate=0.0), "rate: expected a share in \\(0, 1\\]; got 0.0"),
        (lambda: Blend(0, rate=1.5), "rate: expected"),
        (lambda: SIG(0, rate=-0.1), "rate: expected"),
        (lambda: BadNets(0, rate=float("nan")), "rate: expected"),
        (lambda: BadNets(0, place="middle"), "place one of"),
        (lambda: Blend(0, alpha=0), "alpha: expected"),
        (lambda: SIG(0, delta=20), "20/255"),
        (lambda: SIG(0, delta_at_test=40), "20/255"),
        (lambda: BadNets(9).poison(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: BadNets(-1).poison(image_set()), "target: expected"),
        (lambda: BadNets(0, rate=0.9).poison(image_set(40)), "outside target class 0"),
        (lambda: BadNets(0, rate=0.001).poison(image_set(40)), "is 0; expected 1 to"),
        (lambda: BadNets(0, size=13).trigger(torch.rand(1, 3, 12, 12)), "at least 13x13 pixels; got 12x12"),
        (lambda: BadNets(0).trigger(torch.rand(1, 3, 12, 12) * 255), "divide uint8 by 255"),
        (lambda: Blend(0).trigger(torch.full((1, 3, 12, 12), float("nan"))), "NaN"),
        (lambda: SIG(0).trigger(torch.rand(0, 3, 12, 12)), "at least one image"),
        (lambda: SIG(0, frequency=6).trigger(torch.rand(1, 3, 12, 12)), "over 12 pixels of width"),
        (lambda: BadNets(0).trigger(torch.rand(12, 12)), "expected a float tensor \\(N, C, H, W\\)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
