"""One at a time, clinicians first, first come first served, and never an endless queue."""

import threading
import time

import pytest

from sparsight.errors import QueueFullError
from sparsight.service import turn
from sparsight.service.turn import Priority, Turnstile


def wait_for(condition: object, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def queue_up(turnstile: Turnstile, order: list[str], name: str, priority: Priority) -> threading.Thread:
    def run() -> None:
        with turnstile.turn(priority):
            order.append(name)

    before = len(turnstile._waiting)
    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: len(turnstile._waiting) == before + 1)
    return thread


def test_clinicians_go_before_learning_in_order_of_arrival() -> None:
    turnstile, order = Turnstile(8), []
    with turnstile.turn():
        threads = [
            queue_up(turnstile, order, name, priority)
            for name, priority in (
                ("learn", Priority.LEARNING),
                ("batch", Priority.BATCH),
                ("first", Priority.CLINICIAN),
                ("second", Priority.CLINICIAN),
            )
        ]
    for thread in threads:
        thread.join(5)
    assert order == ["first", "second", "batch", "learn"]


def test_several_places_are_taken_at_once_and_the_most_urgent_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "_LOOK_S", 60.0)  # nobody sleeps beside a free place
    turnstile, order, both = Turnstile(8, places=2), [], threading.Barrier(2)

    def run(name: str) -> None:
        with turnstile.turn():
            order.append(name)
            both.wait(5)  # neither goes on before the other has a place, too

    with turnstile.turn(), turnstile.turn():
        waiting = queue_up(turnstile, order, "learn", Priority.LEARNING)
        threads = [threading.Thread(target=run, args=[name]) for name in ("first", "second")]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(turnstile._waiting) == 3)
        assert not order
    for thread in (*threads, waiting):
        thread.join(5)
    assert sorted(order[:2]) == ["first", "second"]
    assert order[2:] == ["learn"]


def test_a_long_job_gives_way_between_its_steps() -> None:
    turnstile, order = Turnstile(8), []
    with turnstile.turn(Priority.LEARNING):
        thread = queue_up(turnstile, order, "ask", Priority.CLINICIAN)
        turnstile.give_way(Priority.LEARNING)
        order.append("step")
    thread.join(5)
    assert order == ["ask", "step"]


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    turnstile, order = Turnstile(1), []
    with turnstile.turn():
        thread = queue_up(turnstile, order, "waits", Priority.CLINICIAN)
        with pytest.raises(QueueFullError, match="1 questions"), turnstile.turn():
            pass
    thread.join(5)
    with turnstile.turn():
        order.append("again")
    assert order == ["waits", "again"]


def test_an_error_inside_frees_the_machine() -> None:
    turnstile = Turnstile(1)
    with pytest.raises(RuntimeError), turnstile.turn():
        raise RuntimeError
    with turnstile.turn():
        pass


def test_batches_leave_room_for_clinicians() -> None:
    turnstile, order = Turnstile(4), []
    with turnstile.turn():
        threads = [queue_up(turnstile, order, name, Priority.BATCH) for name in ("one", "two")]
        with pytest.raises(QueueFullError, match="2 questions"), turnstile.turn(Priority.BATCH):
            pass
        threads += [queue_up(turnstile, order, f"c{n}", Priority.CLINICIAN) for n in range(4)]
        with pytest.raises(QueueFullError, match="4 questions"):
            turnstile.check(Priority.CLINICIAN)
    for thread in threads:
        thread.join(5)
    assert order == ["c0", "c1", "c2", "c3", "one", "two"]


def test_who_waited_too_long_is_told_so_and_takes_no_turn() -> None:
    turnstile = Turnstile(4, max_wait_s=0.05)
    with turnstile.turn(), pytest.raises(QueueFullError, match=r"waited 0\.05 s"):
        turnstile._acquire(Priority.CLINICIAN, bounded=True)
    assert turnstile.waiting()[Priority.CLINICIAN] == 0
    with turnstile.turn():  # and nobody holds it
        pass


def test_who_no_longer_wants_it_leaves_the_queue_and_the_next_gets_it() -> None:
    turnstile, order, gone = Turnstile(4), [], threading.Event()

    def leave() -> None:
        if gone.is_set():
            raise TimeoutError

    def first() -> None:
        with pytest.raises(TimeoutError), turnstile.turn(on_wait=leave):
            order.append("left")

    with turnstile.turn():
        one = threading.Thread(target=first)
        one.start()
        wait_for(lambda: len(turnstile._waiting) == 1)
        two = queue_up(turnstile, order, "next", Priority.CLINICIAN)
        gone.set()
        one.join(5)
        assert turnstile.waiting()[Priority.CLINICIAN] == 1
    two.join(5)
    assert order == ["next"]
