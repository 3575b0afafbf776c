"""Learn, promote, roll back: what each does, refuses, and leaves behind."""

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from pictures import QUESTION, feedback, lessons, make_picture
from sparsight.config import Config
from sparsight.errors import ConfigError, ConflictError, WeightsError
from sparsight.model import base_policy, load_base_policy
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import save_policy
from sparsight.model.protocols import ScoreRequest
from sparsight.reply import learn_json, policy_json
from sparsight.report.cards import model_card
from sparsight.service import Progress, Service
from sparsight.service.learning import Learner, untried
from sparsight.types import Episode, ImageVolume, Mark


class TestLearn:
    def test_nothing_to_learn(self, service: Service) -> None:
        learned = service.learn()
        assert learned.candidate is None
        assert not learned.promoted

    def test_what_a_candidate_was_made_of_is_not_new(self, service: Service) -> None:
        def new() -> int:
            return untried(service.store, service.registry)

        assert new() == 0
        for seed in range(6):
            episode = service.ask(make_picture(seed), QUESTION).episode
            service.correct(feedback(episode, episode.id, "amend", answer="yes"))
        assert new() == 6
        assert service.learn().candidate is not None
        assert new() == 0  # promoted or held
        episode = service.ask(make_picture(6), QUESTION).episode
        service.correct(feedback(episode, episode.id, "amend", answer="yes"))
        assert new() == 1

    def test_a_learning_that_was_broken_off_goes_on(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        """And ends at the candidate that one in one piece makes; with one more correction it begins anew."""
        learn = config.learn.model_copy(update={"steps": 14})
        config = config.model_copy(update={"learn": learn})
        made, seen = [], list[int]()

        def score(requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
            """To an untrained reader all subsets are worth the same: nothing would be kept."""
            return [-one.keeps.float().mean(1) / one.grid.n for one in requests]

        def until(progress: Progress, last: int = 12) -> None:
            if progress.stage == "step":
                seen.append(progress.done)
                if progress.done == last:
                    raise KeyboardInterrupt

        for broken_off, more in ((False, 0), (True, 0), (True, 1)):
            own = config.model_copy(update={"home": config.home / f"{broken_off}-{more}"})
            with closing(Service(own)) as service:
                monkeypatch.setattr(service.reader, "score", score)
                lessons(service, 6)
                if broken_off:
                    with pytest.raises(KeyboardInterrupt):
                        service.learn(on_progress=until)
                    seen.clear()
                if more:
                    episode = service.ask(make_picture(6), QUESTION).episode
                    service.correct(feedback(episode, "k6", answer="yes"))
                made.append(service.learn(on_progress=lambda told: until(told, last=0)).candidate)
            assert seen[0] == (11 if broken_off and not more else 1)
            assert not list((own.home / "learning").rglob("*.safetensors"))
            seen.clear()
        assert made[0] is not None
        assert made[1] is not None
        assert made[0].sha256 == made[1].sha256

    def test_bare_rejections_are_learned_from(self, service: Service) -> None:
        asked = [service.ask(make_picture(seed), QUESTION).episode for seed in range(7)]
        for episode in asked:
            service.correct(feedback(episode, episode.id, "reject"))
        told = [episode for episode in asked if not episode.answer.abstained]  # an abstention is not a wrong answer
        assert told
        learned = service.learn()
        assert learned.corrections + learned.held_out == len(told)

    def test_corrections_of_another_reader_are_told(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        lessons(service, 2)
        monkeypatch.setattr(service.reader, "id", "nano-00000000")
        assert service.learn().reasons[-1] == "corrections that could not be used: 2 (of another reader)"

    def test_where_all_are_kept_out_of_training_what_else_there_is_to_say_is_said(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lessons(service, 3)
        read, broken = service.store.episode, service.store.unlearned([service.live_selector().id])[0].episode

        def episode(id: str) -> Episode:  # noqa: A002 - the store's name
            return replace(read(id), reader="nano-00000000") if id == broken else read(id)

        monkeypatch.setattr(service.store, "episode", episode)
        monkeypatch.setattr("sparsight.service.learning.split", lambda pending, *_, **__: ([], pending))
        learned = service.learn()
        assert learned.candidate is None
        assert learned.reasons == (
            "2 corrections, all kept out of training: more studies are needed",
            "corrections that could not be used: 1 (of another reader)",
        )

    def test_corrections_that_cannot_be_used_are_counted_and_the_rest_is_learned(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lessons(service, 7)
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

        lessons(service, 7)
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
        lessons(service, 6)
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
        lessons(service, 6)
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

    def test_a_candidate_is_measured_recorded_and_not_learned_twice(self, service: Service, config: Config) -> None:
        lessons(service, 7)
        learned = service.learn()
        assert learned.candidate is not None
        assert (learned.corrections, learned.held_out) == (4, 3)
        assert learned.candidate.state == ("live" if learned.promoted else "held")
        assert learned.reasons
        if not learned.promoted:
            again = service.learn()
            assert again.candidate is None
            assert "already" in again.reasons[0]
            with pytest.raises(ConflictError, match="held back"):
                service.promote(learned.candidate.id)
        assert service.store.verify(readers=config.home / "readers") == []

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
        lessons(service, 3)
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

    def test_learning_again_neither_retrains_nor_holds_what_waits_for_its_signature(self, config: Config) -> None:
        open_gate = {
            "sign_off": True,
            "margin": 1.0,
            "min_gain": -9.0,
            "min_feedback": 1,
            "exact": False,
            "sentinel": 20,
        }
        service = Service(config.model_copy(update={"gate": config.gate.model_copy(update=open_gate)}))
        lessons(service, 24)
        learned = service.learn()
        assert learned.candidate is not None
        assert learned.gate["look"] == 1
        waits = service.registry.get(learned.candidate.id)
        assert (waits.state, bool(waits.reasons)) == ("candidate", True), waits.reasons
        again = service.learn()
        assert again.candidate is None
        assert "learned already" in again.reasons[0]
        assert service.registry.get(waits.id) == waits
        service.close()

    def test_a_learning_that_was_killed_before_its_decision_is_still_at_its_first_look(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lessons(service, 7)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "_decide", killed)
            with pytest.raises(KeyboardInterrupt):
                service.learn()
        assert [v.state for v in service.policies() if v.parent] == ["candidate"]
        learned = service.learn()
        assert learned.gate["look"] == 1
        assert learned.candidate is not None
        assert learned.candidate.metrics["look"] == 1
        assert sum(v.parent is not None for v in service.policies()) == 1

    def test_another_sentinel_set_than_the_one_that_is_named_stops_before_training(
        self, service: Service, config: Config
    ) -> None:
        lessons(service, 7)
        learned = service.learn()
        assert learned.candidate is not None
        version = learned.candidate.sentinel
        assert re.fullmatch("[0-9a-f]{12}", version)
        assert service.registry.get(learned.candidate.id).sentinel == version
        assert version in model_card(service, learned.candidate)
        stages = []
        named = config.model_copy(update={"gate": config.gate.model_copy(update={"sentinel_version": "0" * 12})})
        service.close()
        other = Service(named)
        other.correct(feedback(other.ask(make_picture(9), QUESTION).episode, "one-more", answer="no"))
        with pytest.raises(ConfigError, match=f"the sentinel set changed: it is version {version}"):
            other.learn(on_progress=lambda progress: stages.append(progress.stage))
        assert "step" not in stages
        other.close()

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
        assert service.store.verify(readers=config.home / "readers") == []
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
