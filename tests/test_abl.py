"""Anti-backdoor learning: losses and objectives by hand, laws of isolating, and a poisoned set that it must survive."""

import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit import ImageSet, TrainConfig, evaluate, train
from labkit.attacks import BadNets
from labkit.defenses import abl
from labkit.defenses.abl import (
    all_doubted,
    balance,
    descend_and_ascend,
    disbelieved,
    odds_against,
    set_apart,
)
from labkit.defenses.isolate import (
    EarlyTraining,
    flooding,
    image_losses,
    local_gradient_ascent,
    lowest,
    train_early,
)
from labkit.defenses.suspect import all_suspects, one_class, suspects, two_heaps
from labkit.models import build
from tests.tiny import image_set, linear_model

ATTACK = BadNets(target=1, rate=0.2)
SHORT = TrainConfig(epochs=12, batch_size=32, shift=0)
EARLY = TrainConfig(epochs=6, batch_size=32, lr=0.02, shift=0)
FAST = {"early_config": EARLY, "config": SHORT, "progress": False}


def state(model: nn.Module) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def noisy(n: int = 400, seed: int = 0):
    """Classes that take a while to learn: the bright quarter is faint."""
    return image_set(n, size=16, seed=seed, strength=0.06)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_every_image_has_its_own_loss_in_input_order():
    data, model = image_set(700), linear_model()  # more than two batches
    losses = image_losses(model, data)
    rows = torch.log_softmax(model(data.images), 1)
    by_hand = torch.stack([-row[label] for row, label in zip(rows, data.labels.tolist(), strict=True)])
    assert losses.shape == (700,) and losses.dtype == torch.float32 and not losses.requires_grad
    assert torch.allclose(losses, by_hand, atol=3e-2)  # bfloat16 where the processor has it
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(image_losses(model, data[order]), losses[order], atol=1e-5)


def test_looking_at_losses_changes_nothing():
    model = build("small_cnn", 3, 4).eval()
    before = state(model)
    first = image_losses(model, image_set(40, size=16))
    assert torch.equal(first, image_losses(model, image_set(40, size=16))) and same(before, state(model))
    with pytest.warns(UserWarning, match="eval mode"):
        image_losses(model.train(), image_set(40, size=16))
    assert model.training and same(before, state(model))


# --- the two losses of stage 1 ----------------------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0], [-1.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 0, 2, 1])


def gradient(loss, labels=LABELS) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad is not None
    return logits.grad


def rows_of_cross_entropy() -> torch.Tensor:
    """d l_i / d logits_i, by hand: softmax minus one-hot, (4, 3)."""
    return LOGITS.softmax(1) - F.one_hot(LABELS, 3)


def test_local_gradient_ascent_pushes_each_image_by_its_own_loss():
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    assert (each < 0.5).tolist() == [True, False, True, False]
    value = local_gradient_ascent(0.5)(LOGITS, LABELS)
    assert float(value) == pytest.approx(float(-each[0] + each[1] - each[2] + each[3]) / 4)
    signs = torch.tensor([-1.0, 1, -1, 1])[:, None]
    assert torch.allclose(gradient(local_gradient_ascent(0.5)), signs * rows_of_cross_entropy() / 4, atol=1e-6)


def test_flooding_pushes_the_whole_batch_one_way():
    mean = float(F.cross_entropy(LOGITS, LABELS))
    for level, sign in ((mean - 0.2, 1), (mean + 0.2, -1)):
        assert float(flooding(level)(LOGITS, LABELS)) == pytest.approx(level + 0.2, abs=1e-6)
        assert torch.allclose(gradient(flooding(level)), sign * rows_of_cross_entropy() / 4, atol=1e-6)


def test_both_are_cross_entropy_where_every_loss_is_high():
    plain = gradient(F.cross_entropy)
    assert torch.allclose(gradient(local_gradient_ascent(0.0)), plain)
    assert torch.allclose(gradient(flooding(0.0)), plain)


# --- isolating --------------------------------------------------------------------------------------------------------


def test_the_lowest_losses_are_isolated_lowest_first():
    losses = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.0, 3.0, 2.0, 2.5, 1.0, 0.7])
    assert lowest(losses, 0.3).tolist() == [4, 1, 3]
    assert lowest(losses, 0.3).dtype == torch.int64 and len(lowest(losses, 0.04)) == 0
    assert lowest(losses, 1.0).tolist() == sorted(range(10), key=lambda i: (float(losses[i]), i))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert set(order[lowest(losses[order], 0.5)].tolist()) == set(lowest(losses, 0.5).tolist())


def test_early_losses_are_those_after_each_epoch():
    data, config = image_set(96, size=16), TrainConfig(epochs=1, batch_size=32, lr=0.02, shift=0)
    early = train_early(data, loss=F.cross_entropy, config=config, seed=3, progress=False)
    by_hand = train("small_cnn", data, config=config, seed=3, progress=False)
    assert torch.equal(early.losses[0], image_losses(by_hand, data)) and same(state(early.model), state(by_hand))
    a, b, other = (train_early(data, config=EARLY, seed=s, progress=False).losses for s in (3, 3, 4))
    assert a.shape == (EARLY.epochs, 96) and torch.equal(a, b) and not torch.equal(a, other)


def test_the_look_at_the_losses_does_not_disturb_the_training():
    data = image_set(96, size=16)
    watched = train_early(data, loss=F.cross_entropy, config=EARLY, progress=False).losses
    assert torch.equal(watched[-1], image_losses(train("small_cnn", data, config=EARLY, progress=False), data))


def test_poisoned_images_are_learned_first():
    poisoned = ATTACK.poison(noisy())
    losses = train_early(poisoned.without_secrets(), config=EARLY, progress=False).losses.mean(0)
    assert losses[poisoned.poisoned].mean() < 0.5 * losses[~poisoned.poisoned].mean()
    assert poisoned.poisoned[lowest(losses, 0.05)].float().mean() >= 0.95


# --- unlearning -------------------------------------------------------------------------------------------------------


def test_isolated_images_are_set_apart_and_marked():
    data = image_set(10)
    apart = set_apart(data, torch.tensor([7, 2]), copies=3)
    assert len(apart) == 8 + 6 and apart.classes == ("a", "b", "c", "d", "not a", "not b", "not c", "not d")
    rest = [0, 1, 3, 4, 5, 6, 8, 9]
    assert torch.equal(apart.images[:8], data.images[rest]) and torch.equal(apart.labels[:8], data.labels[rest])
    assert torch.equal(apart.images[8:], data.images[[7, 2, 7, 2, 7, 2]])
    assert apart.labels[8:].tolist() == [3 + 4, 2 + 4] * 3
    fewer = set_apart(data, torch.tensor([7, 2]), without=torch.tensor([2, 5, 9]))
    assert torch.equal(fewer.images, data.images[[0, 1, 3, 4, 6, 8, 7, 2]])
    assert len(set_apart(data, torch.empty(0, dtype=torch.int64))) == 10


def test_the_cut_between_two_heaps_is_where_their_means_are_furthest_apart():
    values = torch.tensor([5.0, 0.1, 5.2, 0.3, 0.2, 4.9])
    assert two_heaps(values) == pytest.approx(0.3)
    drawn = torch.randn(60, generator=torch.Generator().manual_seed(0))
    by_hand = {
        float(c): (drawn <= c).sum() * (drawn > c).sum() * (drawn[drawn <= c].mean() - drawn[drawn > c].mean()) ** 2
        for c in drawn.sort().values[:-1]
    }
    assert two_heaps(drawn) == pytest.approx(max(by_hand, key=by_hand.__getitem__))


def test_suspects_are_the_faster_heap_of_the_label():
    labels = torch.tensor([1, 0, 1, 2, 1, 0, 2, 1])
    losses = torch.tensor([1e-4, 1e-5, 0.5, 0.4, 0.0, 2.0, 1.0, 3.0])
    assert suspects(losses, labels, 1).tolist() == [0, 4] and suspects(losses, labels, 1).dtype == torch.int64
    assert suspects(losses, labels, 0).tolist() == [1]
    assert len(suspects(losses, labels, 3)) == len(suspects(losses[:2], labels[:2], 1)) == 0


def test_without_two_heaps_there_are_no_suspects_and_the_slower_heap_is_never_empty():
    labels = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1])
    losses = torch.tensor([1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1.0, 0.5])
    assert suspects(losses, labels, 1).tolist() == [0, 1, 2, 3, 4, 5]  # most of the set
    assert len(suspects(torch.ones(8), labels, 1)) == 0  # all alike
    for apart, found in ((9.0, 0), (11.0, 4)):  # less, and more than an order of magnitude
        assert len(suspects(torch.tensor([1.0, 1, apart, 1, apart, 1, 1, apart]) / 20, labels, 1)) == found


def test_all_suspects_are_looked_for_until_another_label_is_learned_first(monkeypatch):
    data, seen = noisy(400), []  # labels 0, 1, 2, 3, 0, ...
    order = [[1, 5, 9], [13, 17], [2, 6, 10]]  # whose losses are low in each round, by their place in `data`

    def early(rest, seed, **_options):
        seen.append(len(rest))
        fast = data.images[order[len(seen)]]
        return EarlyTraining(nn.Identity(), torch.where(is_one_of(rest.images, fast), 1e-5, 1.0)[None])

    monkeypatch.setattr(sys.modules["labkit.defenses.suspect"], "train_early", early)
    losses = torch.where(is_one_of(data.images, data.images[order[0]]), 1e-5, 1.0)
    assert all_suspects(data, losses, 1, 0.005, 0.6).tolist() == [1, 5, 9, 13, 17] and seen == [397, 395]
    seen.clear()
    assert all_suspects(data, losses, 1, 0.5, 0.6).tolist() == [1, 5, 9] and seen == [397]  # 2 of the lowest 20


def is_one_of(images: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
    return (images[:, None] == some[None]).flatten(2).all(2).any(1)


def test_suspects_do_not_pull_against_the_ascent(poisoned, monkeypatch):
    seen, module = [], sys.modules["labkit.defenses.abl"]

    def noted(*arguments, **options):
        seen.append(options["without"])
        return set_apart(*arguments, **options)

    monkeypatch.setattr(module, "set_apart", noted)
    early = replace(EARLY, epochs=8)  # with this seed the two heaps are two orders of magnitude apart, in both formats
    made = abl(poisoned.without_secrets(), isolate=0.05, seed=2, **FAST | {"early_config": early, "config": EARLY})
    first = suspects(made.losses, poisoned.labels, 1)
    assert torch.isin(first, seen[0]).all() and torch.isin(seen[0], seen[1]).all() and len(first) > 0
    assert poisoned.poisoned[seen[0]].float().mean() > 0.8


def test_the_odds_against_a_label():
    p = LOGITS.double().softmax(1)[torch.arange(4), LABELS]
    assert torch.allclose(odds_against(LOGITS.double(), LABELS), ((1 - p) / p).log())
    each = F.cross_entropy(LOGITS.double(), LABELS, reduction="none")
    assert torch.allclose(odds_against(LOGITS.double(), LABELS), each.expm1().log())


def test_a_fully_believed_image_has_odds_to_climb_where_its_loss_has_no_slope():
    sure = torch.tensor([[40.0, 0.0, 0.0]])
    slopes = []
    for climbed in (odds_against, lambda z, y: F.cross_entropy(z, y, reduction="none")):
        logits = sure.clone().requires_grad_()
        climbed(logits, torch.tensor([0])).sum().backward()
        slopes.append(float(logits.grad.abs().sum()) if logits.grad is not None else 0.0)
    assert slopes[0] == pytest.approx(2.0) and slopes[1] < 1e-12


def test_the_objective_descends_on_losses_and_ascends_on_odds():
    marked = LABELS + torch.tensor([0, 3, 0, 3])  # images 1 and 3
    each, odds = F.cross_entropy(LOGITS, LABELS, reduction="none"), odds_against(LOGITS, LABELS)
    value = descend_and_ascend(3, weight=2.0)(LOGITS, marked)
    assert float(value) == pytest.approx(float(each[0] - 2 * odds[1] + each[2] - 2 * odds[3]) / 4)
    p = LOGITS.softmax(1)[torch.arange(4), LABELS]
    factors = torch.tensor([1.0, -2 / float(1 - p[1]), 1, -2 / float(1 - p[3])])[:, None]  # d odds = dl / (1 - p)
    found = gradient(descend_and_ascend(3, 2.0), marked)
    assert torch.allclose(found, factors * rows_of_cross_entropy() / 4, atol=1e-6)


@pytest.mark.parametrize("mark", [0, 3])
def test_an_image_above_the_ceiling_is_let_alone(mark):
    values = odds_against(LOGITS, LABELS) if mark else F.cross_entropy(LOGITS, LABELS, reduction="none")
    assert (values > 1.0).tolist() == [False, True, False, True]
    pushed = gradient(descend_and_ascend(3, 1.0, ceiling=1.0), LABELS + mark).abs().sum(1)
    assert (pushed > 0).tolist() == [True, False, True, False]


def test_the_objective_is_bounded_below():
    far = torch.tensor([[-1e4, 0.0, 0.0]])
    assert float(descend_and_ascend(3, 2.0)(far, torch.tensor([3]))) == -10.0


def test_the_isolated_images_pull_as_hard_as_the_others_of_their_label():
    labels = torch.tensor([1, 1, 1, 0, 2, 1, 1])
    data = ImageSet(torch.rand(7, 1, 4, 4), labels, ("a", "b", "c"))
    assert balance(set_apart(data, torch.tensor([0, 6]), copies=2), 1) == 3 / 4  # three of class b, two marked twice
    assert balance(set_apart(data, torch.tensor([0]), copies=2, without=torch.tensor([1, 2])), 1) == 2 / 2


def test_images_of_the_label_whose_loss_is_high_are_disbelieved():
    data, model = image_set(80), linear_model()
    losses = image_losses(model, data)
    found = disbelieved(model, data, 2, 1.4)
    assert 0 < len(found) < 20 and found.dtype == torch.int64
    assert found.tolist() == [i for i in range(80) if int(data.labels[i]) == 2 and float(losses[i]) > 1.4]


def test_the_commonest_label_and_its_share():
    assert one_class(torch.tensor([3, 3, 1, 3])) == (3, 0.75)


# --- both stages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned():
    return ATTACK.poison(noisy(600))


@pytest.fixture(scope="module")
def result(poisoned):
    return abl(poisoned.without_secrets(), isolate=0.05, **FAST)


def test_the_backdoor_is_not_learned_and_the_task_is(poisoned, result):
    test = noisy(200, seed=5)
    victim = evaluate(
        train("small_cnn", poisoned.without_secrets(), config=SHORT, progress=False), test, ATTACK.trigger, 1
    )
    report = evaluate(result.model, test, ATTACK.trigger, 1)
    assert victim.attack_success_rate > 0.9 and victim.robust_accuracy < 0.1
    assert report.attack_success_rate < 0.1 and report.robust_accuracy > 0.8
    assert report.clean_accuracy > victim.clean_accuracy - 0.03


def test_what_was_isolated_is_poisoned_and_the_record_says_so(poisoned, result):
    assert result.isolated.shape == (30,) and result.isolated.dtype == torch.int64
    assert poisoned.poisoned[result.isolated].float().mean() >= 0.95
    early = train_early(poisoned, config=EARLY, progress=False)
    assert torch.equal(result.losses, early.losses.mean(0)) and torch.equal(
        result.isolated, lowest(result.losses, 0.05)
    )
    left = 600 - len(torch.cat([result.isolated, result.disbelieved]).unique()) + 2 * 30  # isolated images count twice
    assert len(result.history) == round(SHORT.epochs * 600 / left) > SHORT.epochs  # as many steps as on all of them
    assert [e.number for e in result.history] == list(range(1, len(result.history) + 1)) and not result.model.training
    assert result.label == "b" and result.agreement == 1.0
    assert "30 of 600 images isolated" in str(result) and "labelled 'b'" in str(result)


def test_the_network_that_has_unlearned_disbelieves_the_other_poisoned_images(poisoned, result):
    found = torch.zeros(600, dtype=torch.bool)
    found[result.disbelieved] = True
    assert found[poisoned.poisoned].float().mean() > 0.95
    assert found[~poisoned.poisoned].float().mean() < 0.05
    assert torch.equal(result.disbelieved, disbelieved(result.unlearned, poisoned, 1, 2.5))


def test_it_never_reads_the_secrets_and_leaves_the_set_as_it_is(poisoned, result):
    images, labels = poisoned.images.clone(), poisoned.labels.clone()
    again = abl(poisoned, isolate=0.05, **FAST)
    assert same(state(again.model), state(result.model)) and torch.equal(again.isolated, result.isolated)
    assert torch.equal(images, poisoned.images) and torch.equal(labels, poisoned.labels)


def test_a_network_that_is_there_already_is_used_and_left_as_it_is(poisoned, result):
    start = train("small_cnn", poisoned.without_secrets(), config=SHORT, progress=False)
    before = state(start)
    again = abl(poisoned.without_secrets(), isolate=0.05, start=start, **FAST)
    assert same(before, state(start)) and same(state(again.unlearned), state(result.unlearned))


def ninths(n: int, seed: int) -> ImageSet:
    """Nine classes, each a little brighter in its own ninth."""
    labels, images = torch.arange(n) % 9, 0.4 * torch.rand(n, 3, 18, 18, generator=torch.Generator().manual_seed(seed))
    for k in range(9):
        row, column = divmod(k, 3)
        images[labels == k, :, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 0.15
    return ImageSet(images, labels, tuple("abcdefghi"), "tiny")


@pytest.mark.parametrize(
    "data, rate, seed",
    [
        (noisy(600), 0.5, 0),
        (ninths(900, 1), 0.7, 1),  # where ascent unlearns the whole class
    ],
)
def test_most_of_the_set_may_be_poisoned(data, rate, seed):
    attack = BadNets(target=1, rate=rate)
    poisoned = attack.poison(data)
    trained = abl(poisoned.without_secrets(), isolate=0.05, seed=seed, **FAST)
    found = torch.zeros(len(data), dtype=torch.bool)
    found[trained.disbelieved] = True
    assert found[poisoned.poisoned].float().mean() > 0.95 and found[~poisoned.poisoned].float().mean() < 0.05
    test = noisy(200, seed=5) if rate == 0.5 else ninths(270, 50)
    report = evaluate(trained.model, test, attack.trigger, 1)
    assert report.attack_success_rate < 0.1 and report.clean_accuracy > 0.9


def test_an_ascent_that_has_unlearned_the_class_is_not_believed():
    suspected, own = torch.tensor([3, 1]), torch.arange(12)  # ten others
    assert all_doubted(torch.arange(0, 11), suspected, own).tolist() == list(range(11))  # nine of the ten
    assert all_doubted(torch.arange(0, 12), suspected, own).tolist() == [1, 3]
    assert all_doubted(own, suspected[:0], own).tolist() == list(range(12))  # nothing else to go by
    assert all_doubted(own[:0], own, own).tolist() == list(range(12))


def test_a_set_in_which_no_class_is_learned_first_has_nothing_to_unlearn(monkeypatch):
    clean, drawn = noisy(200), torch.rand(200, generator=torch.Generator().manual_seed(0))  # fast, whatever the class

    def early(training_set, **_options):
        return EarlyTraining(nn.Identity(), drawn[None])

    monkeypatch.setattr(sys.modules["labkit.defenses.abl"], "train_early", early)
    brief = FAST | {"config": EARLY}
    trained = abl(clean, isolate=0.1, seed=1, **brief)
    assert len(trained.isolated) == len(trained.disbelieved) == 0 and trained.agreement < 0.6
    assert "nothing unlearned" in str(trained) and "no one class stands out" in str(trained)
    assert same(state(trained.model), state(train("small_cnn", clean, config=EARLY, seed=1, progress=False)))
    in_any_case = abl(clean, isolate=0.1, agreement=0.0, seed=1, **brief)  # as the paper
    assert len(in_any_case.isolated) == 20 and in_any_case.unlearned is not None


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"isolate": 0.0}, "isolate: 0.0 of 60 images is 0; expected 1 to 59"),
        ({"isolate": 1.0}, "is 60; expected 1 to 59"),
        ({"isolate": 0.001}, "is 0; expected 1"),
        ({"isolate": -0.1}, "isolate: -0.1"),
        ({"strength": 0.0}, "strength 0.0"),
        ({"strength": math.inf}, "strength inf"),
        ({"ceiling": -1.0}, "ceiling -1.0"),
        ({"agreement": 1.5}, "agreement 1.5"),
        ({"arch": "vgg"}, "expected one of small_cnn"),
        ({"training_set": image_set(60)[:0]}, "of 0 images"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        abl(**({"training_set": image_set(60), "isolate": 0.1, **FAST} | change))


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        abl(image_set(60, size=16), early=lambda z, y: z.sum() * math.nan, isolate=0.1, **FAST)
    wild = TrainConfig(epochs=1, batch_size=32, lr=1e30, shift=0)
    with pytest.raises(FloatingPointError):
        abl(image_set(60, size=16), isolate=0.1, early_config=wild, config=SHORT, progress=False)
