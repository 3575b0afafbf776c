"""Scores of visual streams, on a reader that is right exactly when the finding's token is among those it was given."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsight.errors import InputError
from sparsight.imaging.grid import prepare, token_coverage
from sparsight.model import GridSelector, ScoreRequest, ScoreSelector
from sparsight.rl.acquisition import acquire
from sparsight.rl.evaluate import compare, evaluate, selectors_by_name, summarise
from sparsight.rl.sentinel import correct, simulated
from sparsight.types import Answer, Case, ImageVolume, Question, Selection, TokenGrid

QUESTION = Question("Is there a nodule?", "yes_no", ("yes", "no"))


class SeesOneToken:
    """Says yes if a kept token is brighter than the threshold, else no."""

    id, sha256, max_tokens = "fake", "0" * 64, 10_000
    encoded = 0

    def encode(self, volume: ImageVolume) -> TokenGrid:
        self.encoded += 1
        made = prepare(volume, long_side=64, patch=8)
        d, h, w = made.pixels.shape
        mean = made.pixels.reshape(d, h // 8, 8, w // 8, 8).mean((2, 4)).reshape(-1, 1)
        at = made.geometry
        return TokenGrid(torch.from_numpy(mean), at.shape, at.patch, at.uvw_to_ijk, at.uvw_to_lps, self.id)

    def embed(self, question: Question) -> Tensor:
        return torch.zeros(4)

    def check(self, question: Question, answer: str) -> None:
        pass

    def saliency(self, grid: TokenGrid) -> Tensor:
        return grid.features[:, 0]

    def read(self, question: Question, grid: TokenGrid, selection: Selection, *, on_token: Any = None) -> Answer:
        seen = grid.features[selection.keep].max() > 0.5
        return Answer("yes" if seen else "no", "", 0.9)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        out = []
        for r in requests:
            seen = r.grid.features[r.keeps, 0].amax(1) > 0.5  # (G,)
            out.append(torch.where(seen == (r.answer == "yes"), 0.9, 0.1).log())
        return out


def cases(n: int) -> list[Case]:
    """Half with one bright token at a random place."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        voxels = np.zeros((1, 64, 64), np.float32)
        mask = np.zeros((1, 64, 64), bool)
        if i % 2:
            v, u = rng.integers(0, 8, 2) * 8
            mask[0, v : v + 8, u : u + 8] = True
            voxels[mask] = 255
        voxels[0, 0, 0] += 1e-3 * i  # every volume its own hash
        volume = ImageVolume(voxels, np.eye(4), "OT", (127.5, 255.0))
        answer = "yes" if i % 2 else "no"
        made.append(
            Case(f"a-long-name-{i}", volume, QUESTION, answer, f"g{i}", "exists", finding=mask if i % 2 else None)
        )
    return made


@pytest.fixture(scope="module")
def reader() -> SeesOneToken:
    return SeesOneToken()


def rows(reader: SeesOneToken, names: str, n: int = 200) -> dict[tuple[str, float], dict[str, Any]]:
    streams = selectors_by_name(names.split(), reader, GridSelector())
    return {(r["selector"], r["budget"]): r for r in summarise(evaluate(cases(n), reader, streams, [0.05, 0.25]))}


def test_oracle_and_saliency_are_perfect_and_random_is_as_good_as_its_recall(reader: SeesOneToken) -> None:
    got = rows(reader, "all random oracle saliency")
    for name in ("oracle", "saliency"):
        assert got[name, 0.05]["accuracy"] == 1
        assert got[name, 0.05]["evidence_recall"] == pytest.approx(1)
        assert got[name, 0.05]["pointing_hit"] == 1
    assert got["all", 1.0]["accuracy"] == 1
    assert ("all", 0.05) not in got
    random = got["random", 0.25]
    assert random["evidence_recall"] == pytest.approx(0.25, abs=0.12)  # 100 positives
    assert random["accuracy"] == pytest.approx(0.5 + 0.5 * random["evidence_recall"], abs=1e-6)
    low, high = random["accuracy_ci"]
    assert low < random["accuracy"] < high


def test_random_draws_differ_between_cases_and_follow_the_seed(reader: SeesOneToken) -> None:
    some = cases(4)
    grid = reader.encode(some[0].volume)

    def kept(case: Case, seed: int) -> tuple[int, ...]:
        stream = selectors_by_name(["random"], reader, GridSelector(), seed=seed)["random"](case, grid)
        return tuple(stream.select(grid, QUESTION, 5).keep)

    assert kept(some[0], 0) == kept(some[0], 0)
    assert len({kept(case, 0) for case in some}) == 4
    assert kept(some[0], 0) != kept(some[0], 1)


def test_a_volume_is_encoded_once_for_all_its_questions() -> None:
    reader = SeesOneToken()
    same = [replace(cases(2)[1], id=f"q{i}") for i in range(5)]
    evaluate(same, reader, selectors_by_name(["grid"], reader, GridSelector()), [0.1])
    assert reader.encoded == 1


def test_only_the_oracle_sees_the_mask(reader: SeesOneToken) -> None:
    """Moving the mask changes the oracle's choice and nobody else's."""
    case = cases(2)[1]
    assert case.finding is not None
    moved = replace(case, finding=np.roll(case.finding, 24, axis=2))
    grid = reader.encode(case.volume)
    for name, make in selectors_by_name(
        ["all", "random", "grid", "ours", "saliency", "oracle"], reader, GridSelector()
    ).items():
        a, b = (make(c, grid).select(grid, QUESTION, 3).keep for c in (case, moved))
        assert np.array_equal(a, b) == (name != "oracle"), name


def test_paired_difference_and_its_interval(reader: SeesOneToken) -> None:
    streams = selectors_by_name(["oracle", "random", "all"], reader, GridSelector())
    results = evaluate(cases(200), reader, streams, [0.05])
    (row,) = compare(results, "oracle", "random")
    accuracy = {r["selector"]: r["accuracy"] for r in summarise(results)}
    assert row["difference"] == pytest.approx(accuracy["oracle"] - accuracy["random"])
    assert row["difference_ci"][0] > 0
    (row,) = compare(results, "oracle", "all")
    assert row["difference"] == 0


@pytest.mark.parametrize("names", [["best"], [], ["all", "Random"]])
def test_unknown_selectors_are_named(reader: SeesOneToken, names: list[str]) -> None:
    with pytest.raises(InputError):
        selectors_by_name(names, reader, GridSelector())


def test_acquisition_prefers_what_the_subsets_disagree_about(reader: SeesOneToken) -> None:
    empty, found = cases(2)

    class Draws(ScoreSelector):
        def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
            rng = np.random.default_rng(seed)
            keep = np.sort(rng.permutation(grid.n)[:k])
            return Selection(keep, np.zeros(grid.n, np.float32), 0.0, "sampled", "draws", seed)

    stream = Draws(np.zeros(64, np.float32))
    sure = acquire(reader, stream, reader.encode(empty.volume), QUESTION, 32)
    unsure = acquire(reader, stream, reader.encode(found.volume), QUESTION, 32)
    assert sure.score == pytest.approx(0, abs=1e-6)
    assert unsure.score > 0.1


def test_sentinel_is_frozen_and_scores_what_the_reader_says(reader: SeesOneToken) -> None:
    first, second = (simulated(reader, "val", 12, 5, lambda *_: None) for _ in range(2))
    assert [(p.question, p.answer, p.group) for p in first] == [(p.question, p.answer, p.group) for p in second]
    assert all(torch.equal(a.grid.features, b.grid.features) for a, b in zip(first, second, strict=True))
    hits = correct(reader, GridSelector(), first, 0.3, lambda *_: None)
    one_by_one = [correct(reader, GridSelector(), [p], 0.3, lambda *_: None)[0] for p in first]
    assert list(hits) == one_by_one


def test_coverage_counts_the_finding(reader: SeesOneToken) -> None:
    case = cases(2)[1]
    assert case.finding is not None
    coverage = token_coverage(reader.encode(case.volume), case.finding)
    assert coverage.sum() == pytest.approx(1)
