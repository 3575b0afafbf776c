"""DICOM series to volumes: geometry, values, and what is refused. Objects are made here; real ones in test_load."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from sparsight.errors import GeometryError, ImageError
from sparsight.imaging.dicom import read_header, volume_from_datasets

SERIES, STUDY, FRAME = generate_uid(), generate_uid(), generate_uid()


def make_slice(k: int = 0, **changes: object) -> Dataset:
    """An axial CT slice of 8 x 6 pixels at z = 2.5 k mm; changes set attributes, None deletes one."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, SERIES, FRAME
    ds.Modality, ds.BodyPartExamined = "CT", "HEAD"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 6, 8, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.75], 5
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, 20, 2.5 * k]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = (np.arange(48, dtype=np.uint16).reshape(6, 8) * 20 + 100 * k + 600).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def make_series(n: int = 5, **changes: object) -> list[Dataset]:
    return [make_slice(k, **changes) for k in range(n)]


def test_slices_are_ordered_by_position_and_keep_their_uids() -> None:
    series = make_series(5)
    shuffled = [series[i] for i in (3, 0, 4, 2, 1)]
    volume = volume_from_datasets(shuffled)
    assert volume.shape == (5, 6, 8)
    assert volume.sop_uids == tuple(ds.SOPInstanceUID for ds in series)
    assert volume.voxels[:, 0, 0].tolist() == [-424 + 100 * k for k in range(5)]
    assert volume.spacing_mm == pytest.approx((0.75, 0.5, 2.5))  # PixelSpacing is (row, column) distance
    assert (volume.ijk_to_lps @ [1, 2, 3, 1])[:3] == pytest.approx([-9.25, 21, 7.5])
    assert (volume.modality, volume.body_part, volume.has_mm) == ("CT", "HEAD", True)
    assert (volume.study_uid, volume.series_uid, volume.frame_of_reference_uid) == (STUDY, SERIES, FRAME)


@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.floats(0.3, 6),
    st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_geometry_agrees_with_highdicom(
    angles: tuple[float, float, float], distance: float, spacing: tuple[float, float], reverse: bool
) -> None:
    """Oblique, reversed, anisotropic: an independent reader puts every voxel at the same place."""
    turn = np.round(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), 9)
    series = [
        make_slice(
            k,
            ImageOrientationPatient=[*turn[:, 0], *turn[:, 1]],
            ImagePositionPatient=[round(float(x), 7) for x in turn[:, 2] * distance * (-k if reverse else k)],
            PixelSpacing=[round(s, 7) for s in spacing],
        )
        for k in range(4)
    ]
    ours = volume_from_datasets(series)
    theirs = highdicom.get_volume_from_series(series, apply_modality_transform=True)
    kji_to_ijk = [2, 1, 0, 3]
    for corner in ((0, 0, 0), (7, 0, 0), (0, 5, 0), (7, 5, 3)):
        lps = ours.ijk_to_lps @ [*corner, 1]
        at = (np.linalg.inv(theirs.affine[:, kji_to_ijk]) @ lps)[:3]
        i, j, k = np.rint(at).astype(int)
        assert at == pytest.approx([i, j, k], abs=1e-3)
        assert theirs.array[k, j, i] == ours.voxels[corner[2], corner[1], corner[0]]


def test_a_tilted_gantry_keeps_its_shear() -> None:
    series = [make_slice(k, ImagePositionPatient=[0, 0.6 * k, 2.5 * k]) for k in range(4)]
    volume = volume_from_datasets(series)
    assert volume.ijk_to_lps[:3, 2] == pytest.approx([0, 0.6, 2.5])


def test_the_same_object_twice_counts_once() -> None:
    series = make_series(3)
    assert volume_from_datasets([*series, series[1]]).shape[0] == 3


def test_slightly_uneven_slices_are_tolerated_gaps_are_not() -> None:
    uneven = make_series(5)
    uneven[2].ImagePositionPatient = [-10, 20, 5.1]
    assert volume_from_datasets(uneven).spacing_mm[2] == pytest.approx(2.5)
    with pytest.raises(GeometryError, match="irregular"):
        volume_from_datasets([ds for n, ds in enumerate(make_series(6)) if n != 3])


def _two_at_one_place() -> list[Dataset]:
    return [*make_series(4), make_slice(2)]


def _other_orientation() -> list[Dataset]:
    return [*make_series(3), make_slice(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])]


def _other_size() -> list[Dataset]:
    return [*make_series(3), make_slice(3, Rows=8, Columns=6)]


def _without_positions() -> list[Dataset]:
    return make_series(3, ImagePositionPatient=None)


def _without_spacing() -> list[Dataset]:
    return make_series(3, PixelSpacing=None)


def _other_spacing() -> list[Dataset]:
    return [*make_series(3), make_slice(3, PixelSpacing=[0.6, 0.75])]


def _other_series() -> list[Dataset]:
    return [*make_series(3), make_slice(3, SeriesInstanceUID=generate_uid())]


def _skewed() -> list[Dataset]:
    return make_series(3, ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0])


def _frames_without_place() -> list[Dataset]:
    return [make_slice(NumberOfFrames=2, PixelData=bytes(range(96)) * 2, PlanePositionSequence=Sequence())]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_two_at_one_place, "at the place of another"),
        (_other_orientation, "mixed orientation"),
        (_other_size, "different sizes"),
        (_without_positions, "without position"),
        (_without_spacing, "without a pixel spacing"),
        (_other_spacing, "different pixel spacing"),
        (_other_series, "2 series"),
        (_skewed, "perpendicular"),
        (_frames_without_place, "without a position for each"),
    ],
)
def test_series_that_form_no_volume_are_refused_with_the_reason(make: Callable[[], list[Dataset]], reason: str) -> None:
    with pytest.raises(GeometryError, match=reason):
        volume_from_datasets(make())


def test_localizers_and_captures_are_left_out() -> None:
    localizer = make_slice(
        7, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )
    capture = make_slice(9, SOPClassUID=SecondaryCaptureImageStorage, Rows=12, Columns=4)
    assert volume_from_datasets([localizer, *make_series(4), capture]).shape == (4, 6, 8)
    assert volume_from_datasets([capture]).shape == (1, 12, 4)  # alone, it is the image


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PixelData": bytes(50)}, "cannot be decoded"),
        ({"PixelData": None}, "without pixel data"),
        ({"Modality": "SEG"}, "kind SEG without an image"),
        ({"Rows": None}, "without an image"),
        ({"PixelData": bytes(96)}, "all the same"),
        ({"Rows": 20_000, "Columns": 20_000}, "20000 x 20000"),
        ({"RescaleSlope": 0}, "all the same"),
        ({"PhotometricInterpretation": "UNHEARD OF"}, "cannot be decoded"),
    ],
)
def test_objects_without_a_readable_image_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        volume_from_datasets([make_slice(**changes)])


def test_a_one_pixel_image_is_refused_as_constant() -> None:
    with pytest.raises(ImageError, match="all the same"):
        volume_from_datasets([make_slice(Rows=1, Columns=1, PixelData=b"\1\2")])


def test_encrypted_attributes_are_named() -> None:
    ds = make_slice(Rows=None, Columns=None, PixelData=None)
    ds.EncryptedAttributesSequence = Sequence([Dataset()])
    with pytest.raises(ImageError, match="encrypted"):
        volume_from_datasets([ds])


def test_errors_hold_no_patient_text() -> None:
    ds = make_slice(PatientName="Doe^Jane", PatientID="4711", PixelData=bytes(50), ImageComments="Doe")
    with pytest.raises(ImageError) as caught:
        volume_from_datasets([ds])
    assert "Doe" not in str(caught.value)
    assert "4711" not in str(caught.value)


def test_monochrome1_is_inverted_with_its_window() -> None:
    normal = volume_from_datasets([make_slice(WindowCenter=0, WindowWidth=800)])
    inverted = volume_from_datasets(
        [make_slice(PhotometricInterpretation="MONOCHROME1", WindowCenter=0, WindowWidth=800)]
    )
    low, high = -1024, 4095 - 1024  # what 12 bits can hold, in HU
    assert inverted.voxels == pytest.approx(low + high - normal.voxels)
    assert inverted.window == (low + high - 0, 800)


def test_padding_is_dark_in_either_polarity() -> None:
    pixels = np.full((6, 8), 2000, dtype=np.uint16)
    pixels[:, 4:] = np.arange(24).reshape(6, 4) * 10 + 1000
    pixels[0, 0] = 4095
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        ds = make_slice(PixelData=pixels.tobytes(), PhotometricInterpretation=photometric)
        ds.add_new("PixelPaddingValue", "US", 4095)
        volume = volume_from_datasets([ds])
        assert volume.voxels[0, 0, 0] == volume.voxels.min()


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ((60, 360), (60, 360)),
        (([50, 300], [350, 1500]), (50, 350)),  # the first of several
        ((60, 0), (40, 400)),
        ((9000, 10), (40, 400)),  # shows nothing of this image
        (None, (40, 400)),
    ],
)
def test_ct_windows(stated: tuple[object, object] | None, expected: tuple[float, float]) -> None:
    changes = {} if stated is None else {"WindowCenter": stated[0], "WindowWidth": stated[1]}
    assert volume_from_datasets([make_slice(**changes)]).window == expected


def test_other_modalities_get_percentiles_without_the_background() -> None:
    pixels = np.zeros((6, 8), dtype=np.uint16)
    pixels[2:4] = np.arange(16).reshape(2, 8) + 500
    ds = make_slice(Modality="MR", SOPClassUID=MRImageStorage, PixelData=pixels.tobytes(), RescaleIntercept=0)
    centre, width = volume_from_datasets([ds]).window
    assert centre == pytest.approx(507.5)
    assert width == pytest.approx(15, abs=0.5)


def test_colour_becomes_luminance() -> None:
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[:3] = 255, 0, 0
    pixels[3:] = 0, 255, 0
    ds = make_slice(
        Modality="US", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8,
        BitsStored=8, HighBit=7, PixelData=pixels.tobytes(),
    )  # fmt: skip
    volume = volume_from_datasets([ds])
    assert volume.voxels[0, 0, 0] == pytest.approx(0.299 * 255, abs=0.1)
    assert volume.voxels[0, 5, 0] == pytest.approx(0.587 * 255, abs=0.1)
    assert volume.window == (127.5, 255)


def test_radiographs_know_millimetres_from_the_detector_or_not_at_all() -> None:
    bare = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None, "Modality": "DX"}
    known = volume_from_datasets([make_slice(**bare, ImagerPixelSpacing=[0.2, 0.1])])
    assert (known.has_mm, known.spacing_mm[:2]) == (True, (0.1, 0.2))
    unknown = volume_from_datasets([make_slice(**bare)])
    assert (unknown.has_mm, unknown.spacing_mm[:2]) == (False, (1, 1))
    zero = volume_from_datasets([make_slice(**{**bare, "PixelSpacing": [0, 0]})])
    assert not zero.has_mm


def test_ultrasound_millimetres_come_from_its_region() -> None:
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    ds = make_slice(
        Modality="US", ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None,
        SequenceOfUltrasoundRegions=Sequence([region]),
    )  # fmt: skip
    assert volume_from_datasets([ds]).spacing_mm[:2] == pytest.approx((0.2, 0.3))


def make_enhanced(order: tuple[int, ...] = (2, 0, 1)) -> Dataset:
    """An enhanced MR object whose frames are stored out of order, each with its own rescale."""
    ds = make_slice(SOPClassUID=EnhancedMRImageStorage, Modality="MR", NumberOfFrames=len(order))
    for name in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for k in order:
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 4.0 * k]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = k + 1, 0, "US"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([transform])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.PixelData = np.arange(48 * len(order), dtype=np.uint16).tobytes()
    return ds


def test_enhanced_objects_take_place_and_rescale_from_their_functional_groups() -> None:
    volume = volume_from_datasets([make_enhanced((2, 0, 1))])
    assert volume.shape == (3, 6, 8)
    assert volume.voxels[:, 0, 1].tolist() == [49 * 1, 97 * 2, 1 * 3]
    assert volume.ijk_to_lps[:3, 2] == pytest.approx([0, 0, 4])
    assert len(set(volume.sop_uids)) == 1
    assert len(volume.sop_uids) == 3
    with pytest.raises(GeometryError, match="place of another"):
        volume_from_datasets([make_enhanced((0, 1, 2, 0))])  # two time points


def test_compressed_frames_decode_to_the_same_values() -> None:
    plain = make_slice()
    packed = make_slice(SOPInstanceUID=plain.SOPInstanceUID)
    packed.compress(RLELossless, generate_instance_uid=False)
    assert packed.file_meta.TransferSyntaxUID == RLELossless
    assert np.array_equal(volume_from_datasets([packed]).voxels, volume_from_datasets([plain]).voxels)
    packed.PixelData = encapsulate([b"\0" * 70])
    with pytest.raises(ImageError, match="RLE Lossless"):
        volume_from_datasets([packed])


def test_headers_lead_back_to_their_pixels(tmp_path: Path) -> None:
    series = make_series(3)
    for n, ds in enumerate(series):
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            ds.SOPClassUID,
            ds.SOPInstanceUID,
        )
        ds.save_as(tmp_path / f"{n}.dcm", enforce_file_format=True)
    headers = [read_header(tmp_path / f"{n}.dcm") for n in range(3)]
    assert "PixelData" not in headers[0]
    assert np.array_equal(volume_from_datasets(headers).voxels, volume_from_datasets(series).voxels)
    assert volume_from_datasets(headers).sha256 == volume_from_datasets(series[::-1]).sha256
