"""Our routes over a service, in this process and without the server around them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from fastapi import FastAPI

from sparsight.config import Config
from sparsight.server import problems, state
from sparsight.server.routes import router
from sparsight.service import Service


@contextmanager
def stack_served(home: Path, reader: Path) -> Iterator[FastAPI]:
    """An application over one served study, `stack`: a volume of five slices."""
    studies = home / "studies"
    studies.mkdir()
    voxels = np.random.default_rng(2).normal(0, 30, (40, 32, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0])), studies / "stack.nii.gz")
    service = Service(Config.load(home=home / "home", serve={"reader": str(reader)}), studies)
    with serving(service) as app:
        yield app
    service.close()


@contextmanager
def serving(service: Service) -> Iterator[FastAPI]:
    """An application whose routes ask this service; it is not closed."""
    app = FastAPI()
    app.include_router(router)
    problems.install(app)
    state.use(service)
    try:
        yield app
    finally:
        state.use(None)
