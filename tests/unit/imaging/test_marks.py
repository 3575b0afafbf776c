"""Marks in the voxels of the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sparsight.imaging.grid import GridGeometry, box_to_tokens
from sparsight.imaging.marks import box_mask, mark_mask
from sparsight.types import ImageVolume, Mark

SHAPE = (5, 12, 9)


def volume(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> ImageVolume:
    return ImageVolume(np.zeros(shape, np.float32), affine, "CT", (0.0, 1.0))


def test_a_box_drawn_on_voxels_marks_those_voxels() -> None:
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = -7, 4, 11
    half = np.array([0.25, 1, 1.5])
    low, high = (affine @ [2, 3, 1, 1])[:3] - half, (affine @ [5, 7, 2, 1])[:3] + half
    mask = box_mask((tuple(low), tuple(high)), volume(affine))
    wanted = np.zeros(SHAPE, bool)
    wanted[1:3, 3:8, 2:6] = True
    assert np.array_equal(mask, wanted)


@pytest.mark.parametrize("k", [0, 2, 4])
def test_a_flat_box_marks_one_slice(k: int) -> None:
    mask = box_mask(((1.0, 2.0, 4.0 * k), (5.0, 6.0, 4.0 * k)), volume(np.diag([1.0, 1, 4, 1])))
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [k]
    assert mask[k, 2:6, 1:5].all()
    assert np.count_nonzero(mask) == 4 * 4


def test_a_box_beside_the_image_marks_nothing() -> None:
    assert not box_mask(((100.0, 0, 0), (120.0, 5, 5)), volume(np.eye(4))).any()


def test_a_box_between_centres_marks_the_voxel_around_it() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [40, 30, 45], degrees=True).as_matrix() * 10
    at = (turn @ [3.4, 5.4, 2.4, 1])[:3]
    mask = box_mask((tuple(at), tuple(at)), volume(turn))
    assert mask[2, 5, 3]


@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.5, 3)] * 3),
    st.tuples(*[st.floats(-3, 12)] * 3),
    st.tuples(*[st.floats(2, 9)] * 3),
)
@settings(max_examples=60)
def test_voxels_marked_are_those_that_learning_counts(
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    start: tuple[float, float, float],
    size: tuple[float, float, float],
) -> None:
    """Against `box_to_tokens` with a token for each voxel: whatever is covered whole is marked, what is not, not."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    box = (start, tuple(a + b for a, b in zip(start, size, strict=True)))
    grid = GridGeometry(SHAPE, (1.0, 1.0, 1.0), np.eye(4), affine)
    coverage = box_to_tokens(grid, box).reshape(SHAPE)
    mask = box_mask(box, volume(affine))
    assert mask[coverage > 0.999].all()
    assert not mask[coverage == 0].any() or np.count_nonzero(mask) == 1


def test_a_picture_lies_on_the_current_image_of_a_pair() -> None:
    drawn = np.zeros((1, 12, 9), bool)
    drawn[0, 4, 5] = True
    pair = volume(np.eye(4), (2, 12, 9))
    mask = mark_mask(Mark("missed", mask=drawn), pair)
    assert np.argwhere(mask).tolist() == [[1, 4, 5]]
    padded = mark_mask(Mark("missed", mask=np.pad(drawn, ((0, 0), (0, 0), (0, 0)))), volume(np.eye(4), (1, 14, 9)))
    assert np.argwhere(padded).tolist() == [[0, 4, 5]]


def test_a_stroke_marks_the_voxels_it_runs_through_and_those_near_it() -> None:
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = -7, 4, 11
    path = tuple(tuple(float(x) for x in (affine @ [i, 3, 2, 1])[:3]) for i in (1, 6))
    thin = mark_mask(Mark("missed", path_mm=path), volume(affine))
    wanted = np.zeros(SHAPE, bool)
    wanted[2, 3, 1:7] = True
    assert np.array_equal(thin, wanted)
    wide = mark_mask(Mark("missed", path_mm=path, radius_mm=2.1), volume(affine))
    assert np.array_equal(np.argwhere(wide.any(axis=(0, 2))).ravel(), [2, 3, 4])  # 2 mm apart
    assert np.flatnonzero(wide.any(axis=(1, 2))).tolist() == [2]  # 3 mm apart
    assert np.flatnonzero(wide[2, 3]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_click_beside_the_image_marks_nothing() -> None:
    assert not mark_mask(Mark("missed", path_mm=((90.0, 0.0, 0.0),), radius_mm=3.0), volume(np.eye(4))).any()
