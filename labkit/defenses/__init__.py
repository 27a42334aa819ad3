"""The defender's side. A defence gets a model, clean data, inputs to judge: never a trigger, a target, an index."""

from labkit.defenses.strip import StripResult, strip

__all__ = ["StripResult", "strip"]
