"""What readers say of the same cases: do they agree, who does not, and how much may one of them teach?

Pure functions of opinions. Contradictions are surfaced, not averaged: where readers differ, a strict majority is
learned from, or nothing. A reader who differs from the others' majority far more often than they do is named and left
out; one who only overturns more answers than the others is named alone, for that reader's cases may be the harder ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import fisher_exact, norm
from sklearn.metrics import cohen_kappa_score

_ENOUGH = 20  # corrections of the others together, below which one reader is not capped: a stranger's one is not half
_ALPHA = 0.01  # of naming a reader, Holm over readers (1979)
_SURE = 0.8  # confidence from which an overturned answer is a surprise


@dataclass(frozen=True)
class Opinion:
    """What one reader said about one case: a question about an image.

    answer: held for right, normalised; None where none was told. overturned: it was not the answer shown; confidence:
    of that answer.
    """

    key: str
    reader: str
    case: str
    answer: str | None
    overturned: bool
    confidence: float
    blinded: bool = False


@dataclass(frozen=True)
class Agreement:
    """Two readers on the n cases that both answered. kappa: Cohen 1960; None where both gave one answer only."""

    first: str
    second: str
    n: int
    agreed: float
    kappa: float | None


@dataclass(frozen=True)
class Contradiction:
    """A case that readers answered differently. answers: what was said, and by whom. settled: by a strict majority."""

    case: str
    answers: Mapping[str, tuple[str, ...]]
    settled: str | None


@dataclass(frozen=True)
class Conspicuous:
    """A reader to look at. left_out: nothing is learned from them. p: Holm-adjusted."""

    reader: str
    why: str
    p: float
    left_out: bool


def agreement(opinions: Sequence[Opinion]) -> list[Agreement]:
    """Of every two readers that share a case; most cases first."""
    said = _latest(opinions)
    found = []
    for a, b in combinations(sorted(said), 2):
        shared = sorted(said[a].keys() & said[b].keys())
        if not shared:
            continue
        first, second = ([said[reader][case] for case in shared] for reader in (a, b))
        same = float(np.mean([x == y for x, y in zip(first, second, strict=True)]))
        told = len({*first, *second}) > 1
        found.append(Agreement(a, b, len(shared), same, float(cohen_kappa_score(first, second)) if told else None))
    return sorted(found, key=lambda one: -one.n)


def contradictions(opinions: Sequence[Opinion]) -> list[Contradiction]:
    """Cases that readers answered differently; blinded readings are none of these."""
    by_case: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for reader, answers in _latest(o for o in opinions if not o.blinded).items():
        for case, answer in answers.items():
            by_case[case][answer].append(reader)
    return [
        Contradiction(case, {answer: tuple(sorted(who)) for answer, who in sorted(said.items())}, _majority(said))
        for case, said in sorted(by_case.items())
        if len(said) > 1
    ]


def conspicuous(opinions: Sequence[Opinion]) -> list[Conspicuous]:
    """Readers who differ from the others' majority, or overturn answers, far more often than the others."""
    against = _against_the_others(_latest(opinions))
    found = [_differs(reader, against) for reader in against if against[reader][1]]
    sighted = [o for o in opinions if not o.blinded]
    found += [_overturns(reader, sighted) for reader in sorted({o.reader for o in sighted})]
    named: dict[str, Conspicuous] = {}
    for left_out in (True, False):
        for one in _holm([f for f in found if f is not None and f.left_out == left_out]):
            named.setdefault(one.reader, one)
    return list(named.values())


def left_out(opinions: Sequence[Opinion]) -> dict[str, str]:
    """Keys of corrections that must not be learned from, and why."""
    out = {one.reader for one in conspicuous(opinions) if one.left_out}
    trusted = [o for o in opinions if o.reader not in out]
    why = {o.key: "of a reader who differs from the others" for o in opinions if o.reader in out}
    disputed = {c.case: c.settled for c in contradictions(trusted)}
    latest = _latest(o for o in trusted if not o.blinded)
    for o in trusted:
        if o.blinded or o.answer is None:
            continue
        if o.answer != latest[o.reader][o.case]:
            why[o.key] = "replaced by the reader's later answer"
        elif o.case in disputed and o.answer != disputed[o.case]:
            why[o.key] = "contradicted by other readers"
    return why


def caps(corrections: Mapping[str, int], share: float) -> dict[str, float]:
    """How much one correction of each reader counts, so that no reader holds more than `share` of all the weight.

    As far as the others leave room (of two readers, each may hold half), and once they have made 20 themselves.
    """
    counts = {reader: n for reader, n in corrections.items() if n}
    total = sum(counts.values())
    weights = dict.fromkeys(counts, 1.0)
    if len(counts) < 2:
        return weights
    share = max(share, 1 / len(counts))
    capped: set[str] = set()
    limit = share * total
    while over := {r for r, n in counts.items() if r not in capped and n > limit * (1 + 1e-9)}:
        capped |= over
        limit = share * sum(n for r, n in counts.items() if r not in capped) / (1 - share * len(capped))
    for reader in capped:
        if total - counts[reader] >= _ENOUGH:
            weights[reader] = limit / counts[reader]
    return weights


def _latest(opinions: Iterable[Opinion]) -> dict[str, dict[str, str]]:
    """Reader to case to answer; who said two things meant the later one."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for o in opinions:
        if o.answer is not None:
            said[o.reader][o.case] = o.answer
    return said


def _majority(said: Mapping[str, Sequence[str]]) -> str | None:
    counts = Counter({answer: len(who) for answer, who in said.items()})
    best, n = counts.most_common(1)[0]
    return best if 2 * n > counts.total() else None


def _against_the_others(said: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[int, int]]:
    """Of each reader: cases where the others have a strict majority of two or more that differs, and all such cases."""
    counted = {}
    for reader, answers in said.items():
        differs = shared = 0
        for case, answer in answers.items():
            others: dict[str, list[str]] = defaultdict(list)
            for other, theirs in said.items():
                if other != reader and case in theirs:
                    others[theirs[case]].append(other)
            settled = _majority(others) if sum(map(len, others.values())) > 1 else None
            shared += settled is not None
            differs += settled is not None and settled != answer
        counted[reader] = (differs, shared)
    return counted


def _differs(reader: str, against: Mapping[str, tuple[int, int]]) -> Conspicuous | None:
    differs, shared = against[reader]
    theirs, of = (sum(values) for values in zip(*(c for r, c in against.items() if r != reader), strict=True))
    p = float(fisher_exact([[differs, shared - differs], [theirs, of - theirs]], alternative="greater").pvalue)
    why = f"differs from the others' majority in {differs} of {shared} cases, they do in {theirs} of {of}"
    return Conspicuous(reader, why, p, True) if of else None


def _overturns(reader: str, opinions: Sequence[Opinion]) -> Conspicuous | None:
    """Overturned answers against what the others overturn at the same confidence (sum of binomials, normal tail)."""
    mine = [o for o in opinions if o.reader == reader]
    others = [o for o in opinions if o.reader != reader]
    if not mine or len(others) < _ENOUGH:
        return None
    rate = {}
    for sure in (True, False):
        alike = [o.overturned for o in others if (o.confidence >= _SURE) == sure]
        rate[sure] = (sum(alike) + 1) / (len(alike) + 2)  # Laplace
    expected = np.array([rate[o.confidence >= _SURE] for o in mine])
    overturned = sum(o.overturned for o in mine)
    z = (overturned - expected.sum()) / np.sqrt((expected * (1 - expected)).sum())
    why = f"overturns {overturned} of {len(mine)} answers, {expected.sum():.1f} are expected of the other readers"
    return Conspicuous(reader, why, float(norm.sf(z)), False)


def _holm(found: Sequence[Conspicuous]) -> list[Conspicuous]:
    named = []
    for rank, one in enumerate(sorted(found, key=lambda f: f.p)):
        p = min(1.0, one.p * (len(found) - rank))
        if p >= _ALPHA:
            break
        named.append(Conspicuous(one.reader, one.why, p, one.left_out))
    return named
