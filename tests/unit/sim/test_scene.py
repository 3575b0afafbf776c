"""Scenes: the same name gives the same scene, splits are apart, findings change their own pixels and no others."""

import hashlib
import time

import numpy as np
import pytest
from scipy import ndimage

from sparsight.errors import ConfigError
from sparsight.sim import PRESETS, Background, Backgrounds, SceneConfig, Simulator, Source

SMALL = SceneConfig(size=96)
SMALL_VOLUME = SceneConfig(size=96, depth=(8, 12))


def flat(shape_level: int = 110) -> Backgrounds:
    """A featureless background, on which every change is a finding's."""

    def make(split, n, shape):
        return Background(np.full(shape, shape_level, np.uint8), "flat", f"flat-{split}-{n}", "OT")

    return Backgrounds([Source("flat", {"train": 1, "val": 1}, make)])


@pytest.mark.parametrize("config", [SMALL, SMALL_VOLUME], ids=["image", "volume"])
def test_the_same_name_gives_the_same_scene_whatever_was_drawn_before(config):
    fresh, used = Simulator(config), Simulator(config)
    for index in (9, 4, 1):
        used.scene("train", index, seed=3)
    one, two = fresh.scene("train", 5, seed=3), used.scene("train", 5, seed=3)
    assert np.array_equal(one.volume.voxels, two.volume.voxels)
    assert [(c.id, c.question, c.answer, c.rationale) for c in one.cases] == [
        (c.id, c.question, c.answer, c.rationale) for c in two.cases
    ]


@pytest.mark.parametrize(
    ("preset", "known"),
    [
        ("default", "6e8319e6f0c86eda"),
        ("many", "6848763921f7dffb"),
        ("faint", "585f9b6165319f7e"),
        ("tiny", "a126a4da6d52eb20"),
        ("volume", "9139cccac5038288"),
    ],
)
def test_scenes_are_those_that_the_reader_was_trained_on(preset, known):
    """Places and texts of a few scenes, frozen: a change of the draws would part a reader from what its card says."""
    digest = hashlib.sha256()
    simulator = Simulator(PRESETS[preset])
    for split in ("train", "test"):
        for index in range(2):
            scene = simulator.scene(split, index, 3)
            placed = [(f.kind, f.quadrant, f.third, f.origin, f.local.shape) for f in scene.findings]
            asked = [(c.id, c.question.text, c.answer, c.rationale, c.group) for c in scene.cases]
            digest.update(repr((placed, asked)).encode())
    assert digest.hexdigest()[:16] == known


def test_split_index_and_seed_each_make_another_scene():
    simulator = Simulator(SMALL)
    names = [("train", 0, 0), ("train", 1, 0), ("train", 0, 1), ("val", 0, 0), ("test", 0, 0), ("test_ood", 0, 0)]
    hashes = {simulator.scene(*name).volume.sha256 for name in names}
    assert len(hashes) == len(names)


def test_no_background_is_shared_between_splits():
    simulator = Simulator(SceneConfig(size=64))
    groups = {
        split: {c.group for i in range(60) for c in simulator.scene(split, i).cases}
        for split in ("train", "val", "test", "test_ood")
    }
    assert all(len(g) > 20 for g in groups.values())
    names = list(groups)
    for n, a in enumerate(names):
        for b in names[n + 1 :]:
            assert not groups[a] & groups[b], (a, b)


@pytest.mark.parametrize("preset", ["default", "many", "faint", "tiny"])
def test_findings_change_pixels_inside_their_masks_and_none_far_from_them(preset):
    base = PRESETS[preset]
    config = SceneConfig(
        n_findings=base.n_findings, contrast=base.contrast, area=base.area, n_artefacts=(0, 0), noise=(0, 0)
    )
    simulator = Simulator(config, flat())
    for index in range(25):
        scene = simulator.scene("train", index)
        voxels = scene.volume.voxels
        changed = np.abs(voxels - np.median(voxels)) > 0.5
        masks = [f.mask() for f in scene.findings]
        for finding, mask in zip(scene.findings, masks, strict=True):
            assert changed[mask].mean() > 0.55, finding.kind
            sign = 1 if finding.bright else -1
            assert (sign * (voxels - np.median(voxels))[mask]).max() > 0.7 * 255 * config.contrast[0], finding.kind
        union = np.any(masks, axis=0)
        near = ndimage.distance_transform_edt(~union[0]) < 12  # the softest edge: three times 0.22 of 15 pixels
        assert not changed[0][~near].any()
        assert not sum(m.astype(int) for m in masks).max() > 1  # findings do not overlap


@pytest.mark.parametrize("preset", ["default", "many", "tiny"])
def test_areas_keep_to_the_configured_range(preset):
    config = PRESETS[preset]
    simulator = Simulator(config)
    for index in range(40):
        for finding in simulator.scene("val", index).findings:
            share = finding.local.sum() / config.size**2
            assert 0.55 * config.area[0] * 0.7 <= share <= 1.25 * config.area[1], finding.kind
            assert finding.area <= config.area[1]


@pytest.mark.parametrize("config", [SMALL, SMALL_VOLUME], ids=["image", "volume"])
def test_each_finding_lies_in_its_quadrant_and_third(config):
    for index in range(30):
        scene = Simulator(config, flat()).scene("train", index)
        d, h, w = scene.volume.shape
        for finding in scene.findings:
            k, j, i = np.nonzero(finding.mask())
            vertical, horizontal = finding.quadrant.split()
            assert (j.max() < h / 2) if vertical == "upper" else (j.min() >= h / 2)
            assert (i.max() < w / 2) if horizontal == "left" else (i.min() >= w / 2)
            if d > 1:
                third = ("inferior third", "middle third", "superior third").index(finding.third)
                assert round(d * third / 3) <= k.min() <= k.max() < round(d * (third + 1) / 3)
                assert 1 <= np.unique(k).size <= 6


def test_a_volume_runs_to_superior_so_the_last_slices_are_the_superior_third():
    scene = Simulator(SMALL_VOLUME).scene("train", 0)
    assert 8 <= scene.volume.shape[0] <= 12
    assert scene.volume.ijk_to_lps[2, 2] > 0


def test_voxels_stay_on_the_display_scale_and_are_float32():
    for config in (SMALL, SMALL_VOLUME):
        voxels = Simulator(config).scene("train", 2).volume.voxels
        assert voxels.dtype == np.float32
        assert 0 <= voxels.min() <= voxels.max() <= 255
        assert voxels.std() > 5


def test_a_kind_of_background_that_the_split_lacks_is_refused_by_name():
    with pytest.raises(ConfigError, match="synthetic_trunk"):
        Simulator(SceneConfig(backgrounds=("synthetic_trunk",))).scene("train", 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"area": (0.0001, 0.01)},
        {"contrast": (0.5, 0.1)},
        {"kinds": ("nodule",)},
        {"kinds": ("nodule", "dragon")},
        {"depth": (2, 4)},
        {"size": 100},
        {"n_findings": (0, 3)},
        {"question_kinds": ()},
        {"questions": 0},
        {"dark": 0.9},
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SceneConfig(**bad)


def test_an_image_takes_a_few_milliseconds():
    simulator = Simulator(backgrounds=flat())
    simulator.scene("train", 0)
    start = time.process_time()
    for index in range(100):
        simulator.scene("train", index)
    assert time.process_time() - start < 2.0  # 20 ms each, several times what an idle core needs
