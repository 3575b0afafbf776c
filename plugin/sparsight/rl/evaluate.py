"""Score visual streams on cases with known answers: accuracy at each budget, and whether the evidence is the finding.

Masks are read here and only here, for scoring (and for the oracle, which is the ceiling, not a method).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from sparsight.errors import InputError
from sparsight.imaging.grid import mask_share, token_coverage
from sparsight.model.protocols import Reader, Selector
from sparsight.model.selectors import AllSelector, GridSelector, RandomSelector, ScoreSelector
from sparsight.rl.answers import normalise
from sparsight.rl.statistics import bootstrap_mean
from sparsight.types import Case, Selection, TokenGrid

SELECTORS = ("all", "random", "grid", "ours", "saliency", "oracle")

SelectorFor = Callable[[Case, TokenGrid], Selector]


@dataclass(frozen=True)
class Result:
    """One case answered at one budget. recall and pointing: None where the case has no mask."""

    selector: str
    budget: float
    case: str
    group: str
    label: str
    correct: bool
    confidence: float
    kept: int
    recall: float | None  # share of the finding's voxels in kept tokens
    pointing: bool | None  # does the token with the highest score touch the finding


def selectors_by_name(names: Sequence[str], reader: Reader, ours: Selector, *, seed: int = 0) -> dict[str, SelectorFor]:
    """Visual streams to compare. Raises InputError for an unknown name.

    random draws anew for each case (seed + position); the oracle sees the case's mask.
    """
    unknown = [name for name in names if name not in SELECTORS]
    if unknown or not names:
        raise InputError(
            f"selectors {', '.join(unknown) or '(none)'}", expected=", ".join(SELECTORS), todo="choose from these"
        )
    whole, grid = AllSelector(reader.max_tokens), GridSelector()
    makers: dict[str, SelectorFor] = {
        "all": lambda case, tokens: whole,
        "random": lambda case, tokens: _Seeded(RandomSelector(), _case_seed(case, seed)),
        "grid": lambda case, tokens: grid,
        "ours": lambda case, tokens: ours,
        "saliency": lambda case, tokens: ScoreSelector(reader.saliency(tokens).numpy(), "saliency"),
        "oracle": lambda case, tokens: ScoreSelector(_coverage(case, tokens), "oracle"),
    }
    return {name: makers[name] for name in names}


def evaluate(
    cases: Iterable[Case],
    reader: Reader,
    selectors: dict[str, SelectorFor],
    budgets: Sequence[float],
    *,
    on_case: Callable[[int], None] | None = None,
) -> list[Result]:
    """Answer every case with every selector at every budget, as the product would (reader.read, greedy).

    Neighbouring cases that share a volume are encoded once. `all` is answered once, at budget 1.
    """
    results: list[Result] = []
    done = 0
    for _, same in groupby(cases, key=lambda case: case.volume.sha256):
        group = list(same)
        grid = reader.encode(group[0].volume)
        for case in group:
            results += [
                _answer(case, grid, reader, name, make(case, grid), budget)
                for name, make in selectors.items()
                for budget in ((1.0,) if name == "all" else budgets)
            ]
            done += 1
            if on_case:
                on_case(done)
    return results


def summarise(results: Sequence[Result], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per selector and budget, in order of appearance; intervals resample patients (groups)."""
    rows = []
    for key in dict.fromkeys((r.selector, r.budget) for r in results):
        own = [r for r in results if (r.selector, r.budget) == key]
        groups = np.unique([r.group for r in own], return_inverse=True)[1]
        accuracy = bootstrap_mean([r.correct for r in own], groups=groups, seed=seed)
        rows.append(
            {
                "selector": key[0],
                "budget": key[1],
                "n": len(own),
                "accuracy": accuracy.mean,
                "accuracy_ci": [accuracy.low, accuracy.high],
                "evidence_recall": _mean([r.recall for r in own]),
                "pointing_hit": _mean([r.pointing for r in own]),
                "kept": _mean([float(r.kept) for r in own]),
            }
        )
    return rows


def compare(results: Sequence[Result], first: str, second: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """Paired differences in accuracy, first - second, at each budget both have (`all` counts at every budget)."""
    rows = []
    by_key = {(r.selector, r.budget, r.case): r for r in results}
    for budget in dict.fromkeys(r.budget for r in results if r.selector == first):
        pairs = [
            (mine, by_key.get((second, budget, mine.case)) or by_key.get((second, 1.0, mine.case)))
            for mine in results
            if (mine.selector, mine.budget) == (first, budget)
        ]
        both = [(a, b) for a, b in pairs if b is not None]
        if not both:
            continue
        groups = np.unique([a.group for a, _ in both], return_inverse=True)[1]
        gain = bootstrap_mean([float(a.correct) - float(b.correct) for a, b in both], groups=groups, seed=seed)
        rows.append(
            {
                "first": first,
                "second": second,
                "budget": budget,
                "n": gain.n,
                "difference": gain.mean,
                "difference_ci": [gain.low, gain.high],
            }
        )
    return rows


class _Seeded:
    """A selector whose draw is fixed for one case."""

    def __init__(self, selector: Selector, seed: int) -> None:
        self.id, self._selector, self._seed = selector.id, selector, seed

    def select(self, grid: TokenGrid, question: Any, k: int, *, seed: int | None = None) -> Selection:
        return self._selector.select(grid, question, k, seed=self._seed if seed is None else seed)


def _answer(case: Case, grid: TokenGrid, reader: Reader, name: str, selector: Selector, budget: float) -> Result:
    k = max(1, min(round(budget * grid.n), grid.n, reader.max_tokens))
    selection = selector.select(grid, case.question, k)
    answer = reader.read(case.question, grid, selection)
    recall = pointing = None
    if case.finding is not None and case.finding.any():
        recall = float(mask_share(grid, case.finding)[selection.keep].sum())
        best = int(selection.keep[np.argmax(selection.scores[selection.keep])])
        pointing = bool(token_coverage(grid, case.finding)[best] > 0)
    right = normalise(answer.text) == normalise(case.answer)
    return Result(
        name, budget, case.id, case.group, case.label, right, answer.confidence, len(selection.keep), recall, pointing
    )


def _coverage(case: Case, grid: TokenGrid) -> Any:
    if case.finding is None:
        return np.zeros(grid.n, np.float32)
    return token_coverage(grid, case.finding)


def _case_seed(case: Case, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{case.id}".encode()).digest()[:7], "big")


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None
