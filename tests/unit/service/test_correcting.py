"""Corrections: the reward each earns, what is refused, and what a repeated one is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pictures import QUESTION, feedback, make_picture
from sparsight.errors import ConflictError, FeedbackError, GeometryError, NotFoundError, QuestionError
from sparsight.reply import corrected_json
from sparsight.service import Service, corrections, parse_question
from sparsight.types import ImageVolume, Mark, Reward, Verdict


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

    def test_a_mark_in_another_frame_of_reference_is_refused_though_it_lies_in_the_image(
        self, service: Service, picture: ImageVolume
    ) -> None:
        framed, frameless = (
            service.ask(volume, QUESTION).episode
            for volume in (replace(picture, frame_of_reference_uid="1.2.3"), make_picture(1))
        )
        mark = Mark("missed", box_mm=((5.0, 5.0, -1.0), (30.0, 30.0, 1.0)))
        with pytest.raises(GeometryError, match="another frame of reference"):
            service.correct(feedback(framed, marks=(replace(mark, frame_of_reference="1.2.4"),)))
        assert service.status()["corrections"] == 0
        for n, (episode, frame) in enumerate(((framed, "1.2.3"), (framed, ""), (frameless, "1.2.4"))):
            given = feedback(episode, f"k{n}", marks=(replace(mark, frame_of_reference=frame),))
            assert service.correct(given).parts["grounding"] is not None

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
        episode = service.ask(picture, parse_question("What is there?")).episode
        with pytest.raises(QuestionError):
            service.correct(feedback(episode, answer="mass and nodule " * 60))
        assert service.status()["corrections"] == 0

    @pytest.mark.parametrize("said", ["левая", "gauche", "both", "left or right"])
    def test_a_right_answer_is_one_of_the_choices_where_there_are_any(
        self, service: Service, picture: ImageVolume, said: str
    ) -> None:
        episode = service.ask(picture, parse_question("Which side?", choices=("left", "right"))).episode
        with pytest.raises(FeedbackError, match="none of the question's choices; expected left or right;"):
            service.correct(feedback(episode, answer=said))
        assert service.status()["corrections"] == 0
        free = service.ask(picture, parse_question("Which side?")).episode
        service.correct(feedback(free, answer=said))

    @pytest.mark.parametrize(
        ("choices", "said", "meant"),
        [
            (("left", "right"), " Left. ", "left"),
            (("HER2+", "HER2-"), "her2-", "HER2-"),
            (("no nodule", "two nodules"), "2 nodules", "two nodules"),
        ],
    )
    def test_a_choice_in_another_spelling_is_that_choice(
        self, service: Service, picture: ImageVolume, choices: tuple[str, ...], said: str, meant: str
    ) -> None:
        episode = service.ask(picture, parse_question("Which one?", choices=choices)).episode
        given = feedback(episode, answer=said)
        service.correct(given)
        assert corrections.right_answer(given, episode) == meant

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

    def test_a_forgotten_study(self, service: Service, picture: ImageVolume) -> None:
        episode = service.ask(picture, QUESTION).episode
        service.store.forget([episode.study])
        with pytest.raises(NotFoundError, match="forgotten with its study") as refused:
            service.correct(feedback(episode, answer="no"))
        assert refused.value.status == 404

    def test_another_readers_answer_is_corrected_and_it_is_told_that_this_one_does_not_learn_from_it(
        self, service: Service, picture: ImageVolume, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        episode = service.ask(picture, parse_question("What is there?")).episode
        monkeypatch.setattr(service.reader, "id", "nano-00000000")
        mark = Mark("missed", box_mm=((5.0, 5.0, -1.0), (30.0, 30.0, 1.0)))
        given = feedback(episode, answer="mass and nodule " * 60, marks=(mark,))  # longer than the served reader takes
        reward = service.correct(given)
        assert reward.parts["grounding"] is not None
        [note] = corrected_json(service, given, reward)["notes"]
        assert episode.reader in note
        assert "nothing is learned" in note
        assert service.learn().reasons[-1] == "corrections that could not be used: 1 (of another reader)"

    def test_what_a_retired_policy_answered_is_corrected_and_teaches(self, service: Service) -> None:
        asked = [service.ask(make_picture(seed), QUESTION).episode for seed in range(4)]
        arrays = {name: 1.5 * value for name, value in service.live_selector().policy.to_arrays().items()}
        added = service.registry.add(arrays, parent=asked[0].policy, reader=service.reader.id)
        service.registry.approve(added.id, reasons=["better"])
        service.promote(added.id)
        assert service.registry.get(asked[0].policy).state == "retired"
        for episode in asked:
            given = feedback(episode, episode.id, answer="no")
            assert corrected_json(service, given, service.correct(given))["notes"] == []
        learned = service.learn()
        assert learned.corrections + learned.held_out == 4
        assert learned.candidate is not None
        assert learned.candidate.parent == added.id
