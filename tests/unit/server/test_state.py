import subprocess
import sys

import pytest

from sparsight.errors import ConflictError, WeightsError
from sparsight.server import state
from sparsight.store import StoreLock

OTHER = """
import sys
from pathlib import Path
from sparsight.store import StoreLock
StoreLock(Path(sys.argv[1])).acquire()
"""


def free(home):
    return subprocess.run([sys.executable, "-c", OTHER, str(home)], capture_output=True, check=False).returncode == 0


def test_one_process_holds_the_store_as_often_as_it_likes(tmp_path):
    with state.locked(tmp_path):
        with state.locked(tmp_path):
            pass
        assert not free(tmp_path)
    assert free(tmp_path)


def test_a_store_that_is_held_elsewhere_is_refused_and_may_be_tried_again(tmp_path):
    with StoreLock(tmp_path), pytest.raises(ConflictError), state.locked(tmp_path):
        pass
    with state.locked(tmp_path):
        assert not free(tmp_path)


def test_whatever_keeps_the_service_from_loading_is_said(monkeypatch):
    class Failing:
        def __init__(self, *_, spread):
            assert spread  # the server is who lets replicas answer
            raise error

    monkeypatch.setattr(state, "_HOLDER", state._Holder())
    monkeypatch.setattr("sparsight.service.Service", Failing)
    weights = WeightsError("a", expected="b", todo="c")
    cases = ((RuntimeError("Jane Doe"), "a RuntimeError", "internal"), (weights, "a", "bad_weights"))
    for error, said, code in cases:
        with pytest.raises(type(error)):
            state.service()
        assert state.failure().given.startswith(said)
        assert state.failure().code == code
        assert "Jane" not in str(state.failure())
        assert not state.is_ready()
