"""The attacker's side. An attack that has `.poison` needs training data only; one with `.implant` alone needs more."""

from labkit.attacks.badnets import BadNets
from labkit.attacks.base import PoisonAttack, PoisonedSet, Trigger, Victim
from labkit.attacks.blend import Blend
from labkit.attacks.composite import Composite
from labkit.attacks.dfst import DFST
from labkit.attacks.feature_collision import FeatureCollision
from labkit.attacks.input_aware import InputAware
from labkit.attacks.issba import ISSBA
from labkit.attacks.label_consistent import LabelConsistent
from labkit.attacks.latent import LatentBackdoor
from labkit.attacks.pruning_aware import PruningAware
from labkit.attacks.sig import SIG
from labkit.attacks.trojan_nn import TrojanNN
from labkit.attacks.wanet import WaNet

__all__ = [
    "ISSBA",
    "DFST",
    "SIG",
    "BadNets",
    "Blend",
    "Composite",
    "FeatureCollision",
    "InputAware",
    "LabelConsistent",
    "LatentBackdoor",
    "PoisonAttack",
    "PoisonedSet",
    "PruningAware",
    "Trigger",
    "TrojanNN",
    "Victim",
    "WaNet",
]
