from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sparsight.config import LearnConfig, RewardsConfig
from sparsight.errors import DataError, TrainingError
from sparsight.model import TokenPolicy
from sparsight.model.protocols import ScoreRequest
from sparsight.rl.rewards import Marks
from sparsight.rl.trainer import Example, Step, train_policy
from sparsight.types import Question, TokenGrid

SHAPE = (1, 12, 12)
LONGER = {"steps": 80}
CONFIG = LearnConfig(steps=40, batch=8, group=8, budgets=(0.1,), lr=1e-2, kl=0.0, replay=0.5)


class KeyReader:
    """Sees a nodule where feature 0 is set, a ring where feature 1 is: log p = log(0.1 + 0.8 * share of them kept)."""

    id, sha256, max_tokens = "key", "0" * 64, 1024

    def embed(self, question: Question) -> torch.Tensor:
        return torch.ones(4) if "nodule" in question.text else -torch.ones(4)

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        channel = [0 if "nodule" in r.question.text else 1 for r in requests]
        keys = [r.grid.features[:, c] > 1 for r, c in zip(requests, channel, strict=True)]
        return [(0.1 + 0.8 * key[r.keeps].sum(1) / key.sum()).log() for r, key in zip(requests, keys, strict=True)]


class DeafReader(KeyReader):
    """The answer never depends on the image."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        return [torch.full((len(r.keeps),), -1.0) for r in requests]


def example(
    seed: int, text: str = "Is there a nodule?", shape: tuple[int, int, int] = SHAPE, **more: object
) -> Example:
    n = int(np.prod(shape))
    features = 0.1 * torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    field = features.reshape(*shape, 6)
    for channel in (0, 1):  # a finding covers 3 x 3 tokens of a slice
        w, v, u = rng.integers(shape[0]), rng.integers(shape[1] - 2), rng.integers(shape[2] - 2)
        field[w, v : v + 3, u : u + 3, channel] = 2.0
    grid = TokenGrid(features, shape, (8.0, 8.0, 1.0), np.eye(4), np.eye(4), "key")
    return Example(grid, Question(text), **{"answer": "yes", **more})  # type: ignore[arg-type]


def fresh(seed: int = 0) -> TokenPolicy:
    torch.manual_seed(seed)
    return TokenPolicy(6, 4, hidden=16)


def recall(policy: TokenPolicy, examples: list[Example], channel: int, question: float) -> float:
    found = []
    for e in examples:
        scores = policy(e.grid.features[None], e.grid.shape, torch.full((1, 4), question))[0]
        keep = scores.topk(14).indices
        found.append(float((e.grid.features[keep, channel] > 1).sum()) / 9)
    return float(np.mean(found))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_policy_learns_from_answers_where_the_evidence_is(seed: int) -> None:
    policy, unseen = fresh(seed), [example(900 + n) for n in range(20)]
    before = recall(policy, unseen, 0, 1.0)
    config = CONFIG.model_copy(update=LONGER)
    report = train_policy(policy, KeyReader(), [example(n) for n in range(30)], config=config, seed=seed)
    assert before < 0.4
    assert recall(policy, unseen, 0, 1.0) > 0.75
    assert report.gain > 0.1
    assert report.history[-1].steps == 80


def test_an_answer_known_to_be_wrong_teaches_too() -> None:
    class Doubting(KeyReader):
        """The wrong answer is the less likely the more of the evidence is kept."""

        def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
            assert {r.answer for r in requests} == {"no"}
            return [(1 - log_p.exp()).log() for log_p in super().score(requests)]

    policy, unseen = fresh(), [example(900 + n) for n in range(20)]
    wrong = [example(n, answer=None, rejected="no") for n in range(30)]
    train_policy(policy, Doubting(), wrong, config=CONFIG.model_copy(update=LONGER))
    assert recall(policy, unseen, 0, 1.0) > 0.75


def test_marks_alone_teach_too() -> None:
    policy, unseen = fresh(), [example(900 + n) for n in range(20)]
    marked = []
    for n in range(20):
        e = example(n)
        where = (e.grid.features[:, 0] > 1).float().numpy()
        marked.append(Example(e.grid, e.question, marks=Marks(missed=where)))
    report = train_policy(policy, DeafReader(), marked, config=CONFIG.model_copy(update=LONGER))
    assert recall(policy, unseen, 0, 1.0) > 0.75
    assert set(report.history[-1].parts) == {"grounding"}


def test_replay_and_kl_keep_what_was_known() -> None:
    """Learn one question, then another whose evidence is elsewhere; the anchor is the first policy."""
    policy = fresh()
    train_policy(policy, KeyReader(), [example(n) for n in range(30)], config=CONFIG)
    anchor = TokenPolicy.from_arrays(policy.to_arrays())
    new = [example(n, "Is there a ring?") for n in range(100, 120)]
    old = [example(n, is_replay=True) for n in range(30)]
    train_policy(policy, KeyReader(), new + old, config=CONFIG.model_copy(update={"kl": 0.05}), anchor=anchor)
    unseen = [example(900 + n) for n in range(20)]
    assert recall(policy, unseen, 1, -1.0) > recall(anchor, unseen, 1, -1.0) + 0.2
    assert recall(policy, unseen, 0, 1.0) > recall(anchor, unseen, 0, 1.0) - 0.1


def test_a_strong_anchor_holds_the_policy() -> None:
    policy, anchor = fresh(), fresh()
    loose = fresh()
    examples = [example(n) for n in range(20)]
    held = train_policy(policy, KeyReader(), examples, config=CONFIG.model_copy(update={"kl": 20.0}), anchor=anchor)
    free = train_policy(loose, KeyReader(), examples, config=CONFIG, anchor=anchor)
    assert held.history[-1].kl < 0.1 * free.history[-1].kl


def test_a_killed_run_resumes_at_the_same_bits(tmp_path: Path) -> None:
    examples, path = [example(n) for n in range(10)], tmp_path / "run.safetensors"
    straight = fresh()
    train_policy(straight, KeyReader(), examples, config=CONFIG, seed=5)

    def kill(step: Step) -> None:
        if step.step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_policy(fresh(), KeyReader(), examples, config=CONFIG, seed=5, on_step=kill, checkpoint=path)
    resumed, seen = fresh(), []
    train_policy(
        resumed, KeyReader(), examples, config=CONFIG, seed=5, on_step=lambda s: seen.append(s.step), checkpoint=path
    )
    assert seen[0] == 21
    assert not path.exists()
    for name, value in straight.to_arrays().items():
        assert np.array_equal(resumed.to_arrays()[name], value)


def _drawn(first: int) -> Example:
    one = example(1)
    marked = np.zeros(one.grid.n, np.float32)
    marked[first] = 1
    return replace(one, marks=Marks(relevant=marked))


@pytest.mark.parametrize(
    ("begun", "other"),
    [(example(1), example(2)), (_drawn(3), _drawn(4)), (_drawn(3), example(1))],
    ids=["image", "region", "no region"],
)
def test_a_checkpoint_of_another_run_is_ignored(tmp_path: Path, begun: Example, other: Example) -> None:
    path = tmp_path / "run.safetensors"

    def kill(step: Step) -> None:
        if step.step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_policy(fresh(), KeyReader(), [begun], config=CONFIG, on_step=kill, checkpoint=path)
    report = train_policy(fresh(), KeyReader(), [other], config=CONFIG, checkpoint=path)
    assert report.history[0].step == 1


def test_rewards_that_never_differ_stop_the_run_with_the_last_good_weights() -> None:
    policy = fresh()
    before = policy.to_arrays()
    with pytest.raises(TrainingError, match="same for every subset"):
        train_policy(policy, DeafReader(), [example(n) for n in range(8)], config=CONFIG)
    assert all(np.array_equal(before[name], value) for name, value in policy.to_arrays().items())


def test_not_a_number_stops_the_run_with_the_last_good_weights() -> None:
    class Breaking(KeyReader):
        calls = 0

        def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
            self.calls += 1
            scores = super().score(requests)
            return [s * float("nan") for s in scores] if self.calls > 12 else scores

    policy = fresh()
    with pytest.raises(TrainingError, match="not a number"):
        train_policy(policy, Breaking(), [example(n) for n in range(8)], config=CONFIG)
    assert all(np.isfinite(v).all() for v in policy.to_arrays().values())


def test_a_policy_that_is_certain_is_called_collapsed() -> None:
    policy = fresh()
    with torch.no_grad():
        policy.out.weight.fill_(1e3)
    with pytest.raises(TrainingError, match="explores"):
        train_policy(policy, KeyReader(), [example(n) for n in range(8)], config=CONFIG.model_copy(update={"lr": 1e-9}))


class DeafLater(KeyReader):
    """The answer depends on the image for 14 steps; then every subset is worth nothing."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        self.calls += 1
        scores = super().score(requests)
        return scores if self.calls <= 14 else [torch.full_like(s, -9.0) for s in scores]


def test_what_a_collapse_leaves_is_from_before_its_first_sign(tmp_path: Path) -> None:
    """Signs at steps 15 to 24, where the run stops: those of step 20 are not the last good weights."""
    policy, path, after = fresh(), tmp_path / "run.safetensors", {}

    def remember(step: Step) -> None:
        after[step.step] = policy.to_arrays()

    with pytest.raises(TrainingError, match="same for every subset"):
        train_policy(
            policy, DeafLater(), [example(n) for n in range(8)], config=CONFIG, on_step=remember, checkpoint=path
        )
    assert max(after) == 23
    left = policy.to_arrays()
    assert all(np.array_equal(left[name], value) for name, value in after[10].items())
    assert not all(np.array_equal(left[name], value) for name, value in after[20].items())
    resumed: list[int] = []
    with pytest.raises(TrainingError):
        train_policy(
            fresh(),
            DeafReader(),
            [example(n) for n in range(8)],
            config=CONFIG,
            on_step=lambda step: resumed.append(step.step),
            checkpoint=path,
        )
    assert resumed[0] == 11


def test_a_volume_learns_from_some_of_its_slices() -> None:
    policy, shape = fresh(), (20, 12, 12)
    config = CONFIG.model_copy(update={"budgets": (0.02,), **LONGER})
    train_policy(policy, KeyReader(), [example(n, shape=shape) for n in range(20)], config=config)
    found = []
    for e in (example(900 + n, shape=shape) for n in range(10)):
        scores = policy(e.grid.features[None], shape, torch.ones(1, 4))[0]
        found.append(float((e.grid.features[scores.topk(58).indices, 0] > 1).sum()) / 9)
    assert np.mean(found) > 0.3  # 58 of 2,880 tokens: 0.02 by chance


def test_every_part_with_a_weight_is_computed() -> None:
    weights = RewardsConfig(utility=0.2, necessity=0.2)
    config = CONFIG.model_copy(update={"steps": 3, "rewards": weights})
    report = train_policy(fresh(), KeyReader(), [example(n) for n in range(4)], config=config)
    assert set(report.history[0].parts) == {"answer", "utility", "necessity"}


def test_subsets_that_lead_to_the_right_answer_agree_and_a_consensus_moves_the_policy() -> None:
    """Right is who keeps half of the finding: then the finding is what they agree on."""
    examples, policy = [example(n) for n in range(8)], fresh()
    weights = RewardsConfig(answer=0.0, consensus=1.0)
    half = {"steps": 40, "budgets": (0.5,), "rewards": weights}  # a uniform start is right half of the time
    report = train_policy(policy, KeyReader(), examples, config=CONFIG.model_copy(update=half))
    assert 0 < report.history[0].parts["consensus"] < 1
    assert report.gain > 0
    assert recall(policy, examples, 0, 1.0) > recall(fresh(), examples, 0, 1.0) + 0.1


@pytest.mark.parametrize("given", [{"pixel": 0.5}, {"answer": -1.0}, {"answer": 0.0, "grounding": 0.0}])
def test_a_weight_of_what_no_subset_is_given_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RewardsConfig(**given)


def test_what_cannot_be_learned_from_is_refused() -> None:
    e = example(0)
    with pytest.raises(DataError, match="neither"):
        train_policy(fresh(), KeyReader(), [Example(e.grid, e.question)], config=CONFIG)
    wrong = Example(e.grid, e.question, marks=Marks(relevant=np.ones(5, np.float32)))
    with pytest.raises(DataError, match="shape"):
        train_policy(fresh(), KeyReader(), [wrong], config=CONFIG)
    with pytest.raises(DataError, match="no new"):
        train_policy(fresh(), KeyReader(), [example(0, is_replay=True)], config=CONFIG)


class Fickle(KeyReader):
    """A few questions are worth something, the image never is: batches differ in reward, subsets do not."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        easy = [int(1_000 * float(r.grid.features.sum())) % 2 for r in requests]
        return [torch.full((len(r.keeps),), -0.1 if e else -3.0) for r, e in zip(requests, easy, strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_batches_that_happen_to_earn_more_are_not_taken_for_learning(seed: int) -> None:
    with pytest.raises(TrainingError, match="same for every subset"):
        train_policy(fresh(), Fickle(), [example(n) for n in range(40)], config=CONFIG, seed=seed)
