"""What is an exercise, and how many points is an answer worth?

An exercise is data, not a script: a reference, a way to draw inputs from a seed, and a list of criteria.
The notebook judges with one seed and says what a tutor would say: for practice. `labkit grade` judges the same exercise
with another seed, in another process, from returned data alone, because the three steps below are separate:

    cases = exercise.cases(seed)                     # argument tuples
    calls = [call(student, args) for args in cases]  # run the student's function: the only untrusted step
    points = judge(exercise, seed, calls)            # compare with the reference

Nothing here raises because of what a student wrote.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NOTEBOOK_SEED = 0


@dataclass(frozen=True)
class Call:
    """One call of a student's function: what went in, what came back, what it did to its arguments."""

    args: tuple
    value: Any = None
    args_after: tuple = ()
    error: str = ""
    expected: Any = None


@dataclass(frozen=True)
class Criterion:
    """One thing the exercise text asks for, worth `share` of its points, and the tutor's words when it is missing.

    holds: of each call by itself; `together`: of the list of all calls, for what only several of them show.
    """

    share: float
    holds: Callable[[Any], bool]
    message: str
    together: bool = False


class Points(float):
    """Points as a float (nbgrader reads its repr as partial credit) that shows itself as a tutor's message.

    `function` is what the rest of the lab should use: the student's own if it is fully right, else the reference.
    """

    maximum: float
    message: str
    function: Callable

    def __new__(cls, value: float, maximum: float, message: str, function: Callable):
        self = super().__new__(cls, value)
        self.maximum, self.message, self.function = maximum, message, function
        return self

    def __repr__(self) -> str:
        return float.__repr__(self)

    def __str__(self) -> str:
        return f"{self:g}/{self.maximum:g}: {self.message}"

    def _repr_html_(self) -> str:
        mark = "✓" if self == self.maximum else "…" if self == 0 else "½"
        words = f"<strong>{mark} {self:g} of {self.maximum:g} points.</strong> {html.escape(self.message)}"
        return f"<p>{words} <small>(For practice: your mark comes from other inputs, after you hand in.)</small></p>"


@dataclass(frozen=True)
class Exercise:
    """A function for the student to write. Calling the exercise with that function returns its `Points`.

    cases(seed) returns a list of argument tuples (tensors, numbers, strings, small modules); the same seed gives the
    same cases. Criteria are judged on every case, or on all together; each that holds earns its share.
    """

    name: str
    points: float
    reference: Callable
    cases: Callable[[int], list[tuple]]
    criteria: tuple[Criterion, ...]

    def __post_init__(self):
        total = sum(criterion.share for criterion in self.criteria)
        assert abs(total - 1) < 1e-9, f"{self.name}: shares add up to {total}, not 1"

    def __call__(self, student: Callable, seed: int = NOTEBOOK_SEED) -> Points:
        return judge(self, seed, [call(student, args) for args in self.cases(seed)], student)


def call(student: Callable, args: tuple) -> Call:
    """Run the student's function on a copy of the arguments, under a fixed seed; an exception becomes `error`."""
    given = copy.deepcopy(args)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            value = as_data(student(*given))
        return Call(args, value, given)
    except Exception as error:
        shapes = ", ".join(describe(a) for a in args)
        return Call(args, error=f"{type(error).__name__}: {error} (called with {shapes})")


def judge(exercise: Exercise, seed: int, calls: Sequence[Call], student: Callable | None = None) -> Points:
    """The points that these calls are worth. Needs the calls' data only, so it can run in another process."""

    def points(value: float, message: str) -> Points:
        full = value == exercise.points and student is not None
        return Points(value, exercise.points, message, student if full and student else exercise.reference)

    for made in calls:
        if made.error:
            return points(0.0, f"Your function stopped with an error. {made.error}")
    if all(made.value is None or made.value is Ellipsis for made in calls):
        return points(0.0, "Not attempted yet: the function returns nothing. The lab goes on with the reference.")
    judged = []
    for made, args in zip(calls, exercise.cases(seed), strict=True):
        expected = as_data(exercise.reference(*copy.deepcopy(args)))
        judged.append(Call(args, made.value, made.args_after, expected=expected))
    missing = [c for c in exercise.criteria if not _holds(c, judged)]
    value = exercise.points * (1 - sum(c.share for c in missing))
    if not missing:
        return points(exercise.points, "Right.")
    return points(round(max(value, 0.0), 2), missing[0].message)


def _holds(criterion: Criterion, calls: list[Call]) -> bool:
    try:
        return bool(criterion.holds(calls)) if criterion.together else all(criterion.holds(made) for made in calls)
    except Exception:  # a wrong type or shape simply does not meet the criterion
        return False


# --- criteria that many exercises share -------------------------------------------------------------------------------


def same_values(made: Call, tolerance: float = 1e-4) -> bool:
    """The returned numbers equal the reference's: shape and values, any float or int dtype, tuples and dicts too."""
    return _close(made.value, made.expected, tolerance)


def same_shape(made: Call) -> bool:
    """The returned tensor has the reference's shape."""
    return made.value.shape == made.expected.shape


def inputs_untouched(made: Call) -> bool:
    """No argument was changed in place."""
    return all(_close(before, after, 0.0) for before, after in zip(made.args, made.args_after, strict=True))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        return _close(dict(a.state_dict()), dict(b.state_dict()), tolerance)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[k], b[k], tolerance) for k in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, (Tensor, bool, int, float)) and isinstance(b, (Tensor, bool, int, float)):
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))
    return bool(a == b)


def as_data(value: Any) -> Any:
    """Tensors on the CPU, numpy turned into tensors, numbers, strings, and tuples, lists and dicts of these."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, (np.ndarray, np.generic)):
        return torch.from_numpy(np.array(value))
    if isinstance(value, (tuple, list)):
        return tuple(as_data(v) for v in value)
    if isinstance(value, dict):
        return {k: as_data(v) for k, v in value.items()}
    return value


def describe(value: Any) -> str:
    """A short name for an argument in a message: 'float32 tensor (4, 3, 32, 32)', 'int 3'."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    if isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__} {value!r}"
    return type(value).__name__
