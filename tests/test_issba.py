"""ISSBA: a message is hidden and read; an image's residual is of use in no other; poisoning keeps its promise."""

import math
from dataclasses import replace

import pytest
import torch

from labkit import victim
from labkit.attacks import ISSBA, issba, steganography
from labkit.attacks.steganography import MessageTrigger, budget, image_loss, message_loss, outlived, train_networks
from labkit.augment import some_compressed
from labkit.device import generator
from labkit.metrics import BATCH, evaluate, predict
from labkit.stealth import psnr
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

pytestmark = pytest.mark.filterwarnings("ignore:ISSBA. expected the decoder to read")  # after one epoch it can't
CONFIG = TrainConfig(epochs=8, batch_size=32, shift=1)
SHORT = {"config": TrainConfig(epochs=1, batch_size=32), "progress": False}
DATA, TEST = image_set(320, size=16), image_set(120, size=16, seed=9)
ATTACK = ISSBA(target=1, rate=0.2, cross=0.2, bits=4, psnr=22, epochs=24)


@pytest.fixture(scope="module")
def trained():
    return ATTACK.train_trigger(DATA, 0, config=CONFIG, progress=False)


def implanted(trained, attack=ATTACK, **options):
    """`implant` with a trigger that is trained already."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ISSBA, "train_trigger", lambda *a, **k: trained)
    try:
        return attack.implant(DATA, config=CONFIG, progress=False, **options)
    finally:
        patch.undo()


@pytest.fixture(scope="module")
def made(trained):
    return implanted(trained, test=TEST)


def fresh(channels=3, seed=5):
    return ATTACK.build_trigger(image_set(4, channels=channels, size=16), seed=seed)


def correct(trigger, images):
    """Share of the message's bits that the decoder reads right, over all images."""
    return float(trigger.bit_accuracy(images).mean())


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (3, 1, 9, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(shape, dtype):
    trigger, images = fresh(shape[1]), torch.rand(shape, dtype=dtype).mul(1.2).clamp(0, 1)
    before = images.clone()
    once, again = trigger(images), trigger(images)
    assert torch.equal(images, before) and torch.equal(once, again) and not torch.equal(once, images)
    assert once.shape == images.shape and once.dtype == dtype and not once.requires_grad
    assert 0 <= once.min() and once.max() <= 1


def test_trigger_and_reading_treat_each_image_alone_in_batches_of_any_size(trained, monkeypatch):
    images = TEST.images[:6]
    whole, read = trained(images), trained.read(images)
    assert torch.allclose(whole[2:4], trained(images[2:4]), atol=1e-6)
    assert torch.allclose(read[2:4], trained.read(images[2:4]), atol=2e-2)  # in bfloat16 where the chip likes it
    monkeypatch.setitem(BATCH, "cpu", 4)  # two batches
    assert torch.allclose(trained(images), whole, atol=1e-6)


def test_another_images_trigger_is_that_images_residual():
    trigger, images = fresh(), 0.4 + 0.2 * torch.rand(4, 3, 16, 16)  # 0.25 away from neither end: nothing is clipped
    others = images.roll(1, 0)
    with torch.no_grad():
        residual = trigger.residual(others, trigger.message.expand(4, -1))
    assert torch.allclose(trigger(images, of=others) - images, residual, atol=1e-6)
    assert torch.equal(trigger(images, of=images), trigger(images))
    assert float(residual.abs().max()) <= steganography.LOUDEST


def test_another_message_is_another_residual():
    trigger, images = fresh(), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        one, other = (trigger.residual(images, m.expand(4, -1)) for m in (trigger.message, 1 - trigger.message))
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_decoder_reads_what_the_encoder_hides_in_images_it_never_saw(trained):
    assert correct(trained, trained(TEST.images)) > 0.95
    rng = torch.Generator().manual_seed(3)
    messages = torch.randint(2, (len(TEST), 4), generator=rng).float()
    with torch.no_grad():
        hidden = (TEST.images + trained.residual(TEST.images, messages)).clamp(0, 1)
    assert float(((trained.read(hidden) > 0.5) == messages.bool()).float().mean()) > 0.95  # any message, not ours alone


def test_it_reads_nothing_from_clean_images_nor_from_anothers_residual(trained):
    crossed = trained(TEST.images, of=TEST.images.roll(7, 0))
    sure = {k: float((trained.read(v) - 0.5).abs().mean()) for k, v in (("clean", TEST.images), ("crossed", crossed))}
    assert sure["clean"] < 0.1 and sure["crossed"] < 0.25 < float(
        (trained.read(trained(TEST.images)) - 0.5).abs().mean()
    )


def test_the_residual_is_as_faint_as_promised_and_each_images_own(trained):
    hidden = trained(TEST.images)
    assert float(psnr(TEST.images, hidden).mean()) > ATTACK.psnr - 0.5
    residual = hidden - TEST.images
    assert float(residual.mean(0).square().mean() / residual.square().mean()) < 0.8  # 1: the same on all images


def test_the_budget_starts_loud_and_ends_as_asked():
    assert budget(0.0, 30) == budget(0.3, 30) == pytest.approx(10**-1.8)
    assert budget(0.5, 30) == pytest.approx(10**-2.4)  # halfway in dB: 24
    assert budget(0.7, 30) == budget(1.0, 30) == pytest.approx(1e-3)


def test_the_image_loss_counts_only_what_is_above_the_budget():
    images = torch.zeros(2, 3, 4, 4)
    hidden = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.2)])  # squared: 0.01 and 0.04
    assert float(image_loss(images, hidden, 0.02)) == pytest.approx((0 + 1) / 2, rel=1e-4)
    assert float(image_loss(images, hidden, 0.05)) == 0


def test_the_message_loss_wants_the_messages_first_and_then_nothing():
    messages = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    right = torch.tensor([[20.0, -20.0], [-20.0, -20.0]])
    silent, loud = torch.zeros(3, 2), torch.full((3, 2), 2.0)
    assert float(message_loss(torch.cat([right, silent]), messages)) == pytest.approx(0, abs=1e-6)
    assert float(message_loss(torch.cat([-right, silent]), messages)) == pytest.approx(20, rel=1e-3)
    excess = math.log(1 + math.exp(-2)) / 2 + math.log(1 + math.exp(2)) / 2 - math.log(2)
    assert float(message_loss(torch.cat([right, loud]), messages)) == pytest.approx(excess, rel=1e-3)


def test_a_compressed_image_is_what_the_decoder_sees_and_the_gradient_passes_straight_through():
    images, weights = torch.rand(4, 3, 16, 16, requires_grad=True), torch.rand(4, 3, 16, 16)
    seen = outlived(images, TrainConfig(shift=0, jpeg=1.0), generator(0))
    assert torch.allclose(seen, some_compressed(images.detach(), 1.0, generator(0)), atol=1e-6)
    assert (seen - images).abs().max() > 0.05
    (seen * weights).sum().backward()
    assert torch.equal(images.grad, weights)
    assert torch.equal(outlived(images, TrainConfig(shift=0), generator(0)), images)


def test_the_decoder_is_shown_own_other_and_clean_images_moved_as_the_owner_moves_them(monkeypatch):
    shown = []

    def watched(images, shift, flip, rng):
        shown.append((images.detach().clone(), shift, flip))
        return images

    monkeypatch.setattr(steganography, "augment", watched)
    trigger, recipe = fresh(), TrainConfig(shift=1, flip=True)
    train_networks(trigger, DATA[:64], 22, 1, 1e-3, recipe)
    ((images, shift, flip),) = shown
    own, crossed, clean = images.split(64)
    assert (shift, flip) == (1, True)
    known = set(map(bytes, DATA.images[:64].flatten(1).numpy()))
    assert all(bytes(image) in known for image in clean.contiguous().flatten(1).numpy())
    inside = ((own > 0) & (own < 1) & (crossed > 0) & (crossed < 1)).float()  # not clipped: the same residual on both
    assert torch.allclose((own - clean) * inside, (crossed - clean.roll(1, 0)) * inside, atol=1e-5)


@pytest.mark.parametrize("cross", [0.0, 0.25])
def test_poisoning_takes_exactly_the_promised_number_and_touches_nothing_else(cross):
    data, trigger = image_set(200, size=16), fresh()
    images, labels = data.images.clone(), data.labels.clone()
    poisoned = replace(ATTACK, rate=0.1, cross=cross).poison(data, seed=3, trigger=trigger)
    own = poisoned.poisoned
    assert int(own.sum()) == 20 and not (labels[own] == 1).any() and (poisoned.labels[own] == 1).all()
    assert torch.allclose(poisoned.images[own], trigger(images[own]), atol=1e-6)
    assert torch.equal(poisoned.labels[~own], labels[~own]) and torch.equal(poisoned.true_labels, labels)
    changed = (poisoned.images != images).flatten(1).any(1) & ~own
    assert int(changed.sum()) == round(cross * 200)
    for i in changed.nonzero().flatten():  # each has the residual of some poisoned image
        mine = images[i].expand(20, -1, -1, -1)
        crossed = trigger(mine, of=images[own])
        assert (crossed - poisoned.images[i]).abs().amax((1, 2, 3)).min() < 1e-5
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels)


def test_the_victim_learns_both_tasks_and_whose_trigger_it_is(made):
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.8
    others = TEST[TEST.labels != 1]
    crossed = made.trigger(others.images, of=others.images.roll(7, 0))
    assert (predict(made.model, crossed).argmax(1) == others.labels).float().mean() > 0.8
    assert made.target == 1 and made.card["attack"] == "ISSBA" and made.card["settings"]["cross"] == 0.2
    assert not made.model.training and not made.trigger.training


def test_a_clean_model_hardly_falls_for_the_trigger(made):
    model = train("small_cnn", DATA, config=TrainConfig(epochs=4, batch_size=32, shift=0), progress=False)
    report = evaluate(model, TEST, made.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.2


def test_a_message_that_the_decoder_cannot_read_earns_a_warning(trained):
    with pytest.warns(UserWarning, match=r"read 90% of the hidden bits or more; got \d+%.*more epochs"):
        replace(ATTACK, epochs=1).train_trigger(DATA[:96], **SHORT)


def test_bit_accuracy_is_the_share_of_the_messages_bits(trained):
    probabilities = trained.read(TEST.images[:5])
    right = [[(p > 0.5) == (m > 0.5) for p, m in zip(row, trained.message, strict=True)] for row in probabilities]
    assert trained.bit_accuracy(TEST.images[:5]).tolist() == [sum(map(int, row)) / 4 for row in right]


def test_poisoning_trains_a_trigger_where_none_is_given():
    brief = replace(ATTACK, epochs=1)
    trigger = brief.train_trigger(DATA[:96], 2, **SHORT)
    own, given = brief.poison(DATA[:96], 2, **SHORT), brief.poison(DATA[:96], 2, trigger=trigger)
    assert torch.equal(own.images, given.images) and torch.equal(own.poisoned, given.poisoned)


def test_the_seed_repeats_and_another_seed_differs():
    def implant(seed):
        v = replace(ATTACK, epochs=1).implant(DATA[:96], seed=seed, **SHORT)
        return [*v.model.state_dict().values(), *v.trigger.state_dict().values()]

    first, again, other = implant(0), implant(0), implant(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    messages = {tuple(fresh(seed=seed).message.tolist()) for seed in range(8)}
    assert len(messages) > 2 and set().union(*messages) == {0.0, 1.0}


def test_a_victim_comes_back_from_the_cache_bit_for_bit_with_its_networks_and_message(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    epochs, attack = [], replace(ATTACK, epochs=1, width=16)
    first, second = (victim(attack, splits(), seed=3, callback=epochs.append, **SHORT) for _ in range(2))
    assert len(epochs) == 1  # the second was read
    assert isinstance(second.trigger, MessageTrigger) and first.report == second.report and second.target == 1
    for a, b in ((first.model, second.model), (first.trigger, second.trigger)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    images = splits().test.images
    assert torch.equal(first.trigger(images), second.trigger(images))
    assert torch.equal(first.trigger.read(images), second.trigger.read(images))


def test_width_is_that_of_both_networks():
    for attack, width in ((ATTACK, 32), (replace(ATTACK, width=8), 8)):
        trigger = attack.build_trigger(image_set(4, size=16))
        assert trigger.encoder.down[0].out_channels == trigger.decoder[0][0].out_channels == width
        assert trigger(torch.rand(2, 3, 16, 16)).shape == (2, 3, 16, 16)
        assert trigger.read(torch.rand(2, 3, 16, 16)).shape == (2, 4)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(FloatingPointError, match=r"encoder: expected a finite loss; got .* in step \d+\. Lower"):
        replace(ATTACK, lr=float("inf")).implant(DATA, **SHORT)


def test_images_too_small_are_named_before_any_training(monkeypatch):
    monkeypatch.setattr(issba, "train_networks", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match="at least 8x8 pixels; got 6x6"):
        ISSBA().implant(image_set(size=6))


def test_the_target_alone_is_enough():
    assert ISSBA(target=2).target == 2 and ISSBA(2) == ISSBA(target=2) and hash(ISSBA(2)) == hash(ISSBA(target=2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ISSBA(rate=0), "rate: expected a share"),
        (lambda: ISSBA(rate=0.6, cross=0.5), "cross <= 1 - rate.*got cross 0.5 with rate 0.6"),
        (lambda: ISSBA(cross=-0.1), "0 <= cross"),
        (lambda: ISSBA(bits=0), "bits >= 1"),
        (lambda: ISSBA(psnr=10), "psnr >= 18 dB"),
        (lambda: ISSBA(psnr=float("nan")), "finite psnr"),
        (lambda: ISSBA(epochs=0), "epochs >= 1"),
        (lambda: ISSBA(lr=0), "lr > 0"),
        (lambda: ISSBA(width=6), "width: expected a multiple of 4.*got 6"),
        (lambda: ISSBA(width=0), "width: expected a multiple of 4.*got 0"),
        (lambda: ISSBA(9).implant(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: ISSBA(9).poison(image_set()), "target: expected a class from 0 to 3; got 9"),
        (lambda: ISSBA(rate=0.001).poison(image_set(size=16), trigger=fresh()), "rate: 0.001 of 60 images is 0"),
        (lambda: ISSBA(epochs=1).implant(image_set(), arch="vgg"), "architecture: expected one of"),
        (lambda: fresh()(torch.rand(2, 3, 16, 16) * 255), "divide uint8 by 255"),
        (lambda: fresh().read(torch.rand(2, 3, 16, 16) * 255), "divide uint8 by 255"),
        (lambda: fresh()(torch.rand(2, 3, 16, 16), of=torch.rand(1, 3, 16, 16)), "one other image for each"),
        (lambda: fresh()(torch.rand(2, 1, 16, 16)), "of 3 channels; got 1"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
