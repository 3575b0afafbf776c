"""What a report says, for whom, and what it must not say; validators and other readers agree."""

import io
import json
import logging
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from sparsight.errors import ConflictError
from sparsight.imaging.dicom import read_header
from sparsight.imaging.results import Images, Review, concepts, make_report
from sparsight.imaging.results.images import plain, pseudonym
from sparsight.results import Results, make_results
from sparsight.service import Service, parse_question
from sparsight.types import Answer, Episode, Feedback, Mark, Question, Recheck

DOCS = Path(__file__).parents[3] / "docs"
NOON = datetime(2026, 3, 4, 12, 0, 0, 250, UTC)
SECRET = "Geheim"
NEEDED = {"PatientName": "Doe^Jane", "PatientID": "MRN-77", "AccessionNumber": "A-4711", "StudyID": "S-12"}
KINDS = ["ct", "mr", "enhanced", "cr", "dx", "cine"]


@pytest.fixture(scope="module")
def episodes(served: Service, kinds: tuple[Path, dict[str, str]]) -> dict[str, Episode]:
    """An answer about each kind."""
    question = parse_question("Is there a nodule in the left half?")
    return {kind: served.ask(uid, question, budget=0.1).episode for kind, uid in kinds[1].items()}


@pytest.fixture
def images(kinds: tuple[Path, dict[str, str]]) -> Callable[..., Images]:
    def images(kind: str = "mr", change: Callable[[Dataset], object] = lambda ds: None) -> Images:
        headers = [read_header(path) for path in sorted((kinds[0] / kind).iterdir())]
        for header in headers:
            change(header)
        return Images.of(headers)

    return images


def objects(results: Results) -> dict[str, Dataset]:
    return {result.name: dcmread(io.BytesIO(result.content)) for result in results.objects}


def items(root: Dataset) -> list[Dataset]:
    """Every content item, depth first."""
    return [item for child in root.get("ContentSequence") or [] for item in (child, *items(child))]


def said(report: Dataset) -> dict[str, list[str]]:
    """Texts, numbers and codes by the name of their concept."""
    found: dict[str, list[str]] = {}
    for item in items(report):
        if not item.get("ConceptNameCodeSequence"):
            continue
        name = item.ConceptNameCodeSequence[0].CodeMeaning
        if item.ValueType == "NUM":
            value = str(item.MeasuredValueSequence[0].NumericValue)
        elif item.ValueType == "CODE":
            value = item.ConceptCodeSequence[0].CodeMeaning
        else:
            value = item.get("TextValue") or item.get("PersonName") or item.get("UID") or ""
        found.setdefault(name, []).append(str(value))
    return found


def review(episode: Episode, verdict: str = "accept", key: str = "k", **given: Any) -> Review:
    feedback = Feedback(key, episode.id, "reader-1", verdict, NOON, **given)  # type: ignore[arg-type]
    return Review(feedback, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_validators_find_no_error(
    served: Service, episodes: dict[str, Episode], kind: str, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """All versions and objects of each kind of image, with text that no ASCII holds."""
    dciodvfy, dsrdump = program("dciodvfy"), program("dsrdump")
    episode = episodes[kind]
    (low, high) = episode.evidence.regions[0].box_mm
    marks = (Mark("missed", box_mm=(low, high)),)
    for key, verdict, answer in (("a", "accept", None), ("b", "amend", "nein, Größe 5 mm"), ("c", "reject", None)):
        given = Feedback(f"{kind}-{key}", episode.id, "reader-1", verdict, NOON, answer, marks)  # type: ignore[arg-type]
        served.correct(given)
    made = make_results(served, episode.id)
    assert {r.kind for r in made.objects} == ({"report"} if kind == "cine" else {"report", "corrections"})
    checked = [*made.objects]
    if kind != "cine":
        first = replace(episode, id=f"{episode.id}x")
        served.store.save_episode(first)
        checked += make_results(served, first.id, ["evidence"]).objects
    for result in checked:
        path = tmp_path / result.name
        path.write_bytes(result.content)
        done = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, check=False, timeout=120)
        lines = (done.stdout + done.stderr).splitlines()
        problems = [line for line in lines if line.startswith(("Error", "Warning"))]
        assert [line for line in problems if "99SPARSIGHT" not in line] == [], result.name
        if result.kind == "report":
            dumped = subprocess.run([dsrdump, str(path)], capture_output=True, text=True, check=False, timeout=120)
            assert dumped.returncode == 0, dumped.stderr
            assert "Comprehensive SR Document" in dumped.stdout
            assert "E:" not in dumped.stderr


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_validator_is_a_failure_in_ci(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no such-validator"):
        program("such-validator")


def test_a_report_says_what_the_episode_says(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    episode = episodes["mr"]
    report = make_report(episode, images(), ["Not grounded: so."])
    found = said(report)
    assert found["Question that was asked"] == ["Is there a nodule in the left half?"]
    conclusion = "No answer: the algorithm is not sure enough." if episode.answer.abstained else episode.answer.text
    assert found["Conclusion"] == [conclusion]
    assert found["Comment"][0] == "Not grounded: so."
    assert float(found["Certainty of Finding"][0]) == pytest.approx(100 * episode.answer.confidence, abs=1e-4)
    kept = episode.recheck.kept if episode.recheck else episode.evidence.kept
    assert float(found["Share of the visual tokens read"][0]) == pytest.approx(
        100 * kept / episode.evidence.total, abs=1e-4
    )
    assert float(found["Necessity of the evidence, nats"][0]) == pytest.approx(episode.evidence.necessity, abs=1e-4)
    assert found["Answer depends on its evidence"] == ["Yes" if episode.evidence.grounded else "No"]
    assert found["Answer was re-checked"] == ["Yes"]
    assert [float(w) for w in found["Share of the evidence"]] == pytest.approx(
        [100 * region.weight for region in episode.evidence.regions], abs=0.01
    )
    assert found["Algorithm Name"] == ["sparsight"] * (1 + len(episode.evidence.regions))
    parameters = set(found["Algorithm Parameters"])
    assert f"policy_sha256={episode.policy_sha256}" in parameters
    assert f"reader={episode.reader}" in parameters
    assert f"config_sha256={episode.config_sha256}" in parameters
    assert set(found["Algorithm Version"]) == {f"{episode.reader} {episode.policy}"}
    assert report.SeriesDescription == "sparsight answer: research use only"


def test_highdicom_reads_the_measurements(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    """Its reader knows TID 1500, 1501, 1410 and 1411; each group has its own tracking identifier."""
    episode = episodes["ct"]
    report = highdicom.sr.ComprehensiveSR.from_dataset(make_report(episode, images("ct"), []))
    content = report.content
    [answer] = content.get_image_measurement_groups()
    assert {m.name.meaning for m in answer.get_measurements()} == {
        "Certainty of Finding",
        "Share of the visual tokens read",
        "Necessity of the evidence, nats",
    }
    regions = [*content.get_planar_roi_measurement_groups(), *content.get_volumetric_roi_measurement_groups()]
    assert len(regions) == len(episode.evidence.regions)
    uids = {group.tracking_uid for group in [answer, *regions]}
    assert len(uids) == 1 + len(regions)
    assert {site.value for group in regions for site in group.finding_sites} == {codes.SCT.Chest}
    [device] = content.get_observer_contexts(observer_type=codes.DCM.Device)
    assert device.observer_identifying_attributes.model_name == episode.reader
    used = {uid for region in episode.evidence.regions for uid in [region.sop_uid]}
    assert used <= {str(sop) for _, _, sop, _ in report.get_evidence()}


def test_viewers_that_are_strict_find_what_they_look_for(
    episodes: dict[str, Episode], images: Callable[..., Images]
) -> None:
    """OHIF 3.10 needs a library of images, and a place for every group that has a number.

    In a group it takes the first SCOORD; where there is none, the only child of each number, which must be one.
    """
    for kind in KINDS:
        report = make_report(episodes[kind], images(kind), [])
        groups = [item for item in items(report) if _name(item) == "Measurement Group"]
        assert groups
        for group in groups:
            names = [_name(item) for item in group.ContentSequence]
            assert {"Tracking Identifier", "Tracking Unique Identifier"} <= set(names)
            assert all(names)
            numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
            if not [item for item in group.ContentSequence if item.ValueType == "SCOORD"]:
                assert [[c.ValueType for c in n.ContentSequence] for n in numbers] == [["SCOORD"]] * len(numbers)
        assert not [item for item in items(report) if item.ValueType == "SCOORD3D"]
        [library] = [item for item in items(report) if _name(item) == "Image Library Group"]
        listed = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in library.ContentSequence}
        shown = {
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for item in items(report)
            if item.ValueType == "IMAGE"
        }
        assert shown == listed


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning) if item.get("ConceptNameCodeSequence") else ""


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
    header = next(h for h in images().headers if h.SOPInstanceUID == _source(where))
    assert set(where.GraphicData) == {0.0, float(header.Columns), float(header.Rows)}
    assert "Share of the visual tokens read" in found
    assert "Share of the evidence" not in found


def _source(where: Dataset) -> str:
    return str(where.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


@pytest.mark.parametrize("told", [None, ("accept", None), ("amend", "something else"), ("reject", None)])
def test_every_group_has_a_place(
    episodes: dict[str, Episode], images: Callable[..., Images], told: tuple[str, str | None] | None
) -> None:
    """OHIF 3.10 shows nothing of a report that holds a group without coordinates, whatever the others hold."""
    episode = episodes["mr"]
    report = make_report(episode, images(), [], told and review(episode, told[0], answer=told[1]))
    groups = [item for item in items(report) if _name(item) == "Measurement Group"]
    assert groups
    for group in groups:
        assert any(item.ValueType == "SCOORD" for item in items(group)), group


def test_an_answer_that_is_too_uncertain_is_no_conclusion(
    episodes: dict[str, Episode], images: Callable[..., Images]
) -> None:
    answer = Answer("yes", "I see it.", 0.4, abstained=True)
    recheck = Recheck("negative", Answer("no", "", 0.3), None, 20, True)
    found = said(make_report(replace(episodes["mr"], answer=answer, recheck=recheck), images(), []))
    assert found["Conclusion"] == ["No answer: the algorithm is not sure enough."]
    assert found["Answer of the algorithm"] == ["yes"]
    assert found["Too uncertain to answer"] == ["Yes"]
    total = episodes["mr"].evidence.total
    assert float(found["Share of the visual tokens read"][0]) == pytest.approx(2000 / total, abs=1e-3)


def test_side_and_body_part_are_told(served: Service, episodes: dict[str, Episode]) -> None:
    made = objects(make_results(served, replace_id(served, episodes["cr"]), ["report", "evidence"]))
    report, seg = made["report-1.dcm"], made["evidence-1.dcm"]
    [site, *_] = [item for item in items(report) if _name(item) == "Finding Site"]
    assert site.ConceptCodeSequence[0].CodeMeaning == "Knee"
    assert site.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning == "Left"
    assert (seg.BodyPartExamined, seg.ImageLaterality) == ("KNEE", "L")
    assert seg.SegmentSequence[0].AnatomicRegionSequence[0].CodeMeaning == "Knee"
    assert seg.PatientOrientation == ["L", "F"]


@pytest.mark.parametrize("shared", [True, False])
def test_side_and_body_part_of_frames_are_told_where_all_agree(
    episodes: dict[str, Episode], images: Callable[..., Images], shared: bool
) -> None:
    """An enhanced object says so in its functional groups."""

    def anatomy(code: Code, side: str) -> list[Dataset]:
        region, item = Dataset(), Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = code.value, "SCT", code.meaning
        item.FrameLaterality, item.AnatomicRegionSequence = side, [region]
        return [item]

    def change(header: Dataset, sides: str) -> None:
        if shared:
            header.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = anatomy(codes.SCT.Hand, sides[0])
            return
        for group, side in zip(header.PerFrameFunctionalGroupsSequence, sides, strict=True):
            group.FrameAnatomySequence = anatomy(codes.SCT.Hand, side)

    told = said(make_report(episodes["enhanced"], images("enhanced", lambda ds: change(ds, "RRRR")), []))
    assert set(told["Finding Site"]) == {"Hand"}
    assert set(told["Laterality"]) == {"Right"}
    if not shared:
        told = said(make_report(episodes["enhanced"], images("enhanced", lambda ds: change(ds, "RRLL")), []))
        assert "Finding Site" not in told


def test_what_a_question_was_narrowed_to_and_what_a_reader_lacked_is_told(
    served: Service, episodes: dict[str, Episode]
) -> None:
    question = Question("Which side?", "choice", ("left", "right"), ((0.0, 1.0, 2.0), (3.0, 4.0, 5.25)))
    episode = episodes["mr"]
    noted = replace(episode.answer, notes=("read from 3 tokens instead of 6: the device's memory held no more",))
    copied = replace_id(served, replace(episode, id="e-narrow", question=question, answer=noted))
    comments = said(objects(make_results(served, copied, ["report"]))["report-1.dcm"])["Comment"]
    assert "To choose from: left; right." in comments
    assert "Asked about a part of the image only: from (0.0, 1.0, 2.0) to (3.0, 4.0, 5.2) mm (LPS)." in comments
    assert "Read from 3 tokens instead of 6: the device's memory held no more." in comments


def replace_id(served: Service, episode: Episode) -> str:
    """The same answer as another episode, without its corrections."""
    copied = replace(episode, id=f"{episode.id}-copy")
    served.store.save_episode(copied)
    return copied.id


@pytest.mark.parametrize("kind", ["ct", "cr", "enhanced"])
def test_no_text_of_the_patient_but_what_must_be_there(
    served: Service, episodes: dict[str, Episode], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        made = make_results(served, replace_id(served, episodes[kind]), ["report", "evidence"])
    for result in made.objects:
        assert SECRET.encode() not in result.content, result.name
        for keyword, value in NEEDED.items():
            assert result.dataset[keyword].value == value
        assert result.dataset.PatientBirthDate == "19700101"
        assert result.dataset.ReferringPhysicianName == "Referrer^Rita"
    for text in [SECRET, "Jane", "Rita", *NEEDED.values()]:
        assert text not in caplog.text


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "Юлий^Цил"),
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "王^小東"),
        (None, "Doe^Jane"),
    ],
)
def test_names_survive_every_character_set(
    episodes: dict[str, Episode], images: Callable[..., Images], charset: Any, name: str, tmp_path: Path
) -> None:
    episode = replace(episodes["mr"], question=parse_question("Ist da ein Knoten? 结节 \N{BONE}"))

    def change(header: Dataset) -> None:
        if charset is None:
            return
        header.SpecificCharacterSet = charset
        header.PatientName, header.PatientID = name, "日本-1" if charset == "ISO_IR 192" else "P-1"

    made = make_report(episode, images(change=change), [])
    made.save_as(tmp_path / "report.dcm")
    back = dcmread(tmp_path / "report.dcm")
    assert back.PatientName == name
    assert said(back)["Question that was asked"] == ["Ist da ein Knoten? 结节 \N{BONE}"]
    from_file = Dataset.from_json(json.loads(json.dumps(back.to_json_dict())))
    assert from_file.PatientName == name


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x00b\x07c", "a b c"),
        ("line\r\nnext\ttab", "line\r\nnext\ttab"),
        ("half \ud83d", "half ?"),
        ("back\\slash ^ = ", "back\\slash ^ ="),
        ("\x7f", ""),
    ],
)
def test_any_text_a_person_can_type_is_written(
    episodes: dict[str, Episode], images: Callable[..., Images], text: str, kept: str, tmp_path: Path
) -> None:
    assert plain(text) == kept
    episode = replace(episodes["mr"], answer=Answer(text, text, 0.5))
    made = make_report(episode, images(), [text])
    made.save_as(tmp_path / "report.dcm")
    assert said(dcmread(tmp_path / "report.dcm")).get("Reasoning of the algorithm", [""]) == [kept]


@pytest.mark.parametrize(
    ("reviewer", "name"), [("reader-1", "reader-1^"), ("Dr. Jörg^X=Y\\Z", "Dr._J_rg_X_Y_Z^"), ("", "anonymous^")]
)
def test_a_pseudonym_is_one_plain_name(reviewer: str, name: str) -> None:
    assert pseudonym(reviewer) == name
    assert len(pseudonym("x" * 500)) <= 64


def test_what_a_source_holds_against_the_standard_neither_stops_nor_shows(
    episodes: dict[str, Episode], images: Callable[..., Images]
) -> None:
    """A warning would repeat the value, and warnings are errors here."""

    def change(header: Dataset) -> None:
        from pydicom import config

        with config.disable_value_validation():
            header.PatientID, header.PatientBirthDate = "x" * 80, "not a date"
            header.PatientSex, header.StudyTime = "unknown", "15:18:59"
            header.PatientIdentityRemoved = "YES"  # without a method: then it says nothing

    made = make_report(episodes["mr"], images(change=change), [])
    assert made.PatientID == "x" * 80
    assert "PatientIdentityRemoved" not in made


def test_an_animal_stays_one(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    def change(header: Dataset) -> None:
        header.PatientSpeciesDescription, header.ResponsiblePerson = "Canis lupus familiaris", "Owner^Olga"

    made = make_report(episodes["mr"], images(change=change), [])
    assert made.PatientSpeciesDescription == "Canis lupus familiaris"
    assert made.ResponsiblePerson == "Owner^Olga"


def test_times_are_in_the_time_zone_of_the_images(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    def change(header: Dataset) -> None:
        header.TimezoneOffsetFromUTC = "+0330"

    episode = replace(episodes["mr"], created=NOON)
    made = make_report(episode, images(change=change), [], review(episode))
    assert (made.ContentDate, made.ContentTime) == ("20260304", "153000.000250")
    assert made.TimezoneOffsetFromUTC == "+0330"
    assert made.StudyTime == "091500"


def test_the_page_lists_our_codes() -> None:
    page = (DOCS / "dicom-results.md").read_text(encoding="utf-8")
    ours = [c for c in vars(concepts).values() if getattr(c, "scheme_designator", "") == concepts.SCHEME]
    ours += [*concepts.VERDICTS.values(), *concepts.MARKS.values()]
    assert len(ours) == 17
    for code in ours:
        assert f"| `{code.value}` | {code.meaning} |" in page, code
        assert len(code.value) <= 16
        assert len(code.meaning) <= 64


def test_body_parts_are_terms_with_a_code() -> None:
    for term in concepts._BODY_PARTS:
        header = Dataset()
        header.BodyPartExamined = term
        code = concepts.body_part(header)
        assert code is not None
        assert re.fullmatch(r"\d{6,18}", code.value)
        assert code.scheme_designator == "SCT"
    header = Dataset()
    header.BodyPartExamined = "NOWHERE"
    assert concepts.body_part(header) is None
    own = Dataset()
    own.CodeValue, own.CodingSchemeDesignator, own.CodeMeaning = "1234567", "SCT", "Somewhere"
    header.AnatomicRegionSequence = [own]
    assert concepts.body_part(header) == Code("1234567", "SCT", "Somewhere")  # what the image itself says comes first


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
