"""One cluster of Ray and one pool of readers for all tests of a session: they take seconds to start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsight.cluster.pool import Pool, connected
from sparsight.cluster.scoring import PooledReader, scored_by
from sparsight.config import PoolConfig
from sparsight.model import load_reader
from sparsight.model.protocols import Reader


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """Ray with five CPUs, as the product starts it; pools in these tests find it there and leave it."""
    with connected(PoolConfig(workers=5)) as ray:
        yield ray


@pytest.fixture(scope="session")
def readers(reader_folder: Path, ray_here: Any) -> Iterator[tuple[Reader, Reader]]:
    """A reader, and the same with two workers that score for it."""
    reader = load_reader(reader_folder)
    with scored_by(PoolConfig(workers=2), str(reader_folder), reader) as pooled:
        yield reader, pooled


@pytest.fixture
def pool_of_readers(readers: tuple[Reader, Reader]) -> Pool:
    """The two workers that score."""
    pooled = readers[1]
    assert isinstance(pooled, PooledReader)
    return pooled._pool
