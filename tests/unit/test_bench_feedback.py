"""The feedback benchmark: its clinicians, patients and verdicts are what it says, and its checks find what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsight.bench import feedback
from sparsight.bench.feedback import kills, rounds
from sparsight.bench.feedback.clinic import HOSTILE, Clinician, clinic
from sparsight.bench.feedback.exam import Exam
from sparsight.bench.feedback.rounds import Measured, worth
from sparsight.bench.feedback.shifts import SEEN, SHIFTS, UNSEEN, unaware_policy
from sparsight.bench.feedback.tuned import tuned
from sparsight.config import Config, GateConfig
from sparsight.model import PolicySelector, Reader, ScoreRequest, load_nano, load_policy
from sparsight.rl import gate
from sparsight.rl.gate import Paired
from sparsight.store import Store
from sparsight.types import Answer, Case, Episode, Feedback, ImageVolume, Question


def quiet(*_: Any) -> None:
    """Nobody listens."""


# --- clinicians ---


def case(n: int = 0, answer: str = "yes") -> Case:
    volume = ImageVolume(np.zeros((1, 16, 16), np.float32), np.eye(4), "OT", (127.5, 255.0))
    finding = np.zeros(volume.shape, bool)
    finding[0, 4:8, 4:8] = True
    return Case(f"c{n}", volume, Question("Where is it?", "choice", ("yes", "no", "maybe")), answer, finding=finding)


class Said:
    """As much of an episode as a clinician reads."""

    def __init__(self, text: str) -> None:
        self.id, self.answer = "e1", Answer(text, "", 0.9)


def judged(reader: Clinician, text: str, one: Case) -> Feedback:
    episode: Episode = Said(text)  # type: ignore[assignment]
    return reader.judge(one, episode, 0)


def test_a_clinician_who_is_right_accepts_what_is_right_and_amends_the_rest() -> None:
    reader = Clinician("anna", marked=1.0)
    right, amended = judged(reader, "yes", case()), judged(reader, "no", case())
    assert (right.verdict, right.answer) == ("accept", "yes")
    assert (amended.verdict, amended.answer) == ("amend", "yes")
    assert np.array_equal(amended.marks[0].mask, case().finding)


def test_one_who_is_always_wrong_names_another_choice_and_marks_nothing() -> None:
    reader = Clinician("eve", wrong=1.0, marked=1.0)
    said = [judged(reader, "yes", case(n)) for n in range(30)]
    assert {one.answer for one in said} == {"no", "maybe"}
    assert not any(one.marks for one in said)


def test_one_hostile_reader_of_four_is_never_right_and_the_others_are() -> None:
    wrong = {reader.name: [reader.holds(case(n), 0) != "yes" for n in range(20)] for reader in HOSTILE}
    assert len(wrong) == 4
    assert {name: any(of) for name, of in wrong.items()} == {"anna": False, "bela": False, "carl": False, "eve": True}
    assert all(wrong["eve"])


def test_thumbs_tell_no_answer() -> None:
    reader = Clinician("tom", thumbs=True, marked=1.0)
    for text, verdict in (("yes", "accept"), ("no", "reject")):
        one = judged(reader, text, case())
        assert (one.verdict, one.answer, one.marks) == (verdict, None, ())


def test_a_share_is_wrong_and_a_share_is_marked_and_both_are_the_same_each_time() -> None:
    reader = Clinician("dora", wrong=0.3, marked=0.2)
    cases = [case(n) for n in range(500)]
    held = [reader.holds(one, 7) for one in cases]
    assert held == [reader.holds(one, 7) for one in cases]
    assert held != [reader.holds(one, 8) for one in cases]
    assert 0.24 < np.mean([answer != "yes" for answer in held]) < 0.36
    assert 0.15 < np.mean([bool(reader.marks(one, 7)) for one in cases]) < 0.25


# --- what is new ---


@pytest.mark.parametrize("name", SHIFTS)
def test_no_patient_is_both_corrected_and_examined(name: str) -> None:
    shift = SHIFTS[name]
    lessons, exam, old = shift.lessons(12, 0), shift.exam(12, 0), shift.old_exam(12, 0)
    assert len(lessons) == len(exam) == len(old) == 12
    assert len({one.volume.sha256 for one in lessons}) == 12  # one question of each study
    assert not {one.group for one in lessons} & {one.group for one in (*exam, *old)}
    assert [one.id for one in lessons] == [one.id for one in shift.lessons(12, 0)]
    assert not {one.id for one in lessons} & {one.id for one in shift.lessons(12, 1)}


def test_what_is_new_is_about_the_unseen_finding_and_the_old_never_shows_it() -> None:
    shift = SHIFTS["finding"]
    asked = shift.exam(40, 0)
    assert all(UNSEEN in f"{one.question.text} {one.answer}".lower() for one in asked)
    assert {one.label for one in asked} == {"exists", "what", "where", "side"}
    assert {one.answer for one in asked if one.label == "exists"} == {"yes", "no"}
    for one in shift.old_exam(40, 0):
        assert UNSEEN not in (one.answer, *one.question.choices)
        assert UNSEEN not in one.question.text.lower()


def test_other_anatomy_is_a_trunk_and_another_machine_changes_the_image_alone() -> None:
    assert {one.group.split("-")[0] for one in SHIFTS["anatomy"].lessons(8, 0)} == {"synthetic_trunk"}
    site = SHIFTS["site"]
    taken, plain = site.lessons(4, 0), replace(site, taken=lambda volume, rng: volume).lessons(4, 0)
    assert [(a.question, a.answer) for a in taken] == [(b.question, b.answer) for b in plain]
    for a, b in zip(taken, plain, strict=True):
        assert a.volume.voxels.std() < 0.8 * b.volume.voxels.std()  # flat
        assert np.array_equal(a.finding, b.finding) if a.finding is not None else b.finding is None


def test_the_unaware_policy_has_no_place_for_the_unseen_finding() -> None:
    reader = load_nano("nano")
    policy = unaware_policy(reader, scenes=2, steps=1, seed=0, tell=quiet)
    at = reader.spec.findings.index(UNSEEN)
    assert policy.prior is not None
    assert len(policy.prior.bias) == len(reader.spec.findings) - 1
    assert len(SEEN) == 6
    shipped = reader.encoder.logits.weight[at].detach().numpy() / 3
    rows = policy.prior.weight.detach().numpy()[:, : len(shipped)]
    assert min(float(np.abs(row - shipped).max()) for row in rows) > 0.01


def test_tuning_teaches_a_copy_of_the_language_stream_and_leaves_the_reader_as_it_was() -> None:
    reader, policy = load_nano("nano"), load_policy("nano")
    cases = SHIFTS["site"].lessons(8, 0)
    config = Config.load(serve={"reader": "nano"}, learn={"tuning_lr": 1e-3, "held_out": 0.0})

    def log_p(of: Reader) -> float:
        """Of the right answers, from what the policy keeps."""
        asked = []
        for one in cases:
            grid = reader.encode(one.volume)
            keep = PolicySelector(policy, reader).select(grid, one.question, 58).keep
            asked.append(ScoreRequest(grid, one.question, one.answer, torch.from_numpy(keep)[None]))
        return float(torch.cat(of.score(asked)).mean())

    before = log_p(reader)
    taught = tuned(reader, policy, cases, config)
    assert log_p(reader) == before
    assert log_p(taught) > before + 0.1


def test_an_exam_reads_what_the_policy_keeps_with_the_answers_of_another_stream() -> None:
    reader, policy = load_nano("nano"), load_policy("nano")
    exam = Exam(SHIFTS["site"].exam(16, 0), reader, 0.1, quiet)
    first = exam.right(policy)
    assert set(first) <= {0.0, 1.0}
    assert np.array_equal(first, exam.right(policy, load_nano("nano")))
    dumb = load_nano("nano")
    torch.manual_seed(0)
    for parameter in dumb.language.lm.parameters():
        parameter.data = torch.randn_like(parameter)
    assert not np.array_equal(first, exam.right(policy, dumb))
    assert len(np.unique(exam.groups)) == len({one.group for one in exam.cases})


# --- the gate's rounds ---


def measured(name: str, quality: float, rng: np.random.Generator) -> Measured:
    """A policy that answers a share of everything right, and earns as much."""
    draws = (rng.random(n) < quality for n in (300, 400, 300))
    sentinel, old, new = (np.array(d, float) for d in draws)
    return Measured(name, sentinel, rng.normal(quality, 0.05, 200), old, new)


def decide_by(config: GateConfig) -> rounds.Decide:
    def decide(live: Measured, candidate: Measured, held: np.ndarray, look: int) -> gate.Decision:
        groups = np.arange(300) // 4
        return gate.decide(
            sentinel=Paired(live.sentinel, candidate.sentinel, groups, (("all",),) * 300),
            held_out=Paired(live.held_out[held], candidate.held_out[held], np.arange(len(held)), (("a",),) * len(held)),
            config=config,
            look=look,
        )

    return decide


def ladder() -> list[Measured]:
    """The same draws at each quality, so that a better policy is right wherever a worse one is."""
    return [measured(f"q{q}", q / 10, np.random.default_rng(0)) for q in (4, 5, 6, 8)]


def test_the_gate_tells_good_from_bad_and_a_gate_that_lets_all_through_is_found_out() -> None:
    for config, fooled in ((GateConfig(), False), (GateConfig(margin=1.0, min_gain=-1.0, exact=False), True)):
        found = rounds.run(ladder(), decide_by(config), bank=200, rounds=60, held_out=60, seed=0)
        assert found["rounds"] == 60 == found["bad"]["n"] + found["good"]["n"]
        assert min(found["bad"]["n"], found["good"]["n"]) > 10
        assert (found["bad"]["promoted"] > 0) == fooled
        assert found["good"]["share"] > 0.8
        for kind in ("bad", "good"):
            assert sum(part["n"] for part in found["by_size"] if part["worth"] == kind) == found[kind]["n"]
    looks = [(row["look"], row["promoted"]) for row in found["rows"]]
    assert all(second == 1 for (_, promoted), (second, _) in pairwise(looks) if promoted)


def test_rounds_are_even_over_how_much_better_or_worse_a_candidate_is() -> None:
    def exactly(right: int) -> Measured:
        """As many of 100 right, the same ones first."""
        answers = np.array([n < right for n in range(100)], float)
        return Measured(f"q{right}", answers, answers, answers, answers)

    def decide(live: Measured, candidate: Measured, held: np.ndarray, look: int) -> gate.Decision:
        return gate.Decision(bool(candidate.new.mean() > live.new.mean() + 0.07), (), look)

    policies = [exactly(right) for right in (50, 54, 62, 80)]
    found = rounds.run(policies, decide, bank=80, rounds=120, held_out=20, seed=0)
    parts = {(part["worth"], part["from"]): part for part in found["by_size"]}
    assert {part["n"] for part in parts.values()} == {20}
    assert [parts["good", low]["share"] for low in (0.03, 0.05, 0.1)] == [0.0, 1.0, 1.0]
    assert parts["bad", 0.03]["pairs"] == parts["bad", 0.03]["candidates"] == 1  # 54 to 50
    assert parts["bad", 0.03]["high"] == 0.975  # twenty times the same pair is one case
    assert {row["look"] for row in found["rows"]} > {1}
    assert found["good"]["low"] < found["good"]["share"] == 2 / 3 < found["good"]["high"]
    assert found == rounds.run(policies, decide, bank=80, rounds=120, held_out=20, seed=0)


def test_what_lies_between_two_policies_begins_at_one_and_ends_at_the_other() -> None:
    first = load_policy("nano")
    last = rounds.noisy(first, 1.0, 0)
    for share in (0.0, 0.25, 1.0):
        there = rounds.between(first, last, share).look.weight
        wanted = first.look.weight + share * (last.look.weight - first.look.weight)
        assert torch.allclose(there, wanted, atol=1e-6)


def test_worth_needs_the_new_and_the_old() -> None:
    live, better = ladder()[1:3]
    assert worth(live, better) == "good"
    assert worth(better, live) == "bad"
    assert worth(live, live) is None
    forgets = replace(better, old=np.zeros(400))
    assert worth(live, forgets) == "bad"


def test_noise_changes_a_policy_more_the_more_of_it_there_is() -> None:
    policy = load_policy("nano")
    moved = [
        float((rounds.noisy(policy, scale, 0).look.weight - policy.look.weight).detach().abs().mean())
        for scale in (0.1, 0.4)
    ]
    assert 0 < 3 * moved[0] < moved[1]
    again = rounds.noisy(policy, 0.1, 0).look.weight - policy.look.weight
    assert moved[0] == float(again.detach().abs().mean())


# --- kill -9 ---


def test_killed_sessions_lose_and_double_nothing(tmp_path: Path) -> None:
    found = kills.kill_often(tmp_path, kills=8, seed=0, tell=quiet).as_dict()
    assert found["kills"] == 8 == sum(found["by_stage"].values())
    assert (found["lost"], found["doubled"], found["broken"]) == (0, 0, [])
    assert found["confirmed"] >= 5
    assert found["learned"] >= 1


@pytest.fixture
def site(tmp_path: Path) -> kills._Site:
    """A store after one session that came through, and two policies."""
    reader = kills.tiny_reader(tmp_path / "reader")
    config = kills._config(tmp_path / "home", reader, promotes=True)
    with kills._drawn_once():
        kills._session(config, 0, None)
    found = kills._Site(config, kills.Found())
    found.confirmed = set(range(5))
    return found


def lose(site: kills._Site) -> None:
    site.confirmed.add(99)


def overwrite_the_live_policy(site: kills._Site) -> None:
    site.registry.weights_path(site.registry.live().id).write_bytes(b"half of a file")


def keep_another_answer(site: kills._Site) -> None:
    with clinic(site.config) as service:
        service.correct(Feedback("k6", "e0", "r", "amend", datetime.now(UTC), "yes"))  # its client says no


@pytest.mark.parametrize("harm", [lose, overwrite_the_live_policy, keep_another_answer])
def test_what_went_wrong_is_seen(site: kills._Site, harm: Callable[[kills._Site], None]) -> None:
    site._look()
    assert (site.found.lost, site.found.doubled, site.found.broken) == (0, 0, [])
    harm(site)
    site._look()
    assert site.found.lost + site.found.doubled + len(site.found.broken) > 0


def test_a_correction_learned_twice_is_seen(site: kills._Site) -> None:
    first = site.registry.live()
    assert first.parent is not None
    with closing(Store(site.config.home / "store.db", site.config.home)) as store:
        keys = sorted(store.learned_keys([first.id]))
        again = site.registry.add(
            load_policy(site.config.serve.reader).to_arrays(),
            parent=first.id,
            reader=first.reader,
            record=lambda policy: store.mark_learned(policy, train=keys),
        )
    site.registry.promote(again.id)
    site._look()
    assert site.found.doubled == len(keys)


# --- a run that ended early ---


def test_a_part_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    def bench(seed: int) -> feedback._Bench:
        return feedback._Bench(Config(home=tmp_path / "home"), {}, feedback.SIZES["small"], seed, quiet)

    def never() -> dict[str, Any]:
        raise AssertionError("measured again")

    kept = tmp_path / feedback.PARTS
    first = bench(0)._part("order", lambda: {"order": {"pool": 3, "difference": float("nan")}}, kept)
    assert first["order"] == {"pool": 3, "difference": None}
    assert bench(0)._part("order", never, kept) == first
    for other in (bench(1), bench(0)):
        name = "order" if other.seed else "kill -9"
        assert other._part(name, lambda: {"order": 1}, kept)["order"] == 1
    with pytest.raises(AssertionError):
        bench(0)._part("order", never, None)
