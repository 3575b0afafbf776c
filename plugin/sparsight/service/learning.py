"""From corrections to a gated candidate. The store is the queue: nothing is learned twice, nothing is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsight.config import Config
from sparsight.errors import SparsightError
from sparsight.model import TokenPolicy
from sparsight.model.completions import Arrays
from sparsight.model.protocols import Reader
from sparsight.rl import gate
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.trainer import Example
from sparsight.service.corrections import marks_on, right_answer, wrong_answer
from sparsight.service.lesson import Correction, Lesson, Step, teach
from sparsight.store import PolicyRegistry, Store
from sparsight.types import Episode, Feedback, PolicyVersion, TokenGrid

GridOf = Callable[[Episode], TokenGrid]


@dataclass(frozen=True)
class Learned:
    """What came of the corrections. candidate None: there was nothing to learn from, reasons say why."""

    candidate: PolicyVersion | None
    promoted: bool
    reasons: tuple[str, ...]
    corrections: int  # trained on
    held_out: int
    seconds: float
    gate: dict[str, Any]


@dataclass(frozen=True)
class Learner:
    """Everything learning needs; one call of `learn` is one candidate."""

    config: Config
    store: Store
    registry: PolicyRegistry
    reader: Reader
    grid_of: GridOf
    on_step: Step
    rank: int = 0  # of the adapter by which the language stream learns too; 0: it does not
    ranks: Ranks = ALONE  # processes that learn together

    def learn(self, live: PolicyVersion, live_policy: TokenPolicy, adapter: Arrays) -> Learned:
        """Train on what the live policy's line has not learned, measure on what was kept out of training, decide.

        adapter: the live policy's, which the reader has on.
        """
        start = time.perf_counter()
        lineage = self.registry.lineage(live.id)
        faults: list[SparsightError] = []
        pending, unused = self._corrections(self.store.unlearned(lineage, on_fault=faults.append))
        unused.update(fault.code for fault in faults)
        said = tuple(f"corrections that could not be used: {n} ({code})" for code, n in sorted(unused.items()))
        if not pending:
            return _nothing("no new correction with an answer, a rejection or a mark for this reader", *said)
        known, _ = self._corrections(self.store.learned(lineage, on_fault=_pass_over))
        train, held = split(pending, self.config.learn.held_out, never_held={c.study for c in known})
        if not train:
            return _nothing(f"{len(held)} corrections, all kept out of training: more studies are needed")
        if earlier := self._tried(live, {c.key for c in pending}):
            return _nothing(f"these corrections were learned already: policy {earlier.id} is {earlier.state}")
        config = self.config
        lesson = Lesson(
            train, known, held, live_policy, adapter, self.rank, config.learn, config.gate, config.serve.share
        )
        taught = self.ranks.lead(teach, self.reader, lesson, on_step=self.on_step)
        assert taught is not None  # in the first process
        decision, said = taught.decision, (*said, *taught.said)
        version = self.registry.add(
            {**taught.candidate.to_arrays(), **taught.adapter},
            parent=live.id,
            reader=self.reader.id,
            metrics=_metrics(decision, len(train), len(held)),
            record=lambda policy: self.store.mark_learned(
                policy, train=[c.key for c in train], heldout=[c.key for c in held]
            ),
        )
        version = self._decide(version, decision, live)
        seconds = time.perf_counter() - start
        promoted = version.state == "live"
        reasons = (*decision.reasons, *said)
        return Learned(version, promoted, reasons, len(train), len(held), seconds, decision.as_dict())

    def _tried(self, live: PolicyVersion, keys: set[str]) -> PolicyVersion | None:
        """The child of the live policy that learned exactly these corrections and was held back or rolled back."""
        tried = (v for v in self.registry.list() if v.parent == live.id and v.state in ("held", "retired"))
        return next((v for v in tried if self._learned_from(v) == keys), None)

    def _learned_from(self, policy: PolicyVersion) -> set[str]:
        return {feedback.key for feedback in self.store.learned([policy.id], on_fault=_pass_over)}

    def _corrections(self, recorded: Sequence[Feedback]) -> tuple[list[Correction], Counter[str]]:
        """Those that can be replayed: with an answer held for right or for wrong, or a mark, on this reader's tokens.

        And how many could not be used for a fault, by what it was: their tokens are gone, a record was altered, ...
        """
        found: list[Correction] = []
        unused: Counter[str] = Counter()
        for feedback in recorded:
            try:
                episode = self.store.episode(feedback.episode)
                answer, rejected = right_answer(feedback, episode), wrong_answer(feedback, episode)
                if answer is None and rejected is None and not feedback.marks:
                    continue
                if episode.reader != self.reader.id:
                    unused["of another reader"] += 1
                    continue
                grid = self.grid_of(episode)
                marks = marks_on(grid, feedback.marks)
                if answer is not None:
                    self.reader.check(episode.question, answer)
            except SparsightError as error:
                unused[error.code] += 1
                continue
            question = episode.question
            if answer is not None and question.choices and answer not in question.choices:
                question = replace(question, choices=(*question.choices, answer))
            example = Example(grid, question, answer, marks, rejected=rejected)
            found.append(Correction(feedback.key, episode.volume_sha256, question.kind, example))
        return found, unused

    def _decide(self, version: PolicyVersion, decision: gate.Decision, live: PolicyVersion) -> PolicyVersion:
        if not decision.promote:
            return self.registry.hold(
                version.id, reasons=decision.reasons, record=lambda policy: self.store.record("gate", policy)
            )
        if self.config.gate.sign_off:
            return self.registry.approve(  # it waits for its signature
                version.id, reasons=decision.reasons, record=lambda policy: self.store.record("gate", policy)
            )
        return self.registry.promote(
            version.id,
            reasons=decision.reasons,
            expect_live=live.id,
            record=lambda policy: self.store.record("promote", policy),
        )


def split(
    corrections: Sequence[Correction],
    share: float,
    *,
    never_held: set[str] = frozenset(),  # type: ignore[assignment]
) -> tuple[list[Correction], list[Correction]]:
    """(train, held out): every study on one side, about `share` of the new studies held out, the same at every run.

    Studies alternate in order of arrival, so a correction that comes later never moves an earlier one to the other
    side. A study that the live policy has learned from can no longer test it.
    """
    studies = [study for study in dict.fromkeys(c.study for c in corrections) if study not in never_held]
    held = {study for i, study in enumerate(studies) if int((i + 1) * share + 1e-9) > int(i * share + 1e-9)}
    return [c for c in corrections if c.study not in held], [c for c in corrections if c.study in held]


def _pass_over(_: SparsightError) -> None:
    """One correction that can no longer be read keeps nobody from learning from the others."""


def _nothing(*reasons: str) -> Learned:
    return Learned(None, False, reasons, 0, 0, 0.0, {})


def _metrics(decision: gate.Decision, train: int, held: int) -> dict[str, float]:
    metrics = {check.name: check.value for check in decision.checks if check.n}
    return {**metrics, "corrections": float(train), "held_out": float(held)}
