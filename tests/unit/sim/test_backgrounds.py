"""Backgrounds: made once, bounded in memory, apart by patient; real ones come from packages and from a data folder."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.imaging.load import load
from sparsight.sim import SPLITS, Background, Backgrounds, SceneConfig, Simulator, Source, synthetic
from sparsight.sim.anatomy import ANATOMY
from sparsight.sim.common import jitter
from sparsight.sim.place import QUADRANTS, Canvas
from sparsight.sim.real import _without, from_folder, from_packages, standard, to_bytes, to_lps
from sparsight.sim.shapes import Patch
from sparsight.types import ImageVolume


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", ANATOMY)
@pytest.mark.parametrize("shape", [(1, 192, 192), (12, 96, 96)])
def test_synthetic_anatomy_fills_its_shape_and_leaves_room_to_brighten(kind, shape):
    voxels = ANATOMY[kind][0](rng(), shape)
    assert voxels.shape == shape
    assert voxels.dtype == np.uint8
    assert voxels.std() > 8
    assert (voxels > 225).mean() < 0.05
    other = ANATOMY[kind][0](rng(1), shape)
    assert np.abs(voxels.astype(int) - other).mean() > 1


def test_neighbouring_slices_of_synthetic_volumes_are_alike():
    volumes = [s for s in synthetic(1) if not s.images_only]
    assert {s.kind for s in volumes} == {"synthetic_brain", "synthetic_tissue", "synthetic_trunk"}
    for source in volumes:
        split = next(iter(source.counts))
        voxels = source.make(split, 0, (16, 96, 96)).voxels.astype(float)
        step = np.abs(np.diff(voxels, axis=0)).mean()
        far = np.abs(voxels[:8] - voxels[8:]).mean()
        assert step < 0.7 * far, source.kind


def test_a_background_is_made_once_and_memory_is_bounded():
    made = []

    def make(split, n, shape):
        made.append(n)
        return Background(np.zeros(shape, np.uint8), "k", "g", "OT")

    shape = (1, 64, 64)
    kept = Backgrounds([Source("k", {"train": 3}, make)])
    for seed in range(40):
        kept.pick(rng(seed), "train", shape)
    assert sorted(made) == [0, 1, 2]
    made.clear()
    tight = Backgrounds([Source("k", {"train": 3}, make)], limit_bytes=2 * 64 * 64)
    for seed in range(40):
        tight.pick(rng(seed), "train", shape)
    assert len(made) > 3


def test_kinds_out_of_distribution_are_in_no_other_split():
    backgrounds = Backgrounds(synthetic())
    ood = set(backgrounds.kinds("test_ood"))
    assert ood == {"synthetic_trunk"}
    assert not any(ood & set(backgrounds.kinds(split)) for split in SPLITS if split != "test_ood")


def test_jitter_keeps_sides_range_and_most_of_the_picture():
    picture = np.zeros((1, 96, 96), np.uint8)
    picture[:, 20:40, 60:80] = 200  # upper right
    for seed in range(20):
        out = jitter(rng(seed), picture)
        assert out.dtype == np.float32
        assert 0 <= out.min() < out.max() <= 235.01
        _, j, i = np.unravel_index(out.argmax(), out.shape)
        assert j < 48 < i
        bright = (out > (out.min() + out.max()) / 2).sum()
        assert 0.7 * 400 < bright < 1.6 * 400


def test_places_lie_in_the_quadrant_inside_the_body_and_clear_of_each_other():
    voxels = np.full((1, 192, 192), 5, np.float32)
    voxels[:, 48:144, 48:144] = 120 + rng().standard_normal((96, 96), np.float32)
    canvas = Canvas(voxels)
    size = (1, 14, 14)
    boxes = []
    for n in range(8):
        (k, j, i), spread = canvas.locate(rng(n), size, QUADRANTS[n % 4], "", 50.0)
        assert k == 0
        assert spread < 10  # wholly inside the body: no edge to air
        assert 40 <= j <= 144
        canvas.add(Patch(np.zeros(size, np.float32), np.zeros(size, bool)), (k, j, i), 50.0)
        boxes.append((j, i))
    for a, (j, i) in enumerate(boxes):
        assert all(abs(j - y) >= 14 or abs(i - x) >= 14 for y, x in boxes[a + 1 :])


def test_there_is_no_place_for_what_is_larger_than_a_quadrant():
    canvas = Canvas(np.zeros((1, 64, 64), np.float32))
    assert canvas.locate(rng(), (1, 30, 10), "upper left", "", 10.0) is None


@given(
    order=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3), spacing=st.tuples(*[st.floats(0.3, 5)] * 3)
)
def test_to_lps_undoes_any_order_and_direction_of_axes(order, flips, spacing):
    """A volume in LPS order, stored with its axes permuted and flipped, comes back as it was."""
    original = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # [z, y, x]
    affine = np.diag([*spacing, 1.0])  # (x, y, z, 1) to LPS
    stored = original.transpose(order)
    axes = [2 - o for o in order][::-1]  # which of x, y, z the stored i, j, k run along
    affine = affine[:, [*axes, 3]]
    for world, flip in enumerate(flips):  # world: 0, 1, 2 of i, j, k
        if flip:
            stored = np.flip(stored, 2 - world)
            affine[:3, world] *= -1
    volume = ImageVolume(np.ascontiguousarray(stored), affine, "MR", (0.0, 1.0))
    assert np.array_equal(to_lps(volume).voxels, original)


def test_to_bytes_pads_to_a_square_and_honours_the_window():
    image = np.linspace(-1000, 1000, 60 * 40, dtype=np.float32).reshape(60, 40)
    out = to_bytes(image, (40.0, 400.0), 96)
    assert out.shape == (96, 96)
    assert out[:, :10].max() == 0  # padding
    assert out[2, 48] == 0
    assert out[-3, 48] == 235
    assert np.ptp(to_bytes(np.full((8, 8), 7.0), None, 16)) == 0  # constant: no division by zero


def test_package_backgrounds_are_brains_to_train_on_and_others_never_trained_on():
    sources = {s.kind: s for s in from_packages()}
    if set(sources) != {"icbm152", "packages"}:
        pytest.skip("nilearn or pydicom-data is not installed")
    assert set(sources["icbm152"].counts) == {"train"}
    assert set(sources["packages"].counts) == {"test_ood"}
    brain = sources["icbm152"].make("train", 30, (1, 192, 192)).voxels[0].astype(float)
    left, right = brain[:, :90], brain[:, :-91:-1]
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.8  # symmetric about the midline: axial, upright
    assert brain[96, 96] > brain[2, 2]
    slab = sources["icbm152"].make("train", 3, (16, 96, 96))
    assert slab.voxels.shape == (16, 96, 96)
    for n in range(sources["packages"].counts["test_ood"]):
        assert sources["packages"].make("test_ood", n, (1, 96, 96)).voxels.std() > 5


def test_a_volume_is_not_made_of_single_images():
    def make(split, n, shape):
        raise AssertionError

    backgrounds = Backgrounds([Source("photo", {"train": 1}, make, images_only=True), *synthetic(2)])
    config = SceneConfig(size=64, depth=(8, 8))
    assert Simulator(config, backgrounds).scene("train", 0).volume.shape == (8, 64, 64)


def test_without_a_folder_every_split_still_has_backgrounds(tmp_path: Path):
    assert from_folder(tmp_path) == []
    backgrounds = standard(tmp_path)
    assert all(backgrounds.kinds(split) for split in SPLITS)


@pytest.mark.realdata
def test_real_backgrounds_are_apart_by_patient(real_data):
    sources = from_folder(real_data)
    assert {s.kind for s in sources} == {"nih_cxr", "ms_flair", "demo_t1"}
    for source in sources:
        groups = {
            split: {source.make(split, n, (1, 64, 64)).group for n in range(0, count, 3)}
            for split, count in source.counts.items()
        }
        names = list(groups)
        for n, a in enumerate(names):
            for b in names[n + 1 :]:
                assert groups[a], source.kind
                assert not groups[a] & groups[b], source.kind


@pytest.mark.realdata
def test_flair_lesions_are_gone_from_the_background(real_data):
    folder = real_data / "ms_flair" / "volumes"
    image = folder / "patient07_FLAIR_mni.nii.gz"
    lesions = folder / "patient07_lesions_mni.nii.gz"
    filled, before = _without(lesions, image, load), to_lps(load(image)).voxels
    marked = to_lps(load(lesions)).voxels > 0.5
    assert filled[marked].mean() < 0.9 * before[marked].mean()  # lesions are bright in FLAIR
    untouched = np.isclose(filled, before)
    assert untouched.mean() > 0.98
