"""Ask, and choose the next case: what each does, refuses, and leaves behind."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pictures import QUESTION, feedback, make_picture
from sparsight.config import Config, ServeConfig
from sparsight.errors import BudgetError, GeometryError, NotFoundError, QuestionError
from sparsight.imaging.grid import box_to_tokens
from sparsight.model import load_base_policy, load_reader
from sparsight.reply import ask_json
from sparsight.service import Progress, Service, parse_question
from sparsight.types import ImageVolume, Question


class TestParse:
    @pytest.mark.parametrize("text", ["Is there a nodule?", "  does it show a mass ", "Are the lungs clear?"])
    def test_yes_no(self, text: str) -> None:
        assert parse_question(text).kind == "yes_no"

    @pytest.mark.parametrize("text", ["Where is it?", "Is it left or right?", "¿Hay un nódulo?", "結節はありますか"])
    def test_free(self, text: str) -> None:
        assert parse_question(text).kind == "free"

    @pytest.mark.parametrize("text", ["", "  \n\t", "x" * 100_000])
    def test_refused(self, text: str) -> None:
        with pytest.raises(QuestionError):
            parse_question(text)

    @pytest.mark.parametrize("choices", [("one",), ("a", "a"), ("a", " "), ("a", "b" * 300)])
    def test_bad_choices(self, choices: tuple[str, ...]) -> None:
        with pytest.raises(QuestionError):
            parse_question("Which?", choices=choices)


class TestAsk:
    def test_answer_evidence_and_record_agree(self, service: Service, picture: ImageVolume) -> None:
        asked = service.ask(picture, QUESTION, budget=0.1)
        episode = service.episode(asked.episode.id)
        assert ask_json(asked) == ask_json(replace(asked, episode=episode))
        assert (episode.evidence.kept, episode.evidence.total) == (48, 480)
        assert episode.answer.text in ("yes", "no")
        assert sum(region.weight for region in episode.evidence.regions) == pytest.approx(1)
        kept_area = asked.labelmap().sum() / asked.labelmap().size
        assert kept_area == pytest.approx(0.1, abs=0.02)  # the lowest row of tokens is padding in part
        assert service.store.verify() == []

    def test_the_same_question_gets_the_same_answer_and_is_encoded_once(
        self, service: Service, picture: ImageVolume
    ) -> None:
        first, second = (service.ask(picture, QUESTION).episode for _ in range(2))
        assert first.id != second.id
        assert first.answer.text == second.answer.text
        assert first.answer.confidence == pytest.approx(second.answer.confidence)
        assert np.array_equal(first.selection.keep, second.selection.keep)
        assert first.timings_ms["encode"] > 0 == second.timings_ms["encode"]

    def test_a_study_that_changed_on_disk_is_read_again(self, service: Service, tmp_path: Path) -> None:
        path = tmp_path / "patient name.png"
        hashes = []
        for seed in (1, 2):
            Image.fromarray(make_picture(seed).voxels[0].astype(np.uint8)).save(path)
            episode = service.ask(str(path), QUESTION).episode
            hashes.append(episode.volume_sha256)
            assert "patient" not in episode.study
        assert hashes[0] != hashes[1]

    @pytest.mark.parametrize("budget", [0, -0.1, 2, math.nan, math.inf, "x", True])
    def test_bad_budget(self, service: Service, picture: ImageVolume, budget: Any) -> None:
        with pytest.raises(BudgetError):
            service.ask(picture, QUESTION, budget=budget)
        assert service.status()["episodes"] == 0

    def test_the_whole_image_is_always_possible(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION, budget=1).episode
        assert episode.evidence.kept == episode.evidence.total
        assert episode.evidence.necessity is not None

    def test_a_region_confines_the_evidence(self, service: Service, picture: ImageVolume) -> None:
        region = ((0.0, 0.0, -1.0), (20.0, 20.0, 1.0))
        episode = service.ask(picture, replace(QUESTION, region=region), budget=0.02).episode
        for found in episode.evidence.regions:
            assert found.box_mm[1][0] <= 22.5  # half a token beyond the region
            assert found.box_mm[1][1] <= 22.5

    def test_nothing_outside_a_small_region_is_kept(self, service: Service, picture: ImageVolume) -> None:
        region = ((1.0, 1.0, -1.0), (4.0, 4.0, 1.0))
        asked = service.ask(picture, replace(QUESTION, region=region), budget=0.5)
        inside = box_to_tokens(asked.grid, region) > 0
        assert set(asked.episode.selection.keep) == set(np.flatnonzero(inside))

    def test_a_region_outside_the_image_is_refused(self, service: Service, picture: ImageVolume) -> None:
        with pytest.raises(GeometryError):
            service.ask(picture, replace(QUESTION, region=((500.0, 0.0, 0.0), (510.0, 10.0, 1.0))))

    def test_a_study_that_changed_cannot_be_reopened(self, config: Config, tmp_path: Path) -> None:
        studies = tmp_path / "studies"
        studies.mkdir()
        path = studies / "one.png"
        Image.fromarray(make_picture(1).voxels[0].astype(np.uint8)).save(path)
        first = Service(config, studies)
        episode = first.ask("one", QUESTION).episode
        assert first.reopen(episode.id).volume.sha256 == episode.volume_sha256
        first.close()
        Image.fromarray(make_picture(2).voxels[0].astype(np.uint8)).save(path)
        again = Service(config, studies)
        with pytest.raises(NotFoundError, match="changed"):
            again.reopen(episode.id)
        again.close()

    @pytest.mark.parametrize("study", ["nowhere", "/nowhere/at/all", "../x", "\0"])
    def test_no_such_study(self, service: Service, study: str) -> None:
        with pytest.raises(NotFoundError):
            service.ask(study, QUESTION)

    def test_with_a_study_source_paths_are_not_read(self, config: Config, tmp_path: Path) -> None:
        inside, outside = tmp_path / "studies", tmp_path / "secret.png"
        inside.mkdir()
        Image.fromarray(make_picture(1).voxels[0].astype(np.uint8)).save(outside)
        shutil.copy(outside, inside / "one.png")
        service = Service(config, inside)
        assert service.ask("one", QUESTION).episode.study == "one"
        for study in (str(outside), "../secret", "../secret.png"):
            with pytest.raises(NotFoundError):
                service.ask(study, QUESTION)
        service.close()

    def test_progress_is_told_in_order(self, service: Service, picture: ImageVolume) -> None:
        told: list[Progress] = []
        service.ask(picture, QUESTION, on_progress=told.append)
        stages = list(dict.fromkeys(p.stage for p in told))
        assert stages[:2] == ["encode", "select"]
        assert stages[-2:] == ["answer", "evidence"]


def test_evidence_is_drawn_on_tokens_of_the_size_that_was_asked_about(
    service: Service, picture: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study is encoded smaller while memory is short, and whole when it is asked about again."""
    asked = service.ask(picture, QUESTION)
    other = replace(asked.grid, shape=asked.grid.shape[::-1])
    monkeypatch.setattr(service._encoded, "grid_of", lambda *_: other)
    assert service.reopen(asked.episode.id).grid.shape == asked.episode.grid_shape
    monkeypatch.setattr(service, "_grid", lambda _: other)
    with pytest.raises(NotFoundError, match="another size"):
        service.reopen(asked.episode.id)


def test_next_case_skips_what_was_corrected(config: Config, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for n in range(3):
        Image.fromarray(make_picture(n).voxels[0].astype(np.uint8)).save(studies / f"s{n}.png")
    (studies / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    service = Service(config, studies)
    queue = service.next_cases(9)
    assert {case.study for case in queue} == {"s0", "s1", "s2"}, "the broken one is passed over"
    assert [case.score for case in queue] == sorted((case.score for case in queue), reverse=True)
    assert service.next_cases(2) == queue[:2]
    first = service.next_case()
    assert first is not None
    assert first == queue[0]
    assert 0 <= first.score <= 1
    assert "disagreement" in first.reason
    episode = service.ask(first.study, parse_question(first.question)).episode
    service.correct(feedback(episode, verdict="accept"))
    adapted: list[object] = []
    service.reader.adapt = adapted.append  # type: ignore[method-assign]
    other = service.registry.add(
        {name: array + 1 for name, array in load_base_policy(config.serve.reader).items()},
        parent=service.registry.live().id,
        reader=service.reader.id,
    )
    service.registry.promote(other.id, sign_off="Dr. A")
    second = service.next_case()
    assert second is not None
    assert second.study != first.study
    assert len(adapted) == 1  # the new policy's adapter is on when it is scored
    assert service.next_case(exclude=frozenset({"s0", "s1", "s2", "broken"})) is None
    service.close()


def test_suggested_questions_use_words_the_shipped_reader_knows() -> None:
    reader = load_reader("nano")
    for text in ServeConfig().suggested_questions.values():
        assert reader.confidence(parse_question(text), 0.99) > reader.spec.calibration.unknown, text


def test_necessity_is_measured_against_the_best_of_the_rest(service: Service) -> None:
    voxels = np.random.default_rng(5).uniform(0, 200, (12, 96, 96)).astype(np.float32)
    series = ImageVolume(voxels, np.eye(4), "MR", (127.5, 255.0))
    asked = service.ask(series, QUESTION, budget=0.005, recheck=False)
    seen: list[Any] = []
    score = service.reader.score
    service.reader.score = lambda requests: (seen.extend(requests), score(requests))[1]  # type: ignore[method-assign]
    service.ask(series, QUESTION, budget=0.005, recheck=False)
    scores, kept = asked.episode.selection.scores, set(asked.episode.selection.keep)
    rest = [n for n in np.argsort(-scores, kind="stable") if n not in kept][: service.reader.max_tokens]
    assert set(seen[-1].keeps[0].tolist()) == set(rest)


def test_a_question_object_is_checked_like_a_typed_one(service: Service, picture: ImageVolume) -> None:
    with pytest.raises(QuestionError):
        service.ask(picture, Question(" "))
