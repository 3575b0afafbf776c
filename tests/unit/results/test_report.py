"""What a report says, for whom, and what it must not say; validators and other readers agree."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from reports import NOON, items, objects, replace_id, review, said
from sparsight.imaging.results import Images, concepts, make_report
from sparsight.results import make_results
from sparsight.service import Service
from sparsight.types import Answer, Episode, Feedback, Mark, Question, Recheck

DOCS = Path(__file__).parents[3] / "docs"
KINDS = ["ct", "mr", "enhanced", "cr", "dx", "cine"]


@pytest.mark.parametrize("kind", KINDS)
def test_validators_find_no_error(
    served: Service, episodes: dict[str, Episode], kind: str, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """All versions and objects of each kind of image, with text that no ASCII holds."""
    dciodvfy, dsrdump = program("dciodvfy"), program("dsrdump")
    episode = replace(episodes[kind], id=f"{kind}-free", question=Question("Wie groß ist der Knoten?"))
    served.store.save_episode(episode)
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
