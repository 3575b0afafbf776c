"""The questions of the benchmark, by suite. Simulated ones are of splits that nothing was trained on.

    sim_2d    images in the five presets, findings of 0.05 to 3 % of the image        split test
    sim_ood   the same in kinds of anatomy that no training image has                 split test_ood
    sim_long  volumes of 16 to 32 slices, 9,216 to 18,432 tokens                      split test
    sim_deep  volumes of 128 to 192 slices, for which the product takes a first look    split test
    sim_pair  pairs of a prior and a current image, 1,152 tokens                      split test
    nih_cxr, bccd, vqa_rad   val rows of the sets that a data folder holds
    ms_flair, ms_followup    rows of the one patient of each that is left out of training (recipe.sources.LEFT_OUT);
                             ms_followup are pairs

Every suite comes in parts of about 40 questions, so that processes can share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sparsight.datasets import load_folder
from sparsight.errors import DataError
from sparsight.recipe.sources import LEFT_OUT, REAL, real_cases
from sparsight.sim import PRESETS, Simulator, Split
from sparsight.sim.real import standard
from sparsight.types import Case

Unit = Literal["image", "patient"]
# The presets in turn, at the rates at which the reader was trained on them, and findings larger than it was trained on.
TURNS = ("default", "many", "default", "faint", "default", "default", "many", "default", "tiny", "default", "large")
PRESET = {"sim_long": "volume", "sim_deep": "deep", "sim_pair": "pair"}  # of suites that have one only
LONG = {"volume": replace(PRESETS["volume"], depth=(16, 32)), "deep": replace(PRESETS["volume"], depth=(128, 192))}
MASKED = ("sim_2d", "sim_ood", "sim_long", "sim_pair", "bccd", "ms_flair", "ms_followup")  # whose findings are known
VAL = "val"  # the split of real sets that nothing was trained on
CHOSEN_ON = "demo_t1"  # anatomy of the test split on which a part of the recipe was chosen (docs/lab-log.md)
CASE_SEEDS = 3  # scenes are drawn with that many seeds in turn
TEST_BUDGET = 0.1  # of the evidence tests and of what is read in full: what the product keeps by default
LONG_BUDGETS = (0.005, 0.01, 0.02)  # of sim_long, whose tests are at the last
_PART = 40  # questions
_FIRST_SEED = 1000  # far from the seeds of training scenes, 0 and up


@dataclass(frozen=True)
class Suite:
    """n questions, asked at shares of the tokens; intervals resample `unit`."""

    name: str
    n: int
    budgets: tuple[float, ...]

    @property
    def unit(self) -> Unit:
        """A simulated scene counts as independent of the others; a patient may have several images.

        Blood smears and the images of VQA-RAD come without a patient.
        """
        return "image" if self.name.startswith("sim") or self.name in ("bccd", "vqa_rad") else "patient"

    @property
    def parts(self) -> int:
        """How many pieces it comes in; of n alone, so that the questions do not depend on who asks them."""
        return max(1, round(self.n / _PART))


def tested_at(suite: str) -> float:
    """The share of the tokens at which a suite's evidence is tested and its questions are read in full."""
    return LONG_BUDGETS[-1] if suite == "sim_long" else TEST_BUDGET


def check_data(data: Path | None) -> tuple[str, ...]:
    """Names of the real sets in a data folder, each checked in full. Raises DataError before anything is measured."""
    if data is None:
        return ()
    if not data.is_dir():
        raise DataError("a data folder that is not there", expected="a folder of data folders", todo="check --data")
    found = tuple(name for name in REAL if (data / name).is_dir())
    if not found:
        raise DataError(
            "a data folder without a set the benchmark knows",
            expected=f"one of the folders {', '.join(REAL)}",
            todo="check --data, or leave it out for simulated cases only",
        )
    for name in found:
        try:
            rows = _measurable(data / name)
        except DataError as error:
            raise DataError(f"{name}: {error.given}", expected=error.expected, todo=error.todo) from error
        if not rows:
            raise DataError(
                f"{name}: no row of the patient that is left out of training",
                expected=f"rows of group {LEFT_OUT[name]}",
                todo="restore them, or leave that folder out",
            )
    return found


class Drawn(NamedTuple):
    """A question, the preset (simulated) or split (real) it comes from, and what its findings were drawn into."""

    case: Case
    source: str
    anatomy: str = ""  # kind of background; empty: real


def cases_of(suite: Suite, data: Path | None, seed: int, part: int) -> Iterator[Drawn]:
    """The questions of one part.

    A real suite of fewer rows than n has them all; of more, as many drawn with the seed. Neighbours share an image.
    """
    if suite.name.startswith("sim"):
        yield from _simulated(suite, data, seed, part)
        return
    assert data is not None
    folder = _folder(data / suite.name)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(folder))[: suite.n])
    for index in np.array_split(chosen, suite.parts)[part]:
        yield Drawn(folder[int(index)], VAL)


def _simulated(suite: Suite, data: Path | None, seed: int, part: int) -> Iterator[Drawn]:
    """Scenes part, part + parts, part + 2 parts, ... until the part has its share of the questions."""
    parts = suite.parts
    split: Split = "test_ood" if suite.name == "sim_ood" else "test"
    wanted = suite.n // parts + (part < suite.n % parts)
    index = part
    while wanted > 0:
        preset = PRESET.get(suite.name) or TURNS[index % len(TURNS)]
        drawn = _FIRST_SEED + seed * CASE_SEEDS + index % CASE_SEEDS
        scene = _simulator(preset, data).scene(split, index, drawn)
        for case in scene.cases[:wanted]:
            scene_id = case.id.rpartition("-")[0]  # one image is one group
            yield Drawn(replace(case, group=scene_id), preset, case.group.split("-")[0])
        wanted -= len(scene.cases)
        index += parts


@lru_cache(maxsize=8)
def _simulator(preset: str, data: Path | None) -> Simulator:
    return Simulator(LONG.get(preset) or PRESETS[preset], _backgrounds(data))


_backgrounds = lru_cache(maxsize=1)(standard)


def _measurable(path: Path) -> Sequence[Case]:
    """What of a set may be measured. Images are read when a case is taken, but for the sets of LEFT_OUT."""
    return load_folder(path, VAL) if path.name not in LEFT_OUT else real_cases(path, VAL)


_folder = lru_cache(maxsize=8)(_measurable)
