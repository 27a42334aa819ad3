"""What does a student's process say that its functions gave back? Its words are taken for data, and never believed.

returned    a reply -> the calls that `judge` counts points for; Lost for whatever is not an answer to the question
cause       an error's kind and line, in the grader's words
"""

from __future__ import annotations

import builtins
import copy
from typing import Any

from torch import Tensor, nn

from labkit.checks.exercise import Call, as_data
from labkit.grading import wire
from labkit.grading.child import KNOWN
from labkit.grading.sandbox import Lost

KINDS = {name for name, made in vars(builtins).items() if isinstance(made, type) and issubclass(made, BaseException)}


def returned(given: list[tuple], reply: dict[str, Any], tensors: list[Tensor]) -> list[Call]:
    """The calls as `judge` wants them. Lost if the reply is malformed or out of all proportion to the question."""
    rows = reply.get("calls")
    if not isinstance(rows, list) or not rows or len(rows) > len(given):
        raise Lost("Garbage")
    if sum(t.numel() for t in tensors) > 10_000 + 20 * sum(size(args) for args in given):
        raise Lost("Garbage")
    calls = []
    for args, made in zip(given, rows, strict=False):
        try:
            if "error" in made:
                return [*calls, Call(args, error=f"{cause(made)}.")]
            mine = tensors[int(made["first"]) :]
            after = wire.decode(made["after"], mine)
            value = as_data(wire.decode(made["value"], mine))
            calls.append(Call(args, value, tuple(after_call(a, b) for a, b in zip(args, after, strict=True))))
        except Exception:  # any shape of nonsense
            raise Lost("Garbage") from None
    if len(calls) < len(given):
        raise Lost("Garbage")
    return calls


def after_call(before: Any, after: Any) -> Any:
    """An argument after the call: a model with the weights that came back; a function stays what it was."""
    if isinstance(before, nn.Module):
        model = copy.deepcopy(before)
        model.load_state_dict(after)
        return model
    return before if callable(before) else after


def size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, nn.Module):
        return sum(t.numel() for t in value.state_dict().values())
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return 1 + sum(size(one) for one in inside)


def cause(error: dict[str, Any]) -> str:
    """'IndexError in line 3 of the cell': the student's own text stays out, since it could carry hidden inputs."""
    kind, line = error.get("error"), error.get("line")
    kind = kind if kind in KINDS else "Timeout" if kind == "Timeout" else "an error"
    if kind == "Timeout":
        return "it took too long"
    where = f"{kind} in line {line} of the cell" if isinstance(line, int) and 0 < line < 1000 else kind
    about = error.get("about")
    return f"{where}: {KNOWN[about]}" if isinstance(about, str) and about in KNOWN else where
