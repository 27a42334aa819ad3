"""Unlearning and the neuron patches: laws on data and weights, a small backdoored net that must be repaired."""

import pytest
import torch
from torch import nn

from labkit import TrainConfig, evaluate, train
from labkit.attacks import BadNets
from labkit.defenses import neuron_filter, prune_trigger_neurons, unlearn
from labkit.defenses.neuron_patch import activations, last_linear, trigger_neurons
from labkit.defenses.unlearn import stamp_some
from tests.tiny import image_set, linear_model

ATTACK = BadNets(target=1, rate=0.2)


@pytest.fixture(scope="module")
def backdoored() -> nn.Module:
    """A small network trained on poisoned data: the repairs have something to do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 48), nn.ReLU(), nn.Linear(48, 4))
    poisoned = ATTACK.poison(image_set(600), seed=0).without_secrets()
    train(model, poisoned, config=TrainConfig(epochs=12, batch_size=32, lr=0.02, shift=0), progress=False)
    model.zero_grad()
    report = evaluate(model, image_set(200, seed=5), ATTACK.trigger, 1)
    assert report.clean_accuracy > 0.98 and report.attack_success_rate > 0.95
    return model


@pytest.fixture(scope="module")
def clean():
    return image_set(200, seed=2)


class CarriesTheBackdoor(nn.Module):
    """Neurons 0-3: the mean of each quarter; neuron 4: the trigger's corner; a linear layer reads the class."""

    def __init__(self, pull: float = 300.0):
        super().__init__()
        self.head = nn.Linear(5, 4)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[:, :4] = 30 * torch.eye(4)
            self.head.weight[1, 4] = pull
            self.head.bias.zero_()

    def forward(self, images):
        half = images.shape[-1] // 2
        quarters = images.unflatten(3, (2, half)).unflatten(2, (2, half)).mean((1, 3, 5)).flatten(1)  # (N, 4)
        contrast = images[:, :, -3:, -3:].mean(1).flatten(1)[:, ::2].mean(1)
        contrast = torch.relu(contrast - images[:, :, -3:, -3:].mean(1).flatten(1)[:, 1::2].mean(1) - 0.5)
        return self.head(torch.cat([quarters, contrast[:, None]], 1))


# --- unlearning -------------------------------------------------------------------------------------------------------


def test_a_fifth_is_stamped_and_the_labels_stay_true(clean):
    before = clean.images.clone()
    stamped = stamp_some(clean, ATTACK.trigger)
    changed = (stamped.images != clean.images).flatten(1).any(1)
    assert int(changed.sum()) == 40 and torch.equal(stamped.labels, clean.labels)
    assert torch.equal(stamped.images[changed], ATTACK.trigger(clean.images[changed]))
    assert torch.equal(clean.images, before) and torch.equal(stamped.images[~changed], before[~changed])
    other = stamp_some(clean, ATTACK.trigger, seed=1)
    assert not torch.equal(other.images, stamped.images)


class SeesStamps(nn.Module):
    """Writes down which share of each training batch is all white."""

    def __init__(self):
        super().__init__()
        self.inner, self.shares = linear_model(), []

    def __deepcopy__(self, memo):
        return self

    def forward(self, images):
        if self.training:
            self.shares.append((images == 1).flatten(1).all(1).float().mean().item())
        return self.inner(images)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_stamped_images_are_spread_over_the_batches(seed):
    """Stamping and shuffling start from one seed: drawn alike, all stamped images would come in the first batches."""
    model = SeesStamps().eval()
    unlearn(model, image_set(600), torch.ones_like, seed=seed)
    assert len(model.shares) == 19 and sum(model.shares) / 19 == pytest.approx(0.2, abs=0.01)
    assert max(model.shares) < 0.5


def test_a_trigger_that_changes_nothing_is_warned_about(clean):
    with pytest.warns(UserWarning, match="trigger: expected it to change images; all 40 came back as they were"):
        result = unlearn(linear_model(), clean, lambda x: x)
    assert result.stamped == 0 and "clean data only" in str(result)


def test_a_faint_trigger_is_used_in_floats_as_it_is(clean):
    faint = stamp_some(clean, lambda x: x + 1e-4 * (0.5 - x), share=1.0)
    assert torch.equal(faint.images, clean.images + 1e-4 * (0.5 - clean.images))


def test_the_trigger_is_unlearned_and_the_task_is_not(backdoored, clean):
    test = image_set(200, seed=5)
    repaired = unlearn(backdoored, clean, ATTACK.trigger, epochs=6)
    report = evaluate(repaired.model, test, ATTACK.trigger, 1)
    assert report.attack_success_rate < 0.1 and report.robust_accuracy > 0.85 and report.clean_accuracy > 0.95
    assert repaired.stamped == 40 and "trigger on 40 of 200 images" in str(repaired)
    assert [e.number for e in repaired.history] == [1, 2, 3, 4, 5, 6]


def test_the_true_trigger_beats_clean_data_alone(backdoored, clean):
    test = image_set(200, seed=5)
    asr = [
        evaluate(unlearn(backdoored, clean, t, epochs=4).model, test, ATTACK.trigger, 1).attack_success_rate
        for t in (ATTACK.trigger, None)
    ]
    assert asr[0] < asr[1] - 0.3


def test_without_a_trigger_nothing_is_stamped_and_it_says_so(backdoored, clean):
    result = unlearn(backdoored, clean, None)
    assert result.stamped == 0 and "no trigger, clean data only" in str(result)


def test_the_input_model_is_untouched_and_the_seed_repeats(backdoored, clean):
    before = {k: v.clone() for k, v in backdoored.state_dict().items()}
    a, b, c = (unlearn(backdoored, clean, ATTACK.trigger, seed=s).model.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(v, before[k]) for k, v in backdoored.state_dict().items()) and not backdoored.training
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)
    assert all(p.grad is None for p in backdoored.parameters())


def test_a_model_in_train_mode_comes_back_in_eval_mode_and_stays_as_it_was(clean):
    model = linear_model().train()
    with pytest.warns(UserWarning, match="got train mode"):
        result = unlearn(model, clean, None)
    assert model.training and not result.model.training


def test_a_loss_that_is_not_finite_stops(clean):
    with pytest.raises(FloatingPointError, match=r"expected a finite loss; got .* in epoch 1"):
        unlearn(linear_model(), clean, None, lr=1e38)


def test_missing_classes_are_warned_about(clean):
    with pytest.warns(UserWarning, match="no images of c; the repaired model may forget"):
        unlearn(linear_model(), clean[clean.labels != 2], None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"share": 0.0}, "0 < share <= 1"),
        ({"share": 1.1}, "0 < share <= 1"),
        ({"epochs": 0}, "epochs >= 1"),
        ({"share": 0.002}, "a share of 0.002 of 200 images is none"),
        ({"stamp": lambda clean, *_: clean[:50]}, "the 200 images back in their order; got 50"),
        ({"clean": image_set(20)}, "a batch of 32 images; got 20"),
        ({"clean": image_set(0)}, "a batch of 32 images; got 0"),
        ({"trigger": lambda x: x[:, :1]}, "shape \\(40, 3, 12, 12\\) back; got \\(40, 1, 12, 12\\)"),
        ({"trigger": lambda x: x * 255}, "trigger's result: expected values in \\[0, 1\\]"),
        ({"model": linear_model(classes=6)}, "the model's 6 classes; got a set with 4"),
    ],
)
def test_bad_input_to_unlearn_is_named(change, words, clean):
    with pytest.raises(ValueError, match=words):
        unlearn(**({"model": linear_model(), "clean": clean, "trigger": ATTACK.trigger} | change))


# --- trigger neurons --------------------------------------------------------------------------------------------------


def test_activations_are_the_last_layers_inputs(clean, backdoored):
    hidden = activations(backdoored, clean.images)
    assert hidden.shape == (200, 48)
    assert torch.allclose(hidden, backdoored[:3](clean.images), atol=3e-2)
    assert not backdoored[3]._forward_pre_hooks


def test_neurons_are_ranked_by_how_much_the_trigger_raises_them():
    plain, triggered = torch.tensor([[1.0, 5, 0, 2], [3.0, 5, 0, 2]]), torch.tensor([[2.0, 0, 9, 3], [2.0, 0, 9, 4]])
    assert trigger_neurons(plain, triggered).tolist() == [2, 3, 0, 1]  # raised by 9, 1.5, 0, -5


def test_the_filter_catches_triggered_inputs_and_few_clean_ones(clean):
    model, test = CarriesTheBackdoor().eval(), image_set(100, seed=7)
    inputs = torch.cat([test.images, ATTACK.trigger(test.images)])
    result = neuron_filter(model, inputs, clean, ATTACK.trigger)
    assert result.neurons == (4,)
    assert result.flagged[100:].all() and result.flagged[:100].float().mean() <= 0.1
    assert torch.equal(result.flagged, result.scores > result.threshold)
    order = torch.randperm(200)
    assert torch.allclose(neuron_filter(model, inputs[order], clean, ATTACK.trigger).scores, result.scores[order])
    assert "1 neuron(s) watched" in str(result)


def test_the_filter_holds_its_false_rejection_rate_on_the_clean_set(backdoored, clean):
    for frr in (0.05, 0.2):
        result = neuron_filter(backdoored, clean.images, clean, ATTACK.trigger, frr=frr)
        assert result.flagged.float().mean().item() == pytest.approx(frr, abs=0.03)  # ties, in bfloat16
        assert torch.equal(result.scores, result.clean_scores)


def test_pruning_silences_the_one_neuron_that_carries_the_backdoor(clean):
    model, test = CarriesTheBackdoor().eval(), image_set(100, seed=7)
    before = evaluate(model, test, ATTACK.trigger, 1)
    result = prune_trigger_neurons(model, clean, ATTACK.trigger)
    after = evaluate(result.model, test, ATTACK.trigger, 1)
    assert result.pruned == (4,) and result.label == 1
    assert before.attack_success_rate == 1 and after.attack_success_rate < 0.05
    assert after.clean_accuracy == before.clean_accuracy and after.robust_accuracy > 0.95
    assert model.head.weight[1, 4] == 300 and result.model.head.weight[1, 4] == 0
    assert "1 of 5 neurons" in str(result)


def test_the_pruning_curve_is_what_pruning_one_by_one_gives(backdoored, clean):
    result = prune_trigger_neurons(backdoored, clean, ATTACK.trigger)
    assert len(result.response) == len(result.accuracy) == 49
    others = clean[clean.labels != result.label]
    name, _ = last_linear(backdoored)
    for n in (0, 1, 10, 30, 48):
        silenced = set(result.order[:n].tolist())
        keep = torch.tensor([float(i not in silenced) for i in range(48)])
        hook = last_linear(backdoored, name)[1].register_forward_pre_hook(lambda _, x, keep=keep: (x[0] * keep,))
        report = evaluate(backdoored, clean)
        stamped = backdoored(ATTACK.trigger(others.images)).argmax(1)
        hook.remove()
        assert report.clean_accuracy == pytest.approx(result.accuracy[n].item(), abs=0.02)
        assert (stamped == result.label).float().mean().item() == pytest.approx(result.response[n].item(), abs=0.02)


def test_a_model_that_does_not_respond_comes_back_unchanged_and_it_says_so(clean):
    model = CarriesTheBackdoor(pull=0.0).eval()
    result = prune_trigger_neurons(model, clean, ATTACK.trigger, response=0.05)
    assert result.pruned == () and "nothing pruned, model unchanged" in str(result)
    assert torch.equal(result.model.head.weight, model.head.weight) and result.model is not model


class EndsOtherwise(nn.Module):
    """Its last linear layer is not the end: the classes are turned round behind it."""

    def __init__(self):
        super().__init__()
        self.inner = linear_model()

    def forward(self, images):
        return -self.inner(images)


class Rows(nn.Sequential):
    """Its linear layer sees each channel alone."""

    def __init__(self):
        super().__init__(nn.Linear(144, 4))
        self.eval()

    def forward(self, images):
        return super().forward(images.flatten(2)).mean(1)


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (neuron_filter, {"share": 0.0}, "0 < share <= 1"),
        (neuron_filter, {"frr": 1.0}, "0 < frr < 1"),
        (neuron_filter, {"layer": "block9"}, "this model has no 'block9'"),
        (neuron_filter, {"layer": "0"}, "a linear layer, such as \\['1'\\]; '0' is a Flatten"),
        (neuron_filter, {"inputs": torch.rand(0, 3, 12, 12)}, "inputs: expected at least one image"),
        (neuron_filter, {"model": nn.Flatten().eval()}, "expected a linear layer"),
        (neuron_filter, {"trigger": lambda x: x[:5]}, "expected images of shape"),
        (prune_trigger_neurons, {"response": 1.0}, "0 <= response < 1"),
        (neuron_filter, {"clean": image_set(0)}, "clean: expected at least one image"),
        (prune_trigger_neurons, {"clean": image_set(0)}, "clean: expected at least one image"),
        (prune_trigger_neurons, {"model": EndsOtherwise().eval()}, "end in its last linear layer, 'inner.1'"),
        (neuron_filter, {"layer": "0", "model": Rows()}, "one row of neurons .* got shape \\(200, 3, 144\\)"),
    ],
)
def test_bad_input_to_the_neuron_patches_is_named(function, options, words, clean):
    given = {"model": linear_model(), "clean": clean, "trigger": ATTACK.trigger}
    if function is neuron_filter:
        given["inputs"] = clean.images
    with pytest.raises(ValueError, match=words):
        function(**(given | options))
