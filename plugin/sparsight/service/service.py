"""The whole product in one file: ask, correct, learn, promote, next_case."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from sparsight import evidence
from sparsight.config import Config
from sparsight.errors import BudgetError, ConflictError, GeometryError, InputError, NotFoundError, QuestionError
from sparsight.imaging.grid import box_to_tokens, tokens_to_labelmap
from sparsight.imaging.studies import open_studies
from sparsight.model import PolicySelector, TokenPolicy, base_policy_path, load_reader
from sparsight.model.protocols import Reader, ScoreRequest, Selector
from sparsight.rl.acquisition import acquire
from sparsight.service import corrections
from sparsight.service.encoded import Encoded, EncodedStudies
from sparsight.service.learning import Learned, Learner
from sparsight.service.turn import Priority, Turnstile
from sparsight.store import Features, PolicyRegistry, Store
from sparsight.types import (
    Answer,
    Episode,
    Feedback,
    ImageVolume,
    PolicyVersion,
    Question,
    Reward,
    Selection,
    TokenGrid,
)

_T = TypeVar("_T")
_LOOKED_AT = 16  # studies of which the next case is the best: each must be loaded and encoded
_YES_NO = re.compile(r"\s*(is|are|was|were|does|do|did|has|have|had|can|could|will)\b(?!.*\bor\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Progress:
    """Something happened during ask or learn: for a progress bar or an event stream."""

    stage: str  # load, encode, select, token, answer, evidence; step, sentinel, gate
    done: int = 0
    total: int = 0
    text: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Asked:
    """An episode with its study, for pictures and label maps."""

    episode: Episode
    volume: ImageVolume
    grid: TokenGrid = field(repr=False)

    def labelmap(self) -> NDArray[np.uint8]:
        """The kept tokens as voxels: (D, H, W), 1 where kept."""
        return tokens_to_labelmap(self.grid, self.episode.selection.keep, self.volume.shape)

    def weights(self) -> NDArray[np.float32]:
        """Weight of each token, (N,), sums to 1 over the kept ones."""
        return evidence.token_weights(self.episode.selection)


@dataclass(frozen=True)
class NextCase:
    """What to look at next, which question to ask about it, and why. score: higher teaches more."""

    study: str
    question: str
    score: float
    reason: str


def parse_question(text: str, *, choices: tuple[str, ...] = (), max_chars: int = 2000) -> Question:
    """Make a Question of what a person typed; a question that begins like a yes/no question is one.

    Raises QuestionError if it is empty or longer than max_chars.
    """
    text = " ".join(text.split())
    if not text:
        raise QuestionError(
            "an empty question", expected="a question about the image", todo="type what you want to know"
        )
    if len(text) > max_chars:
        raise QuestionError(
            f"a question of {len(text)} characters",
            expected=f"at most {max_chars}",
            todo="ask about one thing at a time",
        )
    if choices:
        if len(set(choices)) < 2 or any(not c.strip() or len(c) > 200 for c in choices):
            raise QuestionError(
                f"{len(choices)} choices", expected="two or more different, short ones", todo="name each choice once"
            )
        return Question(text, "choice", choices)
    return Question(text, "yes_no", ("yes", "no")) if _YES_NO.match(text) else Question(text)


class Service:
    """One per process; its methods may be called from any thread. The models are used by one thread at a time."""

    def __init__(self, config: Config, studies: str | Path | None = None) -> None:
        torch.set_num_threads(1)  # more threads contend with the server's own and are slower
        self.config = config
        self.reader: Reader = load_reader(config.serve.reader)
        self.store = Store(config.database or config.home / "store.db", config.home)
        self.registry = registry_of(config, self.reader)
        self.registry.install_base(
            base_policy_path(config.serve.reader), reader=self.reader.id, record=self._log("promote")
        )
        self.studies = open_studies(studies) if studies is not None else None
        self._encoded = EncodedStudies(self.studies, config.serve.cache_bytes)
        self._turnstile = Turnstile(config.serve.max_waiting)
        self._tokens_kept: set[str] = set()  # hashes of volumes whose tokens this process has stored
        self._live: tuple[str, PolicySelector] | None = None
        self._live_lock = threading.Lock()

    # --- the five verbs ---

    def ask(
        self,
        study: str | ImageVolume,
        question: Question,
        *,
        budget: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Asked:
        """Answer a question about a study and record it.

        study: an id of the served studies, a path where none are served, or a volume. budget: share of the tokens to
        keep, in (0, 1]. Raises QuestionError, BudgetError, NotFoundError, ImageError, GeometryError, BusyError.
        """
        tell = on_progress or (lambda progress: None)
        start = time.perf_counter()
        parse_question(question.text, choices=question.choices, max_chars=self.config.serve.max_question_chars)
        share = _check_budget(self.config.serve.budget if budget is None else budget)
        study_ = self._encoded.get(study, self.reader, lambda stage: tell(Progress(stage)), self._turnstile.turn)
        _check_region(question, study_.grid)
        with self._turnstile.turn():
            policy, selector = self._policy()
            tell(Progress("select"))
            selection, select_ms = _timed(lambda: self._select(selector, study_.grid, question, share))
            answer = self.reader.read(
                question, study_.grid, selection, on_token=lambda text: tell(Progress("token", text=text))
            )
            tell(Progress("answer", text=answer.text))
            necessity, check_ms = _timed(lambda: self._necessity(study_.grid, question, selection, answer))
        shown = evidence.describe(
            study_.volume,
            study_.grid,
            selection,
            necessity=necessity,
            threshold=self.config.serve.necessity_nats,
        )
        tell(Progress("evidence"))
        self._keep_tokens(study_)
        timings = {**study_.timings_ms, "select": select_ms, **answer.timings_ms, "necessity": check_ms}
        timings["total"] = (time.perf_counter() - start) * 1000
        episode = Episode(
            id=f"e{uuid.uuid4().hex[:16]}",
            created=datetime.now(UTC),
            study=study_.id,
            series_uid=study_.volume.series_uid,
            volume_sha256=study_.volume.sha256,
            question=question,
            selection=selection,
            answer=answer,
            evidence=shown,
            grid_shape=study_.grid.shape,
            reader=self.reader.id,
            policy=policy.id,
            policy_sha256=policy.sha256,
            config_sha256=self.config.sha256,
            timings_ms=timings,
        )
        self.store.save_episode(episode)
        return Asked(episode, study_.volume, study_.grid)

    def correct(self, feedback: Feedback) -> Reward:
        """Record a correction and tell what it is worth to the policy that answered.

        The same key with the same content is the same correction. Raises NotFoundError, ConflictError, FeedbackError.
        """
        episode = self.store.episode(feedback.episode)
        corrections.check(feedback, episode)
        if feedback.answer is not None:
            self.reader.check(episode.question, feedback.answer)
        reward = corrections.reward_of(feedback, episode, self._grid(episode) if feedback.marks else None)
        self.store.save_feedback(feedback, reward)
        return reward

    def learn(self, *, on_progress: OnProgress | None = None) -> Learned:
        """Train a candidate on the corrections not yet learned, measure it against the live policy, promote or hold it.

        Asks go first: between two steps the machine is given to whoever waits.
        """
        tell = on_progress or (lambda progress: None)
        with self._turnstile.turn(Priority.LEARNING):
            live, selector = self._policy()

            def step(stage: str, done: int, total: int) -> None:
                tell(Progress(stage, done, total))
                self._turnstile.give_way(Priority.LEARNING)

            learner = Learner(self.config, self.store, self.registry, self.reader, self._grid, step)
            return learner.learn(live, selector.policy)

    def promote(self, policy: str, *, sign_off: str | None = None) -> PolicyVersion:
        """Make a candidate live that the gate found good and that waits for a signature, or a retired policy again.

        Raises NotFoundError; ConflictError for one that the gate held back, with its reasons.
        """
        version = self.registry.get(policy)
        if version.state == "live":
            return version
        if version.state == "held":
            raise ConflictError(
                f"policy {policy} was held back: {'; '.join(version.reasons)}",
                expected="a candidate that passed the gate",
                todo="collect more corrections and learn again",
            )
        if version.state == "candidate" and not version.reasons:
            raise ConflictError(
                f"policy {policy} was never measured", expected="a candidate that passed the gate", todo="learn again"
            )
        if version.state == "candidate" and self.config.gate.sign_off and not sign_off:
            raise ConflictError(
                "a promotion without a name", expected="a signature", todo="say who signs: --sign-off NAME"
            )
        return self.registry.promote(
            policy,
            reasons=version.reasons,
            sign_off=sign_off,
            expect_live=version.parent if version.state == "candidate" else None,
            record=self._log("promote"),
        )

    def next_case(self, *, exclude: frozenset[str] = frozenset()) -> NextCase | None:
        """The study where one more correction would teach most, with a question to ask; None when all were seen.

        At most 16 studies that were not corrected are looked at, drawn anew when the store has grown; a study that
        cannot be read is passed over.
        """
        if self.studies is None:
            raise NotFoundError(
                "no studies are served", expected="a folder or a DICOMweb URL", todo="name it with --studies"
            )
        offered = [info for info in self.studies.list() if info.id not in exclude]
        seen = self.store.corrected(info.id for info in offered)
        offered = [info for info in offered if info.id not in seen]
        drawn = np.random.default_rng(self.store.counts()["corrections"]).permutation(len(offered))[:_LOOKED_AT]
        in_turn = partial(self._turnstile.turn, Priority.BATCH)
        best: NextCase | None = None
        for info in (offered[i] for i in sorted(drawn)):
            text = self.suggest(info.modality)
            try:
                study = self._encoded.get(info.id, self.reader, lambda stage: None, in_turn)
            except (InputError, NotFoundError):
                continue
            with in_turn():
                _, selector = self._policy()
                worth = acquire(self.reader, selector, study.grid, parse_question(text), self._k(study.grid))
            case = NextCase(info.id, text, worth.score, worth.reason)
            best = case if best is None or case.score > best.score else best
        return best

    # --- and what is around them ---

    def rollback(self) -> PolicyVersion:
        """Make the live policy's parent live again, bit for bit. Raises ConflictError when it has none."""
        return self.registry.rollback(record=self._log("rollback"))

    def policies(self) -> list[PolicyVersion]:
        """All versions, oldest first."""
        return self.registry.list()

    def episode(self, episode_id: str) -> Episode:
        """Raises NotFoundError."""
        return self.store.episode(episode_id)

    def reopen(self, episode_id: str) -> Asked:
        """An earlier episode with its study again. Raises NotFoundError, also where the study is gone."""
        episode = self.store.episode(episode_id)
        volume = self._encoded.volume(episode.study)
        if volume.sha256 != episode.volume_sha256:
            raise NotFoundError(
                "a study that changed since it was asked about", expected="the same images", todo="ask about it again"
            )
        return Asked(episode, volume, self._grid(episode))

    def suggest(self, modality: str) -> str:
        """A first question for a study of this modality (serve.yaml: suggested_questions)."""
        suggested = self.config.serve.suggested_questions
        return suggested.get(modality) or suggested["default"]

    def status(self) -> dict[str, Any]:
        """Numbers for a status page."""
        live = self.registry.live()
        return {"reader": self.reader.id, "policy": live.id, **self.store.counts()}

    def close(self) -> None:
        """Release the store."""
        self.store.close()

    def live_selector(self) -> PolicySelector:
        """The visual stream that answers now."""
        return self._policy()[1]

    # --- inside ---

    def _log(self, kind: Literal["promote", "rollback"]) -> Callable[[PolicyVersion], None]:
        return lambda policy: self.store.record(kind, policy)

    def _policy(self) -> tuple[PolicyVersion, PolicySelector]:
        """The live policy; another process may have promoted one since the last question."""
        live = self.registry.live()
        with self._live_lock:
            if self._live is None or self._live[0] != live.id:
                policy = TokenPolicy.from_arrays(load_file(self.registry.weights_path(live.id)))
                self._live = (live.id, PolicySelector(policy, self.reader, live.id))
            return live, self._live[1]

    def _k(self, grid: TokenGrid, share: float | None = None) -> int:
        """Tokens to keep: at least one, at most what one prompt holds."""
        share = self.config.serve.budget if share is None else share
        return max(1, min(round(share * grid.n), grid.n, self.reader.max_tokens))

    def _select(self, selector: Selector, grid: TokenGrid, question: Question, share: float) -> Selection:
        k = self._k(grid, share)
        if question.region is not None:
            k = min(k, int((box_to_tokens(grid, question.region) > 0).sum()))
        return selector.select(grid, question, k)

    def _necessity(self, grid: TokenGrid, question: Question, selection: Selection, answer: Answer) -> float | None:
        """Compare log p(answer | kept) with log p(answer | the rest), nats; the rest: its best tokens that fit."""
        if not answer.text:
            return None
        best = np.argsort(-selection.scores, kind="stable")
        rest = np.sort(best[~np.isin(best, selection.keep)][: self.reader.max_tokens])
        requests = [
            ScoreRequest(grid, question, answer.text, torch.from_numpy(np.ascontiguousarray(keep))[None])
            for keep in (selection.keep, rest)
        ]
        with_it, without = self.reader.score(requests)
        return float(with_it[0] - without[0])

    def _keep_tokens(self, study: Encoded) -> None:
        """Store what was encoded, so that a correction can be learned when the study is no longer at hand."""
        if study.volume.sha256 in self._tokens_kept:
            return
        grid = study.grid
        features = grid.features.numpy().astype(np.float16)
        kept = Features(features, grid.shape, grid.patch, grid.uvw_to_ijk, grid.uvw_to_lps)
        self.store.put_features(study.volume.sha256, self.reader.id, kept)
        self._tokens_kept.add(study.volume.sha256)

    def _grid(self, episode: Episode) -> TokenGrid:
        """The tokens of an episode's study, as stored when it was asked. Raises NotFoundError."""
        kept = self.store.features(episode.volume_sha256, episode.reader)
        features = torch.from_numpy(kept.features.astype(np.float32))
        return TokenGrid(features, kept.shape, kept.patch, kept.uvw_to_ijk, kept.uvw_to_lps, episode.reader)


def registry_of(config: Config, reader: Reader) -> PolicyRegistry:
    """The policies of one reader: tokens of another encoder mean nothing to them, so each reader has its own."""
    return PolicyRegistry(config.home / "readers" / reader.id)


def _check_region(question: Question, grid: TokenGrid) -> None:
    if question.region is not None and not box_to_tokens(grid, question.region).any():
        raise GeometryError(
            "a region outside the image", expected="a box in LPS mm that meets it", todo="see box_mm of an answer"
        )


def _check_budget(budget: float) -> float:
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise BudgetError(f"a budget of {budget!r}", expected="a share in (0, 1]", todo="for example 0.1")
    return float(budget)


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    """The result and the milliseconds it took."""
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1000
