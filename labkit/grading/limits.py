"""What may one submission use, and how is it held to that?"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
from typing import Any


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


def limit(limits: dict[str, Any]) -> list[str]:
    """Set what one process may use; returns the names of those limits that this system has agreed to."""
    wanted = {
        "limited CPU time": (resource.RLIMIT_CPU, int(limits["cpu_seconds"])),
        "limited memory": (resource.RLIMIT_AS, address_space() + limits["memory"]),
        "limited file size": (resource.RLIMIT_FSIZE, limits["file_size"]),
        "limited number of processes": (resource.RLIMIT_NPROC, limits["processes"]),
        "no core dumps": (resource.RLIMIT_CORE, 0),
        "limited open files": (resource.RLIMIT_NOFILE, 256),
    }
    agreed = []
    for name, (kind, value) in wanted.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))
            agreed.append(name)
    return agreed


def address_space() -> int:
    """Bytes of address space that this process has now: the libraries that every submission shares."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 16 << 30
