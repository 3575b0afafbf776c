"""Real files: each loads, or is refused with an error that says why."""

import shutil
import struct
import tarfile
import time
from pathlib import Path

import data_store
import numpy as np
import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import RLELossless

from sparsight.errors import GeometryError, ImageError, NotFoundError, SparsightError
from sparsight.imaging.dicomweb import FolderWeb
from sparsight.imaging.export import read_mask
from sparsight.imaging.grid import prepare, resample_mask
from sparsight.imaging.load import load
from sparsight.imaging.studies import FolderStudies
from sparsight.types import ImageVolume

PYDICOM_DATA = sorted((Path(data_store.__file__).parent / "data").glob("*.dcm"))
PYDICOM_TESTS = sorted(p for p in (Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm") if p.is_file())
REFUSED = {  # of pydicom-data: why
    **dict.fromkeys(["liver.dcm", "liver_expb.dcm"], (ImageError, "kind SEG")),
    **dict.fromkeys(
        [p.name for p in PYDICOM_DATA if p.name.startswith("emri_small")], (GeometryError, "without a position")
    ),  # their functional groups were stripped
}
# real files carry values that DICOM forbids, and pydicom says so
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def check(volume: ImageVolume) -> None:
    assert volume.voxels.dtype == np.float32
    assert np.isfinite(volume.voxels).all()
    assert np.ptp(volume.voxels) > 0
    assert abs(np.linalg.det(volume.ijk_to_lps[:3, :3])) > 0
    pixels = prepare(volume, long_side=64, patch=8).pixels
    assert np.ptp(pixels) > 0.05  # the window shows something


def test_all_of_pydicom_data_is_there() -> None:
    assert len(PYDICOM_DATA) == 68


@pytest.mark.parametrize("path", PYDICOM_DATA, ids=lambda p: p.name)
def test_pydicom_data(path: Path) -> None:
    if path.name in REFUSED:
        error, reason = REFUSED[path.name]
        with pytest.raises(error, match=reason):
            load(path)
    else:
        check(load(path))


@pytest.mark.parametrize("path", PYDICOM_TESTS, ids=lambda p: p.name)
def test_pydicom_test_files(path: Path) -> None:
    """Among them truncated, malformed and non-image objects: nothing but our errors comes out."""
    try:
        volume = load(path)
    except SparsightError:
        return
    check(volume)


@pytest.mark.parametrize(
    ("compressed", "plain", "tolerance"),
    [
        ("693_J2KR.dcm", "693_UNCR.dcm", 0),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
        ("RG1_J2KR.dcm", "RG1_UNCR.dcm", 0),
        ("RG3_J2KI.dcm", "RG3_UNCI.dcm", 1),  # lossy: the decoder may round differently
        ("US1_J2KR.dcm", "US1_UNCR.dcm", 1),
        ("OBXXXX1A_rle.dcm", "OBXXXX1A.dcm", 0),
        ("SC_rgb_expb_16bit.dcm", "SC_rgb_16bit.dcm", 0),
        ("SC_rgb_dcmtk_ebcynp_dcmd.dcm", "SC_rgb.dcm", 12),  # JPEG and back through YCbCr
        ("gdcm-US-ALOKA-16_big.dcm", "gdcm-US-ALOKA-16.dcm", 0),
    ],
)
def test_transfer_syntaxes_agree(compressed: str, plain: str, tolerance: float) -> None:
    folder = PYDICOM_DATA[0].parent
    difference = np.abs(load(folder / compressed).voxels - load(folder / plain).voxels)
    assert difference.max() <= tolerance


def test_a_truncated_dicom_file(tmp_path: Path) -> None:
    whole = (PYDICOM_DATA[0].parent / "693_UNCR.dcm").read_bytes()
    for share in (0.05, 0.5, 0.99):
        (tmp_path / "cut.dcm").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError):
            load(tmp_path / "cut.dcm")


@pytest.mark.parametrize("keyword", ["Modality", "SeriesInstanceUID", "StudyDate", "PixelSpacing", "RescaleSlope"])
def test_an_element_that_cannot_be_decoded_hides_no_other_file(keyword: str, tmp_path: Path) -> None:
    sound = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    tag = struct.pack("<HH", tag_for_keyword(keyword) >> 16, tag_for_keyword(keyword) & 0xFFFF)
    place = sound.index(tag + dictionary_VR(keyword).encode()) + 4
    (tmp_path / "odd.dcm").write_bytes(sound[:place] + b"FZ" + sound[place + 2 :])
    shutil.copy(PYDICOM_DATA[0].parent / "MR2_UNCR.dcm", tmp_path / "sound.dcm")
    studies = FolderStudies(tmp_path)
    assert "MR" in {info.modality for info in studies.list()}
    web = FolderWeb(studies)
    for info in studies.list():
        for row in web.metadata(info.study_uid, info.series_uid):
            assert f"{tag_for_keyword(keyword):08X}" not in row or info.modality == "MR"
    assert len(web.studies({})) >= 1
    if keyword == "StudyDate":  # nothing of the image depends on it
        assert load(tmp_path / "odd.dcm").shape == (1, 128, 128)
    else:
        with pytest.raises(ImageError):
            load(tmp_path / "odd.dcm")


def test_a_decoder_that_panics_is_a_damaged_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ds = dcmread(str(get_testdata_file("CT_small.dcm")))
    ds.compress(RLELossless)
    stream = bytearray(ds.PixelData)
    place = len(stream) - 2000
    refused = 0
    for n in range(40):  # runs that are longer than what is left: the decoder in Rust panics, with no Exception
        stream[place + 40 * n] = 0x7F
        ds.PixelData = bytes(stream)
        ds.save_as(tmp_path / "a.dcm")
        try:
            load(tmp_path / "a.dcm")
        except ImageError:
            refused += 1
    assert refused
    capfd.readouterr()


def test_files_that_are_not_dicom(tmp_path: Path) -> None:
    for name, content in (("a.dcm", b""), ("b.dcm", b"\x30\x82" + bytes(500)), ("c", b"hello"), ("d.dcm", b"x" * 5000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=r"not DICOM|without an image"):
            load(tmp_path / name)
    with pytest.raises(NotFoundError):
        load(tmp_path / "absent.dcm")


def test_a_folder_with_several_series_lists_them(tmp_path: Path) -> None:
    for name in ("693_UNCR.dcm", "MR2_UNCR.dcm", "liver.dcm"):
        shutil.copy(PYDICOM_DATA[0].parent / name, tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(GeometryError, match=r"2 series.*\(CT, 1 images\).*\(MR, 1 images\)") as caught:
        load(tmp_path)
    uid = caught.value.expected.removeprefix("one of: ").split(" ")[0]
    assert load(tmp_path, series_uid=uid).series_uid == uid
    with pytest.raises(NotFoundError, match="CT, 1 images"):
        load(tmp_path, series_uid="1.2.3")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no DICOM image"):
        load(tmp_path)


@pytest.mark.realdata
def test_the_384_slice_series(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "demo_dicom" / "dicom_t1_pddl.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    began = time.process_time()  # others may be using the cores
    volume = load(tmp_path)
    prepared = prepare(volume, long_side=192, patch=8)
    assert time.process_time() - began < 10  # about 1 s
    assert volume.shape == (384, 384, 274)
    assert volume.modality == "MR"
    assert len(set(volume.sop_uids)) == 384
    assert volume.spacing_mm == pytest.approx((0.7, 0.6667, 0.6667), abs=1e-3)
    assert prepared.geometry.shape[0] == 384
    check(volume)


@pytest.mark.realdata
def test_flair_volumes_and_their_masks_share_one_space(real_data: Path) -> None:
    images = sorted((real_data / "ms_flair" / "volumes").glob("*_FLAIR_mni.nii.gz"))
    assert images
    for path in images:
        volume = load(path)
        check(volume)
        assert volume.shape == (182, 218, 182)
        mask, ijk_to_lps = read_mask(path.with_name(path.name.replace("FLAIR", "lesions")))
        assert ijk_to_lps is not None
        lesions = resample_mask(mask, ijk_to_lps, volume)
        assert lesions.sum() == mask.sum()
        inside = volume.voxels[lesions].mean()
        assert inside > 1.25 * volume.voxels[volume.voxels > 5].mean()  # lesions are bright in FLAIR


@pytest.mark.realdata
def test_chest_radiographs(real_data: Path) -> None:
    paths = sorted((real_data / "nih_cxr" / "images").iterdir())[:40]
    assert paths
    for path in paths:
        volume = load(path)
        check(volume)
        assert volume.shape[0] == 1
        assert not volume.has_mm
