"""Where the policy begins: it learns to see before the answer is known what is plain once it is.

A question with its answer says which finding is meant and where ("where is the ring?" "upper left"); the encoder, which
learned from such answers, says which tokens look like it there. The policy, which is given the question only, is
fitted to that. So no mask, no box and no rationale is read. Reinforcement alone, from what stands out whatever is
asked, does not learn in some hundred steps which finding is meant (docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsight.errors import TrainingError
from sparsight.model.policy import TokenPolicy
from sparsight.recipe.supervision import read_answer, region_masks
from sparsight.rl.trainer import Example
from sparsight.types import Question

_TOKENS = 36_864  # in a step: 64 images
_LR = 3e-3


class Seeing(Protocol):
    """A reader whose encoder says which tokens look like findings."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Their names."""
        ...

    def odds(self, features: Tensor) -> Tensor:
        """Log-odds of each finding by token, in nats: (..., C) to (..., findings)."""
        ...

    def embed(self, question: Question) -> Tensor:
        """As Reader.embed."""
        ...


def warm_start(policy: TokenPolicy, reader: Seeing, examples: Sequence[Example], *, steps: int, seed: int) -> None:
    """Fit `policy` in place to what answers and encoder say together: Adam, warm-up, cosine down to a twentieth.

    Each step takes questions about studies of one shape; only examples with an answer are used. Raises TrainingError
    for NaN: the policy then has its last good weights.
    """
    answered = [e for e in examples if e.answer is not None]
    by_shape: dict[tuple[int, int, int], list[Example]] = {}
    for example in answered:
        by_shape.setdefault(example.grid.shape, []).append(example)
    questions = {e.question.text: reader.embed(e.question) for e in {e.question.text: e for e in answered}.values()}
    parts = {shape: region_masks(shape) for shape in by_shape}
    optimizer = torch.optim.Adam(policy.parameters(), lr=_LR)
    policy.train()
    for step in range(steps):
        rng = np.random.default_rng([seed, 9, step])
        for group in optimizer.param_groups:
            group["lr"] = _LR * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        shape = answered[int(rng.integers(len(answered)))].grid.shape
        same = by_shape[shape]
        batch = [same[i] for i in rng.integers(len(same), size=max(1, _TOKENS // int(np.prod(shape))))]
        features = torch.stack([e.grid.features for e in batch])
        with torch.no_grad():
            odds, kinds = reader.odds(features), reader.findings
            target = torch.stack(
                [
                    tokens_meant(e.question, e.answer or "", z, parts[shape], kinds)
                    for e, z in zip(batch, odds, strict=True)
                ]
            )
        scores = policy(features, shape, torch.stack([questions[e.question.text] for e in batch]))
        loss = -(target * scores.log_softmax(-1)).sum(-1).mean()
        if not torch.isfinite(loss):  # before it reaches the weights
            raise TrainingError(
                f"a warm start whose loss is not a number at step {step}",
                expected="finite numbers",
                todo="another seed",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    policy.eval()


def tokens_meant(question: Question, answer: str, odds: Tensor, parts: Tensor, findings: Sequence[str]) -> Tensor:
    """Which tokens the answer rests on, as encoder and answer say together: (N,) weights, sum 1.

    odds: (N, findings) the encoder's log-odds; parts: (R, N) bool, supervision.region_masks. Of the findings that are
    meant each token counts as much as it is likely to show one; where none is likely, the likeliest count. A question
    that is not understood means any finding, anywhere.
    """
    everywhere = torch.ones_like(parts[0])
    weak = read_answer(question, answer, findings)
    if weak is None:
        named, where = odds.logsumexp(-1), everywhere
    elif weak.form == "which_finding":
        named, where = odds[:, weak.target], parts[weak.region]
    elif weak.form == "which_region":
        named, where = odds[:, weak.findings[0]], parts[weak.options[weak.target]]
    else:
        named, where = odds[:, list(weak.findings)].logsumexp(-1), parts[weak.region]
    if not where.any():  # a third of the slices, of a study that has one
        where = everywhere
    return functional.logsigmoid(named).masked_fill(~where, -torch.inf).softmax(-1)
