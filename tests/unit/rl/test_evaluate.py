"""Scores of visual streams, on a reader that is right exactly when the finding's token is among those it was given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from one_token import QUESTION, SeesOneToken, cases
from sparsight.errors import InputError, QuestionError
from sparsight.imaging.grid import token_coverage
from sparsight.model import GridSelector, PolicySelector, ScoreSelector, TokenPolicy, load_base_policy, load_reader
from sparsight.model.rivals import LABELLED, RIVALS
from sparsight.rl.acquisition import acquire
from sparsight.rl.evaluate import SELECTORS, evaluate, finding_share, fits, selectors_by_name
from sparsight.rl.scoring import Posed, Said, by_choices, by_reading, judge
from sparsight.rl.sentinel import correct, simulated, version
from sparsight.rl.tables import areas, by_kind, compare, compare_evidence, signed, summarise, value
from sparsight.types import Case, Question, Selection, TokenGrid


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


def test_every_stream_can_be_made_for_nano_and_keeps_the_budget(reader_folder: Path) -> None:
    nano = load_reader(reader_folder)
    names = [name for name in SELECTORS if name not in (*LABELLED, "foveated")]  # those are trained first
    streams = selectors_by_name(
        names, nano, PolicySelector(TokenPolicy.from_arrays(load_base_policy(reader_folder)), nano)
    )
    assert list(streams) == names
    assert set(RIVALS) < set(SELECTORS)
    some = cases(2)
    results = evaluate(some, nano, streams, [0.1], ask=by_choices)
    assert [r.selector for r in results if r.case == some[0].id] == names
    n = nano.encode(some[0].volume).n
    coarser = {"downsampled", "pooled"}  # of whole cells in a rectangle, so up to a few fewer
    exact = {(name, n if name == "all" else round(0.1 * n)) for name in set(names) - coarser - {"auto"}}
    assert {(r.selector, r.kept) for r in results if r.selector not in {*coarser, "auto"}} == exact
    assert all(0.66 * 0.1 * n <= r.kept <= 0.1 * n for r in results if r.selector in coarser)
    assert all(0 <= r.p_right <= 1 for r in results if r.p_right is not None)


class _Choosy(PolicySelector):
    """Keeps a quarter of the tokens for one question, a twentieth for others."""

    text = ""

    def budget(self, grid: TokenGrid, question: Question) -> float:
        return 0.25 if question.text == self.text else 0.05


def test_auto_is_ours_with_as_many_tokens_as_the_policy_says(reader_folder: Path) -> None:
    nano = load_reader(reader_folder)
    ours = _Choosy(TokenPolicy.from_arrays(load_base_policy(reader_folder)), nano)
    first, second = (case for case in cases(2))
    ours.text = first.question.text
    second = replace(second, question=replace(second.question, text="Is there anything else?"))
    streams = selectors_by_name(["auto", "ours"], nano, ours)
    results = evaluate([first, second], nano, streams, [0.25, 0.05], ask=by_choices)
    n = nano.encode(first.volume).n
    auto = {r.case: r for r in results if r.selector == "auto"}
    assert {case: r.kept for case, r in auto.items()} == {first.id: round(0.25 * n), second.id: round(0.05 * n)}
    same = {r.case: r for r in results if r.selector == "ours" and r.kept == auto[r.case].kept}
    assert all(auto[case].p_right == same[case].p_right for case in auto)
    rows = summarise(results)
    assert next(row for row in rows if row["selector"] == "auto")["fraction"] == pytest.approx(0.15, abs=1 / n)
    assert {row["budget"] for row in compare(results, "ours", "auto")} == {0.25, 0.05}  # it counts at every budget
    with pytest.raises(InputError, match="auto"):
        selectors_by_name(["auto"], nano, GridSelector())


def test_streams_that_look_into_nano_are_refused_for_another_reader(reader: SeesOneToken) -> None:
    for name in ("fastv", "cdpruner", "downsampled"):
        with pytest.raises(InputError, match="nano"):
            selectors_by_name(["all", name], reader, GridSelector())


def test_numbers_are_written_with_their_interval_and_a_dash_where_there_is_none() -> None:
    assert value(0.9123, [0.8904, 0.931]) == "0.912 [0.890, 0.931]"
    assert value(0.5, None) == "0.500 [-, -]"
    assert value(0.5, [None, 0.75]) == "0.500 [-, 0.750]"
    assert value(None, [0.1, 0.2]) == "-"
    assert signed(0.0312, [-0.01, 0.052]) == "+0.031 [-0.010, +0.052]"
    assert signed(-0.25, [None, None]) == "-0.250 [-, -]"
    assert signed(None, [0.1, 0.2]) == "-"


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
    assert sure.disagreement == pytest.approx(0, abs=1e-6)
    assert unsure.disagreement > 0.1
    assert sure.undecided == unsure.undecided == pytest.approx(1)  # all scores are the same


def test_sentinel_is_frozen_and_scores_what_the_reader_says(reader: SeesOneToken) -> None:
    first, second = (simulated(reader, "val", 12, 5, lambda *_: None) for _ in range(2))
    assert [(p.question, p.answer, p.group) for p in first] == [(p.question, p.answer, p.group) for p in second]
    assert all(torch.equal(a.grid.features, b.grid.features) for a, b in zip(first, second, strict=True))
    assert version(first) == version(second)
    others = [first[:-1], simulated(reader, "val", 12, 6, lambda *_: None), [replace(first[0], image="0"), *first[1:]]]
    others += [[replace(first[0], answer="another"), *first[1:]]]
    assert len({version(s) for s in (first, *others)}) == 5
    hits = correct(reader, GridSelector(), first, 0.3, lambda *_: None)
    one_by_one = [correct(reader, GridSelector(), [p], 0.3, lambda *_: None)[0] for p in first]
    assert list(hits) == one_by_one


def test_coverage_counts_the_finding(reader: SeesOneToken) -> None:
    case = cases(2)[1]
    assert case.finding is not None
    coverage = token_coverage(reader.encode(case.volume), case.finding)
    assert coverage.sum() == pytest.approx(1)


def test_scored_and_read_answers_are_judged_alike(reader: SeesOneToken) -> None:
    streams = selectors_by_name(["oracle", "random"], reader, GridSelector())
    scored, read = (evaluate(cases(40), reader, streams, [0.05], ask=ask) for ask in (by_choices, by_reading))
    assert [(r.case, r.said, r.correct, r.recall) for r in scored] == [
        (r.case, r.said, r.correct, r.recall) for r in read
    ]
    assert all(r.p_right == pytest.approx(0.9 if r.correct else 0.1, abs=0.01) for r in scored)
    assert {r.chance for r in scored} == {0.5}


def test_overlap_of_what_was_kept_with_what_the_finding_touches(reader: SeesOneToken) -> None:
    case = cases(2)[1]  # the finding fills one token
    grid = reader.encode(case.volume)
    share = finding_share(case, grid)
    assert share is not None
    keep = np.sort(np.argsort(-share, kind="stable")[:4])

    def judged(kept: Any, said: str = "yes", attention: Any = None) -> Any:
        selection = Selection(kept, share, 0.0, "greedy", "s", attention=attention)
        posed = Posed("s", 0.1, "c", "g", "l", grid, QUESTION, "yes", selection, share=share)
        return judge(posed, Said(said, 0.9))

    assert (judged(keep).iou, judged(keep).recall, judged(keep).pointing) == (0.25, pytest.approx(1), True)
    away = np.flatnonzero(share == 0)[:4]
    assert (judged(away).iou, judged(away).recall, judged(away).pointing) == (0, 0, None)
    assert (judged(keep).missed, judged(keep, "no").missed) == (False, True)
    elsewhere = np.where(share > 0, 1e-3, 1).astype(np.float32)  # the language stream looked beside what was kept first
    beside = judged(keep, attention=elsewhere)
    assert (beside.pointing, beside.own_pointing) == (False, True)


def test_a_false_negative_needs_something_to_be_missed(reader: SeesOneToken) -> None:
    """Grid misses most bright tokens; every miss is a false negative, no right no is."""
    streams = selectors_by_name(["all", "grid"], reader, GridSelector())
    results = evaluate(cases(100), reader, streams, [0.05], ask=by_choices)
    row = {r["selector"]: r for r in summarise(results)}
    assert row["grid"]["positives"] == 50
    assert row["grid"]["false_negatives"] == pytest.approx(2 * (1 - row["grid"]["accuracy"]))
    assert row["grid"]["false_negatives"] > 0.5
    assert row["all"]["false_negatives"] == 0


def test_the_area_is_the_mean_height_of_the_curve(reader: SeesOneToken) -> None:
    streams = selectors_by_name(["all", "oracle", "random"], reader, GridSelector())
    results = evaluate(cases(120), reader, streams, [0.1, 0.5], ask=by_choices)
    row = {r["selector"]: r for r in areas(results)}
    assert (row["oracle"]["area"], row["oracle"]["area_log"]) == (pytest.approx(1), pytest.approx(1))
    at = {r["budget"]: r["accuracy"] for r in summarise(results) if r["selector"] == "random"}
    by_hand = (0.4 * (at[0.1] + at[0.5]) / 2 + 0.5 * (at[0.5] + 1) / 2) / 0.9
    assert row["random"]["area"] == pytest.approx(by_hand)
    assert row["random"]["area_log"] < row["random"]["area"]  # small budgets count more there, and are worse
    low, high = row["random"]["area_ci"]
    assert low < row["random"]["area"] < high


def test_recall_is_compared_in_pairs(reader: SeesOneToken) -> None:
    streams = selectors_by_name(["oracle", "random"], reader, GridSelector())
    results = evaluate(cases(100), reader, streams, [0.25], ask=by_choices)
    row = compare_evidence(results, "oracle", "random", 0.25)
    assert row is not None
    assert row["n"] == 50  # only cases with a finding
    assert row["ratio"] == pytest.approx(1 / row["recall"][1])
    assert row["ratio_ci"][0] > 1
    assert compare_evidence(results, "oracle", "random", 0.5) is None
    pointed = compare_evidence(results, "oracle", "random", 0.25, of="pointing")
    assert pointed is not None
    assert pointed["pointing"][0] == 1
    assert pointed["difference"] == pytest.approx(1 - pointed["pointing"][1])


def test_closed_and_open_questions_are_reported_apart(reader: SeesOneToken) -> None:
    case = cases(2)[1]
    asked = [
        (QUESTION, "yes"),
        (Question("Which?", "choice", ("yes", "yes+")), "yes+"),  # the reader says yes
        (Question("What?"), "yes indeed"),
        (Question("What?"), "a mass"),
    ]
    posed = [replace(case, id=str(n), question=question, answer=answer) for n, (question, answer) in enumerate(asked)]
    results = evaluate(posed, reader, selectors_by_name(["all"], reader, GridSelector()), [0.1])
    rows = {row["kind"]: row for row in by_kind(results)}
    found = {kind: (row["n"], row["accuracy"]) for kind, row in rows.items()}
    assert found == {"yes_no": (1, 1), "choice": (1, 0), "free": (2, 0)}
    assert rows["free"]["word_recall"] == pytest.approx(0.25)
    assert rows["free"]["word_f1"] == pytest.approx(1 / 3)
    assert rows["yes_no"]["word_recall"] is None
    assert rows["yes_no"]["word_f1_ci"] is None


def test_a_question_or_choice_that_is_too_long_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: SeesOneToken, question: Question, answer: str) -> None:
        if len(question.text + answer) > 9:
            raise QuestionError("too long", expected="short", todo="shorten")

    monkeypatch.setattr(SeesOneToken, "check", check)
    asked = [Question("Why so?"), Question("Which?", "choice", ("a", "both")), Question("Why, and how?")]
    assert [fits(SeesOneToken(), question) for question in asked] == [True, False, False]
