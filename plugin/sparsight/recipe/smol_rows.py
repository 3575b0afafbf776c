"""What smol's language stream is taught on: images as its tower sees them, and many questions behind one prefix.

The questions about one image share its visual tokens in one forward: each sees these and itself, at the positions it
has when it is asked alone (tested to be the same), so an answer costs a third of what it would by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsight.model.hf.answers import ANSWER, END_ANSWER, END_THINK, THINK
from sparsight.model.hf.reader import HFReader
from sparsight.model.smol.tower import LiteTower
from sparsight.recipe.language_stage import subset
from sparsight.types import Case, Question, TokenGrid

_REASONED = 0.5  # share of the answers with reasoning
_ANSWER_WEIGHT = 3.0  # of an answer's token against one of the reasoning


@dataclass(frozen=True)
class Taught:
    """A question with its answer; rationale: empty where the source has none."""

    question: Question
    answer: str
    rationale: str


@dataclass(eq=False)
class Picture:
    """One image. seen: (1, 152, h, w) float16, what EfficientNet sees; shape: of its grid, which may be smaller.

    grid: tokens of the tower in place of the connector's; odds: (N, findings). Both once `tokens_of` ran.
    """

    seen: Tensor
    shape: tuple[int, int, int]
    taught: list[Taught]
    grid: TokenGrid | None = None
    odds: Tensor | None = None


@torch.no_grad()
def picture(reader: HFReader, cases: Sequence[Case]) -> Picture | None:
    """One image and what is asked about it; None for a volume, and where nothing fits the prompt."""
    volume = cases[0].volume
    if volume.shape[0] > 1:
        return None
    given, shape = reader.vision.pixels(volume)
    taught = [Taught(c.question, spelled(c.question, c.answer), c.rationale) for c in cases]
    seen = tower_of(reader).see(given["pixel_values"]).half()
    return Picture(seen, shape, taught) if taught else None


def tower_of(reader: HFReader) -> LiteTower:
    """The vision tower inside a model."""
    tower = reader.model.model.vision_tower
    assert isinstance(tower, LiteTower)
    return tower


def spelled(question: Question, answer: str) -> str:
    """An answer as the choice is spelled that it names."""
    return next((c for c in question.answers if c.lower() == answer.strip().lower()), answer.strip())


@torch.no_grad()
def tokens_of(picture: Picture, tower: LiteTower, reader: HFReader, findings: int) -> None:
    """Fill in grid and odds from a trained tower (float32)."""
    seen = picture.seen.float()
    rows = tower.tokens(seen).flatten(0, 1)
    odds = tower.logits(tower.look(seen)).flatten(0, 2)[:, :findings]
    layout = reader.vision.layout(picture.shape)
    at = np.eye(4)
    own, rest = rows[layout.token].half(), rows[layout.rest].half()
    picture.grid = TokenGrid(own, picture.shape, (8.0, 8.0, 1.0), at, at, reader.id, extras={"rest": rest})
    picture.odds = odds[layout.token]


def draw_row(
    picture: Picture, rng: np.random.Generator, *, questions: int, most: int, full: float, progress: float
) -> tuple[Tensor, list[tuple[Taught, bool]]]:
    """Kept tokens (K,) and some questions, each with or without reasoning.

    K is drawn up to `most`, evenly in its logarithm; full: share of the images that are read with every token.
    """
    assert picture.odds is not None
    n = len(picture.odds)
    k = round(float(np.exp(rng.uniform(np.log(8), np.log(most)))))
    salient = picture.odds.logsumexp(-1)
    keep = torch.arange(n) if rng.random() < full else subset(salient, picture.shape, min(k, n), rng, progress)
    chosen = rng.permutation(len(picture.taught))[:questions]
    return keep, [(picture.taught[i], bool(rng.random() < _REASONED)) for i in chosen]


def answers_loss(
    reader: HFReader, connector: nn.Module, grid: TokenGrid, keep: Tensor, asked: Sequence[tuple[Taught, bool]]
) -> Tensor:
    """Mean negative log-probability of a token of the answers, in nats: scalar, with gradient.

    connector: float32, takes the tokens of `grid` to the language stream's. Tokens of answers count thrice those of
    reasoning.
    """
    language, ids, at, block = reader.language, list[Tensor](), list[Tensor](), list[Tensor]()
    weights, visual = list[Tensor](), None
    begin = 0
    for number, (taught, reasoned) in enumerate(asked, start=1):
        whole = reader.prompt(grid, taught.question, reasoned)
        prompt = whole.keep(keep, language.image)
        begin = int((whole.ids == language.image).nonzero()[0])
        shared = begin + len(prompt.rows)
        if visual is None:
            visual = connector(prompt.study.take(prompt.rows).float())
            _add((ids, at, block, weights), prompt.ids[:shared], prompt.at[0, :shared], 0, torch.zeros(shared))
        text, weight = _text(reader, taught, reasoned)
        after = prompt.then(text, reader.family.answer_type)
        silent = torch.zeros(len(prompt.ids) - shared)
        _add((ids, at, block, weights), after.ids[shared:], after.at[0, shared:], number, torch.cat([silent, weight]))
    assert visual is not None
    every, where = torch.cat(ids), torch.cat(block)
    embedded = reader.model.get_input_embeddings()(every)
    stop = begin + len(visual)
    embedded = torch.cat([embedded[:begin], visual.to(embedded), embedded[stop:]])
    sees = (where[None] == 0) | (where[None] == where[:, None])
    mask = (sees & torch.ones_like(sees).tril())[None, None]
    states = reader.model.get_decoder()(
        inputs_embeds=embedded[None], attention_mask=mask, position_ids=torch.cat(at)[None], use_cache=False
    ).last_hidden_state[0]
    weight = torch.cat(weights)
    said = weight.nonzero().squeeze(1)
    logits = reader.model.lm_head(states[said - 1]).float()
    losses = functional.cross_entropy(logits, every[said], reduction="none")
    return (losses * weight[said]).sum() / weight.sum()


def _add(into: tuple[list[Tensor], ...], ids: Tensor, at: Tensor, block: int, weight: Tensor) -> None:
    for part, value in zip(into, (ids, at, torch.full_like(ids, block), weight), strict=True):
        part.append(value)


def _text(reader: HFReader, taught: Taught, reasoned: bool) -> tuple[list[int], Tensor]:
    """What the model is to write, spelled in the pieces that it is scored in, and how much each token counts."""
    language = reader.language
    answer = language.ids(taught.answer)
    if not reasoned:
        return [*answer, language.end], torch.full((len(answer) + 1,), _ANSWER_WEIGHT)
    before = language.ids(f"{THINK}{taught.rationale}{END_THINK}{ANSWER}")
    after = [*language.ids(END_ANSWER), language.end]
    weight = torch.ones(len(before) + len(answer) + len(after))
    weight[len(before) : len(before) + len(answer)] = _ANSWER_WEIGHT
    return [*before, *answer, *after], weight


def names_of(reader: HFReader, words: Sequence[str]) -> Tensor:
    """What the language stream takes each of some words for: (n, hidden) float32, the mean of its pieces."""
    table: Any = reader.model.get_input_embeddings().weight.detach().float()
    return torch.stack([table[reader.language.ids(f" {word}")].mean(0) for word in words])
