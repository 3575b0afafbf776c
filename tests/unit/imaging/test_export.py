"""Pictures, label maps and masks, each read back by an independent reader."""

from pathlib import Path

import data_store
import highdicom
import itk
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from sparsight.errors import GeometryError, ImageError, InputError, NotFoundError
from sparsight.imaging.export import check_frame, frame_of, overlay_png, read_mask, write_labelmap
from sparsight.imaging.grid import prepare, resample_mask, tokens_to_boxes, tokens_to_labelmap
from sparsight.imaging.load import load
from sparsight.types import ImageVolume, Region

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),
    # itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),
]
LIVER = Path(data_store.__file__).parent / "data" / "liver.dcm"


def make_volume(shape: tuple[int, int, int] = (9, 40, 60)) -> ImageVolume:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [8, -5, 20], degrees=True).as_matrix() * [0.9, 1.4, 3.0]
    affine[:3, 3] = -40, 25, 130
    voxels = np.random.default_rng(0).normal(0.2, 0.02, size=shape).astype(np.float32)
    return ImageVolume(voxels, affine, "MR", (0.5, 1.0))


def evidence(volume: ImageVolume, tokens: NDArray[np.int64]) -> tuple[object, NDArray[np.float32], list[Region]]:
    g = prepare(volume, long_side=96, patch=8).geometry
    weights = np.zeros(int(np.prod(g.shape)), dtype=np.float32)
    weights[tokens] = 1 / len(tokens)
    box_ijk, box_mm = tokens_to_boxes(g, [tokens], volume.shape)[0]
    return g, weights, [Region(box_mm, box_ijk, 1.0, None, box_ijk[0][2])]


@pytest.mark.parametrize("name", ["e.nii.gz", "e.nii", "e.nrrd", "e.seg.nrrd", "e.mha"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_label_map_comes_back_where_it_was(name: str, whole: bool, tmp_path: Path) -> None:
    volume = make_volume()
    g = prepare(volume, long_side=96, patch=8).geometry
    labelmap = tokens_to_labelmap(g, np.array([17, 18, 30, 200]), volume.shape)
    write_labelmap(tmp_path / name, labelmap, volume if whole else volume.ijk_to_lps)
    mask, ijk_to_lps = read_mask(tmp_path / name)
    assert ijk_to_lps is not None
    assert np.array_equal(mask, labelmap > 0)
    assert ijk_to_lps == pytest.approx(volume.ijk_to_lps, abs=1e-3)
    assert np.array_equal(resample_mask(mask, ijk_to_lps, volume), labelmap > 0)


def test_other_readers_see_the_same_geometry(tmp_path: Path) -> None:
    volume = make_volume()
    labels = np.zeros(volume.shape, dtype=np.uint8)
    labels[3, 10, 50] = 1
    lps = (volume.ijk_to_lps @ [50, 10, 3, 1])[:3]
    write_labelmap(tmp_path / "a.nii.gz", labels, volume)
    by_itk = itk.imread(str(tmp_path / "a.nii.gz"))
    assert np.array(by_itk.TransformIndexToPhysicalPoint([50, 10, 3])) == pytest.approx(lps, abs=1e-3)
    assert by_itk.GetPixel([50, 10, 3]) == 1
    by_nibabel = nibabel.load(tmp_path / "a.nii.gz")
    assert (int(by_nibabel.header["qform_code"]), int(by_nibabel.header["sform_code"])) == (1, 1)
    assert by_nibabel.get_qform() == pytest.approx(by_nibabel.get_sform(), abs=1e-3)
    write_labelmap(tmp_path / "a.seg.nrrd", labels, volume)
    header = (tmp_path / "a.seg.nrrd").read_bytes()[:3000].decode("latin-1")
    assert "Segment0_LabelValue:=1" in header
    assert "space: left-posterior-superior" in header


def test_a_sheared_volume_keeps_its_shear_in_nifti(tmp_path: Path) -> None:
    """A tilted gantry: other formats cannot hold it, NIfTI's sform can."""
    volume = make_volume()
    volume.ijk_to_lps[:3, 2] += [0.4, 0.1, 0]
    labels = np.zeros(volume.shape, dtype=np.uint8)
    labels[5, 5:9, 6:12] = 1
    write_labelmap(tmp_path / "a.nii.gz", labels, volume)
    _, ijk_to_lps = read_mask(tmp_path / "a.nii.gz")
    assert ijk_to_lps is not None
    assert ijk_to_lps == pytest.approx(volume.ijk_to_lps, abs=1e-4)


def test_label_maps_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.seg\.nrrd"):
        write_labelmap(tmp_path / "a.png", np.zeros((1, 2, 2), dtype=np.uint8), np.eye(4))


def test_masks_as_pictures_know_no_place(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30), dtype=np.uint8)
    pixels[4:8, 5:9] = 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    mask, ijk_to_lps = read_mask(tmp_path / "m.png")
    assert ijk_to_lps is None
    assert np.array_equal(mask[0], pixels > 0)
    Image.new("L", (20, 30)).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png")[0].any()


def test_dicom_segmentations_are_read_as_highdicom_wrote_them(tmp_path: Path) -> None:
    """Two segments on a real CT slice stack; the marked voxels land on the voxels they were drawn on."""
    template = pydicom.dcmread(LIVER.parent / "693_UNCR.dcm")
    series = []
    for k in range(4):
        ds = pydicom.dcmread(LIVER.parent / "693_UNCR.dcm")
        ds.PatientName, ds.FrameOfReferenceUID = "Test^Case", "1.2.3"
        ds.SpacingBetweenSlices = 5
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.ImagePositionPatient = [*template.ImagePositionPatient[:2], float(template.ImagePositionPatient[2]) + 5 * k]
        ds.save_as(tmp_path / f"{k}.dcm")
        series.append(ds)
    drawn = np.zeros((4, 512, 512, 2), dtype=np.uint8)
    drawn[0, 100:120, 200:240, 0] = drawn[3, 300:310, 50:60, 1] = 1  # nothing between: those frames are not stored
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=n + 1,
            segment_label=f"s{n}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type="MANUAL",
        )
        for n in range(2)
    ]
    seg = highdicom.seg.Segmentation(
        series, drawn, "BINARY", segments, generate_uid(), 1, generate_uid(), 1, "maker", "model", "1", "serial",
    )  # fmt: skip
    seg.save_as(tmp_path / "mark.seg.dcm")
    mask, ijk_to_lps = read_mask(tmp_path / "mark.seg.dcm")
    assert ijk_to_lps is not None
    (tmp_path / "mark.seg.dcm").rename(tmp_path / "mark")
    volume = load(tmp_path)
    assert np.array_equal(resample_mask(mask, ijk_to_lps, volume), drawn.any(axis=-1))
    assert frame_of(tmp_path / "mark") == volume.frame_of_reference_uid != ""


def test_frames_of_reference_are_compared_where_both_are_known(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "m.png")
    assert frame_of(tmp_path / "m.png") == ""
    for mark, image in (("", "1.2"), ("1.2", ""), ("1.2", "1.2")):
        check_frame(mark, image)
    with pytest.raises(GeometryError, match="another frame of reference"):
        check_frame(frame_of(LIVER), "1.2")


def test_a_real_segmentation() -> None:
    mask, ijk_to_lps = read_mask(LIVER)
    assert mask.shape == (3, 512, 512)
    assert mask.sum() == 107_098
    assert ijk_to_lps is not None
    assert np.linalg.norm(ijk_to_lps[:3, :3], axis=0) == pytest.approx([0.810547, 0.810547, 1])


def test_a_segmentation_whose_slices_lie_far_apart_is_refused_unread(tmp_path: Path) -> None:
    """Three frames, but what lies between them would fill the memory."""
    ds = pydicom.dcmread(LIVER)
    place = ds.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    place.ImagePositionPatient = [*place.ImagePositionPatient[:2], -128.69 + 2e5]  # on the grid of the first two
    ds.save_as(tmp_path / "far.dcm")
    with pytest.raises(ImageError, match="512 x 512 x 200001"):
        read_mask(tmp_path / "far.dcm")


def test_masks_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_mask(tmp_path / "absent.nii")
    with pytest.raises(ImageError, match="kind CT"):
        read_mask(LIVER.parent / "693_UNCR.dcm")
    Image.new("L", (20, 30)).save(tmp_path / "lossy.jpg")
    with pytest.raises(ImageError, match="lossless"):
        read_mask(tmp_path / "lossy.jpg")
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b123")
    with pytest.raises(ImageError):
        read_mask(tmp_path / "cut.nii.gz")
    image = nibabel.Nifti1Image(np.ones((3, 3, 3), dtype=np.uint8), None)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "none.nii")
    with pytest.raises(GeometryError):
        read_mask(tmp_path / "none.nii")


def drawn_picture(path: Path) -> NDArray[np.int64]:
    """(height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def test_the_heat_lies_on_the_evidence(tmp_path: Path) -> None:
    volume = make_volume((1, 40, 60))
    g, weights, regions = evidence(volume, np.array([0]))  # the upper left corner
    overlay_png(volume, g, weights, regions, tmp_path / "a.png")
    picture = drawn_picture(tmp_path / "a.png")
    height, width, _ = picture.shape
    marked = np.argwhere(np.ptp(picture, axis=2) > 12)  # all that is not grey
    assert len(marked)
    assert marked[:, 1].max() < 0.2 * width
    assert marked[:, 0].max() < 0.3 * height


def test_proportions_are_those_of_the_patient(tmp_path: Path) -> None:
    """A square of tissue in anisotropic pixels is a square in the picture."""
    volume = ImageVolume(np.zeros((1, 30, 120), dtype=np.float32), np.diag([0.5, 2.0, 1, 1]), "DX", (0.5, 1.0))
    volume.voxels[:] = 0.01
    volume.voxels[0, 10:20, 40:80] = 1  # 20 mm x 20 mm
    g, weights, _ = evidence(volume, np.array([0]))
    overlay_png(volume, g, weights * 0, [], tmp_path / "a.png")
    picture = drawn_picture(tmp_path / "a.png").min(axis=2)
    height, width = picture.shape
    middle = picture[height // 8 : -height // 8, width // 4 : -width // 4]  # without the letters at the edges
    bright = np.argwhere(middle > 127)
    tall, wide = np.ptp(bright, axis=0)
    assert tall == pytest.approx(wide, rel=0.05)
    assert wide > 200  # small images are enlarged


@pytest.mark.parametrize(("tokens", "panels"), [([0], 1), ([0, 400], 2), ([0, 200, 300, 400, 500], 3)])
def test_a_volume_shows_its_heaviest_slices(tokens: list[int], panels: int, tmp_path: Path) -> None:
    volume = make_volume()
    g, weights, regions = evidence(volume, np.array(tokens))
    overlay_png(volume, g, weights, regions, tmp_path / "a.png", title="Where?")
    width = drawn_picture(tmp_path / "a.png").shape[1]
    assert width == pytest.approx({1: 900, 2: 1200, 3: 1800}[panels], rel=0.12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "title", ["", "$x^{2$ \\frac", "左肺に結節はありますか", "есть ли узел?", "word " * 400, "a" * 5000]
)
def test_any_question_can_be_a_title(title: str, tmp_path: Path) -> None:
    volume = make_volume((1, 40, 60))
    g, weights, regions = evidence(volume, np.array([3]))
    overlay_png(volume, g, weights, regions, tmp_path / "a.png", title=title)
    assert max(drawn_picture(tmp_path / "a.png").shape) < 2000


def test_a_slice_that_is_not_there(tmp_path: Path) -> None:
    volume = make_volume()
    g, weights, regions = evidence(volume, np.array([3]))
    for k in (-1, 9):
        with pytest.raises(InputError, match="0 to 8"):
            overlay_png(volume, g, weights, regions, tmp_path / "a.png", slice_index=k)
    overlay_png(volume, g, weights * 0, [], tmp_path / "none.png")  # nothing kept: the middle slice, no heat
    overlay_png(volume, g, weights, regions, tmp_path / "one.png", slice_index=8)
