"""One part of one suite, measured in this process: every stream at every budget, evidence tests, some read in full."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsight.bench.first_look import Looked, look_at
from sparsight.bench.served import Served, may_be_denied, serve
from sparsight.bench.suites import MASKED, Drawn, Suite, cases_of, tested_at
from sparsight.bench.whole import read_whole
from sparsight.model import PolicySelector, Reader, load_policy, load_reader
from sparsight.model.nano.reader import NanoReader
from sparsight.rl.evaluate import SelectorFor, pose, posed_as, selectors_by_name
from sparsight.rl.evidence_tests import Outcome, run_tests
from sparsight.rl.scoring import Posed, Result, answered, by_reading
from sparsight.types import Case, Selection, TokenGrid

TESTED = ("ours", "saliency", "fastv", "random", "oracle")
READ = ("all", "ours")
BLIND = "no image"
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Other:
    """A further policy of the same reader. stage: "warm" before it was reinforced, "reinforced" after it."""

    name: str
    stage: str
    seed: str  # of its training
    weights: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Setup:
    """What every part is measured with. reader: as load_reader takes it. policy: weights of `ours` by name."""

    reader: str | Path
    policy: Mapping[str, NDArray[np.float32]]
    policy_id: str
    selectors: tuple[str, ...]
    data: Path | None
    seed: int
    others: tuple[Other, ...] = ()

    @property
    def reinforced(self) -> list[tuple[str, str]]:
        """Names of policies after and before reinforcement, of the same training seed: what it changed."""
        by_seed = {other.seed: other.name for other in self.others if other.stage == "warm"}
        after = (other for other in self.others if other.stage == "reinforced" and other.seed in by_seed)
        return [(other.name, by_seed[other.seed]) for other in after]


@dataclass(frozen=True)
class Task:
    """Part number `part` of a suite. Some of its questions, spread over its images, are also more than scored.

    tested: by changing image or tokens; curves: of these, traced; read: in full; whole: from every token, however many;
    served: of those that a no would answer wrongly, asked as the product asks.
    """

    suite: Suite
    part: int
    tested: int
    curves: int
    read: int
    whole: int = 0
    served: int = 0


@dataclass(frozen=True)
class Fact:
    """What a table needs to know of a case. area: share of one slice that the finding covers, where it is largest."""

    question: str
    kind: str
    answer: str
    source: str
    label: str
    group: str
    area: float | None
    anatomy: str = ""  # kind of background of a simulated case


@dataclass(eq=False)
class Part:
    """What was measured. read: answers of READ in full, and of open questions, which only reading can answer."""

    suite: str
    results: list[Result] = field(default_factory=list)
    tests: list[Outcome] = field(default_factory=list)
    read: list[Result] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    looked: list[Looked] = field(default_factory=list)
    facts: dict[str, Fact] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def measure_part(setup: Setup, task: Task) -> Part:
    """Draw, encode and ask the questions of a task."""
    reader, ours = loaded(setup)
    suite, part = task.suite, Part(task.suite.name)
    if suite.name == "sim_deep":  # asked as the product asks, and no more
        deep = [one.case for one in cases_of(suite, setup.data, setup.seed, task.part)]
        part.looked = list(look_at(reader, ours, deep))
        return part
    left_out = set() if suite.name in MASKED else {"oracle"}
    left_out |= set() if suite.name == "sim_long" else {"foveated"}  # an image is one slice
    names = [n for n in setup.selectors if n not in left_out]
    streams = selectors_by_name(names, reader, ours, seed=setup.seed) | _others(setup, reader)
    clock = _Clock(part.seconds)
    drawn = list(cases_of(suite, setup.data, setup.seed, task.part))
    part.facts = {one.case.id: _fact(one) for one in drawn}
    clock.lap("draw")
    closed: list[tuple[Case, TokenGrid]] = []
    for _, same in groupby((one.case for one in drawn), key=lambda case: case.volume.sha256):
        group = list(same)
        grid = reader.encode(group[0].volume)
        clock.lap("encode")
        asked = [case for case in group if _has_choices(case)]
        closed += [(case, grid) for case in asked]
        posed = [p for case in asked for p in pose(case, grid, reader, streams, suite.budgets)]
        clock.lap("select")
        posed += [_blind(case, grid) for case in asked]
        part.results += answered(reader, posed)
        clock.lap("answer")
        free = [case for case in group if not _has_choices(case)]
        part.read += _read_open(reader, streams, free, grid, tested_at(suite.name))
        clock.lap("read")
    tested = tested_streams(setup)
    _tests(part, task, reader, {name: streams[name] for name in tested if name in streams}, closed)
    clock.lap("evidence tests")
    if isinstance(reader, NanoReader):
        part.results += read_whole(reader, spread(task.whole, closed))
        clock.lap("every token")
    denied = spread(task.served, [(case, grid) for case, grid in closed if may_be_denied(case)])
    part.served = [serve(reader, ours, case, grid, tested_at(suite.name)) for case, grid in denied]
    clock.lap("as the product")
    for case, grid in spread(task.read, closed):
        part.read += answered(reader, _posed_to_read(case, grid, reader, streams, tested_at(suite.name)), by_reading)
    clock.lap("read")
    return part


@lru_cache(maxsize=1)
def loaded(setup: Setup) -> tuple[Reader, PolicySelector]:
    """Reader and policy of this process."""
    reader = load_reader(setup.reader)
    return reader, PolicySelector(load_policy(setup.policy), reader, setup.policy_id)


def tested_streams(setup: Setup) -> list[str]:
    """Names of the streams that the evidence tests are run on."""
    return list(dict.fromkeys((*TESTED, *(name for pair in setup.reinforced for name in pair))))


def spread(n: int, items: Sequence[_T]) -> list[_T]:
    """So many of them, evenly over their order (neighbours share an image); all where there are fewer."""
    at = np.linspace(0, len(items) - 1, min(n, len(items))).round()
    return [items[int(i)] for i in at]


def _others(setup: Setup, reader: Reader) -> dict[str, SelectorFor]:
    def served(arrays: Mapping[str, NDArray[np.float32]], name: str) -> SelectorFor:
        selector = PolicySelector(load_policy(arrays), reader, name)
        return lambda case, tokens: selector

    return {other.name: served(other.weights, other.name) for other in setup.others}


def _tests(
    part: Part, task: Task, reader: Reader, streams: dict[str, SelectorFor], closed: Sequence[tuple[Case, TokenGrid]]
) -> None:
    """Every stream on some cases; the curves on fewer of them, for they cost most."""
    tested = spread(task.tested, closed)
    for chosen, curves in ((tested[: task.curves], True), (tested[task.curves :], False)):
        for name in streams if chosen else ():
            part.tests += run_tests(reader, chosen, name, streams[name], tested_at(task.suite.name), curves=curves)


def _posed_to_read(
    case: Case, grid: TokenGrid, reader: Reader, streams: dict[str, SelectorFor], budget: float
) -> list[Posed]:
    chosen = {name: streams[name] for name in READ if name in streams}
    return pose(case, grid, reader, chosen, [budget])


def _read_open(
    reader: Reader, streams: dict[str, SelectorFor], cases: Sequence[Case], grid: TokenGrid, budget: float
) -> list[Result]:
    """Open questions, with all tokens, with ours and without any; their label says that they are open."""
    posed = []
    for case in cases:
        posed += [*_posed_to_read(case, grid, reader, streams, budget), _blind(case, grid)]
    return [replace(r, label="open") for r in answered(reader, posed, by_reading)]


def _blind(case: Case, grid: TokenGrid) -> Posed:
    """The question alone."""
    none = Selection(np.zeros(0, np.int64), np.zeros(grid.n, np.float32), 0.0, "greedy", BLIND)
    return posed_as(BLIND, 0.0, case, grid, none)


def _has_choices(case: Case) -> bool:
    """Whether it can be answered by choosing: its right answer is among its choices."""
    return case.answer.strip().lower() in (choice.lower() for choice in case.question.answers)


def _fact(drawn: Drawn) -> Fact:
    case, area = drawn.case, None
    if case.finding is not None and case.finding.any():
        area = float(case.finding.reshape(len(case.finding), -1).mean(1).max())
    return Fact(
        case.question.text.strip().lower(),
        case.question.kind,
        case.answer,
        drawn.source,
        case.label,
        case.group,
        area,
        drawn.anatomy,
    )


class _Clock:
    """Adds the seconds since the last lap to a stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now
