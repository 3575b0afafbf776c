"""How sure a reader may say it is, fitted on validation questions that nothing was trained on.

`calibrate` is the last stage of nano's training; `calibrate_model` is for a model of one's own (`sparsight calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from sparsight.errors import DataError
from sparsight.model.calibration import platt
from sparsight.model.hf.reader import HFReader
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import Calibration, NanoSpec
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.selectors import tokens_at
from sparsight.recipe.pool import Pool
from sparsight.rl.answers import is_right
from sparsight.rl.confidence import calibration_error, fit_platt
from sparsight.rl.statistics import bootstrap_mean
from sparsight.types import Case

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
        p.append(answer.confidence)
        right.append(answer.text.lower() == item.answer.strip().lower())
        tell("calibrate", done, len(asked))
    if len(set(right)) < 2:  # nothing to fit: all right or all wrong
        return replace(reader.spec, calibration=fitted)
    slope, offset = fit_platt(p, right)
    return replace(reader.spec, calibration=replace(fitted, slope=slope, offset=offset))


@dataclass(frozen=True)
class Calibrated:
    """Slope and offset fitted on half of the groups, and what they do on the others.

    fitted_on, measured_on: questions. ece_before, ece_after: expected calibration error of the probability as the model
    gives it, and of the confidence; brier_gain: mean squared error before less after, with its interval.
    """

    slope: float
    offset: float
    fitted_on: int
    measured_on: int
    accuracy: float
    ece_before: float
    ece_after: float
    brier_gain: float
    brier_gain_ci: tuple[float, float]


def calibrate_model(
    reader: HFReader,
    selector: PolicySelector,
    cases: Sequence[Case],
    share: float,
    *,
    seed: int = 0,
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Calibrated:
    """Fit a model's confidence on questions read as when serving, without re-check. Nothing is changed on the reader.

    Groups (patients, or images) are halved with the seed: one half fits, the other measures. Raises DataError for fewer
    than two groups, or where all answers to fit on are right, or all wrong.
    """
    p, right, of = list[float](), list[bool](), list[str]()
    before, reader.calibration = reader.calibration, (1.0, 0.0)
    try:
        for _, same in groupby(cases, key=lambda case: case.volume.sha256):
            shared = list(same)
            grid = reader.encode(shared[0].volume)
            for case in shared:
                kept = selector.select(grid, case.question, tokens_at(share, grid, reader))
                answer = reader.read(case.question, grid, kept)
                p.append(answer.confidence)
                right.append(is_right(answer.text, case.answer, case.question.choices))
                of.append(case.group)
                tell("calibrate", len(p), len(cases))
    finally:
        reader.calibration = before
    raw, correct = np.array(p), np.array(right)
    names, group = np.unique(of, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"questions of {len(names)} group", expected="two or more", todo="add questions of others")
    fit = np.isin(group, np.random.default_rng(seed).permutation(len(names))[: -(-len(names) // 2)])
    slope, offset = fit_platt(raw[fit], correct[fit])
    raw, correct = raw[~fit], correct[~fit].astype(np.float64)
    after = np.array([platt(float(one), slope, offset) for one in raw])
    groups = np.unique(group[~fit], return_inverse=True)[1].astype(np.int64)
    gain = bootstrap_mean((raw - correct) ** 2 - (after - correct) ** 2, groups=groups, seed=seed)
    ece_before, ece_after = calibration_error(raw, correct), calibration_error(after, correct)
    assert ece_before is not None  # there are questions
    assert ece_after is not None
    counts, interval = (int(fit.sum()), len(raw)), (gain.low, gain.high)
    return Calibrated(slope, offset, *counts, float(correct.mean()), ece_before, ece_after, gain.mean, interval)
