"""The nano reader's language stream: its texts' chances, training by what they earn, and the two streams in turns."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from rings import ASKED, SHAPE, example
from sparsight.config import LearnConfig
from sparsight.errors import DataError
from sparsight.model import TokenPolicy
from sparsight.model.completions import Prompt, draw
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
from sparsight.rl.language import LanguageConfig, train_language
from sparsight.rl.rewards import form
from sparsight.types import Question, Selection, TokenGrid


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
        alternate(policy, reader, NanoLanguagePolicy(reader), [example(n) for n in range(20)], [])
