"""The sentinel set: frozen simulated questions on which a candidate policy must not get worse, and replay beside it.

Both need no data folder: synthetic anatomy only, so every site has the same set, as long as its software draws the same
(`version`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight.model.protocols import Reader, ScoreRequest, Selector
from sparsight.model.selectors import tokens_at
from sparsight.sim import SceneConfig, Simulator, Split
from sparsight.types import Case, Question, TokenGrid

Step = Callable[[str, int, int], None]
_TOGETHER = 16  # probes scored in one call


@dataclass(frozen=True, eq=False)
class Probe:
    """An encoded case: what a policy is trained or measured on. It holds no mask."""

    grid: TokenGrid
    question: Question
    answer: str
    group: str
    stratum: str
    image: str  # sha256 of its voxels


def version(probes: Sequence[Probe]) -> str:
    """Name a set by what is in it, 12 hexadecimal digits: another question, answer or voxel is another version."""
    digest = hashlib.sha256()
    for probe in probes:
        digest.update(repr((probe.question, probe.answer, probe.group, probe.stratum, probe.image)).encode())
    return digest.hexdigest()[:12]


def simulated(reader: Reader, split: Split, n: int, seed: int, on_step: Step) -> list[Probe]:
    """Take n questions on simulated scenes of a split, encoded. `val` is the sentinel's, `train` is replay's."""
    simulator = Simulator(SceneConfig())
    probes: list[Probe] = []
    index = 0
    while len(probes) < n:
        scene = simulator.scene(split, index, seed)
        grid = reader.encode(scene.volume)
        probes += [_probe(case, grid, f"{split}-{index}") for case in scene.cases]
        index += 1
        on_step(f"simulated {split} cases", min(len(probes), n), n)
    return probes[:n]


def correct(
    reader: Reader, selector: Selector, probes: Sequence[Probe], budget: float, on_step: Step
) -> NDArray[np.float64]:
    """1 where the likeliest of a probe's choices is right, else 0: (n,). One prefill per choice, no reasoning."""
    hits = np.zeros(len(probes))
    for first in range(0, len(probes), _TOGETHER):
        batch = probes[first : first + _TOGETHER]
        scores = iter(reader.score([r for probe in batch for r in _requests(reader, selector, probe, budget)]))
        for i, probe in enumerate(batch, start=first):
            choices = _choices(probe.question)
            best = int(torch.cat([next(scores) for _ in choices]).argmax())
            hits[i] = choices[best] == probe.answer
        on_step("sentinel", first + len(batch), len(probes))
    return hits


def _requests(reader: Reader, selector: Selector, probe: Probe, budget: float) -> list[ScoreRequest]:
    k = tokens_at(budget, probe.grid, reader)
    keep = torch.from_numpy(selector.select(probe.grid, probe.question, k).keep)[None]
    return [ScoreRequest(probe.grid, probe.question, choice, keep) for choice in _choices(probe.question)]


def _choices(question: Question) -> tuple[str, ...]:
    return question.choices or ("yes", "no")


def _probe(case: Case, grid: TokenGrid, group: str) -> Probe:
    return Probe(grid, case.question, case.answer, group, case.label, case.volume.sha256)
