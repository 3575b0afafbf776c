"""Sample studies for the demo and for benchmarks of a server: simulated findings, written as real DICOM."""

from __future__ import annotations

from pathlib import Path

from sparsight.sim.common import Scene
from sparsight.sim.config import PRESETS, SceneConfig
from sparsight.sim.dicom import write_dicom
from sparsight.sim.real import standard
from sparsight.sim.scene import Simulator
from sparsight.types import Case

_SEED = 2026


def make_studies(folder: Path, pictures: int) -> list[tuple[str, Case]]:
    """Write a head MR series and single images as DICOM; returns (study id, a case on it) of the images. Idempotent."""
    backgrounds = standard()
    volumes = Simulator(PRESETS["volume"], backgrounds)
    images = Simulator(SceneConfig(), backgrounds)
    made = []
    for n in range(pictures):
        scene = images.scene("test", n, _SEED)
        made.append((write_dicom(scene.volume, folder / f"picture-{n:02d}", f"picture-{n}"), _best_case(scene)))
    scene = volumes.scene("test", 0, _SEED)
    write_dicom(scene.volume, folder / "series", "series")
    return made


def _best_case(scene: Scene) -> Case:
    """A question that concerns a finding, if the scene has one."""
    return next((case for case in scene.cases if case.finding is not None), scene.cases[0])
