"""victim(attack, data) and trained_once(arch, data): networks that are trained once, then read from disk.

    victim         a backdoored network, with its trigger and report
    trained_once   an ordinary network: what `train` returns

Both are kept in `$LABKIT_CACHE/victims` (`kept.py`) under a card with everything that determines them: attack and
settings, data fingerprint, architecture, seed, recipe, number format, and a hash of the code that trains. Another value
anywhere is another network. Labs 02 to 12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from labkit.attacks.base import Victim, card_of
from labkit.cache import source_hash
from labkit.data import ImageSet, Splits
from labkit.device import pick_device
from labkit.kept import through_cache
from labkit.metrics import Report
from labkit.models import build
from labkit.train import RECIPES, TrainConfig, train

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
    card = card_of(attack, data.train, arch, seed, config)
    card |= {"test": data.test.fingerprint, "number_format": number_format(), "code": source_hash(*code_of(attack))}

    def make() -> Victim:
        made = attack.implant(data.train, arch=arch, seed=seed, config=config, test=data.test, **options)
        return replace(made, card=card | made.card)

    def taken_apart(made: Victim) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = {f"model.{k}": v for k, v in made.model.state_dict().items()}
        if isinstance(made.trigger, nn.Module):
            tensors |= {f"trigger.{k}": v for k, v in made.trigger.state_dict().items()}
        return tensors, {"card": made.card, "report": asdict(made.report) if made.report else None}

    def rebuilt(tensors: dict[str, Any], record: dict[str, Any]) -> Victim:
        model = build(arch, data.train.images.shape[1], len(data.classes))
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        device = pick_device()
        if secret := {k[8:]: v for k, v in tensors.items() if k.startswith("trigger.")}:
            trigger = device.place(attack.build_trigger(data.train))
            trigger.load_state_dict(secret)
        else:
            trigger = attack.trigger
        report = Report(**record["report"]) if record["report"] else None
        return Victim(device.place(model).eval(), trigger, attack.target, report, record["card"])

    name = f"{type(attack).__name__.lower()}-{data.name}-{arch}-{seed}"
    return through_cache(name, card, make, taken_apart, rebuilt)


def trained_once(
    arch: str, data: ImageSet, seed: int = 0, *, config: TrainConfig | None = None, progress: bool = True
) -> nn.Module:
    """`train(arch, data, config=config, seed=seed)`, with the usual loss: from the cache, or trained now and kept.

    For networks that a lab needs and does not teach: run the lab again, and they are there. As with `victim`, any other
    image, label or setting is another network, and the cache never costs more than a warning. Raises what `train`
    raises.
    """
    card = {
        "data": data.name,
        "fingerprint": data.fingerprint,
        "classes": len(data.classes),
        "arch": arch,
        "seed": seed,
        "train": asdict(config or RECIPES.get(data.name, TrainConfig())),
        "number_format": number_format(),
        "code": source_hash(*sources(["labkit.train"])),
    }

    def rebuilt(tensors: dict[str, Any], _: dict[str, Any]) -> nn.Module:
        model = build(arch, data.images.shape[1], len(data.classes))
        model.load_state_dict(tensors)
        return pick_device().place(model).eval()

    return through_cache(
        f"network-{data.name}-{arch}-{seed}",
        card,
        make=lambda: train(arch, data, config=config, seed=seed, progress=progress),
        taken_apart=lambda model: (model.state_dict(), {"card": card}),
        rebuilt=rebuilt,
    )


def number_format() -> str:
    device = pick_device()
    return f"{device.type} {device.dtype}"


def code_of(attack) -> tuple[str, ...]:
    """The source files, as paths inside labkit, that decide a victim's weights: edit one, and it is trained anew.

    They are those of the attack, of an attack inside it, and all that these import; other attacks' files don't count.
    """
    parts = [attack, *(value for value in vars(attack).values() if is_dataclass(value))]
    return sources(kind.__module__ for part in parts for kind in type(part).__mro__)


def sources(modules: Iterable[str]) -> tuple[str, ...]:
    """The files of these modules of labkit and of all that they import, but for what a card tells otherwise."""
    home, found, waiting = Path(__file__).parent, {"data/imageset.py"}, list(modules)
    while waiting:
        _, *names = waiting.pop().split(".")
        path = home.joinpath(*names)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = path.relative_to(home).as_posix()
        if names and names[0] not in KNOWN_OTHERWISE and name not in found and path.is_file():
            found.add(name)
            waiting += IMPORTED.findall(path.read_text(encoding="utf-8"))
    return tuple(sorted(found))
