"""One process imports torch, once; every submission gets a fork of it, in namespaces of its own where there are any.

    grader -> {"limits": ..., "scratch": folder} and a socket     a fork serves the socket (`child.py`)
    grader -> "end"                                               the fork and all it has started are gone
    zygote -> exit status

This process runs no student's code and holds nothing secret: `labkit.checks` is not imported here, and under bubblewrap
it is not on the disk either. The fork has its own process numbers, so it can't see this process, much less signal it; a
scratch folder in memory that vanishes with it; and no rights to change any of this.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
from typing import Any

from labkit.grading import child
from labkit.grading.limits import limit
from labkit.grading.namespaces import MS_RDONLY, give_up_rights, hide, mount, unshare


def main(number: int) -> None:
    """Serve the grader's control socket, file descriptor `number`, until the grader is gone."""
    control = socket.socket(fileno=number)
    preload()
    hide()
    control.sendall(b"ready\n")
    while True:
        text, lines, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not text:
            return
        order = json.loads(text)
        waiter, inside = begin(order, lines[0], control)
        os.close(lines[0])
        control.recv(1)  # "end", or nothing if the grader is gone
        code = end(waiter, inside)
        wipe(order["scratch"])
        control.sendall(json.dumps(code).encode() + b"\n")


def preload() -> None:
    """Import what submissions use, and let torch set itself up: a fork then starts with all of it."""
    for name in ("dataclasses", "itertools", "math", "random", "statistics", "numpy", "labkit"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    layer = torch.nn.Conv2d(1, 1, 2)
    layer(torch.rand(1, 1, 4, 4)).softmax(1).sum().backward()
    gc.collect()
    gc.freeze()


# --- a fork -----------------------------------------------------------------------------------------------------------


def begin(order: dict[str, Any], line: int, control: socket.socket) -> tuple[int, int]:
    """Fork; returns the process to wait for and the one to kill."""
    told, tell = os.pipe()
    waiter = os.fork()
    if waiter == 0:
        try:
            os.close(told)
            control.close()
            enter(order, line, tell)
        finally:
            os._exit(70)
    os.close(tell)
    inside = int(os.read(told, 20) or waiter)
    os.close(told)
    return waiter, inside


def enter(order: dict[str, Any], line: int, tell: int) -> None:
    """In the fork: namespaces, then a second fork that is process 1 in them, while the first one waits for it."""
    os.setsid()
    in_force = unshare() if order["namespaces"] else []
    if "own processes" in in_force:
        inside = os.fork()
        if inside:
            os.write(tell, str(inside).encode())
            _, status = os.waitpid(inside, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.close(tell)
    silence(line)
    folder = order["scratch"]
    if "own file systems" in in_force:
        if mount("tmpfs", folder, f"size={order['limits']['file_size']},mode=700"):
            in_force.append("scratch folder in memory")
        if not mount("proc", "/proc", ""):
            mount("tmpfs", "/proc", "size=0,mode=555", MS_RDONLY)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder, MPLCONFIGDIR=folder, LABKIT_CACHE=os.path.join(folder, "cache"))
    in_force += limit(order["limits"])
    in_force += ["no capabilities"] if give_up_rights() else []
    served = socket.socket(fileno=line)
    child.send(served, {"in_force": in_force})
    child.serve(served, order["limits"])
    os._exit(0)


def silence(line: int) -> None:
    """Nothing to read, output to nowhere, and no other open file than the line to the grader."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, line)
    os.closerange(line + 1, 4096)


def end(waiter: int, inside: int) -> int:
    """Kill the fork and everything it has started, however far it has run from it; returns its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(inside, signal.SIGKILL)  # as process 1 of its namespace it takes all others along
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(waiter, signal.SIGKILL)
    _, status = os.waitpid(waiter, 0)
    for number in orphans():
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(number, 0)
    return os.waitstatus_to_exitcode(status)


def wipe(folder: str) -> None:
    """Empty the scratch folder, where it is not one that has vanished with the fork."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def orphans():
    """Processes that belong to us now because their parent has died, until there are none."""
    while os.path.isdir("/proc"):
        mine = [
            number for number in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(number) == os.getpid()
        ]
        if not mine:
            return
        yield from mine


def parent(number: int) -> int:
    try:
        with open(f"/proc/{number}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
