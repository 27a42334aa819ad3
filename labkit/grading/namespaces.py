"""What can a Linux process be cut off from, and give up for good? Namespaces and capabilities, by way of libc.

Elsewhere, and where the system offers none of it, the functions say so and change nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    1 << 30,
)
MS_NOSUID, MS_NODEV, MS_RDONLY = 2, 4, 1
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 24, 36, 38


def hide() -> None:
    """Nobody of the same user may look into this process; what its forks leave behind becomes its own, to be ended."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def unshare() -> list[str]:
    """Namespaces for this process and those it forks; returns what is in force, [] where the system offers none."""
    user, group = os.getuid(), os.getgid()
    kinds = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET
    if sys.platform != "linux":
        return []
    LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else the maps below belong to root
    if LIBC.unshare(kinds):
        return []
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    return ["own processes", "own file systems", "no network"]


def mount(kind: str, folder: str, options: str, flags: int = 0) -> bool:
    return not LIBC.mount(b"none", folder.encode(), kind.encode(), MS_NOSUID | MS_NODEV | flags, options.encode())


def give_up_rights() -> bool:
    """No capability now or later, not even those that the own namespace came with."""
    if sys.platform != "linux":
        return False
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    return not LIBC.capset(header, nothing)
