"""The defender's side. A defence gets a model, clean data, inputs to judge: never a trigger, a target, an index."""

from labkit.defenses.abl import ABLResult, abl
from labkit.defenses.fine_prune import FinePruneResult, fine_prune
from labkit.defenses.fine_tune import FineTuneResult, fine_tune
from labkit.defenses.mode_connectivity import ModeConnectivityResult, mode_connectivity
from labkit.defenses.nad import NADResult, nad
from labkit.defenses.neural_cleanse import NeuralCleanseResult, neural_cleanse
from labkit.defenses.neuron_patch import FilterResult, NeuronPruneResult, neuron_filter, prune_trigger_neurons
from labkit.defenses.outliers import anomaly_index
from labkit.defenses.paint import ReversedTrigger
from labkit.defenses.prune import PruneResult, prune, pruning_curve
from labkit.defenses.reverse import ReversedTriggers, reverse_triggers
from labkit.defenses.schedule import SearchConfig
from labkit.defenses.strip import StripResult, strip
from labkit.defenses.unlearn import UnlearnResult, unlearn

__all__ = [
    "ABLResult",
    "FilterResult",
    "FinePruneResult",
    "FineTuneResult",
    "ModeConnectivityResult",
    "NADResult",
    "NeuralCleanseResult",
    "NeuronPruneResult",
    "PruneResult",
    "ReversedTrigger",
    "ReversedTriggers",
    "SearchConfig",
    "StripResult",
    "UnlearnResult",
    "abl",
    "anomaly_index",
    "fine_prune",
    "fine_tune",
    "mode_connectivity",
    "nad",
    "neural_cleanse",
    "neuron_filter",
    "prune",
    "prune_trigger_neurons",
    "pruning_curve",
    "reverse_triggers",
    "strip",
    "unlearn",
]
