"""Anatomy that looks as if another machine had taken another person's, with findings as they always are."""

from dataclasses import replace

import numpy as np
import pytest

from sparsight.errors import ConfigError
from sparsight.sim import PRESETS, SceneConfig, Simulator
from sparsight.sim.common import vary

SYNTHETIC = SceneConfig(backgrounds=("synthetic_brain",))


def test_it_is_another_image_of_the_same_size_with_contrast_of_its_own() -> None:
    voxels = np.tile(np.linspace(0, 235, 96).astype(np.uint8), (2, 96, 1))
    drawn = [vary(np.random.default_rng(seed), voxels) for seed in range(40)]
    assert all(image.shape == voxels.shape and image.dtype == np.uint8 for image in drawn)
    assert all(np.ptp(image) > 40 for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 40
    rising = [bool((np.diff(image[0].astype(int), axis=1) >= 0).all()) for image in drawn]
    assert not all(rising)
    assert np.array_equal(drawn[0], vary(np.random.default_rng(0), voxels))


@pytest.mark.parametrize("preset", ["default", "pair"])
def test_scenes_that_are_not_varied_are_the_same_as_ever(preset: str) -> None:
    config = replace(PRESETS[preset], backgrounds=("synthetic_brain",))
    plain, none, all_ = (
        Simulator(replace(config, varied=varied)).scene("train", 3, 0).volume.voxels for varied in (0.0, 0.0, 1.0)
    )
    assert np.array_equal(plain, none)
    assert not np.array_equal(plain, all_)


def test_findings_keep_their_look_and_their_place() -> None:
    """Over many scenes a bright finding is brighter than what surrounds it, however its anatomy was varied."""
    simulator = Simulator(replace(SYNTHETIC, varied=1.0, n_findings=(1, 1), kinds=("nodule", "mass"), dark=0.0))
    brighter = []
    for index in range(30):
        scene = simulator.scene("train", index, 0)
        for finding in scene.findings:
            mask = finding.mask()
            rows, columns = np.nonzero(mask[0])
            assert (rows < 96).all() == finding.quadrant.startswith("upper")
            assert (columns < 96).all() == finding.quadrant.endswith("left")
            near = np.zeros_like(mask)
            near[0, max(rows.min() - 6, 0) : rows.max() + 7, max(columns.min() - 6, 0) : columns.max() + 7] = True
            brighter.append(scene.volume.voxels[mask].mean() > scene.volume.voxels[near & ~mask].mean())
    assert np.mean(brighter) > 0.8


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="varied"):
        SceneConfig(varied=share)
