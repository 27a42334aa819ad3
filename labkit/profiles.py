"""Quick or full: the same notebooks on a laptop in a minute, or at the papers' scale on a GPU.

`LABKIT_PROFILE=quick` (the default) means the drawn signs and a small network; `full` means CIFAR-10 and WRN-16-1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """name of the profile; data, for `load`; arch, for `train` and `victim`; many, the arch of labs that train many."""

    name: str
    data: str
    arch: str
    many: str

    def __str__(self) -> str:
        return f"profile {self.name}: data {self.data}, network {self.arch}"


PROFILES = {
    p.name: p
    for p in (Profile("quick", "signs", "small_cnn", "tiny_cnn"), Profile("full", "cifar10", "wrn16_1", "wrn16_1"))
}


def profile() -> Profile:
    """The profile that $LABKIT_PROFILE names, "quick" if it is not set. Raises ValueError for another name."""
    name = os.environ.get("LABKIT_PROFILE") or "quick"
    if name not in PROFILES:
        raise ValueError(f"LABKIT_PROFILE: expected one of {', '.join(PROFILES)}; got {name!r}.")
    return PROFILES[name]
