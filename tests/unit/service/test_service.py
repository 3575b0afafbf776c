"""Ask, correct, learn, promote: what each does, refuses, and leaves behind."""

import json
import math
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save

from sparsight.config import Config, ServeConfig
from sparsight.errors import (
    BudgetError,
    ConflictError,
    FeedbackError,
    GeometryError,
    NotFoundError,
    QuestionError,
    WeightsError,
)
from sparsight.imaging.grid import box_to_tokens
from sparsight.model import base_policy, load_base_policy, load_reader
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import save_policy
from sparsight.reply import ask_json, learn_json, policy_json
from sparsight.service import Progress, Service, corrections, parse_question
from sparsight.types import Episode, Feedback, ImageVolume, Mark, Question, Reward, Verdict

QUESTION = parse_question("Is there a nodule?")


def make_picture(seed: int) -> ImageVolume:
    voxels = np.random.default_rng(seed).uniform(0, 200, (1, 96, 120)).astype(np.float32)
    return ImageVolume(voxels, np.diag([0.5, 0.5, 1, 1]), "DX", (127.5, 255.0))


def feedback(episode: Episode, key: str = "k", verdict: Verdict = "amend", **more: Any) -> Feedback:
    return Feedback(key, episode.id, "reader-1", verdict, datetime.now(UTC), **more)


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


class TestCorrect:
    def test_accept_amend_reject(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION).episode
        other = "no" if episode.answer.text == "yes" else "yes"
        totals = [
            service.correct(feedback(episode, key, verdict, answer=answer)).total
            for key, verdict, answer in (("a", "accept", None), ("b", "amend", other), ("c", "reject", None))
        ]
        assert totals == [1, -1, -1]

    def test_marks_on_what_was_kept_are_good_and_elsewhere_bad(self, service: Service, picture: ImageVolume) -> None:
        asked = service.ask(picture, QUESTION)
        kept = asked.labelmap().astype(bool)
        on = Mark("relevant", mask=kept, mask_ijk_to_lps=picture.ijk_to_lps)
        off = Mark("missed", mask=~kept, mask_ijk_to_lps=picture.ijk_to_lps)
        unwanted = Mark("irrelevant", mask=kept, mask_ijk_to_lps=picture.ijk_to_lps)
        rewards = [
            service.correct(feedback(asked.episode, key, marks=(mark,))).parts["grounding"]
            for key, mark in (("on", on), ("off", off), ("unwanted", unwanted))
        ]
        assert rewards == [pytest.approx(1), pytest.approx(0, abs=0.02), pytest.approx(-1)]  # some tokens hold both

    def test_a_mask_on_another_grid_is_resampled(self, service: Service, picture: ImageVolume) -> None:
        asked = service.ask(picture, QUESTION)
        kept = asked.labelmap().astype(bool)
        finer = np.repeat(np.repeat(kept, 2, axis=1), 2, axis=2)
        affine = picture.ijk_to_lps @ np.diag([0.5, 0.5, 1, 1])
        affine[:2, 3] -= 0.125
        reward = service.correct(feedback(asked.episode, marks=(Mark("relevant", mask=finer, mask_ijk_to_lps=affine),)))
        assert reward.parts["grounding"] == pytest.approx(1, abs=0.02)

    def test_a_mark_elsewhere_is_refused_and_not_recorded(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION).episode
        far = ((500.0, 500.0, 500.0), (510.0, 510.0, 510.0))
        affine = picture.ijk_to_lps.copy()
        affine[:3, 3] = 900
        for mark in (Mark("missed", box_mm=far), Mark("missed", mask=np.ones((1, 5, 5), bool), mask_ijk_to_lps=affine)):
            with pytest.raises(GeometryError):
                service.correct(feedback(episode, marks=(mark,)))
        assert service.status()["corrections"] == 0

    @pytest.mark.parametrize("verdict", ["accept", "reject"])
    def test_a_verdict_that_contradicts_its_answer_is_refused(
        self, service: Service, picture: ImageVolume, verdict: Verdict
    ) -> None:
        episode = service.ask(picture, QUESTION).episode
        said = episode.answer.text
        answer = said if verdict == "reject" else ("no" if said == "yes" else "yes")
        with pytest.raises(FeedbackError, match=verdict):
            service.correct(feedback(episode, verdict=verdict, answer=answer))

    def test_an_answer_longer_than_the_reader_takes_never_enters_the_queue(
        self, service: Service, picture: ImageVolume
    ) -> None:
        episode = service.ask(picture, QUESTION).episode
        with pytest.raises(QuestionError):
            service.correct(feedback(episode, answer="mass and nodule " * 60))
        assert service.status()["corrections"] == 0

    @pytest.mark.parametrize("size", [(48, 60), (96, 110), (200, 120)])
    def test_a_picture_mask_of_another_size_is_refused(
        self, service: Service, picture: ImageVolume, size: tuple[int, int]
    ) -> None:
        episode = service.ask(picture, QUESTION).episode
        with pytest.raises(GeometryError):
            service.correct(feedback(episode, marks=(Mark("missed", mask=np.ones((1, *size), bool)),)))
        exact = Mark("missed", mask=np.ones((1, 96, 120), bool))
        assert service.correct(feedback(episode, marks=(exact,))).parts["grounding"] is not None

    @pytest.mark.parametrize("end", [float("nan"), float("inf"), -40.0])
    def test_a_box_that_is_none_is_refused_and_not_stored(
        self, service: Service, picture: ImageVolume, end: float
    ) -> None:
        episode = service.ask(picture, QUESTION).episode
        mark = Mark("relevant", box_mm=((0.0, 0.0, 0.0), (end, 20.0, 1.0)))
        with pytest.raises(FeedbackError, match="finite"):
            service.correct(feedback(episode, "k", marks=(mark,)))
        assert service.store.unlearned([service.live_selector().id]) == []

    def test_contradictory_marks_are_refused(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION).episode
        box = ((5.0, 5.0, -1.0), (30.0, 30.0, 1.0))
        with pytest.raises(FeedbackError, match=r"same region"):
            service.correct(feedback(episode, marks=(Mark("relevant", box_mm=box), Mark("irrelevant", box_mm=box))))

    @pytest.mark.parametrize("more", [{}, {"answer": " "}, {"answer": "x" * 10_000}, {"marks": (Mark("missed"),)}])
    def test_nothing_said(self, service: Service, picture: ImageVolume, more: dict[str, Any]) -> None:
        episode = service.ask(picture, QUESTION).episode
        with pytest.raises(FeedbackError):
            service.correct(feedback(episode, **more))

    def test_a_repeated_key_is_one_correction(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION).episode
        first = service.correct(feedback(episode, answer="no"))
        assert service.correct(feedback(episode, answer="no")) == first
        with pytest.raises(ConflictError):
            service.correct(feedback(episode, answer="yes"))
        assert service.status()["corrections"] == 1

    def test_a_repeated_key_tells_the_first_reward_whatever_the_rules_are_by_now(
        self, service: Service, picture: ImageVolume, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        episode = service.ask(picture, QUESTION).episode
        first = service.correct(feedback(episode, answer="no"))
        monkeypatch.setattr(corrections, "reward_of", lambda *_: Reward(0.5, {"answer": 0.5}, "a later version"))
        assert service.correct(feedback(episode, answer="no")) == first
        assert service.correct(feedback(episode, "another", answer="no")).version == "a later version"

    def test_an_unknown_episode(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION).episode
        with pytest.raises(NotFoundError):
            service.correct(replace(feedback(episode, answer="no"), episode="e0"))


class TestLearn:
    def lessons(self, service: Service, n: int) -> None:
        for seed in range(n):
            episode = service.ask(make_picture(seed), QUESTION).episode
            service.correct(feedback(episode, f"k{seed}", answer="yes" if seed % 2 else "no"))

    def test_nothing_to_learn(self, service: Service) -> None:
        learned = service.learn()
        assert learned.candidate is None
        assert not learned.promoted

    def test_bare_rejections_are_learned_from(self, service: Service) -> None:
        asked = [service.ask(make_picture(seed), QUESTION).episode for seed in range(7)]
        for episode in asked:
            service.correct(feedback(episode, episode.id, "reject"))
        told = [episode for episode in asked if not episode.answer.abstained]  # an abstention is not a wrong answer
        assert told
        learned = service.learn()
        assert learned.corrections + learned.held_out == len(told)

    def test_corrections_of_another_reader_are_told(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lessons(service, 2)
        monkeypatch.setattr(service.reader, "id", "nano-00000000")
        assert service.learn().reasons[-1] == "corrections that could not be used: 2 (of another reader)"

    def test_corrections_that_cannot_be_used_are_counted_and_the_rest_is_learned(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.lessons(service, 7)
        read, broken = service.store.episode, service.store.unlearned([service.live_selector().id])[0].episode

        def episode(id: str) -> Episode:  # noqa: A002 - the store's name
            if id == broken:
                raise WeightsError("a blob that was altered", expected="its hash", todo="restore it")
            return read(id)

        monkeypatch.setattr(service.store, "episode", episode)
        learned = service.learn()
        assert learned.corrections + learned.held_out == 6
        assert learned.reasons[-1] == "corrections that could not be used: 1 (bad_weights)"

    def test_a_memory_that_does_not_hold_the_language_streams_training_leaves_the_visual_one(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mute:
            def standing_as(self, arrays: object) -> AbstractContextManager[None]:
                return nullcontext()

            def to_arrays(self) -> dict[str, Any]:
                return {}

        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("no room")

        self.lessons(service, 7)
        learn = service.config.learn.model_copy(update={"tuning_steps": 1})
        service.config = service.config.model_copy(update={"learn": learn})
        monkeypatch.setattr(service.reader, "writer", lambda rank: Mute())
        monkeypatch.setattr("sparsight.service.lesson.tune_language", full)
        learned = service.learn()
        assert learned.candidate is not None
        assert learned.reasons[-1] == "language stream: the device's memory did not hold its training"

    def test_a_rejected_answer_that_cannot_be_scored_does_not_keep_the_others_from_being_learned(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.lessons(service, 6)
        episode = service.ask(make_picture(9), QUESTION).episode
        service.correct(feedback(episode, "long", "reject"))
        wrong = "no " * 200  # longer than this reader takes
        monkeypatch.setattr(
            "sparsight.service.learning.wrong_answer", lambda given, _: wrong if given.key == "long" else None
        )
        learned = service.learn()
        assert learned.corrections + learned.held_out == 6
        assert learned.reasons[-1] == "corrections that could not be used: 1 (bad_question)"

    def test_an_altered_mask_of_one_correction_does_not_keep_the_others_from_being_learned(
        self, service: Service
    ) -> None:
        self.lessons(service, 6)
        asked = service.ask(make_picture(9), QUESTION)
        mark = Mark("relevant", mask=asked.labelmap().astype(bool), mask_ijk_to_lps=asked.volume.ijk_to_lps)
        service.correct(feedback(asked.episode, "marked", marks=(mark,)))
        blob = json.loads(service.store._row("marked").body)["arrays"]
        path = service.config.home / "blobs" / blob[:2] / f"{blob}.safetensors"
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b"?")
        learned = service.learn()
        assert learned.corrections + learned.held_out == 6
        assert learned.reasons[-1] == "corrections that could not be used: 1 (bad_weights)"
        path.write_bytes(kept)
        assert "marked" in {f.key for f in service.store.unlearned(service.registry.lineage())}  # not lost

    def test_a_candidate_is_measured_recorded_and_not_learned_twice(self, service: Service) -> None:
        self.lessons(service, 7)
        learned = service.learn()
        assert learned.candidate is not None
        assert (learned.corrections, learned.held_out) == (5, 2)
        assert learned.candidate.state == ("live" if learned.promoted else "held")
        assert learned.reasons
        if not learned.promoted:
            again = service.learn()
            assert again.candidate is None
            assert "already" in again.reasons[0]
            with pytest.raises(ConflictError, match="held back"):
                service.promote(learned.candidate.id)
        assert service.store.verify() == []

    def test_promotion_and_rollback_are_exact_and_seen_by_other_processes(
        self, service: Service, config: Config, picture: ImageVolume
    ) -> None:
        before = service.ask(picture, QUESTION).episode
        other = Service(config)
        candidate = self.candidate(service)
        service.promote(candidate, sign_off="head of department")
        changed = other.ask(picture, QUESTION).episode
        assert changed.policy == candidate
        assert not np.array_equal(changed.selection.scores, before.selection.scores)
        service.rollback()
        after = other.ask(picture, QUESTION).episode
        assert after.policy_sha256 == before.policy_sha256
        assert np.array_equal(after.selection.scores, before.selection.scores)
        other.close()

    def candidate(self, service: Service, scale: float = 1.5, *, measured: bool = True) -> str:
        """A policy that passed, as one that waits for its signature."""
        live = service.registry.live()
        arrays = {name: value * scale for name, value in service.live_selector().policy.to_arrays().items()}
        added = service.registry.add(arrays, parent=live.id, reader=service.reader.id)
        if measured:
            service.registry.approve(added.id, reasons=["better"])
        return added.id

    def test_what_was_never_measured_or_measured_against_another_policy_stays_out(self, service: Service) -> None:
        with pytest.raises(ConflictError, match="never measured"):
            service.promote(self.candidate(service, 3.0, measured=False))
        first, second = self.candidate(service, 1.5), self.candidate(service, 2.0)
        service.promote(first)
        with pytest.raises(ConflictError, match="compared with another"):
            service.promote(second)

    def test_one_study_held_out_still_makes_json(self, service: Service) -> None:
        self.lessons(service, 4)
        learned = service.learn()
        assert learned.held_out == 1
        json.loads(json.dumps(learn_json(learned), allow_nan=False))
        json.loads(json.dumps([policy_json(p) for p in service.policies()], allow_nan=False))

    def test_each_reader_keeps_its_own_live_policy(
        self, service: Service, config: Config, reader_folder: Path, tmp_path: Path
    ) -> None:
        promoted = service.promote(self.candidate(service)).id
        other = tmp_path / "other"
        shutil.copytree(reader_folder, other)
        another = NanoReader.load(other)
        another.language.lm.model.norm.weight.data += 0.01
        another.save(other)
        save_policy(other, base_policy(reader_folder))
        second = Service(config.model_copy(update={"serve": config.serve.model_copy(update={"reader": str(other)})}))
        assert second.registry.live().parent is None
        second.close()
        again = Service(config)
        assert again.registry.live().id == promoted
        again.close()

    def test_a_signature_is_asked_for_where_configured(self, config: Config) -> None:
        strict = config.model_copy(update={"gate": config.gate.model_copy(update={"sign_off": True})})
        service = Service(strict)
        candidate = self.candidate(service)
        with pytest.raises(ConflictError, match="name"):
            service.promote(candidate)
        assert service.promote(candidate, sign_off="me").state == "live"
        service.close()

    def test_what_was_retired_keeps_its_signature_and_is_signed_again_where_configured(self, config: Config) -> None:
        strict = config.model_copy(update={"gate": config.gate.model_copy(update={"sign_off": True})})
        service = Service(strict)
        candidate = self.candidate(service)
        service.promote(candidate, sign_off="Dr. A")
        base = service.rollback().id
        for name in (None, "", "  "):
            with pytest.raises(ConflictError, match="name"):
                service.promote(candidate, sign_off=name)
        assert service.registry.live().id == base
        again = service.promote(candidate, sign_off="Dr. B")
        assert (again.state, again.sign_off) == ("live", "Dr. B")
        assert again.reasons == ("better", f"put back in place of policy {base}", "signed off before by Dr. A")
        service.close()
        service = Service(config)  # now without signatures
        service.rollback()
        kept = service.promote(candidate)
        assert (kept.sign_off, kept.reasons) == ("Dr. B", again.reasons)
        assert service.store.verify() == []
        service.close()

    def ship(self, config: Config, tmp_path: Path, scale: float = 2.0) -> Config:
        """The same reader with a new policy, as a newer release has it."""
        folder = tmp_path / "newer"
        shutil.copytree(config.serve.reader, folder, dirs_exist_ok=True)
        arrays = {name: value * scale for name, value in load_base_policy(folder).items()}
        save_policy(folder, save(arrays))
        return config.model_copy(update={"serve": config.serve.model_copy(update={"reader": str(folder)})})

    def test_a_newly_shipped_policy_answers_at_once_where_nothing_was_learned(
        self, service: Service, config: Config, picture: ImageVolume, tmp_path: Path
    ) -> None:
        before = service.ask(picture, QUESTION).episode
        newer = Service(self.ship(config, tmp_path))
        after = newer.ask(picture, QUESTION).episode
        assert after.reader == before.reader
        assert after.policy != before.policy
        assert service.ask(picture, QUESTION).episode.policy == after.policy  # the other process, too
        assert [p.state for p in newer.policies() if p.id == before.policy] == ["retired"]
        assert newer.promote(before.policy).state == "live"
        assert newer.store.verify() == []
        newer.close()
        again = Service(self.ship(config, tmp_path))
        assert again.registry.live().id == before.policy  # what a person decided stays
        again.close()

    def test_a_newly_shipped_policy_waits_for_a_signature_where_something_was_learned(
        self, service: Service, config: Config, tmp_path: Path
    ) -> None:
        learned = service.promote(self.candidate(service)).id
        entries = service.store.audit_head()[0]
        newer = Service(self.ship(config, tmp_path))
        assert newer.registry.live().id == learned
        assert newer.store.audit_head()[0] == entries + 1
        [waiting] = [p for p in newer.policies() if p.state == "candidate"]
        assert "stays live until a person signs" in policy_json(waiting)["reasons"][0]
        with pytest.raises(ConflictError, match="name"):
            newer.promote(waiting.id)
        promoted = newer.promote(waiting.id, sign_off="Dr. A")
        assert (promoted.state, promoted.sign_off) == ("live", "Dr. A")
        assert promoted.reasons == (f"shipped with the reader; chosen in place of policy {learned}",)
        assert newer.promote(learned).state == "live"  # and back
        assert newer.store.verify() == []
        newer.close()

    def test_where_every_promotion_is_signed_a_newly_shipped_policy_is_too(
        self, service: Service, config: Config, tmp_path: Path
    ) -> None:
        base = service.registry.live().id
        strict = config.model_copy(update={"gate": config.gate.model_copy(update={"sign_off": True})})
        newer = Service(self.ship(strict, tmp_path))
        assert newer.registry.live().id == base
        [waiting] = [p for p in newer.policies() if p.state == "candidate"]
        with pytest.raises(ConflictError, match="name"):
            newer.promote(waiting.id)
        assert newer.promote(waiting.id, sign_off="Dr. A").state == "live"
        newer.close()

    def test_a_shipped_policy_that_was_altered_is_not_installed(self, config: Config, tmp_path: Path) -> None:
        folder = tmp_path / "reader"
        shutil.copytree(config.serve.reader, folder)
        path = folder / "policy.safetensors"
        path.write_bytes(path.read_bytes()[:-8] + b"12345678")
        with pytest.raises(WeightsError, match=r"policy\.safetensors"):
            Service(config.model_copy(update={"serve": config.serve.model_copy(update={"reader": str(folder)})}))
        assert not list((config.home / "readers").rglob("weights.safetensors"))

    def test_altered_weights_never_answer(self, service: Service, picture: ImageVolume) -> None:
        live = service.registry.live()
        path = service.registry.weights_path(live.id)
        path.write_bytes(path.read_bytes()[:-8] + b"12345678")
        with pytest.raises(WeightsError):
            service.ask(picture, QUESTION)


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
