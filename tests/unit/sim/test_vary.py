"""Anatomy that looks as if another machine had taken another person's, with findings as they always are."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsight.errors import ConfigError
from sparsight.sim import PRESETS, SceneConfig, Simulator, common
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
def test_only_a_share_of_the_scenes_is_varied(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = common.vary

    def counted(rng: np.random.Generator, voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        calls.append(1)
        return real(rng, voxels)

    monkeypatch.setattr(common, "vary", counted)
    config = replace(PRESETS[preset], backgrounds=("synthetic_brain",))
    plain, half = Simulator(config), Simulator(replace(config, varied=0.5))
    as_ever = [plain.scene("train", n, 0).volume.voxels for n in range(12)]
    assert not calls
    some = [half.scene("train", n, 0).volume.voxels for n in range(12)]
    assert 2 <= len(calls) <= 20  # crowded scenes are drawn anew
    assert not all(np.array_equal(a, b) for a, b in zip(as_ever, some, strict=True))


def test_a_scene_that_is_not_to_be_varied_draws_as_if_there_were_no_such_thing() -> None:
    voxels = np.tile(np.linspace(0, 235, 96).astype(np.uint8), (1, 96, 1))
    plain, asked = np.random.default_rng(0), np.random.default_rng(0)
    assert np.array_equal(common.jitter(plain, voxels), common.taken(asked, voxels, 0.0))
    assert plain.random() == asked.random()


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
