"""A negative or ungrounded answer is read again from more tokens, and everything that is said of it stays true."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from at_once import at_once
from sparsight.config import Config
from sparsight.errors import MemoryFullError
from sparsight.model.protocols import ScoreRequest
from sparsight.reply import ask_json, correction_notes
from sparsight.server.schemas import AskReply
from sparsight.service import Asked, Progress, Service, parse_question
from sparsight.service.answering import NOT_AGAIN, UNTESTED
from sparsight.types import Answer, Feedback, ImageVolume, Mark, Question, Selection, TokenGrid, Verdict

QUESTION = parse_question("Is there a nodule?")
N, K = 480, 48  # tokens of the picture, and those kept at 10 %


class Script:
    """In the place of a reader's language stream: says `answers[K]` of K tokens, else `otherwise`.

    nats: what every answer loses without its evidence. read_, scored: the calls, in order.
    """

    def __init__(self, otherwise: str, answers: dict[int, str] | None = None, nats: float = 2.0) -> None:
        self.otherwise, self.answers, self.nats = otherwise, answers or {}, nats
        self.read_: list[Selection] = []
        self.scored: list[ScoreRequest] = []

    def read(self, question: Question, grid: TokenGrid, selection: Selection, *, on_token: Any = None) -> Answer:
        self.read_.append(selection)
        k = len(selection.keep)
        text = self.answers.get(k, self.otherwise)
        on_token(text)
        return Answer(text, f"from {k}", 0.5 + 0.4 * k / grid.n, timings_ms={"decode": 1.0, "prefill": 2.0})

    def score(self, requests: list[ScoreRequest]) -> list[torch.Tensor]:
        self.scored += requests
        return [torch.tensor([-i * self.nats]) for i in range(len(requests))]


@pytest.fixture
def told(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the reader follow a script."""

    def follow(*args: Any, **more: Any) -> Script:
        script = Script(*args, **more)
        monkeypatch.setattr(service.reader, "reading", at_once(script.read))
        monkeypatch.setattr(service.reader, "score", script.score)
        return script

    return follow


def best(asked: Asked, start: int, stop: int) -> set[int]:
    """Tokens by the policy's rank."""
    return set(np.argsort(-asked.episode.selection.scores, kind="stable")[start:stop].tolist())


def test_a_no_that_all_tokens_turn_is_shown_as_a_yes_with_its_own_evidence(
    service: Service, picture: ImageVolume, told: Any
) -> None:
    script = told("no", {N: "yes"})
    asked = service.ask(picture, QUESTION)
    reply = ask_json(asked)
    assert (reply["answer"], reply["reasoning"], reply["confidence"]) == ("yes", f"from {N}", 0.9)
    assert reply["budget"] == {"kept": N, "total": N, "fraction": 1.0}
    assert reply["recheck"] == {
        "reason": "negative",
        "changed": True,
        "first_answer": "no",
        "first_confidence": 0.54,
        "first_budget": {"kept": K, "total": N, "fraction": 0.1},
        "budget": reply["budget"],
        "note": "No was re-checked with all tokens: now yes",
    }
    assert reply["grounded"] is True
    assert set(script.read_[0].keep) <= set(script.read_[1].keep)
    assert len(script.read_) == 2
    selection = asked.episode.selection
    assert selection.attention is not None
    assert (selection.attention > 0).all()  # of the second reading, which saw every token
    share = np.exp((selection.scores - selection.scores.max()).astype(float) / 2) * selection.attention
    order, ranked = np.argsort(-share), np.sort(share / share.sum())[::-1]
    shown = len(asked.shown.keep)
    assert set(asked.shown.keep) == set(order[:shown])
    assert ranked[: shown - 1].sum() < 0.9 <= ranked[:shown].sum() + 1e-6
    with_it, without = script.scored[-2:]
    assert with_it.answer == without.answer == "yes"
    assert len(with_it.keeps[0]) == N
    assert set(without.keeps[0].tolist()) == set(range(N)) - set(asked.shown.keep)


def test_the_policys_own_choice_stays_the_record(service: Service, picture: ImageVolume, told: Any) -> None:
    told("no", {N: "yes"})
    again, plain = service.ask(picture, QUESTION).episode, service.ask(picture, QUESTION, recheck=False).episode
    assert np.array_equal(again.selection.keep, plain.selection.keep)
    assert again.selection.log_prob == plain.selection.log_prob != 0
    assert again.selection.policy == plain.selection.policy
    assert plain.recheck is None
    assert plain.answer.text == "no"


def test_a_no_that_stays_keeps_the_evidence_of_the_first_look(
    service: Service, picture: ImageVolume, told: Any
) -> None:
    told("no")
    asked, plain = service.ask(picture, QUESTION), service.ask(picture, QUESTION, recheck=False)
    reply, first = ask_json(asked), ask_json(plain)
    assert reply["evidence"] == first["evidence"]
    assert reply["necessity_nats"] == first["necessity_nats"]
    assert np.array_equal(asked.labelmap(), plain.labelmap())
    assert (reply["confidence"], first["confidence"]) == (0.9, 0.54)
    assert (reply["budget"]["kept"], first["budget"]["kept"]) == (N, K)
    assert reply["recheck"]["note"] == "No was re-checked with all tokens: still no"
    assert reply["recheck"]["changed"] is False
    assert first["recheck"] is None


def test_an_answer_that_does_not_need_its_evidence_is_read_again(
    service: Service, picture: ImageVolume, told: Any
) -> None:
    told("yes", nats=0.1)
    reply = ask_json(service.ask(picture, QUESTION))
    assert (reply["recheck"]["reason"], reply["recheck"]["changed"], reply["grounded"]) == (
        "not grounded",
        False,
        False,
    )
    assert reply["recheck"]["note"] == (
        "Yes, which hardly depended on its evidence, was re-checked with all tokens: still yes"
    )
    told("yes", {N: "no"}, nats=0.1)
    reply = ask_json(service.ask(picture, QUESTION))
    assert (reply["answer"], reply["recheck"]["first_answer"], reply["recheck"]["changed"]) == ("no", "yes", True)


def test_a_grounded_yes_is_read_once(service: Service, picture: ImageVolume, told: Any) -> None:
    script = told("yes")
    reply = ask_json(service.ask(picture, QUESTION))
    assert reply["recheck"] is None
    assert reply["timings_ms"]["recheck"] == 0
    assert len(script.read_) == 1


@pytest.mark.parametrize(("setting", "budget"), [(0.0, 0.1), (None, 0.1), (0.1, 0.1), (0.05, 0.1), (1.0, 1.0)])
def test_where_nothing_wider_is_to_be_read_nothing_is(
    config: Config, picture: ImageVolume, setting: float | None, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = config.serve.model_copy(update={"recheck_budget": setting})
    service, script = Service(config.model_copy(update={"serve": serve})), Script("no")
    monkeypatch.setattr(service.reader, "reading", at_once(script.read))
    asked = service.ask(picture, QUESTION, budget=budget)
    assert asked.episode.recheck is None
    assert len(script.read_) == 1
    service.close()


def test_part_of_the_tokens_may_do(config: Config, picture: ImageVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = config.serve.model_copy(update={"recheck_budget": 0.15})
    service, script = Service(config.model_copy(update={"serve": serve})), Script("no", {72: "yes"})
    monkeypatch.setattr(service.reader, "reading", at_once(script.read))
    asked = service.ask(picture, QUESTION)
    assert ask_json(asked)["recheck"]["note"] == "No was re-checked with 72 of 480 tokens: now yes"
    assert set(asked.shown.keep) < best(asked, 0, 72)
    service.close()


def test_a_study_larger_than_a_prompt_is_read_as_far_as_one_holds(service: Service, told: Any) -> None:
    voxels = np.random.default_rng(5).uniform(0, 200, (12, 96, 96)).astype(np.float32)
    script = told("no", {service.reader.max_tokens: "yes"})
    asked = service.ask(ImageVolume(voxels, np.eye(4), "MR", (127.5, 255.0)), QUESTION, budget=0.01)
    most, total = service.reader.max_tokens, asked.grid.n
    assert total > most
    reply = ask_json(asked)
    assert reply["budget"]["kept"] == most
    assert reply["recheck"]["note"] == f"No was re-checked with {most} of {total} tokens: now yes"
    assert set(script.read_[1].keep) == best(asked, 0, most)
    assert [len(request.keeps[0]) for request in script.scored[-2:]] == [most, most]


def test_a_region_confines_the_second_reading_too(service: Service, picture: ImageVolume, told: Any) -> None:
    script = told("no")
    region = ((0.0, 0.0, -1.0), (20.0, 20.0, 1.0))
    service.ask(picture, replace(QUESTION, region=region), budget=0.02)
    inside = service.ask(picture, replace(QUESTION, region=region), budget=1).episode.selection.keep
    assert np.array_equal(script.read_[1].keep, inside)


def test_it_is_stored_and_reopened(service: Service, picture: ImageVolume, told: Any) -> None:
    told("no", {N: "yes"})
    asked = service.ask(picture, QUESTION)
    stored = service.episode(asked.episode.id)
    assert stored.recheck == asked.episode.recheck
    assert ask_json(replace(asked, episode=stored)) == ask_json(asked)
    assert np.array_equal(replace(asked, episode=stored).weights(), asked.weights())
    assert service.store.verify() == []


def test_the_time_it_took_is_told_apart(service: Service, picture: ImageVolume, told: Any) -> None:
    told("no")
    seen: list[Progress] = []
    timings = service.ask(picture, QUESTION, on_progress=seen.append).episode.timings_ms
    assert timings["recheck"] > 0
    assert (timings["decode"], timings["prefill"]) == (1, 2)  # of the first reading
    assert [p.stage for p in seen] == [
        "encode", "select", "read", "token", "recheck", "read", "token", "answer", "evidence",
    ]  # fmt: skip
    first, second = [p.look() for p in seen if p.stage == "read"]
    assert (first.kept, second.kept) == (K, N)
    assert seen[-1].look().grounded is not None


@pytest.mark.parametrize(
    ("verdict", "answer", "worth"),
    [("accept", None, -1), ("amend", "no", 1), ("amend", "yes", -1), ("reject", None, None)],
)
def test_a_correction_is_worth_what_the_policys_own_tokens_led_to(
    service: Service, picture: ImageVolume, told: Any, verdict: Verdict, answer: str | None, worth: float | None
) -> None:
    told("no", {N: "yes"})
    episode = service.ask(picture, QUESTION).episode
    reward = service.correct(Feedback("k", episode.id, "reviewer", verdict, datetime.now(UTC), answer))
    assert reward.parts["answer"] == worth
    notes = correction_notes(service, episode, reward)
    assert bool(notes) == (worth is not None)  # else an accepted answer would cost something for no reason
    assert all("the answer was 'no', before the re-check" in note for note in notes)


def test_a_corrected_recheck_is_learned_from(
    service: Service, picture: ImageVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(service.reader, "reading", at_once(Script("no", {N: "yes"}).read))
        asked = service.ask(picture, QUESTION)
    mark = Mark("missed", mask=asked.labelmap().astype(bool), mask_ijk_to_lps=picture.ijk_to_lps)
    service.correct(Feedback("k", asked.episode.id, "r", "amend", datetime.now(UTC), "yes", (mark,)))
    learned = service.learn()
    assert learned.candidate is not None
    assert learned.corrections == 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.sampled_from(
        [QUESTION, parse_question("How many nodules?"), parse_question("Which?", choices=("a", "0"))]
    ),
    first=st.sampled_from(["no", "yes", "0", "", "none", "a" * 300]),
    second=st.sampled_from(["no", "yes", "2", "", "No."]),
    budget=st.floats(0.001, 1),
    nats=st.floats(-5, 5),
    recheck=st.booleans(),
)
def test_whatever_is_said_the_reply_is_whole(
    service: Service,
    picture: ImageVolume,
    told: Any,
    question: Question,
    first: str,
    second: str,
    budget: float,
    nats: float,
    recheck: bool,
) -> None:
    told(first, {N: second}, nats=nats)
    reply = ask_json(service.ask(picture, question, budget=budget, recheck=recheck))
    AskReply.model_validate_json(json.dumps(reply, allow_nan=False))
    again = reply["recheck"]
    assert again is None or (
        recheck and again["first_budget"]["kept"] < again["budget"]["kept"] == reply["budget"]["kept"]
    )
    assert sum(region["weight"] for region in reply["evidence"]) == pytest.approx(1, abs=0.01)


def test_where_memory_is_full_the_best_half_is_read_and_the_answer_says_so(
    service: Service, picture: ImageVolume, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = told("yes")

    def full(question: Question, grid: TokenGrid, selection: Selection, **more: Any) -> Answer:
        if len(selection.keep) > K // 4:
            raise MemoryFullError("a question", expected="room", todo="keep fewer tokens")
        return script.read(question, grid, selection, **more)

    monkeypatch.setattr(service.reader, "reading", at_once(full))
    asked = service.ask(picture, QUESTION)
    reply = ask_json(asked)
    assert reply["budget"]["kept"] == K // 4
    assert set(asked.shown.keep.tolist()) == best(asked, 0, K // 4)
    assert reply["notes"] == [f"read from {K // 4} tokens instead of {K}: the device's memory held no more"]
    assert service.episode(asked.episode.id).answer.notes == tuple(reply["notes"])
    AskReply.model_validate(reply)
    monkeypatch.setattr(
        service.reader, "reading", lambda *_, **__: (_ for _ in ()).throw(MemoryFullError("x", expected="y", todo="z"))
    )
    with pytest.raises(MemoryFullError):
        service.ask(picture, QUESTION)


def _full(*_: Any, **__: Any) -> Any:
    raise MemoryFullError("a question", expected="room", todo="keep fewer tokens")


def test_where_memory_holds_the_answer_but_not_its_tests_it_is_given_without_them(
    service: Service, picture: ImageVolume, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told("yes")
    weighed = service.ask(picture, QUESTION).episode.selection
    monkeypatch.setattr(service.reader, "score", _full)
    monkeypatch.setattr(service.reader, "attention", _full)
    asked = service.ask(picture, QUESTION)
    reply = ask_json(asked)
    assert (reply["answer"], reply["necessity_nats"], reply["grounded"]) == ("yes", None, None)
    assert reply["notes"] == [UNTESTED]
    assert weighed.attention is not None
    assert asked.episode.selection.attention is None
    assert np.array_equal(asked.episode.selection.keep, weighed.keep)
    assert sum(region["weight"] for region in reply["evidence"]) == pytest.approx(1, abs=0.01)
    assert service.episode(asked.episode.id).answer.notes == (UNTESTED,)
    AskReply.model_validate_json(json.dumps(reply, allow_nan=False))
    told("no", {N: "yes"})  # of a changed answer, too, whose pass is the largest
    monkeypatch.setattr(service.reader, "score", _full)
    reply = ask_json(service.ask(picture, QUESTION))
    assert (reply["answer"], reply["recheck"]["changed"], reply["notes"]) == ("yes", True, [UNTESTED])
    AskReply.model_validate_json(json.dumps(reply, allow_nan=False))


def test_where_memory_holds_no_wider_reading_the_first_answer_stays(
    service: Service, picture: ImageVolume, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = told("no")

    def small(question: Question, grid: TokenGrid, selection: Selection, **more: Any) -> Answer:
        return script.read(question, grid, selection, **more) if len(selection.keep) <= K else _full()

    monkeypatch.setattr(service.reader, "reading", at_once(small))
    reply = ask_json(service.ask(picture, QUESTION))
    assert (reply["answer"], reply["budget"]["kept"], reply["recheck"]) == ("no", K, None)
    assert reply["notes"] == [NOT_AGAIN]
    assert [len(selection.keep) for selection in script.read_] == [K]  # nothing smaller is read in its place
