"""DICOMweb over a folder: what OHIF asks for, byte for byte what the files hold."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from sparsight.errors import NotFoundError
from sparsight.imaging.dicomweb import FolderWeb
from sparsight.imaging.studies import FolderStudies

FILES = ("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm", "emri_small.dcm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web")
    for n, name in enumerate(FILES):
        ds = dcmread(str(get_testdata_file(name)))
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.{n}", f"1.2.{n}.1"
        ds.save_as(root / name)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "picture.png")
    return root


@pytest.fixture(scope="module")
def web(folder: Path) -> FolderWeb:
    return FolderWeb(FolderStudies(folder))


def found(rows: list[dict[str, object]]) -> list[str]:
    return [str(Dataset.from_json(row).StudyInstanceUID) for row in rows]


def test_studies_are_listed_filtered_and_paged(web: FolderWeb) -> None:
    rows = [Dataset.from_json(row) for row in web.studies({})]
    assert [ds.StudyInstanceUID for ds in rows] == [f"1.2.{n}" for n in range(len(FILES))]
    ct = rows[0]
    assert (ct.ModalitiesInStudy, ct.NumberOfStudyRelatedSeries, ct.NumberOfStudyRelatedInstances) == ("CT", 1, 1)
    assert ct.PatientName == "CompressedSamples^CT1"
    assert found(web.studies({"StudyInstanceUID": "1.2.3"})) == ["1.2.3"]
    assert found(web.studies({"0020000D": "1.2.3,1.2.1"})) == ["1.2.1", "1.2.3"]
    assert found(web.studies({"PatientName": "*ct1*"})) == ["1.2.0"]
    assert found(web.studies({"ModalitiesInStudy": "MR"})) == [f"1.2.{n}" for n in (1, 2, 3, 4)]
    assert found(web.studies({"StudyDate": "20040101-20040131"})) == ["1.2.0"]
    assert found(web.studies({"limit": "2", "offset": "1"})) == ["1.2.1", "1.2.2"]
    assert len(web.studies({"limit": "x", "includefield": "all", "fuzzymatching": "false"})) == len(FILES)
    assert web.studies({"StudyInstanceUID": "9.9"}) == []


def test_series_and_metadata_hold_what_a_viewer_needs(web: FolderWeb) -> None:
    [series] = [Dataset.from_json(row) for row in web.series("1.2.0", {})]
    assert (series.Modality, series.SeriesInstanceUID, series.NumberOfSeriesRelatedInstances) == ("CT", "1.2.0.1", 1)
    assert web.series("9.9", {}) == []
    [ds] = [Dataset.from_json(row) for row in web.metadata("1.2.0", "1.2.0.1")]
    file = dcmread(str(get_testdata_file("CT_small.dcm")))
    for keyword in ("SOPInstanceUID", "Rows", "PixelSpacing", "ImagePositionPatient", "RescaleSlope", "BitsStored"):
        assert ds[keyword].value == file[keyword].value
    assert "PixelData" not in ds
    assert not [element for element in ds.iterall() if element.VR in ("OB", "OW", "UN")]
    [frames] = web.metadata("1.2.4", "1.2.4.1")
    assert Dataset.from_json(frames).NumberOfFrames == 10


@pytest.mark.parametrize("number", range(len(FILES)))
def test_frames_are_those_of_the_file(web: FolderWeb, folder: Path, number: int) -> None:
    ds = dcmread(folder / FILES[number])
    uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    frames = int(ds.get("NumberOfFrames", 1))
    pixels = ds.pixel_array.reshape(frames, ds.Rows, ds.Columns)
    for n in (1, frames):
        content, syntax = web.frame(*uids, n)
        if syntax == JPEG2000Lossless:
            assert content == list(generate_frames(ds.PixelData, number_of_frames=frames))[n - 1]
            continue
        assert syntax == ExplicitVRLittleEndian
        shown = np.frombuffer(content, pixels.dtype.newbyteorder("<")).reshape(ds.Rows, ds.Columns)
        assert np.array_equal(shown, pixels[n - 1])
    for wrong in (0, frames + 1):
        with pytest.raises(NotFoundError):
            web.frame(*uids, wrong)


def test_what_is_not_there_is_not_found(web: FolderWeb) -> None:
    with pytest.raises(NotFoundError):
        web.metadata("1.2.0", "1.2.1.1")
    with pytest.raises(NotFoundError):
        web.frame("1.2.0", "1.2.0.1", "9.9", 1)


def test_the_folder_is_searched_once_for_the_frames_of_a_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    for k in range(3):
        ds.SOPInstanceUID, ds.ImagePositionPatient[2] = f"1.2.3.{k}", 5 * k
        ds.save_as(tmp_path / f"{k}.dcm")
    study, series = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID)
    source = FolderStudies(tmp_path)
    web, listed, look = FolderWeb(source), [], source.list
    monkeypatch.setattr(source, "list", lambda: listed.append(1) or look())
    for k in (0, 1, 2, 0, 1):
        assert web.frame(study, series, f"1.2.3.{k}", 1)[0] == ds.PixelData
    assert len(listed) == 1, "each frame of thousands would look at thousands of files"
    ds.SOPInstanceUID, ds.PixelData = "1.2.3.9", bytes(len(ds.PixelData))
    ds.save_as(tmp_path / "1.dcm")  # another image in its place
    with pytest.raises(NotFoundError):
        web.frame(study, series, "1.2.3.1", 1)
    assert web.frame(study, series, "1.2.3.9", 1)[0] == ds.PixelData
    (tmp_path / "0.dcm").unlink()
    with pytest.raises(NotFoundError):
        web.frame(study, series, "1.2.3.0", 1)


def test_new_files_are_seen(tmp_path: Path) -> None:
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "a.dcm")
    web = FolderWeb(FolderStudies(tmp_path))
    [study] = found(web.studies({}))
    ds = dcmread(tmp_path / "a.dcm")
    ds.SOPInstanceUID += ".1"
    ds.ImagePositionPatient[2] += 5
    ds.save_as(tmp_path / "b.dcm")
    assert len(web.metadata(study, str(ds.SeriesInstanceUID))) == 2
