"""A report before and after somebody looked: its versions, and what each withdraws or confirms."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest

from reports import NOON, items, replace_id, review, said, source
from sparsight.errors import ConflictError
from sparsight.imaging.results import Images, make_report
from sparsight.results import make_results
from sparsight.service import Service
from sparsight.types import Answer, Episode, Feedback, Mark


def test_a_report_is_preliminary_until_somebody_looked(
    episodes: dict[str, Episode], images: Callable[..., Images]
) -> None:
    episode = episodes["mr"]
    first = make_report(episode, images(), [])
    assert (first.VerificationFlag, first.PreliminaryFlag, first.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert "VerifyingObserverSequence" not in first
    assert "PredecessorDocumentsSequence" not in first
    assert "No clinician has reviewed this answer." in said(first)["Comment"][-1]
    second = make_report(episode, images(), [], review(episode))
    assert (second.VerificationFlag, second.PreliminaryFlag) == ("VERIFIED", "FINAL")
    observer = second.VerifyingObserverSequence[0]
    assert observer.VerifyingObserverName == "reader-1^"
    assert observer.VerificationDateTime == "20260304120000.000250+0000"
    assert said(second)["Person Observer Name"] == ["reader-1^"]
    assert said(second)["Verdict of the reviewer"] == ["Accepted"]
    [study] = second.PredecessorDocumentsSequence
    [series] = study.ReferencedSeriesSequence
    [before] = series.ReferencedSOPSequence
    assert before.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID == second.SeriesInstanceUID
    assert study.StudyInstanceUID == first.StudyInstanceUID
    assert second.InstanceNumber > first.InstanceNumber  # viewers show the last one


def test_an_amended_answer_is_the_conclusion(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    episode = replace(episodes["mr"], answer=Answer("yes", "I see it.", 0.9))
    found = said(make_report(episode, images(), [], review(episode, "amend", answer="no")))
    assert found["Conclusion"] == ["no"]
    assert found["Answer of the algorithm"] == ["yes"]
    assert "Certainty of Finding" not in found  # it was the certainty of another answer
    assert found["Verdict of the reviewer"] == ["Amended"]
    same = said(make_report(episode, images(), [], review(episode, "accept", answer=" Yes ")))
    assert same["Conclusion"] == ["yes"]
    assert "Answer of the algorithm" not in same
    assert same["Certainty of Finding"] == ["90.0"]


def test_a_rejected_answer_is_withdrawn(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    episode = replace(episodes["mr"], answer=Answer("yes", "I see it.", 0.9))
    report = make_report(episode, images(), [], review(episode, "reject"))
    found = said(report)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "PredecessorDocumentsSequence" in report
    assert {"Conclusion", "Reasoning of the algorithm", "Certainty of Finding"}.isdisjoint(found)
    assert found["Answer of the algorithm"] == ["yes"]
    assert found["Comment"][-1].endswith("A reviewer rejected this answer: it is withdrawn.")
    [where] = [item for item in items(report) if item.ValueType == "SCOORD"]  # of the number below, and of no region
    header = next(h for h in images().headers if h.SOPInstanceUID == source(where))
    assert set(where.GraphicData) == {0.0, float(header.Columns), float(header.Rows)}
    assert "Share of the visual tokens read" in found
    assert "Share of the evidence" not in found


def test_the_same_answer_makes_the_same_bytes(served: Service, episodes: dict[str, Episode]) -> None:
    """Whatever the clock says; another answer, or another correction, has other UIDs."""
    one, other = (
        replace_id(served, replace(episodes["ct"], id="e-one", created=NOON)),
        replace_id(served, episodes["mr"]),
    )
    (low, high) = episodes["ct"].evidence.regions[0].box_mm
    marked = Feedback("same", one, "reader-1", "amend", NOON, marks=(Mark("missed", box_mm=(low, high)),))
    served.correct(marked)
    first = make_results(served, one)
    assert {r.kind for r in first.objects} == {"report", "evidence", "corrections"}
    again = make_results(served, one)
    assert [r.content for r in again.objects] == [r.content for r in first.objects]
    for result in first.objects:
        times = [str(e.value) for e in result.dataset.iterall() if e.VR in {"DA", "DT"}]
        assert times
        assert not [time for time in times if time.startswith(f"{datetime.now():%Y%m%d}")]
    uids = [r.sop_uid for r in (*first.objects, *make_results(served, other).objects)]
    assert len(set(uids)) == len(uids)
    series = {str(r.dataset.SeriesInstanceUID): r.kind for r in first.objects}
    assert sorted(series.values()) == ["corrections", "evidence", "report"]


def test_evidence_of_a_rejected_answer_is_not_given(served: Service, episodes: dict[str, Episode]) -> None:
    episode = replace_id(served, replace(episodes["mr"], id="e-rejected"))
    served.correct(Feedback("rejected", episode, "reader-1", "reject", NOON))
    made = make_results(served, episode)
    assert made.status == "rejected"
    assert [kind for kind, _ in made.left_out] == ["evidence", "corrections"]
    with pytest.raises(ConflictError, match="rejected"):
        make_results(served, episode, ["evidence"])


def test_every_correction_is_a_version(served: Service, episodes: dict[str, Episode]) -> None:
    episode = replace_id(served, replace(episodes["mr"], id="e-versions"))
    (low, high) = episodes["mr"].evidence.regions[0].box_mm
    for n, verdict in enumerate(("accept", "reject", "amend")):
        answer = "no" if verdict == "amend" and episodes["mr"].answer.text != "no" else None
        marks = (Mark("missed", box_mm=(low, high)),) if verdict == "amend" else ()
        served.correct(Feedback(f"v{n}", episode, f"reader-{n}", verdict, NOON, answer, marks))  # type: ignore[arg-type]
    made = make_results(served, episode)
    assert made.status == "verified"
    reports = [r.dataset for r in made.objects if r.kind == "report"]
    assert [r.VerificationFlag for r in reports] == ["UNVERIFIED", "VERIFIED", "UNVERIFIED", "VERIFIED"]
    assert [int(r.InstanceNumber) for r in reports] == [1, 2, 3, 4]
    for before, after in pairwise(reports):
        named = after.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        wanted = dict.fromkeys((reports[0].SOPInstanceUID, before.SOPInstanceUID))
        assert [item.ReferencedSOPInstanceUID for item in named] == list(wanted)
    [marked] = [r for r in made.objects if r.kind == "corrections"]
    assert (marked.name, marked.dataset.ContentCreatorName) == ("corrections-3.dcm", "reader-2^")
    assert np.asarray(marked.dataset.pixel_array).any()
