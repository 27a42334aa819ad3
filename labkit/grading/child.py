"""The student's side of the border: run the cells, then call the student's functions when asked to.

    {"program": ...} -> {"cells": {cell id: error or None}}
    {"call": name, "cases": [...]} -> {"calls": [{"value": ..., "after": ...} or {"error": ...}]}, or {"missing": true}

Everything here shares its process with code that may be hostile, so nothing here is believed: the grader takes the
answers for data and judges them elsewhere. Each call runs in a fork of the process in which the cells ran, so an
endless loop or a crash in one function leaves the others alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from typing import Any

import torch

from labkit.grading.wire import Broken, build, encode, receive, send

PATIENCE = 3600.0  # the grader's clock decides how long a submission lives
REQUEST = 1 << 28  # bytes of one request, which the grader wrote
# What errors are often about, and how a tutor says it. The grader takes none of a student's own words: they could carry
# hidden inputs out.
KNOWN = {
    "requires grad": "an argument requires grad, and numpy or `.item()` on such a tensor cuts the gradient",
    "must match": "shapes do not fit together",
    "could not be broadcast": "shapes do not fit together",
    "shapes cannot be multiplied": "shapes do not fit together",
    "invalid for input of size": "a shape does not hold that many numbers",
    "out of bounds": "an index lies outside",
    "out of range": "an index lies outside",
    "expected scalar type": "two dtypes do not fit together",
    "has no attribute": "there is no such attribute",
    "is not defined": "a name is not defined in this cell or in one that it uses",
    "no module named": "a module is not there when labs are graded",
    "positional argument": "the number of arguments is not the one the exercise asks for",
    "not subscriptable": "something is indexed that has no items",
    "division by zero": "something is divided by zero",
}


class TimeIsUp(BaseException):
    """Raised in the student's code by an alarm; not an Exception, so that `except Exception` lets it pass."""


class Check:
    """What a lab calls check_...: its function is the student's, or the reference once that has been judged wrong."""

    def __init__(self, space: dict[str, Any], name: str):
        self.space, self.name, self.source = space, name, None

    @property
    def function(self) -> Any:
        return build(self.source, []) if self.source else self.space[self.name]


class Anything:
    """get_ipython() and its kin: takes every call, does nothing."""

    def __getattr__(self, name: str):
        return self

    def __call__(self, *args: Any, **options: Any):
        return None


def serve(line: socket.socket, limits: dict[str, Any]) -> None:
    """Answer the grader's requests until it hangs up."""
    space: dict[str, Any] = {"__name__": "__main__", "display": Anything(), "get_ipython": Anything}
    checks: dict[str, Check] = {}
    with contextlib.suppress(Broken):
        while True:
            message, tensors = receive(line, REQUEST, PATIENCE)
            if "program" in message:
                checks.update({check: Check(space, name) for check, name in message["checks"].items()})
                space.update(checks)
                send(line, {"cells": run(message["program"], space, limits["cell_seconds"])})
            elif message["call"] in space:
                apart(lambda m=message, t=tensors: answer(m, t, space, checks), line, limits["call_seconds"])
            else:
                send(line, {"missing": True})


# --- cells ------------------------------------------------------------------------------------------------------------


def run(program: list[tuple[str, str]], space: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run (cell id, source) one after the other, whatever happens in them; returns id -> error."""
    signal.signal(signal.SIGALRM, ring)
    errors: dict[str, Any] = {}
    for name, source in program:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            exec(compile(source, f"<{name}>", "exec", dont_inherit=True), space)
            errors.setdefault(name, None)
        except BaseException as error:
            errors[name] = describe(error, f"<{name}>")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return errors


def ring(*_: Any) -> None:
    raise TimeIsUp


def describe(error: BaseException, file: str = "<") -> dict[str, Any]:
    """The kind of the error, as Python's own nearest class, and the line of the student's cell: no text of theirs."""
    kinds = (one.__name__ for one in type(error).__mro__ if one.__module__ == "builtins")
    kind = "Timeout" if isinstance(error, TimeIsUp) else next(kinds)
    line, trace = getattr(error, "lineno", 0) if isinstance(error, SyntaxError) else 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.startswith(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    said = "" if isinstance(error, TimeIsUp) else str(error)[:10_000].lower()
    return {"error": kind, "line": line or 0, "about": next((one for one in KNOWN if one in said), "")}


# --- calls ------------------------------------------------------------------------------------------------------------


def answer(message: dict[str, Any], tensors: list[Any], space: dict[str, Any], checks: dict[str, Check]) -> tuple:
    """Call the function on each case, on arguments of its own and under a fixed seed; returns (reply, tensors)."""
    for check, source in message["references"].items():
        checks[check].source = source
    calls, out = [], []
    for case in message["cases"]:
        args = [build(one, tensors) for one in case]
        torch.manual_seed(0)
        try:
            value = space[message["call"]](*args)
            kept: list[Any] = []
            made = {"value": encode(value, kept), "after": [encode(one, kept) for one in args]}
            calls.append({"first": len(out)} | made)
            out += kept
        except BaseException as error:
            calls.append(describe(error))
            break
    return {"calls": calls}, out


def apart(work: Any, line: socket.socket, seconds: float) -> None:
    """Do the work in a fork, which sends the reply; say so in its place if it dies or takes too long."""
    ended, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(0)
            os.close(ended)
            send(line, *work())
            os.write(end, b"sent")
            code = 0
        finally:
            os._exit(code)
    os.close(end)
    on_time, _, _ = select.select([ended], [], [], seconds)
    sent = bool(on_time) and os.read(ended, 4) == b"sent"
    os.close(ended)
    if not on_time:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    sweep()
    if not on_time:
        send(line, {"died": "Timeout"})
    elif not sent:
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        send(line, {"died": "Timeout" if signalled == signal.SIGXCPU else "Crash"})


def sweep() -> None:
    """In a process namespace of our own: end whatever the call has left running, and wait until it is gone.

    Until then it counts as this submission's: a crowd that is still dying leaves no room for the next call's fork.
    """
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
