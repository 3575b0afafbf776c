"""A prior on its current image: where its pixels go, which pairs are refused, and what each slice still says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sparsight.errors import GeometryError, ImageError, InputError, SparsightError
from sparsight.imaging.pair import pair_of
from sparsight.types import ImageVolume


def picture(shape: tuple[int, int] = (96, 120), *, spot: tuple[int, int] = (30, 80), **more: Any) -> ImageVolume:
    """Even grey with a bright square of 9 pixels around `spot` (row, column)."""
    voxels = np.full((1, *shape), 60, np.float32)
    voxels[0, spot[0] - 4 : spot[0] + 5, spot[1] - 4 : spot[1] + 5] = 200
    given: dict[str, Any] = {"ijk_to_lps": np.eye(4), "modality": "OT", "window": (127.5, 255.0), "has_mm": False}
    return ImageVolume(voxels, **{**given, **more})


def centre_of(image: NDArray[np.float32]) -> tuple[float, float]:
    """(row, column) of what is bright."""
    rows, columns = np.nonzero(image > 130)
    return float(rows.mean()), float(columns.mean())


def test_pictures_of_one_size_are_taken_as_they_are() -> None:
    prior, current = picture(spot=(20, 20)), picture()
    pair = pair_of(prior, current)
    assert pair.pair
    assert np.array_equal(pair.voxels, np.concatenate([prior.voxels, current.voxels]))
    assert pair.current.sha256 == current.sha256
    assert not pair.current.pair
    assert pair.sop_uids == ()


def test_a_picture_without_millimetres_is_scaled_to_the_same_size() -> None:
    pair = pair_of(picture((192, 240), spot=(60, 160)), picture())
    assert centre_of(pair.voxels[0]) == pytest.approx((29.75, 79.75), abs=0.6)
    with pytest.raises(GeometryError, match="width to height"):
        pair_of(picture((192, 120), spot=(60, 80)), picture())


def test_a_radiograph_keeps_its_true_size_about_the_centre() -> None:
    """Half the pixel size: the square covers half as many current pixels, and half as far from the centre."""
    half = {"ijk_to_lps": np.diag([0.1, 0.1, 1.0, 1.0]), "modality": "DX", "has_mm": True}
    whole = {**half, "ijk_to_lps": np.diag([0.2, 0.2, 1.0, 1.0]), "modality": "CR"}
    pair = pair_of(picture((180, 220), spot=(60, 150), **half), picture(**whole))
    away = (60 - 89.5) / 2 + 47.5, (150 - 109.5) / 2 + 59.5
    assert centre_of(pair.voxels[0]) == pytest.approx(away, abs=0.6)
    assert 12 <= (pair.voxels[0] > 130).sum() <= 30  # 81 pixels of a quarter of the area
    assert pair.modality == "CR"


def section(turned: float, at: tuple[float, float, float], spot: tuple[int, int]) -> ImageVolume:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", turned, degrees=True).as_matrix() * [1.0, 1.0, 3.0]
    affine[:3, 3] = at
    return picture(spot=spot, ijk_to_lps=affine, has_mm=True)


def test_a_section_goes_where_it_lies_in_the_patient() -> None:
    current = section(0, (0, 0, 40), (30, 80))
    pair = pair_of(section(0, (-10, 5, 41), (40, 70)), current)  # rows begin 5 mm lower, columns 10 mm to the right
    assert centre_of(pair.voxels[0]) == pytest.approx((45, 60))
    turned = section(15, (20, -10, 40), (40, 70))
    x, y, _ = (turned.ijk_to_lps @ [70, 40, 0, 1])[:3]
    assert centre_of(pair_of(turned, current).voxels[0]) == pytest.approx((y, x), abs=0.7)
    black = pair_of(section(0, (40, 0, 40), (40, 70)), current).voxels[0][:, :35]
    assert (black == 0).all()  # where the prior does not reach


def test_boxes_of_the_study_stay_in_place_and_those_of_the_prior_have_an_address_of_their_own() -> None:
    current = section(0, (3, 4, 40), (30, 80))
    pair = pair_of(section(0, (3, 4, 40), (40, 70)), current)
    assert pair.ijk_to_lps @ [5, 6, 1, 1] == pytest.approx(current.ijk_to_lps @ [5, 6, 0, 1])
    assert (pair.ijk_to_lps @ [5, 6, 0, 1])[2] == pytest.approx(37)
    assert np.linalg.matrix_rank(pair.ijk_to_lps) == 4


def test_windows_are_brought_together_and_hounsfield_units_left_alone() -> None:
    """Raw values of two detectors differ by a factor; what is white in one is white in the other."""
    prior = picture(spot=(20, 20), modality="DX")
    prior = replace(prior, voxels=prior.voxels * 16, window=(2040.0, 4080.0))
    pair = pair_of(prior, picture(modality="DX"))
    assert pair.voxels[0] == pytest.approx(picture(spot=(20, 20)).voxels[0], abs=0.01)
    hounsfield = picture(spot=(20, 20), modality="CT")
    assert pair_of(replace(hounsfield, window=(40.0, 400.0)), picture(modality="CT")).voxels[0].max() == 200


def test_each_slice_names_its_own_object_and_the_hash_covers_both() -> None:
    prior = picture(spot=(20, 20), modality="DX", sop_uids=("1.2.3",), series_uid="1.2")
    current = picture(modality="DX", sop_uids=("1.2.4",), series_uid="1.3")
    pair = pair_of(prior, current)
    assert pair.sop_uids == ("1.2.3", "1.2.4")
    assert pair.series_uid == "1.3"
    assert pair.current.sop_uids == ("1.2.4",)
    others = [pair_of(picture(spot=(21, 20), modality="DX"), current), pair_of(current, prior)]
    assert len({p.sha256 for p in (pair, *others)}) == 3
    assert others[0].sop_uids == ("", "1.2.4")


VOLUME = replace(picture(), voxels=np.repeat(picture().voxels, 5, 0))
PLACED = {"modality": "MR", "has_mm": True, "sop_uids": ("1.2",)}


@pytest.mark.parametrize(
    ("prior", "current", "kind", "said"),
    [
        (VOLUME, picture(), GeometryError, "prior of 5 slices"),
        (picture(), VOLUME, GeometryError, "study of 5 slices"),
        (VOLUME, replace(VOLUME, voxels=VOLUME.voxels + 1), GeometryError, "not compared yet"),
        (picture(modality="MR"), picture(modality="CT"), ImageError, "modality MR"),
        (picture(modality="DX"), picture(), ImageError, "modality DX"),
        (picture(), picture(), InputError, "same image"),
        (section(0, (0, 0, 90), (40, 70)), section(0, (0, 0, 40), (30, 80)), GeometryError, "less than half"),
        (section(0, (100, 0, 40), (40, 70)), section(0, (0, 0, 40), (30, 80)), GeometryError, "less than half"),
        (
            picture(spot=(20, 20), **PLACED, frame_of_reference_uid="1"),
            picture(**PLACED, frame_of_reference_uid="2"),
            GeometryError,
            "frame of reference",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_reason(
    prior: ImageVolume, current: ImageVolume, kind: type[SparsightError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        pair_of(prior, current)
