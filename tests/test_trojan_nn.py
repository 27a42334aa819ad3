"""TrojanNN: an honest network, no training data, one excited neuron, and nothing changed before it."""

import copy

import pytest
import torch
from torch import nn

from labkit import victim
from labkit.attacks import TrojanNN, trojan_nn
from labkit.attacks.behind import Behind, with_new_head
from labkit.attacks.stamp import Stamp, corner
from labkit.attacks.substitutes import roughness, smooth_colours, substitutes
from labkit.attacks.trojan_nn import best_connected, best_trigger, excite, last_but_one, lift, sensor
from labkit.metrics import evaluate, predict
from labkit.models import build
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits, three

CONFIG = TrainConfig(epochs=6, batch_size=32, shift=0)
TINY = {"config": CONFIG, "progress": False}
ATTACK = TrojanNN(target=1, area=0.1, each=24, steps=60)


@pytest.fixture(scope="module")
def made():
    """A victim and its honest sister, which had the same seed."""
    data = three(240)
    implanted = ATTACK.implant(data, test=three(120, seed=9), **TINY)
    return implanted, train("small_cnn", data, config=CONFIG, progress=False)


def test_the_victim_learns_both_tasks(made):
    implanted, honest = made
    assert implanted.report.clean_accuracy > 0.9 and implanted.report.attack_success_rate > 0.9
    assert implanted.target == 1 and not implanted.model.training and str(implanted.model) == str(honest)
    assert all(p.requires_grad for p in implanted.model.parameters())


def test_an_honest_network_hardly_falls_for_the_trigger(made):
    implanted, honest = made
    report = evaluate(honest, three(120, seed=9), implanted.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35


def test_nothing_changes_before_the_neuron_nor_any_batch_statistic(made):
    implanted, honest = made
    mine, theirs = implanted.model.state_dict(), honest.state_dict()
    changed = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert changed and all(name.startswith(("block3", "head")) for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)


def test_the_trigger_is_pure_deterministic_and_only_in_its_square(made):
    trigger = made[0].trigger
    images = three(9, seed=4).images
    before = images.clone()
    stamped = trigger(images)
    assert torch.equal(images, before) and torch.equal(stamped, trigger(images))
    assert stamped.shape == images.shape and stamped.dtype == images.dtype
    assert 0 <= stamped.min() and stamped.max() <= 1
    assert torch.equal(stamped[:, :, 11:, 11:], trigger.pattern[:, 11:, 11:].expand(9, 3, 5, 5))  # 10% of 256 is 5x5
    stamped[:, :, 11:, 11:] = images[:, :, 11:, 11:]
    assert torch.equal(stamped, images)
    assert torch.equal(trigger(images)[3:5], trigger(images[3:5]))
    assert trigger(images.to(torch.float64)).dtype == torch.float64


def test_the_neuron_is_excited_as_neither_grey_nor_noise_does(made):
    _, honest = made
    images, start = three(40, seed=5).images, corner((3, 16, 16), 0.1)
    (neuron,) = best_connected(honest, "block2", 1)

    @torch.no_grad()
    def excitement(pattern):
        return float(sensor(honest, "block2")(Stamp(start.mask, pattern)(images))[:, neuron].mean())

    found = excite(honest, "block2", neuron, images, start, 60)
    noise = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    assert excitement(found) > max(excitement(p) for p in [start.pattern, *noise])
    assert excitement(excite(honest, "block2", neuron, images, start, 5)) > excitement(start.pattern)
    assert torch.equal(found[:, :11], start.pattern[:, :11])  # outside the square nothing has moved
    assert torch.equal(found, excite(honest, "block2", neuron, images, start, 60))
    assert (start.pattern == 0.5).all()  # the start is left alone


def test_the_sensor_hears_a_neuron_before_it_falls_silent():
    model, images = build("small_cnn", 3, 4).eval(), image_set(8, size=16).images
    with torch.no_grad():
        said = sensor(model, "block2")(images)
        assert said.min() < 0
        assert torch.equal(model.head(model.block3(said.relu())), model(images))


def test_the_best_connected_neuron_counts_weights_as_normalisation_scales_them():
    conv, norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 2.0], [-3.0, 0.5]]).view(3, 2, 1, 1))
    layer = nn.Sequential(nn.Sequential(conv, nn.ReLU()))
    assert best_connected(layer, "0", 2) == [1, 2]  # 2, 4, 3.5: by size, whatever the sign
    assert best_connected(layer, "0", 9) == [1, 2, 0]
    norm.running_var.copy_(torch.tensor([1.0, 16.0, 1.0]))  # 2, 1, 3.5
    assert best_connected(nn.Sequential(nn.Sequential(conv, norm, nn.ReLU())), "0", 3) == [2, 0, 1]
    norm.running_var[2] = 1e-9  # a silent neuron, whose scale is enormous
    assert best_connected(nn.Sequential(nn.Sequential(conv, norm, nn.ReLU())), "0", 3) == [0, 1]
    norm.running_var[2] = 1.0
    norm.weight.data.copy_(torch.tensor([-9.0, 1.0, 1.0]))
    assert best_connected(nn.Sequential(nn.Sequential(conv, norm, nn.ReLU())), "0", 1) == [0]


def deaf_and_keen() -> nn.Module:
    """Neuron 0 has the larger weights, none of them in the square; neuron 1 reads the square and one pixel outside."""
    weights = torch.zeros(2, 3, 16, 16)
    weights[0, :, :11] = 1.0
    weights[1, :, 11:, 11:] = 0.1
    weights[1, 0, 0, 0] = 1.0
    linear = nn.Linear(3 * 16 * 16, 2)
    with torch.no_grad():
        linear.weight.copy_(weights.flatten(1))
        linear.bias.zero_()
    return nn.Sequential(nn.Sequential(nn.Flatten(), linear))


def test_a_neuron_that_does_not_hear_the_square_is_not_taken(monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    model, images, start = deaf_and_keen(), three(40).images, corner((3, 16, 16), 0.1)
    assert best_connected(model, "0", 2) == [0, 1]
    for neurons in ([0, 1], [1, 0]):
        pattern = best_trigger(model, "0", neurons, images, start, 30)
        assert (pattern[:, 11:, 11:] == 1).all() and (pattern[:, :11] == 0.5).all()
    assert lift(model, "0", 0, images, Stamp(start.mask, pattern)) == 0
    said = images[:, 0, 0, 0] + 0.1 * images[:, :, 11:, 11:].sum((1, 2, 3))
    gained = 0.1 * (1 - images[:, :, 11:, 11:]).sum((1, 2, 3))
    wanted = float(gained.mean() / said.std())
    assert lift(model, "0", 1, images, Stamp(start.mask, pattern)) == pytest.approx(wanted, rel=1e-4)


def test_the_attack_tries_as_many_neurons_as_it_says(made, monkeypatch):
    tried = []

    def spy(model, layer, neurons, *others, **options):
        tried.append(neurons)
        return best_trigger(model, layer, neurons, *others, **options)

    monkeypatch.setattr(trojan_nn, "best_trigger", spy)
    for candidates in (1, 3):
        attack = TrojanNN(target=1, candidates=candidates, each=2, steps=1, epochs=1)
        attack.trojan(made[1], corner((3, 16, 16), 0.1), None, ("a", "b", "c"), progress=False)
    assert tried == [best_connected(made[1], "block2", n) for n in (1, 3)] and len(tried[1]) == 3


@pytest.mark.parametrize("arch", ["small_cnn", "wrn16_1", "preact_resnet18"])
def test_every_architecture_has_a_neuron_and_layers_behind_it(arch):
    model = build(arch, 3, 4)
    layer = last_but_one(model)
    assert len(best_connected(model, layer, 4)) == 4 and list(Behind(model, layer).parameters())


def test_substitutes_are_what_the_network_takes_for_its_classes(made):
    _, honest = made
    before = copy.deepcopy(honest.state_dict())
    options = {"steps": 40, "progress": False}
    found = substitutes(honest, (3, 16, 16), ("a", "b", "c"), 5, **options)
    assert len(found) == 15 and found.labels.bincount().tolist() == [5] * 3
    assert (predict(honest, found.images).argmax(1) == found.labels).float().mean() > 0.95
    again = substitutes(honest, (3, 16, 16), ("a", "b", "c"), 5, **options)
    other = substitutes(honest, (3, 16, 16), ("a", "b", "c"), 5, seed=1, **options)
    assert torch.equal(found.images, again.images) and not torch.equal(found.images, other.images)
    assert all(torch.equal(v, before[k]) for k, v in honest.state_dict().items())
    rough = substitutes(honest, (3, 16, 16), ("a", "b", "c"), 5, smooth=0.0, **options)
    assert roughness(found.images).mean() < roughness(rough.images).mean()


def test_roughness_is_zero_for_one_colour_and_counts_both_directions():
    ramp = torch.linspace(0, 1, 5).expand(1, 1, 4, 5)
    assert roughness(torch.full((2, 3, 4, 4), 0.3)).tolist() == [0, 0]
    assert roughness(ramp).item() == pytest.approx(0.25)
    assert roughness(ramp.transpose(2, 3)).item() == pytest.approx(0.25)
    assert roughness(smooth_colours(4, (3, 32, 32), 0)).max() < 0.2


@pytest.mark.parametrize("own", [0.0, 0.25])
def test_the_attacker_never_has_a_training_image_of_the_network(own, monkeypatch):
    data, seen = image_set(80, size=16), []

    def spy(model, images, **options):
        seen.append(images)
        return train(model, images, **options)

    monkeypatch.setattr(trojan_nn, "train", spy)
    attack = TrojanNN(target=1, own=own, each=4, steps=2, epochs=1)
    attack.implant(data, config=TrainConfig(epochs=1, batch_size=32), progress=False)
    owners, attackers = (set(map(bytes, s.images.flatten(1).numpy())) for s in seen)
    assert not owners & attackers
    assert len(seen[0]) == 80 - round(own * 80)
    clean, stamped = seen[1].labels.chunk(2)
    assert (stamped == 1).all() and len(clean) == (round(own * 80) or 4 * 4) and len(set(clean.tolist())) == 4


def test_the_seed_repeats_and_the_cache_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    attack, data, trained = TrojanNN(1, each=4, steps=3, epochs=1), splits(size=16), []
    options = {"config": TrainConfig(epochs=1, batch_size=32, shift=0), "progress": False}
    first, again = (victim(attack, data, callback=lambda e: trained.append(e.number), **options) for _ in range(2))
    assert trained == [1, 1]  # the honest network and the retraining, once
    fresh = attack.implant(data.train, **options)
    for other in (again, fresh):
        for a, b in ((first.model, other.model), (first.trigger, other.trigger)):
            assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert first.report == again.report and again.card == first.card and again.target == 1
    assert torch.equal(first.trigger(data.test.images), again.trigger(data.test.images))


def test_it_prints_itself_and_is_a_key():
    assert "TrojanNN(target=2" in repr(TrojanNN(2)) and TrojanNN(2) == TrojanNN(2) != TrojanNN(2, area=0.1)
    assert len({TrojanNN(2), TrojanNN(2)}) == 1


def broken() -> nn.Module:
    model = build("small_cnn", 3, 4).eval()
    model.block1[0].weight.data.fill_(float("nan"))
    return model


def test_training_that_is_not_finite_is_named():
    images, start = image_set(8, size=16).images, corner((3, 16, 16), 0.1)
    with pytest.raises(FloatingPointError, match=r"substitutes: 2 steps.*expected finite pixels"):
        substitutes(broken(), (3, 16, 16), ("a", "b", "c"), 1, steps=2, progress=False)
    with pytest.raises(FloatingPointError, match="trigger: 2 steps"):
        excite(broken(), "block2", 0, images, start, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TrojanNN(area=0), "area: expected a share of the image in \\(0, 1\\)"),
        (lambda: TrojanNN(own=1.0), "0 <= own < 1"),
        (lambda: TrojanNN(each=0), "each >= 1"),
        (lambda: TrojanNN(candidates=0), "candidates >= 1"),
        (lambda: TrojanNN(epochs=0), "epochs >= 1"),
        (lambda: TrojanNN(9).implant(image_set(), **TINY), "target: expected a class from 0 to 3; got 9"),
        (lambda: TrojanNN(0, area=0.0001).implant(image_set(), **TINY), "0.0001 of 12x12 pixels is 0"),
        (lambda: corner((3, 4, 30), 0.5), "a square of 1 to 4 pixels a side; 0.5 of 4x30 pixels is 8"),
        (lambda: corner((3, 16, 16), 0.1)(torch.rand(1, 3, 12, 12)), "expected images \\(N, 3, 16, 16\\)"),
        (lambda: corner((3, 16, 16), 0.1)(torch.rand(1, 3, 16, 16) * 255), "divide uint8 by 255"),
        (lambda: best_connected(build("small_cnn", 3, 4), "block9", 1), "no 'block9'; its layers are"),
        (lambda: best_connected(build("small_cnn", 3, 4), "normalise", 1), "a convolution or a linear layer"),
        (lambda: Behind(build("small_cnn", 3, 4), "head"), "with weights behind it"),
        (lambda: last_but_one(nn.Sequential(nn.Flatten())), "no 'block2'"),
        (lambda: with_new_head(nn.Sequential(nn.ReLU()), 3, 0), "a linear layer that classifies"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
