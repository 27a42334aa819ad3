"""What does this system offer to put around a student's process, and how is that told?

ways          which barriers to try, from the strictest on
bubblewrap    the command for the first of them: a read-only file system without the graders' files, no network
environment   what of the environment a submission sees
words         what was in force, and what was not
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path

HOME = Path(__file__).parents[1]
SCRATCH = "/scratch"  # in bubblewrap's file system
NOBODY = 65534
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
