"""A clinic: a service of its own, and simulated clinicians who ask it and correct it.

Everything goes through Service, as from a server's routes; the clinicians know the simulator's answers and findings.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sparsight.bench.feedback.shifts import Tell
from sparsight.config import Config
from sparsight.model import TokenPolicy, load_policy
from sparsight.service import Service
from sparsight.types import Case, Episode, Feedback, Mark, Verdict

MARKED = 0.2  # share of the corrections in which the finding is marked, too


@dataclass(frozen=True)
class Clinician:
    """One reader. wrong: share of the answers that are another choice than the right one; thumbs: verdicts alone."""

    name: str
    wrong: float = 0.0
    thumbs: bool = False
    marked: float = MARKED

    def judge(self, case: Case, episode: Episode, seed: int) -> Feedback:
        """The correction of an answer. What is wrong or marked depends on (clinician, case, seed) alone."""
        holds = self.holds(case, seed)
        same = episode.answer.text == holds
        no: Verdict = "reject" if self.thumbs else "amend"
        verdict: Verdict = "accept" if same else no
        answer = None if self.thumbs else holds
        marks = self.marks(case, seed) if holds == case.answer else ()
        return Feedback(f"{self.name}-{case.id}", episode.id, self.name, verdict, datetime.now(UTC), answer, marks)

    def holds(self, case: Case, seed: int) -> str:
        """The answer that this reader takes for right."""
        rng = self._rng(case, seed, 0)
        others = [choice for choice in case.question.answers if choice != case.answer]
        return others[int(rng.integers(len(others)))] if rng.random() < self.wrong else case.answer

    def marks(self, case: Case, seed: int) -> tuple[Mark, ...]:
        """The finding, in a share of the cases that rest on one."""
        if case.finding is None or self.thumbs or self._rng(case, seed, 1).random() >= self.marked:
            return ()
        return (Mark("missed", mask=case.finding, mask_ijk_to_lps=case.volume.ijk_to_lps),)

    def _rng(self, case: Case, seed: int, use: int) -> np.random.Generator:
        return np.random.default_rng([seed, use, *self.name.encode(), *case.id.encode()])


RIGHT = (Clinician("anna"), Clinician("bela"), Clinician("carl"))
NOISY = tuple(Clinician(one.name, wrong=0.1) for one in RIGHT)
HOSTILE = (*RIGHT, Clinician("eve", wrong=1.0))
THUMBS = tuple(Clinician(one.name, thumbs=True) for one in RIGHT)


@contextmanager
def clinic(config: Config, studies: Path | None = None) -> Iterator[Service]:
    """A service over the store in config.home, closed at the end."""
    service = Service(config, studies)
    try:
        yield service
    finally:
        service.close()


def ask_all(service: Service, cases: Sequence[Case], tell: Tell) -> list[str]:
    """Ask about each case as a viewer does; the episodes' ids."""
    episodes = []
    for n, case in enumerate(cases):
        episodes.append(service.ask(case.volume, case.question).episode.id)
        tell("ask", n + 1, len(cases))
    return episodes


def correct_all(
    service: Service, cases: Sequence[Case], episodes: Sequence[str], panel: Sequence[Clinician], seed: int
) -> None:
    """Have the panel's readers in turn correct one case each."""
    for n, (case, episode) in enumerate(zip(cases, episodes, strict=True)):
        service.correct(panel[n % len(panel)].judge(case, service.episode(episode), seed))


def copy_of(home: Path, to: Path) -> Path:
    """The same clinic again, so that several ways to learn begin at the same corrections. Nobody may have it open."""
    shutil.copytree(home, to)
    return to


def policy_of(service: Service, policy: str) -> TokenPolicy:
    """A version's weights."""
    return load_policy(load_file(service.registry.weights_path(policy)))
