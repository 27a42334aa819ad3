"""Mode connectivity: the curves by hand, gradients to the bend alone, batch normalisation, and a path between twins."""

import copy
import sys

import pytest
import torch
from torch import nn

from labkit.defenses import mode_connectivity
from labkit.defenses.mode_connectivity import Path, bezier, middlemost, polygon, quicker, reestimate
from labkit.metrics import evaluate, predict
from labkit.models import build
from labkit.train import TrainConfig, train
from tests.tiny import image_set, linear_model

SHORT = TrainConfig(epochs=3, batch_size=20, lr=0.05, shift=0)


def trained(seed: int = 1) -> nn.Module:
    """Fresh weights, but normalisation statistics as if it had been trained."""
    model = build("small_cnn", 3, 4, seed=seed).train()
    with torch.no_grad():
        for _ in range(3):
            model(image_set(40, size=16).images)
    return model.eval()


def state(model: nn.Module) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def twins() -> tuple[nn.Module, nn.Module]:
    """Two networks that compute the same, with the hidden neurons of one in reverse order: half-way they collide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 24), nn.ReLU(), nn.Linear(24, 4))
    config = TrainConfig(epochs=8, batch_size=32, lr=0.02, shift=0)
    train(model, image_set(400), config=config, progress=False).zero_grad()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight.copy_(model[1].weight.flip(0)), other[1].bias.copy_(model[1].bias.flip(0))
        other[3].weight.copy_(model[3].weight.flip(1))
    return model, other


# --- curves -----------------------------------------------------------------------------------------------------------


def test_points_of_the_curves_by_hand():
    start, bend, end = torch.tensor([0.0, 8.0]), torch.tensor([4.0, 0.0]), torch.tensor([16.0, 8.0])
    assert bezier(start, bend, end, 0.25).tolist() == [2.5, 5.0]  # 9/16 start + 6/16 bend + 1/16 end
    assert bezier(start, bend, end, 0.5).tolist() == [6.0, 4.0]
    assert polygon(start, bend, end, 0.25).tolist() == [2.0, 4.0]
    assert polygon(start, bend, end, 0.75).tolist() == [10.0, 4.0]
    assert torch.equal(polygon(start, bend, end, 0.5), bend)


@pytest.mark.parametrize("curve", [bezier, polygon])
def test_curves_begin_and_end_at_the_ends_and_can_be_walked_backwards(curve):
    start, bend, end = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(curve(start, bend, end, 0.0), start) and torch.equal(curve(start, bend, end, 1.0), end)
    for t in (0.1, 0.5, 0.8):
        assert torch.allclose(curve(start, bend, end, t), curve(end, bend, start, 1 - t))
        assert torch.allclose(curve(start, start, start, t), start)
        assert torch.allclose(curve(start, (start + end) / 2, end, t), start.lerp(end, t))  # bend half-way: a line


# --- the path ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [bezier, polygon])
def test_the_ends_are_the_given_models_exactly(curve):
    a, b, images = trained(1), trained(2), image_set(20, size=16, seed=4).images
    path = Path(a, b, curve)
    assert same(state(path.at(0, images)), state(a)) and same(state(path.at(1.0, images)), state(b))
    assert torch.equal(predict(path.at(1, images), images), predict(b, images))
    assert all(p.requires_grad for t in (0, 0.3, 1) for p in path.at(t, images).parameters())


def test_a_point_is_the_curves_in_every_weight():
    a, b, images = trained(1), trained(2), image_set(20, size=16).images
    path = Path(a, b)
    with torch.no_grad():
        for p in path.bend:
            p.normal_(generator=torch.Generator().manual_seed(3))
    at = path.at(0.3, images)
    points = zip(at.parameters(), a.parameters(), path.bend, b.parameters(), strict=True)
    assert all(torch.allclose(p, 0.49 * s + 0.42 * m + 0.09 * e, atol=1e-6) for p, s, m, e in points)


def test_fixed_numbers_run_straight_from_end_to_end():
    a, b = trained(1), trained(2)
    a.normalise.mean.fill_(0.5), b.normalise.mean.fill_(0.7)
    at = Path(a, b).at(0.25, image_set(20, size=16).images)
    assert torch.allclose(at.normalise.mean, torch.full((1, 3, 1, 1), 0.55))


def test_only_the_bend_gets_gradients_and_it_gets_the_chain_rules(monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    data = image_set(16)
    path = Path(linear_model(seed=1), linear_model(seed=2)).eval()  # eval: t = 1/2
    nn.functional.cross_entropy(path(data.images), data.labels).backward()
    assert [n for n, p in path.named_parameters() if p.grad is not None] == ["bend.0", "bend.1"]
    plain = path.at(0.5, data.images)
    nn.functional.cross_entropy(plain(data.images), data.labels).backward()
    for p, q in zip(path.bend, plain.parameters(), strict=True):
        assert torch.allclose(p.grad, 2 * 0.5 * 0.5 * q.grad, atol=1e-7)  # d phi / d bend = 2 t (1 - t)


@pytest.mark.parametrize(("curve", "factor"), [(bezier, 4.0), (polygon, 1.0)])
def test_a_step_moves_the_middle_as_far_as_it_would_move_a_model(curve, factor, monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    data, model = image_set(32), linear_model(seed=1)
    config = TrainConfig(epochs=1, batch_size=32, lr=0.5, momentum=0.0, weight_decay=0.0, shift=0, warmup=0.0)
    path = Path(model, model, lambda start, bend, end, t: curve(start, bend, end, 0.5))  # every batch at the middle
    assert quicker(config, curve).lr == factor * config.lr
    train(path, data, config=quicker(config, path.curve), progress=False)
    moved = path.weights(0.5)
    train(model, data, config=config, progress=False)
    assert all(torch.allclose(moved[name], p, atol=1e-6) for name, p in model.named_parameters())
    assert not torch.allclose(moved["1.weight"], path.start[1].weight)


def test_a_curve_that_the_bend_does_not_move_in_the_middle_keeps_the_rate():
    assert quicker(SHORT, lambda start, bend, end, t: (1 - t) * start + t * end) == SHORT


def test_training_moves_the_bend_alone():
    a, b = trained(1), trained(2)
    path = Path(a, b)
    bend = [p.detach().clone() for p in path.bend]
    train(path, image_set(60, size=16), config=SHORT, progress=False)
    assert same(state(path.start), state(a)) and same(state(path.end), state(b))
    assert all(torch.equal(p, q) for p, q in zip(path.network.parameters(), a.parameters(), strict=True))
    assert all(not torch.equal(p, q) for p, q in zip(path.bend, bend, strict=True))


def test_t_is_drawn_evenly_for_each_batch(twins):
    seen = []
    path = Path(*twins, lambda start, bend, end, t: (seen.append(t), bezier(start, bend, end, t))[1], seed=3).train()
    for _ in range(200):
        path(image_set(2).images)
    drawn = torch.tensor(seen[:: len(path.bend)])
    assert len(drawn) == len(drawn.unique()) == 200 and 0 <= drawn.min() < 0.05 and 0.95 < drawn.max() <= 1
    assert abs(float(drawn.mean()) - 0.5) < 0.06


@pytest.mark.parametrize("curve", [bezier, polygon])
def test_a_trained_bend_goes_round_the_hill_between_twins(twins, curve):
    test, clean = image_set(200, seed=5), image_set(200, seed=2)
    straight = Path(*twins).at(0.5, clean.images)  # before training the bend is half-way: a line
    config = TrainConfig(epochs=20, batch_size=20, lr=0.05, shift=0)
    result = mode_connectivity(
        twins[0], clean, other=twins[1], curve=curve, grid=[0, 0.5, 1], config=config, progress=False
    )
    loss = [
        float(nn.functional.nll_loss(predict(m, test.images).log(), test.labels)) for m in (straight, result.at(0.5))
    ]
    assert evaluate(twins[1], test).clean_accuracy > 0.98
    assert loss[1] < 0.5 * loss[0]
    assert result.t == 0.5 and evaluate(result.model, test).clean_accuracy > 0.97


# --- batch normalisation ----------------------------------------------------------------------------------------------


def first_statistics(model: nn.Module, images) -> tuple:
    """What the first batch normalisation is given: mean and variance of each channel."""
    with torch.no_grad():
        said = model.stem[0](model.normalise(images))
    return said.mean((0, 2, 3)), said.var((0, 2, 3))


def test_statistics_are_those_of_the_images_for_the_weights_at_hand():
    model, images = trained(), image_set(40, size=16, seed=3).images
    with torch.no_grad():
        model.stem[0].weight.mul_(3.0)
    before = state(model)
    assert reestimate(model, images) is model and not any(part.training for part in model.modules())
    mean, variance = first_statistics(model, images)
    assert torch.allclose(model.stem[1].running_mean, mean, atol=0.02)  # bfloat16 has 8 bits
    assert torch.allclose(model.stem[1].running_var, variance, rtol=0.03, atol=0.01)
    changed = {k for k, v in state(model).items() if not torch.equal(v, before[k])}
    assert changed and all("running" in k or "num_batches" in k for k in changed)
    assert model.stem[1].momentum == 0.1


def test_every_batch_counts_alike(monkeypatch):
    monkeypatch.setitem(sys.modules["labkit.metrics"].BATCH, "cpu", 10)
    model, images = trained(), image_set(40, size=16, seed=3).images.clone()
    images[30:] *= 0.2  # the last batch is unlike the others
    reestimate(model, images)
    assert torch.allclose(model.stem[1].running_mean, first_statistics(model, images)[0], atol=0.02)


def test_points_between_the_ends_have_statistics_of_their_own():
    a, b, images = trained(1), trained(2), image_set(40, size=16, seed=3).images
    at = Path(a, b).at(0.5, images)
    assert torch.allclose(at.stem[1].running_mean, first_statistics(at, images)[0], atol=0.02)
    average = (a.stem[1].running_var + b.stem[1].running_var) / 2
    assert not torch.allclose(at.stem[1].running_var, average, rtol=0.1)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_middlemost_point_that_keeps_the_accuracy_is_taken():
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)
    for accuracy, drop, wanted in (
        ((0.9, 0.9, 0.9, 0.9, 0.9), 0.0, 0.5),
        ((0.9, 0.88, 0.5, 0.89, 0.9), 0.02, 0.75),
        ((0.9, 0.88, 0.5, 0.87, 0.9), 0.0, 0.0),
        ((0.9, 0.8, 0.7, 0.6, 0.91), 0.0, 1.0),
        ((0.1, 0.8, 0.7, 0.8, 0.1), 0.05, 0.25),
    ):
        assert middlemost(grid, torch.tensor(accuracy), drop) == wanted


def test_the_point_is_chosen_on_images_that_trained_nothing(monkeypatch):
    module, fitted, judged = sys.modules["labkit.defenses.mode_connectivity"], [], []
    real = {name: getattr(module, name) for name in ("train", "fine_tune", "evaluate")}
    monkeypatch.setattr(module, "train", lambda m, d, **o: (fitted.append(d), real["train"](m, d, **o))[1])
    monkeypatch.setattr(module, "fine_tune", lambda m, d, **o: (fitted.append(d), real["fine_tune"](m, d, **o))[1])
    monkeypatch.setattr(module, "evaluate", lambda m, d: (judged.append(d), real["evaluate"](m, d))[1])
    clean = image_set(40, size=16, seed=1)
    mode_connectivity(trained(), clean, config=SHORT, grid=[0, 1], progress=False)
    assert [len(d) for d in fitted] == [30, 30] and [len(d) for d in judged] == [10, 10]
    pixels = [{tuple(image.flatten().tolist()) for image in d.images} for d in (fitted[0], fitted[1], judged[0])]
    assert pixels[0] == pixels[1] and not pixels[0] & pixels[2]


def test_the_input_models_are_untouched_and_the_seed_repeats():
    a, b, clean = trained(1), trained(2), image_set(40, size=16, seed=1)
    before = state(a), state(b)
    options = {"other": b, "config": SHORT, "grid": [0.3, 0.5], "progress": False}
    one, two, three = (mode_connectivity(a, clean, seed=s, **options) for s in (2, 2, 4))
    assert same(before[0], state(a)) and same(before[1], state(b)) and not a.training and not b.training
    assert same(state(one.model), state(two.model)) and not same(state(one.model), state(three.model))
    assert not one.model.training and same(state(one.model), state(one.at(one.t)))
    assert torch.equal(one.accuracy, two.accuracy)


def test_ones_own_curve_is_used_at_points_that_the_seed_draws():
    drawn = {}
    for seed in (2, 4):
        seen = drawn.setdefault(seed, [])

        def curve(start, bend, end, t, seen=seen):
            seen.append(t)
            return polygon(start, bend, end, t)

        mode_connectivity(linear_model(), image_set(40), other=linear_model(seed=1), curve=curve, grid=[0], seed=seed,
                          config=SHORT, progress=False)  # fmt: skip
    two, four = (set(drawn[seed]) - {0.5} for seed in (2, 4))  # 1/2 is asked about first: how far the bend moves it
    assert len(two) == len(four) == 6 and not two & four  # 3 epochs of 2 batches


def test_the_record_holds_the_path_and_says_what_was_chosen():
    clean = image_set(40, size=16, seed=1)
    result = mode_connectivity(trained(), clean, config=SHORT, grid=[0, 0.5, 1], max_drop=1.0, progress=False)
    assert result.t == 0.5 and result.accuracy.shape == (3,) and len(result.history) == 3
    assert "t = 0.5 of 3 points" in str(result)
    assert same(state(result.at(0)), state(trained()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"other": build("wrn16_1", 3, 4).eval()}, "the same architecture; 'stem.0.weight' is"),
        ({"other": build("small_cnn", 3, 5).eval()}, r"'head.2.weight' is \(4, \d+\) in one and \(5, \d+\)"),
        ({"clean": image_set(3, size=16)}, "at least 4 images; got 3"),
        ({"clean": image_set(8, size=16)[:0]}, "at least 4 images; got 0"),
        ({"grid": [0, 1.1]}, r"points and max_drop in \[0, 1\]"),
        ({"grid": []}, r"points and max_drop in \[0, 1\]"),
        ({"max_drop": 2.0}, r"points and max_drop in \[0, 1\]; .* max_drop 2.0"),
    ],
)
def test_bad_input_is_named(change, words):
    given = {"model": trained(), "clean": image_set(40, size=16), "config": SHORT, "progress": False}
    with pytest.raises(ValueError, match=words):
        mode_connectivity(**(given | change))


def test_a_point_off_the_path_is_named():
    with pytest.raises(ValueError, match=r"0 \(start\) to 1 \(end\); got 1.5"):
        Path(trained(), trained(2)).at(1.5, image_set(8, size=16).images)


def test_a_loss_that_is_not_finite_stops():
    broken = trained(2)
    with torch.no_grad():
        list(broken.parameters())[-1].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        mode_connectivity(trained(), image_set(40, size=16), other=broken, config=SHORT, progress=False)
