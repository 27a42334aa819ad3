"""Pruning and fine-tuning against an oracle with one backdoor neuron, a plain loop, and laws of zeros and copies."""

import pytest
import torch
from torch import nn

from labkit.attacks import BadNets
from labkit.channels import Mask, activity, last_block, peaks, silenced, what_follows
from labkit.defenses import fine_prune, fine_tune, prune, pruning_curve
from labkit.defenses.prune import dormant_first, how_many
from labkit.metrics import evaluate, predict
from labkit.models import build, named_layer
from labkit.train import TrainConfig
from tests.tiny import image_set

SHORT = TrainConfig(epochs=3, batch_size=20, lr=0.05, shift=0)


class Neurons(nn.Module):
    """(N, 3, 12, 12) -> (N, 6, 1, 1): four channels see one quarter each, one the corner patch, one is always small."""

    rest = 0.0  # what the patch's channel says to other images

    def forward(self, images):
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).mean(1).flatten(1)  # (N, 4)
        i = torch.arange(3)
        white = ((i[:, None] + i) % 2 == 0).to(images)
        fires = ((images[:, 0, -3:, -3:] - white).abs().flatten(1).amax(1) < 1e-2).to(images)
        return torch.cat([quarters, fires[:, None].clamp_min(self.rest), torch.full_like(fires[:, None], 0.01)], 1)[
            :, :, None, None
        ]


def oracle() -> nn.Sequential:
    """Classifies `image_set` perfectly; channel 4 is dormant on clean images and sends the patch to class 0."""
    model, linear = nn.Sequential(), nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight.zero_(), linear.bias.zero_()
        linear.weight[range(4), range(4)] = 20.0
        linear.weight[0, 4] = 100.0
    model.add_module("block1", nn.Sequential(Neurons()))
    model.add_module("head", nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear))
    return model.eval()


def trained(arch: str = "small_cnn") -> nn.Module:
    """Fresh weights, but normalisation statistics as if it had been trained."""
    size = 8 if arch == "preact_resnet18" else 16
    model = build(arch, 3, 4, seed=1).train()
    images = image_set(40, size=size).images
    with torch.no_grad():
        for _ in range(3):
            model(images)
        named_layer(model, "head.2").bias -= model.eval()(images).mean(0)  # else one class may get all images
    return model.eval()


def test_pruning_cuts_the_backdoor_neuron_and_nothing_else():
    model, clean, test = oracle(), image_set(40, seed=1), image_set(60, seed=2)
    trigger = BadNets(0).trigger
    before = evaluate(model, test, trigger, 0)
    assert before.clean_accuracy == 1 and before.attack_success_rate == 1
    result = prune(model, clean)
    assert result.order[:2].tolist() == [4, 5] and result.pruned == 2
    after = evaluate(result.model, test, trigger, 0)
    assert after.clean_accuracy == 1 and after.attack_success_rate == 0 and after.robust_accuracy == 1


def test_the_evaluators_curves_show_the_backdoor_go():
    model, test = oracle(), image_set(60, seed=2)
    others = test[test.labels != 0]
    stamped = BadNets(0).trigger(others.images)
    order = torch.tensor([5, 4, 0, 1, 2, 3])
    asr = pruning_curve(model, stamped, torch.zeros_like(others.labels), order)
    ra = pruning_curve(model, stamped, others.labels, order)
    assert asr[:2].tolist() == [1, 1] and asr[2] == 0 and ra[:3].tolist() == [0, 0, 1]
    assert pruning_curve(model, test.images, test.labels, order)[-1] == 0.25  # all silent: every image is class 0


@pytest.mark.parametrize(
    ("arch", "layer"),
    [("small_cnn", None), ("small_cnn", "block2"), ("wrn16_1", None), ("preact_resnet18", None), ("wrn16_1", "block2")],
)
def test_the_curve_equals_a_plain_loop_over_pruned_models(arch, layer):
    model, data = trained(arch), image_set(24, size=8 if arch == "preact_resnet18" else 16, seed=3)
    layer = layer or last_block(model)
    order = dormant_first(activity(model, data.images, layer))
    labels = predict(model, data.images).argmax(1)  # its own answers: accuracy falls from 1 as channels go
    curve = pruning_curve(model, data.images, labels, order, layer)
    assert curve.shape == (len(order) + 1,) and curve[0] == 1 and curve.min() < 0.8
    for n in torch.linspace(0, len(order), 4).long().tolist():
        one = silenced(model, layer, order[:n], len(order))
        share = float((predict(one, data.images).argmax(1) == labels).float().mean())
        assert float(curve[n]) == pytest.approx(share, abs=0.09)  # two images of 24: ties under bfloat16


def test_part_of_an_order_silences_only_that_part():
    model, test = oracle(), image_set(60, seed=2)
    full = pruning_curve(model, test.images, test.labels, torch.tensor([2, 0, 1, 3, 4, 5]))
    assert torch.equal(pruning_curve(model, test.images, test.labels, torch.tensor([2, 0])), full[:3])
    assert full[1] < 1


@pytest.mark.parametrize("arch", ["small_cnn", "wrn16_1", "preact_resnet18"])
def test_activity_and_peaks_are_those_of_the_layers_output(arch):
    model, images = trained(arch), image_set(10, size=8).images
    layer = last_block(model)
    assert layer == ("block4" if arch == "preact_resnet18" else "block3")
    with torch.no_grad():
        x = images
        for name, part in model.named_children():
            x = part(x)
            if name == layer:
                break
    assert torch.allclose(activity(model, images, layer), x.mean((0, 2, 3)), atol=0.05)
    assert torch.allclose(peaks(model, images, layer), x.amax((0, 2, 3)), rtol=0.05, atol=0.05)


def test_dormant_channels_come_first():
    assert dormant_first(torch.tensor([3.0, 0.0, 2.0, 0.0])).tolist() == [1, 3, 2, 0]


def test_the_last_point_within_the_threshold_is_taken_and_one_channel_stays():
    curve = torch.tensor([0.9, 0.9, 0.84, 0.88, 0.8, 0.2])
    assert [how_many(curve, drop) for drop in (0.0, 0.03, 0.06, 0.1, 0.9)] == [1, 3, 3, 4, 4]


def test_silenced_channels_are_zero_and_stay_zero_through_fine_tuning():
    clean = image_set(40, size=16, seed=1)
    result = fine_prune(trained(), clean, max_drop=0.3, config=SHORT, progress=False)
    n = result.pruning.pruned
    assert n > 20
    loud = activity(result.model, clean.images, "block3")
    assert torch.equal(loud[result.pruning.order[:n]], torch.zeros(n))
    assert (loud[result.pruning.order[n:]] > 0).float().mean() > 0.9
    moved = named_layer(result.model, "head.2").weight - named_layer(result.pruning.model, "head.2").weight
    assert moved.abs().max() > 1e-3  # it did train


def test_the_record_holds_a_copy_that_later_training_does_not_change():
    model, clean = trained(), image_set(40, size=16, seed=1)
    result = prune(model, clean, max_drop=0.2)
    before = predict(result.model, clean.images)
    fine_tune(result.model, clean, config=SHORT, progress=False)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(predict(result.model, clean.images), before)


@pytest.mark.parametrize("repair", [prune, fine_tune, fine_prune])
def test_the_model_is_left_as_it_was(repair):
    model, clean = trained(), image_set(40, size=16, seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = {} if repair is prune else {"config": SHORT, "progress": False}
    result = repair(model, clean, **options)
    assert result.model is not model and not result.model.training and not model.training
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(v, before[k]) for k, v in after.items())
    assert not any(part._forward_hooks for part in model.modules())


def test_fine_tuning_learns_and_repeats_from_its_seed():
    model, clean = trained(), image_set(80, size=16, seed=1)
    a, b = (fine_tune(model, clean, config=SHORT, seed=3, progress=False) for _ in range(2))
    assert evaluate(a.model, clean).clean_accuracy > evaluate(model, clean).clean_accuracy + 0.3
    assert [e.number for e in a.history] == [1, 2, 3] and a.history[-1].loss < a.history[0].loss
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert "3 epochs" in str(a)


def test_stopping_uses_the_clean_set_alone_and_a_tighter_threshold_prunes_less():
    clean = image_set(100, size=16, seed=1, strength=0.2)
    model = fine_tune(trained(), image_set(200, size=16, strength=0.2), config=SHORT, progress=False).model
    counts = [prune(model, clean, max_drop=drop) for drop in (0.0, 0.1, 0.5)]
    assert 0 < counts[0].pruned < counts[1].pruned < counts[2].pruned < 256
    for result in counts:
        kept, floor = float(result.history[result.pruned]), float(result.history[0]) - result.max_drop
        assert kept >= floor - 1e-6 and (result.history[result.pruned + 1 : -1] < floor).all()
        assert evaluate(result.model, clean).clean_accuracy == pytest.approx(kept, abs=0.04)


def test_pruning_twice_adds_to_the_mask():
    model = silenced(silenced(oracle(), "block1", torch.tensor([4]), 6), "block1", torch.tensor([5, 1]), 6)
    assert (activity(model, image_set(8).images, "block1") > 0).tolist() == [True, False, True, True, False, False]
    assert "channels silenced" in repr(model) and not list(Mask(torch.ones(2)).parameters())


def test_nothing_to_prune_is_said():
    model = oracle()
    linear = named_layer(model, "head.2")
    named_layer(model, "block1.0").rest = 0.005
    with torch.no_grad():  # the least active channel, now at 0.005, cancels class 0's bias: without it class 0 is lost
        linear.bias[0], linear.weight[0, 4] = -50.0, 10_000.0
    result = prune(model, image_set(40, seed=1), max_drop=0.0)
    assert result.pruned == 0 and "nothing pruned, the model is unchanged" in str(result)
    assert "2 of 6 channels of block1 silenced" in str(prune(oracle(), image_set(40, seed=1)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prune(trained(), image_set(8, size=16), layer="block9"), "no 'block9'; its layers are normalise"),
        (lambda: prune(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval(), image_set(8)), "no 'block3'"),
        (lambda: prune(oracle(), image_set(8)[:0]), "clean: expected at least 1 images; got 0"),
        (lambda: prune(oracle(), image_set(8), max_drop=4), "For 4 points write 0.04"),
        (lambda: prune(oracle(), image_set(8), max_drop=-0.1), "max_drop"),
        (lambda: fine_tune(trained(), image_set(4)[:1], progress=False), "at least 2 images; got 1"),
        (lambda: pruning_curve(trained("wrn16_1"), image_set(4).images, torch.zeros(4), torch.arange(9),
                               "block1.0.bn1"),
         "expected a chain .* got PreActBlock"),
        (lambda: pruning_curve(oracle(), torch.full((4, 3, 9, 9), 9.0), torch.zeros(4), torch.arange(6)), "\\[0, 1\\]"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_missing_classes_are_warned_about():
    clean = image_set(40, seed=1)
    with pytest.warns(UserWarning, match="none of c"):
        prune(oracle(), clean[clean.labels != 2])


def test_a_loss_that_explodes_stops_fine_tuning():
    model = trained()
    with torch.no_grad():
        named_layer(model, "head.2").weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        fine_tune(model, image_set(40, size=16), config=SHORT, progress=False)


def test_what_follows_ends_in_the_models_logits():
    model, images = trained(), image_set(6, size=16).images
    with torch.no_grad():
        x = named_layer(model, "block1")(model.stem(model.normalise(images)))
        for part in what_follows(model, "block1"):
            x = part(x)
        assert torch.allclose(x, model(images), atol=1e-5)
