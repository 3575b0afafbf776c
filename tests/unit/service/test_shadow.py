"""A candidate on trial answers silently, or a share of the studies, and nobody notices but the report."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pictures import QUESTION, make_picture
from sparsight.config import Config
from sparsight.errors import NotFoundError
from sparsight.service import Service, shadow
from sparsight.types import Episode, Feedback


def on(config: Config, **trial: Any) -> Config:
    return config.model_copy(update={"gate": config.gate.model_copy(update={"sign_off": True, **trial})})


@pytest.fixture
def trial(config: Config) -> Iterator[Service]:
    service = Service(on(config, shadow=True))
    yield service
    service.close()


def candidate(service: Service, scale: float = -1.5, *, passed: bool = True) -> str:
    live = service.registry.live()
    arrays = {name: value * scale for name, value in service.live_selector().policy.to_arrays().items()}
    added = service.registry.add(arrays, parent=live.id, reader=service.reader.id)
    if passed:
        service.registry.approve(added.id, reasons=["better"])
    return added.id


def ask(service: Service, n: int) -> list[Episode]:
    asked = [service.ask(make_picture(seed, 32, 40), QUESTION, recheck=False).episode for seed in range(n)]
    service._rest.submit(lambda: None).result(60)  # what nobody waits for has been done
    return asked


def test_a_candidate_answers_silently_and_what_is_shown_is_the_live_policys(trial: Service, config: Config) -> None:
    live = trial.registry.live().id
    tried = candidate(trial)
    asked = ask(trial, 6)
    assert {episode.policy for episode in asked} == {live}
    assert trial.status()["episodes"] == 6
    said = trial.store.shadows(tried)
    assert [one.episode for one in said] == [episode.id for episode in asked]
    plain = Service(on(config.model_copy(update={"home": config.home.parent / "plain"})))
    for episode, same in zip(asked, ask(plain, 6), strict=True):
        assert episode.answer.text == same.answer.text
        assert episode.answer.confidence == pytest.approx(same.answer.confidence)
        assert np.array_equal(episode.selection.keep, same.selection.keep)
    plain.close()
    for episode, one in zip(asked, said, strict=True):
        alone = trial.again(episode, tried)
        assert (one.answer, one.kept) == (alone.answer.text, len(alone.selection.keep))
        assert one.confidence == pytest.approx(alone.answer.confidence, abs=1e-3)  # tokens are kept as float16
    assert trial.store.verify() == []


def test_the_differences_are_those_there_are(trial: Service) -> None:
    tried = candidate(trial)
    assert shadow.differences(trial.store, tried) is None
    asked = ask(trial, 8)
    for episode in asked[:5]:
        answer = "yes" if episode.answer.text != "yes" else "no"
        given = Feedback(f"k-{episode.id}", episode.id, "r", "amend", datetime.now(UTC), answer)
        trial.correct(given)
    found = shadow.differences(trial.store, tried)
    assert found is not None
    assert (found.n, found.judged, found.live_right) == (8, 5, 0)
    changed = [
        e.id
        for e, s in zip(asked, trial.store.shadows(tried), strict=True)
        if (e.answer.abstained, e.answer.text) != (s.abstained, s.answer) and not (e.answer.abstained and s.abstained)
    ]
    assert set(found.changed) == set(changed)
    assert found.same == pytest.approx(1 - len(changed) / 8)
    assert 0 <= found.overlap < 1


def test_only_what_passed_against_the_live_policy_is_on_trial(trial: Service) -> None:
    assert shadow.on_trial(trial.registry) is None
    candidate(trial, 3.0, passed=False)
    assert shadow.on_trial(trial.registry) is None
    first, second = candidate(trial, 1.5), candidate(trial, 2.0)
    waiting = shadow.on_trial(trial.registry)
    assert waiting is not None
    assert waiting.id == second
    trial.promote(first, sign_off="Dr. A")
    assert shadow.on_trial(trial.registry) is None  # the other was measured against a policy that is no longer live
    ask(trial, 2)
    assert trial.store.shadows(second) == []


def test_a_damaged_candidate_disturbs_nobody(trial: Service) -> None:
    tried = candidate(trial)
    path = trial.registry.weights_path(tried)
    path.write_bytes(path.read_bytes()[:-8] + b"12345678")
    assert len(ask(trial, 2)) == 2
    assert trial.store.shadows(tried) == []


def test_a_canary_answers_its_share_of_the_studies_and_always_the_same(config: Config) -> None:
    service = Service(on(config, canary=0.5))
    live, tried = service.registry.live().id, candidate(service)
    asked = ask(service, 20)
    by_policy = {episode.policy for episode in asked}
    assert by_policy == {live, tried}
    assert [e.policy for e in ask(service, 20)] == [e.policy for e in asked]
    for episode in asked:
        assert (episode.policy == tried) == shadow.is_canary(episode.volume_sha256, 0.5)
    service.registry.hold(tried, reasons=["worse"])
    assert {e.policy for e in ask(service, 20)} == {live}
    service.close()


@pytest.mark.parametrize("share", [0, 0.1, 0.5])
def test_the_share_of_canaries_is_as_set(share: float) -> None:
    rng = np.random.default_rng(0)
    chosen = [shadow.is_canary(rng.bytes(32).hex(), share) for _ in range(4000)]
    assert np.mean(chosen) == pytest.approx(share, abs=0.03)


def test_an_earlier_question_is_answered_again_without_a_record(trial: Service, tmp_path: Path) -> None:
    [episode] = ask(trial, 1)
    tried = candidate(trial)
    again = trial.again(episode, trial.registry.live().id)
    assert again.answer.text == episode.answer.text
    assert not np.array_equal(trial.again(episode, tried).selection.keep, again.selection.keep)
    assert trial.status()["episodes"] == 1
    with pytest.raises(NotFoundError):
        trial.again(episode, "p0009-00000000")
