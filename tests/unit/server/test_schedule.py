"""Learning that starts by itself: when it is due, what keeps it from starting, and that it ends with the server."""

import asyncio
import json
import logging
import threading
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from sparsight.config import Config, LearnConfig
from sparsight.errors import ConflictError
from sparsight.server import jobs, schedule, seam, state
from sparsight.server.schedule import Schedule

HOUR = 3600.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.s = 1e9

    def __call__(self) -> float:
        return self.s


class Job:
    """The learning job without its process. began: when somebody learned last; error: what keeps it from starting."""

    def __init__(self, began: float | None = None, error: Exception | None = None) -> None:
        self.began, self.error, self.starts = began, error, 0
        self.looked = threading.Event()
        self.states = ["running", "done"]

    def last_began(self) -> float | None:
        return self.began

    def start(self) -> None:
        self.looked.set()
        if self.error:
            raise self.error
        self.starts += 1

    def state(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


def planned(job: Job, *, new: int = 20, every_hours: float = 24, clock: Clock | None = None) -> Schedule:
    return Schedule(LearnConfig(every_hours=every_hours, at_least=20), job, lambda: new, clock or Clock())


@pytest.mark.parametrize(("new", "starts"), [(0, 0), (19, 0), (20, 1), (21, 1)])
def test_enough_corrections_make_learning_due(new, starts):
    job = Job()
    assert planned(job, new=new).look() == bool(starts)
    assert job.starts == starts


def test_the_first_look_is_a_day_after_the_last_learning_whoever_started_it():
    clock, job = Clock(), Job()
    plan = planned(job, clock=clock)
    assert plan.wait_s() == 0  # nothing was ever learned
    job.began = clock.s - HOUR
    assert plan.wait_s() == 23 * HOUR
    clock.s += 22 * HOUR
    assert plan.wait_s() == HOUR
    clock.s += 2 * HOUR
    assert plan.wait_s() == 0
    clock.s -= 1000 * HOUR  # a clock that was put right
    assert plan.wait_s() == 24 * HOUR


def test_it_looks_again_when_the_time_has_come(monkeypatch):
    clock, job, waits = Clock(), Job(), []
    plan = planned(job, clock=clock)

    def wait(seconds):
        waits.append(seconds)
        clock.s += seconds
        return len(waits) > 6

    monkeypatch.setattr(plan._stopped, "wait", wait)
    plan._run()
    day, followed = 24 * HOUR, schedule._FOLLOW_S  # the first one still ran when it was asked about
    assert waits == [0, followed, day - followed, day, day, day, day]
    assert job.starts == 5


@pytest.mark.parametrize(
    ("error", "said"),
    [(ConflictError("learning is running", expected="", todo=""), "left alone"), (OSError("no room"), "tried again")],
)
def test_one_that_runs_is_left_alone_and_a_failure_is_tried_again(caplog, error, said):
    caplog.set_level(logging.INFO)
    job = Job(error=error)
    plan = planned(job)
    assert not plan.look()
    assert said in caplog.text
    job.error = None
    assert plan.look()
    assert [record.fields for record in caplog.records] == [{"caller": "schedule"}] * 2


def test_corrections_that_cannot_be_counted_are_a_failure_like_any_other(caplog):
    def broken():
        raise RuntimeError("no weights")

    job = Job()
    assert not Schedule(LearnConfig(every_hours=1), job, broken, Clock()).look()
    assert job.starts == 0
    assert "did not start" in caplog.text


def test_how_it_ended_is_logged(caplog):
    job = Job()
    job.states = ["failed"]
    planned(job)._follow()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "learning ended: failed")
    ]


def test_no_second_one_while_one_learns(monkeypatch):
    started = []
    monkeypatch.setattr(jobs, "tasks", lambda method: started)
    monkeypatch.setattr(jobs.AsyncTask, "status", lambda method: (started[-1], None))
    monkeypatch.setattr(jobs, "app_instance", lambda: SimpleNamespace(_trainers={}))
    monkeypatch.setattr(
        jobs.AsyncTask, "run", lambda *_, **__: started.append({"status": "RUNNING", "start_ts": "now"})
    )
    plan = Schedule(LearnConfig(every_hours=1), jobs.LearningJob(), lambda: 20)
    assert plan.look()
    assert not plan.look()
    assert len(started) == 1
    started[0]["status"] = "DONE"
    with jobs.IN_PLACE:  # in the server's own process
        assert not plan.look()
    assert plan.look()


def test_off_unless_it_is_asked_for():
    assert LearnConfig().every_hours == 0
    job = Job()
    plan = planned(job, every_hours=0)
    plan.start()
    assert plan._thread is None
    plan.stop()
    assert job.starts == 0


def test_it_stops_at_once_and_starts_nothing_then():
    job = Job(began=time.time())
    plan = planned(job, clock=time.time)
    plan.start()
    thread = plan._thread
    assert thread is not None
    assert thread.is_alive()
    plan.stop()
    assert not thread.is_alive()
    assert not plan.look()
    assert job.starts == 0


def test_when_learning_began_is_told_from_its_file(monkeypatch):
    stats = {}
    trainers = {"sparsight": SimpleNamespace(stats=lambda: stats)}
    monkeypatch.setattr(jobs, "app_instance", lambda: SimpleNamespace(_trainers=trainers))
    job = jobs.LearningJob()
    assert job.last_began() is None
    when = datetime(2026, 11, 29, 3, tzinfo=UTC)
    stats["started"] = when.isoformat(timespec="seconds")
    assert job.last_began() == when.timestamp()
    for wrong in ("yesterday", 7, None):
        stats["started"] = wrong
        assert job.last_began() is None


def test_it_begins_and_ends_with_the_server(tmp_path, monkeypatch):
    job = Job()
    monkeypatch.setattr(seam, "LearningJob", lambda: job)
    monkeypatch.setattr(seam, "_new_corrections", lambda: 20)
    monkeypatch.setattr(seam, "_load", lambda: None)
    monkeypatch.setattr(seam.logs, "configure", lambda form: None)
    monkeypatch.setattr(seam, "few_arenas", lambda: None)

    @asynccontextmanager
    async def stock(app):
        yield

    def threads():
        return [t for t in threading.enumerate() if t.name == "sparsight-schedule"]

    async def serve(config):
        async with seam._with_our_lifespan(stock, config)(None):
            if config.learn.every_hours:
                assert await asyncio.to_thread(job.looked.wait, 10)
                assert threads()
            else:
                assert not threads()

    for hours, starts in ((0, 0), (24, 1)):
        (tmp_path / "learn.yaml").write_text(json.dumps({"every_hours": hours}))
        asyncio.run(serve(Config.load(tmp_path, home=tmp_path / "home")))
        assert job.starts == starts
        assert not threads()
    assert not state._HOLDER.holds_store
