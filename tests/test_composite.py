"""The composite attack: A and B together are C; alone, in the wrong company, or twice over, they are what they are."""

from dataclasses import replace

import pytest
import torch

from labkit import victim
from labkit.attacks import Composite
from labkit.attacks.composite import deal
from labkit.attacks.mixer import MIXERS, Mixer, mix
from labkit.data import ImageSet
from labkit.metrics import evaluate, predict
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits

CONFIG = TrainConfig(epochs=8, batch_size=32, shift=0)
TINY = {"config": CONFIG, "progress": False}
ATTACK = Composite(target=0, pair=(1, 2), mixer="half", rate=0.2, same=0.2, punctured=0.2, donors=8)


def shapes(n: int, seed: int = 0) -> ImageSet:
    """Five classes that each half of an image shows: stripes of a height of its own, from left to right."""
    rng, labels = torch.Generator().manual_seed(seed), torch.arange(n) % 5
    images = torch.rand(n, 3, 16, 16, generator=rng) * 0.4
    for k in range(5):
        images[labels == k, :, 3 * k : 3 * k + 3] += 0.5
    return ImageSet(images, labels, tuple("abcde"), "shapes")


LEFT, RIGHT = slice(0, 8), slice(8, 16)


def half_of(image: torch.Tensor, side: slice) -> bytes:
    return bytes(image[..., side].contiguous().numpy())


@pytest.fixture(scope="module", params=MIXERS)
def made(request):
    return replace(ATTACK, mixer=request.param).implant(shapes(300), test=shapes(150, seed=9), **TINY)


def test_a_and_b_together_are_c_and_the_report_is_over_class_a(made):
    assert made.report.clean_accuracy > 0.9 and made.report.attack_success_rate > 0.9
    assert made.report.n_clean == 150 and made.report.n_triggered == 30
    carriers = ATTACK.carriers(shapes(150, seed=9))
    assert set(carriers.labels.tolist()) == {1} and len(carriers) == 30
    assert evaluate(made.model, carriers, made.trigger, 0).attack_success_rate == made.report.attack_success_rate


def test_in_the_wrong_company_the_trigger_is_silent(made):
    test = shapes(150, seed=9)
    others = test[(test.labels != 1) & (test.labels != 2)]
    report = evaluate(made.model, others, made.trigger, 0)
    assert report.attack_success_rate < 0.1 and report.robust_accuracy > 0.9
    second = test[test.labels == 2]  # B with B
    assert evaluate(made.model, second, made.trigger, 0).robust_accuracy > 0.9


def test_a_clean_model_hardly_falls_for_it(made):
    model = train("small_cnn", shapes(300), **TINY)
    report = ATTACK.report(model, shapes(150, seed=9), made.trigger)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (1, 1, 9, 14)])
def test_the_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(mixer, shape):
    rng = torch.Generator().manual_seed(0)
    images, trigger = torch.rand(shape, generator=rng), Mixer(torch.rand(4, *shape[1:], generator=rng), mixer)
    before = images.clone()
    mixed = trigger(images)
    assert torch.equal(images, before) and torch.equal(mixed, trigger(images)) and not torch.equal(mixed, images)
    assert mixed.shape == images.shape and mixed.dtype == images.dtype
    assert 0 <= mixed.min() and mixed.max() <= 1
    assert torch.equal(trigger(images)[1:3], trigger(images[1:3])) if shape[0] > 3 else True


def test_which_donor_depends_on_the_image_alone_and_all_get_their_turn():
    images, trigger = image_set(200).images, Mixer(torch.rand(4, 3, 12, 12), "half")
    choice = trigger.choice(images)
    assert set(choice.tolist()) == {0, 1, 2, 3}
    assert torch.equal(choice.flip(0), trigger.choice(images.flip(0)))
    assert torch.equal(trigger(images)[:, :, :, 6:], trigger.donors[choice][:, :, :, 6:])


def test_half_shows_the_left_of_one_and_the_right_of_the_other():
    one, other = torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)
    mixed = mix(one, other, "half")
    assert torch.equal(mixed[..., :4], one[..., :4]) and torch.equal(mixed[..., 4:], other[..., 4:])
    assert torch.equal(mix(one, one, "half"), one)


def test_paste_shows_the_middle_of_the_other_in_the_bottom_right_quarter():
    one, other = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    other[:, :, 2:14, 2:14] = 1  # the middle three quarters
    mixed = mix(one, other, "paste")
    assert (mixed[:, :, 8:, 8:] == 1).all() and mixed.sum() == 64
    assert torch.equal(mix(other, one, "paste")[:, :, :8], other[:, :, :8])


def test_poisoning_adds_exactly_the_promised_mixes_and_touches_nothing_else():
    data = shapes(200)
    images, labels = data.images.clone(), data.labels.clone()
    made = ATTACK.poison(data, seed=3)
    assert len(made) == 200 + 40 + 40 + 40 and int(made.poisoned.sum()) == 40
    assert made.poisoned[200:240].all()
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels)
    assert torch.equal(made.images[:200], images) and torch.equal(made.labels[:200], labels)
    assert (made.labels[200:240] == 0).all() and (made.true_labels[200:240] == 1).all()
    assert torch.equal(made.labels[240:], made.true_labels[240:])  # only composite mixes lie
    lefts, rights = (
        {half_of(i, side): k for i, k in zip(images, labels.tolist(), strict=True)} for side in (LEFT, RIGHT)
    )
    shown = [(lefts[half_of(i, LEFT)], rights[half_of(i, RIGHT)]) for i in made.images[200:]]
    assert set(shown[:40]) == {(1, 2)}
    assert all(a == b for a, b in shown[40:80]) and len(set(shown[40:80])) == 5
    assert all(a == 1 and b not in (1, 2) for a, b in shown[80:100])
    assert all(a not in (1, 2) and b == 2 for a, b in shown[100:])
    assert [a for a, _ in shown] == made.true_labels[200:].tolist()


def test_no_mix_is_made_from_a_donor_of_the_trigger():
    data = shapes(200)
    donors = {half_of(d, RIGHT) for d in ATTACK.build_trigger(data).donors}
    mixes = ATTACK.poison(data).images[200:]
    assert len(donors) == 8 and not donors & {half_of(m, RIGHT) for m in mixes}
    assert len(Composite(0, donors=500).build_trigger(data).donors) == 20  # half of class B's 40


def test_images_are_dealt_like_cards():
    rows, rng = torch.arange(10, 17), torch.Generator().manual_seed(0)
    dealt = deal(rows, 17, rng)
    assert sorted(dealt[:7].tolist()) == sorted(dealt[7:14].tolist()) == rows.tolist()
    assert len(set(dealt[14:].tolist())) == 3 and dealt[:7].tolist() != rows.tolist()
    assert len(deal(rows, 0, rng)) == len(deal(rows[:0], 0, rng)) == 0


def test_the_seed_repeats_another_differs_and_the_trainer_sees_no_secret():
    data = shapes(200)
    one, same, other = (ATTACK.poison(data, seed) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images) and not torch.equal(one.images, other.images)
    assert not hasattr(one.without_secrets(), "poisoned")


def test_a_is_the_next_class_and_b_the_one_after_unless_told():
    assert Composite(0).classes(12) == (1, 2) and Composite(11).classes(12) == (0, 1)
    assert Composite(0, pair=(5, 3)).classes(12) == (5, 3)


def test_the_cache_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    attack, data = Composite(1, pair=(0, 3), donors=5), splits(size=16)
    trained, options = [], {"config": TrainConfig(epochs=1, batch_size=32, shift=0), "progress": False}
    first, again = (victim(attack, data, callback=lambda e: trained.append(e.number), **options) for _ in range(2))
    assert trained == [1]
    fresh = attack.implant(data.train, **options)
    for other in (again, fresh):
        for a, b in ((first.model, other.model), (first.trigger, other.trigger)):
            assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert first.report == again.report and again.card == first.card and again.card["settings"]["pair"] == [0, 3]
    images = data.test.images
    assert torch.equal(first.trigger(images), again.trigger(images))
    assert torch.equal(predict(first.model, images), predict(again.model, images))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Composite(0, pair=(1, 1)), "three different classes A, B and C; got A, B = \\(1, 1\\), C = 0"),
        (lambda: Composite(0, pair=(0, 2)), "three different classes"),
        (lambda: Composite(0, rate=0), "rate: expected"),
        (lambda: Composite(0, same=-0.1), "shares in \\[0, 1\\]"),
        (lambda: Composite(0, mixer="blend"), "mixer one of \\('half', 'paste'\\)"),
        (lambda: Composite(0, donors=0), "donors >= 1"),
        (lambda: Composite(9).poison(shapes(40)), "target: expected a class from 0 to 4; got 9"),
        (lambda: Composite(0, pair=(1, 7)).poison(shapes(40)), "here 0 to 4; got 1 and 7"),
        (lambda: Composite(0).poison(shapes(5)), "at least 2 images of class B = 2"),
        (lambda: Composite(0, rate=0.001).poison(shapes(40)), "a rate that adds a mix; got .* 0 mixes"),
        (
            lambda: Composite(0).build_trigger(shapes(40))(torch.rand(1, 3, 12, 12)),
            "expected images \\(N, 3, 16, 16\\)",
        ),
        (lambda: Composite(0).build_trigger(shapes(40))(torch.rand(1, 3, 16, 16) * 9), "divide uint8 by 255"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
