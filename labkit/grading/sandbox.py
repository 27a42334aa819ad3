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
import functools
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

from labkit.grading.wire import Broken, receive, send

HOME = Path(__file__).parents[1]
SCRATCH = "/scratch"  # in bubblewrap's file system
NOBODY = 65534
STARTING = 180.0  # seconds for Python to import torch on a slow disk
GRACE = 3.0  # seconds that a reply may be later than the limit in the student's process
SYSTEM = (
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/fonts",
)
BOOT = """
import os, sys, types
if {user}:
    os.setgroups([]), os.setgid({user}), os.setuid({user})
sys.path[:] = {path!r}
sys.modules["labkit.checks"] = types.ModuleType("labkit.checks")  # what judges is not in here
from labkit.grading.zygote import main
main({number})
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    cell_seconds: float = 20.0  # for each cell
    call_seconds: float = 10.0  # for each exercise, all its cases together
    wall_seconds: float = 120.0  # for all of it
    cpu_seconds: float = 60.0  # of each of its processes
    memory: int = 4 << 30  # bytes of address space of each process, beyond torch's own
    file_size: int = 64 << 20  # bytes of a file, and of its scratch folder
    processes: int = 64
    reply: int = 32 << 20  # bytes of the answers to one exercise


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


# --- what the system offers -------------------------------------------------------------------------------------------


def ways() -> list[tuple[bool, int | None]]:
    """(in bubblewrap, as which other user) from the strictest on; root's submissions run as nobody where that works."""
    users = [NOBODY, None] if hasattr(os, "geteuid") and os.geteuid() == 0 else [None]
    return [(wrapped, user) for wrapped in ([True, False] if shutil.which("bwrap") else [False]) for user in users]


def environment(wrapped: bool) -> dict[str, str]:
    """All that a submission sees of the environment; nothing of the grader's own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return (
        threads
        | {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LABKIT_DEVICE": "cpu", "MPLBACKEND": "agg"}
        | ({"TMPDIR": SCRATCH, "HOME": SCRATCH, "MPLCONFIGDIR": SCRATCH} if wrapped else {})
    )


@functools.cache
def bubblewrap(user: int | None) -> tuple[str, ...]:
    """The command before Python's: a file system of Python and labkit alone, read-only; no network; no checks.

    It dies with the thread that started it.
    """
    command = ["bwrap", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if user is None:
        command += ["--unshare-all", "--unshare-user"]
    else:  # root, who becomes somebody else once everything is in place
        command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for path in SYSTEM:
        command += ["--ro-bind-try", path, path]
    prefixes = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    libraries = {p for p in sys.path if p.endswith(("site-packages", "dist-packages")) and Path(p).is_dir()}
    places = sorted((prefixes | libraries | {str(HOME)}) - {"/", "/usr"})
    for folder in sorted({str(parent) for path in places for parent in Path(path).parents} - {"/", "/usr"}):
        command += ["--perms", "0755", "--dir", folder]
    for path in places:
        command += ["--ro-bind", path, path]
    for home in {HOME, *(Path(p) / "labkit" for p in libraries)}:
        command += ["--tmpfs", str(home / "checks")] if (home / "checks").is_dir() else []
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    return (*command, "--perms", "1777", "--tmpfs", SCRATCH, "--remount-ro", "/")


def words(wrapped: bool, in_force: list[str]) -> list[str]:
    """What was in force, and what was not, for the instructor to read."""
    found = ["bubblewrap: a read-only file system without the graders' files, no network"]
    if not wrapped:
        found = ["NO bubblewrap: submissions can read this user's files, and write where this user may"]
    if "own processes" not in in_force:
        found.append("NO process namespace: what a submission starts is ended by searching for it")
    if not wrapped and "no network" not in in_force:
        found.append("NO network barrier")
    return [*found, f"each submission: {', '.join(sorted(in_force))}"]
