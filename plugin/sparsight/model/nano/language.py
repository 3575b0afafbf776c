"""The language stream: a small decoder-only model that reads [kept visual tokens | question | reasoning | answer].

Positions never depend on what was kept. A visual token carries an encoding of its (slice, row, column) in the study and
stands at rotary position 0, all of them together; text counts on from 1. So dropping a token equals masking it.
The attention mask is always passed: without it transformers takes equal positions for new packed sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.model.nano.tokenizer import PAD
from sparsight.model.positions import DIM, encode_positions

MAX_TEXT = 256  # text tokens of question, reasoning and answer together
_ROWS_TOKENS = 24_576  # tokens of one padded forward: bounds memory


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence. visual: (K, C) kept features; at: (K, 24) their positions; text: ids, the answer's part last.

    scored: how many of the last ids count as the answer.
    """

    visual: Tensor
    at: Tensor
    text: list[int]
    scored: int = 0


def visual_row(features: Tensor, shape: tuple[int, int, int], keep: Tensor) -> tuple[Tensor, Tensor]:
    """Features (..., K, C) and positions (..., K, 24) of kept tokens. features: (N, C); keep: (..., K) int64."""
    return features[keep], encode_positions(shape, keep)


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
                max_position_embeddings=MAX_TEXT + 1,
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

    def hidden(self, visual: Tensor, seen: Tensor, text: Tensor) -> Tensor:
        """Last hidden states of the text part: (B, T, hidden).

        visual: (B, K, hidden) embeddings; seen: (B, K) bool, False for padding; text: (B, T) ids, PAD on the right.
        """
        k, t = visual.shape[1], text.shape[1]
        embeds = torch.cat([visual, self.lm.get_input_embeddings()(text)], dim=1)
        mask = torch.cat([seen, text != PAD], dim=1).long()
        positions = torch.cat([torch.zeros(k, dtype=torch.long), torch.arange(1, t + 1)]).expand(len(text), -1)
        output = self.lm.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        states: Tensor = output.last_hidden_state[:, k:]
        return states

    def log_probs(self, rows: Sequence[Row]) -> Tensor:
        """Log-probability of the last `scored` ids of each row, one prefill each, many rows per forward: (R,)."""
        order = sorted(range(len(rows)), key=lambda r: len(rows[r].visual) + len(rows[r].text))
        result = torch.empty(len(rows))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and _padded([rows[r] for r in order[start : stop + 1]]) <= _ROWS_TOKENS:
                stop += 1
            group = order[start:stop]
            result[group] = self._log_probs([rows[r] for r in group])
            start = stop
        return result

    def _log_probs(self, rows: list[Row]) -> Tensor:
        visual, seen, text = self._pad(rows)
        states = self.hidden(visual, seen, text)
        last = max(row.scored for row in rows)
        ends = torch.tensor([len(row.text) for row in rows])
        at = (ends.unsqueeze(1) - last - 1 + torch.arange(last)).clamp_min(0)  # (R, last): states that predict them
        states = states.gather(1, at.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        targets = text.gather(1, at + 1)
        log_p = self.lm.lm_head(states).float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        scored = torch.tensor([row.scored for row in rows]).unsqueeze(1)
        total: Tensor = (log_p * (torch.arange(last) >= last - scored)).sum(1)
        return total

    def _pad(self, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
        k, t = max(len(row.visual) for row in rows), max(len(row.text) for row in rows)
        visual = torch.zeros(len(rows), k, rows[0].visual.shape[-1])
        at = torch.zeros(len(rows), k, DIM)
        seen = torch.zeros(len(rows), k, dtype=torch.bool)
        text = torch.full((len(rows), t), PAD)
        for r, row in enumerate(rows):
            n = len(row.visual)
            visual[r, :n], at[r, :n], seen[r, :n] = row.visual, row.at, True
            text[r, : len(row.text)] = torch.tensor(row.text)
        return self.see(visual, at), seen, text

    def continue_text(self, row: Row, stop: int, limit: int) -> TokenStream:
        """Greedy decoding after a row, with a key-value cache; ends before `stop` or after `limit` tokens."""
        return TokenStream(self, row, stop, limit)


class TokenStream:
    """Iterate over greedily decoded ids; `log_prob` sums up what they (and the stop token) had."""

    def __init__(self, model: NanoLanguage, row: Row, stop: int, limit: int) -> None:
        self._model, self._row, self._stop = model, row, stop
        self._limit = min(limit, MAX_TEXT - len(row.text))
        self.log_prob = 0.0

    def __iter__(self) -> Iterator[int]:
        lm, row = self._model.lm, self._row
        visual, _, text = self._model._pad([row])
        embeds = torch.cat([visual, lm.get_input_embeddings()(text)], dim=1)
        k, length = visual.shape[1], len(row.text)
        positions = torch.cat([torch.zeros(k, dtype=torch.long), torch.arange(1, length + 1)])[None]
        past = None
        for step in range(self._limit):
            mask = torch.ones(1, k + length + step, dtype=torch.long)
            out = lm(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past = out.past_key_values
            log_p = out.logits[0, -1].float().log_softmax(-1)
            token = int(log_p.argmax())
            self.log_prob += float(log_p[token])
            if token == self._stop:
                return
            yield token
            embeds = lm.get_input_embeddings()(torch.tensor([[token]]))
            positions = torch.tensor([[length + step + 1]])


def _padded(rows: list[Row]) -> int:
    return len(rows) * (max(len(row.visual) for row in rows) + max(len(row.text) for row in rows))
