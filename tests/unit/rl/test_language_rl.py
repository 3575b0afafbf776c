"""Training of a language stream by what its texts earn, on a stream of one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rings import example
from sparsight.errors import ConfigError, DataError, QuestionError, TrainingError
from sparsight.model import RandomSelector
from sparsight.model.completions import Completion, Prompt, Spoken, chances, draw
from sparsight.rl.language import LanguageConfig, LanguageStep, train_language
from sparsight.rl.trainer import Example
from sparsight.types import Question

CONFIG = LanguageConfig(steps=40, batch=8, lr=0.1, budgets=(0.25,), perception=0.0, sharpness=0.0, kl=0.0)


class Words(torch.nn.Module):
    """Two tokens over (yes, no, maybe) from the mean of what is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(channels, 3)
        self.second = torch.nn.Linear(channels, 3)
        torch.nn.init.zeros_(self.first.weight)
        torch.nn.init.zeros_(self.second.weight)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first(seen), self.second(seen)], dim=1).log_softmax(-1)


class Talker:
    """A language policy of one matrix: writes a thought and an answer; "maybe" is not well-formed."""

    max_tokens, words = 64, 3

    def __init__(self, channels: int = 6) -> None:
        torch.manual_seed(0)
        self.module = Words(channels)

    def check(self, question: Question, answer: str) -> None:
        if len(answer) > 20:
            raise QuestionError("long", expected="short", todo="shorten")

    def frozen(self) -> Talker:
        other = Talker()
        other.module = deepcopy(self.module).requires_grad_(False)
        return other

    def _log_p(self, prompts: Sequence[Prompt], m: int) -> torch.Tensor:
        seen = [p.grid.features[p.keep].mean(0) if len(p.keep) else p.grid.features.new_zeros(6) for p in prompts]
        return self.module(torch.stack(seen)).repeat_interleave(m, 0)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], m: int, limit: int, generators: Sequence[torch.Generator]
    ) -> list[list[Completion]]:
        p = self._log_p(prompts, m).exp()
        ids = draw(p.reshape(-1, 3), chances(generators, m, 2).flatten()).reshape(-1, m, 2).tolist()
        return [[self._spell(a, b) for a, b in group] for group in ids]

    def _spell(self, a: int, b: int) -> Completion:
        word = ("yes", "no", None)[b]
        return Completion((a, b), f"<think>{a}</think><answer>{word or ''}</answer>", word)

    def speak(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Spoken:
        ids = torch.tensor([c.ids for group in completions for c in group])
        return Spoken(self._log_p(prompts, len(completions[0])), ids, torch.ones_like(ids, dtype=torch.bool))


EXAMPLES = [example(n) for n in range(20)]


def p_right(talker: Talker, examples: Sequence[Example]) -> float:
    prompts = [Prompt(e.grid, e.question, torch.arange(16)) for e in examples]
    with torch.no_grad():
        p = talker._log_p(prompts, 1)[:, 1].exp()
    return float(np.mean([row[0 if e.answer == "yes" else 1] for row, e in zip(p, examples, strict=True)]))


@pytest.mark.parametrize("credit", ["per_stream", "shared"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stream_learns_from_what_its_texts_earn(seed: int, credit: str) -> None:
    talker, unseen = Talker(), [example(900 + n) for n in range(20)]
    assert p_right(talker, unseen) == pytest.approx(1 / 3, abs=0.15)
    report = train_language(
        talker, RandomSelector(), EXAMPLES, config=replace(CONFIG, credit=credit, dependent=1.0), seed=seed
    )
    assert p_right(talker, unseen) > 0.75
    assert set(report.history[0].parts) == {"match", "form"}
    assert report.history[-1].reward > report.history[0].reward + 0.2


def test_a_judge_of_ones_own_says_what_texts_are_worth() -> None:
    talker = Talker()
    report = train_language(
        talker,
        RandomSelector(),
        EXAMPLES,
        config=replace(CONFIG, dependent=1.0),
        judge=lambda example, text: 0.5 if text.answer == "no" else 0.0,
    )
    assert p_right(talker, [e for e in EXAMPLES if e.answer == "no"]) > 0.8
    assert p_right(talker, [e for e in EXAMPLES if e.answer == "yes"]) < 0.2
    assert report.history[-1].parts["match"] == pytest.approx(0.5, abs=0.1)


def test_only_parameters_with_a_gradient_are_trained() -> None:
    talker = Talker()
    talker.module.first.requires_grad_(False)
    before = deepcopy(talker.module.state_dict())
    train_language(talker, RandomSelector(), EXAMPLES, config=replace(CONFIG, steps=3, dependent=1.0))
    after = talker.module.state_dict()
    assert torch.equal(before["first.weight"], after["first.weight"])
    assert not torch.equal(before["second.weight"], after["second.weight"])


def test_a_strong_reference_holds_the_stream() -> None:
    loose, held = Talker(), Talker()
    free = train_language(loose, RandomSelector(), EXAMPLES, config=CONFIG)
    tied = train_language(held, RandomSelector(), EXAMPLES, config=replace(CONFIG, kl=20.0))
    assert tied.history[-1].kl < 0.1 * free.history[-1].kl


def test_perception_is_raised_by_its_weight() -> None:
    """Rewards that say nothing (every answer is wrong): only the perception term moves, towards the evidence."""
    plain, seeing = Talker(), Talker()
    wrong = [replace(e, answer="ring") for e in EXAMPLES]
    config = replace(CONFIG, steps=8, full=1.0)  # all tokens: without them, nothing is seen
    train_language(plain, RandomSelector(), wrong, config=config)
    report = train_language(seeing, RandomSelector(), wrong, config=replace(config, perception=1.0))
    assert report.history[-1].perception > 10 * max(report.history[0].perception, 1e-4)


def test_a_share_is_read_with_all_tokens_and_a_share_without_reasoning() -> None:
    kept, reasoned = [], []

    class Listening(Talker):
        def sample(self, prompts: Sequence[Prompt], *args: object) -> list[list[Completion]]:
            kept.extend(len(p.keep) for p in prompts)
            reasoned.extend(p.reasoned for p in prompts)
            return super().sample(prompts, *args)  # type: ignore[arg-type]

    config = replace(CONFIG, steps=30, full=0.25, direct=0.4)
    train_language(Listening(), RandomSelector(), EXAMPLES, config=config)
    assert set(kept) == {4, 16}
    assert np.mean(np.array(kept) == 16) == pytest.approx(0.25, abs=0.08)
    assert np.mean(reasoned) == pytest.approx(0.6, abs=0.1)


def test_a_killed_run_resumes_at_the_same_bits(tmp_path: Path) -> None:
    path, straight = tmp_path / "run.safetensors", Talker()
    config = replace(CONFIG, steps=25, perception=0.02, sharpness=0.01, kl=0.05)
    train_language(straight, RandomSelector(), EXAMPLES, config=config, seed=5)

    def kill(step: LanguageStep) -> None:
        if step.step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_language(Talker(), RandomSelector(), EXAMPLES, config=config, seed=5, on_step=kill, checkpoint=path)
    resumed, seen = Talker(), []
    train_language(
        resumed,
        RandomSelector(),
        EXAMPLES,
        config=config,
        seed=5,
        on_step=lambda s: seen.append(s.step),
        checkpoint=path,
    )
    assert seen[0] == 11
    assert not path.exists()
    for name, value in straight.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value)


def test_a_checkpoint_of_another_run_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"

    def kill(step: LanguageStep) -> None:
        if step.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_language(Talker(), RandomSelector(), EXAMPLES, config=CONFIG, on_step=kill, checkpoint=path)
    report = train_language(
        Talker(), RandomSelector(), EXAMPLES, config=replace(CONFIG, steps=2), seed=1, checkpoint=path
    )
    assert report.history[0].step == 1


def test_not_a_number_stops_the_run_with_the_last_good_weights() -> None:
    class Breaking(Talker):
        calls = 0

        def speak(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Spoken:
            self.calls += 1
            spoken = super().speak(prompts, completions)
            return replace(spoken, log_p=spoken.log_p * float("nan")) if self.calls > 30 else spoken

    talker = Breaking()
    with pytest.raises(TrainingError, match="not a number"):
        train_language(talker, RandomSelector(), EXAMPLES, config=CONFIG)
    assert all(torch.isfinite(v).all() for v in talker.module.state_dict().values())


def test_texts_that_all_earn_the_same_stop_the_run_unless_they_are_right() -> None:
    wrong = [replace(e, answer="ring") for e in EXAMPLES]
    config = replace(CONFIG, direct=1.0)  # no form to learn either
    with pytest.raises(TrainingError, match="earn the same"):
        train_language(Talker(), RandomSelector(), wrong, config=config)
    sure = Talker()
    with torch.no_grad():
        sure.module.second.weight[:, 0] = torch.tensor([20.0, -20.0, 0.0])
    report = train_language(sure, RandomSelector(), EXAMPLES, config=config)
    assert len(report.history) == 10
    assert report.history[-1].reward == 1.0


def test_what_a_collapse_leaves_is_from_before_its_first_sign() -> None:
    """Texts earn the same from step 15 on and the run stops at 24: step 20 is not the last good one."""

    class Stuck(Talker):
        calls = 0

        def sample(self, prompts: Sequence[Prompt], m: int, *args: object) -> list[list[Completion]]:
            self.calls += 1
            texts = super().sample(prompts, m, *args)  # type: ignore[arg-type]
            return texts if self.calls <= 14 else [[self._spell(0, 2)] * m for _ in texts]

    talker, after = Stuck(), {}

    def remember(step: LanguageStep) -> None:
        after[step.step] = deepcopy(talker.module.state_dict())

    config = replace(CONFIG, full=1.0, direct=1.0)  # all alike: one call of sample a step
    with pytest.raises(TrainingError, match="earn the same"):
        train_language(talker, RandomSelector(), EXAMPLES, config=config, on_step=remember)
    assert max(after) == 23
    left = talker.module.state_dict()
    assert all(torch.equal(left[name], value) for name, value in after[10].items())
    assert not all(torch.equal(left[name], value) for name, value in after[20].items())


def test_a_stream_that_is_certain_is_called_collapsed() -> None:
    talker = Talker()
    with torch.no_grad():
        for layer in (talker.module.first, talker.module.second):
            layer.bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    with pytest.raises(TrainingError, match="explores"):
        train_language(talker, RandomSelector(), EXAMPLES, config=CONFIG)


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DataError, match="without a right answer"):
        train_language(Talker(), RandomSelector(), [replace(EXAMPLES[0], answer=None)], config=CONFIG)
    with pytest.raises(DataError, match="without a right answer"):
        train_language(Talker(), RandomSelector(), [], config=CONFIG)
    with pytest.raises(QuestionError):
        train_language(Talker(), RandomSelector(), [replace(EXAMPLES[0], answer="x" * 30)], config=CONFIG)
    with pytest.raises(ConfigError, match="nothing to compare"):
        LanguageConfig(completions=1)
    assert LanguageConfig(completions=1, credit="shared").completions == 1


def test_a_step_is_bounded_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 150,000 words makes more of them than there are activations."""
    talker, sizes = Talker(), list[int]()
    config = LanguageConfig(steps=1, batch=4, subsets=2, completions=2, limit=4)
    monkeypatch.setattr("sparsight.rl.language._CHUNK_LOGITS", 2 * (2 * 2) * (4 + 1) * 3)  # of two questions
    speak = talker.speak
    monkeypatch.setattr(talker, "speak", lambda p, t: sizes.append(len(p)) or speak(p, t))
    train_language(talker, RandomSelector(), EXAMPLES, config=config)
    assert sizes == [4, 4, 4, 4]  # two chunks, with and without the evidence
