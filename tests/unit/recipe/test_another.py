"""Another policy for a reader that is there: the same stage, another seed, its own files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparsight.errors import ConfigError, DataError
from sparsight.model import TokenPolicy
from sparsight.recipe import train_another


@pytest.mark.slow
def test_each_seed_has_its_policy_and_what_it_was_before_reinforcement(looking_folder: Path, tmp_path: Path) -> None:
    report = train_another(looking_folder, tmp_path, seed=1, size="tiny")
    assert report["examples"] > 0
    assert report["seed"] == 1
    warm, policy = (load_file(tmp_path / f"{name}-1.safetensors") for name in ("warm", "policy"))
    for arrays in (warm, policy):
        TokenPolicy.from_arrays(arrays)
    assert any(not np.array_equal(warm[name], policy[name]) for name in warm if not name.startswith("budget"))
    assert not (tmp_path / "policy-0.safetensors").exists()


def test_what_it_cannot_use_is_refused_before_anything_is_drawn(reader_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size"):
        train_another(reader_folder, tmp_path / "out", size="huge")
    with pytest.raises(DataError):
        train_another(reader_folder, tmp_path / "out", tmp_path / "nowhere", size="tiny")
    assert not (tmp_path / "out").exists()
