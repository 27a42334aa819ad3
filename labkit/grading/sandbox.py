"""Where does a student's code run, and what can it reach?

    with Sandbox() as sandbox:                # starts the zygote, which imports torch once
        with sandbox.open() as session:       # a fork for one submission
            session.ask(message, seconds=10)  # -> (reply, tensors), or Lost
    sandbox.in_force                          # what the system agreed to, in words

Bubblewrap, where it works, gives the zygote a read-only file system that holds Python and labkit without its checks,
and no network; the fork adds its own process numbers, scratch folder and limits (`zygote.py`). Without bubblewrap or
namespaces the limits remain, and `in_force` says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from labkit.grading.barriers import HOME, SCRATCH, bubblewrap, environment, ways, words
from labkit.grading.limits import Limits
from labkit.grading.wire import Broken, receive, send

STARTING = 180.0  # seconds for Python to import torch on a slow disk
GRACE = 3.0  # seconds that a reply may be later than the limit in the student's process
BOOT = """
import os, sys, types
if {user}:
    os.setgroups([]), os.setgid({user}), os.setuid({user})
sys.path[:] = {path!r}
sys.modules["labkit.checks"] = types.ModuleType("labkit.checks")  # what judges is not in here
from labkit.grading.zygote import main
main({number})
"""


class Lost(Exception):
    """The student's process gave no usable answer: 'Timeout', 'Crash' or 'Garbage'."""


class Session:
    """One submission's process. Whatever happens in it, `ask` raises nothing but Lost, and closing it ends it all."""

    def __init__(self, sandbox: Sandbox, line: socket.socket, folder: str):
        self.sandbox, self.line, self.folder = sandbox, line, folder

    def ask(self, message: Any, tensors: list[Tensor] | None = None, seconds: float = 10.0) -> tuple[Any, list[Tensor]]:
        """Send a request and wait for its reply."""
        try:
            self.line.settimeout(seconds)
            send(self.line, message, tensors)
            return receive(self.line, self.sandbox.limits.reply, seconds + GRACE)
        except TimeoutError:
            raise Lost("Timeout") from None
        except (OSError, Broken) as error:
            raise Lost("Crash" if str(error) == "hung up" or isinstance(error, OSError) else "Garbage") from None

    def close(self) -> None:
        self.line.close()
        self.sandbox.end()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sandbox:
    """A zygote and the way to talk to it. One session at a time; several sandboxes can work beside each other."""

    def __init__(self, limits: Limits | None = None, bubblewrap: bool = True, namespaces: bool = True):
        self.limits, self.namespaces = limits or Limits(), namespaces
        self.ways = [way for way in ways() if bubblewrap or not way[0]]
        self.process: subprocess.Popen | None = None
        self.in_force: list[str] = []
        self.refused: list[str] = []  # why the stricter ways did not work

    def start(self) -> None:
        """Start the zygote in the strictest way that works here; RuntimeError if none does."""
        said = ""
        while self.ways:
            self.wrapped, user = self.ways[0]
            mine, theirs = socket.socketpair()
            path = [str(HOME.parent), *(p for p in sys.path if Path(p).is_dir() and Path(p) != HOME.parent)]
            boot = BOOT.format(path=path, number=theirs.fileno(), user=user)
            command = [*(bubblewrap(user) if self.wrapped else []), sys.executable, "-I", "-c", boot]
            with tempfile.TemporaryFile() as log:
                self.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], env=environment(self.wrapped), cwd="/", start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                )  # fmt: skip
                theirs.close()
                mine.settimeout(STARTING)
                self.control = mine
                if self.hear() == b"ready":
                    return
                log.seek(0)
                said = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.stop()
            self.refused.append(said)
            self.ways = self.ways[1:]
        raise RuntimeError(f"expected a process for submissions to start, got: {said or 'no answer'}")

    def hear(self) -> bytes:
        """The zygote's next line; b"" if it is gone."""
        text = b""
        with contextlib.suppress(OSError):
            while not text.endswith(b"\n") and (part := self.control.recv(4096)):
                text += part
        return text.strip()

    def open(self) -> Session:
        """A fresh process for a submission."""
        for _ in range(2):  # a zygote that has died is started again, once
            if self.process is None:
                self.start()
            mine, theirs = socket.socketpair()
            folder = "" if self.wrapped else tempfile.mkdtemp(prefix="labkit-")
            if folder:
                os.chmod(folder, 0o777)
            order = {
                "limits": dataclasses.asdict(self.limits),
                "scratch": folder or SCRATCH,
                "namespaces": self.namespaces,
            }
            session = Session(self, mine, folder)
            try:
                with theirs:
                    socket.send_fds(self.control, [json.dumps(order).encode()], [theirs.fileno()])
                reply, _ = receive(mine, self.limits.reply, STARTING)
                self.in_force = words(self.wrapped, reply["in_force"])
                return session
            except (OSError, Broken):
                session.close()
        raise RuntimeError("expected a process for a submission, got none: the system refuses to fork")

    def end(self) -> None:
        """End the session's process and all it has started."""
        try:
            self.control.sendall(b".")
            if not self.hear():
                self.stop()
        except OSError:
            self.stop()

    def stop(self) -> None:
        if self.process is not None:
            self.control.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
