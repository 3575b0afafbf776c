"""Episodes and corrections as canonical JSON plus named arrays, and back without loss.

JSON is ASCII (escapes for everything else), so that any text a person can type, NUL and lone surrogates included,
survives every database. Times are stored in UTC. All sequences of the nouns are tuples, hence one rule on the way back.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import FeedbackError, InputError
from sparsight.store.blobs import Arrays
from sparsight.types import Answer, Episode, Evidence, Feedback, Mark, Question, Recheck, Region, Reward, Selection

Json = dict[str, Any]


def canonical(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII. Numbers of numpy are written as Python's."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)


def sha256_of(text: str) -> str:
    """Hash of a text; a lone surrogate counts as itself."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_id(value: str) -> bool:
    """Whether `value` can be a key of the database and of the audit log."""
    return re.fullmatch(r"[!-~]{1,200}", value) is not None


def check_id(value: str, *, what: str, error: type[InputError] = InputError) -> str:
    """Return `value`, or raise `error` when it is not 1 to 200 printable ASCII characters without spaces."""
    if not is_id(value):
        raise error(
            f"{what} of {len(value)} characters that cannot be an id",
            expected="1 to 200 printable ASCII characters without spaces",
            todo="use a UUID or a hash",
        )
    return value


def episode_to_record(episode: Episode) -> tuple[Json, Arrays]:
    """Split an episode into what JSON holds and what a blob holds. Raises InputError (id, naive time)."""
    selection = episode.selection
    record: Json = {
        "id": check_id(episode.id, what="an episode's id"),
        "created": utc(episode.created),
        "question": asdict(episode.question),
        "answer": asdict(episode.answer),
        "evidence": asdict(episode.evidence),
        "selection": {
            "log_prob": selection.log_prob,
            "mode": selection.mode,
            "policy": selection.policy,
            "seed": selection.seed,
        },
        "timings_ms": episode.timings_ms,
        "grid_shape": episode.grid_shape,
        **{name: getattr(episode, name) for name in _EPISODE_TEXTS},
    }
    if episode.recheck is not None:  # absent, as in the records of before there were any: their text stays the same
        record["recheck"] = asdict(episode.recheck)
    if episode.prior is not None:
        record["prior"] = episode.prior
    if episode.slices is not None:
        record["slices"] = episode.slices
    if episode.modality:
        record["modality"] = episode.modality
    if episode.frame_of_reference:
        record["frame_of_reference"] = episode.frame_of_reference
    if episode.blinded:
        record["blinded"] = True
    arrays: Arrays = {"keep": np.asarray(selection.keep, np.int64), "scores": np.asarray(selection.scores, np.float32)}
    if selection.attention is not None:  # absent from records of before it was known, likewise
        arrays["attention"] = np.asarray(selection.attention, np.float32)
    return record, arrays


_EPISODE_TEXTS = ("study", "series_uid", "volume_sha256", "reader", "policy", "policy_sha256", "config_sha256")


def episode_from_record(record: Json, arrays: Arrays) -> Episode:
    """Put an episode together again."""
    evidence = record["evidence"]
    regions = tuple(Region(**_tuples(region)) for region in evidence["regions"])
    recheck = record.get("recheck")
    return Episode(
        id=record["id"],
        created=datetime.fromisoformat(record["created"]),
        question=Question(**_tuples(record["question"])),
        selection=Selection(
            keep=arrays["keep"],
            scores=arrays["scores"],
            attention=arrays.get("attention"),
            **record["selection"],
        ),
        answer=_answer(record["answer"]),
        evidence=Evidence(**{**evidence, "regions": regions}),
        grid_shape=_tuples(record["grid_shape"]),
        timings_ms=record["timings_ms"],
        recheck=Recheck(**{**recheck, "first": _answer(recheck["first"])}) if recheck else None,
        prior=record.get("prior"),
        slices=record.get("slices"),
        modality=record.get("modality", ""),
        frame_of_reference=record.get("frame_of_reference", ""),
        blinded=bool(record.get("blinded")),
        **{name: record[name] for name in _EPISODE_TEXTS},
    )


def _answer(record: Json) -> Answer:
    return Answer(**{**record, "notes": tuple(record.get("notes", ()))})


def feedback_to_record(feedback: Feedback) -> tuple[Json, Arrays]:
    """Split a correction into JSON and arrays. Raises FeedbackError (key, episode id, naive time)."""
    marks: list[Json] = []
    arrays: Arrays = {}
    for n, mark in enumerate(feedback.marks):
        marks.append({"kind": mark.kind, "box_mm": mark.box_mm})
        if mark.path_mm is not None:
            marks[-1] |= {"path_mm": mark.path_mm, "radius_mm": mark.radius_mm}
        if mark.mask is not None:
            arrays |= {f"{n}.{name}": array for name, array in _crop(mark.mask).items()}
        if mark.mask_ijk_to_lps is not None:
            arrays[f"{n}.ijk_to_lps"] = np.asarray(mark.mask_ijk_to_lps, np.float64)
    record: Json = {
        "key": check_id(feedback.key, what="a correction's key", error=FeedbackError),
        "episode": check_id(feedback.episode, what="an episode's id", error=FeedbackError),
        "created": utc(feedback.created),
        "reviewer": feedback.reviewer,
        "verdict": feedback.verdict,
        "answer": feedback.answer,
        "comment": feedback.comment,
        "marks": marks,
        **{name: value for name in _OPTIONAL if (value := getattr(feedback, name))},
    }
    return record, arrays


_OPTIONAL = ("cannot_tell", "difficulty", "blinded")  # absent where not said: older records keep their text and hash


def feedback_from_record(record: Json, arrays: Arrays) -> Feedback:
    """Put a correction together again."""
    marks = tuple(
        Mark(
            kind=mark["kind"],
            box_mm=_tuples(mark["box_mm"]),
            mask=_uncrop(arrays, n) if f"{n}.crop" in arrays else None,
            mask_ijk_to_lps=arrays.get(f"{n}.ijk_to_lps"),
            path_mm=_tuples(mark.get("path_mm")),
            radius_mm=mark.get("radius_mm", 0.0),
        )
        for n, mark in enumerate(record["marks"])
    )
    return Feedback(
        key=record["key"],
        episode=record["episode"],
        reviewer=record["reviewer"],
        verdict=record["verdict"],
        created=datetime.fromisoformat(record["created"]),
        answer=record["answer"],
        marks=marks,
        comment=record["comment"],
        **{name: record[name] for name in _OPTIONAL if name in record},
    )


def reward_to_json(reward: Reward) -> str:
    """A reward as canonical JSON."""
    return canonical(asdict(reward))


def reward_from_json(text: str) -> Reward:
    """A reward from its JSON."""
    return Reward(**json.loads(text))


def _crop(mask: NDArray[np.bool_]) -> Arrays:
    """Keep the bounding box of what is marked: a nodule in a CT of 100 million voxels is a few kilobytes."""
    marked = np.asarray(mask, np.bool_)
    axes = range(marked.ndim)
    where = [np.flatnonzero(marked.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    low = [int(index[0]) if len(index) else 0 for index in where]
    high = [int(index[-1]) + 1 if len(index) else 0 for index in where]
    crop = marked[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return {"crop": crop, "offset": np.array(low, np.int64), "shape": np.array(marked.shape, np.int64)}


def _uncrop(arrays: Arrays, n: int) -> NDArray[np.bool_]:
    crop, offset = arrays[f"{n}.crop"], arrays[f"{n}.offset"]
    mask = np.zeros(tuple(arrays[f"{n}.shape"]), np.bool_)
    mask[tuple(slice(a, a + size) for a, size in zip(offset, crop.shape, strict=True))] = crop
    return mask


def utc(time: datetime) -> str:
    """A time as text that sorts. Raises InputError for one without a zone."""
    if time.tzinfo is None:
        raise InputError("a time without a time zone", expected="an aware datetime", todo="use datetime.now(UTC)")
    return time.astimezone(UTC).isoformat()


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")
