"""Streams of the comparison that are the policy with something else about it: merged background, fewer slices."""

from pathlib import Path

import numpy as np
import pytest

from sparsight.errors import InputError
from sparsight.model import PolicySelector, TokenPolicy, load_base_policy, load_reader
from sparsight.model.selectors import GridSelector
from sparsight.rl.evaluate import selectors_by_name
from sparsight.types import Case, ImageVolume, Question

QUESTION = Question("Is there a nodule?")


def of_noise(slices: int) -> Case:
    voxels = np.random.default_rng(0).uniform(0, 255, (slices, 64, 64)).astype(np.float32)
    return Case("c", ImageVolume(voxels, np.eye(4), "CT", (127.5, 255.0)), QUESTION, "yes", "g", "exists", "", None)


def test_covered_spends_an_eighth_of_its_tokens_on_what_is_not_kept(reader_folder: Path) -> None:
    nano = load_reader(reader_folder)
    ours = PolicySelector(TokenPolicy.from_arrays(load_base_policy(reader_folder)), nano)
    case = of_noise(1)
    grid = nano.encode(case.volume)
    covered, plain = (selectors_by_name([n], nano, ours)[n](case, grid) for n in ("covered", "ours"))
    kept = covered.select(grid, QUESTION, 16)
    assert kept.context is not None
    assert (len(kept.keep), len(kept.context), kept.size) == (14, 2, 16)
    assert np.array_equal(kept.keep, plain.select(grid, QUESTION, 14).keep)
    assert covered.select(grid, QUESTION, grid.n).context is None
    with pytest.raises(InputError, match="covered"):
        selectors_by_name(["covered"], nano, GridSelector())


def test_foveated_keeps_tokens_of_one_slice_in_eight(looking_folder: Path, reader_folder: Path) -> None:
    nano = load_reader(looking_folder)
    ours = PolicySelector(TokenPolicy.from_arrays(load_base_policy(looking_folder)), nano)
    case = of_noise(20)
    grid = nano.encode(case.volume)
    kept = selectors_by_name(["foveated"], nano, ours)["foveated"](case, grid).select(grid, QUESTION, 40).keep
    odds = nano.first_look(case.volume)
    assert odds is not None
    assert set(kept // (grid.shape[1] * grid.shape[2])) <= set(ours.slices(odds, grid, QUESTION, 3).nonzero()[0])
    blind = load_reader(reader_folder)
    with pytest.raises(InputError, match="first look"):
        selectors_by_name(["foveated"], blind, ours)
