"""labkit: backdoors in neural networks, planted and removed. See `labkit.attacks` and `labkit.defenses`."""

from labkit.device import keep_freed_memory, pick_device

keep_freed_memory()

from labkit import attacks, checks, defenses, plots, widgets  # noqa: E402
from labkit.at_once import at_once  # noqa: E402
from labkit.attacks.base import Victim  # noqa: E402
from labkit.data import ImageSet, Splits, load  # noqa: E402
from labkit.metrics import Report, evaluate, predict  # noqa: E402
from labkit.profiles import profile  # noqa: E402
from labkit.train import TrainConfig, train  # noqa: E402
from labkit.victims import trained_once, victim  # noqa: E402

__all__ = [
    "ImageSet",
    "Report",
    "Splits",
    "TrainConfig",
    "Victim",
    "at_once",
    "attacks",
    "checks",
    "defenses",
    "evaluate",
    "load",
    "pick_device",
    "plots",
    "predict",
    "profile",
    "train",
    "trained_once",
    "victim",
    "widgets",
]
