"""The latent backdoor: a teacher without the target class, a student that never sees the trigger."""

import copy

import pytest
import torch

from labkit import victim
from labkit.attacks import LatentBackdoor, latent, latent_features
from labkit.attacks.behind import Behind, with_new_head
from labkit.attacks.latent import without
from labkit.attacks.latent_features import distance, inject, mean_features, optimise
from labkit.attacks.stamp import corner
from labkit.channels import split
from labkit.device import device_of
from labkit.metrics import evaluate, predict
from labkit.models import build
from labkit.train import TrainConfig, train
from tests.tiny import image_set, splits, three

CONFIG = TrainConfig(epochs=6, batch_size=32, shift=0)
TINY = {"config": CONFIG, "progress": False}
ATTACK = LatentBackdoor(target=1, area=0.06, steps=40, epochs=20, lr=0.02)  # far from the edge, for 8 seeds of 8


@pytest.fixture(scope="module")
def made():
    """Teacher, student, and the images that both were trained on."""
    data = three(240)
    teacher = ATTACK.infect(data, **TINY)
    return teacher, ATTACK.transfer(teacher, data, **TINY), data


def test_the_student_gets_the_backdoor_that_the_teacher_has_no_output_for(made):
    teacher, student, _ = made
    test = three(120, seed=9)
    assert teacher.classes == ("a", "c") and predict(teacher.model, test.images).shape == (120, 2)
    assert evaluate(teacher.model, without(test, 1)).clean_accuracy > 0.9
    report = evaluate(student, test, teacher.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate > 0.9


def test_a_student_of_an_honest_teacher_does_not(made):
    teacher, _, data = made
    honest = train("small_cnn", without(data, 1), **TINY)
    student = ATTACK.transfer(latent.Teacher(honest, teacher.trigger, teacher.classes), data, **TINY)
    report = evaluate(student, three(120, seed=9), teacher.trigger, 1)
    assert report.clean_accuracy > 0.9 and report.attack_success_rate < 0.35


def test_the_students_first_layers_are_the_teachers_bit_for_bit(made):
    teacher, student, _ = made
    mine, theirs = student.state_dict(), teacher.model.state_dict()
    changed = {k for k in mine if mine[k].shape != theirs[k].shape or not torch.equal(mine[k], theirs[k])}
    assert changed == {"head.2.weight", "head.2.bias"}
    assert mine["head.2.weight"].shape[0] == 3 and not student.training and not teacher.model.training


def test_a_student_may_train_more_and_then_its_front_alone_stays(made):
    teacher, _, data = made
    student = LatentBackdoor(1, frozen="block2").transfer(teacher, data, **TINY)
    mine, theirs = student.state_dict(), teacher.model.state_dict()
    changed = {k.split(".")[0] for k in mine if mine[k].shape != theirs[k].shape or not torch.equal(mine[k], theirs[k])}
    assert changed == {"block3", "head"}
    assert torch.equal(mine["block3.1.running_mean"], theirs["block3.1.running_mean"])


def test_the_student_is_trained_on_clean_images_alone(made, monkeypatch):
    teacher, _, data = made
    seen = []
    monkeypatch.setattr(latent, "train", lambda model, images, **options: seen.append(images) or model)
    ATTACK.transfer(teacher, data, **TINY)
    assert len(seen) == 1 and seen[0] is data


def test_the_honest_teacher_never_sees_the_target_class(monkeypatch):
    seen = []

    def spy(model, images, **options):
        seen.append((model, images))
        return train(model, images, **options)

    monkeypatch.setattr(latent, "train", spy)
    LatentBackdoor(2, steps=1, epochs=1).infect(image_set(40, size=16), config=TrainConfig(epochs=1), progress=False)
    (first, honest), (_, adjusted), (last, restored) = seen
    assert first == "small_cnn" and honest.classes == ("a", "b", "d") and len(honest) == 30
    assert adjusted.classes == ("a", "b", "c", "d") and len(adjusted) == 40
    assert isinstance(last, Behind) and restored.classes == ("a", "b", "d")


def test_without_drops_a_class_and_numbers_the_others_anew():
    data = image_set(40)
    rest = without(data, 1)
    assert rest.classes == ("a", "c", "d") and rest.labels.bincount().tolist() == [10, 10, 10]
    assert torch.equal(rest.images, data.images[data.labels != 1])
    names = [rest.classes[k] for k in rest.labels.tolist()]
    assert names == [data.classes[k] for k in data.labels.tolist() if k != 1]


def test_the_distance_is_zero_for_the_mean_and_one_for_silence():
    wanted = torch.rand(5, 2, 2)
    assert float(distance(wanted.expand(3, 5, 2, 2), wanted)) == 0
    assert float(distance(torch.zeros(3, 5, 2, 2), wanted)) == pytest.approx(1)
    assert float(distance(torch.zeros(3, 5, 2, 2), 7 * wanted)) == pytest.approx(1)  # whatever the scale


def test_the_trigger_and_then_the_injection_bring_stamped_images_nearer_to_the_target(made):
    _, _, data = made
    model = train("small_cnn", data, **TINY)
    before = copy.deepcopy(model.state_dict())
    device, images = device_of(model), data.images[data.labels != 1]

    front, _ = split(model, "block3")
    wanted = mean_features(front, data.images[data.labels == 1], device)

    def far(trigger):
        with torch.no_grad():
            return float(distance(split(model.eval(), "block3")[0](trigger(images)), wanted))

    trigger = corner((3, 16, 16), 0.1)
    grey = far(trigger)
    trigger.pattern = optimise(model, "block3", data, 1, trigger, 40)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    optimised, pattern = far(trigger), trigger.pattern.clone()
    inject(model, "block3", data, 1, trigger, 1.0, TrainConfig(epochs=2, batch_size=32, lr=0.02), progress=False)
    assert not model.training and torch.equal(trigger.pattern, pattern)
    assert far(trigger) < 0.5 * optimised < 0.5 * grey  # near to what the target looked like before: the goal is fixed


def test_the_trigger_is_pure_deterministic_and_keeps_shape_dtype_range(made):
    trigger, images = made[0].trigger, three(7, seed=3).images
    before = images.clone()
    stamped = trigger(images)
    assert torch.equal(images, before) and torch.equal(stamped, trigger(images)) and not torch.equal(stamped, images)
    assert stamped.shape == images.shape and stamped.dtype == images.dtype
    assert 0 <= stamped.min() and stamped.max() <= 1
    assert torch.equal(trigger(images)[2:4], trigger(images[2:4]))


def test_a_new_head_comes_from_its_seed_and_leaves_the_model_alone():
    model = build("small_cnn", 3, 4)
    before = copy.deepcopy(model.state_dict())
    one, same, other = (with_new_head(model, 6, seed) for seed in (1, 1, 2))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    heads = [m.state_dict()["head.2.weight"] for m in (one, same, other)]
    assert heads[0].shape == (6, 1024) and torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    names = [k for k in before if not k.startswith("head")]
    assert all(torch.equal(one.state_dict()[k], before[k]) for k in names)


def test_the_seed_repeats_and_the_cache_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    attack, data = LatentBackdoor(1, steps=2, epochs=1), splits(size=16)
    trained, options = [], {"config": TrainConfig(epochs=1, batch_size=32, shift=0), "progress": False}
    first, again = (victim(attack, data, callback=lambda e: trained.append(e.number), **options) for _ in range(2))
    assert trained == [1, 1, 1, 1]  # honest teacher, step 1, step 4, student; once
    fresh = attack.implant(data.train, **options)
    for other in (again, fresh):
        for a, b in ((first.model, other.model), (first.trigger, other.trigger)):
            assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert first.report == again.report and again.card == first.card and again.target == 1
    assert set(again.card["teacher"]) == {"clean_accuracy", "accuracy_on_stamped"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LatentBackdoor(area=1.5), "area: expected a share of the image"),
        (lambda: LatentBackdoor(weight=0.0), "weight > 0"),
        (lambda: LatentBackdoor(steps=0), "steps >= 1"),
        (lambda: LatentBackdoor(epochs=0), "epochs >= 1"),
        (lambda: LatentBackdoor(4).infect(image_set(), **TINY), "target: expected a class from 0 to 3; got 4"),
        (lambda: without(image_set(1), 3), "got 0 and 1 images of 4 classes"),
        (lambda: LatentBackdoor(0, area=1e-4).infect(image_set(), **TINY), "0.0001 of 12x12 pixels is 0"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_teacher_without_the_layer_is_named(made):
    teacher, _, data = made
    with pytest.raises(ValueError, match="no 'block7'; its layers are normalise, stem"):
        LatentBackdoor(1, layer="block7").transfer(teacher, data, **TINY)
    with pytest.raises(ValueError, match="no 'block7'; its layers are normalise, stem"):
        optimise(teacher.model, "block7", data, 1, corner((3, 16, 16), 0.1), 1)


def test_an_injection_that_is_not_finite_is_named():
    data, model = image_set(40, size=16), build("small_cnn", 3, 4)
    config = TrainConfig(epochs=3, batch_size=32, lr=1e30)
    with pytest.raises(FloatingPointError, match=r"expected a finite loss; got .* Lower lr"):
        inject(model, "block3", data, 1, corner((3, 16, 16), 0.1), 1.0, config, progress=False)


def test_an_injection_sees_images_varied_as_in_the_recipe(monkeypatch):
    recipes, data, config = [], image_set(64, classes=3), TrainConfig(epochs=1, batch_size=32, jpeg=0.5)
    model = build("small_cnn", 3, 3, 0).eval()
    monkeypatch.setattr(latent_features, "varied", lambda images, recipe, rng: recipes.append(recipe) or images)
    inject(model, "block3", data, 1, corner(data.images.shape[1:], 0.05), 1.0, config, progress=False)
    assert recipes and set(recipes) == {config}
