"""Several questions about one study at the same time load and encode it once; what failed is tried again."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsight.config import Config
from sparsight.errors import BusyError, ImageError
from sparsight.service import Service, parse_question
from sparsight.service.encoded import Encoded, EncodedStudies
from sparsight.service.once import Once
from sparsight.types import ImageVolume, TokenGrid

MANY = 6


class Source:
    """Studies that take until `go` to load; counts what it is asked for. faults: raised in turn, None: none."""

    def __init__(self, *faults: BaseException | None) -> None:
        self.loads = 0
        self.encoded = 0
        self.go = threading.Event()
        self.faults = list(faults)

    def info(self, study: str) -> Any:
        return SimpleNamespace(id=study)

    def fingerprint(self, study: str) -> str:
        return f"{study}-1"

    def load(self, study: str) -> ImageVolume:
        self.loads += 1
        assert self.go.wait(30)
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        return ImageVolume(np.full((1, 8, 8), len(study), np.float32), np.eye(4), "DX", (0.0, 1.0))

    def encode(self, volume: ImageVolume, where: object = None) -> TokenGrid:
        """As a reader does."""
        self.encoded += 1
        return TokenGrid(torch.zeros(1, 4), (1, 1, 1), (8, 8, 1), np.eye(4), np.eye(4), "r")


class Counting(dict[Any, Any]):
    """What runs, and how many have come to it: whoever came has its result, whenever it looks."""

    came = 0

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.came += 1
        return super().setdefault(key, default)


def at_once(source: Source, calls: list[Callable[[], Any]], waiting: Callable[[], bool]) -> list[Any]:
    """Results, or exceptions, of calls that all run before the first load ends."""

    def call(one: Callable[[], Any]) -> Any:
        try:
            return one()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(call, one) for one in calls]
        while not waiting():
            threading.Event().wait(0.002)
        source.go.set()
        return [one.result(30) for one in running]


def get(studies: EncodedStudies, source: Source, study: str = "s") -> Encoded:
    reader: Any = SimpleNamespace(id="r", encode=source.encode)
    return studies.get(study, reader, lambda stage: None, nullcontext)


def ask_together(source: Source, n: int = MANY) -> tuple[EncodedStudies, list[Any]]:
    studies: EncodedStudies = EncodedStudies(source, 2**20)  # type: ignore[arg-type]  # only what it calls
    studies._encoding._running = running = Counting()
    made = at_once(source, [lambda: get(studies, source)] * n, lambda: running.came == n)
    return studies, made


def test_first_questions_at_the_same_time_pay_once() -> None:
    source = Source()
    studies, made = ask_together(source)
    assert (source.loads, source.encoded) == (1, 1)
    assert len({id(one.grid) for one in made}) == 1
    assert sum(one.timings_ms["encode"] > 0 for one in made) == 1  # the others say how long they waited
    assert all(one.timings_ms["load"] > 0 for one in made)
    get(studies, source)
    assert source.loads == 1


def test_other_studies_do_not_wait() -> None:
    source = Source()
    studies: EncodedStudies = EncodedStudies(source, 2**20)  # type: ignore[arg-type]  # only what it calls
    at_once(
        source, [lambda: get(studies, source, "s"), lambda: get(studies, source, "other")], lambda: source.loads == 2
    )
    assert source.encoded == 2


def test_a_failure_is_that_of_all_who_waited_and_is_not_kept() -> None:
    source = Source(ImageError("a broken image", expected="a whole one", todo="send it again"))
    studies, failed = ask_together(source)
    assert [type(error) for error in failed] == [ImageError] * MANY
    assert {str(error) for error in failed} == {"a broken image; expected a whole one; send it again"}
    assert len({id(error) for error in failed}) == MANY
    assert source.loads == 1
    assert get(studies, source).id == "s"
    assert source.loads == 2


def test_who_waits_for_one_that_breaks_off_does_it_himself() -> None:
    source = Source(KeyboardInterrupt())
    _, made = ask_together(source)
    assert sum(isinstance(one, KeyboardInterrupt) for one in made) == 1
    assert sum(isinstance(one, Encoded) for one in made) == MANY - 1
    assert (source.loads, source.encoded) == (2, 1)


def test_pictures_at_the_same_time_load_the_study_once() -> None:
    source = Source()
    studies: EncodedStudies = EncodedStudies(source, 2**20)  # type: ignore[arg-type]  # only what it calls
    studies._opening._running = running = Counting()
    volumes = at_once(source, [lambda: studies.volume("s")] * MANY, lambda: running.came == MANY)
    assert source.loads == 1
    assert len({id(volume) for volume in volumes}) == 1


def test_a_result_that_just_came_is_not_made_again() -> None:
    once: Once[int] = Once()
    cache: list[int] = []

    def make() -> int:
        if not cache:
            cache.append(7)
            with pytest.raises(BusyError):
                once.do("other", busy)
        return cache[0]

    def busy() -> int:
        raise BusyError("x", expected="y", todo="z")

    assert once.do("key", make) == (7, True)
    assert once.do("key", make) == (7, True)
    assert once._running == {}


def test_a_service_asked_many_things_at_once_reads_the_study_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    studies = tmp_path / "studies"
    studies.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(studies / "one.png")
    service = Service(config, studies)
    encode, encoded = service.reader.encode, []
    monkeypatch.setattr(service.reader, "encode", lambda volume, where=None: encoded.append(1) or encode(volume))
    with ThreadPoolExecutor(MANY) as pool:
        asked = list(pool.map(lambda _: service.ask("one", parse_question("Is there a ring?")), range(MANY)))
    assert len(encoded) == 1
    assert len({one.episode.id for one in asked}) == MANY
    assert {one.episode.answer.text for one in asked} == {asked[0].episode.answer.text}
    assert service.store.verify() == []
    service.close()
