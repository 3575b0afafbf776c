"""`sparsight train nano` from its first stage to its card, small: it learns nothing, but everything runs."""

from pathlib import Path

import pytest

from sparsight.model import PolicySelector, load_policy, load_reader
from sparsight.recipe import train_nano
from sparsight.recipe.curves import CURVES, read_curves

STAGES = {"encoder (easy)", "encoder (all)", "encoder (varied)", "glance", "language", "scout", "looked", "policy"}


@pytest.mark.slow
def test_the_whole_recipe_leaves_a_reader_and_a_second_call_trains_nothing_again(tmp_path: Path) -> None:
    seen: list[str] = []
    made = train_nano(tmp_path, size="tiny", on_progress=lambda stage, *_: seen.append(stage))
    assert set(seen) >= STAGES
    assert set(read_curves(tmp_path / "train.log")) == STAGES
    assert (tmp_path / CURVES).stat().st_size > 1_000
    folder = tmp_path / "nano"
    reader = load_reader(folder)
    assert reader.id == made["reader"]
    assert PolicySelector(load_policy(folder), reader).policy.prior is not None
    assert f"# {reader.id}" in (folder / "card.md").read_text()
    assert set(made["seconds"]) >= {"encoder", "glance", "language", "scout", "looked", "policy", "turns", "budget"}
    weights = (folder / "reader.safetensors").read_bytes()
    seen.clear()
    again = train_nano(tmp_path, size="tiny", on_progress=lambda stage, *_: seen.append(stage))
    assert not set(seen) & STAGES
    assert again["reader"] == made["reader"]
    assert (folder / "reader.safetensors").read_bytes() == weights
