"""Visual streams by name, and every case answered with each of them at each budget.

A case's mask is read for scoring (and for the oracle, which is the ceiling, not a method).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import InputError, QuestionError
from sparsight.imaging.grid import mask_share, token_coverage
from sparsight.model import PolicySelector
from sparsight.model.coverage import allowed
from sparsight.model.policy import FOVEA
from sparsight.model.protocols import Reader, Selector
from sparsight.model.rivals import RIVALS, rival_of
from sparsight.model.selectors import AllSelector, GridSelector, RandomSelector, ScoreSelector, tokens_at
from sparsight.rl.scoring import Ask, Posed, Result, answered, by_reading
from sparsight.types import Case, ImageVolume, Question, Selection, TokenGrid

SELECTORS = ("all", "random", "grid", "ours", "auto", "covered", "foveated", "saliency", "oracle", *RIVALS)
COVERAGE = 1 / 8
ONCE = {"all": 1.0, "auto": 0.0}  # asked once, under this budget: all tokens, and as many as the policy says

SelectorFor = Callable[[Case, TokenGrid], Selector]


def selectors_by_name(names: Sequence[str], reader: Reader, ours: Selector, *, seed: int = 0) -> dict[str, SelectorFor]:
    """Visual streams to compare. Raises InputError for an unknown name.

    random draws anew for each case (seed + position); the oracle sees the case's mask; auto is ours with the share of
    the tokens that its budget head chooses for the question; covered is ours with an eighth of its tokens merged from
    what it does not keep; foveated is ours on the slices that a first look chose.
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
    if "auto" in names:
        if not isinstance(ours, PolicySelector):
            raise InputError("auto without a policy", expected="a policy as ours", todo="leave auto out")
        auto = _Auto(ours, reader)
        makers["auto"] = lambda case, tokens: auto
    if "covered" in names:
        if not isinstance(ours, PolicySelector):
            raise InputError("covered without a policy", expected="a policy as ours", todo="leave it out")
        covered = PolicySelector(ours.policy, reader, f"{ours.id}, covered", coverage=COVERAGE)
        makers["covered"] = lambda case, tokens: covered
    if "foveated" in names:
        if not isinstance(ours, PolicySelector) or ours.policy.prior is None or not _has_first_look(reader):
            raise InputError(
                "foveated without a first look", expected="a reader and a policy that have one", todo="leave it out"
            )
        seen = ours
        makers["foveated"] = lambda case, tokens: _Foveated(seen, reader, case.volume)
    return {name: makers[name] if name in makers else _rival(name, reader) for name in names}


def fits(reader: Reader, question: Question) -> bool:
    """Whether a reader takes a question and each of its choices: none of them is too long for its prompt."""
    try:
        for choice in question.answers or ("-",):  # an empty one is none
            reader.check(question, choice)
    except QuestionError:
        return False
    return True


def evaluate(
    cases: Iterable[Case],
    reader: Reader,
    selectors: dict[str, SelectorFor],
    budgets: Sequence[float],
    *,
    ask: Ask = by_reading,
    on_case: Callable[[int], None] | None = None,
) -> list[Result]:
    """Answer every case with every selector at every budget; by default as the product would (reader.read, greedy).

    Neighbouring cases that share a volume are encoded once. `all` and `auto` are answered once (ONCE).
    """
    results: list[Result] = []
    done = 0
    for _, same in groupby(cases, key=lambda case: case.volume.sha256):
        group = list(same)
        grid = reader.encode(group[0].volume)
        results += answered(reader, [p for c in group for p in pose(c, grid, reader, selectors, budgets)], ask)
        done += len(group)
        if on_case:
            on_case(done)
    return results


def pose(
    case: Case, grid: TokenGrid, reader: Reader, selectors: dict[str, SelectorFor], budgets: Sequence[float]
) -> list[Posed]:
    """One question with what each selector keeps at each budget; those of ONCE once."""
    share = finding_share(case, grid)
    posed = []
    for name, make in selectors.items():
        selector = make(case, grid)
        at = (ONCE[name],) if name in ONCE else sorted(budgets, reverse=True)  # greedy ones remember the largest choice
        kept = {budget: selector.select(grid, case.question, tokens_at(budget, grid, reader)) for budget in at}
        posed += [posed_as(name, budget, case, grid, kept[budget], share) for budget in sorted(kept)]
    return posed


def posed_as(
    name: str,
    budget: float,
    case: Case,
    grid: TokenGrid,
    selection: Selection,
    share: NDArray[np.float32] | None = None,
) -> Posed:
    """A case asked about the tokens of `grid` that a stream kept."""
    return Posed(
        name, budget, case.id, case.group, case.label, grid, case.question, case.answer, selection, share=share
    )


def finding_share(case: Case, grid: TokenGrid) -> NDArray[np.float32] | None:
    """Part of the finding in each token, (N,); None without a mask."""
    return mask_share(grid, case.finding) if case.finding is not None and case.finding.any() else None


def _rival(name: str, reader: Reader) -> SelectorFor:
    of = rival_of(name, reader)
    return lambda case, tokens: of(case.volume)


class _Seeded:
    """A selector whose draw is fixed for one case."""

    def __init__(self, selector: Selector, seed: int) -> None:
        self.id, self._selector, self._seed = selector.id, selector, seed

    def select(self, grid: TokenGrid, question: Any, k: int, *, seed: int | None = None) -> Selection:
        return self._selector.select(grid, question, k, seed=self._seed if seed is None else seed)


class _Auto:
    """A policy that says itself how many tokens it keeps; the k it is given does not count."""

    def __init__(self, policy: PolicySelector, reader: Reader) -> None:
        self.id, self._policy, self._reader = f"{policy.id}, auto", policy, reader

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:  # noqa: ARG002 - the protocol has it
        share = self._policy.budget(grid, question)
        return self._policy.select(grid, question, tokens_at(share, grid, self._reader), seed=seed)


class _Foveated:
    """A policy on one slice in eight of a volume: those that it chooses by a first look at half the resolution.

    Harder than what the product does: it looks so at volumes of 128 slices or more, and does not keep answers in doubt.
    """

    def __init__(self, policy: PolicySelector, reader: Reader, volume: ImageVolume) -> None:
        self.id, self._policy, self._odds = f"{policy.id}, foveated", policy, reader.first_look(volume)

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        assert self._odds is not None  # selectors_by_name looked
        chosen = self._policy.slices(self._odds, grid, question, -(-grid.shape[0] // FOVEA))
        part = replace(grid, encoded=chosen)
        return self._policy.select(part, question, min(k, len(allowed(part, question))), seed=seed)


def _has_first_look(reader: Reader) -> bool:
    return reader.first_look(ImageVolume(np.zeros((1, 16, 16), np.float32), np.eye(4), "OT", (0.0, 1.0))) is not None


def _coverage(case: Case, grid: TokenGrid) -> Any:
    if case.finding is None:
        return np.zeros(grid.n, np.float32)
    return token_coverage(grid, case.finding)


def _case_seed(case: Case, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{case.id}".encode()).digest()[:7], "big")
