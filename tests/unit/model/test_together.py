"""Texts that are written together are as each would be alone, whoever joins, leaves, fails or finds no room."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsight.errors import MemoryFullError
from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER, QUESTION, THINK
from sparsight.model.together import Behind, Task, Together, Work, Write, alone, passed, written

FULL = MemoryFullError("a pass", expected="room", todo="keep fewer tokens")


def row(reader: NanoReader, n: int) -> Row:
    """The n-th of many prompts of different lengths."""
    rng = torch.Generator().manual_seed(n)
    features = torch.randn(60, reader.encoder.width, generator=rng)
    keep = torch.randperm(60, generator=rng)[: 1 + 7 * n % 30].sort().values
    question = [QUESTION, *(40 + i for i in range(1 + n % 5))]
    return Row(question, *visual_row(features, (1, 6, 10), keep), [THINK if n % 2 else ANSWER])


def wanted(reader: NanoReader, n: int, limit: int) -> Write:
    return Write(row(reader, n), frozenset([7 + n % 3]), limit)


def run(together: Together, writes: Sequence[Write], joins: Sequence[int]) -> None:
    """Let each join after a number of steps, when there is room."""
    left = sorted(zip(joins, range(len(writes)), strict=True))
    ended, step = list[Write](), 0
    while len(ended) < len(writes):
        while left and together.room and left[0][0] <= step:
            together.join(writes[left.pop(0)[1]])
        ended += together.step()
        step += 1
        assert step < 500


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=6),
    most=st.integers(1, 4),
)
def test_each_is_as_it_would_be_alone(reader: NanoReader, texts: list[tuple[int, int, int]], most: int) -> None:
    writes = [wanted(reader, n, limit) for n, limit, _ in texts]
    run(Together(reader.begin, most), writes, [join for _, _, join in texts])
    for write, (n, limit, _) in zip(writes, texts, strict=True):
        assert write.ids == written(reader.begin, wanted(reader, n, limit))


def test_one_that_leaves_changes_nothing_for_the_others(reader: NanoReader) -> None:
    together, writes = Together(reader.begin, 8), [wanted(reader, n, 12) for n in range(5)]
    for write in writes:
        together.join(write)
    for n in (3, 0):
        together.step()
        together.drop(writes[n])
    while len(together):
        together.step()
    assert len(writes[3].ids) == 1
    for n in (1, 2, 4):
        assert writes[n].ids == written(reader.begin, wanted(reader, n, 12))


def test_what_a_listener_raises_is_raised_in_its_own_work(reader: NanoReader) -> None:
    heard: list[int] = []

    def leaves(ids: list[int]) -> None:
        heard.append(len(ids))
        if len(ids) == 3:
            raise ConnectionError

    one, other = wanted(reader, 1, 9), wanted(reader, 2, 9)
    one.on_ids = leaves
    run(Together(reader.begin, 2), [one, other], [0, 0])
    assert heard == [1, 2, 3]
    assert other.ids == written(reader.begin, wanted(reader, 2, 9))

    def work() -> Work[None]:
        text = wanted(reader, 1, 9)
        text.on_ids = leaves
        yield text

    with pytest.raises(ConnectionError):
        alone(reader.begin, work())


class Small:
    """A device that holds `room` texts: one pass more finds no memory."""

    def __init__(self, reader: NanoReader, room: int) -> None:
        self._reader, self.room, self.passes = reader, room, 0

    def begin(self, prompt: Row, said: Sequence[int]) -> Behind:
        if not self.room:
            raise FULL
        behind = self._reader.begin(prompt, said)
        model = behind.model

        def passes(**given: torch.Tensor) -> object:
            self.passes += 1
            if len(given["input_ids"]) > self.room:
                model(**given)  # the cache has grown already when it fails
                raise FULL
            return model(**given)

        behind.model = passes
        return behind


@pytest.mark.parametrize("room", [1, 2, 3])
def test_where_memory_is_full_fewer_are_written_and_none_is_lost(reader: NanoReader, room: int) -> None:
    small, writes = Small(reader, room), [wanted(reader, n, 10) for n in range(6)]
    together = Together(small.begin, 6)
    run(together, writes, [0, 0, 1, 2, 3, 3])
    assert small.passes
    together.join(again := wanted(reader, 7, 2))
    assert together.room, "what did not fit then may fit now"
    while not again.ended:
        together.step()
    for n, write in enumerate(writes):
        assert write.error is None
        assert write.ids == written(reader.begin, wanted(reader, n, 10))


@pytest.mark.parametrize("part", ["_join", "_keep", "_follow"])
@pytest.mark.parametrize("error", [FULL, RuntimeError("the device")])
def test_wherever_a_pass_breaks_off_each_text_is_as_it_would_be(
    reader: NanoReader, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    """The first time that part is done it fails, when half of it was done; texts end in the pass that fails, too."""
    original, failed = getattr(Behind, part), list[str]()

    def breaks(self: Behind, given: object) -> None:
        if not failed:
            failed.append(part)
            if part != "_keep":
                original(self, given)
            raise error
        original(self, given)

    monkeypatch.setattr(Behind, part, breaks)
    limits = (1, 7, 7, 12)
    writes, together, told = [wanted(reader, n, limit) for n, limit in enumerate(limits)], Together(reader.begin, 4), 0
    tasks: list[Task[None]] = []

    def work(write: Write) -> Work[None]:
        yield write

    for write in writes:
        tasks.append(Task(work(write)))
        tasks[-1].go_on(together)
    while len(together):
        for write in together.step():
            next(t for t in tasks if t.write is write).go_on(together)
            told += 1
    assert failed
    outcome = [task.result.exception() for task in tasks]
    raised = [e for e in outcome if e is not None]
    assert len(raised) == (1 if part == "_join" and error is not FULL else 0), "who joined, and no other"
    for n, (write, limit) in enumerate(zip(writes, limits, strict=True)):
        if outcome[n] is None:
            assert write.ids == written(reader.begin, wanted(reader, n, limit))


def test_a_pass_that_finds_no_memory_beside_texts_is_done_again_without_them(reader: NanoReader) -> None:
    together, other = Together(reader.begin, 4), wanted(reader, 2, 9)
    together.join(other)
    together.step()

    def scores() -> str:
        if together._behind is not None:
            raise FULL
        return "scored"

    def work(call: Callable[[], str]) -> Work[str]:
        return (yield from passed(call))

    task = Task(work(scores))
    task.go_on(together)
    assert task.result.result() == "scored"
    while len(together):
        together.step()
    assert other.ids == written(reader.begin, wanted(reader, 2, 9))

    def never() -> str:
        raise FULL

    with pytest.raises(MemoryFullError):
        alone(reader.begin, work(never))


def test_one_that_finds_no_memory_alone_is_told_and_may_ask_for_less(reader: NanoReader) -> None:
    small = Small(reader, 0)

    def work() -> Work[str]:
        try:
            yield wanted(reader, 1, 5)
        except MemoryFullError:
            small.room = 1
        text = wanted(reader, 2, 5)
        yield text
        return "less" if text.ids == written(reader.begin, wanted(reader, 2, 5)) else "other"

    assert alone(small.begin, work()) == "less"

    def stubborn() -> Work[None]:
        yield wanted(reader, 1, 5)

    small.room = 0
    with pytest.raises(MemoryFullError):
        alone(small.begin, stubborn())


def test_a_pass_that_was_broken_off_is_done_anew(reader: NanoReader) -> None:
    together, writes = Together(reader.begin, 3), [wanted(reader, n, 10) for n in range(3)]
    for write in writes:
        together.join(write)
    together.step()
    together.restart()
    while len(together):
        together.step()
    for n, write in enumerate(writes):
        assert write.ids == written(reader.begin, wanted(reader, n, 10))


def test_a_prompt_that_cannot_be_read_again_fails_by_itself(reader: NanoReader) -> None:
    bad = wanted(reader, 1, 10)

    def begin(prompt: Row, said: Sequence[int]) -> Behind:
        if prompt is bad.prompt and said:
            raise RuntimeError("the device is gone")
        return reader.begin(prompt, said)

    together, good, tasks = Together(begin, 2), wanted(reader, 2, 10), list[Task[None]]()

    def work(write: Write) -> Work[None]:
        yield write

    for write in (bad, good):
        tasks.append(Task(work(write)))
        tasks[-1].go_on(together)
    together.step()
    together.restart()
    while len(together):
        for write in together.step():
            tasks[write is good].go_on(together)
    assert isinstance(tasks[0].result.exception(), RuntimeError)
    assert good.ids == written(reader.begin, wanted(reader, 2, 10))


def test_no_text_is_wanted_where_there_is_no_room_for_one(reader: NanoReader) -> None:
    def work() -> Work[list[int]]:
        text = wanted(reader, 1, 0)
        yield text
        return text.ids

    assert alone(reader.begin, work()) == []
