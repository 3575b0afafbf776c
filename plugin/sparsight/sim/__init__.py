"""Simulated cases: small findings in real and synthetic anatomy, with questions, answers and rationales."""

from sparsight.sim.backgrounds import Background, Backgrounds, Source, synthetic
from sparsight.sim.common import Scene
from sparsight.sim.config import KINDS, PAIR_QUESTION_KINDS, PRESETS, QUESTION_KINDS, SPLITS, SceneConfig, Split
from sparsight.sim.place import Change, Finding
from sparsight.sim.scene import Simulator
from sparsight.sim.words import texts

__all__ = [
    "KINDS",
    "PAIR_QUESTION_KINDS",
    "PRESETS",
    "QUESTION_KINDS",
    "SPLITS",
    "Background",
    "Backgrounds",
    "Change",
    "Finding",
    "Scene",
    "SceneConfig",
    "Simulator",
    "Source",
    "Split",
    "synthetic",
    "texts",
]
