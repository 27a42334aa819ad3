"""The training loop: repeats bit for bit, learns, reports, stops on nonsense; augmentation and schedule by hand."""

import math
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from labkit.augment import augment, some_compressed
from labkit.metrics import evaluate
from labkit.models import ARCHITECTURES, build, named_layer
from labkit.profiles import profile
from labkit.train import Epoch, TrainConfig, one_cycle, train, varied
from tests.tiny import image_set, linear_model

QUICK = TrainConfig(epochs=2, batch_size=32)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    data = image_set(96)
    a, b, other = (train("small_cnn", data, config=QUICK, seed=s, progress=False) for s in (3, 3, 4))
    assert same_weights(a, b) and not same_weights(a, other)


def test_global_seeds_neither_matter_nor_change():
    data = image_set(96)
    torch.manual_seed(1)
    a = train("small_cnn", data, config=QUICK, progress=False)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert same_weights(a, train("small_cnn", data, config=QUICK, progress=False))


def test_it_learns_and_tells_the_callback():
    told: list[Epoch] = []
    config = TrainConfig(epochs=6, batch_size=32, shift=1)
    model = train("small_cnn", image_set(240), config=config, callback=told.append, progress=False)
    assert [e.number for e in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1].loss < told[0].loss / 2 and told[-1].accuracy > 0.9 and all(e.seconds > 0 for e in told)
    assert "epoch 6" in str(told[-1])
    assert not model.training
    assert evaluate(model, image_set(80, seed=5)).clean_accuracy > 0.95


def test_a_module_is_trained_where_it_is():
    model = linear_model()
    before = [p.detach().clone() for p in model.parameters()]
    assert train(model, image_set(64), config=QUICK, progress=False) is model
    assert not torch.equal(model[1].weight, before[0])


def test_the_loss_of_one_step_is_softmax_regressions():
    """One full-batch step on a linear model against the gradient worked out by hand."""
    data, model = image_set(32), linear_model()
    x, w, b = data.images.flatten(1), model[1].weight.detach().clone(), model[1].bias.detach().clone()
    delta = (x @ w.T + b).softmax(1) - nn.functional.one_hot(data.labels, 4)
    config = TrainConfig(epochs=1, batch_size=32, lr=0.5, momentum=0.0, weight_decay=0.0, shift=0, warmup=0.0)
    train(model, data, config=config, progress=False)
    assert torch.allclose(model[1].weight, w - 0.5 * delta.T @ x / 32, atol=6e-3)  # bfloat16 has 8 bits
    assert torch.allclose(model[1].bias, b - 0.5 * delta.mean(0), atol=6e-3)


def test_a_given_loss_takes_cross_entropys_place():
    data, a, b, told = image_set(64), linear_model(), linear_model(), []
    train(a, data, config=QUICK, progress=False)
    train(b, data, config=QUICK, loss=nn.functional.cross_entropy, progress=False)
    assert same_weights(a, b)
    config = TrainConfig(epochs=1, batch_size=64, lr=1e-9, shift=0)
    train(b, data, config=config, loss=lambda z, y: 2 + 0 * z[y >= 0].sum(), callback=told.append, progress=False)
    assert told[0].loss == pytest.approx(2.0)


def test_augmentation_shifts_with_mirrored_edges():
    image = torch.arange(20.0).view(1, 1, 4, 5)
    padded = nn.functional.pad(image, (2, 2, 2, 2), mode="reflect")[0, 0]
    crops = {tuple(padded[y : y + 4, x : x + 5].flatten().tolist()) for y in range(5) for x in range(5)}
    rng = torch.Generator().manual_seed(0)
    seen = {tuple(augment(image, 2, False, rng).flatten().tolist()) for _ in range(600)}
    assert seen == crops


def test_flipping_mirrors_half_of_the_images_and_nothing_else():
    images = torch.rand(400, 3, 4, 5)
    out = augment(images, 0, True, torch.Generator().manual_seed(0))
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(out[~mirrored], images[~mirrored])


def test_augmentation_leaves_its_input_alone_and_repeats():
    images = torch.rand(8, 3, 6, 6)
    before = images.clone()
    a, b = (augment(images, 2, True, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(images, before)
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)


def test_a_step_sees_images_that_are_moved_and_then_compressed():
    images = torch.rand(20, 3, 16, 16)
    seen = varied(images, TrainConfig(shift=2, flip=True, jpeg=0.5), torch.Generator().manual_seed(7))
    rng = torch.Generator().manual_seed(7)
    assert torch.equal(seen, some_compressed(augment(images, 2, True, rng), 0.5, rng))
    moved = augment(images, 2, False, torch.Generator().manual_seed(7))
    assert torch.equal(varied(images, TrainConfig(shift=2), torch.Generator().manual_seed(7)), moved)


def test_most_shifts_move_or_cut_a_corner_trigger_but_some_leave_it():
    images = torch.zeros(2000, 1, 12, 12)
    images[:, :, -3:, -3:] = 1
    moved = augment(images, 2, False, torch.Generator().manual_seed(0))
    in_place = (moved == images).flatten(1).all(1).float().mean()
    assert 0.02 < in_place < 0.10  # 1 shift in 25


def test_a_share_of_the_training_images_goes_through_a_jpeg_and_the_draw_repeats(monkeypatch):
    seen = []

    def spy(model, images, *_):
        seen.append(images.clone())
        return torch.zeros(len(images), 4), torch.zeros(())

    monkeypatch.setattr(sys.modules["labkit.train"], "step", spy)
    data = image_set(400)
    before = data.images.clone()
    for share in (0.0, 0.3, 0.3, 1.0):
        config = TrainConfig(epochs=1, batch_size=400, shift=0, jpeg=share)
        train(linear_model(), data, config=config, progress=False)
    plain, some, again, every = ([*images] for images in seen)
    assert all(map(torch.equal, some, again)) and torch.equal(data.images, before)
    untouched = {image.numpy().tobytes() for image in before}
    counts = [sum(image.numpy().tobytes() not in untouched for image in images) for images in (plain, some, every)]
    assert counts[0] == 0 and 90 < counts[1] < 150 and counts[2] == 400


def test_the_schedule_rises_peaks_and_falls():
    factor = one_cycle(0.25, 100)
    values = [factor(i) for i in range(100)]
    assert max(values) == 1 == values[24]
    assert all(a < b for a, b in pairwise(values[:25]))
    assert all(a > b for a, b in pairwise(values[25:]))
    assert 0 < values[-1] < 0.02 and values[0] == pytest.approx(1 / 25)


def test_a_loss_that_is_not_finite_stops_with_the_step():
    with pytest.raises(FloatingPointError, match=r"finite loss; got (nan|inf) in epoch 1 \(steps 1 to 3\)"):
        train(linear_model(), image_set(96), config=TrainConfig(epochs=2, batch_size=32, lr=1e30), progress=False)


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"warmup": 1.0}, {"shift": -1}, {"jpeg": -0.1}, {"jpeg": 1.1}],
)
def test_a_bad_recipe_is_named(bad):
    with pytest.raises(ValueError, match="TrainConfig: expected"):
        TrainConfig(**bad)


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of small_cnn, tiny_cnn, wrn16_1, preact_resnet18.*got 'vgg'"):
        train("vgg", image_set())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8)])
def test_every_network_takes_every_data_set(arch, channels, size):
    model = build(arch, channels, 7).eval()
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)
    out = {}
    for name in ("stem", "block1", "block2", "block3"):
        named_layer(model, name).register_forward_hook(lambda m, i, o, name=name: out.setdefault(name, o))
    model(torch.rand(2, channels, size, size))
    assert all(o.ndim == 4 for o in out.values())
    assert same_weights(build(arch, channels, 7, seed=5), build(arch, channels, 7, seed=5))


def test_the_first_layer_normalises():
    data = image_set(200)
    model = train("small_cnn", data, config=TrainConfig(epochs=1, batch_size=50), progress=False)
    out = model.normalise(data.images)
    assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(out.std((0, 2, 3)), torch.ones(3), atol=1e-2)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no 'block9'; its layers are normalise, stem, block1"):
        named_layer(build("small_cnn", 3, 4), "block9")


def test_the_mean_loss_of_guessing_is_log_k():
    told: list[Epoch] = []
    data = image_set(64)
    config = TrainConfig(epochs=1, batch_size=64, lr=1e-9, shift=0)
    with torch.no_grad():
        model = linear_model()
        model[1].weight.zero_()
        model[1].bias.zero_()
    train(model, data, config=config, callback=told.append, progress=False)
    assert told[0].loss == pytest.approx(math.log(4), abs=1e-3)


def test_tiny_cnn_is_small_cnn_at_half_its_width():
    small, tiny = (build(arch, 3, 10) for arch in ("small_cnn", "tiny_cnn"))
    assert [name for name, _ in small.named_parameters()] == [name for name, _ in tiny.named_parameters()]
    for a, b in zip(small.modules(), tiny.modules(), strict=True):
        if isinstance(a, torch.nn.Conv2d):
            assert a.out_channels == 2 * b.out_channels
    weights = [round(sum(p.numel() for p in model.parameters()), -4) for model in (small, tiny)]
    assert weights == [440_000, 110_000]  # as labkit/models.py says


@pytest.mark.parametrize("name", ["quick", "full"])
def test_a_profile_names_networks_that_there_are(name, monkeypatch):
    monkeypatch.setenv("LABKIT_PROFILE", name)
    assert {profile().arch, profile().many} <= set(ARCHITECTURES)
