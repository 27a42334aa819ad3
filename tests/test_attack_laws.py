"""Laws that every attack keeps, whatever it controls: one tiny victim of each, with its own trigger."""

import sys

import pytest
import torch

from labkit import attacks, victim
from labkit.train import TrainConfig
from tests.tiny import image_set, splits

SHORT = TrainConfig(epochs=1, batch_size=32)
BRIEF = {  # what keeps a victim from taking longer than it must; nothing here needs a backdoor that works
    "BadNets": {},
    "Blend": {},
    "SIG": {"rate": 0.5, "delta_at_test": 0.3},
    "LabelConsistent": {"steps": 2},
    "FeatureCollision": {"size": 5, "steps": 2, "rematch": 1, "shift": 1, "sharpen_steps": 2},
    "WaNet": {"longer": 1.0},
    "TrojanNN": {"area": 0.1, "each": 4, "steps": 2, "epochs": 1},
    "InputAware": {"mask_epochs": 1},
    "ISSBA": {"bits": 4, "psnr": 22, "epochs": 1},
    "DFST": {"style_steps": 2, "rounds": 1, "epochs": 1},
    "LatentBackdoor": {"area": 0.06, "steps": 2, "epochs": 1},
    "Composite": {"donors": 8},
}
WITH_A_LAYER = [(name, "layer") for name in ("FeatureCollision", "TrojanNN", "DFST", "LatentBackdoor")]
WITH_A_LAYER += [("LatentBackdoor", "frozen")]
each = pytest.mark.parametrize("name", BRIEF)


def attack(name, **options):
    return getattr(attacks, name)(target=1, **BRIEF[name] | options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> the victim as it was trained, as it came back from the cache, and the epochs trained for the second."""
    known, folder = {}, tmp_path_factory.mktemp("victims")

    def once(name):
        if name not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LABKIT_CACHE", str(folder))
                first = victim(attack(name), splits(size=16), config=SHORT, progress=False)
                epochs = []
                again = victim(attack(name), splits(size=16), config=SHORT, progress=False, callback=epochs.append)
            known[name] = first, again, epochs
        return known[name]

    return once


def test_no_attack_is_left_out():
    with_implant = {name for name in attacks.__all__ if hasattr(getattr(attacks, name), "implant")}
    assert with_implant - {"PoisonAttack", "PruningAware"} == set(BRIEF)  # a base class; an attack around another one


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(made, name, dtype):
    trigger = made(name)[0].trigger
    images = torch.cat([image_set(6, size=16, seed=5).images, torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
    images = images.to(dtype)
    before = images.clone()
    once, again = trigger(images), trigger(images)
    assert torch.equal(images, before)
    assert torch.equal(once, again) and not torch.equal(once, images)
    assert once.shape == images.shape and once.dtype == dtype and once.device == images.device
    assert once.isfinite().all() and 0 <= once.min() and once.max() <= 1


@each
def test_a_victim_comes_back_from_the_cache_bit_for_bit(made, name):
    first, again, epochs = made(name)
    x, y = first.model.state_dict(), again.model.state_dict()
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) and not again.model.training
    images = image_set(8, size=16, seed=5).images
    assert torch.equal(first.trigger(images), again.trigger(images))
    assert first.report == again.report and first.target == again.target == 1 and not epochs


@pytest.mark.parametrize(("name", "field"), WITH_A_LAYER)
def test_a_layer_that_is_not_there_is_named_before_anything_is_trained(name, field, monkeypatch):
    module = sys.modules[getattr(attacks, name).__module__]
    monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setattr(module, "train_style", lambda *a, **k: pytest.fail("trained"), raising=False)
    with pytest.raises(ValueError, match=r"block7.*block1"):
        attack(name, **{field: "block7"}).implant(image_set(size=16), config=SHORT, progress=False)


@pytest.mark.parametrize("name", ["WaNet", "InputAware"])
def test_a_rate_that_is_no_image_of_a_batch_is_an_error_and_no_victim_without_a_backdoor(name):
    with pytest.raises(ValueError, match=r"0\.01 of a batch of 32 images is 0\.32; expected at least 1"):
        attack(name, rate=0.01).implant(image_set(size=16), config=SHORT, progress=False)


@pytest.mark.parametrize("name", ["SIG", "LabelConsistent", "FeatureCollision"])
def test_a_clean_label_attack_wants_images_of_its_target(name):
    data = image_set(size=16)
    with pytest.raises(ValueError, match="expected images of target class 1; got none"):
        attack(name).implant(data[data.labels != 1], config=SHORT, progress=False)


def test_a_clean_label_rate_is_checked_before_anything_is_trained(monkeypatch):
    for name in ("LabelConsistent", "FeatureCollision"):
        module = sys.modules[getattr(attacks, name).__module__]
        monkeypatch.setattr(module, "train", lambda *a, **k: pytest.fail("trained"))
        with pytest.raises(ValueError, match=r"rate: 0\.01 of 15 images is 0"):
            attack(name, rate=0.01).implant(image_set(size=16), config=SHORT, progress=False)


def test_an_attack_on_a_layer_without_positions_runs():
    made = attack("DFST", layer="head").implant(image_set(size=16), config=SHORT, progress=False)
    assert made.card["detoxification"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attack("DFST", rise=float("nan")), "rise >= 0"),
        (lambda: attack("DFST", near=float("nan")), "near >= 0"),
        (lambda: attack("InputAware", diversity=float("nan")), "diversity >= 0"),
        (lambda: implant("TrojanNN", own=0.001), r"own: 0\.001 of 60 images is 0; expected 1 to 59"),
        (lambda: implant("TrojanNN", own=0.999), r"own: 0\.999 of 60 images is 60; expected 1 to 59"),
        (lambda: implant("Composite", test=without(2)), "expected test images of class A = 2.*got none"),
        (lambda: implant("Composite", size=3), "at least 4x4 pixels; got 3x3"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(make, words, monkeypatch):
    for name in ("trojan_nn", "composite"):
        monkeypatch.setattr(getattr(attacks, name), "train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match=words):
        make()


def implant(name, size=16, test=None, **options):
    return attack(name, **options).implant(image_set(size=size), config=SHORT, test=test, progress=False)


def without(label):
    data = image_set(size=16)
    return data[data.labels != label]
