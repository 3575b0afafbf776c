"""Stage 2: the language stream learns to answer from few tokens, on features of the frozen encoder.

What it took in an earlier small study of ours: pruned input from the first step (a reader used to all tokens caps
everything later), subsets that hold the evidence more often than not before random ones, all questions of an image
behind one visual prefix, and part of the answers without reasoning, so that p(answer) is one prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from sparsight.model.nano.language import NanoLanguage
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, END_THINK, PAD, QUESTION, THINK, encode_text
from sparsight.model.positions import encode_positions
from sparsight.recipe.pool import Item, Pool

_DIRECT_FIRST, _DIRECT = 0.8, 0.4  # share of answers without reasoning, in the first third and after it
_MAX_VISUAL = 576
_MAX_QUESTIONS = 12  # behind one visual prefix
_ANSWER_WEIGHT = 3.0  # of an answer token against one of the reasoning


@dataclass(frozen=True)
class Written:
    """One question with its answer as ids, in both forms."""

    direct: tuple[int, ...]
    reasoned: tuple[int, ...]
    question: int  # ids of the question: the same in both


def write(item: Item, tokenizer: Tokenizer) -> Written:
    """Spell an item out. Reasoning is empty where the source has none: the reader then learns to give none."""
    question = [QUESTION, *encode_text(tokenizer, item.question.text.strip().lower())]
    answer = [ANSWER, *encode_text(tokenizer, item.answer.strip().lower()), END_ANSWER]
    thought = [THINK, *(encode_text(tokenizer, item.rationale) if item.rationale else []), END_THINK]
    return Written(tuple(question + answer), tuple(question + thought + answer), len(question))


class Mixture:
    """Draws images from several pools at fixed rates, and a subset of tokens for each."""

    def __init__(self, pools: Sequence[tuple[Pool, float]], saliency: Callable[[Tensor], Tensor], tokenizer: Tokenizer):
        self.pools = [pool for pool, _ in pools]
        rates = np.array([rate for _, rate in pools])
        self.rates = rates / rates.sum()
        self.asked: list[list[list[Written]]] = []
        self.saliency: list[list[Tensor]] = []
        for pool in self.pools:
            asked: list[list[Written]] = [[] for _ in pool.pixels]
            for item in pool.items:
                asked[item.image].append(write(item, tokenizer))
            self.asked.append(asked)
            self.saliency.append([saliency(f.float()).half() for f in pool.features])

    def batch(self, rng: np.random.Generator, progress: float, size: int) -> list[tuple[Tensor, Tensor, list[Written]]]:
        """Draw `size` images. All keep equally many tokens: padding to the longest would cost thrice as much."""
        if progress < 1 / 3:
            k = int(rng.integers(24, 73))
        else:
            k = round(float(np.exp(rng.uniform(np.log(16), np.log(_MAX_VISUAL + 1)))))
        return [self.draw(rng, progress, k) for _ in range(size)]

    def draw(self, rng: np.random.Generator, progress: float, k: int) -> tuple[Tensor, Tensor, list[Written]]:
        """Features (K, C), positions (K, 24), questions. progress: share of the training done."""
        p = int(rng.choice(len(self.pools), p=self.rates))
        pool = self.pools[p]
        i = int(rng.integers(len(pool.pixels)))
        keep = subset(self.saliency[p][i].float(), pool.geometry[i].shape, k, rng, progress)
        asked = self.asked[p][i]
        chosen = [asked[q] for q in rng.permutation(len(asked))[:_MAX_QUESTIONS]]
        return pool.features[i][keep].float(), encode_positions(pool.geometry[i].shape, keep), chosen


def subset(saliency: Tensor, shape: tuple[int, int, int], k: int, rng: np.random.Generator, progress: float) -> Tensor:
    """Kept tokens (at most k,), ascending: salient ones in the first third of the training, then chosen in four ways.

    Salient (with Gumbel noise), random, one blob (what a question about one finding keeps), nothing.
    """
    gumbel = torch.from_numpy(rng.gumbel(size=len(saliency)).astype(np.float32))
    way = rng.random() if progress >= 1 / 3 else 1.0
    if way < 0.03:
        k, scores = 0, gumbel
    elif way < 0.12:
        scores = gumbel
    elif way < 0.22:
        scores = _blob(shape, int((saliency + gumbel).argmax())) + 0.1 * gumbel
    else:
        scores = saliency + gumbel
    return scores.topk(min(k, len(saliency))).indices.sort().values


def _blob(shape: tuple[int, int, int], centre: int) -> Tensor:
    """Minus the distance of each token to a centre, in tokens; slices count double."""
    gd, gh, gw = shape
    index = torch.arange(gd * gh * gw)
    w, v, u = index // (gh * gw), index // gw % gh, index % gw
    cw, cv, cu = centre // (gh * gw), centre // gw % gh, centre % gw
    return -((4 * (w - cw) ** 2 + (v - cv) ** 2 + (u - cu) ** 2).float().sqrt())


def packed_loss(
    language: NanoLanguage,
    batch: list[tuple[Tensor, Tensor, list[Written]]],
    rng: np.random.Generator,
    progress: float = 1.0,
) -> Tensor:
    """Cross-entropy of reasoning and answers, all questions of an image behind one visual prefix: scalar.

    progress: share of the training done. Short answers first: the image is needed for them, not for the sentences.
    """
    direct = _DIRECT_FIRST if progress < 1 / 3 else _DIRECT
    visual = pad_sequence([v for v, _, _ in batch], batch_first=True)  # (B, K, C)
    at = pad_sequence([a for _, a, _ in batch], batch_first=True)
    seen = pad_sequence([torch.ones(len(v), dtype=torch.bool) for v, _, _ in batch], batch_first=True)
    rows = [_row(asked, rng, direct) for _, _, asked in batch]
    text, part, position, weight = (
        pad_sequence([row[c] for row in rows], batch_first=True, padding_value=empty)
        for c, empty in enumerate((PAD, -1, 0, 0.0))
    )  # (B, T) each
    embeds = torch.cat([language.see(visual, at), language.lm.get_input_embeddings()(text)], dim=1)
    k = visual.shape[1]
    place = torch.cat([torch.zeros(len(batch), k, dtype=torch.long), position], dim=1)
    out = language.lm.model(
        inputs_embeds=embeds, attention_mask=packed_mask(seen, part), position_ids=place, use_cache=False
    )
    weight = weight[:, 1:]
    learned = weight > 0
    logits = language.lm.lm_head(out.last_hidden_state[:, k:-1][learned])
    losses = functional.cross_entropy(logits.float(), text[:, 1:][learned], reduction="none")
    total: Tensor = (losses * weight[learned]).sum() / weight.sum()
    return total


def naming_loss(language: NanoLanguage, features: Tensor, head: nn.Linear, names: Tensor) -> Tensor:
    """What the encoder takes a token for, in the language stream's own words: scalar.

    features: (n, C); head: log-odds of each kind (encoder stage: from answers); names: (kinds,) first piece of each
    kind's name. A token that looks like a ring is to say "ring", as much as it looks like anything: reading it then is
    copying it. Without this the streams take several hundred steps to find each other's words.
    """
    with torch.no_grad():
        odds = head(features)
        target, weight = odds.softmax(-1), odds.amax(-1).sigmoid()
    said = language.lm.lm_head(language.lm.model.norm(language.project(features)))
    log_p = said.float().log_softmax(-1)[:, names]
    total: Tensor = -((target * log_p).sum(-1) * weight).sum() / weight.sum().clamp_min(1.0)
    return total


def _row(asked: list[Written], rng: np.random.Generator, direct: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, number of the question, position and weight in the loss of all texts behind one image: (T,) each."""
    ids: list[int] = []
    part: list[int] = []
    position: list[int] = []
    weight: list[float] = []
    for number, written in enumerate(asked):
        text = written.direct if rng.random() < direct else written.reasoned
        answer = text.index(ANSWER)
        ids += text
        part += [number] * len(text)
        position += range(1, len(text) + 1)
        # The question and the word that asks for reasoning or answer are given, not learned.
        weight += [0.0] * (written.question + 1)
        weight += [_ANSWER_WEIGHT if t > answer else 1.0 for t in range(written.question + 1, len(text))]
    return torch.tensor(ids), torch.tensor(part), torch.tensor(position), torch.tensor(weight)


def packed_mask(seen: Tensor, part: Tensor) -> Tensor:
    """Who may attend to whom, additive (B, 1, K + T, K + T): text to the image and to its own question's past.

    seen: (B, K) bool; part: (B, T) number of the question, -1 for padding.
    """
    b, k = seen.shape
    t = part.shape[1]
    causal = torch.ones(k + t, k + t, dtype=torch.bool).tril()
    group = torch.cat([torch.full((b, k), -2), part], dim=1)
    image = torch.cat([seen, torch.zeros(b, t, dtype=torch.bool)], dim=1).unsqueeze(1)  # (B, 1, S) keys
    same = (group.unsqueeze(2) == group.unsqueeze(1)) & (group >= 0).unsqueeze(1)
    allowed = (image | same) & causal
    allowed |= torch.eye(k + t, dtype=torch.bool)  # a row without any key would be not a number
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min).unsqueeze(1)
