"""Stage 2: the language stream learns to answer from few tokens, on features of the frozen encoder.

What it took in an earlier small study of ours: pruned input from the first step (a reader used to all tokens caps
everything later), subsets that hold the evidence more often than not before random ones, and part of the answers
without reasoning, so that p(answer) is one prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from sparsight.model.nano.language import NanoLanguage, Row
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, END_THINK, PAD, QUESTION, THINK, encode_text
from sparsight.model.positions import encode_positions
from sparsight.recipe.pool import Item, Pool

_DIRECT_FIRST, _DIRECT = 0.8, 0.4  # share of answers without reasoning, in the first third and after it
_MAX_VISUAL = 576  # one image; of volumes and pairs a part, as in use: NanoReader.max_tokens is 1,024
_LEAST, _LEAST_LOOKED = 16, 4  # visual tokens of a row, once subsets hold other than the salient
LOOKED = 128  # tokens kept of a look
_GUIDED = 0.5  # share of the rows that see what the policy keeps, where it keeps so few
_TEXT = 32  # tokens of an ordinary question with its answer
_ANSWER_WEIGHT = 3.0  # of an answer token against one of the reasoning


@dataclass(frozen=True)
class Written:
    """One question with its answer as ids, in both forms."""

    question: list[int]
    direct: list[int]
    reasoned: list[int]


def write(item: Item, tokenizer: Tokenizer) -> Written:
    """Spell an item out. Reasoning is empty where the source has none: the reader then learns to give none."""
    question = [QUESTION, *encode_text(tokenizer, item.question.text.strip().lower())]
    answer = [ANSWER, *encode_text(tokenizer, item.answer.strip().lower()), END_ANSWER]
    thought = [THINK, *(encode_text(tokenizer, item.rationale) if item.rationale else []), END_THINK]
    return Written(question, answer, thought + answer)


@dataclass(frozen=True, eq=False)
class Look:
    """What a policy would keep for item number `item` of pool number `pool`.

    tokens: (M,) its best, by score; scores: (M,) log-weights.
    """

    pool: int
    item: int
    tokens: Tensor
    scores: Tensor


class Mixture:
    """Draws images from several pools at fixed rates, and a subset of tokens for each.

    looks: what a policy keeps for some of the questions; drawn in place of the rest for a share of the rows.
    """

    def __init__(self, pools: Sequence[tuple[Pool, float]], saliency: Callable[[Tensor], Tensor], tokenizer: Tokenizer):
        self.pools = [pool for pool, _ in pools]
        rates = np.array([rate for _, rate in pools])
        self.rates = rates / rates.sum()
        self.looks: list[Look] = []
        self.written: list[list[Written]] = []  # by pool and item
        self.asked: list[list[list[int]]] = []  # numbers of items by pool and image
        self.saliency: list[list[Tensor]] = []
        for pool in self.pools:
            asked: list[list[int]] = [[] for _ in pool.pixels]
            for number, item in enumerate(pool.items):
                asked[item.image].append(number)
            self.asked.append(asked)
            self.written.append([write(item, tokenizer) for item in pool.items])
            self.saliency.append([saliency(f.float()).half() for f in pool.features])

    def batch(self, rng: np.random.Generator, progress: float, tokens: int) -> list[Row]:
        """Draw about `tokens` tokens of rows. All keep equally many: padding to the longest would cost thrice as much.

        progress: share of the training done.
        """
        if progress < 1 / 3:
            k = int(rng.integers(24, 73))
        else:
            least = _LEAST_LOOKED if self.looks else _LEAST
            k = round(float(np.exp(rng.uniform(np.log(least), np.log(_MAX_VISUAL + 1)))))
        return [self.draw(rng, progress, k) for _ in range(max(4, tokens // (k + _TEXT)))]

    def draw(self, rng: np.random.Generator, progress: float, k: int) -> Row:
        """One question about one image, k of its tokens, and the answer; short ones first: they need the image most."""
        if self.looks and k <= LOOKED and rng.random() < _GUIDED:
            look = self.looks[int(rng.integers(len(self.looks)))]
            p, number = look.pool, look.item
            gumbel = torch.from_numpy(rng.gumbel(size=len(look.scores)).astype(np.float32))
            keep = look.tokens[(look.scores + gumbel).topk(min(k, len(look.scores))).indices].long().sort().values
        else:
            p = int(rng.choice(len(self.pools), p=self.rates))
            number = self._item(p, rng)
            i = self.pools[p].items[number].image
            keep = subset(self.saliency[p][i].float(), self.pools[p].geometry[i].shape, k, rng, progress)
        pool, written = self.pools[p], self.written[p][number]
        i = pool.items[number].image
        text = written.direct if rng.random() < (_DIRECT_FIRST if progress < 1 / 3 else _DIRECT) else written.reasoned
        visual = pool.features[i][keep].float()
        return Row(written.question, visual, encode_positions(pool.geometry[i].shape, keep), text, len(text) - 1)

    def _item(self, p: int, rng: np.random.Generator) -> int:
        """Number of an item of pool p: of a random image, or any."""
        pool = self.pools[p]
        if pool.by_question:
            return int(rng.integers(len(pool.items)))
        asked = self.asked[p][int(rng.integers(len(pool.pixels)))]
        return asked[int(rng.integers(len(asked)))]


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


def answer_loss(language: NanoLanguage, rows: Sequence[Row]) -> Tensor:
    """Cross-entropy of reasoning and answers: scalar. The word that asks for one or the other is given, not learned."""
    batch = language.pad(rows)
    text = batch.text
    states = language.hidden(batch)[:, -text.shape[1] : -1]
    answered = (text == ANSWER).long().cumsum(1) - (text == ANSWER).long() > 0  # (B, T): after the word that begins it
    weight = (torch.where(answered, _ANSWER_WEIGHT, 1.0) * (text != PAD))[:, 1:]
    learned = weight > 0
    logits = language.lm.lm_head(states[learned])
    losses = functional.cross_entropy(logits.float(), text[:, 1:][learned], reduction="none")
    total: Tensor = (losses * weight[learned]).sum() / weight.sum()
    return total


def naming_loss(language: NanoLanguage, features: Tensor, odds: Tensor, names: Tensor) -> Tensor:
    """What the encoder takes a token for, in the language stream's own words: scalar.

    features: (n, C); odds: (n, kinds) the encoder's log-odds (from answers); names: (kinds,) first piece of each kind's
    name. A token that looks like a ring is to say "ring", as much as it looks like anything: reading it then is
    copying it. Without this the streams take several hundred steps to find each other's words.
    """
    target, weight = odds.softmax(-1), odds.amax(-1).sigmoid()
    said = language.lm.lm_head(language.lm.model.norm(language.project(features)))
    log_p = said.float().log_softmax(-1)[:, names]
    total: Tensor = -((target * log_p).sum(-1) * weight).sum() / weight.sum().clamp_min(1.0)
    return total
