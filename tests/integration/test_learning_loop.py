"""Corrections of each kind, on the shipped reader and a policy that knows nothing, lead to a promotion and back.

The fresh policy scores every token alike, so there is something to learn that a few corrections can teach. The shipped
one knows simulated findings already, but not the platelets of real blood smears. The clinician is simulated and knows
the finding, as a radiologist would; studies kept out of training decide.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from sparsight.config import Config
from sparsight.datasets import load_folder
from sparsight.model import TokenPolicy, load_base_policy
from sparsight.model.nano.weights import SHIPPED, save_policy
from sparsight.model.positions import DIM
from sparsight.service import Service
from sparsight.sim import SceneConfig, Simulator
from sparsight.types import Case, Episode, Feedback, Mark

pytestmark = [pytest.mark.learning, pytest.mark.slow]

CORRECTIONS = 60
VERDICTS = 200  # a verdict says less than an answer or a mark, and nothing of an answer that was not sure
SHARE = 0.1  # else all tokens: a policy that has learned nothing does not choose


@pytest.fixture(scope="module")
def blank_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped reader beside a policy that has learned nothing."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    arrays = load_base_policy("nano")
    policy = TokenPolicy(arrays["look.weight"].shape[1] - DIM, arrays["film.weight"].shape[1])  # no prior: all alike
    save_policy(folder, save(policy.to_arrays()))
    return folder


@pytest.fixture
def service(tmp_path: Path, blank_reader: Path) -> Iterator[Service]:
    service = Service(Config.load(home=tmp_path, serve={"reader": str(blank_reader)}))
    yield service
    service.close()


def lessons(n: int) -> list[Case]:
    """Questions whose answer rests on a finding, one a scene, anatomy and scenes never trained on."""
    simulator = Simulator(SceneConfig(question_kinds=("what", "exists", "brightness")))
    found: list[Case] = []
    index = 0
    while len(found) < n:
        case = next((c for c in simulator.scene("test", index, 77).cases if c.finding is not None), None)
        found += [case] if case else []
        index += 1
    return found


def by_answer(case: Case, episode: Episode) -> Feedback:
    verdict = "accept" if episode.answer.text == case.answer else "amend"
    return Feedback(f"a-{episode.id}", episode.id, "r1", verdict, datetime.now(UTC), answer=case.answer)


def by_mask(case: Case, episode: Episode) -> Feedback:
    mark = Mark("missed", mask=case.finding, mask_ijk_to_lps=case.volume.ijk_to_lps)
    return Feedback(f"m-{episode.id}", episode.id, "r1", "amend", datetime.now(UTC), marks=(mark,))


def by_box(case: Case, episode: Episode) -> Feedback:
    assert case.finding is not None
    k, j, i = np.nonzero(case.finding)
    box = ((float(i.min()), float(j.min()), float(k.min())), (float(i.max()), float(j.max()), float(k.max())))
    answer = case.answer
    return Feedback(
        f"b-{episode.id}", episode.id, "r1", "amend", datetime.now(UTC), answer, (Mark("relevant", box_mm=box),)
    )


def by_verdict(case: Case, episode: Episode) -> Feedback:
    verdict = "accept" if episode.answer.text == case.answer else "reject"
    return Feedback(f"v-{episode.id}", episode.id, "r1", verdict, datetime.now(UTC))


def by_spill(case: Case, episode: Episode) -> Feedback:
    assert case.finding is not None
    mark = Mark("irrelevant", mask=~case.finding, mask_ijk_to_lps=case.volume.ijk_to_lps)
    return Feedback(f"s-{episode.id}", episode.id, "r1", "amend", datetime.now(UTC), marks=(mark,))


@pytest.mark.parametrize(
    "correct",
    [by_answer, by_mask, by_box, by_verdict, by_spill],
    ids=["answers", "masks", "boxes and answers", "verdicts alone", "what does not matter"],
)
def test_corrections_change_the_policy_and_rollback_restores_it(service: Service, correct: object) -> None:
    cases = lessons(VERDICTS if correct is by_verdict else CORRECTIONS)
    before = [service.ask(case.volume, case.question, budget=SHARE).episode for case in cases]
    for case, episode in zip(cases, before, strict=True):
        service.correct(correct(case, episode))  # type: ignore[operator]
    learned = service.learn()
    assert learned.promoted, learned.reasons
    # an answer that the reader was not sure of is none that a verdict could be about
    told = sum(correct is not by_verdict or not episode.answer.abstained for episode in before)
    assert learned.corrections + learned.held_out == told >= 20
    after = service.ask(cases[0].volume, cases[0].question, budget=SHARE).episode
    assert after.policy == learned.candidate.id  # type: ignore[union-attr]
    assert not np.array_equal(after.selection.keep, before[0].selection.keep)
    service.rollback()
    again = service.ask(cases[0].volume, cases[0].question, budget=SHARE).episode
    assert again.policy_sha256 == before[0].policy_sha256
    assert np.array_equal(again.selection.scores, before[0].selection.scores)
    assert again.answer.text == before[0].answer.text
    assert again.answer.confidence == pytest.approx(before[0].answer.confidence, abs=0)
    assert service.store.verify() == []


@pytest.mark.realdata
def test_marks_on_real_smears_promote_the_shipped_policy(tmp_path: Path, real_data: Path) -> None:
    rows = [c for c in load_folder(real_data / "bccd", "train") if c.label == "Platelets" and c.finding is not None]
    with closing(Service(Config.load(home=tmp_path))) as service:
        before = service.ask(rows[0].volume, rows[0].question).episode
        for case in rows:
            service.correct(by_mask(case, service.ask(case.volume, case.question).episode))
        learned = service.learn()
        assert learned.promoted, learned.reasons
        gain = next(check for check in learned.gate["checks"] if check["name"] == "held_out_gain")
        assert gain["n"] == learned.held_out >= 30
        assert learned.candidate is not None
        assert service.ask(rows[0].volume, rows[0].question).episode.policy == learned.candidate.id
        service.rollback()
        again = service.ask(rows[0].volume, rows[0].question).episode
        assert again.policy_sha256 == before.policy_sha256
        assert np.array_equal(again.selection.scores, before.selection.scores)
