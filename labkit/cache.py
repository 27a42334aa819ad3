"""Where do slow results live between runs, and how are they written so that a killed run leaves nothing half done?

`$LABKIT_CACHE`, else the system's folder for caches (platformdirs). Every file is written beside its place and then
renamed, which is one step for the file system; whoever needs the same result at the same time waits on a lock file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir


class CacheUnavailable(OSError):
    """The cache folder can't be written. The message says which folder, why, and what to do."""


def cache_folder(*parts: str) -> Path:
    """The cache folder, or a folder inside it, made if need be. Raises CacheUnavailable where that fails."""
    folder = Path(os.environ.get("LABKIT_CACHE") or user_cache_dir("labkit"), *parts)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`: of all the processes that ask, one at a time goes on. A killed holder lets go."""
    with _explained(path.parent):
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` only if the block ends without an error."""
    with _explained(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@lru_cache
def source_hash(*entries: str) -> str:
    """A hash of source files: paths inside the package, or folders of it; `source_hash(".")` is all of labkit.

    A kept result whose key holds it is not read again once one of these files is edited.
    """
    home, digest = Path(__file__).parent, hashlib.sha256()
    for entry in entries:
        place = home / entry
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(home).as_posix().encode() + file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except CacheUnavailable:
        raise
    except OSError as error:
        raise CacheUnavailable(
            f"cache: expected a folder that can be written; got {folder} ({error.strerror or error}). "
            "Free some space, or set LABKIT_CACHE to another folder."
        ) from error
