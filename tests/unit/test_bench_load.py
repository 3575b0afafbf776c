"""What `bench load` makes of what it sees; and a short run of it against a real server."""

import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from sparsight.bench import clients, load
from sparsight.bench.clients import ASK, FEEDBACK, FIRST, INFO, STREAM, Clinician, Sample, together
from sparsight.config import Config

STUDIES = [{"id": "one", "study_uid": "1.2", "series_uid": "1.2.3"}]
EVENTS = 'event: start\ndata: {"episode": "e1"}\n\n: wait\n\nevent: token\ndata: {}\n\nevent: done\ndata: {}\n\n'


def play(answer, seconds: float = 0.3, **more: object) -> list[Sample]:
    """A clinician at a server that replies so."""
    one = Clinician("http://127.0.0.1:1", 0, STUDIES, threading.Event(), transport=httpx.MockTransport(answer), **more)
    together([one], seconds)
    return one.samples


def reply(request: httpx.Request) -> httpx.Response:
    path = request.url.path
    if "text/event-stream" in request.headers.get("accept", ""):
        return httpx.Response(200, text=EVENTS)
    if path.endswith("metadata"):
        return httpx.Response(200, json=[{"00080018": {"Value": ["1.2.3.4"]}}])
    return httpx.Response(200, json={"episode": "e1", "study": "one"})


def test_a_clinician_does_everything() -> None:
    seen: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.read()))
        time.sleep(0.002)
        return reply(request)

    samples = play(answer)
    assert {s.route for s in samples} >= {ASK, STREAM, FIRST, FEEDBACK, clients.LABEL, INFO, f"{clients.WEB}: frame"}
    assert {s.status for s in samples} == {200}
    assert json.loads(dict(seen)["/sparsight/feedback"])["episode"] == "e1"
    assert b'{"episode": "e1"}' in dict(seen)["/datastore/label"]


def test_a_stream_that_ends_in_an_error_or_early_is_an_error() -> None:
    for end in ("event: error\ndata: {}\n\n", ""):
        text = EVENTS.split("event: done", maxsplit=1)[0] + end

        def answer(request: httpx.Request, text: str = text) -> httpx.Response:
            time.sleep(0.01)
            return (
                httpx.Response(200, text=text) if "text/event-stream" in request.headers["accept"] else reply(request)
            )

        samples = play(answer)
        assert {s.status for s in samples if s.route == STREAM} == {500}
        assert not any(s.route == FIRST for s in samples)


def test_a_full_queue_is_waited_for_and_is_no_error() -> None:
    asked = []

    def answer(_: httpx.Request) -> httpx.Response:
        asked.append(time.monotonic())
        return httpx.Response(429, headers={"Retry-After": "0.2"})

    samples = play(answer, 0.5, mixed=False)
    assert len(asked) <= 4
    [row] = load.by_route(samples)
    assert (row["n"], row["refused"], row["errors"], row["p99"]) == (0, len(asked), 0, None)


def test_no_reply_is_an_error_and_what_is_no_fault_of_a_server_ends_it() -> None:
    def away(_: httpx.Request) -> httpx.Response:
        time.sleep(0.01)
        raise httpx.ConnectError("refused")

    [row] = load.by_route(play(away, 0.1, mixed=False))
    assert row["errors"] > 0
    with pytest.raises(KeyError):  # a reply without what it has to have
        play(lambda _: httpx.Response(200, json={}))


def test_fairness() -> None:
    assert load.fairness([7, 7, 7]) == pytest.approx(1)
    assert load.fairness([9, 0, 0]) == pytest.approx(1 / 3)
    assert load.fairness([0, 0]) == 0


def test_growth_is_of_the_last_quarter_against_the_second() -> None:
    assert load.growth([1, 1, 100, 100, 100, 100, 110, 110]) == pytest.approx(0.1)
    assert load.growth([100.0] * 7) is None
    assert load.growth([0.0] * 20) is None  # a system that does not tell


def test_percentiles_are_of_good_replies() -> None:
    samples = [Sample(INFO, 0, n / 100, 200) for n in range(101)] + [Sample(INFO, 0, 50.0, 500)]
    [row] = load.by_route(samples)
    assert (row["p50"], row["p95"], row["p99"]) == pytest.approx((0.5, 0.95, 0.99))
    assert (row["n"], row["errors"]) == (101, 1)


@pytest.mark.slow
@pytest.mark.server
def test_a_short_run_at_a_real_server(tmp_path: Path, reader_folder: Path) -> None:
    config = Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)})
    report = load.measure(config, clients=(2,), seconds=2, pairs=2, seed=0, on_step=lambda *_: None)
    assert report["alive"]
    [level] = report["levels"]
    assert level["errors"] == {}
    assert sum(level["answers_by_client"]) > 0
    assert {INFO, FEEDBACK} <= {row["route"] for row in report["beside"]["routes"]}
    assert all(row["mib"] > 50 for row in report["memory"]["mib"])
    assert {row["target"].split(":")[0] for row in report["targets"]} >= {
        INFO,
        FEEDBACK,
        "overhead over the bare model",
    }
    assert report["targets"][-1]["met"] is True  # no errors
    assert f"| 2 | {level['answers_per_s']:.2f} |" in load.page(report)
