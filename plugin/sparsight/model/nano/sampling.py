"""Texts of the nano language stream, sampled and re-read in batches behind one key-value cache per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparsight.model.completions import Completion, Prompt, Spoken, chances, draw
from sparsight.model.nano.language import MAX_TEXT, NanoLanguage, Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import (
    ANSWER,
    END_ANSWER,
    END_THINK,
    PAD,
    QUESTION,
    SPECIAL,
    THINK,
    decode_text,
    encode_text,
)
from sparsight.types import Question


class NanoLanguagePolicy:
    """Implements completions.LanguagePolicy on a reader's own language stream: training it trains the reader."""

    def __init__(self, reader: NanoReader, module: NanoLanguage | None = None) -> None:
        self._reader = reader
        self.module = reader.language if module is None else module
        self.max_tokens, self.words = reader.max_tokens, self.module.lm.lm_head.out_features

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer has too many word pieces."""
        self._reader.check(question, answer)

    def frozen(self) -> NanoLanguagePolicy:
        """A copy without gradients."""
        return NanoLanguagePolicy(self._reader, deepcopy(self.module).requires_grad_(False))

    def phrase(self, prompt: Prompt, answer: str) -> Completion:  # noqa: ARG002 - the protocol's
        """The answer's word pieces and `</answer>`."""
        tokenizer = self._reader.tokenizer
        return spell(tokenizer, False, [*encode_text(tokenizer, answer.strip().lower()), END_ANSWER])

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], m: int, limit: int, generators: Sequence[torch.Generator]
    ) -> list[list[Completion]]:
        """M texts of each prompt, until `</answer>` or for `limit` tokens; the cache of a prompt is filled once."""
        prefix, chance = self._prefix(prompts, m), chances(generators, m, limit)
        limit = min(limit, MAX_TEXT - prefix.question - 1)
        state, written = prefix.state, []
        alive = torch.ones(len(state), dtype=torch.bool)
        for t in range(limit):
            p = self.module.lm.lm_head(state).float().softmax(-1)
            ids = draw(p, chance[:, t]).masked_fill(~alive, PAD)
            written.append(torch.where(alive, ids, -1))
            alive = alive & (ids != END_ANSWER)
            if not alive.any() or t + 1 == limit:
                break
            state = prefix.extend(self.module, ids.unsqueeze(1), torch.ones(len(ids), 1, dtype=torch.long), t)[:, 0]
        texts = [[i for i in row if i >= 0] for row in torch.stack(written, 1).tolist()]
        return [
            [spell(self._reader.tokenizer, prompt.reasoned, ids) for ids in texts[n * m : (n + 1) * m]]
            for n, prompt in enumerate(prompts)
        ]

    def speak(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Spoken:
        """Distributions along given texts: the prompt once, then its M texts behind copies of its cache."""
        prefix = self._prefix(prompts, len(completions[0]))
        texts = [torch.tensor(c.ids) for group in completions for c in group]
        ids = pad_sequence(texts, batch_first=True, padding_value=PAD)
        said = torch.arange(ids.shape[1]) < torch.tensor([len(t) for t in texts]).unsqueeze(1)
        states = prefix.state.unsqueeze(1)
        if ids.shape[1] > 1:
            later = prefix.extend(self.module, ids[:, :-1], said[:, :-1].long(), 0)
            states = torch.cat([states, later], dim=1)
        return Spoken(self.module.lm.lm_head(states).float().log_softmax(-1), ids, said)

    def _prefix(self, prompts: Sequence[Prompt], m: int) -> _Prefix:
        rows = [self._row(prompt) for prompt in prompts]
        batch = self.module.pad(rows)
        out = self.module.lm.model(
            inputs_embeds=self.module.embeds(batch),
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=True,
        )
        cache = out.past_key_values
        cache.batch_repeat_interleave(m)
        state, mask, at = (
            part.repeat_interleave(m, 0) for part in (out.last_hidden_state[:, -1], batch.mask, batch.positions[:, -1:])
        )
        return _Prefix(cache, mask, at + 1, state, max(len(row.question) for row in rows))

    def _row(self, prompt: Prompt) -> Row:
        question = [QUESTION, *encode_text(self._reader.tokenizer, prompt.question.text.strip().lower())]
        visual, at = visual_row(prompt.grid.features, prompt.grid.shape, prompt.keep)
        return Row(question, visual, at, [THINK if prompt.reasoned else ANSWER])


@dataclass(eq=False)
class _Prefix:
    """What R = P * M texts follow. mask: (R, L), grows; at: (R, 1), position of the first id; state: (R, hidden)."""

    cache: Any
    mask: Tensor
    at: Tensor
    state: Tensor
    question: int  # ids of the longest question

    def extend(self, module: NanoLanguage, ids: Tensor, said: Tensor, done: int) -> Tensor:
        """Hidden states of the next ids (R, T), `done` being there already: (R, T, hidden)."""
        self.mask = torch.cat([self.mask, said], dim=1)
        out = module.lm.model(
            inputs_embeds=module.lm.get_input_embeddings()(ids),
            attention_mask=self.mask,
            position_ids=self.at + done + torch.arange(ids.shape[1]),
            past_key_values=self.cache,
            use_cache=True,
        )
        states: Tensor = out.last_hidden_state
        return states


def spell(tokenizer: Tokenizer, reasoned: bool, ids: Sequence[int]) -> Completion:
    """Ids as text with tags. Well-formed is [reasoning </think> <answer>] answer </answer>, no other tag, not empty."""
    text, piece = SPECIAL[THINK if reasoned else ANSWER], list[int]()
    for i in ids:
        if i < len(SPECIAL):
            text += decode_text(tokenizer, piece) + SPECIAL[i]
            piece = []
        else:
            piece.append(i)
    text += decode_text(tokenizer, piece)
    tags = [i for i in ids if i < len(SPECIAL)]
    begin = ids.index(ANSWER) + 1 if reasoned and ANSWER in ids else 0
    answer = decode_text(tokenizer, list(ids[begin:]))
    closed = (
        bool(ids) and ids[-1] == END_ANSWER and tags == ([END_THINK, ANSWER, END_ANSWER] if reasoned else [END_ANSWER])
    )
    adjacent = not reasoned or (closed and ids[begin - 2] == END_THINK)
    return Completion(tuple(ids), text, answer if closed and adjacent and answer else None)
