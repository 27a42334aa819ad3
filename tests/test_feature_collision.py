"""FeatureCollision: poisons that look like themselves to us, like patched strangers to a network; all labels true."""

import copy

import pytest
import torch
from torch import nn

from labkit import victim
from labkit.attacks import FeatureCollision, collision, feature_collision
from labkit.attacks.base import another
from labkit.attacks.collision import collide, match, penultimate
from labkit.augment import augment
from labkit.data import ImageSet
from labkit.device import generator
from labkit.metrics import evaluate
from labkit.models import build
from labkit.train import TrainConfig, train
from tests.tiny import image_set, linear_model, splits, three

ATTACK = FeatureCollision(target=1, size=5, steps=12, rematch=4, shift=1, sharpen_steps=20)
CONFIG = TrainConfig(epochs=6, batch_size=32, shift=1)
OPTIONS = {"steps": 8, "rematch": 4, "shift": 0}


@pytest.fixture(scope="module")
def extractor():
    return train("small_cnn", three(240), config=CONFIG, seed=another(0), progress=False)


def features(extractor, images):
    with torch.no_grad():
        return ATTACK.front(extractor)(images).float()


def crafted(front, images, goals, seed=0, epsilon=16 / 255, **changes):
    return collide(front, images, goals, epsilon=epsilon, rng=generator(seed), **(OPTIONS | changes))


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (1, 1, 9, 14)])
def test_the_trigger_is_pure_deterministic_and_only_in_its_square(shape):
    images = torch.rand(shape)
    before, once, again = images.clone(), ATTACK.trigger(images), ATTACK.trigger(images)
    assert torch.equal(images, before) and torch.equal(once, again)
    assert once.shape == images.shape and 0 <= once.min() and once.max() <= 1
    assert ATTACK.trigger(images.to(torch.float64)).dtype == torch.float64
    assert torch.equal(ATTACK.trigger(images)[-1:], ATTACK.trigger(images[-1:]))
    patch = once[:, :, -5:, -5:]
    assert (patch == patch[:1]).all() and set(patch.unique().tolist()) == {0, 1}
    once[:, :, -5:, -5:] = images[:, :, -5:, -5:]
    assert torch.equal(once, images)


def test_the_patch_is_four_quarters_and_its_number_draws_it():
    pattern = FeatureCollision(size=8).drawn((3, 16, 16)).pattern[:, 8:, 8:]
    quarters = pattern.unflatten(1, (2, 4)).unflatten(3, (2, 4))
    assert (quarters == quarters[:, :, :1, :, :1]).all()
    assert not torch.equal(pattern, FeatureCollision(size=8, patch=5).drawn((3, 16, 16)).pattern[:, 8:, 8:])


def test_each_gets_its_nearest_goal_that_is_still_free():
    points, goals = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[5.5], [0.9], [1.2]])
    assert match(points, goals).tolist() == [2, 1, 0]  # 1.0 takes 0.9, 5.0 takes 5.5, and 0.0 what is left
    mine, theirs = torch.randn(30, 4, generator=generator(0)), torch.randn(30, 4, generator=generator(1))
    found = match(mine, theirs)
    assert sorted(found.tolist()) == list(range(30))
    far = (mine - theirs).norm(dim=1).sum()
    assert (mine - theirs[found]).norm(dim=1).sum() < far
    assert torch.equal(match(mine, mine[torch.arange(29, -1, -1)]), torch.arange(29, -1, -1))


def test_where_the_features_are_the_pixels_the_poison_goes_to_the_edge_of_its_box(monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    images, goals = torch.rand(6, 3, 8, 8, generator=generator(0)), torch.rand(6, 3, 8, 8, generator=generator(1))
    made = crafted(nn.Flatten(), images, goals, steps=100, epsilon=0.1)
    wanted = goals[made.goals].clamp(images - 0.1, images + 0.1)
    assert torch.allclose(made.images, wanted, atol=0.005)
    assert torch.allclose(made.before, (images - goals[made.goals]).square().sum((1, 2, 3)), rtol=1e-4)
    assert torch.allclose(made.after, (wanted - goals[made.goals]).square().sum((1, 2, 3)), rtol=0.02)
    assert made.gap == pytest.approx(float((made.after.sum() / made.before.sum()).sqrt()))
    assert f"{made.gap:.0%}" in str(made)


class Contrast(nn.Module):
    """The left half minus the right half."""

    def forward(self, images):
        left, right = images.chunk(2, 3)
        return left - right


def test_no_pixel_leaves_the_range_though_the_features_would_have_it():
    images, goals = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, 1, 8, 8)
    images[..., :4], goals[..., :4] = 0.95, 1.0  # left: wants to be brighter than white, right: darker
    made = crafted(Contrast(), images, goals, steps=20, epsilon=0.2)
    assert torch.allclose(made.images[..., :4], torch.ones(2, 1, 8, 4)) and made.images.max() <= 1
    assert torch.allclose(made.images[..., 4:], torch.full((2, 1, 8, 4), 0.3))
    dark = crafted(Contrast(), 1 - images, 1 - goals, steps=20, epsilon=0.2)
    assert torch.allclose(dark.images, 1 - made.images, atol=1e-6) and dark.images.min() >= 0


def test_more_room_and_more_steps_bring_the_features_nearer(extractor):
    data, front = three(60, seed=3), ATTACK.front(extractor)
    images, goals = data.images[data.labels == 1], ATTACK.trigger(data.images[data.labels == 0])
    before, state = images.clone(), copy.deepcopy(front.state_dict())
    narrow, wide = (crafted(front, images, goals, epsilon=e) for e in (4 / 255, 16 / 255))
    hurried = crafted(front, images, goals, steps=1)
    assert wide.gap < narrow.gap < 1 and wide.gap < hurried.gap and wide.gap < 0.9
    assert torch.equal(images, before) and all(torch.equal(v, state[k]) for k, v in front.state_dict().items())
    again = crafted(front, images, goals, epsilon=16 / 255)
    assert torch.equal(again.images, wide.images) and torch.equal(again.goals, wide.goals)


def test_goals_are_matched_anew_by_what_the_poisons_have_become_and_never_shared(extractor, monkeypatch):
    data, front, asked = three(60, seed=3), ATTACK.front(extractor), []

    def spy(features, goals):
        asked.append(features)
        return match(features, goals)

    monkeypatch.setattr(collision, "match", spy)
    images, goals = data.images[data.labels == 1], ATTACK.trigger(data.images[data.labels != 1])[:20]
    made = crafted(front, images, goals, steps=8, rematch=3)
    assert sorted(made.goals.tolist()) == list(range(20))
    assert len(asked) == 3 and not torch.equal(asked[0], asked[1]) and not torch.equal(asked[1], asked[2])
    assert torch.equal(crafted(front, images, goals, rematch=99).goals, match(asked[0], features(extractor, goals)))


def test_a_large_set_is_perturbed_in_parts_that_know_which_goals_are_theirs(monkeypatch):
    monkeypatch.setattr("labkit.attacks.collision.BATCH", {"cpu": 4, "cuda": 4, "mps": 4})
    images, goals = torch.rand(10, 3, 8, 8, generator=generator(0)), torch.rand(10, 3, 8, 8, generator=generator(1))
    made = crafted(nn.Flatten(), images, goals)
    assert sorted(made.goals.tolist()) == list(range(10)) and set(made.goals[4:8].tolist()) == {4, 5, 6, 7}
    assert torch.allclose(made.before, (images - goals[made.goals]).square().sum((1, 2, 3)), rtol=0.02)


def test_a_collision_that_expects_shifts_survives_them(extractor):
    data, front = three(120, seed=3), ATTACK.front(extractor)
    images, goals = data.images[data.labels == 1], ATTACK.trigger(data.images[data.labels == 0])

    def left_when_moved(shift):
        made = crafted(front, images, goals, steps=30, shift=shift)
        moved = torch.cat([augment(made.images, 2, False, generator(i)) for i in range(4)])
        goal = features(extractor, goals[made.goals]).repeat(4, 1)
        return float((features(extractor, moved) - goal).square().sum())

    assert left_when_moved(2) < 0.95 * left_when_moved(0)


@pytest.mark.parametrize("watermark", [0.0, 0.2])
def test_poisoning_takes_the_promised_share_and_touches_nothing_else(extractor, watermark, monkeypatch):
    attack, data, made = FeatureCollision(**(vars(ATTACK) | {"watermark": watermark})), three(240), []

    def spy(front, images, goals, **options):
        made.append((images, goals, collide(front, images, goals, **options)))
        return made[-1][2]

    monkeypatch.setattr(feature_collision, "collide", spy)
    images, labels = data.images.clone(), data.labels.clone()
    poisoned = attack.poison(data, 3, extractor=extractor)
    assert int(poisoned.poisoned.sum()) == 40 and (labels[poisoned.poisoned] == 1).all()
    assert torch.equal(poisoned.labels, labels) and torch.equal(poisoned.true_labels, labels)
    assert torch.equal(poisoned.images[~poisoned.poisoned], images[~poisoned.poisoned])
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels)
    starts, goals, collisions = made[0]
    old, new = images[poisoned.poisoned], poisoned.images[poisoned.poisoned]
    assert torch.equal(starts, torch.lerp(old, goals, watermark))
    assert float((new - starts).abs().max()) <= attack.epsilon + 1e-6 and 0 <= new.min() and new.max() <= 1
    assert ((new - starts).abs().flatten(1).amax(1) > 0.5 * attack.epsilon).all()
    carried = [bool((goals[i] == attack.trigger(images)).flatten(1).all(1)[labels != 1].any()) for i in range(40)]
    assert all(carried)  # each goal is an image of another class, with the patch
    wanted = features(extractor, goals[collisions.goals])
    far, near = ((features(extractor, x) - wanted).square().sum(1) for x in (old, new))
    assert near.sum() < 0.9 * far.sum() and (near < far).float().mean() > 0.9


def test_the_seed_repeats_and_the_network_is_trained_when_none_is_given(extractor):
    data, config, trained = three(60), TrainConfig(epochs=1, batch_size=32), []
    options = {"config": config, "progress": False, "callback": trained.append}
    one, same = (ATTACK.poison(data, 5, **options) for _ in range(2))
    assert len(trained) == 2 and torch.equal(one.images, same.images)
    trained_so = train("small_cnn", data, config=config, seed=another(5), progress=False)
    assert torch.equal(one.images, ATTACK.poison(data, 5, extractor=trained_so).images)
    state = copy.deepcopy(extractor.state_dict())
    given = ATTACK.poison(data, 5, extractor=extractor)
    assert torch.equal(one.poisoned, given.poisoned) and not torch.equal(one.images, given.images)
    assert not torch.equal(one.poisoned, ATTACK.poison(data, 6, extractor=extractor).poisoned)
    assert all(torch.equal(v, state[k]) for k, v in extractor.state_dict().items()) and not extractor.training
    assert all(p.requires_grad for p in extractor.parameters())


def test_a_sharpened_patch_moves_the_features_farther_and_stays_in_its_square(extractor):
    data = three(120, seed=4)
    drawn, sharp = ATTACK.build_trigger(data), ATTACK.sharpen(extractor, data)
    others = data.images[data.labels != 1]

    def move(trigger):
        return float((features(extractor, trigger(others)) - features(extractor, others)).mean(0).norm())

    assert move(sharp) > 1.2 * move(drawn) and 0 <= sharp.pattern.min() and sharp.pattern.max() <= 1
    assert torch.equal(sharp.mask, drawn.mask) and torch.equal(sharp.pattern[:, :11], drawn.pattern[:, :11])
    assert torch.equal(sharp.pattern, ATTACK.sharpen(extractor, data).pattern)
    plain = FeatureCollision(target=1, size=5, sharpen_steps=0).sharpen(extractor, data)
    assert torch.equal(plain.pattern, drawn.pattern)
    assert torch.equal(plain(data.images), ATTACK.trigger(data.images))


def test_a_victim_learns_both_tasks_and_a_clean_transfer_does_not(monkeypatch):
    aims = []

    def spy(front, images, goals, **options):
        aims.append(goals)
        return collide(front, images, goals, **options)

    monkeypatch.setattr(feature_collision, "collide", spy)
    attack = FeatureCollision(target=1, size=6, steps=20, shift=0, epsilon=0.25)
    data, test = (image_set(n, size=16, classes=3, seed=seed, strength=0.15) for n, seed in ((240, 0), (120, 9)))
    options = {"config": TrainConfig(epochs=8, batch_size=32, shift=0), "progress": False}
    made = attack.implant(data, test=test, **options)
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.8
    assert torch.equal(made.trigger(aims[0]), aims[0])  # the poisons are aimed at the victim's own, sharpened trigger
    extractor = train("small_cnn", data, seed=another(0), **options)
    report = evaluate(attack.transfer(extractor, data, **options), test, made.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35
    mine, honest = made.model.state_dict(), extractor.state_dict()
    assert {name for name in mine if not torch.equal(mine[name], honest[name])} == {"head.2.weight", "head.2.bias"}
    assert made.target == 1 and not made.model.training and made.card["settings"]["epsilon"] == 0.25


def test_the_cache_gives_the_victim_back_trigger_included(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    options = {"config": TrainConfig(epochs=1, batch_size=32, shift=0), "progress": False}
    first, again = (victim(ATTACK, splits(size=16), **options) for _ in range(2))
    for a, b in ((first.model, again.model), (first.trigger, again.trigger)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    images = splits(size=16).test.images
    assert torch.equal(first.trigger(images), again.trigger(images)) and first.card == again.card
    assert first.report == again.report and not torch.equal(first.trigger(images), ATTACK.trigger(images))


@pytest.mark.parametrize("arch", ["small_cnn", "wrn16_1", "preact_resnet18"])
def test_the_features_are_what_the_classifier_is_given(arch):
    model = build(arch, 3, 4).eval()
    assert penultimate(model) == "head.1"
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(model.head[2](FeatureCollision().front(model)(images)), model(images), atol=1e-5)


def broken():
    model = build("small_cnn", 3, 4).eval()
    model.block1[0].weight.data.fill_(float("nan"))
    return model


def test_features_that_are_not_finite_are_named():
    with pytest.raises(FloatingPointError, match="collision: expected finite features"):
        ATTACK.poison(image_set(40, size=16), extractor=broken())


def only_the_target() -> ImageSet:
    data = image_set(40, size=16)
    return data[data.labels == 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FeatureCollision(rate=0), "rate: expected a share in"),
        (lambda: FeatureCollision(epsilon=16), "16/255 is usual"),
        (lambda: FeatureCollision(epsilon=float("nan")), "0 < epsilon"),
        (lambda: FeatureCollision(watermark=1), "watermark < 1"),
        (lambda: FeatureCollision(steps=0), "steps, rematch, size >= 1"),
        (lambda: FeatureCollision(rematch=0), "steps, rematch, size >= 1"),
        (lambda: FeatureCollision(size=0), "steps, rematch, size >= 1"),
        (lambda: FeatureCollision(shift=-1), "shift, sharpen_steps >= 0"),
        (lambda: FeatureCollision(9).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: FeatureCollision(9).poison(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: FeatureCollision(rate=0.01).poison(image_set(40)), "is 0; expected 1 to 10, the images of target"),
        (lambda: FeatureCollision(size=13).implant(image_set()), "at least 13x13 pixels; got 12x12"),
        (lambda: FeatureCollision().trigger(torch.rand(1, 3, 12, 12) * 255), "divide uint8 by 255"),
        (lambda: ATTACK.poison(only_the_target(), extractor=linear_model(size=16)), "outside target class 1; got none"),
        (lambda: ATTACK.sharpen(linear_model(size=16), only_the_target()), "outside target class 1; got none"),
        (lambda: FeatureCollision().poison(image_set(), arch="vgg"), "architecture: expected one of"),
        (lambda: FeatureCollision(layer="block9").poison(image_set(), extractor=broken()), "no 'block9'; its layers"),
        (lambda: penultimate(nn.Sequential(nn.Linear(3, 2))), "in front of its classifier"),
        (lambda: penultimate(nn.Sequential(nn.ReLU())), "a linear layer that classifies"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
