"""victim(attack, data): a backdoored model, trained once, then read from disk.

A victim is a pair of files in `$LABKIT_CACHE/victims`: weights (`.safetensors`) and a card one can read (`.json`) with
everything that determines it: attack, settings, data fingerprint, architecture, seed, recipe, number format, and a hash
of the code that trains. Another value anywhere is another victim. The card is written last and holds the weights' hash,
so a killed run leaves no pair that fits; two processes that want the same victim train it once. Labs 02 to 12.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from labkit.attacks.base import Victim, card_of
from labkit.cache import CacheUnavailable, cache_folder, locked, source_hash, written_whole
from labkit.data import Splits
from labkit.device import pick_device
from labkit.metrics import Report
from labkit.models import build
from labkit.train import TrainConfig

IMPORTED = re.compile(r"^\s*from (labkit[\w.]*) import", re.M)
KNOWN_OTHERWISE = ("device", "data")  # the number format is in the card; images by fingerprint, ImageSet by its file


def victim(
    attack, data: Splits, arch: str = "small_cnn", seed: int = 0, *, config: TrainConfig | None = None, **options
) -> Victim:
    """The victim of `attack` on `data.train`, evaluated on `data.test`: from the cache, or trained now and kept.

    arch: an architecture's name. config: by default the data set's recipe. options (callback, progress) go to `train`.
    Raises what the attack and `train` raise. A damaged or foreign cache file is trained anew with a warning; a cache
    folder that can't be written costs a warning and the time to train again, never the lab.
    """
    device = pick_device()
    card = card_of(attack, data.train, arch, seed, config)
    card |= {
        "test": data.test.fingerprint,
        "number_format": f"{device.type} {device.dtype}",
        "code": source_hash(*code_of(attack)),
    }
    name = f"{type(attack).__name__.lower()}-{data.name}-{arch}-{seed}-{hash_of(card)}"

    def make() -> Victim:
        made = attack.implant(data.train, arch=arch, seed=seed, config=config, test=data.test, **options)
        return replace(made, card=card | made.card)

    try:
        path = cache_folder("victims") / name
        with locked(path):
            if (kept := read(path, attack, data, card)) is not None:
                return kept
            made = make()
            write(path, made)
            return made
    except CacheUnavailable as error:
        warnings.warn(f"{error} Training without keeping the result.", stacklevel=2)
        return make()


def write(path: Path, made: Victim) -> None:
    """Keep a victim: weights first, then the card that vouches for them. A full disk costs a warning."""
    tensors = {f"model.{k}": v for k, v in made.model.state_dict().items()}
    if isinstance(made.trigger, nn.Module):
        tensors |= {f"trigger.{k}": v for k, v in made.trigger.state_dict().items()}
    weights = path.with_suffix(path.suffix + ".safetensors")
    try:
        with written_whole(weights) as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
            sha = file_hash(part)
        report = asdict(made.report) if made.report else None
        text = json.dumps({"card": made.card, "report": report, "sha256": sha}, indent=2, sort_keys=True)
        with written_whole(path.with_suffix(path.suffix + ".json")) as part:
            part.write_text(text + "\n", encoding="utf-8")
    except (CacheUnavailable, SafetensorError) as error:
        warnings.warn(f"victim: trained, but not kept for next time: {error}", stacklevel=3)


def read(path: Path, attack, data: Splits, card: dict[str, Any]) -> Victim | None:
    """The victim kept at `path`, or None where there is none. Damaged or foreign files earn a warning and None."""
    weights, notes = path.with_suffix(path.suffix + ".safetensors"), path.with_suffix(path.suffix + ".json")
    if not notes.exists():
        return None
    try:
        record = json.loads(notes.read_text(encoding="utf-8"))
        if {k: record["card"].get(k) for k in card} != json.loads(json.dumps(card)):
            raise ValueError("its card describes another victim")
        if file_hash(weights) != record["sha256"]:
            raise ValueError("the weights are not the ones its card was written for")
        tensors = load_file(weights)
        model = build(card["arch"], data.train.images.shape[1], len(data.classes))
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        if secret := {k[8:]: v for k, v in tensors.items() if k.startswith("trigger.")}:
            trigger = attack.build_trigger(data.train)
            trigger.load_state_dict(secret)
        else:
            trigger = attack.trigger
        report = Report(**record["report"]) if record["report"] else None
        device = pick_device()
        model = device.place(model)
        if isinstance(trigger, nn.Module):
            device.place(trigger)
        return Victim(model.eval(), trigger, attack.target, report, record["card"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        warnings.warn(f"victim: the cache file {notes.name} is not usable ({error}); training it anew.", stacklevel=3)
        return None


def hash_of(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_of(attack) -> tuple[str, ...]:
    """The source files, as paths inside labkit, that decide a victim's weights: edit one, and it is trained anew.

    They are those of the attack, of an attack inside it, and all that these import; other attacks' files don't count.
    """
    home, found = Path(__file__).parent, {"data/imageset.py"}
    parts = [attack, *(value for value in vars(attack).values() if is_dataclass(value))]
    waiting = [kind.__module__ for part in parts for kind in type(part).__mro__]
    while waiting:
        _, *names = waiting.pop().split(".")
        path = home.joinpath(*names)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = path.relative_to(home).as_posix()
        if names and names[0] not in KNOWN_OTHERWISE and name not in found and path.is_file():
            found.add(name)
            waiting += IMPORTED.findall(path.read_text(encoding="utf-8"))
    return tuple(sorted(found))
