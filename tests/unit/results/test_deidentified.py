"""Segmentations without the patient: nothing of whose images they are is left, and they are still whole objects."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from reports import NEEDED, NOON, replace_id
from sparsight.cli import main
from sparsight.errors import ConflictError
from sparsight.results import Results, make_results, write_results
from sparsight.service import Service
from sparsight.types import Episode, Feedback, Mark

TIMES = {"DA": "19000101", "TM": "000000"}


def corrected(served: Service, episode: Episode) -> str:
    """A copy of the answer with a region that somebody marked."""
    copied = replace_id(served, episode)
    asked = served.reopen(copied)
    mark = Mark("relevant", mask=asked.labelmap() > 0, mask_ijk_to_lps=asked.image.ijk_to_lps)
    served.correct(Feedback(f"k-{copied}", copied, "reader-77", "amend", NOON, answer="no", marks=(mark,)))
    return copied


def read(results: Results) -> dict[str, Dataset]:
    return {result.kind: dcmread(io.BytesIO(result.content)) for result in results.objects}


def values(ds: Dataset, *kinds: str) -> dict[str, list[str]]:
    """Of every element of these kinds, however deep: its values, by keyword."""
    found: dict[str, list[str]] = {}
    for element in ds.iterall():
        if element.VR in kinds and element.VM:
            each = [element.value] if element.VM == 1 else element.value
            found.setdefault(element.keyword, []).extend(str(value) for value in each)
    return found


def of_instances(ds: Dataset) -> set[str]:
    """UIDs but those of the standard."""
    return {uid for found in values(ds, "UI").values() for uid in found if not uid.startswith("1.2.840.10008.")}


@pytest.fixture(scope="module", params=["ct", "cr", "enhanced"])
def both(request: pytest.FixtureRequest, served: Service, episodes: dict[str, Episode]) -> tuple[Results, Results]:
    """The same answer with its patient and without."""
    episode = corrected(served, episodes[request.param])
    return make_results(served, episode, ["evidence", "corrections"]), make_results(served, episode, deidentify=True)


def test_nothing_of_the_patient_is_left(both: tuple[Results, Results]) -> None:
    named, clean = both
    assert [(kind, why.split(":")[0]) for kind, why in clean.left_out] == [("report", "a report without identity")]
    secrets = {*NEEDED.values(), "Doe", "MRN", "Referrer", "19700101", "20260102", "091500", "reader-77", named.episode}
    uids = {uid for result in named.objects for uid in of_instances(result.dataset)}
    assert len(uids) > 5
    for result in clean.objects:
        assert {secret for secret in secrets if secret.encode() in result.content} == set(), result.name
        assert of_instances(result.dataset) & uids == set(), result.name
        for kind, dummy in TIMES.items():
            assert {one for each in values(result.dataset, kind).values() for one in each} <= {dummy}
        assert values(result.dataset, "PN") == {"PatientName": [f"{result.dataset.PatientID}^"]}


def test_what_is_left_says_so_and_can_be_read(both: tuple[Results, Results]) -> None:
    named, clean = (read(results) for results in both)
    for kind in ("evidence", "corrections"):
        ds, was = clean[kind], named[kind]
        assert ds.PatientIdentityRemoved == "YES"
        [how] = ds.DeidentificationMethodCodeSequence
        assert (how.CodeValue, how.CodingSchemeDesignator) == ("113100", "DCM")
        assert ds.LongitudinalTemporalInformationModified == "REMOVED"
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.PixelData == was.PixelData
        parsed = highdicom.seg.Segmentation.from_dataset(ds)
        np.testing.assert_array_equal(parsed.pixel_array, was.pixel_array)
        if "FrameOfReferenceUID" in was:
            places = [values(one, "DS").get("ImagePositionPatient") for one in (ds, was)]
            assert places[0] == places[1]
    assert clean["evidence"].StudyInstanceUID == clean["corrections"].StudyInstanceUID == both[1].study_uid
    assert clean["evidence"].PatientID == clean["corrections"].PatientID


def test_it_is_valid(both: tuple[Results, Results], program: Callable[[str], str], tmp_path: Path) -> None:
    dciodvfy = program("dciodvfy")
    for result in both[1].objects:
        (tmp_path / result.name).write_bytes(result.content)
        command = [dciodvfy, "-new", str(tmp_path / result.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        lines = (done.stdout + done.stderr).splitlines()
        problems = [line for line in lines if line.startswith(("Error", "Warning")) and "99SPARSIGHT" not in line]
        assert problems == [], result.name


def test_uids_are_the_same_in_one_store_and_others_in_the_next(
    served: Service, episodes: dict[str, Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = corrected(served, replace(episodes["mr"], id="again"))
    [one, two] = [make_results(served, episode, ["evidence"], deidentify=True) for _ in "ab"]
    assert one.objects[0].content == two.objects[0].content
    key = served.config.home / "deidentify.key"
    assert key.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("sparsight.results._key", lambda home: "another")
    other = make_results(served, episode, ["evidence"], deidentify=True)
    assert other.study_uid != one.study_uid


def test_a_report_is_refused(served: Service, episodes: dict[str, Episode]) -> None:
    with pytest.raises(ConflictError, match="without identity"):
        make_results(served, episodes["mr"].id, ["report"], deidentify=True)


def test_the_folder_is_another_than_that_of_the_named_ones(both: Any, served: Service, tmp_path: Path) -> None:
    for results in both:
        write_results(served, results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [both[0].episode, f"{both[0].episode}-deidentified"]
    assert (tmp_path / both[0].episode / "evidence-1.dcm").read_bytes() == both[0].objects[0].content


def test_the_command(
    served: Service,
    episodes: dict[str, Episode],
    kinds: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader = served.config.serve.reader
    where = ["--home", str(served.config.home), "--reader", str(reader)]
    command = ["sparsight", *where, "dicom", episodes["mr"].id, "--studies", str(kinds[0]), "--deidentify", "--json"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in told["objects"]] == ["evidence"]
    assert dcmread(told["objects"][0]["file"]).PatientIdentityRemoved == "YES"
    monkeypatch.setattr(sys, "argv", [*command, "--store"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code not in (0, None)
