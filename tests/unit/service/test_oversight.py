"""Readers and drift as the store tells of them, and what learning makes of it."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pictures import QUESTION, make_picture
from sparsight.service import Service, oversight
from sparsight.service.learning import Trust
from sparsight.service.oversight import Oversight
from sparsight.types import Episode, Feedback, ImageVolume


def say(service: Service, episode: Episode, reader: str, answer: str, **more: object) -> None:
    key = f"{reader}-{episode.id}{'-blind' if more.get('blinded') else ''}"
    service.correct(Feedback(key, episode.id, reader, "amend", datetime.now(UTC), answer, **more))  # type: ignore[arg-type]


def test_readers_of_the_same_cases_are_compared_and_the_odd_one_teaches_nothing(service: Service) -> None:
    rng = np.random.default_rng(0)
    for n in range(24):
        episode = service.ask(make_picture(n, 32, 40), QUESTION, recheck=False).episode
        right = "yes" if rng.random() < 0.5 else "no"
        for reader in ("a", "b", "c"):
            say(service, episode, reader, right)
        say(service, episode, "odd", {"yes": "no", "no": "yes"}[right] if n % 2 else right)
    found = Oversight.of(oversight.opinions(service.store, service.store.all_feedback()))
    assert [one.reader for one in found.conspicuous if one.left_out] == ["odd"]
    assert len(found.contradictions) == 12
    assert {c.settled for c in found.contradictions} <= {"yes", "no"}
    assert Counter(one.n for one in found.agreement) == {24: 6}
    learned = service.learn()
    assert learned.corrections + learned.held_out == 72
    assert any(reason.startswith("reader odd differs") for reason in learned.reasons)
    assert "corrections that could not be used: 24 (of a reader who differs from the others)" in learned.reasons


def test_a_reader_of_many_corrections_is_capped_in_training(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [service.ask(make_picture(n, 32, 40), QUESTION, recheck=False).episode for n in range(80)]
    for n, episode in enumerate(asked):
        say(service, episode, "busy" if n % 4 else "other", "yes" if n % 3 else "no")
    seen: dict[str, list[float]] = {}
    real = Trust.of

    def of(found: object, share: float) -> Trust:
        trust = real(found, share)  # type: ignore[arg-type]
        seen["weights"] = [trust.weights["busy"], trust.weights["other"]]
        return trust

    monkeypatch.setattr(Trust, "of", of)
    examples: list[float] = []
    monkeypatch.setattr(
        "sparsight.service.lesson.train_policy",
        lambda candidate, reader, given, **_: examples.extend(e.weight for e in given if not e.is_replay),
    )
    service.learn()
    busy, other = seen["weights"]
    assert (busy * 60, other) == (pytest.approx(20), 1)
    assert set(examples) == {busy, other}


def test_blinded_readings_are_compared_with_sighted_ones(service: Service) -> None:
    for n in range(8):
        episode = service.ask(make_picture(n, 32, 40), QUESTION, recheck=False).episode
        said = episode.answer.text
        say(service, episode, "a", "no" if said == "yes" else "yes", blinded=True)
        if not episode.answer.abstained:
            say(service, episode, "a", said)
    found = Oversight.of(oversight.opinions(service.store, service.store.all_feedback()))
    if found.bias is not None:
        assert (found.bias.blinded, found.bias.sighted) == (1, 0)
        assert found.bias.blinded_n == 8
    assert found.contradictions == ()


def test_drift_of_the_four_measurements_is_found_and_only_where_it_is(
    service: Service, picture: ImageVolume, tmp_path: Path
) -> None:
    template = service.ask(picture, QUESTION).episode
    rng = np.random.default_rng(0)
    for n in range(90):
        late = n >= 60
        answer = replace(template.answer, confidence=float(rng.normal(0.6 if late else 0.9, 0.03)))
        evidence = replace(template.evidence, kept=48, necessity=float(rng.normal(1, 0.1)))
        episode = replace(template, id=f"e{n}", answer=answer, evidence=evidence)
        service.store.save_episode(episode)
        verdict = "reject" if late and n % 3 else "accept"
        service.correct(Feedback(f"k{n}", f"e{n}", "r", verdict, datetime.now(UTC)))  # type: ignore[arg-type]
    found = {one.name: one for one in oversight.drift(service.store, recent=30, before=60)}
    assert {name for name, one in found.items() if one.alarm} == {"confidence", "rejection rate"}
    assert found["rejection rate"].n_now == 30
    service.store.change_feedback("k89", "withdraw", by="r", created=datetime.now(UTC))
    assert {one.name: one.n_now for one in oversight.drift(service.store, recent=30, before=60)}["rejection rate"] == 29
