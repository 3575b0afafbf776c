"""Workers of a real local cluster: they score as one process does, and one that is killed loses nothing."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sparsight.cluster import pool as pool_module
from sparsight.cluster.pool import Pool, connected
from sparsight.cluster.scoring import Held, PooledReader, held_by_worker, shares
from sparsight.config import PoolConfig
from sparsight.errors import BusyError, ConfigError, QuestionError, SparsightError, WeightsError
from sparsight.model import load_reader
from sparsight.model.protocols import Reader, ScoreRequest
from sparsight.types import ContextTokens, ImageVolume, Question, TokenGrid

TWO = PoolConfig(workers=2)
ASKED = Question("Is there a nodule?", "yes_no")

pytestmark = pytest.mark.usefixtures("ray_here")


class Toy:
    """Scores by what is kept, and by the adapter that is on."""

    def __init__(self) -> None:
        self.more = 0.0

    def adapt(self, arrays: Mapping[str, Any]) -> None:
        self.more = float(arrays.get("lora.a", 0.0))

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        return [self.more + r.grid.features[r.keeps].sum((1, 2)) + r.grid.extras["rest"].sum() for r in requests]


@pytest.fixture(scope="module")
def pool(ray_here: Any) -> Iterator[Pool]:
    """Two workers with a toy each; all tests but those of beginning share them."""
    ray_here.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    with Pool(TWO, lambda: Held(Toy())) as two:  # type: ignore[arg-type]
        yield two


def test_every_piece_of_work_is_done_once_in_whatever_order(pool: Pool) -> None:
    told = list(pool.map(lambda held, one: (40 + one, os.getpid()), range(7)))
    assert sorted((n, result) for n, (result, _) in told) == [(n, 40 + n) for n in range(7)]
    assert len({pid for _, (_, pid) in told}) == 2
    assert list(pool.map(lambda held, one: one, [])) == []


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(pool: Pool) -> None:
    def slowly(held: Held, one: int) -> tuple[int, int]:
        time.sleep(0.8 if one else 0.1)
        return 40 + one, os.getpid()

    told, killed = [], 0
    for n, (result, pid) in pool.map(slowly, range(5)):
        told.append((n, result))
        if not killed:
            (killed,) = at_work() - {pid}
            os.kill(killed, signal.SIGKILL)
    assert sorted(told) == [(n, 40 + n) for n in range(5)]
    now = {pid for _, (_, pid) in pool.map(slowly, range(1, 3))}
    assert len(now) == 2
    assert killed not in now


def at_work() -> set[int]:
    """Processes in the middle of a piece of work, by what Ray calls them."""
    below = psutil.Process().children(recursive=True)
    return {p.pid for p in below if p.status() != psutil.STATUS_ZOMBIE and "_Worker.run" in " ".join(p.cmdline())}


def test_work_that_kills_whoever_does_it_is_given_up(
    pool: Pool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "TRIES", 2)
    with pytest.raises(BusyError, match="2 workers that ended at the same work"):
        list(pool.map(lambda held, one: os.kill(os.getpid(), signal.SIGKILL), [1]))
    assert dict(pool.map(lambda held, one: 40 + one, range(4))) == {n: 40 + n for n in range(4)}
    time.sleep(1)
    assert capsys.readouterr().out == ""  # which may be for JSON alone: Ray writes there, unless it is told not to


def test_a_worker_that_ray_ends_for_memory_is_replaced(
    pool: Pool, ray_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, low = pool._result, [ray_here.exceptions.OutOfMemoryError("a node whose memory is nearly full")]

    def result(done: Any) -> Any:
        if low:
            raise low.pop()
        return told(done)

    monkeypatch.setattr(pool, "_result", result)
    assert dict(pool.map(lambda held, one: 40 + one, range(3))) == {n: 40 + n for n in range(3)}


def test_a_worker_out_of_memory_says_so(pool: Pool) -> None:
    def fill(held: Held, size: int) -> float:
        used = psutil.Process().memory_info().vms
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + size, before[1]))
        try:
            return float(torch.ones(2 * size, dtype=torch.uint8).sum() + np.ones(2 * size, np.uint8).sum())
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    with pytest.raises(BusyError, match="out of memory"):
        list(pool.map(fill, [2**28]))
    with pytest.raises(BusyError, match="out of memory"):
        list(pool.map(lambda held, one: bytearray(2**62), [0]))


def test_what_work_raises_arrives_as_it_was_raised(pool: Pool) -> None:
    def refuse(held: Held, one: int) -> None:
        raise QuestionError("a long one", expected="a short one", todo="shorten it")

    with pytest.raises(QuestionError) as caught:
        list(pool.map(refuse, range(3)))
    assert caught.value.todo == "shorten it"
    with pytest.raises(ZeroDivisionError):  # a defect of ours stays one
        list(pool.map(lambda held, one: 1 / one, [0]))


def test_workers_that_cannot_begin_are_no_pool() -> None:
    def missing() -> None:
        raise WeightsError("nothing there", expected="weights", todo="copy them")

    one = PoolConfig(workers=1)
    with pytest.raises(WeightsError, match="nothing there"), Pool(one, missing):
        pass
    ending = Pool(one, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(BusyError, match="ended before it was ready"), ending:
        pass
    hungry = PoolConfig(workers=1, gpus=1, start_s=0.2)
    with pytest.raises(BusyError, match="1 of 1 workers not ready") as caught, Pool(hungry, int):
        pass
    assert caught.value.expected == "1 CPUs and 1 GPUs free for each"


def test_a_worker_with_other_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "package_sha256", lambda: "another")
    with pytest.raises(ConfigError, match="another version of sparsight"), Pool(PoolConfig(workers=1), int):
        pass


def test_a_worker_with_other_weights_is_refused(reader_folder: Path) -> None:
    with pytest.raises(WeightsError, match="expected weights 11111111, as here"):
        held_by_worker(str(reader_folder), "1" * 64)


# Scoring


@pytest.fixture(scope="module")
def requests(reader_folder: Path) -> list[ScoreRequest]:
    """Thirteen questions about three studies: subsets of several sizes, one without an image, one with context."""
    reader, rng = load_reader(reader_folder), np.random.default_rng(0)
    grids = [
        reader.encode(ImageVolume(rng.uniform(0, 200, (1, 96, 120)).astype(np.float32), np.eye(4), "DX", (127.5, 255)))
        for _ in range(3)
    ]
    asked = []
    for n in range(13):
        grid, k = grids[n % 3], (0, 3, 30, 7)[n % 4]
        keeps = torch.stack([torch.randperm(grid.n)[:k].sort().values for _ in range(1 + n % 4)])
        context = ContextTokens(grid.features[:2], torch.ones(2, 24)) if n == 5 else None
        asked.append(ScoreRequest(grid, ASKED, ("yes", "no")[n % 2], keeps, context))
    return asked


@pytest.mark.parametrize("half", [False, True])
def test_workers_score_as_the_reader_itself(
    readers: tuple[Reader, Reader], requests: list[ScoreRequest], half: bool
) -> None:
    reader, pooled = readers
    assert pooled.id == reader.id
    assert pooled.score([]) == []
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        own, theirs = reader.score(requests), pooled.score(requests)
    assert [len(scores) for scores in theirs] == [len(scores) for scores in own]
    assert torch.allclose(torch.cat(theirs), torch.cat(own).float(), atol=2e-2 if half else 1e-4)
    if half:  # and not as it would without
        assert not torch.allclose(torch.cat(theirs), torch.cat(reader.score(requests)), atol=1e-4)


def test_grids_travel_once_and_adapters_when_they_change(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    put = pool.put
    monkeypatch.setattr(pool, "put", lambda value: (sent.append(value), put(value))[1])
    grid = TokenGrid(
        torch.arange(12.0).reshape(6, 2),
        (1, 2, 3),
        (1, 1, 1),
        np.eye(4),
        np.eye(4),
        "toy",
        extras={"rest": torch.ones(4)},
    )
    asked = [ScoreRequest(grid, ASKED, "yes", torch.tensor([[n, n + 1]])) for n in range(5)]
    pooled = PooledReader(Toy(), pool)  # type: ignore[arg-type]
    for adapter, more in (({}, 0.0), ({"lora.a": np.float32(7), "look": np.float32(1)}, 7.0), ({}, 0.0)):
        pooled.adapt(adapter)  # type: ignore[arg-type]
        own = Toy()
        own.adapt(adapter)
        assert [float(s) for s in pooled.score(asked)] == [float(s) for s in own.score(asked)]
        assert float(pooled.score(asked[:1])[0]) == 0 + 1 + 2 + 3 + 4 + more
    assert [type(value) for value in sent] == [TokenGrid, dict]
    del grid, asked, own
    assert not pooled._sent  # what nobody uses any more is let go


def test_shares_are_of_about_equal_cost(requests: list[ScoreRequest]) -> None:
    for n in (1, 2, 3, 13, 40):
        parts = shares(requests, n)
        assert [r for part in parts for r in part] == requests
        assert all(parts)
        assert len(parts) <= n
    costs = [sum(len(r.keeps) * (r.keeps.shape[1] + 32) for r in part) for part in shares(requests, 2)]
    assert 0.6 < costs[0] / costs[1] < 1.6
    assert shares([], 2) == []


# The cluster itself


def test_nothing_listens_beyond_this_machine(ray_here: Any) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {c.laddr for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert len(listening) > 3
    assert {at.ip.removeprefix("::ffff:") for at in listening} <= {"127.0.0.1", "::1"}
    assert 8265 not in {at.port for at in listening}  # the dashboard's
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_a_cluster_takes_those_who_know_its_token(ray_here: Any) -> None:
    """Another process joins it by its address, as a machine would; without the token it is refused."""
    address = ray_here.get_runtime_context().gcs_address
    text = f"""
from sparsight.cluster.pool import Pool
from sparsight.config import PoolConfig
with Pool(PoolConfig(workers=1, address={address!r}, start_s=60), lambda: 2) as pool:
    print(list(pool.map(lambda held, one: held * one, [21])))
"""
    stranger = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", what], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for what, env in (
            (text, dict(os.environ)),
            (f"import ray; print(ray.init({address!r}))", stranger | {"HOME": "/nowhere"}),
        )
    ]
    (said, said_err), (refused, why) = (run.communicate(timeout=120) for run in runs)
    assert said == "[(0, 42)]\n", said_err[-2000:]
    assert refused == ""
    assert "oken" in why


def test_an_address_where_nothing_listens_is_refused_at_once(ray_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_here, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_here, "shutdown", lambda: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        start = time.perf_counter()
        elsewhere = connected(PoolConfig(workers=1, address=address))
        with pytest.raises(BusyError, match=f"nothing that listens at {address}"), elsewhere:
            pass
    assert time.perf_counter() - start < 15


def test_no_ray_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    with pytest.raises(SparsightError) as caught, connected(TWO):
        pass
    assert caught.value.todo == 'pip install "sparsight[cluster]"'
    assert dict(os.environ) == before
