"""The border between RAS and LPS, for volumes that lie anyhow."""

import tempfile
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import slicer
from hypothesis import given, settings
from hypothesis import strategies as st
from mrml import make_scene
from scipy.spatial.transform import Rotation

from sparsight.imaging.export import write_labelmap
from sparsight.imaging.grid import prepare, resample_mask, tokens_to_boxes
from sparsight.types import ImageVolume
from SparsightLib import geometry, volumes
from SparsightLib.logic import SparsightLogic

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any spacing, origin and orientation, mirrored ones among them."""
    turn = Rotation.from_euler("xyz", [draw(st.floats(-180, 180)) for _ in range(3)], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * [draw(st.floats(0.2, 6)) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


shapes = st.tuples(st.integers(1, 6), st.integers(2, 30), st.integers(2, 30))
points = st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 3), min_size=1, max_size=20)


@given(points)
def test_there_and_back(points: Any) -> None:
    assert (geometry.flipped(geometry.flipped(points)) == np.array(points)).all()
    assert (geometry.flipped(points)[:, 2] == np.array(points)[:, 2]).all()


@given(points)
def test_a_box_is_the_same_from_both_sides(points: Any) -> None:
    low, high = np.min(points, 0), np.max(points, 0)
    centre, size = geometry.ras_of_box([low.tolist(), high.tolist()])
    again = geometry.box_of_ras(geometry.corners(centre, np.array(size) / 2))
    assert np.allclose(again, [low, high], atol=1e-6)


@given(shapes, affines(), st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_a_volume_whose_axes_are_stored_otherwise_is_at_the_same_place(
    shape: tuple[int, int, int], ijk_to_lps: np.ndarray, order: list[int], reverse: tuple[bool, ...]
) -> None:
    size = np.array(shape[::-1])
    other = np.eye(4)  # index here to index there
    for new, old in enumerate(order):
        other[old, old] = 0
        other[old, new] = -1 if reverse[new] else 1
        other[old, 3] = size[old] - 1 if reverse[new] else 0
    stored = LPS @ ijk_to_lps @ other
    assert geometry.same_place(shape, ijk_to_lps, size[order], stored)
    moved = stored.copy()
    moved[:3, 3] += stored[:3, 0]
    assert not geometry.same_place(shape, ijk_to_lps, size[order], moved)
    larger = size[order] + np.array([1, 0, 0])
    assert not geometry.same_place(shape, ijk_to_lps, larger, stored)


@given(shapes, affines(), st.data())
@settings(max_examples=30)
def test_boxes_of_the_server_survive_the_scene(shape: Any, ijk_to_lps: np.ndarray, data: st.DataObject) -> None:
    """From tokens on an oblique volume to an ROI and back into a mark."""
    voxels = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    grid = prepare(ImageVolume(voxels, ijk_to_lps, "MR", (0.5, 1.0)), long_side=32, patch=8).geometry
    tokens = np.array([data.draw(st.integers(0, int(np.prod(grid.shape)) - 1))])
    [(_, box_mm)] = tokens_to_boxes(grid, [tokens], shape)
    scene = make_scene()
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    centre, size = geometry.ras_of_box(box_mm)
    roi.SetCenter(*centre)
    roi.SetSize(*size)
    assert np.allclose(SparsightLogic.box_of(roi), box_mm, atol=2e-3)


@given(affines(), st.floats(-90, 90))
@settings(max_examples=20)
def test_a_turned_roi_lies_in_its_box(affine: np.ndarray, angle: float) -> None:
    scene = make_scene()
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(0, 0, 0)
    roi.SetSize(10, 20, 4)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", angle, degrees=True).as_matrix()
    turn[:3, 3] = affine[:3, 3]
    roi.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(turn))
    low, high = np.array(SparsightLogic.box_of(roi))
    inside = geometry.flipped(geometry.corners(np.zeros(3), np.array([5, 10, 2])) @ turn[:3, :3].T + turn[:3, 3])
    assert (inside >= low - 2e-3).all()
    assert (inside <= high + 2e-3).all()
    assert np.allclose(inside.min(0), low, atol=2e-3)


@given(shapes, affines(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_label_map_goes_in_and_a_mask_comes_out_at_the_same_voxels(shape: Any, ijk_to_lps: Any, seed: int) -> None:
    """As the server writes it, to a file that an independent reader reads, and the server brings to its voxels."""
    labels = (np.random.default_rng(seed).random(shape) > 0.7).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_labelmap(Path(folder) / "l.nii.gz", labels, ijk_to_lps)
        kept = volumes.labelmap((Path(folder) / "l.nii.gz").read_bytes(), shape)
        assert (kept == labels).all()
        (Path(folder) / "m.nrrd").write_bytes(volumes.mask_nrrd(kept, geometry.MIRROR @ ijk_to_lps))
        drawn, header = nrrd.read(str(Path(folder) / "m.nrrd"))
    assert (drawn.transpose(2, 1, 0) == labels).all()
    flip = {"right-anterior-superior": LPS, "left-posterior-superior": np.eye(4)}[header["space"]]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    assert np.allclose(flip @ affine, ijk_to_lps, atol=1e-9)
    study = ImageVolume(labels.astype(np.float32), ijk_to_lps, "MR", (0.5, 1.0))
    if labels.any():
        assert (resample_mask(drawn.transpose(2, 1, 0) > 0, flip @ affine, study) == labels).all()
