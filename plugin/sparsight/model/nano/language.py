"""The language stream: a small decoder-only model that reads [question | kept visual tokens | reasoning | answer].

The question comes first, so that each visual token can tell whether it is what was asked for. Positions never depend on
what was kept. A visual token carries an encoding of its (slice, row, column) in the study and stands at the rotary
position after the question, all of them together; the text after them counts on. So dropping a token equals masking it.
The attention mask is always passed: without it transformers takes equal positions for new packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.model.nano.tokenizer import PAD
from sparsight.model.positions import DIM, encode_positions
from sparsight.model.together import Behind, Write
from sparsight.types import ContextTokens

MAX_TEXT = 256  # text tokens of question, reasoning and answer together
_SHORT = 256  # tokens
_ROWS_TOKENS = 8_192  # tokens of one padded forward: bounds memory
_SLACK = 16  # tokens that rows of one forward may differ by: fewer are not worth a forward of their own


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence. question: ids; visual: (K, C) features to read; at: (K, 24) their positions; text: ids after them.

    scored: how many of the last ids count as the answer.
    """

    question: list[int]
    visual: Tensor
    at: Tensor
    text: list[int]
    scored: int = 0

    @property
    def length(self) -> int:
        """Of the whole sequence."""
        return len(self.question) + len(self.visual) + len(self.text)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded to the same lengths: question (B, Q) and text (B, T) ids, PAD on the right; visual (B, K, hidden).

    seen: (B, K) bool, False for padding.
    """

    question: Tensor
    visual: Tensor
    seen: Tensor
    text: Tensor

    @property
    def mask(self) -> Tensor:
        """What may be attended to: (B, Q + K + T) int64."""
        return torch.cat([self.question != PAD, self.seen, self.text != PAD], dim=1).long()

    @property
    def positions(self) -> Tensor:
        """Rotary positions, the same whatever was kept: (B, Q + K + T) int64."""
        asked = (self.question != PAD).sum(1, keepdim=True)  # (B, 1)
        q, t = (torch.arange(part.shape[1]).expand(len(asked), -1) for part in (self.question, self.text))
        k = self.seen.shape[1]
        return torch.cat([q, asked.expand(-1, k), t + asked + 1], dim=1)


def visual_row(
    features: Tensor, shape: tuple[int, int, int], keep: Tensor, context: ContextTokens | None = None
) -> tuple[Tensor, Tensor]:
    """Features (..., K + m, C) and positions (..., K + m, 24) of kept tokens and m context tokens after them.

    features: (N, C); keep: (..., K) int64. Order does not matter: all visual tokens share one rotary position.
    """
    kept, at = features[keep], encode_positions(shape, keep)
    if context is None:
        return kept, at
    more = (part.expand(*keep.shape[:-1], -1, -1) for part in (context.features, context.at))
    both = [torch.cat([own, extra], dim=-2) for own, extra in zip((kept, at), more, strict=True)]
    return both[0], both[1]


class NanoLanguage(nn.Module):
    """Projector and Llama. Sizes stay divisible by 64, so that 4-bit weights and LoRA fit later."""

    def __init__(self, channels: int, vocabulary: int, *, hidden: int = 128, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.place = nn.Linear(DIM, hidden)
        self.lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=3 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                max_position_embeddings=MAX_TEXT + 2,
                tie_word_embeddings=True,
                pad_token_id=PAD,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="sdpa",
            )
        )

    def see(self, visual: Tensor, at: Tensor) -> Tensor:
        """Visual embeddings (..., K, hidden) of features (..., K, C) at positions (..., K, 24)."""
        seen: Tensor = self.project(visual) + self.place(at)
        return seen

    def embeds(self, batch: Batch) -> Tensor:
        """Input embeddings: (B, Q + K + T, hidden)."""
        words = self.lm.get_input_embeddings()
        return torch.cat([words(batch.question), batch.visual, words(batch.text)], dim=1)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states: (B, Q + K + T, hidden)."""
        # On a CPU the gradient of fused attention costs twice that of plain attention, up to some hundred tokens.
        plain = torch.is_grad_enabled() and batch.mask.shape[1] <= _SHORT
        self.lm.set_attn_implementation("eager" if plain else "sdpa")
        output = self.lm.model(
            inputs_embeds=self.embeds(batch),
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        )
        states: Tensor = output.last_hidden_state
        return states

    def embed(self, question: list[int]) -> Tensor:
        """Question ids to (2 * hidden,): mean and last hidden state, before any image."""
        none = torch.zeros(1, 0, dtype=torch.long)
        ids = torch.tensor([question])
        states = self.hidden(Batch(ids, torch.zeros(1, 0, self.place.out_features), none.bool(), none))[0]
        return torch.cat([states.mean(0), states[-1]])

    def attention(self, row: Row) -> Tensor:
        """How much each place of a row's text attends to each visual token, mean over heads: (layers, T, K)."""
        batch = self.pad([row])
        self.lm.set_attn_implementation("eager")  # the only one that returns its weights
        try:
            output = self.lm.model(
                inputs_embeds=self.embeds(batch),
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                output_attentions=True,
            )
        finally:
            self.lm.set_attn_implementation("sdpa")
        start, stop = len(row.question), len(row.question) + len(row.visual)
        return torch.stack([weights[0, :, stop:, start:stop].float().mean(0) for weights in output.attentions])

    def log_probs(self, rows: Sequence[Row]) -> Tensor:
        """Log-probability of the last `scored` ids of each row, many rows per forward: (R,).

        What rows have in common before these (the same visual tensors, question and text) is read once.
        """
        shared: dict[tuple[Any, ...], list[int]] = {}
        for r, row in enumerate(rows):
            begin = tuple(row.text[: len(row.text) - row.scored])
            shared.setdefault((id(row.visual), id(row.at), tuple(row.question), begin), []).append(r)
        result = torch.empty(len(rows))
        once = [own[0] for own in shared.values() if len(own) == 1]
        for group in _alike([rows[r] for r in once]):
            at = [once[i] for i in group]
            result[at] = self._log_probs([rows[r] for r in at])
        same = [own for own in shared.values() if len(own) > 1]
        for group in _alike([_before(rows[own[0]]) for own in same]):
            result[[r for i in group for r in same[i]]] = self._log_probs_of(
                [[rows[r] for r in same[i]] for i in group]
            )
        return result

    def _log_probs(self, rows: list[Row]) -> Tensor:
        batch = self.pad(rows)
        t = batch.text.shape[1]
        states = self.hidden(batch)[:, -t:]
        last = max(row.scored for row in rows)
        ends = torch.tensor([len(row.text) for row in rows])
        at = (ends.unsqueeze(1) - last - 1 + torch.arange(last)).clamp_min(0)  # (R, last): states that predict them
        states = states.gather(1, at.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        targets = batch.text.gather(1, at + 1)
        log_p = self.lm.lm_head(states).float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        scored = torch.tensor([row.scored for row in rows]).unsqueeze(1)
        total: Tensor = (log_p * (torch.arange(last) >= last - scored)).sum(1)
        return total

    def _log_probs_of(self, same: list[list[Row]]) -> Tensor:
        """Of rows in groups that share what comes before: in their order."""
        self.lm.set_attn_implementation("sdpa")
        before, rows = [_before(own[0]) for own in same], [row for own in same for row in own]
        batch, t = self.pad(before), max(len(row.text) for row in before)
        out = self.lm.model(
            inputs_embeds=self.embeds(batch),
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=True,
        )
        ends = torch.tensor([len(row.text) for row in before])
        asked = torch.tensor([len(row.question) for row in before])
        states = out.last_hidden_state[:, -t:][torch.arange(len(before)), ends - 1].unsqueeze(1)  # (P, 1, hidden)
        owner = torch.tensor([g for g, own in enumerate(same) for _ in own])
        answers = [torch.tensor(row.text[len(row.text) - row.scored :]) for row in rows]
        ids = pad_sequence(answers, batch_first=True, padding_value=PAD)  # (R, T)
        said = torch.arange(ids.shape[1]) < torch.tensor([len(answer) for answer in answers]).unsqueeze(1)
        states = states[owner]
        if ids.shape[1] > 1:
            cache = out.past_key_values
            cache.batch_select_indices(owner)
            later = self.lm.model(
                input_ids=ids[:, :-1],
                attention_mask=torch.cat([batch.mask[owner], said[:, :-1].long()], dim=1),
                position_ids=(asked + 1 + ends)[owner].unsqueeze(1) + torch.arange(ids.shape[1] - 1),
                past_key_values=cache,
                use_cache=True,
            )
            states = torch.cat([states, later.last_hidden_state], dim=1)
        log_p = self.lm.lm_head(states).float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        total: Tensor = (log_p * said).sum(1)
        return total

    def log_probs_after(self, row: Row, answers: Sequence[list[int]]) -> Tensor:
        """Log-probability of each answer's ids after a row, which is read once for all of them: (A,)."""
        self.lm.set_attn_implementation("sdpa")
        batch, n = self.pad([row]), row.length
        out = self.lm(
            inputs_embeds=self.embeds(batch),
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=True,
            logits_to_keep=1,
        )
        past, first, next_at = out.past_key_values, out.logits[0], batch.positions[0, -1] + 1
        totals = []
        for ids in answers:
            logits = first
            if len(ids) > 1:
                out = self.lm(
                    input_ids=torch.tensor([ids[:-1]]),
                    attention_mask=torch.ones(1, n + len(ids) - 1, dtype=torch.long),
                    position_ids=next_at + torch.arange(len(ids) - 1)[None],
                    past_key_values=past,
                    use_cache=True,
                )
                logits = torch.cat([first, out.logits[0]])
                past.crop(1 - len(ids))  # takes this answer away again
            totals.append(logits.float().log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum())
        return torch.stack(totals)

    def pad(self, rows: Sequence[Row]) -> Batch:
        """Rows of any lengths as one batch; visual tokens are projected."""
        k = max(len(row.visual) for row in rows)
        visual = torch.zeros(len(rows), k, rows[0].visual.shape[-1])
        at = torch.zeros(len(rows), k, DIM)
        seen = torch.zeros(len(rows), k, dtype=torch.bool)
        for r, row in enumerate(rows):
            n = len(row.visual)
            visual[r, :n], at[r, :n], seen[r, :n] = row.visual, row.at, True
        question, text = (
            pad_sequence([torch.tensor(ids) for ids in part], batch_first=True, padding_value=PAD)
            for part in ([row.question for row in rows], [row.text for row in rows])
        )
        return Batch(question, self.see(visual, at), seen, text)

    def text_after(
        self, row: Row, stop: int, limit: int, on_ids: Callable[[list[int]], object] = lambda ids: None
    ) -> Write:
        """The text that greedy decoding gives after a row, before `stop` or of `limit` tokens: to be written."""
        room = MAX_TEXT - len(row.question) - len(row.text)
        return Write(row, frozenset([stop]), min(limit, room), on_ids)

    def begin(self, row: Row, said: Sequence[int] = ()) -> Behind:
        """Read a row and ids after it; what is written next is written behind it."""
        self.lm.set_attn_implementation("sdpa")
        batch = self.pad([replace(row, text=[*row.text, *said])])
        given = {
            "inputs_embeds": self.embeds(batch),
            "attention_mask": batch.mask,
            "position_ids": batch.positions,
        }
        return Behind.prompts(self.lm, given)


def _before(row: Row) -> Row:
    """A row without the ids that are scored."""
    return replace(row, text=row.text[: len(row.text) - row.scored], scored=0)


def _alike(rows: Sequence[Row]) -> list[list[int]]:
    """The rows in groups for one forward each: of about the same length, for padding costs as much as what is read."""
    groups: list[list[int]] = []
    for r in sorted(range(len(rows)), key=lambda r: rows[r].length):
        group = groups[-1] if groups else []
        short = rows[group[0]].length if group else 0
        fits = group and rows[r].length <= short + max(_SLACK, short // 8)
        if fits and _padded([rows[i] for i in (*group, r)]) <= _ROWS_TOKENS:
            group.append(r)
        else:
            groups.append([r])
    return groups


def _padded(rows: list[Row]) -> int:
    return len(rows) * sum(
        max(len(part) for part in parts)
        for parts in ([r.question for r in rows], [r.visual for r in rows], [r.text for r in rows])
    )
