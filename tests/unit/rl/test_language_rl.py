"""Training of a language stream by what its texts earn: on a stream of one matrix, and on a small nano reader."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.config import LearnConfig
from sparsight.errors import ConfigError, DataError, QuestionError, TrainingError
from sparsight.model import RandomSelector, TokenPolicy
from sparsight.model.completions import Completion, Prompt, Spoken, chances, draw
from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader, build
from sparsight.model.nano.sampling import NanoLanguagePolicy, spell
from sparsight.model.nano.tokenizer import (
    ANSWER,
    END_ANSWER,
    END_THINK,
    PAD,
    QUESTION,
    THINK,
    encode_text,
    train_tokenizer,
)
from sparsight.model.nano.weights import NanoSpec
from sparsight.recipe.language_stage import answer_loss
from sparsight.rl import alternate as alternation
from sparsight.rl.alternate import Accuracy, alternate
from sparsight.rl.language import LanguageConfig, LanguageStep, train_language
from sparsight.rl.rewards import form
from sparsight.rl.trainer import Example
from sparsight.types import Question, Selection, TokenGrid

ASKED = Question("is there a ring?", "yes_no")
SHAPE = (1, 4, 4)
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


def example(seed: int, channels: int = 6, evidence: int = 16, noise: float = 1.0) -> Example:
    """A ring is there where channel 0 of the evidence (so many tokens) says so."""
    random = torch.Generator().manual_seed(seed)
    features = noise * torch.randn(16, channels, generator=random)
    features[:, 0] = 0.0
    features[torch.randperm(16, generator=random)[:evidence], 0] = 3.0 if seed % 2 else -3.0
    grid = TokenGrid(features, SHAPE, (8.0, 8.0, 1.0), np.eye(4), np.eye(4), "key")
    return Example(grid, ASKED, "yes" if seed % 2 else "no")


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


# The nano reader's own language stream


@pytest.fixture(scope="module")
def nano() -> NanoReader:
    """Random weights, a vocabulary of little more than bytes."""
    tokenizer = train_tokenizer(["is there a ring?", "yes", "no"] * 3, size=280)
    spec = NanoSpec(channels=16, hidden=64, layers=2, heads=2, logits=2, findings=("ring", "nodule"))
    torch.manual_seed(0)
    return NanoReader(*build(spec, tokenizer.get_vocab_size()), tokenizer, spec, "0" * 64)


def prompts_of(reader: NanoReader) -> list[Prompt]:
    grid = example(1, reader.encoder.width).grid
    longer = Question("is there a ring or another ring?")
    return [
        Prompt(grid, ASKED, torch.arange(5)),
        Prompt(grid, longer, torch.arange(3, 15), reasoned=False),
        Prompt(grid, longer, torch.arange(0)),
    ]


def test_texts_are_as_likely_as_one_uncached_prefill_says(nano: NanoReader) -> None:
    policy, prompts = NanoLanguagePolicy(nano), prompts_of(nano)
    texts = policy.sample(prompts, 3, 10, [torch.Generator().manual_seed(0)] * 3)
    assert all(1 <= len(t.ids) <= 10 for group in texts for t in group)
    spoken = policy.speak(prompts, texts)
    rows = []
    for prompt, group in zip(prompts, texts, strict=True):
        question = [QUESTION, *encode_text(nano.tokenizer, prompt.question.text)]
        visual, at = visual_row(prompt.grid.features, prompt.grid.shape, prompt.keep)
        begin = THINK if prompt.reasoned else ANSWER
        rows += [Row(question, visual, at, [begin, *t.ids], len(t.ids)) for t in group]
    with torch.no_grad():
        expected = nano.language.log_probs(rows)
    plain = [PAD not in row.text for row in rows]  # padding that was itself drawn is masked there
    assert sum(plain) >= 6
    assert torch.allclose((spoken.chosen * spoken.said).sum(1)[plain], expected[plain], atol=1e-3)


def test_texts_are_drawn_as_often_as_they_are_likely(nano: NanoReader) -> None:
    policy, prompt = NanoLanguagePolicy(nano), prompts_of(nano)[:1]
    with torch.no_grad():
        nano.language.lm.lm_head.weight.mul_(8.0)  # tied: far from uniform
    try:
        texts = policy.sample(prompt, 4000, 1, [torch.Generator().manual_seed(0)])
        with torch.no_grad():
            p = policy.speak(prompt, [texts[0][:1]]).log_p[0, 0].exp()
    finally:
        with torch.no_grad():
            nano.language.lm.lm_head.weight.div_(8.0)
    drawn = torch.bincount(torch.tensor([t.ids[0] for t in texts[0]]), minlength=len(p)) / 4000
    assert float(p.max()) > 0.02
    assert float((drawn - p).abs().max()) < 4 * (float(p.max()) / 4000) ** 0.5


def test_a_text_does_not_depend_on_those_written_beside_it(nano: NanoReader) -> None:
    policy, prompts = NanoLanguagePolicy(nano), prompts_of(nano)

    def voices() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(7 + n) for n in range(3)]

    together = policy.sample(prompts, 4, 10, voices())
    alone = [policy.sample([p], 4, 10, [voice])[0] for p, voice in zip(prompts, voices(), strict=True)]
    assert [[t.ids for t in group] for group in together] == [[t.ids for t in group] for group in alone]


def test_what_has_no_probability_is_never_drawn() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]).repeat(1000, 1)
    chance = torch.linspace(0, 1 - 1e-12, 3000, dtype=torch.float64)
    drawn = draw(p, chance)
    assert (p.gather(1, drawn.unsqueeze(1)) > 0).all()
    assert set(drawn[1::3].tolist()) == {0, 2}


def test_the_reference_stays_while_the_stream_moves(nano: NanoReader) -> None:
    reference = NanoLanguagePolicy(nano).frozen()
    assert reference.module is not nano.language
    assert not any(p.requires_grad for p in reference.module.parameters())
    assert all(p.requires_grad for p in nano.language.parameters())


def test_a_text_is_well_formed_or_has_no_answer(nano: NanoReader) -> None:
    ring, see = encode_text(nano.tokenizer, "ring"), encode_text(nano.tokenizer, "there")
    good = spell(nano.tokenizer, True, [*see, END_THINK, ANSWER, *ring, END_ANSWER])
    assert (good.text, good.answer) == ("<think>there</think><answer>ring</answer>", "ring")
    assert spell(nano.tokenizer, True, [END_THINK, ANSWER, *ring, END_ANSWER]).answer == "ring"
    assert spell(nano.tokenizer, False, [*ring, END_ANSWER]).answer == "ring"
    bad = [
        [*see, END_THINK, ANSWER, *ring],  # never ended
        [*see, END_THINK, *see, ANSWER, *ring, END_ANSWER],  # words between
        [*see, END_THINK, ANSWER, END_ANSWER],  # nothing said
        [*see, ANSWER, *ring, END_ANSWER],
        [*see, END_THINK, END_THINK, ANSWER, *ring, END_ANSWER],
        [*see, END_THINK, ANSWER, QUESTION, *ring, END_ANSWER],
        [END_ANSWER],
    ]
    assert [spell(nano.tokenizer, True, ids).answer for ids in bad] == [None] * len(bad)
    assert spell(nano.tokenizer, False, [*see, END_THINK, END_ANSWER]).answer is None
    for ids in [*bad[:5], list(good.ids)]:
        text = spell(nano.tokenizer, True, ids)
        assert form(text.text) == (text.answer is not None)


class Evidence:
    """Keeps three of the four tokens that hold the evidence, and others: a visual stream that has learned."""

    id = "evidence"

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        noise = np.random.default_rng(seed).random(grid.n).astype(np.float32)
        scores = noise + (grid.features[:, 0] != 0).numpy()
        scores[np.argmax(scores)] -= 2
        return Selection(np.sort(np.argsort(-scores)[:k]), scores, 0.0, "sampled", self.id, seed)


def warm(reader: NanoReader, steps: int) -> None:
    """Teach the form and nothing else: yes and no at random, whatever the image."""
    optimizer = torch.optim.Adam(reader.language.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = []
        for n in range(12):
            e, said = example(int(rng.integers(500)), reader.encoder.width, 4, 0.1), rng.choice(["yes", "no"])
            keep = torch.from_numpy(rng.permutation(16)[:4])
            visual, at = visual_row(e.grid.features, SHAPE, keep)
            answer = [ANSWER, *encode_text(reader.tokenizer, str(said)), END_ANSWER]
            text = answer if n % 2 else [THINK, END_THINK, *answer]
            rows.append(Row([QUESTION, *encode_text(reader.tokenizer, ASKED.text)], visual, at, text))
        optimizer.zero_grad()
        answer_loss(reader.language, rows).backward()
        optimizer.step()


def test_a_nano_reader_that_knows_only_the_form_learns_the_answer(nano: NanoReader) -> None:
    reader = NanoReader(nano.encoder, deepcopy(nano.language), nano.tokenizer, nano.spec, nano.sha256)
    warm(reader, 40)
    width = reader.encoder.width
    unseen = [example(900 + n, width, 4, 0.1) for n in range(20)]
    selector = Evidence()
    before = alternation.measure(reader, selector, unseen, 0.25)
    # Every token of a text carries the gradient: which ones depend on what is seen, this stream cannot tell yet.
    # It has the form after 20 steps, and from then on, at a step that the seed decides, the answer.
    config = LanguageConfig(steps=70, batch=16, budgets=(0.25,), limit=8, lr=2e-3, kl=0.0, sharpness=0.0, dependent=1.0)
    seen = [example(n, width, 4, 0.1) for n in range(40)]
    report = train_language(NanoLanguagePolicy(reader), selector, seen, config=config)
    after = alternation.measure(reader, selector, unseen, 0.25)
    first, last = (float(np.mean([s.reward for s in part])) for part in (report.history[:5], report.history[-5:]))
    assert before.kept < 0.75
    assert after.kept > 0.9
    assert last > first + 0.2


# The two streams in turns


def toy_reader(nano: NanoReader) -> NanoReader:
    return NanoReader(nano.encoder, deepcopy(nano.language), nano.tokenizer, nano.spec, nano.sha256)


def test_streams_take_turns_and_a_phase_that_costs_full_accuracy_is_taken_back(
    nano: NanoReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = toy_reader(nano)
    width = reader.encoder.width
    policy = TokenPolicy(width, reader.embed(ASKED).shape[0], hidden=16)
    scores = iter(
        [Accuracy(0.80, 0.5), Accuracy(0.80, 0.6), Accuracy(0.785, 0.7), Accuracy(0.80, 0.6), Accuracy(0.79, 0.7)]
    )
    monkeypatch.setattr(alternation, "measure", lambda *args: next(scores))
    states = []

    def remember(phase: alternation.Phase) -> None:
        states.append((deepcopy(policy.state_dict()), deepcopy(reader.language.state_dict())))

    start = deepcopy(policy.state_dict()), deepcopy(reader.language.state_dict())
    phases = alternate(
        policy,
        reader,
        NanoLanguagePolicy(reader),
        [example(n, width) for n in range(8)],
        [example(99, width)],
        rounds=2,
        learn=LearnConfig(steps=2, batch=2, group=2, budgets=(0.25,)),
        write=LanguageConfig(steps=2, batch=2, subsets=2, completions=2, budgets=(0.25,), limit=4),
        on_phase=remember,
    )
    assert [p.stream for p in phases] == ["visual", "language", "visual", "language"]
    assert [p.taken_back for p in phases] == [False, True, False, False]
    assert [p.before.full for p in phases] == [0.80, 0.80, 0.80, 0.80]

    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    assert not same(start[0], states[0][0])  # the visual phase moved the policy only
    assert same(start[1], states[0][1])
    assert same(states[0][1], states[1][1])  # the language phase was taken back
    assert same(states[0][0], states[1][0])
    assert not same(states[2][1], states[3][1])  # the last one stays: exactly one point is allowed
    assert same(states[2][0], states[3][0])


def test_alternation_needs_validation_questions(nano: NanoReader) -> None:
    reader = toy_reader(nano)
    policy = TokenPolicy(reader.encoder.width, 8, hidden=16)
    with pytest.raises(DataError, match="validation"):
        alternate(policy, reader, NanoLanguagePolicy(reader), EXAMPLES, [])


def test_a_step_is_bounded_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 150,000 words makes more of them than there are activations."""
    talker, sizes = Talker(), list[int]()
    config = LanguageConfig(steps=1, batch=4, subsets=2, completions=2, limit=4)
    monkeypatch.setattr("sparsight.rl.language._CHUNK_LOGITS", 2 * (2 * 2) * (4 + 1) * 3)  # of two questions
    speak = talker.speak
    monkeypatch.setattr(talker, "speak", lambda p, t: sizes.append(len(p)) or speak(p, t))
    train_language(talker, RandomSelector(), EXAMPLES, config=config)
    assert sizes == [4, 4, 4, 4]  # two chunks, with and without the evidence
