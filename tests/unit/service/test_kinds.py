"""What a reviewer can say beside answer and verdict, and what becomes of it until a policy learns from it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pictures import QUESTION, feedback, lessons, make_picture
from sparsight.errors import ConflictError, FeedbackError, GeometryError
from sparsight.service import Service, corrections
from sparsight.types import ImageVolume, Mark


def test_a_click_and_a_stroke_mark_the_tokens_they_lie_in(service: Service, picture: ImageVolume) -> None:
    asked = service.ask(picture, QUESTION)
    heaviest = asked.episode.evidence.regions[0].box_mm
    centre = tuple(np.mean(heaviest, axis=0))
    click = Mark("relevant", path_mm=(centre,))  # type: ignore[arg-type]
    assert service.correct(feedback(asked.episode, "click", marks=(click,))).parts["grounding"] in (0, 1)
    kept = corrections.marks_on(asked.grid, (click,))
    assert kept is not None
    assert kept.relevant is not None
    assert kept.relevant.sum() == 1
    stroke = Mark("missed", path_mm=((1.0, 1.0, 0.0), (40.0, 1.0, 0.0)), radius_mm=0)
    line = corrections.marks_on(asked.grid, (stroke,))
    assert line is not None
    assert line.missed is not None
    touched = line.missed.reshape(asked.grid.shape)[0]
    assert touched[0].sum() == touched.sum() >= 15  # one row of tokens, without gaps
    assert np.all(np.diff(np.flatnonzero(touched[0])) == 1)
    broad = corrections.marks_on(asked.grid, (replace(stroke, radius_mm=5.0),))
    assert broad is not None
    assert broad.missed is not None
    assert set(np.flatnonzero(line.missed)) < set(np.flatnonzero(broad.missed))


@pytest.mark.parametrize(
    ("mark", "error"),
    [
        (Mark("missed", path_mm=()), FeedbackError),
        (Mark("missed", path_mm=((math.nan, 0.0, 0.0),)), FeedbackError),
        (Mark("missed", path_mm=((1.0, 1.0, 0.0),), radius_mm=-1), FeedbackError),
        (Mark("missed", path_mm=((1.0, 1.0, 0.0),), box_mm=((0.0, 0.0, 0.0), (9.0, 9.0, 1.0))), FeedbackError),
        (Mark("missed", path_mm=((900.0, 900.0, 0.0),)), GeometryError),
        (Mark("missed", path_mm=((1.0, 1.0, 0.0), (1e30, 1.0, 0.0))), GeometryError),
    ],
)
def test_a_path_that_is_none_is_refused(
    service: Service, picture: ImageVolume, mark: Mark, error: type[Exception]
) -> None:
    episode = service.ask(picture, QUESTION).episode
    with pytest.raises(error):
        service.correct(feedback(episode, marks=(mark,)))
    assert service.status()["corrections"] == 0


def test_what_the_image_cannot_tell_is_rewarded_for_abstaining_and_taught_to_nobody(
    service: Service, picture: ImageVolume
) -> None:
    episode = service.ask(picture, QUESTION).episode
    reward = service.correct(feedback(episode, verdict="amend", cannot_tell=True, difficulty="hard"))
    first = episode.recheck.first if episode.recheck else episode.answer
    assert reward.parts["abstention"] == (1 if first.abstained else -1)
    assert reward.parts["answer"] is None
    stored = service.store.feedback("k")
    assert (stored.cannot_tell, stored.difficulty, stored.blinded) == (True, "hard", False)
    assert service.learn().candidate is None
    with pytest.raises(FeedbackError, match="cannot be told"):
        service.correct(feedback(episode, "k2", answer="yes", cannot_tell=True))


def test_a_blinded_reading_is_an_answer_alone_and_kept_out_of_learning(service: Service, picture: ImageVolume) -> None:
    episode = service.ask(picture, QUESTION).episode
    box = Mark("relevant", box_mm=((5.0, 5.0, -1.0), (30.0, 30.0, 1.0)))
    for verdict, more in (("accept", {}), ("reject", {}), ("amend", {"answer": "no", "marks": (box,)})):
        with pytest.raises(FeedbackError, match="not seen"):
            service.correct(feedback(episode, verdict=verdict, blinded=True, **more))  # type: ignore[arg-type]
    service.correct(feedback(episode, answer="no", blinded=True))
    assert service.learn().reasons == ("no new correction with an answer, a rejection or a mark for this reader",)


def test_the_same_key_with_anything_else_said_is_refused(service: Service, picture: ImageVolume) -> None:
    episode = service.ask(picture, QUESTION).episode
    service.correct(feedback(episode, answer="no"))
    for more in ({"difficulty": "easy"}, {"comment": "x"}, {"reviewer": "reader-2"}):
        with pytest.raises(ConflictError):
            service.correct(replace(feedback(episode, answer="no"), **more))


def test_several_readers_correct_one_answer(service: Service, picture: ImageVolume) -> None:
    episode = service.ask(picture, QUESTION).episode
    for n, said in enumerate(("yes", "no", "no")):
        service.correct(replace(feedback(episode, f"k{n}", answer=said), reviewer=f"reader-{n}"))
    found = service.store.feedback_of(episode.id)
    assert [(one.reviewer, one.answer) for one in found] == [
        ("reader-0", "yes"),
        ("reader-1", "no"),
        ("reader-2", "no"),
    ]
    assert service.store.feedback_of("e0") == []


def test_what_was_withdrawn_is_no_longer_learned_from_and_it_is_told_who_did(service: Service) -> None:
    lessons(service, 7)
    service.revise("k0", "withdraw", by="reader-1")
    learned = service.learn()
    assert learned.corrections + learned.held_out == 6
    assert learned.candidate is not None
    service.registry.approve(learned.candidate.id, reasons=["better"])
    service.promote(learned.candidate.id)
    assert service.learned_by("k0") == ()
    assert service.learned_by("k1") == (learned.candidate.id,)
    service.revise("k1", "withdraw", by="reader-1")
    assert "k1" not in {one.key for one in service.store.learned(service.registry.lineage())}
    assert service.learned_by("k1") == (learned.candidate.id,)
    service.rollback()
    assert service.learned_by("k1") == ()


def test_the_same_corrections_less_one_that_was_withdrawn_are_learned_anew(service: Service) -> None:
    lessons(service, 7)
    first = service.learn()
    if first.promoted:
        service.rollback()
    service.revise("k0", "withdraw", by="reader-1")
    again = service.learn()
    assert again.candidate is not None
    assert again.corrections + again.held_out == 6


def test_the_same_training_judged_by_more_corrections_is_a_candidate_of_its_own(service: Service) -> None:
    """The second study is kept out of training, so a correction there leaves the weights as they were."""
    lessons(service, 1)
    first = service.learn()
    episode = service.ask(make_picture(1), QUESTION).episode
    service.correct(feedback(episode, "kept-out", answer="yes"))
    second = service.learn()
    assert first.candidate is not None
    assert second.candidate is not None
    assert first.candidate.sha256 == second.candidate.sha256
    assert (first.held_out, second.held_out) == (0, 1)
    assert "kept-out" in service.store.learned_keys([second.candidate.id])
    assert service.learn().candidate is None  # the same once more
