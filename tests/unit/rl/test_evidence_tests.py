"""Whether an answer rests on its evidence, on a reader that sees one token: blanked, inserted, deleted, exchanged."""

from typing import Any

import numpy as np

from one_token import SeesOneToken, cases
from sparsight.imaging.grid import token_coverage
from sparsight.model import GridSelector, ScoreSelector
from sparsight.rl.evaluate import selectors_by_name
from sparsight.rl.evidence_tests import (
    Outcome,
    area,
    complement,
    curve,
    deletion,
    insertion,
    only_kept,
    run_tests,
    sensitivity,
    summarise_tests,
    without_kept,
)
from sparsight.types import Case, Question, Selection, TokenGrid


def test_blanking_spares_what_it_should_and_leaks_nothing(reader: SeesOneToken) -> None:
    case = cases(2)[1]
    assert case.finding is not None
    grid = reader.encode(case.volume)
    keep = np.flatnonzero(token_coverage(grid, case.finding))
    only, without = only_kept(case.volume, grid, keep), without_kept(case.volume, grid, keep)
    assert np.array_equal(only.voxels[case.finding], case.volume.voxels[case.finding])
    assert np.array_equal(without.voxels[~case.finding], case.volume.voxels[~case.finding])
    for blank in (only.voxels[~case.finding], without.voxels[case.finding]):
        assert np.abs(blank).max() < 1  # of 255: what surrounds the bright patch, not the patch
    everything = np.arange(grid.n)
    assert np.ptp(without_kept(case.volume, grid, everything).voxels) == 0
    assert np.array_equal(only_kept(case.volume, grid, everything).voxels, case.volume.voxels)


def test_insertion_deletion_and_complement_part_the_tokens() -> None:
    scores = np.random.default_rng(0).permutation(50).astype(np.float32)
    best = np.sort(np.argsort(-scores)[:5])
    selection = Selection(best, scores, 0.0, "greedy", "s")
    assert np.array_equal(insertion(selection, 0.1).keep, best)
    assert len(insertion(selection, 0).keep) == 0
    for share in (0.0, 0.1, 0.5, 1.0):
        both = [insertion(selection, share).keep, deletion(selection, share, 50).keep]
        assert np.array_equal(np.sort(np.concatenate(both)), np.arange(50))
    assert np.array_equal(complement(selection, 50).keep, deletion(selection, 0.1, 50).keep)
    assert np.array_equal(complement(selection, 3).keep, np.sort(np.argsort(-scores)[5:8]))  # the best of the rest


class Beside:
    """Keeps the token beside the finding: what leaked through a receptive field would look like."""

    id = "beside"

    def __init__(self, case: Case) -> None:
        self.case = case

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        finding = self.case.finding
        coverage = np.zeros(grid.n, np.float32) if finding is None else token_coverage(grid, finding)
        scores = np.roll(coverage, 1).astype(np.float32)
        return ScoreSelector(scores).select(grid, question, k)


def outcomes_of(reader: SeesOneToken, name: str, *, curves: bool = False) -> list[Outcome]:
    some = [(case, reader.encode(case.volume)) for case in cases(40)]
    make: Any = (lambda case, grid: Beside(case)) if name == "beside" else _stream(name, reader)
    return run_tests(reader, some, name, make, 1 / 64, curves=curves)


def _stream(name: str, reader: SeesOneToken) -> Any:
    return selectors_by_name([name], reader, GridSelector())[name]


def table(outcomes: list[Outcome]) -> dict[tuple[str, str], dict[str, Any]]:
    findings = {case.id for case in cases(40) if case.finding is not None}
    return {(row["test"], row["questions"]): row for row in summarise_tests(outcomes, findings)}


def test_evidence_that_is_seen_where_it_is_kept_passes_the_pixel_tests(reader: SeesOneToken) -> None:
    row = table(outcomes_of(reader, "oracle"))
    assert row["pixel sufficiency", "evidence"]["ratio"] == 1
    assert row["pixel necessity", "positive"]["accuracy"] == 0
    assert row["complement", "evidence"]["accuracy"] == 0
    assert row["no image", "evidence"]["n"] == 20
    assert row["shuffled image", "evidence"]["changed"] == 1  # the next study is one without a finding
    assert row["blank image", "positive"]["accuracy"] == 0  # nothing bright: it says no
    assert row["blank image", "all"]["accuracy"] == 0.5
    assert row["kept", "all"]["changed"] == 0
    assert row["kept", "all"]["chance"] == 0.5


def test_evidence_beside_the_finding_fails_them(reader: SeesOneToken) -> None:
    row = table(outcomes_of(reader, "beside"))
    assert row["pixel sufficiency", "evidence"]["accuracy"] == 0
    assert row["pixel necessity", "positive"]["accuracy"] == 1  # it blanked what the answer does not rest on
    assert row["complement", "evidence"]["accuracy"] == 1


def test_sensitivity_is_the_share_of_answers_that_another_study_changes(reader: SeesOneToken) -> None:
    outcomes = outcomes_of(reader, "oracle") + outcomes_of(reader, "beside")
    oracle, beside = sensitivity(outcomes, "oracle")
    assert (oracle["selector"], oracle["n"]) == ("oracle", 40)
    assert oracle["changed"] == 21 / 40  # each yes; and one no, for its neighbour's first token is bright
    assert oracle["ours_minus"] is None
    assert beside["changed"] == 1 / 40  # it never sees the finding
    assert beside["ours_minus"] == 0.5
    assert 0.2 < beside["ours_minus_ci"][0] < 0.5 < beside["ours_minus_ci"][1] < 0.8


def test_a_right_ranking_inserts_early_and_deletes_early(reader: SeesOneToken) -> None:
    findings = {case.id for case in cases(40) if case.finding is not None}
    found = {}
    for name in ("oracle", "random"):
        rows = summarise_tests(outcomes_of(reader, name, curves=True), findings)
        found[name] = {way: area(curve(rows, name, way)) for way in ("insertion", "deletion")}
    assert found["oracle"]["insertion"] > found["random"]["insertion"] + 0.2
    assert found["oracle"]["deletion"] < found["random"]["deletion"] - 0.2
    assert curve(summarise_tests(outcomes_of(reader, "oracle"), findings), "oracle", "insertion") == []
