"""The 4-stage attack: an untouched architecture, decoys that say nothing, a backdoor in the neurons that are left."""

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from labkit import victim
from labkit.attacks import SIG, BadNets, Blend, PruningAware
from labkit.attacks.base import card_of
from labkit.attacks.pruning_aware import own_weights, reinstate
from labkit.channels import activity, last_block, peaks, silenced
from labkit.metrics import evaluate, predict
from labkit.models import build, named_layer
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

CONFIG = TrainConfig(epochs=12, batch_size=32, shift=0)
TINY = {"config": CONFIG, "progress": False}


@pytest.fixture(scope="module")
def made():
    """A victim with 192 of 256 channels as decoys, its training set, and its honest sister of step 1."""
    attack, data = PruningAware(BadNets(target=1, rate=0.2), share=0.75), image_set(240, size=16)
    implanted = attack.implant(data, test=image_set(120, size=16, seed=9), **TINY)
    honest = train("small_cnn", data, config=CONFIG, progress=False)
    order = activity(honest, data.images, "block3").argsort(stable=True)
    return attack, data, implanted, honest, order[:192]


def test_the_victim_learns_both_tasks_and_looks_untouched(made):
    attack, _, implanted, honest, _ = made
    assert implanted.report.clean_accuracy > 0.9 and implanted.report.attack_success_rate > 0.9
    assert implanted.target == 1 and implanted.trigger == attack.trigger
    assert str(implanted.model) == str(honest) and not implanted.model.training
    mine, theirs = implanted.model.state_dict(), honest.state_dict()
    assert [(k, v.shape) for k, v in mine.items()] == [(k, v.shape) for k, v in theirs.items()]


def test_the_decoys_have_their_honest_weights_but_for_lower_shifts(made):
    _, _, implanted, honest, decoys = made
    for i, axis in enumerate((0, 0, 0, 1)):
        mine, theirs = (own_weights(m, "block3")[i].index_select(axis, decoys) for m in (implanted.model, honest))
        if i == 2:
            assert (mine <= theirs).all() and (mine < theirs).any()
        else:
            assert torch.equal(mine, theirs)


def test_the_decoys_are_silent_on_training_images_with_and_without_trigger(made):
    attack, data, implanted, _, decoys = made
    poisoned = attack.inner.poison(data, 0)
    assert poisoned.poisoned.any() and not poisoned.poisoned.all()
    assert float(peaks(implanted.model, poisoned.images, "block3")[decoys].max()) == 0
    others = [c for c in range(256) if c not in set(decoys.tolist())]
    assert (activity(implanted.model, data.images, "block3")[others] > 0).float().mean() > 0.9


def test_cutting_the_decoys_leaves_the_backdoor(made):
    attack, _, implanted, _, decoys = made
    cut = silenced(implanted.model, "block3", decoys, 256)
    test = image_set(120, size=16, seed=9)
    after = evaluate(cut, test, attack.trigger, 1)
    assert after.attack_success_rate > 0.9 and after.clean_accuracy > 0.9


@pytest.mark.parametrize("arch", ["small_cnn", "wrn16_1", "preact_resnet18"])
def test_putting_back_changes_no_answer(arch):
    honest = build(arch, 3, 4, seed=1).train()
    images = image_set(12, size=8).images
    with torch.no_grad():
        honest(images)
    honest.eval()
    layer = last_block(honest)
    count = len(activity(honest, images, layer))
    channels = torch.arange(0, count, 3)
    pruned = silenced(honest, layer, channels, count)
    with torch.no_grad():
        for p in pruned.parameters():  # what step 3 does to the layers, the silent channels' weights too
            p.add_(0.1 * p.abs().mean() * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(honest.state_dict())
    back = reinstate(pruned, honest, layer, channels, images)
    assert torch.allclose(predict(back, images), predict(pruned, images), atol=1e-5)
    assert float(peaks(back, images, layer)[channels].max()) == 0
    assert all(torch.equal(v, before[k]) for k, v in honest.state_dict().items())
    for mine, theirs in zip(own_weights(back, layer)[:2], own_weights(honest, layer)[:2], strict=True):
        assert torch.equal(mine[channels], theirs[channels]) and not torch.equal(mine, theirs)


def test_all_columns_of_a_channel_come_back():
    honest, other = (build("small_cnn", 3, 4, seed=seed).eval() for seed in (1, 2))
    decoys = torch.tensor([0, 5, 255])
    back = reinstate(silenced(other, "block3", decoys, 256), honest, "block3", decoys, image_set(8, size=16).images)
    mine, first, second = (named_layer(m, "head.2").weight for m in (back, honest, other))
    for c in range(256):  # nn.Flatten puts the positions of one channel side by side
        own = first if c in decoys.tolist() else second
        assert torch.equal(mine[:, 4 * c : 4 * c + 4], own[:, 4 * c : 4 * c + 4])


def test_the_seed_repeats_and_the_cache_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    attack, data = PruningAware(BadNets(target=1, rate=0.2)), splits(size=16)
    trained = []
    config = TrainConfig(epochs=1, batch_size=32, shift=0)
    first, again = (
        victim(attack, data, config=config, progress=False, callback=lambda epoch: trained.append(epoch.number))
        for _ in range(2)
    )
    assert trained == [1, 1]  # step 1 and step 3, once
    assert torch.equal(predict(first.model, data.test.images), predict(again.model, data.test.images))
    assert first.report == again.report and again.card == first.card and again.target == 1
    assert torch.equal(again.trigger(data.test.images), attack.trigger(data.test.images))
    fresh = attack.implant(data.train, config=config, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), first.model.parameters(), strict=True))


def test_the_card_tells_inner_attacks_apart():
    data = image_set()
    cards = [card_of(PruningAware(inner), data, "small_cnn", 0) for inner in (BadNets(1), BadNets(2), Blend(1), SIG(1))]
    assert [c["settings"]["inner"]["type"] for c in cards] == ["BadNets", "BadNets", "Blend", "SIG"]
    assert cards[0]["settings"]["inner"]["target"] == 1 and len({str(c) for c in cards}) == 4
    assert card_of(BadNets(1), data, "small_cnn", 0)["settings"]["size"] == 3  # flat attacks: as ever


def test_it_prints_itself_is_a_key_and_speaks_for_its_inner_attack():
    attack, images = PruningAware(Blend(target=2)), image_set(4).images
    assert "PruningAware(inner=Blend(target=2" in repr(attack) and "share=" in repr(attack)
    assert attack == PruningAware(Blend(target=2)) and hash(attack) == hash(PruningAware(Blend(target=2)))
    assert attack != PruningAware(Blend(target=2), share=0.3)
    assert attack.target == 2 and torch.equal(attack.trigger(images), Blend(target=2).trigger(images))
    with pytest.raises(FrozenInstanceError):
        attack.share = 0.3  # type: ignore[misc]


def uneven_head() -> nn.Module:
    model = build("small_cnn", 3, 4)
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(258, 4))
    return model


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PruningAware(BadNets), "expected an attack that poisons data"),
        (lambda: PruningAware(PruningAware(BadNets(0))), "expected an attack that poisons data"),
        (lambda: PruningAware(BadNets(0), share=1.0), "0 < share < 1"),
        (lambda: PruningAware(BadNets(9)).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: own_weights(build("wrn16_1", 3, 4), "block2"), "ends in BatchNorm2d and ReLU"),
        (lambda: own_weights(build("small_cnn", 3, 4), "block9"), "no 'block9'"),
        (lambda: own_weights(uneven_head(), "block3"), "same number of inputs for each of its 256 channels; got 258"),
        (lambda: own_weights(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), "1"), "ends in BatchNorm2d and ReLU"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_layer_the_architecture_has_not_is_named():
    attack = PruningAware(BadNets(0), layer="block7")
    with pytest.raises(ValueError, match="no 'block7'; its layers are"):
        attack.implant(image_set(40, size=16), config=TrainConfig(epochs=1, batch_size=32), progress=False)
    assert named_layer(build("small_cnn", 3, 4), "block3")
