"""Long volumes are answered after a first look; the rest of their slices is encoded while nobody waits."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparsight.config import Config
from sparsight.errors import BusyError, NotFoundError
from sparsight.imaging.grid import box_to_tokens
from sparsight.reply import ask_json
from sparsight.service import Service, parse_question
from sparsight.service.answering import Answering
from sparsight.service.encoded import Encoded, EncodedStudies
from sparsight.types import Feedback, ImageVolume, Mark, TokenGrid


@pytest.fixture
def looking(tmp_path: Path, looking_folder: Path) -> Iterator[Service]:
    config = Config.load(
        home=tmp_path / "home",
        serve={"reader": str(looking_folder), "first_slices": 8},
        learn={"steps": 1, "passes": 0, "batch": 2, "group": 2, "held_out": 0.0},
        gate={"sentinel": 20},
    )
    service = Service(config)
    yield service
    service.close()


@pytest.fixture
def long() -> ImageVolume:
    voxels = np.random.default_rng(0).uniform(0, 255, (160, 48, 64)).astype(np.float32)
    return ImageVolume(voxels, np.eye(4), "CT", (127.5, 255.0))


def after_the_rest(service: Service) -> None:
    """Return when all slices of what was asked about are encoded."""
    service._rest.submit(lambda: None).result(30)


class Held:
    """Keeps the rest of the slices from being encoded until `go`."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.calls = threading.Event(), 0
        complete = service.reader.complete

        def held(grid: TokenGrid, on_step: object = lambda: None) -> TokenGrid:
            self.calls += 1
            assert self.go.wait(30)
            return complete(grid, on_step)

        monkeypatch.setattr(service.reader, "complete", held)


def test_the_answer_does_not_wait_for_the_other_slices(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(looking, monkeypatch)
    asked = looking.ask(long, parse_question("Is there a nodule?"), recheck=False)
    assert asked.grid.encoded is not None
    assert asked.grid.encoded.sum() == 20  # an eighth of 160
    area = asked.grid.shape[1] * asked.grid.shape[2]
    assert asked.grid.encoded[asked.episode.selection.keep // area].all()
    held.go.set()
    after_the_rest(looking)
    grid = looking._grid(asked.episode)
    whole = looking.reader.encode(long)
    torch.testing.assert_close(grid.features, whole.features, rtol=1e-2, atol=1e-2)  # stored in half precision


def test_a_first_answer_in_doubt_is_given_from_all_slices(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "doubt", lambda self, reading: "negative")
    told: list[str] = []
    question = parse_question("Is there a nodule?")
    asked = looking.ask(long, question, budget=0.01, on_progress=lambda progress: told.append(progress.stage))
    assert asked.grid.encoded is None
    assert asked.episode.recheck is not None
    assert "recheck" in told
    looking.store.features(long.sha256, looking.reader.id)  # kept at once


def test_a_count_is_given_from_all_slices(looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answering, "doubt", lambda self, reading: None)
    choices = ("one", "two", "three")
    told: list[str] = []
    question = parse_question("How many rings are there?", choices=choices)
    counted = looking.ask(long, question, on_progress=lambda progress: told.append(progress.stage))
    assert counted.grid.encoded is None
    assert ask_json(counted)["slices"] is None
    assert "recheck" not in told  # the question says so: nothing is read twice


def test_the_reply_and_the_record_say_from_how_many_slices(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "doubt", lambda self, reading: None)
    asked = looking.ask(long, parse_question("Which finding is it?", choices=("ring", "nodule")))
    assert ask_json(asked)["slices"] == {"encoded": 20, "total": 160}
    assert looking.episode(asked.episode.id).slices == 20


def test_only_encoded_tokens_of_the_region_are_read(looking: Service, long: ImageVolume) -> None:
    tube = ((20.0, 20.0, 0.0), (27.0, 27.0, 79.0))
    question = replace(parse_question("Is there a nodule?"), region=tube)
    asked = looking.ask(long, question, budget=1.0, recheck=False)
    keep, area = asked.episode.selection.keep, asked.grid.shape[1] * asked.grid.shape[2]
    assert asked.grid.encoded is not None
    assert asked.grid.encoded[keep // area].all()
    assert (box_to_tokens(asked.grid, tube)[keep] > 0).all()
    assert len(keep) < 0.1 * asked.grid.encoded.sum() * area


def test_who_comes_while_another_looks_first_has_all_slices(looking: Service, long: ImageVolume) -> None:
    """One finds nothing encoded; before it goes on, another has looked at the study for a question of its own."""
    studies, reader = EncodedStudies(None, 2**30), looking.reader
    found, calls, came = studies._hit, [], []

    def late(key: tuple[str, str]) -> Encoded | None:
        hit = found(key)
        calls.append(key)
        if len(calls) == 1:
            came.append(studies.get(long, reader, lambda stage: None, nullcontext, where=first_ten))
        return hit

    def first_ten(odds: object, grid: object) -> NDArray[np.bool_]:
        return np.arange(160) < 20

    studies._hit = late
    assert studies.get(long, reader, lambda stage: None, nullcontext).whole
    assert not came[0].whole


def test_nobody_goes_first_while_somebody_waits_for_the_study(looking: Service, long: ImageVolume) -> None:
    studies, reader = EncodedStudies(None, 2**30), looking.reader
    part = studies.get(long, reader, lambda stage: None, nullcontext, where=lambda odds, grid: np.arange(160) < 20)
    steps: list[int] = []
    studies._wanted[part.key] += 1  # one more who waits
    assert studies.complete(part, reader, nullcontext, lambda: steps.append(1)).whole
    assert not steps
    studies._wanted[part.key] -= 1
    again = EncodedStudies(None, 2**30)
    part = again.get(long, reader, lambda stage: None, nullcontext, where=lambda odds, grid: np.arange(160) < 20)
    again.complete(part, reader, nullcontext, lambda: steps.append(1))
    assert steps
    assert not again._wanted


def test_where_nothing_is_ever_read_again_doubt_does_not_wait_either(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "doubt", lambda self, reading: "negative")
    assert looking.ask(long, parse_question("Is there a nodule?"), recheck=False).grid.encoded is not None


def test_tokens_that_could_not_be_kept_are_kept_with_the_next_question(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise BusyError("a full disk", expected="room", todo="make room")

    with monkeypatch.context() as broken:
        broken.setattr(looking.store, "put_features", full)
        asked = looking.ask(long, parse_question("Is there a nodule?"), recheck=False)
        after_the_rest(looking)
    assert "busy" in caplog.text
    with pytest.raises(NotFoundError):
        looking._grid(asked.episode)
    looking.ask(long, parse_question("Is there a ring?"), recheck=False)
    assert looking._grid(asked.episode).n == asked.grid.n


def test_a_second_question_has_all_slices_and_pays_once(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(looking, monkeypatch)
    held.go.set()
    looking.ask(long, parse_question("Is there a nodule?"), recheck=False)
    asked = looking.ask(long, parse_question("Is there a ring?"), recheck=False)
    assert asked.grid.encoded is None
    looking.close()
    assert held.calls == 1


def test_a_mark_on_a_first_answer_is_rewarded_at_once_and_learned_from(
    looking: Service, long: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(looking, monkeypatch)
    asked = looking.ask(long, parse_question("Is there a nodule?"), recheck=False)
    mark = Mark("relevant", box_mm=((0.0, 0.0, 0.0), (20.0, 20.0, 10.0)))
    when = datetime.now(UTC)
    reward = looking.correct(Feedback("k", asked.episode.id, "r1", "amend", when, answer="no", marks=(mark,)))
    assert reward.parts["grounding"] is not None
    assert looking.reopen(asked.episode.id).labelmap().any()
    threading.Timer(0.2, held.go.set).start()
    learned = looking.learn()  # waits for the other slices, and only for them
    assert learned.corrections + learned.held_out == 1, learned.reasons
    assert held.calls == 1


def test_all_slices_where_that_is_set(tmp_path: Path, looking_folder: Path, long: ImageVolume) -> None:
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(looking_folder), "first_slices": 0}))
    assert service.ask(long, parse_question("Is there a nodule?"), recheck=False).grid.encoded is None
    service.close()
