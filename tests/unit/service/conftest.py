"""A service on the tiny reader."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparsight.config import Config
from sparsight.service import Service
from sparsight.types import ImageVolume


@pytest.fixture
def config(tmp_path: Path, reader_folder: Path) -> Config:
    return Config.load(
        home=tmp_path / "home",
        serve={"reader": str(reader_folder)},
        learn={"steps": 3, "passes": 0, "batch": 4, "group": 4},
        gate={"sentinel": 20, "min_feedback": 2},
    )


@pytest.fixture
def service(config: Config) -> Iterator[Service]:
    service = Service(config)
    yield service
    service.close()


@pytest.fixture
def picture() -> ImageVolume:
    """96 x 120 pixels of half a millimetre; becomes 20 x 24 tokens."""
    voxels = np.random.default_rng(0).uniform(0, 200, (1, 96, 120)).astype(np.float32)
    return ImageVolume(voxels, np.diag([0.5, 0.5, 1, 1]), "DX", (127.5, 255.0))
