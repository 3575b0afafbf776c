"""The store: every episode and every correction, exactly once, and what has been learned from them.

The store is the queue of learning. A correction is unlearned as long as no policy in the live policy's ancestry has it
in its list (`learned`). So nothing is ever taken out: a candidate that is held, or whose job was killed, leaves its
corrections unlearned; one that is promoted turns them into replay; after a rollback they are unlearned again.

    policy = registry.add(weights, ..., record=lambda p: store.mark_learned(p, train=keys, heldout=others))

writes the list before the candidate becomes visible: no policy can be promoted whose list is not known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, Row, select, true

from sparsight.errors import ConflictError, FeedbackError, SparsightError, WeightsError
from sparsight.store import arrays as rows
from sparsight.store import audit, changes, corrected, decisions, queries, shadows, tables
from sparsight.store import features as encoded
from sparsight.store.audit import Head
from sparsight.store.blobs import BlobStore, hash_of, pack, unpack
from sparsight.store.engine import Database
from sparsight.store.features import Features, from_arrays, to_arrays
from sparsight.store.files import make_folder
from sparsight.store.forget import Forgotten, erase
from sparsight.store.records import (
    canonical,
    check_id,
    episode_from_record,
    episode_to_record,
    feedback_from_record,
    feedback_to_record,
    is_id,
    reward_from_json,
    reward_to_json,
    sha256_of,
)
from sparsight.store.shadows import Shadow
from sparsight.types import Change, Episode, Feedback, FeedbackChange, FeedbackState, PolicyVersion, Reward

Role = Literal["train", "heldout"]
OnFault = Callable[[SparsightError], object]
_T = TypeVar("_T")


class Store:
    """Episodes, corrections and their arrays. Safe for threads and for several processes on one folder.

    Every write is one transaction together with its entry in the audit log, and idempotent by key: a repeated call
    returns False. Raises BusyError (database locked, disk full) when the same call may succeed later.
    """

    def __init__(self, url_or_path: str | Path, root: Path, *, busy_timeout_s: float = 5.0) -> None:
        """url_or_path: SQLite file or SQLAlchemy URL. root: folder of blobs, locks and the audit log's witness."""
        make_folder(root)
        self._blobs = BlobStore(root / "blobs")
        self._head_file = root / "audit.head"
        self._witness = audit.Witness(self._head_file)
        self._database = Database(url_or_path, root, busy_timeout_s=busy_timeout_s)
        if not self._head_file.exists() and self.audit_head() == audit.GENESIS:
            audit.keep_head(self._head_file, audit.GENESIS)

    def save_episode(self, episode: Episode, tokens: Features | None = None) -> bool:
        """Record an answered question; True if it is new. Raises ConflictError (same id, other content), InputError.

        tokens: of its study, where they are not kept yet (`put_features`).
        """
        record, arrays = episode_to_record(episode)
        blob = None if tokens is None else self._blobs.put(to_arrays(tokens))
        data = pack(arrays)
        body = canonical(record | {"arrays": hash_of(data)})
        with self._database.write() as connection:
            known = connection.execute(select(tables.episodes.c.body).filter_by(id=episode.id)).scalar_one_or_none()
            if known is not None:
                return _same(known, body, "an episode's id")
            seq = queries.next_seq(connection, tables.episodes.c.seq)
            row = {"seq": seq, "id": episode.id, "study_sha256": sha256_of(episode.study), "body": body}
            rows.put(connection, hash_of(data), data)
            if blob is not None:
                encoded.put(connection, episode.volume_sha256, episode.reader, blob)
            connection.execute(tables.episodes.insert(), row)
            entry = {
                "episode": episode.id,
                "sha256": sha256_of(body),
                "question_sha256": sha256_of(episode.question.text),
                "study_sha256": row["study_sha256"],
            }
            last = audit.append(connection, "ask", entry)
        self._witness.keep(last)
        return True

    def episode(self, episode_id: str) -> Episode:
        """Read an episode with its arrays. Raises NotFoundError, WeightsError (arrays altered)."""
        with self._database.read() as connection:
            body = connection.execute(queries.by_id(tables.episodes.c.body, episode_id)).scalar_one_or_none()
        if body is None:
            raise queries.unknown("episode")
        return self._episode(body)

    def episodes(
        self, limit: int, *, study: str | None = None, before: str | None = None, on_fault: OnFault | None = None
    ) -> list[Episode]:
        """List the newest first. before: an episode's id; only what was stored earlier than it (the next page).

        on_fault: as in `unlearned`, of episodes.
        """
        query = select(tables.episodes.c.body).order_by(tables.episodes.c.seq.desc()).limit(limit)
        if study is not None:
            query = query.filter_by(study_sha256=sha256_of(study))
        with self._database.read() as connection:
            if before is not None:
                seq = connection.execute(queries.by_id(tables.episodes.c.seq, before)).scalar_one_or_none()
                if seq is None:
                    raise queries.unknown("episode")
                query = query.where(tables.episodes.c.seq < seq)
            bodies = connection.execute(query).scalars().all()
        return _readable(self._episode, bodies, on_fault)

    def save_feedback(self, feedback: Feedback, reward: Reward, *, draft: bool = False) -> bool:
        """Record a correction and its reward; True if it is new. draft: nothing learns from it until it is submitted.

        The time is not part of the content: a client that repeats a request gets False, and the first time and reward
        stay. Raises ConflictError (same key, other content, or a draft), NotFoundError (episode), FeedbackError (key).
        """
        record, arrays = feedback_to_record(feedback)
        record["arrays"] = self._blobs.put(arrays) if arrays else None
        body, reward_json = canonical(record), reward_to_json(reward)
        content = sha256_of(canonical({name: value for name, value in record.items() if name != "created"}))
        with self._database.write() as connection:
            query = select(tables.feedback.c.content_sha256).filter_by(feedback_key=feedback.key)
            known = connection.execute(query).scalar_one_or_none()
            if known is not None:
                if not draft and self._life(connection, feedback.key).states[-1] == "draft":
                    raise ConflictError(
                        "a correction that was kept as a draft", expected="a new one", todo="submit it by its key"
                    )
                return _same(known, content, "a correction's key")
            answered_by = queries.policy_of(connection, feedback.episode)
            row = {
                "seq": queries.next_seq(connection, tables.feedback.c.seq),
                "feedback_key": feedback.key,
                "episode_id": feedback.episode,
                "content_sha256": content,
                "body": body,
                "reward": reward_json,
            }
            connection.execute(tables.feedback.insert(), row)
            entry = {"feedback": feedback.key, "episode": feedback.episode, "policy_sha256": answered_by}
            last = audit.append(connection, "feedback", entry | {"sha256": sha256_of(body + reward_json)})
            if draft:
                kept = f"draft-{uuid4().hex}"
                first = FeedbackChange(kept, feedback.key, "draft", feedback.reviewer, feedback.created, "draft")
                last = self._record_change(connection, first)
        self._witness.keep(last)
        return True

    def change_feedback(
        self, key: str, change: Change, *, by: str, created: datetime, change_key: str | None = None
    ) -> FeedbackState:
        """Submit, withdraw or undo; the state it led to. The same change_key is the same change.

        by: pseudonym of who changes it. What is so already is no change, and recorded as none. Raises NotFoundError,
        ConflictError (not possible in its state, or another change under this key), FeedbackError (change_key).
        """
        change_key = change_key or f"change-{uuid4().hex}"
        check_id(change_key, what="a change's key", error=FeedbackError)
        with self._database.write() as connection:
            if (known := changes.by_key(connection, change_key)) is not None:
                _same(canonical([known.feedback, known.change]), canonical([key, change]), "a change's key")
                return known.state
            if connection.execute(queries.one_feedback(key)).one_or_none() is None:
                raise queries.unknown("correction")
            life = self._life(connection, key)
            state = life.after(change)
            if state is None:
                return life.states[-1]
            last = self._record_change(connection, FeedbackChange(change_key, key, change, by, created, state))
        self._witness.keep(last)
        return state

    def changes_of(self, key: str) -> list[FeedbackChange]:
        """What became of a correction, oldest first; empty for one that was submitted when it was made."""
        with self._database.read() as connection:
            return changes.of(connection, key)

    def state_of(self, key: str) -> FeedbackState:
        """Whether a correction is a draft, submitted or withdrawn."""
        with self._database.read() as connection:
            return self._life(connection, key).states[-1]

    def feedback(self, key: str) -> Feedback:
        """Read a correction. Raises NotFoundError, WeightsError (arrays altered)."""
        return self._feedback(self._row(key).body)

    def reward(self, key: str) -> Reward:
        """Read the reward a correction was given. Raises NotFoundError."""
        return reward_from_json(self._row(key).reward)

    def feedback_of(self, episode: str, *, submitted: bool = False, on_fault: OnFault | None = None) -> list[Feedback]:
        """All corrections of an answer, of any reader, oldest first; in any state, unless `submitted`.

        on_fault: as in `unlearned`.
        """
        mine = tables.feedback.c.episode_id == (episode if is_id(episode) else "")
        return self._feedback_where(mine, on_fault, submitted=submitted)

    def has_feedback(self, episode: str) -> bool:
        """Whether anybody has said anything of an answer yet, also what was withdrawn since."""
        with self._database.read() as connection:
            query = select(tables.feedback.c.seq).filter_by(episode_id=episode if is_id(episode) else "").limit(1)
            return connection.execute(query).one_or_none() is not None

    def all_feedback(self, *, submitted: bool = True, on_fault: OnFault | None = None) -> list[Feedback]:
        """Every correction, oldest first; in any state, unless `submitted`. on_fault: as in `unlearned`."""
        return self._feedback_where(true(), on_fault, submitted=submitted)

    def unlearned(self, lineage: Sequence[str], *, on_fault: OnFault | None = None) -> list[Feedback]:
        """List the submitted corrections that no policy of `lineage` has used, oldest first: the queue of learning.

        lineage: ids of the live policy and its ancestors (PolicyRegistry.lineage). on_fault: told of each correction
        that cannot be read, which is then left out; without it the first one raises WeightsError (arrays altered).
        """
        keys = queries.used_by(lineage)
        return self._feedback_where(tables.feedback.c.feedback_key.not_in(keys), on_fault)

    def learned_keys(self, lineage: Sequence[str], role: Role | None = None) -> set[str]:
        """Keys of all corrections that `lineage` has used, of a role or of any, also of those withdrawn since."""
        with self._database.read() as connection:
            return set(connection.execute(queries.used_by(lineage, role)).scalars())

    def learned(
        self, lineage: Sequence[str], role: Role | None = None, *, on_fault: OnFault | None = None
    ) -> list[Feedback]:
        """List the submitted corrections that `lineage` has used, oldest first: replay. role: only those used so.

        on_fault: as in `unlearned`.
        """
        return self._feedback_where(tables.feedback.c.feedback_key.in_(queries.used_by(lineage, role)), on_fault)

    def mark_learned(self, policy: PolicyVersion, *, train: Sequence[str], heldout: Sequence[str] = ()) -> bool:
        """Record from which corrections a policy learned and by which it was judged; True if that is new.

        Both are used up: a held-out correction joins the replay of the next learning. Raises ConflictError (another
        list for this policy, a key in both roles), NotFoundError (key).
        """
        roles = dict.fromkeys(train, "train") | dict.fromkeys(heldout, "heldout")
        if set(train) & set(heldout):
            raise ConflictError(
                "a correction both learned from and held out",
                expected="separate lists",
                todo="split the corrections by patient before learning",
            )
        with self._database.write() as connection:
            query = select(tables.learned).filter_by(policy_id=policy.id)
            known = {row.feedback_key: row.role for row in connection.execute(query)}
            if known:
                return _same(canonical(known), canonical(roles), "a policy's list of corrections")
            stored = set(connection.execute(select(tables.feedback.c.feedback_key)).scalars())
            if not roles.keys() <= stored:
                raise queries.unknown("correction")
            rows = [{"policy_id": policy.id, "feedback_key": key, "role": role} for key, role in roles.items()]
            if rows:
                connection.execute(tables.learned.insert(), rows)
            last = audit.append(connection, "learn", audit.policy_entry(policy) | audit.learned_entry(roles))
        self._witness.keep(last)
        return True

    def put_features(self, volume_sha256: str, reader: str, features: Features) -> bool:
        """Keep an encoded study, so that learning needs neither the PACS nor the encoder; False if it is kept already.

        Raises InputError when features are not (N, C) float16 with N = gd * gh * gw.
        """
        blob = self._blobs.put(to_arrays(features))
        with self._database.write() as connection:
            return encoded.put(connection, volume_sha256, reader, blob)

    def features(self, volume_sha256: str, reader: str) -> Features:
        """Read an encoded study. Raises NotFoundError (encode it again), WeightsError (altered)."""
        with self._database.read() as connection:
            blob = encoded.blob_of(connection, volume_sha256, reader)
        if blob is None:
            raise queries.unknown("encoded study")
        return from_arrays(self._blobs.get(blob))

    def save_shadow(self, shadow: Shadow) -> bool:
        """Keep what a candidate said silently; True if it is new."""
        with self._database.write() as connection:
            return shadows.put(connection, shadow)

    def shadows(self, policy: str) -> list[Shadow]:
        """All that a candidate said silently, oldest first."""
        with self._database.read() as connection:
            return shadows.of(connection, policy)

    def corrected(self, studies: Iterable[str]) -> set[str]:
        """Which of these studies have an answer with a correction that was not withdrawn, drafts among them."""
        with self._database.read() as connection:
            hashes = corrected.studies(connection)
        return {study for study in studies if sha256_of(study) in hashes}

    def corrected_last(self, limit: int, *, on_fault: OnFault | None = None) -> list[Episode]:
        """The episodes that were corrected last, each once, newest first. on_fault: as in `unlearned`."""
        with self._database.read() as connection:
            bodies = corrected.last(connection, limit)
        return _readable(self._episode, bodies, on_fault)

    def counts(self) -> dict[str, int]:
        """Number of episodes and of submitted corrections."""
        with self._database.read() as connection:
            return corrected.counts(connection)

    def record(self, kind: audit.Decision, policy: PolicyVersion | None, **hashes: str) -> None:
        """Log a decision about a policy. Pass it as `record` of the registry's change, so that none goes unlogged.

        policy: None for what is about corrections.
        """
        about = {} if policy is None else audit.policy_entry(policy)
        with self._database.write() as connection:
            last = audit.append(connection, kind, about | hashes)
        self._witness.keep(last)

    def record_results(self, episode_id: str, to: Literal["folder", "pacs"], sha256: dict[str, str]) -> None:
        """Log that DICOM objects of an answer left. sha256: of each as it was written, by SOP instance UID."""
        with self._database.write() as connection:
            last = audit.append(connection, "results", {"episode": episode_id, "to": to, "objects": sha256})
        self._witness.keep(last)

    def forget(self, studies: Collection[str], *, before: datetime | None = None) -> Forgotten:
        """Delete all there is of studies, for good; the log keeps hashes (forget.py). No server may run beside it."""
        return erase(self._database, self._blobs.root, self._witness.keep, studies, before)

    def audit_head(self) -> Head:
        """Number and hash of the log's last entry; kept elsewhere, it shows any later tampering (`verify(anchor=)`)."""
        with self._database.read() as connection:
            return audit.head(connection)

    def verify(self, *, anchor: Head | None = None, readers: Path | None = None) -> list[str]:
        """List what is wrong with the audit log and the records (audit.py); empty when nothing is.

        readers: the folder with the registries of policies, compared with the log, too (decisions.py).
        """
        self._witness.wait()
        with decisions.unchanged(readers) as registries, self._database.read() as connection:
            problems = audit.verify(connection, self._head_file, anchor=anchor)
            return [*problems, *decisions.differences(connection, registries)]

    def close(self) -> None:
        """Wait for the log's witness, and give back the database's connections."""
        self._witness.wait()
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _episode(self, body: str) -> Episode:
        record = json.loads(body)
        with self._database.read() as connection:
            data = rows.get(connection, record["arrays"])
        kept = unpack(data, record["arrays"]) if data is not None else self._blobs.get(record["arrays"])
        return episode_from_record(record, kept)

    def _feedback(self, body: str) -> Feedback:
        record = json.loads(body)
        return feedback_from_record(record, self._blobs.get(record["arrays"]) if record["arrays"] else {})

    def _row(self, key: str) -> Row[Any]:
        with self._database.read() as connection:
            row = connection.execute(queries.one_feedback(key)).one_or_none()
        if row is None:
            raise queries.unknown("correction")
        return row

    def _life(self, connection: Connection, key: str) -> changes.Life:
        return changes.Life.of([change.change for change in changes.of(connection, key)])

    def _record_change(self, connection: Connection, change: FeedbackChange) -> Head:
        row = changes.row_of(change, queries.next_seq(connection, tables.changes.c.seq))
        connection.execute(tables.changes.insert(), row)
        entry = {"change": change.key, "feedback": change.feedback, "sha256": sha256_of(changes.sealed(row))}
        return audit.append(connection, "change", entry)

    def _feedback_where(self, condition: Any, on_fault: OnFault | None, *, submitted: bool = True) -> list[Feedback]:
        query = select(tables.feedback.c.body).where(condition).order_by(tables.feedback.c.seq)
        if submitted:
            query = query.where(tables.feedback.c.feedback_key.not_in(changes.keys_in("draft", "withdrawn")))
        with self._database.read() as connection:
            bodies = connection.execute(query).scalars().all()
        return _readable(self._feedback, bodies, on_fault)


def _readable(read: Callable[[str], _T], bodies: Iterable[str], on_fault: OnFault | None) -> list[_T]:
    """Read records; whatever cannot be read is told, or raised where nobody is there to be told."""
    found = []
    for body in bodies:
        try:
            found.append(read(body))
        except WeightsError as error:  # not BusyError: a disk that does not answer now has lost nothing
            if on_fault is None:
                raise
            on_fault(error)
    return found


def _same(known: str, given: str, what: str) -> Literal[False]:
    if known != given:
        raise ConflictError(
            f"{what} that is already recorded with other content",
            expected="the same content, or a new one",
            todo="use a new key for new content",
        )
    return False
