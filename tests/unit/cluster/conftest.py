"""One cluster of Ray for all tests of a session: it takes seconds to start."""

from collections.abc import Iterator
from typing import Any

import pytest

from sparsight.cluster.pool import connected
from sparsight.config import PoolConfig


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """Ray with five CPUs, as the product starts it; pools in these tests find it there and leave it."""
    with connected(PoolConfig(workers=5)) as ray:
        yield ray
