"""Where submissions run: what a process can reach there, and what remains where the system offers less."""

import os
import time
from pathlib import Path

import pytest

from labkit.grading.barriers import environment, words
from labkit.grading.limits import Limits
from labkit.grading.sandbox import Lost, Sandbox

LEAVE = """
import os
def leave():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os.execv("/bin/sleep", ["sleep", "{}"])
        os._exit(0)
def spin():
    while True: pass
def number():
    return os.getpid()
"""

CROWD = """
import os
def there(number):
    try: os.kill(number, 0)
    except OSError: return False
    return True
def present():
    return sum(map(there, range(1, 1 << 15)))
def crowd():
    while True:
        try: os.fork()
        except OSError: pass
"""


def run(session, source: str) -> dict:
    return session.ask({"program": [["a", source]], "checks": {}})[0]


def call(session, name: str) -> dict:
    return session.ask({"call": name, "cases": [[]], "references": {}})[0]


def running(number: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found += [path.name] if number.encode() in (path / "cmdline").read_bytes().split(b"\0") else []
        except OSError:
            pass
    return found


@pytest.fixture(scope="module", params=["all that works here", "bubblewrap alone", "limits alone"])
def place(request, sandboxes):
    limits = Limits(cell_seconds=5, call_seconds=2)
    if request.param == "limits alone":
        with Sandbox(limits, bubblewrap=False, namespaces=False) as one:
            yield one
        return
    with sandboxes(limits) as one:
        one.namespaces = request.param != "bubblewrap alone"
        if not one.wrapped:
            pytest.skip(f"bubblewrap does not work here: {one.refused}")
        yield one
        one.namespaces = True


def test_a_loop_ends_and_the_session_goes_on(place):
    with place.open() as session:
        assert run(session, LEAVE) == {"cells": {"a": None}}
        assert call(session, "spin") == {"died": "Timeout"}
        assert call(session, "nothing") == {"missing": True}
        assert isinstance(call(session, "number")["calls"][0]["value"], int)


def test_what_is_left_running_is_ended(place):
    number = f"8{os.getpid()}{place.namespaces:d}{place.wrapped:d}"
    with place.open() as session:
        run(session, LEAVE.format(number) + "\nleave()")
        call(session, "leave")
        session.ask({"call": "number", "cases": [[]], "references": {}})
        assert running(number) or place.namespaces, "nothing was left running: the test sees nothing"
    deadline = time.monotonic() + 5
    while running(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(number)


def test_a_call_finds_room_after_one_that_took_it_all(place):
    if not place.namespaces:
        pytest.skip("without a process namespace what is left over is found when the session ends")
    with place.open() as session:
        run(session, CROWD)
        for _ in range(2):
            assert call(session, "crowd") == {"died": "Timeout"}
            assert call(session, "present")["calls"][0]["value"] == 2, "the process of the cells, and the call's"


def test_each_session_starts_afresh(place):
    with place.open() as session:
        run(session, "import os, torch\nopen('left', 'w').write('x')\ntorch.mine = 1\nos.environ['MINE'] = '1'")
    with place.open() as session:
        seen = "import os, torch\ndef seen():\n    return [os.listdir(), hasattr(torch, 'mine'), 'MINE' in os.environ]"
        run(session, seen)
        assert call(session, "seen")["calls"][0]["value"] == [[], False, False]


def test_a_process_that_is_gone_is_lost_and_the_next_one_works(place):
    with place.open() as session, pytest.raises(Lost, match="Crash"):
        run(session, "import os\nos._exit(3)")
    with place.open() as session:
        assert run(session, "x = 1") == {"cells": {"a": None}}


def test_a_zygote_that_is_gone_is_started_again(place):
    assert place.process is not None
    place.process.kill()
    place.process.wait()
    with place.open() as session:
        assert run(session, "x = 1") == {"cells": {"a": None}}


def test_the_instructor_is_told_what_is_missing(place):
    told = "\n".join(place.in_force)
    assert "memory" in told and "file size" in told and "CPU time" in told
    assert ("NO bubblewrap" in told) == ("NO network barrier" in told) == (not place.wrapped)
    assert ("NO process namespace" in told) == (not place.namespaces)
    assert "no capabilities" in told
    assert "NO " not in "\n".join(words(True, ["own processes"]))


def test_nothing_of_the_graders_environment_comes_along():
    os.environ["LABKIT_SECRET"] = "x"
    assert not {name for name in environment(True) if "SECRET" in name or name.startswith("AWS")}
