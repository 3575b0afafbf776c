"""Fixtures that every room's tests share."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that contend for a core are several times slower
settings.register_profile("shared_cores", deadline=None)  # a busy machine is no defect of the code
settings.load_profile("shared_cores")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread per process, set only where the session imports torch anyway."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; its absence skips the test, except in CI, where it is a failure."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPARSIGHT_DATA", beside))
    if not folder.is_dir():
        reason = f"no real data sets at {folder}: set SPARSIGHT_DATA"
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
