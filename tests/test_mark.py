"""Marks computed outside the student's process: the notebook's verdicts, from data alone, exercise by exercise."""

import importlib
import json
import pkgutil

import pytest
import torch
from conftest import NAMES, cell
from submissions import blank, from_answers, solutions, solved, source_lab, submission

import tests.answers as answers
from labkit import checks
from labkit.checks.exercise import Exercise, judge
from labkit.course.notebooks import encode
from labkit.grading import child, wire
from labkit.grading.mark import SEED, mark
from labkit.grading.replies import returned
from labkit.grading.sandbox import Lost

EXERCISES = {
    (lab, name): made
    for lab in sorted(m.name for m in pkgutil.iter_modules(checks.__path__) if m.name.startswith("lab"))
    for name, made in vars(importlib.import_module(f"labkit.checks.{lab}")).items()
    if isinstance(made, Exercise)
}
each = pytest.mark.parametrize(("lab", "name"), sorted(EXERCISES))
every_lab = pytest.mark.parametrize("name", NAMES)


def over_the_border(exercise: Exercise, function, seed: int = SEED):
    """Points of a function that is reached by messages only, there and back."""
    tensors: list = []
    given = exercise.cases(seed)
    cases = [[wire.encode(one, tensors) for one in args] for args in given]
    message, there = wire.unpack(*parts(wire.pack({"call": "f", "cases": cases, "references": {}}, tensors)))
    reply, back = child.answer(message, there, {"f": function}, {})
    return judge(exercise, seed, returned(given, *wire.unpack(*parts(wire.pack(reply, back)))))


def parts(packed: bytes) -> tuple[bytes, bytes]:
    size, rest = wire.HEAD.unpack(packed[: wire.HEAD.size])
    body = packed[wire.HEAD.size :]
    assert len(body) == size + rest
    return body[:size], body[size:]


def samples(lab: str):
    return importlib.import_module(f"{answers.__name__}.{lab}")


@each
def test_reference_and_other_right_answers_earn_every_point(lab, name):
    exercise = EXERCISES[lab, name]
    assert len(samples(lab).RIGHT[name]) >= 3
    for answer in (exercise.reference, *samples(lab).RIGHT[name]):
        points = over_the_border(exercise, answer)
        assert points == exercise.points, f"{answer}: {points.message}"


@each
def test_wrong_answers_are_caught_and_hear_the_concept(lab, name):
    exercise = EXERCISES[lab, name]
    assert len(samples(lab).WRONG[name]) >= 5
    for answer, concept in samples(lab).WRONG[name]:
        points = over_the_border(exercise, answer)
        assert points < exercise.points, f"{answer} passes"
        assert concept.lower() in points.message.lower(), f"{answer}: {points.message!r} does not say {concept!r}"


@each
def test_the_verdict_does_not_hang_on_one_seed(lab, name):
    for seed in range(SEED, SEED + 10):
        assert (
            over_the_border(EXERCISES[lab, name], EXERCISES[lab, name].reference, seed) == EXERCISES[lab, name].points
        )


# --- whole submissions, in the sandbox --------------------------------------------------------------------------------


def earned(result: dict) -> dict[str, float]:
    return {one["name"]: one["points"] for one in result["exercises"]}


@every_lab
def test_the_solved_lab_has_full_marks_and_the_blank_one_none(name, sandbox):
    lab = source_lab(name)
    assert lab.max_score == 10
    full = mark(lab, solved(name), sandbox)
    assert (full["score"], full["status"]) == (10, "ok"), [one["message"] for one in full["exercises"]]
    nothing = mark(lab, encode(blank(name)), sandbox)
    assert (nothing["score"], nothing["status"]) == (0, "ok")
    assert all("Not attempted" in one["message"] for one in nothing["exercises"])


@every_lab
def test_a_wrong_answer_costs_its_own_exercise_alone(name, sandbox):
    lab, module = source_lab(name), samples(f"lab{name[:2]}")
    names = [task.function for task in lab.tasks]
    for wrong in (names[::2], names[1::2]):
        choice = {one: f'WRONG["{one}"][-1][0]' if one in wrong else f'RIGHT["{one}"][-1]' for one in names}
        result = mark(lab, from_answers(name, choice), sandbox)
        lost = [one["name"] for one in result["exercises"] if one["points"] < one["max_points"]]
        assert lost == wrong
        for one in result["exercises"]:
            if one["name"] in wrong:
                assert module.WRONG[one["name"]][-1][1].lower() in one["message"].lower()


def test_a_later_exercise_may_use_an_earlier_one_that_is_wrong(sandbox):
    """Lab 05's score is built from check_entropy_bits.function: the reference, if the student's entropy is wrong."""
    cells = solutions("05_strip") | {"entropy_bits": "def entropy_bits(probs):\n    return -probs.sum(-1)"}
    result = mark(source_lab("05_strip"), submission("05_strip", cells), sandbox)
    assert earned(result) == {"superimpose": 1, "entropy_bits": 0.5, "strip_score": 2, "boundary": 3, "frr_far": 2}


def test_nobody_gets_points_for_asking_the_check(sandbox):
    """...but not before it has been judged: its own check, or a later one, has no reference to offer."""
    ask = "def {0}(*args):\n    return check_{0}.function(*args)"
    cells = {name: ask.format(name) for name in solutions("05_strip")}
    cells["superimpose"] = "def superimpose(*args):\n    return check_frr_far.function(*args)"
    result = mark(source_lab("05_strip"), submission("05_strip", cells), sandbox)
    assert result["score"] == 0


def test_the_checks_are_not_in_the_students_process(sandbox):
    steal = "def {0}(*args):\n    from labkit.checks import lab02\n    return lab02.{0}.reference(*args)"
    cells = {name: steal.format(name) for name in solutions("02_badnets")}
    result = mark(source_lab("02_badnets"), submission("02_badnets", cells), sandbox)
    assert result["score"] == 0 and "ImportError in line 2" in result["exercises"][0]["message"]


def test_helpers_imports_and_constants_are_found_wherever_they_stand(sandbox):
    notebook = blank("02_badnets")
    setup = next(one for one in notebook["cells"] if one["id"] == "setup")
    setup["source"] = "".join(setup["source"]) + "\nimport numpy as np"
    own = """%matplotlib inline
LAST = slice(None)
1 / 0
def paste(x, p):
    x[..., -p.shape[0]:, -p.shape[1]:] = p"""
    notebook["cells"].insert(3, cell("mine", own))
    stamp = "def stamp(images, patch):\n    out = np.array(images)[LAST]\n    paste(out, patch)\n    return out"
    cells = {"stamp": stamp}
    result = mark(source_lab("02_badnets"), submission("02_badnets", cells, notebook), sandbox)
    assert earned(result)["stamp"] == 2


def test_an_error_in_one_cell_leaves_the_others_alone(sandbox):
    cells = solutions("02_badnets") | {"stamp": "def stamp(images, patch:\n    return images"}
    result = mark(source_lab("02_badnets"), submission("02_badnets", cells), sandbox)
    assert (result["score"], result["status"]) == (8, "error")
    assert "SyntaxError in line 1 of the cell" in result["exercises"][0]["message"]


# --- what comes back is only data -------------------------------------------------------------------------------------


def test_values_survive_the_way_there_and_back():
    value = {"a": (1, 2.5, True, None, "x"), "b": [torch.arange(3), torch.zeros(0, 2), torch.tensor(1.0)], 3: ...}
    tensors: list = []
    form = wire.encode(value, tensors)
    form, tensors = wire.unpack(*parts(wire.pack(form, tensors)))
    back = wire.decode(form, tensors)
    assert back["a"] == value["a"] and back[3] is ...
    assert all(torch.equal(x, y) for x, y in zip(back["b"], value["b"], strict=True))
    assert wire.encode(float("nan"), []) != wire.encode(float("nan"), []) and wire.encode({1}, []) == {"opaque": "set"}


@pytest.mark.parametrize(
    "text", [b"{", b'{"tensor": 3}', b'{"dict": [[[], 1]]}', b'{"tuple": 5}', b"[" * 10_000, b"\xff"]
)
def test_a_malformed_message_is_refused(text):
    with pytest.raises(wire.Broken):
        wire.decode(*wire.unpack(text, b""))


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"calls": []},
        {"calls": "many"},
        {"calls": [{"value": 1}]},
        {"calls": [{"first": 0, "value": 1, "after": []}]},
        {"calls": [{"first": 0, "value": 1, "after": [1, 2]}]},
        {"calls": [{"first": "x", "value": 1, "after": [1, 2]}]},
        {"calls": [{"first": 0, "value": {"tensor": 7}, "after": [1, 2]}]},
        {"calls": [None, None]},
    ],
)
def test_a_reply_that_is_no_answer_is_refused(reply):
    with pytest.raises(Lost, match="Garbage"):
        returned([(1, 2), (3, 4)], json.loads(json.dumps(reply)), [])


def test_a_reply_out_of_proportion_is_refused():
    reply = {"calls": [{"first": 0, "value": {"tensor": 0, "grad": False}, "after": [1]}]}
    assert returned([(1,)], reply, [torch.zeros(100)])[0].value.shape == (100,)
    with pytest.raises(Lost, match="Garbage"):
        returned([(1,)], reply, [torch.zeros(1_000_000)])
