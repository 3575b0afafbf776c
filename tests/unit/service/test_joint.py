"""Whoever has the machine answers for all who wait: each gets its own, at once, and nobody suffers for another."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from sparsight.errors import QueueFullError
from sparsight.model.together import Work, Write
from sparsight.service.joint import Joint
from sparsight.service.turn import Priority, Turnstile
from sparsight.types import PolicyVersion

END = 0
A = PolicyVersion("a", None, "reader", "0" * 64, datetime.now(UTC), "live")
B = replace(A, id="b")


class Written:
    """In the place of a language model's cache: the rest of each text, known beforehand."""

    joinable = True
    passes: list[int]  # texts of each pass
    broken: BaseException | None = None

    def __init__(self, rest: list[list[int]]) -> None:
        self.rest = rest

    def allowed(self) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([text[0] for text in self.rest]), 200).float()

    def follow(self, ids: torch.Tensor) -> None:
        if Written.broken is not None:
            error, Written.broken = Written.broken, None
            raise error
        Written.passes.append(len(ids))
        self.rest = [text[1:] for text in self.rest]

    def join(self, other: "Written") -> None:
        self.rest += other.rest

    def keep(self, rows: Sequence[int]) -> None:
        self.rest = [self.rest[r] for r in rows]


class Desk:
    """A joint desk, its machine, and people who ask."""

    def __init__(self, most: int = 8, **machine: Any) -> None:
        Written.passes, Written.broken = [], None
        self.machine, self.on = Turnstile(machine.pop("max_waiting", 32), **machine), ""
        self.joint = Joint(self._begin, self._take_on, self.machine, most)
        self.ended: list[str] = []
        self.given: dict[str, Any] = {}
        self.threads: list[threading.Thread] = []

    def _begin(self, prompt: list[int], said: Sequence[int]) -> Any:
        return Written([[*prompt, END][len(said) :]])

    def _take_on(self, version: str) -> None:
        self.on = version

    def ask(
        self,
        name: str,
        length: int,
        *,
        version: PolicyVersion = A,
        priority: Priority = Priority.CLINICIAN,
        on_ids: Callable[[list[int]], object] = lambda ids: None,
        on_wait: Callable[[], object] = lambda: None,
        fails: Exception | None = None,
    ) -> None:
        """In a thread of its own; returns when it waits for the machine, or has ended."""

        def hear(ids: list[int]) -> None:
            assert self.on == version.id
            on_ids(ids)

        def work() -> Work[list[int]]:
            text = Write(list(range(1, length + 1)), frozenset([END]), 500, hear)
            yield text
            assert self.on == version.id
            return text.ids

        def who() -> PolicyVersion:
            if fails is not None:
                raise fails
            return version

        def run() -> None:
            try:
                self.given[name] = self.joint.do(who, lambda _: work(), priority, on_wait)
            except BaseException as error:
                self.given[name] = error
            self.ended.append(name)

        self.let_wait(run, lambda: name in self.ended)

    def let_wait(self, run: Callable[[], None], ended: Callable[[], bool] = lambda: False) -> None:
        """Run it in a thread; returns when that waits for the machine, or has ended."""
        before = len(self.machine._waiting)
        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        until(lambda: len(self.machine._waiting) > before or ended())

    def close(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def text(length: int) -> list[int]:
    return list(range(1, length + 1))


def test_those_who_wait_together_are_answered_in_the_same_passes() -> None:
    desk, lengths = Desk(), {f"q{n}": n for n in (5, 3, 8, 1, 4)}
    with desk.machine.turn():
        for name, length in lengths.items():
            desk.ask(name, length)
    desk.close()
    assert desk.given == {name: (A, text(length)) for name, length in lengths.items()}
    assert len(Written.passes) <= 8 + 5, "one begins with each pass: about as many as the longest, not the sum"
    assert max(Written.passes) >= 3
    assert desk.ended.index("q1") < desk.ended.index("q8")


def test_one_that_comes_later_joins_and_leaves_before_the_longer_one_ends() -> None:
    desk = Desk()

    def at_ten(ids: list[int]) -> None:
        if len(ids) == 10:
            desk.ask("short", 3)
        if len(ids) == 60:
            until(lambda: "short" in desk.ended)  # its thread does not wait for the machine

    desk.ask("long", 100, on_ids=at_ten)
    desk.close()
    assert desk.given == {"short": (A, text(3)), "long": (A, text(100))}
    assert desk.ended == ["short", "long"]
    assert len(Written.passes) == 100


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_than_that_are_written_at_once_and_clinicians_begin_first(most: int) -> None:
    desk, begun = Desk(most), list[str]()

    def begins(name: str) -> Callable[[list[int]], object]:
        return lambda ids: begun.append(name) if len(ids) == 1 else None

    with desk.machine.turn():
        for name, priority in (("batch", Priority.BATCH), ("one", Priority.CLINICIAN), ("two", Priority.CLINICIAN)):
            desk.ask(name, 4, priority=priority, on_ids=begins(name))
    desk.close()
    assert begun == ["one", "two", "batch"]
    assert max(Written.passes) == most
    assert all(given == (A, text(4)) for given in desk.given.values())


def test_two_policies_are_never_mixed() -> None:
    desk = Desk()
    with desk.machine.turn():
        for n in range(6):
            desk.ask(f"q{n}", 3 + n, version=(A, B)[n % 2])
    desk.close()
    assert desk.given == {f"q{n}": ((A, B)[n % 2], text(3 + n)) for n in range(6)}


def test_another_thread_may_put_another_policy_on_between_two_turns() -> None:
    desk = Desk()

    def shadows() -> None:
        with desk.machine.turn(Priority.CLINICIAN):
            desk.on = "b"

    def at_two(ids: list[int]) -> None:
        if len(ids) == 2:
            desk.let_wait(shadows)
            desk.ask("later", 9)

    desk.ask("first", 4, on_ids=at_two)
    desk.close()
    assert desk.given == {"first": (A, text(4)), "later": (A, text(9))}


def test_who_leaves_ends_only_their_own() -> None:
    desk = Desk()
    heard: list[int] = []

    def leave(ids: list[int]) -> None:
        heard.append(len(ids))
        if len(ids) == 4:
            raise ConnectionError

    def gone() -> None:
        raise BrokenPipeError

    with desk.machine.turn():
        desk.ask("stays", 9)
        desk.ask("leaves", 20, on_ids=leave)
        desk.ask("left", 20, on_wait=gone)
        until(lambda: "left" in desk.ended)
    desk.close()
    assert desk.given["stays"] == (A, text(9))
    assert isinstance(desk.given["leaves"], ConnectionError)
    assert isinstance(desk.given["left"], BrokenPipeError)
    assert heard == [1, 2, 3, 4]
    assert max(Written.passes) == 2, "the one that left was never begun"


def test_what_cannot_be_begun_fails_in_its_own_thread() -> None:
    desk = Desk()
    with desk.machine.turn():
        desk.ask("good", 5)
        desk.ask("bad", 5, fails=FileNotFoundError("weights"))
        desk.ask("too", 6)
    desk.close()
    assert (desk.given["good"], desk.given["too"]) == ((A, text(5)), (A, text(6)))
    assert isinstance(desk.given["bad"], FileNotFoundError)


def test_a_pass_that_fails_is_tried_with_fewer_and_nobody_suffers() -> None:
    """In the pass that fails, `second` has just ended."""
    desk = Desk()

    def breaks(ids: list[int]) -> None:
        if len(ids) == 3:
            Written.broken = RuntimeError("the device")

    with desk.machine.turn():
        desk.ask("first", 9, on_ids=breaks)
        desk.ask("second", 1)
        desk.ask("third", 5)
    desk.close()
    assert desk.given == {"first": (A, text(9)), "second": (A, text(1)), "third": (A, text(5))}


def test_what_fails_alone_is_raised_where_it_was_asked() -> None:
    desk = Desk()

    def bad(ids: list[int]) -> None:
        Written.broken = RuntimeError("this text")

    with desk.machine.turn():
        for n in range(3):
            desk.ask(f"good{n}", 6 + n)
        desk.ask("bad", 6, on_ids=bad)
    desk.close()
    assert isinstance(desk.given["bad"], RuntimeError)
    assert [desk.given[f"good{n}"] for n in range(3)] == [(A, text(6 + n)) for n in range(3)]


def test_one_who_is_interrupted_takes_nobody_along() -> None:
    desk = Desk()

    def stops(ids: list[int]) -> None:
        if len(ids) == 3:
            Written.broken = KeyboardInterrupt()

    with desk.machine.turn():
        desk.ask("first", 9, on_ids=stops)
        desk.ask("second", 3)
        desk.ask("third", 7)
    desk.close()
    assert isinstance(desk.given["first"], KeyboardInterrupt)
    assert (desk.given["second"], desk.given["third"]) == ((A, text(3)), (A, text(7)))
    assert not desk.joint._going
    assert not len(desk.joint._together)


def test_weights_that_go_away_fail_those_who_need_them() -> None:
    desk, gone = Desk(), OSError("weights")
    taken = desk.joint._take_on

    def take_on(version: str) -> None:
        if version == "a" and len(desk.given) > 0:
            raise gone
        taken(version)

    desk.joint._take_on = take_on
    with desk.machine.turn():
        desk.ask("short", 2)
        desk.ask("long", 9)
        desk.ask("other", 4, version=B)
    desk.close()
    assert desk.given["short"] == (A, text(2))
    assert desk.given["long"] is gone
    assert desk.given["other"] == (B, text(4))


def test_a_question_of_another_policy_still_waits_and_may_leave() -> None:
    desk, told = Desk(), list[str]()

    def gone() -> None:
        told.append("asked whether it stays")
        raise BrokenPipeError

    def slow(ids: list[int]) -> None:
        if len(ids) == 1:
            desk.ask("other", 9, version=B, on_wait=gone)
            desk.ask("same", 3)
        if len(ids) == 5:
            assert desk.machine.waiting()[Priority.CLINICIAN] == 1, "the other one; the same is being answered"
            until(lambda: "other" in desk.ended)

    desk.ask("first", 9, on_ids=slow)
    desk.close()
    assert told
    assert isinstance(desk.given["other"], BrokenPipeError)
    assert desk.given["same"] == (A, text(3))


def test_a_batch_does_not_begin_while_a_clinician_waits_for_the_machine() -> None:
    desk, order = Desk(), list[str]()

    def encodes() -> None:
        with desk.machine.turn(Priority.CLINICIAN):
            order.append("encoded")

    def first(ids: list[int]) -> None:
        if len(ids) == 1:
            desk.let_wait(encodes)
            desk.ask("batch", 2, priority=Priority.BATCH, on_ids=lambda ids: order.append("batch"))

    desk.ask("first", 20, on_ids=first)
    desk.close()
    assert order == ["encoded", "batch", "batch"]


def test_what_is_being_written_no_longer_counts_as_waiting() -> None:
    desk = Desk(max_wait_s=0.2, max_waiting=1)
    told: list[str] = []

    def slow(ids: list[int]) -> None:
        if len(ids) == 1:
            desk.ask("joins", 40, on_wait=lambda: told.append("waits"))
        time.sleep(0.05)
        if len(ids) == 9:
            assert desk.machine.waiting()[Priority.CLINICIAN] == 0
            desk.machine.check(Priority.CLINICIAN)  # a queue of one is not full

    desk.ask("first", 30, on_ids=slow)
    desk.close()
    assert desk.given == {"first": (A, text(30)), "joins": (A, text(40))}
    assert not told


def test_a_full_queue_refuses_and_nothing_of_it_stays() -> None:
    desk = Desk(max_waiting=1)
    with desk.machine.turn():
        desk.ask("one", 3)
        desk.ask("two", 3)
        assert isinstance(desk.given["two"], QueueFullError)
    desk.close()
    assert desk.given["one"] == (A, text(3))
    assert max(Written.passes) == 1
