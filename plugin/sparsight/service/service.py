"""The whole product in one file: ask, correct, learn, promote, next_case."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsight import evidence
from sparsight.cluster.scoring import scored_by
from sparsight.config import Config
from sparsight.errors import NotFoundError, SparsightError
from sparsight.imaging.studies import StudyInfo, open_studies
from sparsight.model import PolicySelector, load_reader
from sparsight.model.completions import rank_of
from sparsight.model.protocols import Reader, Where
from sparsight.model.selectors import tokens_at
from sparsight.model.together import Work
from sparsight.rl.acquisition import Worth, acquire
from sparsight.rl.answers import is_of_all
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.service import blinded as blind
from sparsight.service import corrections, promotion, shadow
from sparsight.service.answering import Answering, Asked, OnProgress, Progress, Reading, new_id, shown
from sparsight.service.encoded import Encoded, EncodedStudies, features_of, grid_of, patiently
from sparsight.service.joint import Joint
from sparsight.service.learning import Learned, Learner
from sparsight.service.next_case import NextCase, Queue
from sparsight.service.promotion import install_shipped, registry_of
from sparsight.service.question import check_budget, check_pair, check_region, parse_question, usual_budget
from sparsight.service.spread import begun
from sparsight.service.streams import RegisteredStreams
from sparsight.service.turn import Priority, Turnstile
from sparsight.store import Store
from sparsight.types import (
    Budget,
    Change,
    Episode,
    Feedback,
    FeedbackState,
    ImageVolume,
    PolicyVersion,
    Question,
    Reward,
    TokenGrid,
)

_LOG = logging.getLogger(__name__)
_UNFINISHED = 2  # studies whose other slices wait to be encoded: they are held in memory beside the cache


class Service:
    """One per process; its methods may be called from any thread. The models are used by one thread at a time.

    spread: pool.yaml's replicas answer, where there are to be any; all else is done here.
    """

    def __init__(self, config: Config, studies: str | Path | None = None, *, spread: bool = False) -> None:
        torch.set_num_threads(1)  # more threads contend with the server's own and are slower
        self.config = config
        self.reader: Reader = load_reader(config.serve.reader)
        self.store = Store(config.database or config.home / "store.db", config.home)
        self.registry = registry_of(config, self.reader)
        install_shipped(config, self.reader.id, self.registry, self.store)
        self.studies = open_studies(studies) if studies is not None else None
        self._encoded = EncodedStudies(self.studies, config.serve.cache_bytes)
        self._turnstile = Turnstile(config.serve.max_waiting, config.serve.max_wait_s)
        self._queue = Queue(self.store, self._grid)
        self._tokens_kept: set[str] = set()  # hashes of volumes whose tokens this process has stored
        self._streams = RegisteredStreams(self.registry, self.reader)
        self._joint = Joint(self.reader.begin, self._streams.take_on, self._turnstile, config.serve.together)
        self.listeners: list[Callable[[Episode | Feedback], object]] = []  # told of what is new in the store
        self._rest = ThreadPoolExecutor(1, "sparsight-rest")  # what nobody waits for
        self._finishing: dict[str, tuple[Future[None], TokenGrid]] = {}  # by hash of the volume
        self._spread = begun(config, self.reader, self._streams.arrays, self.store.close) if spread else None
        self._queues = [self._turnstile, *([self._spread.queue] if self._spread else [])]

    # --- the five verbs ---

    def ask(
        self,
        study: str | ImageVolume,
        question: Question,
        *,
        prior: str | ImageVolume | None = None,
        budget: Budget | None = None,
        recheck: bool = True,
        blinded: bool = False,
        priority: Priority = Priority.CLINICIAN,
        episode_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Asked:
        """Answer a question about a study and record it, as `episode_id` where one was made before (`new_id`).

        What on_progress raises ends it: before `answer` was told nothing is recorded.

        study: an id of the served studies, a path where none are served, or a volume. prior: an earlier image to
        compare with, likewise (imaging/pair.py says which pairs can be). budget: share of the tokens to keep, in
        (0, 1], or "auto": the policy decides. recheck: read a negative or ungrounded answer again from more tokens
        (serve.recheck_budget). blinded: `episode` and `reopen` keep the answer back until a reader has given their own.
        priority: whom it waits for. Raises QuestionError, BudgetError, NotFoundError, InputError, BusyError.
        """
        tell = on_progress or _quiet
        start = time.perf_counter()
        serve = self.config.serve
        parse_question(question.text, choices=question.choices, max_chars=serve.max_question_chars)
        share = check_budget(usual_budget(self._streams.live()[1].policy, serve) if budget is None else budget)
        check_pair(question, compared=prior is not None)
        for queue in self._queues:
            queue.check(priority)  # before anything is loaded
        in_turn = partial(self._turnstile.turn, priority, on_wait=lambda: tell(Progress("wait")))
        recheck = recheck and bool(serve.recheck_budget)
        study_ = self._encoded.get(
            study,
            self.reader,
            lambda stage: tell(Progress(stage)),
            in_turn,
            prior=prior,
            where=None if recheck and is_of_all(question, "") else self._where(question),
        )
        volume = study_.volume
        check_region(question, study_.grid)
        policy, reading = self._answer(study_, question, share, on_progress, priority, recheck=recheck and study_.whole)
        if recheck and not study_.whole and self._in_doubt(study_, question, reading):
            tell(Progress("recheck"))  # what was not looked at may say otherwise
            study_ = self._encoded.complete(study_, self.reader, in_turn)
            policy, reading = self._answer(study_, question, share, on_progress, priority, recheck=True)
        grid = study_.grid
        if not study_.whole:
            self._finish(study_)
        found = evidence.describe(
            volume,
            grid,
            shown(reading.selection, reading.recheck),
            necessity=reading.necessity,
            threshold=serve.necessity_nats,
        )
        tell(Progress("evidence", look=lambda: found))
        timings = {**study_.timings_ms, **reading.timings_ms, "total": (time.perf_counter() - start) * 1000}
        episode = Episode(
            id=episode_id or new_id(),
            created=datetime.now(UTC),
            study=study_.id,
            series_uid=volume.series_uid,
            volume_sha256=volume.sha256,
            question=question,
            selection=reading.selection,
            answer=reading.answer,
            evidence=found,
            grid_shape=grid.shape,
            reader=self.reader.id,
            policy=policy.id,
            policy_sha256=policy.sha256,
            config_sha256=self.config.sha256,
            timings_ms=timings,
            recheck=reading.recheck,
            prior=study_.prior,
            modality=volume.modality,
            frame_of_reference=volume.frame_of_reference_uid,
            slices=None if grid.encoded is None else int(grid.encoded.sum()),
            blinded=blinded,
        )
        new = study_.whole and volume.sha256 not in self._tokens_kept
        self.store.save_episode(episode, features_of(grid) if new else None)
        if study_.whole:
            self._tokens_kept.add(volume.sha256)
        for tell_of in self.listeners:
            tell_of(episode)
        self._shadow(study_, episode, share)
        return Asked(episode, volume, grid)

    def correct(self, feedback: Feedback, *, draft: bool = False) -> Reward:
        """Record a correction and tell what it is worth to the policy that answered.

        draft: nothing is learned from it until `revise` submits it. The same key with the same content is the same
        correction, and its reward the one that was told the first time.
        Raises NotFoundError, ConflictError, BlindedError (a blinded reading has to come first), FeedbackError.
        """
        episode = self.store.episode(feedback.episode)
        blind.check_reading(self.store, feedback, episode, draft=draft)
        corrections.check(feedback, episode)
        if feedback.answer is not None and episode.reader == self.reader.id:
            self.reader.check(episode.question, feedback.answer)
        reward = corrections.reward_of(feedback, episode, self._places(episode) if feedback.marks else None)
        new = self.store.save_feedback(feedback, reward, draft=draft)
        for tell_of in self.listeners if new else ():
            tell_of(feedback)
        return reward if new else self.store.reward(feedback.key)

    def revise(self, key: str, change: Change, *, by: str, change_key: str | None = None) -> FeedbackState:
        """Submit a draft, withdraw a correction, or undo its last change; nothing is learned from it while withdrawn.

        What a policy has learned from it already stays learned: `learned_by` tells, `rollback` undoes.
        Raises NotFoundError, ConflictError, FeedbackError.
        """
        return self.store.change_feedback(key, change, by=by, created=datetime.now(UTC), change_key=change_key)

    def learned_by(self, key: str) -> tuple[str, ...]:
        """Ids of the live policy and its ancestors that have learned from a correction, or were judged by it."""
        return tuple(policy for policy in self.registry.lineage() if key in self.store.learned_keys([policy]))

    def learn(self, *, on_progress: OnProgress | None = None, ranks: Ranks = ALONE) -> Learned:
        """Train a candidate on the corrections not yet learned, measure it against the live policy, promote or hold it.

        Asks go first: between two steps whoever waits has the machine. ranks: of this process, their first.
        """
        tell = on_progress or _quiet
        wait([rest for rest, _ in list(self._finishing.values())])  # not within our turn: it needs turns itself
        others = scored_by(self.config.pool, self.config.serve.reader, self.reader, ranks)
        with others as reader, self._turnstile.turn(Priority.LEARNING):
            live, selector = self._streams.live()
            self._streams.take_on(live.id)
            adapter, learn = self._streams.adapter(live.id), self.config.learn
            rank = (rank_of(adapter) or learn.language_rank) if learn.tuning_steps or learn.language_steps else 0
            writer = self.reader.writer(rank) if rank else None

            def step(stage: str, done: int, total: int) -> None:
                tell(Progress(stage, done, total))
                with nullcontext() if writer is None else writer.standing_as(adapter):  # whoever asks gets the live one
                    self._turnstile.give_way(Priority.LEARNING)
                if writer is None:
                    self._streams.take_on(live.id)  # whoever asked may have been answered by another policy
                else:
                    self._streams.adapted = live.id  # what `standing_as` puts on for whoever asks next

            learner = Learner(self.config, self.store, self.registry, reader, self._grid, step, rank, ranks)
            try:
                return learner.learn(live, selector.policy, adapter)
            finally:
                self.reader.adapt(adapter)
                self._streams.adapted = live.id

    def promote(self, policy: str, *, sign_off: str | None = None) -> PolicyVersion:
        """Make a policy live: a candidate that passed the gate, a shipped or imported one that waits, a retired one.

        A signature is demanded where gate.sign_off says so, and for what was shipped or imported and waits: no gate has
        compared it.
        What is put back keeps its reasons, and its signature unless it is signed anew.
        Raises NotFoundError; ConflictError for one that the gate held back, with its reasons, or without a signature.
        """
        return promotion.promote(self.registry, self.store, policy, sign_off, always_signed=self.config.gate.sign_off)

    def next_case(self, *, exclude: frozenset[str] = frozenset()) -> NextCase | None:
        """The study where one more correction would teach most, with a question to ask; None when all were seen."""
        return next(iter(self.next_cases(1, exclude=exclude)), None)

    def next_cases(self, count: int, *, exclude: frozenset[str] = frozenset()) -> list[NextCase]:
        """The `count` studies where one more correction would teach most, best first; fewer where fewer are left."""
        if self.studies is None:
            raise NotFoundError(
                "no studies are served", expected="a folder or a DICOMweb URL", todo="name it with --studies"
            )
        offered = [info for info in self.studies.list() if info.id not in exclude]
        seen = self.store.corrected(info.id for info in offered)
        offered = [info for info in offered if info.id not in seen]
        return self._queue.ranked(offered, self.reader.id, self._worth)[:count]

    # --- and what is around them ---

    def rollback(self) -> PolicyVersion:
        """Make the live policy's parent live again, bit for bit. Raises ConflictError when it has none."""
        return self.registry.rollback(record=lambda policy: self.store.record("rollback", policy))

    def policies(self) -> list[PolicyVersion]:
        """All versions, oldest first."""
        return self.registry.list()

    def episode(self, episode_id: str) -> Episode:
        """Raises NotFoundError, BlindedError (its answer is kept back)."""
        episode = self.store.episode(episode_id)
        blind.check_shown(self.store, episode)
        return episode

    def reopen(self, episode_id: str, *, images_only: bool = False) -> Asked:
        """An earlier episode with its study again. Raises NotFoundError, also where the study is gone; BlindedError.

        images_only: the caller shows nothing of the answer, so that one which is kept back may be opened, too.
        """
        episode = self.store.episode(episode_id)
        if not images_only:
            blind.check_shown(self.store, episode)
        volume = self._encoded.volume(episode.study, episode.prior)
        if volume.sha256 != episode.volume_sha256:
            raise NotFoundError(
                "a study that changed since it was asked about", expected="the same images", todo="ask about it again"
            )
        return Asked(episode, volume, self._places(episode))

    def again(self, episode: Episode, policy: str) -> Reading:
        """Answer an earlier question anew with a policy version, from as many tokens; recorded nowhere.

        Raises NotFoundError (the study's tokens were not kept, or no such policy), WeightsError, BusyError.
        """
        grid = self._places(episode)
        answering = Answering(self.reader, self.config.serve, None, grid, episode.question, _quiet)
        with self._turnstile.turn(Priority.BATCH):
            self._streams.take_on(policy)
            return answering.answer(self._streams.of(policy), episode.selection.fraction, recheck=False)

    def suggest(self, modality: str) -> str:
        """A first question for a study of this modality (serve.yaml: suggested_questions)."""
        suggested = self.config.serve.suggested_questions
        return suggested.get(modality) or suggested["default"]

    def status(self) -> dict[str, Any]:
        """Numbers for a status page."""
        return {"reader": self.reader.id, "policy": self.registry.live().id, **self.store.counts()}

    def waiting(self) -> dict[Priority, int]:
        """How many wait for the models, of each priority."""
        waiting = [queue.waiting() for queue in self._queues]
        return {priority: sum(each[priority] for each in waiting) for priority in Priority}

    def close(self) -> None:
        """Encode what is left of the studies that were asked about, and release the store."""
        self._rest.shutdown()
        with closing(self.store):
            if self._spread is not None:
                self._spread.close()

    def live_selector(self) -> PolicySelector:
        """The visual stream that answers now."""
        return self._streams.live()[1]

    # --- inside ---

    def _in_doubt(self, study: Encoded, question: Question, reading: Reading) -> bool:
        """Whether slices that were not looked at could change an answer."""
        doubt = self._answering(study, question).doubt(reading)
        return doubt is not None or is_of_all(question, reading.answer.text)

    def _answering(self, study: Encoded, question: Question, tell: OnProgress | None = None) -> Answering:
        return Answering(self.reader, self.config.serve, study.volume, study.grid, question, tell or _quiet)

    def _answer(
        self,
        study: Encoded,
        question: Question,
        share: Budget,
        tell: OnProgress | None,
        priority: Priority,
        *,
        recheck: bool,
    ) -> tuple[PolicyVersion, Reading]:
        """One answer with the policy that is live when it is begun, or, for a canary's study, the candidate."""

        def who() -> PolicyVersion:
            trial = shadow.is_canary(study.volume.sha256, self.config.gate.canary)
            return (self._candidate() if trial else None) or self.registry.live()

        if self._spread is not None:
            return self._spread.answer(study, question, share, tell or _quiet, priority, who, recheck=recheck)

        def make(policy: PolicyVersion) -> Work[Reading]:
            return self._answering(study, question, tell).work(self._streams.of(policy.id), share, recheck=recheck)

        return self._joint.do(who, make, priority, partial(tell or _quiet, Progress("wait")))

    def _candidate(self) -> PolicyVersion | None:
        """The candidate on trial, where gate.yaml lets it answer at all."""
        trial = self.config.gate.shadow or self.config.gate.canary
        return shadow.on_trial(self.registry) if trial else None

    def _shadow(self, study: Encoded, episode: Episode, share: Budget) -> None:
        """Let the candidate answer the same question silently, when nobody waits."""
        candidate = self._candidate() if self.config.gate.shadow else None
        if candidate is None or candidate.id == episode.policy:
            return

        def answer() -> None:
            try:
                with self._turnstile.turn(Priority.BATCH, bounded=False):
                    self._streams.take_on(candidate.id)
                    answering = self._answering(study, episode.question)
                    reading = answering.answer(self._streams.of(candidate.id), share, recheck=False)
                self.store.save_shadow(shadow.shadow_of(episode, candidate, reading))
            except SparsightError as error:
                _LOG.warning("a candidate did not answer silently: %s", error.code)
            except Exception:
                _LOG.exception("a candidate did not answer silently")

        self._rest.submit(answer)

    def _worth(self, info: StudyInfo) -> tuple[str, Worth]:
        """What to ask about a study, and what a correction would teach. Raises InputError, NotFoundError."""
        in_turn = partial(self._turnstile.turn, Priority.BATCH)
        text = self.suggest(info.modality)
        study = self._encoded.get(info.id, self.reader, lambda stage: None, in_turn)
        with in_turn():
            policy, selector = self._streams.live()
            self._streams.take_on(policy.id)
            k = tokens_at(self.config.serve.share, study.grid, self.reader)
            return text, acquire(self.reader, selector, study.grid, parse_question(text), k)

    def _where(self, question: Question) -> Where | None:
        """Which slices of a long volume to encode before the first answer; None: all (serve.first_slices)."""
        first = self.config.serve.first_slices if len(self._finishing) < _UNFINISHED else 0
        return self._streams.where(question, first)

    def _finish(self, study: Encoded) -> None:
        """Encode the other slices and store all tokens, between the questions of clinicians."""

        def finish() -> None:
            give_way = partial(self._turnstile.give_way, Priority.BATCH)
            turn = partial(self._turnstile.turn, Priority.BATCH, bounded=False)
            try:
                self._keep_tokens(patiently(lambda: self._encoded.complete(study, self.reader, turn, give_way)))
            except SparsightError as error:  # the next question about the study tries again
                _LOG.warning("the tokens of a study were not kept: %s", error.code)
            except Exception:
                _LOG.exception("the tokens of a study were not kept")
            finally:
                self._finishing.pop(study.volume.sha256, None)

        if study.volume.sha256 not in self._finishing:
            self._finishing[study.volume.sha256] = (self._rest.submit(finish), study.grid)

    def _keep_tokens(self, study: Encoded) -> None:
        """Store what was encoded, so that a correction can be learned when the study is no longer at hand."""
        if study.volume.sha256 not in self._tokens_kept:
            self.store.put_features(study.volume.sha256, self.reader.id, features_of(study.grid))
            self._tokens_kept.add(study.volume.sha256)

    def _places(self, episode: Episode) -> TokenGrid:
        """Where the tokens of an episode's study lie, at the size it was asked at; some may not be encoded yet."""
        if (unfinished := self._finishing.get(episode.volume_sha256)) and unfinished[1].reader == episode.reader:
            return unfinished[1]
        grid = self._encoded.grid_of(episode.volume_sha256, episode.reader)
        if grid is None or grid.shape != episode.grid_shape:
            grid = self._grid(episode)
        if grid.shape != episode.grid_shape:  # memory was short then, or when its tokens were stored
            raise NotFoundError("tokens of another size", expected="that of the question", todo="ask again")
        return grid

    def _grid(self, episode: Episode) -> TokenGrid:
        """The tokens of an episode's study, as stored when it was asked. Raises NotFoundError."""
        return grid_of(self.store.features(episode.volume_sha256, episode.reader), episode.reader)


def _quiet(_: Progress) -> None:
    """Nobody listens."""
