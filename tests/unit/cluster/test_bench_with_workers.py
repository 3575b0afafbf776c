"""A benchmark measured by workers of Ray has the figures of one measured here."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsight.bench import evidence
from sparsight.bench.parts import Part, Setup
from sparsight.cluster.pool import Pool
from sparsight.config import PoolConfig
from sparsight.errors import WeightsError
from sparsight.model import load_base_policy

TINY = evidence.Size(
    sim_2d=4,
    sim_ood=4,
    sim_long=2,
    sim_pair=4,
    sim_deep=0,
    real=4,
    tested=2,
    curves=0,
    read=1,
    whole=0,
    served=0,
    looked=(8, 1),
)
TWO = PoolConfig(workers=2)


@pytest.fixture(scope="module")
def setup(reader_folder: Path) -> Setup:
    return Setup(reader_folder, load_base_policy(reader_folder), "tiny", ("all", "ours", "random"), None, 0)


def measured(setup: Setup, pool: PoolConfig) -> dict[str, Part]:
    tasks = [task for task in evidence.plan(TINY, (0.1,), ()) if task.suite.name in ("sim_2d", "sim_ood")]
    return {part.suite: part for _, part in evidence._measured(setup, tasks, 1, pool)}


class Lent:
    """Workers that hold something else: what they were to hold is made there anew for each piece of work."""

    def __init__(self, pool: Pool, make: Any) -> None:
        self.pool, self.make = pool, make

    def map(self, work: Any, given: Any) -> Any:
        make = self.make
        return self.pool.map(lambda held, one: work(make(), one), given)


@pytest.mark.slow
def test_workers_measure_what_this_process_does(
    setup: Setup, pool_of_readers: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "Pool", lambda settings, make: nullcontext(Lent(pool_of_readers, make)))
    here, there = measured(setup, PoolConfig()), measured(setup, TWO)
    assert set(here) == set(there) == {"sim_2d", "sim_ood"}
    for name, part in here.items():
        assert part.results
        assert there[name].results == part.results
        assert there[name].tests == part.tests
        assert there[name].facts == part.facts


def test_a_reader_that_changed_under_way_is_refused(setup: Setup) -> None:
    with pytest.raises(WeightsError, match="as here"):
        evidence._prepared(replace(setup), "1" * 64)
