import subprocess
import sys

import pytest

from sparsight.errors import ConflictError
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
