"""Simulated cases: small findings in real and synthetic anatomy, with questions, answers and rationales."""

from sparsight.sim.backgrounds import Background, Backgrounds, Source, synthetic
from sparsight.sim.config import KINDS, PRESETS, QUESTION_KINDS, SPLITS, SceneConfig, Split
from sparsight.sim.place import Finding
from sparsight.sim.scene import Scene, Simulator
from sparsight.sim.words import texts

__all__ = [
    "KINDS",
    "PRESETS",
    "QUESTION_KINDS",
    "SPLITS",
    "Background",
    "Backgrounds",
    "Finding",
    "Scene",
    "SceneConfig",
    "Simulator",
    "Source",
    "Split",
    "synthetic",
    "texts",
]
