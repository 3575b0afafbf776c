"""The last stage: how sure the reader may say it is, fitted on validation questions that nothing was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.linear_model import LogisticRegression

from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import Calibration, NanoSpec
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.selectors import tokens_at
from sparsight.recipe.pool import Pool

_BUDGET = 0.1
_SIM, _REAL = 300, 200  # questions read in full
_ABSTAIN = 0.55  # less sure than this: "not sure"


def calibrate(
    reader: NanoReader, policy: TokenPolicy, sim: Pool, real: Pool, tell: Callable[[str, int, int], None]
) -> NanoSpec:
    """The reader's spec with Platt's slope and offset over logit(p): sim and real questions, read as when serving.

    real: of the groups that sources.calibrates names.
    """
    reader.spec = replace(reader.spec, calibration=Calibration(abstain_below=_ABSTAIN, unknown=1.0))  # p comes out raw
    fitted = Calibration(abstain_below=_ABSTAIN, apart=True)
    selector = PolicySelector(policy, reader)
    p, right = [], []
    rng = np.random.default_rng(0)
    asked = [(pool, i) for pool, n in ((sim, _SIM), (real, _REAL)) for i in rng.permutation(len(pool.items))[:n]]
    for done, (pool, i) in enumerate(asked, start=1):
        item = pool.items[i]
        grid = pool.grid(item.image, reader.id)
        k = tokens_at(_BUDGET, grid, reader)
        answer = reader.read(item.question, grid, selector.select(grid, item.question, k))
        p.append(min(max(answer.confidence, 1e-6), 1 - 1e-6))
        right.append(answer.text.lower() == item.answer.strip().lower())
        tell("calibrate", done, len(asked))
    logits = np.log(np.array(p) / (1 - np.array(p)))[:, None]
    if len(set(right)) < 2:  # nothing to fit: all right or all wrong
        return replace(reader.spec, calibration=fitted)
    model = LogisticRegression(C=1.0).fit(logits, right)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    return replace(reader.spec, calibration=replace(fitted, slope=max(slope, 0.05), offset=offset))
