"""How is a trained network kept, so that nobody trusts half of it? As a pair of files.

    <name>.safetensors   the weights
    <name>.json          a card one can read: everything that determines them, and their hash

The card is written last, so a killed run leaves no pair that fits; two processes that want the same network train it
once. A damaged or foreign pair is made anew with a warning. No pickle: reading a file runs nobody's code.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.cache import CacheUnavailable, cache_folder, locked, written_whole

Record = dict[str, Any]  # {"card": ..., "report": ...}: what the .json holds beside the hash


def through_cache(
    name: str,
    card: Mapping[str, Any],
    make: Callable[[], Any],
    taken_apart: Callable[[Any], tuple[dict[str, Tensor], Record]],
    rebuilt: Callable[[dict[str, Tensor], Record], Any],
) -> Any:
    """What `rebuilt` makes of the pair kept under `name`, if its card has all of `card`; else what `make` makes, kept.

    A cache folder that can't be written costs a warning and the time to make it again, never the result.
    """
    try:
        path = cache_folder("victims") / f"{name}-{hash_of(card)}"
        with locked(path):
            if (found := read(path, card, rebuilt)) is not None:
                return found
            made = make()
            write(path, *taken_apart(made))
            return made
    except CacheUnavailable as error:
        warnings.warn(f"{error} Training without keeping the result.", stacklevel=3)
        return make()


def write(path: Path, tensors: dict[str, Tensor], record: Record) -> None:
    """Keep a pair: weights first, then the card that vouches for them. A full disk costs a warning."""
    weights, notes = pair(path)
    try:
        with written_whole(weights) as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
            sha = file_hash(part)
        text = json.dumps(record | {"sha256": sha}, indent=2, sort_keys=True)
        with written_whole(notes) as part:
            part.write_text(text + "\n", encoding="utf-8")
    except (CacheUnavailable, SafetensorError) as error:
        warnings.warn(f"{path.name}: trained, but not kept for next time: {error}", stacklevel=4)


def read(path: Path, card: Mapping[str, Any], rebuilt: Callable[[dict[str, Tensor], Record], Any]) -> Any | None:
    """What was kept at `path`, or None where there is nothing. Damaged or foreign files earn a warning and None."""
    weights, notes = pair(path)
    if not notes.exists():
        return None
    try:
        record = json.loads(notes.read_text(encoding="utf-8"))
        if {k: record["card"].get(k) for k in card} != json.loads(json.dumps(card)):
            raise ValueError("its card describes another one")
        if file_hash(weights) != record["sha256"]:
            raise ValueError("the weights are not the ones its card was written for")
        return rebuilt(load_file(weights), record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        warnings.warn(f"the cache file {notes.name} is not usable ({error}); training it anew.", stacklevel=4)
        return None


def pair(path: Path) -> tuple[Path, Path]:
    """The two files of a pair: weights and card."""
    return path.with_suffix(path.suffix + ".safetensors"), path.with_suffix(path.suffix + ".json")


def hash_of(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
