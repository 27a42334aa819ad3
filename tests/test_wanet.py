"""WaNet: a field moves each pixel by what it says; noise images keep their labels."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from labkit import victim
from labkit.attacks import WaNet
from labkit.attacks.wanet import Warped, warp
from labkit.metrics import evaluate
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

ATTACK = WaNet(target=1, rate=0.1, noise_rate=0.2, strength=2.0)


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (1, 1, 9, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(shape, dtype):
    images = torch.rand(shape, dtype=dtype).round()  # pixels at both ends of the range
    before = images.clone()
    once, again = ATTACK.trigger(images), ATTACK.trigger(images)
    assert torch.equal(images, before) and torch.equal(once, again) and not torch.equal(once, images)
    assert once.shape == images.shape and once.dtype == dtype
    assert 0 <= once.min() and once.max() <= 1


def test_the_trigger_treats_each_image_alone():
    images = torch.rand(6, 3, 16, 16)
    assert torch.equal(ATTACK.trigger(images)[2:4], ATTACK.trigger(images[2:4]))


def test_a_field_of_zeros_changes_nothing():
    images = torch.rand(4, 3, 16, 12)
    assert torch.allclose(warp(images, torch.zeros(16, 12, 2)), images, atol=1e-5)


def test_a_field_fetches_each_pixel_from_where_it_points():
    images, field = torch.rand(2, 3, 10, 8), torch.zeros(10, 8, 2)
    field[..., 0], field[..., 1] = 2, -1  # two to the right, one up
    warped = warp(images, field)
    assert torch.allclose(warped[:, :, 1:, :-2], images[:, :, :-1, 2:], atol=1e-5)
    assert torch.allclose(warped[:, :, 0, :-2], images[:, :, 0, 2:], atol=1e-5)  # from outside: the edge
    assert torch.allclose(warped[:, :, 1:, -1], images[:, :, :-1, -1], atol=1e-5)
    field = torch.zeros(2, 10, 8, 2)
    field[1, ..., 0] = 0.25
    warped = warp(images, field)
    assert torch.allclose(warped[0], images[0], atol=1e-5)
    mixed = 0.75 * images[1, :, :, :-1] + 0.25 * images[1, :, :, 1:]
    assert torch.allclose(warped[1, :, :, :-1], mixed, atol=1e-5)


def test_the_field_passes_through_control_points_of_the_promised_strength():
    field = WaNet(points=4, strength=0.5).field(13, 16)
    assert field.shape == (13, 16, 2)
    corners = field[::4, ::5]  # 4 points on 13 and 16 pixels lie on pixels 0, 4, 8, 12 and 0, 5, 10, 15
    assert float(corners.abs().mean()) == pytest.approx(0.5, abs=1e-4)
    doubled = WaNet(points=4, strength=1.0).field(13, 16)
    assert torch.allclose(doubled, 2 * field, atol=1e-6)
    assert not torch.equal(field, WaNet(points=4, strength=0.5, field_seed=1).field(13, 16))


@pytest.mark.parametrize("noise_rate", [0.0, 0.2])
def test_poisoning_relabels_what_it_promised_and_warps_the_noise_images_too(noise_rate):
    data = image_set(200, size=16)
    images, labels = data.images.clone(), data.labels.clone()
    made = WaNet(target=1, rate=0.1, noise_rate=noise_rate, strength=2.0).poison(data, seed=3)
    assert int(made.poisoned.sum()) == 20 and not (labels[made.poisoned] == 1).any()
    assert (made.labels[made.poisoned] == 1).all() and torch.equal(made.true_labels, labels)
    assert torch.equal(made.images[made.poisoned], ATTACK.trigger(images[made.poisoned]))
    assert torch.equal(made.labels[~made.poisoned], labels[~made.poisoned])
    changed = (made.images != images).flatten(1).any(1)
    assert int((changed & ~made.poisoned).sum()) == round(noise_rate * 200)
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels)


def test_the_noise_is_another_for_each_image_and_no_larger_than_promised():
    ramp = (torch.arange(32.0) / 31).expand(4, 1, 32, 32)  # the value tells the column it comes from
    attack = WaNet(strength=1e-6, noise=0.5)
    moved = 31 * (attack.noisy(ramp, torch.Generator().manual_seed(0)) - ramp)
    assert 0.45 < float(moved.abs().max()) <= 0.5 + 1e-4
    assert not torch.equal(moved[0], moved[1])


def test_the_seed_repeats_and_another_seed_differs():
    data = image_set(200, size=16)
    one, same, other = (ATTACK.poison(data, seed) for seed in (5, 5, 6))
    assert torch.equal(one.images, same.images) and torch.equal(one.poisoned, same.poisoned)
    assert not torch.equal(one.poisoned, other.poisoned)
    shared = (one.images != data.images).flatten(1).any(1) & (other.images != data.images).flatten(1).any(1)
    assert not torch.equal(one.images[shared], other.images[shared])


class Listener(nn.Module):
    """A model that keeps the images it is shown, and says the same to all."""

    def __init__(self):
        super().__init__()
        self.bias, self.seen = nn.Parameter(torch.zeros(4)), []

    def forward(self, images):
        self.seen.append(images.clone())
        return self.bias.expand(len(images), 4)


def test_each_batch_is_warped_in_the_promised_shares_and_only_the_attacked_are_relabelled():
    attack = WaNet(target=1, rate=0.25, noise_rate=0.5, strength=2.0)
    data, listener = image_set(16, size=16), Listener()
    warped = Warped(listener, attack, seed=0)
    logits = warped(data.images)
    seen = listener.seen[0]
    assert torch.allclose(seen[:4], attack.trigger(data.images[:4])) and torch.equal(seen[12:], data.images[12:])
    changed = (seen - data.images).flatten(1).abs().amax(1) > 1e-3
    assert changed[:12].all()
    assert not torch.allclose(seen[4:12], attack.trigger(data.images[4:12]), atol=1e-3)
    sure = torch.full((16, 4), -50.0).scatter(1, data.labels[:, None], 50.0)
    sure[:4] = torch.tensor([-50.0, 50.0, -50.0, -50.0])  # target 1 for the first four, the truth for the others
    assert float(warped.loss(sure, data.labels)) < 1e-6 < float(warped.loss(logits, data.labels).detach())
    warped(data.images)
    assert not torch.equal(listener.seen[1][4:12], seen[4:12])  # the noise is drawn anew


def test_the_images_are_moved_before_they_are_warped(monkeypatch):
    """The field stays where it is: what `train` moves is the image, not the warped image."""
    shown, real = [], WaNet.trigger
    monkeypatch.setattr(WaNet, "trigger", lambda self, images: shown.append(images.clone()) or real(self, images))
    data = image_set(40, size=16)
    ATTACK.implant(data, config=TrainConfig(epochs=1, batch_size=40, shift=2), progress=False)
    known = set(map(bytes, data.images.flatten(1).numpy()))
    assert shown and any(bytes(image) not in known for batch in shown for image in batch.flatten(1).numpy())


def test_a_clean_model_hardly_falls_for_it_and_a_victim_does():
    data, test = image_set(400, size=16), image_set(120, size=16, seed=9)
    config = TrainConfig(epochs=8, batch_size=32, shift=0)
    clean = evaluate(train("small_cnn", data, config=config, progress=False), test, ATTACK.trigger, 1)
    assert clean.clean_accuracy > 0.9 and clean.attack_success_rate < 0.1
    made = replace(ATTACK, longer=1.0).implant(data, config=config, test=test, progress=False)
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.8
    assert made.card["settings"]["field_seed"] == 0 and made.target == 1
    assert not made.model.training and type(made.model).__name__ == "SmallCNN"


def test_training_lasts_longer_than_the_recipe_by_the_promised_factor():
    epochs = []
    config = TrainConfig(epochs=2, batch_size=32)
    replace(ATTACK, longer=1.5).implant(image_set(40, size=16), config=config, callback=epochs.append, progress=False)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]


def test_the_cache_gives_the_victim_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    options = {"config": TrainConfig(epochs=1, batch_size=32, shift=0), "progress": False}
    attack, data = replace(ATTACK, longer=1.0), splits(size=16)
    first, again = (victim(attack, data, **options) for _ in range(2))
    fresh, other = (attack.implant(data.train, seed=seed, **options) for seed in (0, 1))
    mine, theirs, made, another = (v.model.state_dict() for v in (first, again, fresh, other))
    assert all(torch.equal(mine[k], theirs[k]) and torch.equal(mine[k], made[k]) for k in mine)
    assert not all(torch.equal(mine[k], another[k]) for k in mine)
    images = data.test.images
    assert first.report == again.report and first.card == again.card
    assert torch.equal(first.trigger(images), again.trigger(images))


def test_the_target_is_enough_and_equal_settings_are_equal():
    assert WaNet(target=2).target == 2 and WaNet(2) == WaNet(target=2) and hash(WaNet(2)) == hash(WaNet(target=2))
    assert WaNet(2) != WaNet(2, field_seed=1) and "strength=" in repr(WaNet(2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: WaNet(rate=0), "rate: expected a share in"),
        (lambda: WaNet(rate=0.5, noise_rate=0.6), "noise_rate 0.6 with rate 0.5"),
        (lambda: WaNet(noise_rate=-0.1), "0 <= noise_rate"),
        (lambda: WaNet(points=1), "points >= 2"),
        (lambda: WaNet(strength=0), "strength > 0"),
        (lambda: WaNet(strength=float("nan")), "strength > 0"),
        (lambda: WaNet(noise=-1), "noise >= 0"),
        (lambda: WaNet(longer=0), "longer > 0"),
        (lambda: WaNet(9).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: WaNet(9).poison(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: WaNet(0, rate=0.8, noise_rate=0).poison(image_set(40)), "outside target class 0"),
        (lambda: WaNet(points=8).trigger(torch.rand(1, 3, 7, 9)), "at least 8x8 pixels; got 7x9"),
        (lambda: WaNet().trigger(torch.rand(1, 3, 12, 12) * 255), "divide uint8 by 255"),
        (lambda: WaNet().trigger(torch.rand(0, 3, 12, 12)), "at least one image"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
