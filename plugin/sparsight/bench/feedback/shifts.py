"""What is new to a policy: shifts, each with cases to correct and other patients' cases to examine it on.

    finding   a calcification: the policy was trained without any, its prior has no place for one; the frozen reader has
              learned what it is
    anatomy   sections of a trunk, which neither stream has seen; shipped policy
    site      images as another machine takes them: blurred, flat, noisy; shipped policy
    smears    platelets in real blood smears (folder bccd, where there is one); the policy of `finding`, which has seen
              no real image; the reader was trained on the rows that are corrected, and learned little from them

A drawing of anatomy counts as a patient: even ones are corrected, odd ones are examined, of the new and of the old. Of
smears, train rows are corrected and val rows are examined.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from scipy import ndimage

from sparsight.datasets import load_folder
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import save_policy
from sparsight.model.policy import SOFTENED, TokenPolicy
from sparsight.recipe.warm_start import warm_start
from sparsight.rl.trainer import Example
from sparsight.sim import KINDS, Backgrounds, Scene, SceneConfig, Simulator, Source, Split, synthetic
from sparsight.sim.words import plural
from sparsight.types import Case, ImageVolume

Tell = Callable[[str, int, int], None]

UNSEEN = "calcification"
SEEN = tuple(kind for kind in KINDS if kind != UNSEEN)
_PLAIN = SceneConfig()
_ASKED = 12  # questions drawn of a scene, of which those about what is new are taken
_SEEDS = {
    "lessons": 3_000,
    "exam": 4_000,
    "old": 5_000,
    "unaware": 6_000,
    "pool": 7_000,
}  # of scenes, by what they are for


@dataclass(frozen=True)
class Shift:
    """One thing that is new. title: in words; about: whether a question is about it; taken: how its images look."""

    name: str
    title: str
    scenes: SceneConfig
    split: Split = "test"
    about: Callable[[Case], bool] = lambda case: True
    taken: Callable[[ImageVolume, np.random.Generator], ImageVolume] = lambda volume, rng: volume
    old: SceneConfig = _PLAIN

    def lessons(self, n: int, seed: int) -> list[Case]:
        """Cases to correct, one question of each of n scenes, drawn among those about what is new."""
        found: list[Case] = []
        for index, cases in enumerate(self._scenes(0, "lessons", seed)):
            if cases:
                found.append(cases[int(np.random.default_rng([seed, index]).integers(len(cases)))])
            if len(found) == n:
                return found
        raise AssertionError("scenes never end")

    def exam(self, n: int, seed: int) -> list[Case]:
        """N questions about what is new, at most four of a scene."""
        return _first(n, (cases[:4] for cases in self._scenes(1, "exam", seed)))

    def old_exam(self, n: int, seed: int) -> list[Case]:
        """N questions of the kind that was never new."""
        simulator = Simulator(self.old, _half(1))
        scenes = (simulator.scene("test", index, _SEEDS["old"] + seed) for index in count())
        return _first(n, (list(scene.cases) for scene in scenes))

    def pool(self, seed: int) -> Iterator[Scene]:
        """Scenes of the patients that may be corrected, without end."""
        yield from self._drawn(0, "pool", seed)

    def _scenes(self, half: int, use: str, seed: int) -> Iterator[list[Case]]:
        for scene in self._drawn(half, use, seed):
            yield [replace(case, volume=scene.volume) for case in scene.cases if self.about(case)]

    def _drawn(self, half: int, use: str, seed: int) -> Iterator[Scene]:
        simulator = Simulator(self.scenes, _half(half))
        for index in count():
            scene = simulator.scene(self.split, index, _SEEDS[use] + seed)
            volume = self.taken(scene.volume, np.random.default_rng([_SEEDS[use], seed, index]))
            yield replace(scene, volume=volume)


def of_unseen(case: Case) -> bool:
    """Whether a question names the unseen finding, or is answered with it. Counts and comparisons are left out."""
    named = re.search(rf"\b({UNSEEN}|{plural(UNSEEN)})\b", case.question.text.lower())
    return bool(named or case.answer == UNSEEN) and case.label in ("exists", "what", "where", "side")


def other_machine(volume: ImageVolume, rng: np.random.Generator) -> ImageVolume:
    """The image of another machine: blurred (1.2 pixels), six tenths of the contrast, brighter, noise of 5 levels."""
    blurred = ndimage.gaussian_filter(volume.voxels, (0, 1.2, 1.2))
    voxels = 0.6 * blurred + 60 + 5 * rng.standard_normal(volume.shape, np.float32)
    return replace(volume, voxels=np.clip(voxels, 0, 255).astype(np.float32))


SHIFTS = {
    shift.name: shift
    for shift in (
        Shift(
            "finding",
            f"a finding the policy has never seen ({UNSEEN})",
            SceneConfig(n_findings=(4, 7), questions=_ASKED),
            about=of_unseen,
            old=SceneConfig(kinds=SEEN),
        ),
        Shift("anatomy", "anatomy never seen (a trunk in section)", SceneConfig(), split="test_ood"),
        Shift("site", "another machine (blurred, flat, noisy)", SceneConfig(), taken=other_machine),
    )
}


@dataclass(frozen=True)
class Smears(Shift):
    """Platelets in the blood smears of a data folder."""

    folder: Path = Path("bccd")

    def lessons(self, n: int, seed: int) -> list[Case]:
        """Train rows in an order of the seed; all there are, where these are fewer."""
        rows = self._rows("train")
        return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:n]]

    def exam(self, n: int, seed: int) -> list[Case]:  # noqa: ARG002 - the first val rows, whatever the seed
        """Val rows."""
        return self._rows("val")[:n]

    def _rows(self, split: str) -> list[Case]:
        return [case for case in load_folder(self.folder, split) if case.label == "Platelets"]


def shifts_of(data: Path | None) -> dict[str, Shift]:
    """All shifts, by name; data: folder of data folders."""
    if data is None or not (data / "bccd").is_dir():
        return dict(SHIFTS)
    old = SHIFTS["finding"].old
    return SHIFTS | {"smears": Smears("smears", "platelets in real blood smears", old, old=old, folder=data / "bccd")}


def unaware_policy(reader: NanoReader, *, scenes: int, steps: int, seed: int, tell: Tell) -> TokenPolicy:
    """A policy for this reader that has never seen UNSEEN: the recipe's warm start on scenes without it.

    Its prior begins at the encoder's log-odds of the other kinds; it is not reinforced.
    """
    simulator = Simulator(SceneConfig(kinds=SEEN, questions=_ASKED))
    examples: list[Example] = []
    for index in range(scenes):
        scene = simulator.scene("train", index, _SEEDS["unaware"] + seed)
        grid = reader.encode(scene.volume)
        examples += [Example(grid, case.question, case.answer) for case in scene.cases]
        tell("scenes without the finding", index + 1, scenes)
    torch.manual_seed(seed)
    known = [i for i, name in enumerate(reader.spec.findings) if name != UNSEEN]
    policy = TokenPolicy(reader.encoder.width, 2 * reader.spec.hidden, prior=len(known))
    logits = reader.encoder.logits
    policy.begin_at(logits.weight[known] / SOFTENED, logits.bias[known] / SOFTENED)
    warm_start(policy, reader, examples, steps=steps, seed=seed)
    return policy


def reader_with(reader: NanoReader, policy: TokenPolicy, folder: Path) -> Path:
    """The reader's files in `folder`, with another policy shipped beside them."""
    assert reader.folder is not None
    shutil.copytree(reader.folder, folder)
    save_policy(folder, save(policy.to_arrays()))
    return folder


def _half(odd: int) -> Backgrounds:
    """Every second drawing of synthetic anatomy, beginning at `odd`."""
    return Backgrounds([_every_second(source, odd) for source in synthetic()])


def _every_second(source: Source, odd: int) -> Source:
    counts = {split: n // 2 for split, n in source.counts.items()}
    return replace(source, counts=counts, make=lambda split, n, shape: source.make(split, 2 * n + odd, shape))


def _first(n: int, groups: Iterator[list[Case]]) -> list[Case]:
    found: list[Case] = []
    while len(found) < n:
        found += next(groups)
    return found[:n]
