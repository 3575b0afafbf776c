"""A study asked about beside its prior: one pair, encoded once, recorded, reopened, corrected in the right image."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsight.config import Config
from sparsight.errors import GeometryError, NotFoundError, QuestionError
from sparsight.evidence import describe
from sparsight.reply import ask_json
from sparsight.service import Service, parse_question
from sparsight.types import Feedback, ImageVolume, Mark, Selection

QUESTION = parse_question("Is there a new nodule?")
TOKENS = 480  # of one image


@pytest.fixture
def served(config: Config, tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed, name in enumerate(("now", "before", "long-before")):
        pixels = np.random.default_rng(seed).integers(0, 255, (96, 120), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    service = Service(config, folder)
    yield service
    service.close()


def test_both_are_encoded_once_as_one_pair_and_recorded(served: Service) -> None:
    asked = served.ask("now", QUESTION, prior="before")
    episode = served.episode(asked.episode.id)
    assert (episode.study, episode.prior) == ("now", "before")
    assert episode.evidence.total == 2 * TOKENS
    assert episode.grid_shape == (2, 20, 24)
    assert ask_json(asked) == ask_json(replace(asked, episode=episode))
    again = served.ask("now", QUESTION, prior="before").episode
    assert again.timings_ms["encode"] == 0
    assert np.array_equal(again.selection.keep, episode.selection.keep)
    other = served.ask("now", QUESTION, prior="long-before").episode
    alone = served.ask("now", QUESTION).episode
    swapped = served.ask("before", QUESTION, prior="now").episode
    hashes = {e.volume_sha256 for e in (episode, other, alone, swapped)}
    assert len(hashes) == 4
    assert (alone.prior, alone.evidence.total) == (None, TOKENS)
    assert ask_json(replace(asked, episode=alone))["prior"] is None
    assert served.store.verify() == []


def test_a_pair_is_reopened_as_a_pair_and_a_study_as_itself(config: Config, served: Service) -> None:
    pair, alone = served.ask("now", QUESTION, prior="before").episode, served.ask("now", QUESTION).episode
    for service in (served, Service(config, served.studies.root)):
        assert service.reopen(pair.id).volume.shape == (2, 96, 120)
        assert service.reopen(alone.id).volume.shape == (1, 96, 120)
    changed = served.studies.root / "before.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (96, 120), dtype=np.uint8)).save(changed)
    with pytest.raises(NotFoundError, match="changed"):
        Service(config, served.studies.root).reopen(pair.id)


def test_a_region_lies_in_one_image_and_says_in_which(served: Service) -> None:
    asked = served.ask("now", QUESTION, prior="before", budget=1.0)
    keep = np.array([100, 101, TOKENS + 100, TOKENS + 101])  # at the same place in both
    selection = Selection(keep, np.ones(2 * TOKENS, np.float32), 0.0, "greedy", "p")
    found = describe(asked.volume, asked.grid, selection, necessity=None, threshold=0.0)
    assert sorted(region.slice_index for region in found.regions) == [0, 1]
    assert all(region.box_ijk[1][2] - region.box_ijk[0][2] == 1 for region in found.regions)
    replied = ask_json(replace(asked, episode=replace(asked.episode, evidence=found)))["evidence"]
    assert {(region["slice"], region["image"]) for region in replied} == {(0, "prior"), (1, "current")}
    joined = describe(replace(asked.volume, pair=False), asked.grid, selection, necessity=None, threshold=0.0)
    assert len(joined.regions) == 1  # what neighbouring slices of a volume would be


def test_the_label_map_is_of_the_study_alone(served: Service) -> None:
    asked = served.ask("now", QUESTION, prior="before", budget=1.0, recheck=False)
    assert asked.labelmap().shape == asked.image.shape == (1, 96, 120)
    assert asked.labelmap().all()
    assert np.array_equal(asked.image.ijk_to_lps, np.eye(4))


@pytest.mark.parametrize("drawn", ["box of the reply", "picture", "mask in millimetres"])
def test_a_mark_lands_in_the_image_it_was_drawn_on(served: Service, drawn: str) -> None:
    """Drawn on the current image, over all of it: grounding is the share of the kept tokens that lie there."""
    asked = served.ask("now", QUESTION, prior="before", budget=0.3, recheck=False)
    keep = asked.episode.selection.keep
    mask = np.ones((1, 96, 120), bool)
    if drawn == "picture":
        mark = Mark("relevant", mask=mask)
    elif drawn == "mask in millimetres":
        mark = Mark("relevant", mask=mask, mask_ijk_to_lps=asked.image.ijk_to_lps)
    else:
        mark = Mark("relevant", box_mm=((-0.5, -0.5, -0.5), (119.5, 95.5, 0.5)))
    feedback = Feedback("k", asked.episode.id, "r", "amend", datetime.now(UTC), marks=(mark,))
    grounding = served.correct(feedback).parts["grounding"]
    assert grounding == pytest.approx((keep >= TOKENS).mean(), abs=0.02)
    assert 0 < (keep >= TOKENS).sum() != (keep < TOKENS).sum()


def test_volumes_in_memory_can_be_compared_too(service: Service, picture: ImageVolume) -> None:
    prior = replace(picture, voxels=picture.voxels[:, ::-1].copy())
    episode = service.ask(picture, QUESTION, prior=prior).episode
    assert episode.prior == f"sha256-{prior.sha256[:16]}"
    assert episode.study == f"sha256-{picture.sha256[:16]}"


def test_what_cannot_be_compared_leaves_no_record(served: Service, picture: ImageVolume) -> None:
    with pytest.raises(NotFoundError):
        served.ask("now", QUESTION, prior="nowhere")
    with pytest.raises(QuestionError, match="region"):
        served.ask("now", replace(QUESTION, region=((0.0, 0.0, 0.0), (9.0, 9.0, 1.0))), prior="before")
    with pytest.raises(GeometryError):
        served.ask(replace(picture, voxels=np.repeat(picture.voxels, 3, 0)), QUESTION, prior=picture)
    assert served.status()["episodes"] == 0
