"""What bodies look like, for readers of the schema: one study, from its first question to the policy that learned."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

_EPISODE = "e0123456789abcdef"
_BASE = "95e8a68f863cbca261d892d9e75948c121a4fe33fa960f85bcdaaeb80871fa4a"
_LEARNED = "1f0c3b7d9a52e864c0b1d7f3a9586e2402c4d8e6f1a3b5977c9e0d2f4b6a8c1e"

ASK_REQUEST: dict[str, Any] = {"study": "chest-1", "question": "Is there a nodule?", "budget": 0.1}
REGION: dict[str, Any] = {
    "box_mm": [[-29.0, 18.333, -6.5], [-2.333, 45.0, 2.5]],
    "box_ijk": [[16, 35, 5], [29, 48, 8]],
    "weight": 0.4572,
    "propensity": 0.034534,
    "sop_uid": None,
    "slice": 5,
    "image": None,
}
BUDGET: dict[str, Any] = {"kept": 605, "total": 6048, "fraction": 0.100033}
RECHECK: dict[str, Any] = {
    "reason": "negative",
    "changed": False,
    "first_answer": "no",
    "first_confidence": 0.5811,
    "first_budget": BUDGET,
    "budget": {"kept": 1024, "total": 6048, "fraction": 0.169312},
    "note": "No was re-checked with 1024 of 6048 tokens: still no",
}
SLICES: dict[str, Any] = {"encoded": 48, "total": 384}
POLICY_USED: dict[str, Any] = {"id": "p0000-027a33f4", "sha256": _BASE}
ASK_REPLY: dict[str, Any] = {
    "episode": _EPISODE,
    "created": "2026-03-02T09:30:12.890453+00:00",
    "study": "chest-1",
    "prior": None,
    "series_uid": "1.2.826.0.1.3680043.8.498.1",
    "question": "Is there a nodule?",
    "answer": "no",
    "reasoning": "I see no nodule.",
    "confidence": 0.6337,
    "abstained": False,
    "grounded": True,
    "necessity_nats": 0.8423,
    "budget": RECHECK["budget"],
    "recheck": RECHECK,
    "slices": None,
    "notes": [],
    "evidence": [REGION],
    "policy": POLICY_USED,
    "reader": "nano-2760bfd2",
    "timings_ms": {
        "load": 6.48,
        "encode": 115.24,
        "select": 21.28,
        "decode": 26.34,
        "prefill": 16.38,
        "attention": 5.92,
        "necessity": 98.06,
        "recheck": 280.84,
        "total": 592.62,
    },
}
KEPT: dict[str, Any] = {"kept": 605, "total": 6048, "regions": [REGION]}
EVENTS = "".join(
    f"event: {name}\ndata: {json.dumps(data)}\n\n"
    for name, data in (
        ("start", {"episode": _EPISODE}),
        ("progress", {"stage": "selecting"}),
        ("progress", {"stage": "reading"}),
        ("kept", KEPT),
        ("token", {"text": "I see"}),
        ("answer", {"answer": "no"}),
        ("evidence", {"grounded": True, "regions": [REGION]}),
        ("done", ASK_REPLY),
    )
)
WITHHELD_REPLY: dict[str, Any] = {
    "withheld": True,
    **{name: ASK_REPLY[name] for name in ("episode", "created", "study", "prior", "series_uid", "question")},
}
MARK: dict[str, Any] = {
    "kind": "missed",
    "box_mm": [[8.0, 20.0, -6.0], [32.0, 44.0, 2.0]],
    "path_mm": None,
    "radius_mm": 0.0,
    "frame_of_reference": "1.2.826.0.1.3680043.8.498.3",
}
STROKE: dict[str, Any] = {"kind": "missed", "path_mm": [[10.0, 22.0, -2.0], [30.0, 40.0, -2.0]], "radius_mm": 3.0}
FEEDBACK_REQUEST: dict[str, Any] = {
    "episode": _EPISODE,
    "reviewer": "reader-1",
    "verdict": "amend",
    "answer": "yes",
    "cannot_tell": False,
    "marks": [MARK, STROKE],
    "difficulty": "hard",
    "comment": "beside the heart",
    "blinded": False,
    "draft": False,
    "key": "chest-1-reader-1",
}
MASK_FORM: dict[str, Any] = {
    "feedback": '{"episode": "e0123456789abcdef", "verdict": "amend", "answer": "yes"}',
    "mask": "the bytes of nodule.nii.gz",
    "kind": "missed",
}
DICOM_REQUEST: dict[str, Any] = {"objects": ["report", "evidence"], "store": True}
DICOM_OBJECT: dict[str, Any] = {
    "kind": "report",
    "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.33",
    "sop_uid": "1.2.826.0.1.3680043.8.498.11",
    "series_uid": "1.2.826.0.1.3680043.8.498.10",
    "sha256": _BASE,
    "file": None,
}
DICOM_LEFT_OUT: dict[str, Any] = {"kind": "corrections", "why": "no region that a reviewer marked"}
DICOM_REPLY: dict[str, Any] = {
    "episode": _EPISODE,
    "status": "preliminary",
    "to": "pacs",
    "study_uid": "1.2.826.0.1.3680043.8.498.2",
    "objects": [DICOM_OBJECT],
    "left_out": [DICOM_LEFT_OUT],
}
REWARD: dict[str, Any] = {
    "total": -0.5,
    "parts": {"answer": -1.0, "abstention": None, "grounding": 0.0},
    "version": "feedback-3-1",
}
FEEDBACK_REPLY: dict[str, Any] = {
    "key": "chest-1-reader-1",
    "episode": _EPISODE,
    "state": "submitted",
    "policy": POLICY_USED,
    "reward": REWARD,
    "notes": [],
}
ME: dict[str, Any] = {"reviewer": "user-0f3a9c27b1de", "role": "reviewer"}
CHANGE_REQUEST: dict[str, Any] = {"change": "withdraw", "reviewer": "reader-1", "key": "chest-1-reader-1-withdrawn"}
CHANGE_REPLY: dict[str, Any] = {"key": "chest-1-reader-1", "state": "withdrawn", "learned_by": ["p0001-1f0c3b7d"]}
GIVEN: dict[str, Any] = {
    "key": "chest-1-reader-1",
    "episode": _EPISODE,
    "reviewer": "reader-1",
    "verdict": "amend",
    "created": "2026-03-02T09:31:40.120031+00:00",
    "answer": "yes",
    "cannot_tell": False,
    "difficulty": "hard",
    "blinded": False,
    "comment": "beside the heart",
    "marks": [{name: MARK[name] for name in ("kind", "box_mm")}],
    "state": "withdrawn",
    "changes": [
        {
            "key": "chest-1-reader-1-withdrawn",
            "change": "withdraw",
            "by": "reader-1",
            "created": "2026-03-03T08:00:00+00:00",
            "state": "withdrawn",
        }
    ],
    "learned_by": [],
    "reward": REWARD,
}
POLICY: dict[str, Any] = {
    "id": "p0001-1f0c3b7d",
    "parent": "p0000-027a33f4",
    "state": "live",
    "sha256": _LEARNED,
    "reader": "nano-2760bfd2",
    "created": "2026-03-02T18:00:41.104466+00:00",
    "metrics": {"sentinel_non_inferior": 0.012, "held_out_gain": 0.21, "corrections": 48.0, "held_out": 12.0},
    "reasons": [
        "held-out corrections: reward +0.104 -> +0.314, gain +0.210 [+0.062, +0.371], n=12: lower bound above 0.01"
    ],
    "sign_off": "reader-1",
    "sentinel": "5f0e1a2b3c4d",
    "origin": None,
}
ORIGIN: dict[str, Any] = {
    "bundle_sha256": _LEARNED,
    "site": "site-b",
    "parent": "p0000-027a33f4",
    "state": "live",
    "imported": "2026-03-03T09:12:02.771235+00:00",
}
PROMOTE_REQUEST: dict[str, Any] = {"sign_off": "reader-1"}
LEARN: dict[str, Any] = {
    "state": "running",
    "started": "2026-03-02 18:00:03",
    "ended": None,
    "stats": {"stage": "step", "done": 12, "total": 40, "started": "2026-03-02T18:00:05+00:00"},
}
NEXT_CASE_REQUEST: dict[str, Any] = {"exclude": ["chest-1"], "count": 5}
CASE: dict[str, Any] = {
    "study": "chest-2",
    "question": "Is there a nodule?",
    "score": 0.71,
    "reason": "'yes' with 54% over 8 looks, disagreement 0.031 nats, undecided 0.62, necessity 0.04",
}
NEXT_CASE_REPLY: dict[str, Any] = {**CASE, "queue": [CASE]}
STUDY: dict[str, Any] = {
    "id": "chest-1",
    "modality": "DX",
    "question": "Is there a nodule?",
    "study_uid": "1.2.826.0.1.3680043.8.498.2",
    "series_uid": "1.2.826.0.1.3680043.8.498.1",
}
GEOMETRY: dict[str, Any] = {
    "shape": [12, 56, 64],
    "ijk_to_lps": [[2.0, 0.0, 0.0, -66.0], [0.0, 2.0, 0.0, -60.0], [0.0, 0.0, 3.0, -20.0], [0.0, 0.0, 0.0, 1.0]],
    "spacing_mm": [2.0, 2.0, 3.0],
    "slices": [5, 3, 0],
}
TOKENS: dict[str, Any] = {
    "shape": [12, 21, 24],
    "uvw_to_lps": [[5.3, 0.0, 0.0, -63.3], [0.0, 5.3, 0.0, -57.3], [0.0, 0.0, 3.0, -20.0], [0.0, 0.0, 0.0, 1.0]],
    "tokens": [[9, 14, 5, 0.22], [10, 14, 5, 0.78]],
}
STATE: dict[str, Any] = {
    "state": "ready",
    "reader": "nano-2760bfd2",
    "policy": "p0000-027a33f4",
    "episodes": 61,
    "corrections": 60,
}


class Failure(NamedTuple):
    """One code of docs/errors.md as a body says it. when: the line of the schema."""

    status: int
    when: str
    given: str
    expected: str
    todo: str

    def body(self, code: str) -> dict[str, Any]:
        """The reply."""
        return {"error": {"code": code, "given": self.given, "expected": self.expected, "todo": self.todo}}


FAILURES = {
    "bad_config": Failure(
        400,
        "a setting is out of range",
        "setting learn.steps: Input should be greater than or equal to 1",
        "a known setting in its range",
        "see configs/*.yaml",
    ),
    "bad_request": Failure(
        400, "the body cannot be parsed", "bad request", "a request as in /openapi.json", "see docs/api.md"
    ),
    "unauthorized": Failure(
        401,
        "no token, where people log in",
        "no bearer token",
        "a token with the role",
        "log in, then send Authorization: Bearer TOKEN",
    ),
    "forbidden": Failure(
        403,
        "a token without the role, another reviewer than who logged in, or another origin's page",
        "a token without the role",
        "a token with the role",
        "ask for the role reviewer or trainer or admin",
    ),
    "not_found": Failure(
        404,
        "no such study, episode or policy",
        "a study id that is not here",
        "an id from the list of studies (3 known)",
        "list the studies",
    ),
    "conflict": Failure(
        409,
        "it contradicts what is recorded",
        "a correction that is already recorded with other content",
        "the same content, or a new one",
        "use a new key for new content",
    ),
    "blinded": Failure(
        409,
        "the answer is kept back until a reader has given their own",
        "an answer that is kept back",
        "a reader's own answer first",
        "send it with blinded: true, verdict amend and answer or cannot_tell, not as a draft",
    ),
    "bad_weights": Failure(
        409,
        "the weights cannot be used",
        "reader.safetensors is not the file that was released",
        "the sha256 of manifest.json",
        "reinstall sparsight, or train the reader again",
    ),
    "too_slow": Failure(
        408,
        "the body did not arrive in time",
        "request timeout",
        "a request as in /openapi.json",
        "see docs/api.md",
    ),
    "too_many_requests": Failure(
        429,
        "too many changes of one person",
        "too many changes in a minute",
        "a token with the role",
        "wait and try again",
    ),
    "too_large": Failure(413, "the body is too large", "600000000 bytes", "at most 269484032", "send less"),
    "misdirected": Failure(
        421,
        "another machine or name, or plain HTTP off the loopback",
        "a request for another host",
        "a name of this server",
        "use 127.0.0.1, or add the name to `hosts` of site.yaml",
    ),
    "bad_input": Failure(
        422,
        "a field breaks its rule",
        "body.study: Field required",
        "a request as in /openapi.json",
        "see docs/api.md",
    ),
    "bad_image": Failure(
        422,
        "the study is no image we can read",
        "a DICOM image object without pixel data",
        "pixels in the object itself",
        "retrieve the whole object, not its metadata",
    ),
    "bad_geometry": Failure(
        422,
        "a place or a frame does not fit",
        "a relevant box outside the image",
        "LPS millimetres inside it",
        "check its frame",
    ),
    "bad_question": Failure(
        422,
        "an empty or too long question, or an answer that it does not have",
        "an empty question",
        "a question about the image",
        "type what you want to know",
    ),
    "bad_budget": Failure(
        422, "a budget outside (0, 1]", "a budget of 2", "a share in (0, 1], or auto", "for example 0.1"
    ),
    "bad_feedback": Failure(
        422,
        "a correction that contradicts itself",
        "an amendment that amends nothing",
        "an answer or a mark",
        "add one, or accept or reject",
    ),
    "not_stored": Failure(
        424,
        "the PACS did not take all that was sent",
        "1 of 2 objects that the PACS did not store (evidence 1.2.826.0.1.3680043.8.498.12: out of resources (0xA700))",
        "a PACS that stores structured reports and segmentations",
        "see its log, then send again: nothing is stored twice",
    ),
    "busy": Failure(
        423,
        "busy: nothing was lost, try again",
        "a disk without room",
        "room for what is to be stored",
        "make room, then try again",
    ),
    "queue_full": Failure(
        429,
        "too many questions wait already",
        "32 questions are waiting",
        "at most 32",
        "ask again in a few seconds",
    ),
}

NOT_READY: list[dict[str, Any]] = [
    {"state": "loading"},
    {"state": "failed", **FAILURES["bad_weights"].body("bad_weights")},
]
