"""Replicas of a real Ray Serve answer as the server itself does, several at once; one that dies loses no question."""

import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pictures import make_picture
from sparsight.cluster import replicas as replicas_module
from sparsight.cluster.identity import package_sha256
from sparsight.cluster.replicas import LeftError, Replicas, _Replica
from sparsight.config import Config, PoolConfig
from sparsight.errors import BusyError, ConfigError, MemoryFullError, QueueFullError, WeightsError
from sparsight.service import Asked, Service, spread
from sparsight.service.answering import Progress
from sparsight.service.spread import Answerer, Wanted
from sparsight.types import Question

TOGETHER = 2  # questions of one replica
ASKED = [Question("Is there a nodule?", "yes_no", ("yes", "no")), Question("What is there, and where is it?")]
DEADLY = "Does it kill whoever reads it?"
GREEDY = "Does it fill the memory?"

pytestmark = pytest.mark.usefixtures("ray_here")


class Slow(Answerer):
    """Says which process it is, and takes its time between two words."""

    def __init__(self, folder: Path, *rest: Any) -> None:
        super().__init__(*rest)
        self._folder = folder

    def __call__(self, wanted: Wanted, tell: Callable[[Progress | None], None]) -> Any:
        tell(Progress("process", os.getpid()))
        if wanted.question.text == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        if wanted.question.text == GREEDY:
            raise MemoryFullError("a full device", expected="room", todo="ask later")

        def slowly(progress: Progress | None) -> None:
            time.sleep(0.02 if progress is not None and progress.stage == "token" else 0)
            tell(progress)

        try:
            return super().__call__(wanted, slowly)
        except LeftError:
            (self._folder / f"left-{os.getpid()}").touch()
            raise


class Heard:
    """What is told of a question, and what it does at a word."""

    def __init__(self, at_word: Callable[["Heard"], None] = lambda heard: None) -> None:
        self.told: list[Progress] = []
        self._at_word = at_word

    def __call__(self, progress: Progress) -> None:
        if progress.stage != "wait":
            self.told.append(progress)
        if progress.stage == "token":
            self._at_word(self)

    @property
    def process(self) -> int:
        return next(progress.done for progress in self.told if progress.stage == "process")

    @property
    def words(self) -> list[str]:
        return [progress.text for progress in self.told if progress.stage == "token"]

    @property
    def looks(self) -> list[Any]:
        return [[region.box_ijk for region in p.look().regions] for p in self.told if p.stage == "read" and p.look]

    @property
    def stages(self) -> list[str]:
        return [progress.stage for progress in self.told if progress.stage != "process"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of the shipped reader: one that learned nothing has no words."""
    serve = {"together": TOGETHER, "max_waiting": 2}
    return Config.load(home=tmp_path_factory.mktemp("own"), serve=serve, pool={"replicas": 2, "start_s": 120})


@pytest.fixture(scope="module")
def own(config: Config) -> Iterator[Service]:
    """A service whose own reader answers, as any does that is not told to spread."""
    with closing(Service(config)) as service:
        yield service


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a replica says that it ended a question nobody waited for."""
    return tmp_path_factory.mktemp("left")


@pytest.fixture(scope="module")
def spreading(config: Config, left: Path, ray_here: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same with two replicas, started in a thread, as the server does."""
    ray_here.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # they cannot import it
    home = tmp_path_factory.mktemp("spread")
    with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(1) as thread:
        patched.setattr(spread, "Answerer", partial(Slow, left))
        started = thread.submit(Service, config.model_copy(update={"home": home}), spread=True).result()
    with closing(started) as service:
        yield service


@pytest.fixture
def serve_replica(ray_here: Any) -> Any:
    """Serve's own module: never imported before Ray is told what it reads when it is imported."""
    return import_module("ray.serve._private.replica")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(service: Service, question: Question = ASKED[0], seed: int = 0, heard: Heard | None = None) -> Asked:
    return service.ask(make_picture(seed, 32, 40), question, budget=0.2, on_progress=heard)


def same(asked: Asked, other: Asked) -> None:
    a, b = asked.episode, other.episode
    assert (a.answer.text, a.answer.reasoning, a.answer.notes) == (b.answer.text, b.answer.reasoning, b.answer.notes)
    assert np.array_equal(a.selection.keep, b.selection.keep)
    assert a.answer.confidence == pytest.approx(b.answer.confidence, abs=1e-5)
    assert a.evidence.necessity == pytest.approx(b.evidence.necessity, abs=1e-4)
    assert (a.recheck is None) == (b.recheck is None)
    assert [r.box_ijk for r in a.evidence.regions] == [r.box_ijk for r in b.evidence.regions]
    assert a.policy_sha256 == b.policy_sha256


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_they_answer_as_the_server_itself_does(own: Service, spreading: Service) -> None:
    for seed in range(2):
        for question in ASKED:
            told, here = Heard(), Heard()
            same(ask(spreading, question, seed, told), ask(own, question, seed, here))
            assert told.stages == here.stages
            assert told.words == here.words
            assert told.words
            assert told.looks == here.looks
            assert told.looks


def test_as_many_as_they_have_room_for_are_answered_at_once(
    own: Service, spreading: Service, threads: ThreadPoolExecutor
) -> None:
    all_there = threading.Barrier(2 * TOGETHER)  # each waits for the others in the middle of its answer
    heard = [Heard(lambda one: all_there.wait(60) if len(one.words) == 1 else None) for _ in range(2 * TOGETHER)]
    answers = [threads.submit(ask, spreading, ASKED[n % 2], n % 2, one) for n, one in enumerate(heard)]
    for n, answer in enumerate(answers):
        same(answer.result(60), ask(own, ASKED[n % 2], n % 2))
    processes = Counter(one.process for one in heard)
    assert sorted(processes.values()) == [TOGETHER, TOGETHER]
    assert os.getpid() not in processes


def test_promotion_and_rollback_hold_from_the_next_question_on(own: Service, spreading: Service) -> None:
    first = ask(spreading).episode
    added = []
    for service in (own, spreading):
        live = service.registry.live()
        arrays = {name: -1.5 * value for name, value in service.live_selector().policy.to_arrays().items()}
        added.append(service.registry.add(arrays, parent=live.id, reader=service.reader.id).id)
        service.registry.approve(added[-1], reasons=["better"])
        service.promote(added[-1])
    now = ask(spreading)
    assert now.episode.policy == added[1] != first.policy
    assert not np.array_equal(now.episode.selection.keep, first.selection.keep)
    same(now, ask(own))
    for service in (own, spreading):
        service.rollback()
    again = ask(spreading).episode
    assert again.policy == first.policy
    assert np.array_equal(again.selection.keep, first.selection.keep)


def test_a_client_that_leaves_ends_the_work_and_frees_its_place(
    spreading: Service, left: Path, threads: ThreadPoolExecutor
) -> None:
    class GoneError(Exception):
        pass

    def leave(heard: Heard) -> None:
        if len(heard.words) == 2:
            raise GoneError

    before = spreading.status()["episodes"]
    for _ in range(2 * TOGETHER):
        with pytest.raises(GoneError):
            ask(spreading, heard=Heard(leave))
    assert spreading.status()["episodes"] == before
    until(lambda: bool(list(left.iterdir())))  # it was told to a replica, too
    all_there = threading.Barrier(2 * TOGETHER)
    heard = [Heard(lambda one: all_there.wait(60) if len(one.words) == 1 else None) for _ in range(2 * TOGETHER)]
    for answer in [threads.submit(ask, spreading, heard=one) for one in heard]:
        answer.result(60)


def test_a_queue_that_is_full_is_one_still(spreading: Service, threads: ThreadPoolExecutor) -> None:
    go_on, held = threading.Event(), Counter[str]()

    def hold(heard: Heard) -> None:
        held["words"] += len(heard.words) == 1
        go_on.wait(60)

    answers: list[Future[Asked]] = []
    try:
        for n in range(2 * TOGETHER):
            answers.append(threads.submit(ask, spreading, heard=Heard(hold)))
            until(lambda n=n: held["words"] > n)  # type: ignore[misc]  # n is bound now
        for n in range(2):
            answers.append(threads.submit(ask, spreading))
            until(lambda n=n: sum(spreading.waiting().values()) > n)  # type: ignore[misc]  # n is bound now
        with pytest.raises(QueueFullError, match="2 questions are waiting"):
            ask(spreading)
    finally:
        go_on.set()
    assert len({answer.result(60).episode.id for answer in answers}) == len(answers)


def test_a_replica_out_of_memory_says_so(spreading: Service) -> None:
    with pytest.raises(MemoryFullError, match="a full device"):
        ask(spreading, Question(GREEDY))


def doors(process: psutil.Process) -> list[Any]:
    """Where a process listens; one of Ray's that has just ended does nowhere."""
    with suppress(psutil.Error):
        return [c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    return []


def title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_nothing_listens_beyond_this_machine(spreading: Service) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {at for process in family for at in doors(process)}
    assert {at.ip.removeprefix("::ffff:") for at in listening} <= {"127.0.0.1", "::1"}
    assert not {at.port for at in listening} & {8000, 8265, 9000}  # proxies, and the dashboard
    answering = [p for p in family if "ServeReplica" in title(p)]
    assert len(answering) == 2
    own_doors = {at.port for process in answering for at in doors(process)}
    assert len(own_doors) == 2  # of Ray, one each, behind its token; Serve's would unpickle what anybody sends


def test_replicas_that_have_no_place_are_none(ray_here: Any) -> None:
    with pytest.raises(BusyError, match="0 of 1 replicas ready") as caught:
        Replicas(PoolConfig(replicas=1, gpus=1, start_s=0.2), lambda fetch: lambda request, tell: None, 1)
    assert caught.value.expected == "1 CPUs and 1 GPUs free for each"


def test_what_one_of_them_refuses_is_raised(
    config: Config, spreading: Service, serve_replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", None)  # which is undone afterwards
    other_weights = partial(Answerer, config.serve.reader, "1" * 64, config.serve)
    refused = [
        (_Replica(other_weights, package_sha256(), 1, 1), WeightsError, "expected weights 11111111, as here"),
        (_Replica(other_weights, "another", 1, 1), ConfigError, "another version of sparsight"),
    ]

    class Handle:
        def __init__(self, *answers: Any) -> None:
            self.answers = list(answers)

        def broadcast(self, method: str) -> "Handle":
            assert method == "refusal"
            return self

        def results(self, timeout_s: float) -> list[Any]:
            return self.answers

    assert spreading._spread is not None
    replicas = spreading._spread._replicas
    assert replicas._ready(Handle(None, None)) == 2
    for replica, kind, said in refused:
        with pytest.raises(kind, match=said):
            replicas._ready(Handle(None, replica.refusal()))


def test_a_serve_that_opens_its_port_in_another_way_is_refused(
    serve_replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(serve_replica, "add_port_to_grpc_server")
    with pytest.raises(ConfigError, match="opens its port in another way"):
        _Replica(lambda fetch: lambda request, tell: None, package_sha256(), 1, 1)


def test_no_ray_serve_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)  # as if it were not there
    with pytest.raises(ConfigError) as caught:
        Replicas(PoolConfig(replicas=1), lambda fetch: lambda request, tell: None, 1)
    assert caught.value.todo == 'pip install "sparsight[cluster]"'


def test_ray_leaves_the_server_its_signals(ray_here: Any) -> None:
    """Its own handler takes SIGTERM and SIGTRAP alike, and ends a process three seconds after."""
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
    assert caught is not None
    assert not int(caught[1], 16) >> (signal.SIGTRAP - 1) & 1


def test_ray_is_started_by_a_thread_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux ends a child whose parent thread ends (PR_SET_PDEATHSIG), and the server loads in a thread that does."""
    started, ended = [], []

    @contextmanager
    def cluster(settings: PoolConfig) -> Iterator[None]:
        started.append(threading.current_thread())
        yield
        ended.append(threading.current_thread())

    def nothing(name: str) -> None:
        assert started[0].is_alive()
        raise ConfigError("no Serve", expected="one", todo="install it")

    monkeypatch.setattr(replicas_module, "connected", cluster)
    monkeypatch.setattr(replicas_module, "imported", nothing)
    with pytest.raises(ConfigError, match="no Serve"):
        Replicas(PoolConfig(replicas=1), lambda fetch: lambda request, tell: None, 1)
    assert threading.current_thread() not in started
    assert started == ended
    assert not started[0].is_alive()


def test_a_replica_that_is_killed_in_the_middle_loses_nothing(own: Service, spreading: Service) -> None:
    killed: list[int] = []

    def kill(heard: Heard) -> None:
        if len(heard.words) == 3 and not killed:
            killed.append(heard.process)
            os.kill(heard.process, signal.SIGKILL)

    told, here = Heard(kill), Heard()
    same(ask(spreading, ASKED[0], 1, told), ask(own, ASKED[0], 1, here))
    assert killed
    assert told.words == here.words  # each once
    assert told.stages == here.stages


def test_a_question_that_kills_whoever_reads_it_is_given_up_and_others_are_started(
    spreading: Service, own: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other replica may be gone still: none is left then."""
    monkeypatch.setattr(replicas_module, "TRIES", 1)
    with pytest.raises(BusyError, match="1 replicas that ended at the same question"):
        ask(spreading, Question(DEADLY))
    monkeypatch.undo()
    same(ask(spreading), ask(own))
