"""The exercises of each lab: what a student's function must do, and what a tutor says when it does not.

`checks.lab02.stamp(stamp)` judges the function and returns its `Points`. `exercise` says how.
"""

import importlib
import pkgutil

from labkit.checks.exercise import Exercise, Points

for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("lab"):
        globals()[_module.name] = importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Exercise", "Points"]
