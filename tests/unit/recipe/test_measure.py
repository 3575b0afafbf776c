"""Figures of the model card: intervals over images, and what the card says of how they came about."""

from pathlib import Path

import numpy as np
import pytest

from sparsight.model.nano.weights import NanoSpec
from sparsight.recipe.card import write_card
from sparsight.recipe.measure import interval


def test_intervals_resample_images_not_their_questions() -> None:
    per_image = np.random.default_rng(0).random(50) < 0.5
    right, images = np.repeat(per_image, 8).astype(float), np.repeat(np.arange(50), 8)
    loose, tight = interval(right, images), interval(right)
    assert loose[1] - loose[0] > 2 * (tight[1] - tight[0])  # eight equal questions tell as much as one
    assert loose == pytest.approx(interval(per_image.astype(float)), abs=0.03)
    assert loose[0] < right.mean() < loose[1]


def test_an_interval_leaves_out_what_is_not_a_number_with_its_image() -> None:
    values, images = np.array([0.0, 1.0, np.nan, 1.0, 0.0]), np.array([0, 1, 2, 3, 4])
    assert interval(values, images) == interval(values[[0, 1, 3, 4]], images[[0, 1, 3, 4]])


def test_the_card_says_what_supervised_and_how_majority_was_counted(tmp_path: Path) -> None:
    row = {"selector": "ours", "budget": 0.1, "accuracy": 0.5, "ci": [0.4, 0.6], "p_right": 0.5, "recall": 0.7}
    whole = {**row, "selector": "all", "budget": 1.0}
    paired = [{"rival": "all", "budget": 0.1, "gain": 0.0, "ci": [-0.1, 0.1]}]
    table = {"n": 4, "rows": [whole, row], "paired": paired, "ours by question": {"where": [0.5, 4]}}
    figures = dict.fromkeys(("simulated", "volumes", "unseen anatomy"), table)
    figures |= {"real val": {"bccd": {"n": 4, "majority": 0.5, "ours 0.1": 0.5, "no image": 0.5}}, "reader": "nano-0"}
    write_card(tmp_path, {**figures, "seed": 0, "seconds": {}, "images": {}, "size": {}}, NanoSpec())
    text = " ".join((tmp_path / "card.md").read_text().split())
    for said in ("simulator's rationales", "as a target or reward", "lesion mask of one FLAIR", "over images]"):
        assert said in text
    assert "an upper bound of what majority voting would reach" in text
