"""What the policy would keep: the language stream then learns to answer from that, as it will have to.

Subsets by saliency hold any finding, those of the policy the one that was asked about; and they are what is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import TokenPolicy
from sparsight.recipe.language_stage import LOOKED, Look
from sparsight.recipe.pool import Pool

_TOKENS = 40_000  # scored in one go


@torch.no_grad()
def looks_of(
    policy: TokenPolicy, reader: NanoReader, pools: Sequence[tuple[Pool, float]], n: int, seed: int
) -> list[Look]:
    """Draw n questions, from each pool at its rate, with the policy's best tokens for each. Pools must be encoded."""
    rng = np.random.default_rng([seed, 6])
    rates = np.array([rate for _, rate in pools])
    looks: list[Look] = []
    questions: dict[str, Tensor] = {}
    for p, count in enumerate(rng.multinomial(n, rates / rates.sum())):
        pool = pools[p][0]
        by_shape: dict[tuple[int, int, int], list[int]] = {}
        for index in rng.integers(len(pool.items), size=count):
            by_shape.setdefault(pool.geometry[pool.items[index].image].shape, []).append(int(index))
        for shape, members in by_shape.items():
            at_once = max(1, _TOKENS // int(np.prod(shape)))
            for start in range(0, len(members), at_once):
                numbers = members[start : start + at_once]
                items = [pool.items[number] for number in numbers]
                for item in items:
                    if item.question.text not in questions:
                        questions[item.question.text] = reader.embed(item.question)
                features = torch.stack([pool.features[item.image] for item in items]).float()
                scores = policy(features, shape, torch.stack([questions[item.question.text] for item in items]))
                best = scores.topk(min(LOOKED, scores.shape[1]), dim=1)
                looks += [
                    Look(p, number, tokens, values.half())
                    for number, tokens, values in zip(numbers, best.indices.int(), best.values, strict=True)
                ]
    return looks
