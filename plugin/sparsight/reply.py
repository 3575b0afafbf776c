"""The JSON of an answer: made here once, for the command line, the routes and the MONAI Label task alike."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sparsight.errors import finite
from sparsight.service import Asked, Learned, Service
from sparsight.types import Episode, Evidence, Feedback, Mark, PolicyVersion, Recheck, Reward


def ask_json(asked: Asked) -> dict[str, Any]:
    """What `ask --json`, `POST /sparsight/ask` and the infer task reply (schema: docs/cli.md)."""
    return episode_json(asked.episode)


def withheld_json(episode: Episode) -> dict[str, Any]:
    """What may be told of an answer that is kept back until a reader has given their own."""
    return {
        "withheld": True,
        "episode": episode.id,
        "created": episode.created.isoformat(),
        "study": episode.study,
        "prior": episode.prior,
        "series_uid": episode.series_uid,
        "question": episode.question.text,
    }


def episode_json(episode: Episode) -> dict[str, Any]:
    """One question answered. Boxes in LPS mm as [[min x, y, z], [max x, y, z]]; times in ms.

    `budget`: what the answer shown was read from, also where that was a re-check; `recheck` tells of the first reading.
    """
    answer, evidence, recheck = episode.answer, episode.evidence, episode.recheck
    first, total = len(episode.selection.keep), evidence.total
    return {
        "episode": episode.id,
        "created": episode.created.isoformat(),
        "study": episode.study,
        "prior": episode.prior,
        "series_uid": episode.series_uid,
        "question": episode.question.text,
        "answer": answer.text,
        "reasoning": answer.reasoning,
        "confidence": round(answer.confidence, 4),
        "abstained": answer.abstained,
        "grounded": evidence.grounded,
        "necessity_nats": None if evidence.necessity is None else round(evidence.necessity, 4),
        "budget": _budget(recheck.kept if recheck else first, total),
        "recheck": _recheck(recheck, answer.text, first, total) if recheck else None,
        "slices": None if episode.slices is None else {"encoded": episode.slices, "total": episode.grid_shape[0]},
        "evidence": regions_json(evidence, pair=episode.prior is not None),
        "notes": list(answer.notes),
        "policy": {"id": episode.policy, "sha256": episode.policy_sha256},
        "reader": episode.reader,
        "timings_ms": {name: round(value, 2) for name, value in episode.timings_ms.items()},
    }


def regions_json(evidence: Evidence, *, pair: bool = False) -> list[dict[str, Any]]:
    """Regions, heaviest first. pair: of a study and its prior."""
    return [
        {
            "box_mm": [[round(x, 3) for x in corner] for corner in region.box_mm],
            "box_ijk": [list(corner) for corner in region.box_ijk],
            "weight": round(region.weight, 4),
            "propensity": None if region.propensity is None else round(region.propensity, 6),
            "sop_uid": region.sop_uid,
            "slice": region.slice_index,
            "image": ("prior", "current")[region.slice_index] if pair else None,
        }
        for region in evidence.regions
    ]


def _budget(kept: int, total: int) -> dict[str, Any]:
    return {"kept": kept, "total": total, "fraction": round(kept / total, 6)}


def _recheck(recheck: Recheck, answer: str, first: int, total: int) -> dict[str, Any]:
    """`note` says it in words, the same in every client."""
    tokens = "all tokens" if recheck.kept == total else f"{recheck.kept} of {total} tokens"
    said = recheck.first.text[:1].upper() + recheck.first.text[1:]
    now = f"{'now' if recheck.changed else 'still'} {answer or 'no answer'}"
    why = "" if recheck.reason == "negative" else ", which hardly depended on its evidence,"
    return {
        "reason": recheck.reason,
        "changed": recheck.changed,
        "first_answer": recheck.first.text,
        "first_confidence": round(recheck.first.confidence, 4),
        "first_budget": _budget(first, total),
        "budget": _budget(recheck.kept, total),
        "note": f"{said}{why} was re-checked with {tokens}: {now}",
    }


def reward_json(reward: Reward) -> dict[str, Any]:
    """A correction's reward, shown back at once."""
    return {"total": round(reward.total, 4), "parts": reward.parts, "version": reward.version}


def correction_notes(service: Service, episode: Episode, reward: Reward) -> list[str]:
    """What there is to say at once about a correction of an answer, in words."""
    notes = []
    if episode.reader != service.reader.id:
        notes.append(
            f"kept, but nothing is learned from it here: the answer is reader {episode.reader}'s, not the served one's"
        )
    if episode.recheck is not None and episode.recheck.changed and reward.parts.get("answer") is not None:
        first = episode.recheck.first
        said = "that it was not sure" if first.abstained else f"'{first.text}'"
        notes.append(f"the reward is the policy's: from the tokens it chose the answer was {said}, before the re-check")
    return notes


def corrected_json(service: Service, feedback: Feedback, reward: Reward) -> dict[str, Any]:
    """What whoever corrects is told at once."""
    episode = service.episode(feedback.episode)
    return {
        "key": feedback.key,
        "episode": feedback.episode,
        "state": service.store.state_of(feedback.key),
        "policy": {"id": episode.policy, "sha256": episode.policy_sha256},
        "reward": reward_json(reward),
        "notes": correction_notes(service, episode, reward),
    }


def feedback_json(service: Service, feedback: Feedback) -> dict[str, Any]:
    """A correction with what became of it."""
    changes = service.store.changes_of(feedback.key)
    said = ("key", "episode", "reviewer", "verdict", "answer", "cannot_tell", "difficulty", "blinded", "comment")
    return {
        **{name: getattr(feedback, name) for name in said},
        "created": feedback.created.isoformat(),
        "marks": [_mark_json(mark) for mark in feedback.marks],
        "state": changes[-1].state if changes else "submitted",
        "changes": [
            {"key": c.key, "change": c.change, "by": c.by, "created": c.created.isoformat(), "state": c.state}
            for c in changes
        ],
        "learned_by": list(service.learned_by(feedback.key)),
        "reward": reward_json(service.store.reward(feedback.key)),
    }


def _mark_json(mark: Mark) -> dict[str, Any]:
    if mark.mask is not None:
        return {"kind": mark.kind, "voxels": int(mark.mask.sum())}
    if mark.path_mm is not None:
        return {"kind": mark.kind, "path_mm": mark.path_mm, "radius_mm": mark.radius_mm}
    return {"kind": mark.kind, "box_mm": mark.box_mm}


def policy_json(policy: PolicyVersion) -> dict[str, Any]:
    """One line of `policies`."""
    origin = policy.origin
    return {
        "id": policy.id,
        "parent": policy.parent,
        "state": policy.state,
        "sha256": policy.sha256,
        "reader": policy.reader,
        "created": policy.created.isoformat(),
        "metrics": finite(policy.metrics),
        "reasons": list(policy.reasons),
        "sign_off": policy.sign_off,
        "sentinel": policy.sentinel or None,
        "origin": None if origin is None else asdict(origin) | {"imported": origin.imported.isoformat()},
    }


def learn_json(learned: Learned) -> dict[str, Any]:
    """What `learn --json` and the train task reply."""
    return {
        "candidate": learned.candidate.id if learned.candidate else None,
        "promoted": learned.promoted,
        "reasons": list(learned.reasons),
        "corrections": learned.corrections,
        "held_out": learned.held_out,
        "seconds": round(learned.seconds, 2),
        "gate": finite(learned.gate),
    }
