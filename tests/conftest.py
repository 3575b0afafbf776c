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


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without tearing the interpreter down where itk was loaded.

    After many lazily loaded itk modules, finalisation of the test process (not of the program, which loads a few) ends
    in a segmentation fault inside SWIG's module clean-up, https://github.com/swig/swig/issues/2881, and would turn a
    passed run into a failed one. Everything was reported by then.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if "itk" in sys.modules and reporter is not None and hasattr(config, "exit_status"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(config.exit_status))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the exit status for pytest_unconfigure."""
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]
