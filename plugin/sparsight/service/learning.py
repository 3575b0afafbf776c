"""From corrections to a gated candidate. The store is the queue: nothing is learned twice, nothing is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsight.config import Config, LearnConfig
from sparsight.errors import SparsightError
from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.completions import Arrays
from sparsight.model.protocols import Reader
from sparsight.rl import gate, offpolicy, readers
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.readers import Opinion
from sparsight.rl.trainer import Example
from sparsight.service import oversight
from sparsight.service.corrections import marks_on, right_answer, wrong_answer
from sparsight.service.lesson import Correction, Lesson, Step, groups, read, teach
from sparsight.store import PolicyRegistry, Store
from sparsight.store.files import make_folder
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
class Trust:
    """How much each reader may teach. left_out: corrections that nothing is learned from, and why; named: in words."""

    weights: dict[str, float]
    left_out: dict[str, str]
    named: tuple[str, ...]

    @classmethod
    def of(cls, found: Sequence[Opinion], share: float) -> Trust:
        """Look at all opinions there are. share: the most of all weight that is one reader's."""
        named = tuple(f"reader {one.reader} {one.why}" for one in readers.conspicuous(found))
        return cls(oversight.weights(found, share), readers.left_out(found), named)


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
        new = self.store.unlearned(lineage, on_fault=faults.append)
        earlier = self.store.learned(lineage, on_fault=_pass_over)
        said_by_readers = oversight.opinions(self.store, (*earlier, *new))
        trust = Trust.of(said_by_readers, self.config.learn.reader_share)
        pending, unused = self._corrections(new, trust)
        unused.update(fault.code for fault in faults)
        said = (
            *trust.named,
            *(f"corrections that could not be used: {n} ({code})" for code, n in sorted(unused.items())),
        )
        if not pending:
            return _nothing("no new correction with an answer, a rejection or a mark for this reader", *said)
        known, _ = self._corrections(earlier, trust)
        train, held = split(pending, self.config.learn, never_held={c.study for c in known})
        if not train:
            return _nothing(f"{len(held)} corrections, all kept out of training: more studies are needed", *said)
        keys = {c.key for c in pending}
        if tried := self._tried(live, keys):
            return _nothing(f"these corrections were learned already: policy {tried.id} is {tried.state}", *said)
        config, share = self.config, self.config.serve.share
        look = self._looks(live, keys) + 1
        lesson = Lesson(train, known, held, live_policy, adapter, self.rank, config.learn, config.gate, share, look)
        running = config.home / "learning" / self.reader.id  # not what a backup holds: it comes and goes
        make_folder(running)
        taught = self.ranks.lead(teach, self.reader, lesson, on_step=self.on_step, checkpoints=running)
        assert taught is not None  # in the first process
        decision, said = taught.decision, (*said, *taught.said)
        if live.sentinel and live.sentinel != taught.sentinel:
            said += (f"the sentinel set is another: {taught.sentinel}, not {live.sentinel} as the live policy's was",)
        verdicts = self._verdicts(new, taught.candidate)
        version = self.registry.add(
            {**taught.candidate.to_arrays(), **taught.adapter},
            parent=live.id,
            reader=self.reader.id,
            metrics=_metrics(decision, len(train), len(held)),
            sentinel=taught.sentinel,
            record=lambda policy: self.store.mark_learned(
                policy, train=[c.key for c in train], heldout=[c.key for c in held]
            ),
            same=lambda policy: self.store.learned_keys([policy.id]) == keys,
        )
        version = self._decide(version, decision, live)
        seconds = time.perf_counter() - start
        promoted = version.state == "live"
        reasons = (*decision.reasons, *said)
        return Learned(version, promoted, reasons, len(train), len(held), seconds, decision.as_dict() | verdicts)

    def _tried(self, live: PolicyVersion, keys: set[str]) -> PolicyVersion | None:
        """The child of the live policy that learned exactly these corrections, and of which it was decided.

        Held back, rolled back, or waiting for its signature; not one whose learning was killed before the decision.
        """
        tried = (v for v in self.registry.list() if v.parent == live.id and (v.state != "candidate" or v.reasons))
        return next((v for v in tried if self.store.learned_keys([v.id]) == keys), None)

    def _corrections(self, recorded: Sequence[Feedback], trust: Trust) -> tuple[list[Correction], Counter[str]]:
        """Those that can be replayed: with an answer held for right or for wrong, or a mark, on this reader's tokens.

        And how many could not be used for a fault, by what it was: their tokens are gone, a record was altered, ...
        """
        found: list[Correction] = []
        unused: Counter[str] = Counter()
        for n, feedback in enumerate(recorded):
            self.on_step("corrections", n + 1, len(recorded))
            if feedback.blinded:  # kept apart: they measure what seeing the answer does to a verdict
                continue
            if why := trust.left_out.get(feedback.key):
                unused[why] += 1
                continue
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
                if (scored := rejected if answer is None else answer) is not None:
                    self.reader.check(episode.question, scored)
            except SparsightError as error:
                unused[error.code] += 1
                continue
            question = episode.question
            if answer is not None and question.choices and answer not in question.choices:
                question = replace(question, choices=(*question.choices, answer))
            weight = trust.weights.get(feedback.reviewer, 1.0)
            example = Example(grid, question, answer, marks, weight, rejected=rejected)
            site = feedback.reviewer.partition("@")[2] or "here"
            strata = (f"kind {question.kind}", f"modality {episode.modality or 'unknown'}", f"site {site}")
            found.append(Correction(feedback.key, episode.volume_sha256, strata, example))
        return found, unused

    def _looks(self, live: PolicyVersion, keys: set[str]) -> int:
        """How many candidates of other corrections were measured against this live policy before."""
        children = (v for v in self.registry.list() if v.parent == live.id)
        return sum(self.store.learned_keys([v.id]) != keys for v in children)

    def _verdicts(self, recorded: Sequence[Feedback], candidate: TokenPolicy) -> dict[str, Any]:
        """Off-policy estimates of the share that would be accepted, from bare verdicts. They decide nothing.

        The action is the kept region, its propensity that of the policy that answered (offpolicy.first_in).
        """
        selector = PolicySelector(candidate, self.reader)
        seen: list[tuple[float, float, float, str]] = []
        for n, feedback in enumerate(recorded):
            self.on_step("verdicts", n + 1, len(recorded))
            bare = feedback.answer is None and not feedback.marks and not feedback.cannot_tell
            if not bare or feedback.blinded or feedback.verdict == "amend":
                continue
            try:
                episode = self.store.episode(feedback.episode)
                grid = self.grid_of(episode)
            except SparsightError:
                continue
            if episode.reader != self.reader.id:
                continue
            self.ranks.lead(read, self.reader, episode.question)
            before, keep = episode.selection.scores, episode.selection.keep
            after = selector.select(grid, episode.question, 1).scores
            if len(after) == len(before):
                logs = offpolicy.first_in(before, keep), offpolicy.first_in(after, keep)
                seen.append((float(feedback.verdict == "accept"), *logs, episode.volume_sha256))
        if not seen:
            return {}
        reward, log_pi0, log_pi = (np.array([s[i] for s in seen], np.float64) for i in range(3))
        logged = offpolicy.Logged(reward, log_pi0, log_pi, groups([s[3] for s in seen]))
        return {"verdicts": {"n": len(seen), "accepted": float(reward.mean()), **offpolicy.estimate(logged).as_dict()}}

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


def untried(store: Store, registry: PolicyRegistry) -> int:
    """How many corrections neither the live policy's line nor any candidate made of it has used."""
    live = registry.live().id
    used = store.learned_keys([version.id for version in registry.list() if version.parent == live])
    new = store.unlearned(registry.lineage(live), on_fault=_pass_over)
    return sum(feedback.key not in used for feedback in new)


def split(
    corrections: Sequence[Correction],
    config: LearnConfig,
    *,
    never_held: set[str] = frozenset(),  # type: ignore[assignment]
) -> tuple[list[Correction], list[Correction]]:
    """(train, held out): every study on one side, the same at every run.

    Every other new study is held out until there are `held_out_early`, which few corrections need to show anything;
    later ones are trained on until `held_out` of all are held out, then that share is. It goes by order of arrival, so
    a correction that comes later never moves an earlier one to the other side. A study that the live policy has learned
    from can no longer test it.
    """

    def due(n: int) -> int:
        """Of the first n studies."""
        return max(min(n // 2, config.held_out_early), int(n * config.held_out + 1e-9))

    studies = [study for study in dict.fromkeys(c.study for c in corrections) if study not in never_held]
    held = {study for i, study in enumerate(studies) if due(i + 1) > due(i)}
    return [c for c in corrections if c.study not in held], [c for c in corrections if c.study in held]


def _pass_over(_: SparsightError) -> None:
    """One correction that can no longer be read keeps nobody from learning from the others."""


def _nothing(*reasons: str) -> Learned:
    return Learned(None, False, reasons, 0, 0, 0.0, {})


def _metrics(decision: gate.Decision, train: int, held: int) -> dict[str, float]:
    """For the manifest: what was measured, its bounds where they are finite, and on how much."""
    metrics = {"corrections": float(train), "held_out": float(held), "look": float(decision.look)}
    metrics |= {f"mean_{name}": value for name, value in decision.means.items()}
    for check in decision.checks:
        if check.n:
            bounds = {"": check.value, "_low": check.low, "_high": check.high, "_n": float(check.n)}
            bounds |= {"_passed": float(check.passed)}
            metrics |= {f"{check.name}{end}": value for end, value in bounds.items() if np.isfinite(value)}
    return metrics
