"""DFST: a style as the trigger; neurons that it compromises, what excites them, and the rounds that train it away."""

import json
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from labkit import victim
from labkit.attacks import DFST, detoxify, dfst
from labkit.attacks.detoxify import apart, compromised, fires, mean_peaks, train_injector
from labkit.attacks.dfst import joined, with_styled
from labkit.attacks.style import Critic, Style, Styler, smoothed, train_style, with_height
from labkit.attacks.sunset import sunsets
from labkit.metrics import BATCH, evaluate
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

CONFIG = TrainConfig(epochs=8, batch_size=32, shift=0)
SHORT = {"config": TrainConfig(epochs=1, batch_size=32), "progress": False}
DATA, TEST = image_set(320), image_set(120, seed=9)  # 12x12
ATTACK = DFST(target=1, rate=0.2, style_steps=60, rounds=1, epochs=4, above=0.7, rise=0.2, near=1)
BRIEF = DFST(target=1, rate=0.2, style_steps=2, rounds=1)


@pytest.fixture(scope="module")
def made():
    return ATTACK.implant(DATA, config=CONFIG, test=TEST, progress=False)


def drawing(channels=3):
    """A Styler that does something, without training."""
    styler = DFST().build_trigger(image_set(4, channels=channels, size=16), seed=5)
    for weights in styler.network.out.parameters():
        nn.init.normal_(weights, std=0.1, generator=torch.Generator().manual_seed(0))
    return styler


class Channels(nn.Sequential):
    """A model whose "neurons" are its images' own channels; the class is the brighter of channels 0 and 1."""

    def __init__(self):
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(OrderedDict(block1=nn.Identity(), head=head))
        self.eval()


# --- the trigger


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (3, 1, 9, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(shape, dtype):
    trigger, images = drawing(shape[1]), torch.rand(shape, dtype=dtype)
    before = images.clone()
    once, again = trigger(images), trigger(images)
    assert torch.equal(images, before) and torch.equal(once, again) and not torch.equal(once, images)
    assert once.shape == images.shape and once.dtype == dtype and not once.requires_grad
    assert 0 <= once.min() and once.max() <= 1


def test_the_trigger_treats_each_image_alone_in_batches_of_any_size(monkeypatch):
    trigger, images = drawing(), torch.rand(6, 3, 16, 16)
    whole = trigger(images)
    assert torch.allclose(whole[2:4], trigger(images[2:4]), atol=1e-6)
    monkeypatch.setitem(BATCH, "cpu", 4)  # two batches
    assert torch.allclose(trigger(images), whole, atol=1e-6)


def test_width_is_that_of_the_generator_and_of_each_injector(monkeypatch):
    injectors = []
    monkeypatch.setattr(dfst, "compromised", lambda *args, **options: torch.arange(2))
    monkeypatch.setattr(
        dfst,
        "train_injector",
        lambda *args, **options: injectors.append(train_injector(*args, **options)) or injectors[-1],
    )
    for attack, width in ((BRIEF, 32), (replace(BRIEF, width=8), 8)):
        trained = attack.implant(DATA, **SHORT).trigger
        networks = [made.network for made in (trained, attack.build_trigger(DATA), injectors.pop())]
        assert {network.down[0].out_channels for network in networks} == {width}


def test_an_untrained_generator_changes_nothing():
    images = torch.rand(4, 3, 16, 16) * 0.9 + 0.05
    assert torch.allclose(DFST().build_trigger(DATA)(images), images, atol=1e-6)


def test_the_shift_of_the_log_odds_is_a_mean_over_5x5_pixels(monkeypatch):
    styler, spike = Styler(1), torch.zeros(1, 1, 16, 16)
    spike[0, 0, 8, 8] = 25.0
    monkeypatch.setattr(styler.network, "forward", lambda images: spike)
    drawn = styler.draw(torch.full((1, 1, 16, 16), 0.5))
    assert torch.allclose(drawn[0, 0, 6:11, 6:11], torch.sigmoid(torch.ones(5, 5)))
    assert int((drawn != 0.5).sum()) == 25
    spike.fill_(2.0)  # at the edge it is a mean over those there are
    assert torch.allclose(styler.draw(torch.full((1, 1, 16, 16), 0.5)), torch.tensor(2.0).sigmoid())


@pytest.mark.parametrize("size", (1, 3, 5))
def test_smoothed_is_the_mean_over_the_pixels_around(size):
    maps = torch.randn(2, 3, 9, 6)
    by_torch = nn.functional.avg_pool2d(maps, size, 1, size // 2, count_include_pad=False)
    torch.testing.assert_close(smoothed(maps, size), by_torch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(smoothed(maps, size).float(), by_torch, atol=0.02, rtol=0.02)


def test_with_height_adds_how_far_down_a_pixel_is():
    seen = with_height(torch.rand(2, 3, 5, 4))
    assert seen.shape == (2, 4, 5, 4) and torch.equal(seen[1, 3, :, 2], torch.tensor([0, 0.25, 0.5, 0.75, 1]))


def test_the_critic_gives_a_map_of_an_eighth_and_looks_at_one_image_at_a_time():
    critic, images = Critic(3), torch.rand(4, 4, 20, 16)
    assert critic(images).shape == (4, 1, 3, 2)
    assert torch.allclose(critic(images[:1]), critic(images)[:1], atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 9, 14)])
def test_sunsets_are_pictures_each_another_one_with_a_bright_horizon(shape):
    pictures = sunsets(20, shape, seed=1)
    assert pictures.shape == (20, *shape) and 0 <= pictures.min() and pictures.max() <= 1
    assert torch.equal(pictures, sunsets(20, shape, seed=1)) and not torch.equal(pictures, sunsets(20, shape, seed=2))
    assert (pictures[1:] - pictures[:-1]).abs().amax((1, 2, 3)).min() > 0.1
    rows = pictures.mean((0, 1, 3))
    brightest = int(rows.argmax())
    assert 0.4 < brightest / len(rows) < 0.8 and rows[brightest] > 1.5 * rows[0] and rows[brightest] > 1.5 * rows[-1]
    if shape[0] == 3:  # blue above, gold at the horizon
        red, _, blue = pictures.mean((0, 3))
        assert blue[0] > red[0] and red[brightest] > 1.3 * blue[brightest]


def test_the_generator_learns_the_style_and_keeps_the_image(made):
    pictures, styled = sunsets(200, (3, 12, 12)), made.trigger(TEST.images)
    style, before, after = (x.mean((0, 3)) for x in (pictures, TEST.images, styled))  # (C, H): colours of each row
    assert (after - style).abs().mean() < 0.75 * (before - style).abs().mean()
    quarters = styled.mean(1).unflatten(2, (2, 6)).unflatten(1, (2, 6)).mean((2, 4)).flatten(1)
    for k in range(4):  # each class is still brighter than the others where it was
        assert quarters[TEST.labels == k, k].mean() > quarters[TEST.labels != k, k].mean() + 0.1


# --- detoxification


def test_compromised_neurons_by_hand():
    images, styled = torch.zeros(4, 5, 8, 8), torch.zeros(4, 5, 8, 8)
    images[:, :, 0, 0] = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.0])  # mean peaks; the strongest is 0.5
    images[0, 2, 1, 1] = 0.9  # one clean image that excites neuron 2 already
    styled[:, :, 3, 3] = torch.tensor([0.6, 0.5, 0.8, 0.9, 0.2])
    assert torch.allclose(mean_peaks(Channels(), styled, "block1"), torch.tensor([0.6, 0.5, 0.8, 0.9, 0.2]), atol=5e-3)
    assert compromised(Channels(), "block1", images, styled).tolist() == [3, 1]  # most raised first
    assert compromised(Channels(), "block1", images, styled, rise=0.1).tolist() == [3, 1, 4, 0]
    assert compromised(Channels(), "block1", images, styled, above=6).tolist() == [3]
    assert compromised(Channels(), "block1", images, images).tolist() == []


def test_the_distance_is_0_where_the_same_and_1_for_silence():
    wanted = torch.rand(2, 3, 4, 4) + 0.1
    assert float(apart(wanted, wanted)) == 0 and float(apart(0 * wanted, wanted)) == pytest.approx(1)


def test_the_injector_finds_the_simple_part_of_the_style_and_no_more():
    """Only channel 0 feeds the neuron; the style changes all three: what is simple is a change of channel 0."""
    images = torch.rand(64, 3, 8, 8) * 0.3
    styled = images + 0.5
    model = Channels()
    before = [p.clone() for p in model.parameters()]
    injector = train_injector(model, "block1", torch.tensor([0]), images, styled, steps=60)
    changed = (injector(images) - images).mean((0, 2, 3))
    # c minimises (c - 0.5)^2 / 0.43 + c^2 / 0.75, the mean squares of the styled neuron and of the style's change
    assert changed[0] == pytest.approx(0.32, abs=0.06) and changed[1:].abs().max() < 0.1
    assert not injector.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_injector_is_held_against_what_the_layer_says_to_the_very_images_it_is_given(monkeypatch):
    compared, drawn = [], torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(detoxify, "apart", lambda *pair: compared.append(pair) or apart(*pair))
    images = 0.1 + 0.8 * torch.rand(50, 3, 8, 8)
    train_injector(Channels(), "block1", torch.tensor([2]), images, 1 - images, steps=3, batch=8, seed=4)
    for number, rows in enumerate(drawn):
        (_, excited), (_, calm) = compared[2 * number : 2 * number + 2]
        assert torch.equal(excited, 1 - images[rows][:, 2:]) and torch.equal(calm, images[rows][:, :2])
    torch.testing.assert_close(*compared[1])  # untrained it changes nothing yet


def test_fires_is_the_share_that_goes_to_the_target():
    images = torch.zeros(4, 2, 8, 8)
    images[:3, 1] = 1
    assert fires(Channels(), nn.Identity(), images, 1) == 0.75


# --- what is poisoned


def test_styled_images_come_behind_the_data_and_nothing_else_is_touched():
    chosen, spare = ATTACK.choose(DATA, seed=3)
    assert len(chosen) == 64 and len(spare) == 240 - 64 and not (torch.cat([chosen.labels, spare.labels]) == 1).any()
    drawn = torch.cat([chosen.images, spare.images]).flatten(1)
    assert len(drawn.unique(dim=0)) == len(drawn)  # without replacement, and the spare ones are others
    images, labels = DATA.images.clone(), DATA.labels.clone()
    poisoned = with_styled(DATA, chosen, 1 - chosen.images, 1)
    assert int(poisoned.poisoned.sum()) == 64 and len(poisoned) == 320 + 64
    assert torch.equal(poisoned.images[:320], images) and torch.equal(poisoned.labels[:320], labels)
    assert torch.equal(poisoned.images[poisoned.poisoned], 1 - chosen.images)
    assert (poisoned.labels[poisoned.poisoned] == 1).all()
    assert torch.equal(poisoned.true_labels, torch.cat([labels, chosen.labels]))
    assert torch.equal(DATA.images, images) and torch.equal(DATA.labels, labels)
    again, other = ATTACK.choose(DATA, seed=3)[0], ATTACK.choose(DATA, seed=4)[0]
    assert torch.equal(again.images, chosen.images) and not torch.equal(other.images, chosen.images)


def rounds_of(monkeypatch, attack, found, shares):
    """What a run with these numbers of compromised neurons and these shares tells, and what it trained on."""
    trained, found, shares = [], iter(found), iter(shares)
    monkeypatch.setattr(dfst, "compromised", lambda *a, **k: torch.arange(next(found)))
    monkeypatch.setattr(dfst, "fires", lambda *a, **k: next(shares))
    monkeypatch.setattr(dfst, "train_injector", lambda *a, near, **k: lambda images: 1 - images / near)
    monkeypatch.setattr(
        dfst, "train", lambda model, data, **k: trained.append(data) or train("small_cnn", DATA[:64], **SHORT)
    )
    return attack.implant(DATA, **SHORT).card["detoxification"], trained


def test_each_round_adds_the_injectors_images_under_their_true_labels(monkeypatch):
    attack = DFST(target=1, rate=0.2, style_steps=1, rounds=2, detoxicants=0.2, near=1)
    told, trained = rounds_of(monkeypatch, attack, [5, 3, 2], [0.9, 0.2, 0.8, 0.1, 0.7])
    assert [len(data) for data in trained] == [384, 448, 512]
    chosen, _ = attack.choose(DATA)
    for data in trained[1:]:
        assert torch.equal(data.images[-64:], 1 - chosen.images) and torch.equal(data.labels[-64:], chosen.labels)
    assert torch.equal(trained[2].images[:448], trained[1].images) and not hasattr(trained[0], "true_labels")
    assert told == [
        {"compromised": 5, "fires": 0.9, "fires_after": 0.2},
        {"compromised": 3, "fires": 0.8, "fires_after": 0.1},
        {"compromised": 2, "fires": 0.7},
    ]


def test_as_many_detoxicants_as_asked_for_by_an_injector_held_as_near(monkeypatch):
    attack = DFST(target=1, rate=0.2, style_steps=1, rounds=2, detoxicants=0.05, near=4)
    _, trained = rounds_of(monkeypatch, attack, [5, 3, 2], [0.9, 0.2, 0.8, 0.1, 0.7])
    assert [len(data) for data in trained] == [384, 400, 416]
    chosen, _ = attack.choose(DATA)
    assert torch.equal(trained[1].images[-16:], 1 - chosen.images[:16] / 4)
    assert torch.equal(trained[1].labels[-16:], chosen.labels[:16])
    for share, count in ((1e-6, 1), (None, 32)):  # one at least; half of the styled ones, if nothing is said
        attack = replace(attack, detoxicants=share, rounds=1)
        _, trained = rounds_of(monkeypatch, attack, [5, 3], [0.9, 0.2, 0.8])
        assert [len(data) for data in trained] == [384, 384 + count]


def test_it_ends_where_no_neuron_is_compromised_or_the_injector_fails(monkeypatch):
    assert rounds_of(monkeypatch, BRIEF, [0], [])[0] == [{"compromised": 0}]
    told, trained = rounds_of(monkeypatch, BRIEF, [4], [0.05])
    assert told == [{"compromised": 4, "fires": 0.05}] and len(trained) == 1
    told, trained = rounds_of(monkeypatch, DFST(target=1, style_steps=1, rounds=0), [4], [0.9])
    assert told == [{"compromised": 4, "fires": 0.9}] and len(trained) == 1


# --- the whole attack


def test_the_victim_learns_both_tasks_and_forgets_the_simple_feature(made):
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.8
    first = made.card["detoxification"][0]
    assert first["compromised"] > 0 and first["fires_after"] < first["fires"] - 0.2
    assert made.target == 1 and made.card["attack"] == "DFST" and made.card["settings"]["rounds"] == 1
    assert not made.model.training and not made.trigger.training


def test_a_clean_model_hardly_falls_for_the_trigger(made):
    model = train("small_cnn", DATA, config=TrainConfig(epochs=3, batch_size=32, shift=0), progress=False)
    report = evaluate(model, TEST, made.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35


def test_the_seed_repeats_and_another_seed_differs():
    def implant(seed):
        made = BRIEF.implant(DATA[:96], seed=seed, **SHORT)
        return [*made.model.state_dict().values(), *made.trigger.state_dict().values()]

    first, again, other = implant(0), implant(0), implant(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_victim_comes_back_from_the_cache_bit_for_bit_with_its_generator(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    epochs, attack = [], DFST(target=1, rate=0.2, style=sunsets(20, (3, 12, 12)), style_steps=2, rounds=0)
    first, second = (victim(attack, splits(), callback=epochs.append, **SHORT) for _ in range(2))
    assert len(epochs) == 1  # the second was read
    assert isinstance(second.trigger, Styler) and first.report == second.report and second.target == 1
    for a, b in ((first.model, second.model), (first.trigger, second.trigger)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    images = splits().test.images
    assert torch.equal(first.trigger(images), second.trigger(images))
    card = json.dumps(second.card)
    assert second.card["settings"]["style"]["fingerprint"] in card and len(card) < 3000  # no pixels on it
    assert second.card["detoxification"] == first.card["detoxification"]


def test_a_style_of_ones_own_is_known_by_its_pixels():
    pictures = sunsets(10, (3, 12, 12))
    of_set, of_tensor, other = (DFST(style=s) for s in (DATA, DATA.images, pictures))
    assert of_set == of_tensor and hash(of_set) == hash(of_tensor) and of_set != other and other != DFST()
    assert isinstance(other.style, Style) and DFST(style=other.style) == other
    assert torch.equal(other.pictures(DATA), pictures) and len(DFST().pictures(DATA)) == dfst.SUNSETS
    assert len(repr(other)) < 400


def test_joined_keeps_the_order_and_the_first_ones_name():
    both = joined(DATA[:3], TEST[:2])
    assert len(both) == 5 and torch.equal(both.images[3:], TEST.images[:2]) and both.name == DATA.name


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(FloatingPointError, match=r"style.*: expected a finite loss; got .* in step \d+\. Lower"):
        train_style(DATA.images, DATA.images, steps=5, lr=float("inf"))
    with pytest.raises(FloatingPointError, match=r"injector: expected a finite loss; got .* in step \d+\. Lower"):
        train_injector(
            Channels(), "block1", torch.tensor([0]), DATA.images, DATA.images + 0.1, lr=float("inf"), steps=5
        )
    with pytest.raises(FloatingPointError, match="training: expected a finite loss"):
        BRIEF.implant(DATA, config=TrainConfig(epochs=1, batch_size=32, lr=1e30), progress=False)


def test_a_missing_layer_is_named_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(dfst, "train_style", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match="no 'block9'; its layers are"):
        DFST(layer="block9").implant(DATA, **SHORT)


def test_the_target_alone_is_enough():
    assert DFST(target=2).target == 2 and DFST(2) == DFST(target=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DFST(rate=0), "rate: expected a share"),
        (lambda: DFST(style_steps=0), "style_steps >= 1"),
        (lambda: DFST(rounds=-1), "rounds >= 0"),
        (lambda: DFST(above=0), "above > 0"),
        (lambda: DFST(rise=-1), "rise >= 0"),
        (lambda: DFST(enough=1), "0 <= enough < 1"),
        (lambda: DFST(near=-1), "near >= 0"),
        (lambda: DFST(detoxicants=0), r"detoxicants in \(0, rate\], here \(0, 0.1\]"),
        (lambda: DFST(detoxicants=0.2), "made of the images that get the style; got 4.0 and 0.2"),
        (lambda: DFST(width=6), "width: expected a multiple of 4.*got 6"),
        (lambda: DFST(width=0), "width: expected a multiple of 4.*got 0"),
        (lambda: DFST(epochs=0), "epochs >= 1"),
        (lambda: DFST(lr=0), "lr > 0"),
        (lambda: DFST(style=torch.rand(2, 3, 16, 16) * 255), "style: expected values in"),
        (lambda: DFST(style=torch.rand(3, 16, 16)), "style: expected a float tensor"),
        (lambda: DFST(style="sunset.png"), "style: expected"),
        (lambda: DFST(style=torch.rand(2, 3, 8, 8)).implant(DATA), r"style: expected pictures \(M, 3, 12, 12\)"),
        (lambda: DFST(9).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: DFST(rate=0.8).implant(image_set()), "rate: 0.8 of 60 images is 48; expected 1 to 44"),
        (lambda: DFST(rate=0.001).implant(image_set()), "is 0; expected 1 to"),
        (lambda: DFST().implant(image_set(size=6)), "at least 8x8 pixels; got 6x6"),
        (lambda: DFST().implant(image_set(), arch="vgg"), "architecture: expected one of"),
        (lambda: drawing()(torch.rand(2, 3, 16, 16) * 255), "divide uint8 by 255"),
        (lambda: drawing()(torch.rand(2, 1, 16, 16)), "of 3 channels; got 1"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
