"""Does the answer rest on what was kept? Tests in tokens and in pixels, each one change to a question as it was asked.

    kept                the tokens that the stream kept: what the others are compared with
    pixel sufficiency   all pixels but those of the kept patches are blanked, the image encoded again: the same tokens
    pixel necessity     the pixels of the kept patches are blanked, the image encoded again: all tokens
    complement          all tokens but the kept ones, as many as a prompt holds, best first
    shuffled image      what the stream keeps of another study, asked the same
    blank image         what the stream keeps of an image of one grey
    no image            the question alone
    insertion, deletion the best share of the tokens by the stream's scores, and all but them (Petsiuk et al. 2018)

A blanked pixel takes the local mean of what lies outside the kept patches: no edge where the image was even, and none
of the evidence leaks into the fill.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sparsight.imaging.grid import tokens_to_voxels
from sparsight.model.protocols import Reader
from sparsight.model.selectors import tokens_at
from sparsight.rl.evaluate import SelectorFor, posed_as
from sparsight.rl.scoring import Posed, Result, answered
from sparsight.rl.statistics import Interval, bootstrap_mean, bootstrap_ratio
from sparsight.types import Case, ImageVolume, Selection, TokenGrid

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)  # of the curves; their ends are `no image` and all tokens
_FILL_TOKENS = 3  # standard deviation of the fill's neighbourhood: wider than a finding, narrower than anatomy


@dataclass(frozen=True)
class Outcome:
    """One case under one test."""

    test: str
    result: Result


def only_kept(volume: ImageVolume, grid: TokenGrid, keep: NDArray[np.int64]) -> ImageVolume:
    """The volume with every pixel blanked that lies outside the kept patches."""
    kept = _kept_voxels(volume, grid, keep)
    return replace(volume, voxels=np.where(kept, volume.voxels, _surroundings(volume, grid, kept)))


def without_kept(volume: ImageVolume, grid: TokenGrid, keep: NDArray[np.int64]) -> ImageVolume:
    """The volume with the pixels of the kept patches blanked."""
    kept = _kept_voxels(volume, grid, keep)
    return replace(volume, voxels=np.where(kept, _surroundings(volume, grid, kept), volume.voxels))


def insertion(selection: Selection, share: float) -> Selection:
    """Keep the best share of the tokens; 0 keeps none."""
    ranked = _ranked(selection)
    return _kept(selection, ranked[: round(share * len(ranked))])


def deletion(selection: Selection, share: float, most: int) -> Selection:
    """Keep all but the best share of the tokens, the best of them where that is more than `most`."""
    ranked = _ranked(selection)
    return _kept(selection, ranked[round(share * len(ranked)) :][:most])


def complement(selection: Selection, most: int) -> Selection:
    """Keep what was not kept, the best of it where that is more than `most`."""
    ranked = _ranked(selection)
    return _kept(selection, ranked[~np.isin(ranked, selection.keep)][:most])


def run_tests(
    reader: Reader,
    cases: Sequence[tuple[Case, TokenGrid]],
    name: str,
    make: SelectorFor,
    budget: float,
    *,
    curves: bool,
) -> list[Outcome]:
    """All tests of one stream on cases of at least two studies.

    The other study of `shuffled image` is the next one with another image, round the circle. curves: insertion and
    deletion too (they cost as much as the rest).
    """
    named: list[tuple[str, Posed]] = []
    for i, (case, grid) in enumerate(cases):
        most = reader.max_tokens
        selection = make(case, grid).select(grid, case.question, tokens_at(budget, grid, reader))
        changed: dict[str, tuple[TokenGrid, Selection]] = {
            "kept": (grid, selection),
            "pixel sufficiency": (reader.encode(only_kept(case.volume, grid, selection.keep)), selection),
            "pixel necessity": (
                reader.encode(without_kept(case.volume, grid, selection.keep)),
                deletion(selection, 0, most),
            ),
            "complement": (grid, complement(selection, most)),
            "no image": (grid, insertion(selection, 0)),
        }
        if (another := _another(cases, i)) is not None:
            changed["shuffled image"] = _instead(case, *another, make, budget, reader)
        blank = without_kept(case.volume, grid, np.arange(grid.n))
        changed["blank image"] = _instead(case, blank, reader.encode(blank), make, budget, reader)
        if curves:
            changed["all"] = (grid, deletion(selection, 0, most))
            changed |= {f"insertion {s:g}": (grid, insertion(selection, s)) for s in SHARES}
            changed |= {f"deletion {s:g}": (grid, deletion(selection, s, most)) for s in SHARES}
        named += [(test, posed_as(name, budget, case, seen, kept)) for test, (seen, kept) in changed.items()]
    results = answered(reader, [posed for _, posed in named])
    return [Outcome(test, result) for (test, _), result in zip(named, results, strict=True)]


def summarise_tests(outcomes: Sequence[Outcome], findings: set[str], *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per stream and test, for all questions, those that rest on a finding, and those one could deny.

    findings: ids of the cases whose answer rests on a finding. questions: "all", "evidence" (those), "positive" (those
    that a no, none or 0 would answer wrongly). ratio: accuracy over that of `kept`, paired; changed: share of questions
    answered differently than with `kept`; chance: of guessing among the choices.
    """
    kept = {(o.result.selector, o.result.case): o.result for o in outcomes if o.test == "kept"}
    by_key: dict[tuple[str, str], list[Result]] = {}
    for o in outcomes:
        by_key.setdefault((o.result.selector, o.test), []).append(o.result)
    rows = []
    for (selector, test), all_results in by_key.items():
        kinds = {
            "all": all_results,
            "evidence": [r for r in all_results if r.case in findings],
            "positive": [r for r in all_results if r.missed is not None],
        }
        for kind, own in kinds.items():
            if own:
                base = [kept[selector, r.case] for r in own]
                rows.append({"selector": selector, "test": test, "questions": kind} | _row(own, base, seed))
    return rows


def sensitivity(outcomes: Sequence[Outcome], ours: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """How much each stream's answers depend on the image: the share that changes when another study is shown.

    changed_ci: over groups; ours_minus: that of `ours` minus it on the same questions, paired, None for itself.
    """
    said = {(o.test, o.result.selector, o.result.case): o.result.said for o in outcomes}
    changed: dict[str, dict[str, float]] = {}
    groups: dict[str, str] = {}
    for o in outcomes:
        if o.test == "shuffled image":
            r = o.result
            changed.setdefault(r.selector, {})[r.case] = float(r.said != said["kept", r.selector, r.case])
            groups[r.case] = r.group
    rows = []
    for selector, own in changed.items():
        share = _over_groups(own, groups, seed)
        row = {"selector": selector, "n": len(own), "changed": share.mean, "changed_ci": [share.low, share.high]}
        both = {case: changed[ours][case] - x for case, x in own.items() if case in changed.get(ours, {})}
        gap = _over_groups(both, groups, seed) if both and selector != ours else None
        rows.append(row | {"ours_minus": gap and gap.mean, "ours_minus_ci": gap and [gap.low, gap.high]})
    return rows


def curve(rows: Iterable[dict[str, Any]], selector: str, name: str) -> list[dict[str, Any]]:
    """Points (share of the tokens, accuracy, p_right) of insertion or deletion; empty where a test was not run."""
    own = {row["test"]: row for row in rows if row["selector"] == selector and row["questions"] == "evidence"}
    first, last = ("no image", "all") if name == "insertion" else ("all", "no image")
    ends = {0.0: first, **{s: f"{name} {s:g}" for s in SHARES}, 1.0: last}
    if any(test not in own for test in ends.values()):
        return []
    return [
        {"share": share, **{key: own[test][key] for key in ("n", "accuracy", "accuracy_ci", "p_right")}}
        for share, test in ends.items()
    ]


def area(points: Sequence[dict[str, Any]], value: str = "p_right") -> float | None:
    """Area under a curve's points by trapezoids: high for insertion, low for deletion where the ranking is right."""
    if not points:
        return None
    return float(np.trapezoid([p[value] for p in points], [p["share"] for p in points]))


def _row(own: Sequence[Result], base: Sequence[Result], seed: int) -> dict[str, Any]:
    groups = np.unique([r.group for r in own], return_inverse=True)[1].astype(np.int64)
    right, was = ([float(r.correct) for r in side] for side in (own, base))
    accuracy = bootstrap_mean(right, groups=groups, seed=seed)
    ratio = bootstrap_ratio(right, was, groups=groups, seed=seed)
    return {
        "n": len(own),
        "accuracy": accuracy.mean,
        "accuracy_ci": [accuracy.low, accuracy.high],
        "ratio": ratio.mean,
        "ratio_ci": [ratio.low, ratio.high],
        "p_right": float(np.mean([r.p_right or 0.0 for r in own])),
        "changed": float(np.mean([a.said != b.said for a, b in zip(own, base, strict=True)])),
        "chance": float(np.mean([r.chance or 0.0 for r in own])),
    }


def _over_groups(by_case: dict[str, float], groups: dict[str, str], seed: int) -> Interval:
    numbers = np.unique([groups[case] for case in by_case], return_inverse=True)[1].astype(np.int64)
    return bootstrap_mean(list(by_case.values()), groups=numbers, seed=seed)


def _instead(
    case: Case, volume: ImageVolume, grid: TokenGrid, make: SelectorFor, budget: float, reader: Reader
) -> tuple[TokenGrid, Selection]:
    """What the stream keeps for the same question of another volume."""
    stream = make(replace(case, volume=volume, finding=None), grid)
    return grid, stream.select(grid, case.question, tokens_at(budget, grid, reader))


def _another(cases: Sequence[tuple[Case, TokenGrid]], i: int) -> tuple[ImageVolume, TokenGrid] | None:
    """The next study that is not that of case i; None where all are of one study."""
    for step in range(1, len(cases)):
        case, grid = cases[(i + step) % len(cases)]
        if grid is not cases[i][1]:
            return case.volume, grid
    return None


def _ranked(selection: Selection) -> NDArray[np.int64]:
    """Tokens by falling score, equal ones by index."""
    return np.argsort(-selection.scores, kind="stable")


def _kept(selection: Selection, tokens: NDArray[np.int64]) -> Selection:
    return replace(selection, keep=np.sort(tokens).astype(np.int64), log_prob=0.0, context=None)


def _kept_voxels(volume: ImageVolume, grid: TokenGrid, keep: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(D, H, W): voxels whose centre a kept token holds."""
    kept = np.zeros(grid.n, np.bool_)
    kept[keep] = True
    return tokens_to_voxels(grid, kept, volume.shape)


def _surroundings(volume: ImageVolume, grid: TokenGrid, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Local mean, slice by slice, of the voxels that are not kept: (D, H, W); the volume's mean where none is near."""
    sigma = (0.0, _FILL_TOKENS * grid.patch[1], _FILL_TOKENS * grid.patch[0])
    outside = (~kept).astype(np.float32)
    near = ndimage.gaussian_filter(outside, sigma)
    mean = ndimage.gaussian_filter(volume.voxels * outside, sigma)
    enough = near > 1e-3
    return np.asarray(np.where(enough, mean / np.maximum(near, 1e-3), volume.voxels.mean()), np.float32)
