"""The graders are tested: the reference is right, a stub gets nothing, other right answers count, wrong ones do not."""

import importlib
import pkgutil

import pytest

import tests.answers as answers
from labkit import checks
from labkit.checks.exercise import Exercise

LABS = sorted(m.name for m in pkgutil.iter_modules(checks.__path__) if m.name.startswith("lab"))
EXERCISES = {
    (lab, name): made
    for lab in LABS
    for name, made in vars(importlib.import_module(f"labkit.checks.{lab}")).items()
    if isinstance(made, Exercise)
}


def samples(lab: str):
    return importlib.import_module(f"{answers.__name__}.{lab}")


each = pytest.mark.parametrize(("lab", "name"), sorted(EXERCISES))


def test_every_lab_has_exercises_worth_ten_points():
    assert LABS
    for lab in LABS:
        mine = [made for (owner, _), made in EXERCISES.items() if owner == lab]
        assert 3 <= len(mine) <= 5, lab
        assert sum(made.points for made in mine) == 10, lab


@each
def test_the_constant_is_named_after_the_students_function(lab, name):
    assert EXERCISES[lab, name].name == name


@each
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_reference_earns_every_point(lab, name, seed):
    made = EXERCISES[lab, name]
    points = made(made.reference, seed)
    assert points == made.points, points.message


@each
def test_a_stub_earns_nothing_and_is_told_so(lab, name):
    made = EXERCISES[lab, name]
    points = made(lambda *args, **kwargs: ...)
    assert points == 0 and "Not attempted" in points.message
    assert points.function is made.reference


@each
def test_an_error_is_a_message_not_a_crash(lab, name):
    def broken(*args):
        raise IndexError("index 9 is out of bounds")

    points = EXERCISES[lab, name](broken)
    assert points == 0 and "IndexError" in points.message


@each
@pytest.mark.parametrize("seed", [0, 77])
def test_other_right_answers_earn_every_point(lab, name, seed):
    right = samples(lab).RIGHT[name]
    assert len(right) >= 3
    for answer in right:
        points = EXERCISES[lab, name](answer, seed)
        assert points == EXERCISES[lab, name].points, f"{answer}: {points.message}"
        assert points.function is answer


@each
def test_wrong_answers_lose_points_and_hear_the_concept(lab, name):
    wrong = samples(lab).WRONG[name]
    assert len(wrong) >= 5
    for answer, concept in wrong:
        points = EXERCISES[lab, name](answer)
        assert points < EXERCISES[lab, name].points, f"{answer} passes"
        assert concept.lower() in points.message.lower(), f"{answer}: {points.message!r} does not say {concept!r}"
