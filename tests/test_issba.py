"""ISSBA: a faint residual that hides each image's own string, and belongs to that image; poisoning as promised."""

import pytest
import torch

from labkit import victim
from labkit.attacks import ISSBA
from labkit.attacks.issba import ISSBATrigger, train_encoder
from labkit.metrics import BATCH, evaluate
from labkit.models import build
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

SHORT = {"config": TrainConfig(epochs=1, batch_size=32), "progress": False}
DATA = image_set(200, size=16)
ATTACK = ISSBA(target=1, rate=0.2, cross=0.1, bits=4, epochs=1)


def fresh(channels=3, **settings):
    return ISSBA(target=1, **settings).build_trigger(image_set(4, channels=channels, size=16), seed=5)


@pytest.fixture(scope="module")
def learned():
    """An encoder and a decoder trained together, on more images than most tests need."""
    attack, data = ISSBA(bits=2, epochs=24, strength=0.2), image_set(320, size=16)
    trigger, decoder = attack.build_trigger(data), build("small_cnn", 3, 3)
    train_encoder(trigger, decoder, data, attack, 0, False)
    return trigger, decoder.eval()


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
    whole = trigger(images)
    assert torch.allclose(whole[2:4], trigger(images[2:4]), atol=1e-6)
    monkeypatch.setitem(BATCH, "cpu", 4)  # two batches
    assert torch.allclose(trigger(images), whole, atol=1e-6)


@pytest.mark.parametrize("strength", [0.02, 0.1])
def test_no_pixel_changes_by_more_than_the_strength(strength):
    trigger, images = fresh(strength=strength), torch.rand(6, 3, 16, 16)
    for convolution in (trigger.encoder.out,):  # an encoder that shouts
        torch.nn.init.constant_(convolution.weight, 10.0)
    changed = (trigger(images) - images).abs()
    assert changed.max() <= strength + 1e-6
    assert changed.max() > 0.9 * strength


def test_another_images_trigger_is_that_images_residual_with_its_own_string():
    trigger, images = fresh(), torch.rand(4, 3, 16, 16) * 0.6 + 0.2  # no pixel is clipped
    others = images.roll(1, 0)
    residual = trigger.residual(others, trigger.own_strings(others))
    assert torch.allclose(trigger(images, of=others), images + residual, atol=1e-6)
    assert torch.allclose(trigger(images, of=others) - images, trigger(others) - others, atol=1e-6)
    assert torch.equal(trigger(images, of=images), trigger(images))


def test_images_hide_strings_of_their_own_half_ones(learned):
    trigger = fresh(bits=16)
    images = torch.rand(200, 3, 16, 16)
    strings = trigger.own_strings(images)
    assert strings.shape == (200, 16) and set(strings.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(strings, trigger.own_strings(images)) and len(strings.unique(dim=0)) > 190
    assert 0.35 < strings.mean() < 0.65


def test_the_decoder_reads_the_strings_and_knows_whose_residual_it_sees(learned):
    trigger, decoder = learned
    images = image_set(200, size=16, seed=9).images
    strings = torch.randint(2, (200, 2), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        residual = trigger.residual(images, strings)
        own, strange, none = (decoder(x.clamp(0, 1)) for x in (images + residual, images + residual.roll(1, 0), images))
    assert ((own[:, :2] > 0) == (strings > 0.5)).float().mean() > 0.9
    assert (own[:, 2] > 0).float().mean() > 0.8
    assert (strange[:, 2] < 0).float().mean() > 0.8 and (none[:, 2] < 0).float().mean() > 0.8


def test_residuals_differ_between_images_more_than_one_string_makes_them(learned):
    trigger, _ = learned
    images = image_set(100, size=16, seed=9).images
    with torch.no_grad():
        residual = trigger.residual(images, torch.ones(100, 2))  # the same string in all
    alike = torch.cosine_similarity(residual.flatten(1), residual.roll(1, 0).flatten(1))
    assert alike.mean() < 0.7


def test_poisoning_touches_exactly_the_promised_images():
    trigger, images, labels = fresh(), DATA.images.clone(), DATA.labels.clone()
    made = ATTACK.poison(DATA, seed=3, trigger=trigger)
    touched = (made.images != images).flatten(1).any(1)
    assert int(made.poisoned.sum()) == 40 and int((touched & ~made.poisoned).sum()) == 20
    assert torch.equal(made.images[made.poisoned], trigger(images[made.poisoned]))
    assert (made.labels[made.poisoned] == 1).all() and (labels[made.poisoned] != 1).all()
    assert torch.equal(made.labels[~made.poisoned], labels[~made.poisoned])
    assert torch.equal(made.true_labels, labels)
    assert torch.equal(DATA.images, images) and torch.equal(DATA.labels, labels)
    assert not hasattr(made.without_secrets(), "poisoned")


def test_the_crossed_images_carry_the_residual_of_another():
    trigger = fresh()
    made = ATTACK.poison(DATA, seed=3, trigger=trigger)
    crossed = ((made.images != DATA.images).flatten(1).any(1) & ~made.poisoned).nonzero().flatten()
    drawn = torch.stack([trigger(DATA.images[crossed], of=DATA.images[i].expand(20, -1, -1, -1)) for i in crossed])
    same = (drawn - made.images[crossed]).abs().flatten(2).amax(2) < 1e-6  # [i, j]: j carries what i has of its own
    assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all() and not same.diagonal().any()
    none = ISSBA(target=1, rate=0.2, cross=0).poison(DATA, seed=3, trigger=trigger)
    assert torch.equal(none.images[~none.poisoned], DATA.images[~none.poisoned])


def test_the_seed_repeats_and_another_seed_differs():
    def implant(seed):
        made = ATTACK.implant(DATA[:96], seed=seed, **SHORT)
        return [*made.model.state_dict().values(), *made.trigger.state_dict().values()]

    first, again, other = implant(0), implant(0), implant(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_poisoning_without_an_encoder_trains_the_one_that_implanting_does():
    trigger = ATTACK.train_trigger(DATA, seed=2, progress=False)
    assert torch.equal(ATTACK.poison(DATA, 2).images, ATTACK.poison(DATA, 2, trigger=trigger).images)


def test_a_victim_comes_back_from_the_cache_bit_for_bit_with_its_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    epochs = []
    first, second = (victim(ATTACK, splits(), callback=epochs.append, **SHORT) for _ in range(2))
    assert len(epochs) == 1  # the second was read
    assert isinstance(second.trigger, ISSBATrigger) and first.report == second.report and second.target == 1
    for a, b in ((first.model, second.model), (first.trigger, second.trigger)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    images = splits().test.images
    assert torch.equal(first.trigger(images), second.trigger(images))


def test_a_clean_model_hardly_falls_for_the_trigger(learned):
    model = train("small_cnn", DATA, config=TrainConfig(epochs=4, batch_size=32, shift=0), progress=False)
    report = evaluate(model, image_set(120, size=16, seed=9), learned[0], 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35


def test_implanting_works_and_the_report_says_so():
    attack = ISSBA(target=1, rate=0.3, cross=0.1, bits=2, strength=0.2, epochs=12)
    made = attack.implant(
        image_set(320, size=16),
        config=TrainConfig(epochs=12, batch_size=32, shift=0),
        test=image_set(120, size=16, seed=9),
        progress=False,
    )
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.8
    assert made.card["attack"] == "ISSBA" and made.card["settings"]["bits"] == 2


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(FloatingPointError, match=r"encoder: expected a finite loss; got .* in step \d+\. Lower"):
        ISSBA(lr=float("inf")).train_trigger(DATA, progress=False)


def test_the_target_alone_is_enough():
    assert ISSBA(target=2).target == 2 and ISSBA(2) == ISSBA(target=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ISSBA(rate=0), "rate: expected a share"),
        (lambda: ISSBA(rate=0.6, cross=0.5), "cross <= 1 - rate; got cross 0.5 with rate 0.6"),
        (lambda: ISSBA(bits=0), "bits >= 1"),
        (lambda: ISSBA(strength=8), "0 < strength <= 1"),
        (lambda: ISSBA(faintness=-1), "faintness >= 0"),
        (lambda: ISSBA(epochs=0), "epochs >= 1"),
        (lambda: ISSBA(9).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: ISSBA(9).poison(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: ISSBA(0, rate=0.9, cross=0).poison(image_set(40), trigger=fresh()), "outside target class 0"),
        (lambda: ISSBA().implant(image_set(size=6)), "at least 8x8 pixels; got 6x6"),
        (lambda: fresh()(torch.rand(2, 3, 16, 16) * 255), "divide uint8 by 255"),
        (lambda: fresh()(torch.rand(2, 3, 16, 16), of=torch.rand(1, 3, 16, 16)), "one other image for each"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
