"""Our routes, /sparsight/...: thin; what they do is in service. Plain functions run in FastAPI's thread pool."""

from __future__ import annotations

import logging
import shutil
import tempfile
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from sparsight.errors import FeedbackError
from sparsight.imaging.export import read_mask
from sparsight.reply import ask_json, corrected_json, episode_json, feedback_json, policy_json, withheld_json
from sparsight.server import examples, guard, picture, state, stream
from sparsight.server.access import CALLER, reviewer
from sparsight.server.jobs import LearningJob
from sparsight.server.schemas import (
    AskReply,
    AskRequest,
    ChangeReply,
    ChangeRequest,
    DicomReply,
    DicomRequest,
    ErrorReply,
    FeedbackReply,
    FeedbackRequest,
    GeometryReply,
    GivenReply,
    LearnReply,
    MeReply,
    NextCaseReply,
    NextCaseRequest,
    PolicyReply,
    PromoteRequest,
    StateReply,
    StudyReply,
    TokensReply,
    WithheldReply,
)
from sparsight.service import OnProgress, Service, new_id, parse_question
from sparsight.service.blinded import kept_back
from sparsight.service.turn import Priority
from sparsight.store.files import disk_errors, make_folder
from sparsight.types import Feedback, Mark, Question

logger = logging.getLogger(__name__)

Served = Annotated[Service, Depends(state.service)]
Learning = Annotated[LearningJob, Depends(LearningJob)]

Responses = dict[int | str, dict[str, Any]]


def _errors(*codes: str) -> Responses:
    """The responses of a route that can fail with these codes, each with its body."""
    made: Responses = {}
    for code in codes:
        failure = examples.FAILURES[code]
        described = made.setdefault(failure.status, {"model": ErrorReply, "description": "", "content": {}})
        described["description"] += ("; " if described["description"] else "") + failure.when
        shown = described["content"].setdefault("application/json", {"examples": {}})
        shown["examples"][code] = {"value": failure.body(code)}
    return made


def _file(media_type: str) -> Responses:
    """The response of a route that sends a file."""
    return {200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


_DOOR = ("unauthorized", "forbidden", "misdirected")  # of every route but those that probes ask
_PROBED = ("misdirected", "bad_config", "bad_weights", "busy")
_READS = (*_DOOR[:2], *_PROBED)  # of every route that asks the service
_SENDS = (*_READS, "bad_request", "too_slow", "too_large", "too_many_requests")  # that have a body or change something
_MARKED = ("not_found", "conflict", "blinded", "bad_input", "bad_feedback", "bad_geometry", "bad_question")
_OPENED = ("not_found", "bad_input", "bad_image", "bad_geometry")
_SHOWN = ("not_found", "blinded", "bad_input")  # of those that show an answer
_PICTURED = (*_SHOWN, "bad_image", "bad_geometry")

_NOT_READY: dict[str, Any] = {
    "model": StateReply,
    "description": "loading; or failed, with the error",
    "content": {"application/json": {"examples": {body["state"]: {"value": body} for body in examples.NOT_READY}}},
}

_EVENTS: Responses = {
    200: {
        "description": "the answer; or its events, `done` with the same body",
        "content": {stream.MEDIA_TYPE: {"schema": {"type": "string"}, "example": examples.EVENTS}},
    },
    202: {"model": WithheldReply, "description": "asked blinded: recorded, and kept back until a blinded reading"},
}

_LEFT = 499  # as nginx has it: nobody gets it, log and metrics do

router = APIRouter(prefix="/sparsight")


@router.post(
    "/ask",
    response_model=AskReply,
    responses=_EVENTS | _errors(*_SENDS, *_OPENED, "bad_question", "bad_budget", "queue_full"),
    tags=["Ask"],
)
async def ask(request: AskRequest, service: Served, http: Request) -> Any:
    """Ask a question about a study: the answer, its reasoning and the few regions it rests on.

    With `Accept: text/event-stream` as events: start, progress, kept, token, answer, evidence, then done or error.
    blinded: the answer is kept back, on every route, until a blinded correction of it (a reader's own answer) came.
    """
    question = parse_question(
        request.question, choices=tuple(request.choices), max_chars=service.config.serve.max_question_chars
    )
    if request.kind is not None or request.region is not None:
        kind = request.kind or question.kind
        choices = question.choices or (("yes", "no") if kind == "yes_no" else ())
        question = Question(question.text, kind, choices if kind != "free" else (), request.region)
    episode = new_id()

    def run(tell: OnProgress) -> dict[str, Any]:
        asked = service.ask(
            request.study,
            question,
            prior=request.prior,
            budget=request.budget,
            recheck=request.recheck,
            blinded=request.blinded,
            priority=Priority.BATCH if request.batch else Priority.CLINICIAN,
            episode_id=episode,
            on_progress=tell,
        )
        return withheld_json(asked.episode) if request.blinded else ask_json(asked)

    if stream.wants_events(http):
        pair = request.prior is not None
        return await stream.stream(run, episode, http, pair=pair, blinded=request.blinded)
    told = await stream.whole(run, http)
    if told is None:
        return Response(status_code=_LEFT)
    return JSONResponse(told, status_code=202 if request.blinded else 200)  # it is made by ask_json: not checked twice


@router.post("/feedback", response_model=FeedbackReply, responses=_errors(*_SENDS, *_MARKED), tags=["Correct"])
def feedback(request: FeedbackRequest, service: Served) -> dict[str, Any]:
    """Accept, amend or reject an answer; the reward it earns is shown back at once."""
    return _correct(service, request)


@router.post(
    "/feedback/mask",
    response_model=FeedbackReply,
    responses=_errors(*_SENDS, *_MARKED, "bad_image"),
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"example": examples.MASK_FORM}}}},
    tags=["Correct"],
)
def feedback_mask(
    service: Served,
    feedback: Annotated[str, Form(max_length=100_000, description="a FeedbackRequest as JSON")],
    mask: Annotated[UploadFile, File(description="NIfTI, NRRD or PNG; every voxel above 0 is marked")],
    kind: Annotated[Literal["relevant", "irrelevant", "missed"], Form()] = "relevant",
) -> dict[str, Any]:
    """The same with a drawn mask; it is resampled where its grid differs from the study's."""
    try:
        request = FeedbackRequest.model_validate_json(feedback)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FeedbackError(
            f"feedback {where}: {first['msg']}", expected="a FeedbackRequest", todo="see docs/api.md"
        ) from error
    suffix = guard.safe_extension(mask.filename, guard.MASK_EXTENSIONS)
    with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
        path = Path(folder) / f"mask{suffix}"
        with path.open("wb") as target:
            shutil.copyfileobj(mask.file, target)
        drawn, ijk_to_lps = read_mask(path)
    return _correct(service, request, Mark(kind, mask=drawn, mask_ijk_to_lps=ijk_to_lps))


def _correct(service: Service, request: FeedbackRequest, *drawn: Mark) -> dict[str, Any]:
    marks = [
        Mark(
            m.kind,
            box_mm=m.box_mm,
            path_mm=None if m.path_mm is None else tuple(m.path_mm),
            radius_mm=m.radius_mm,
            frame_of_reference=m.frame_of_reference or "",
        )
        for m in request.marks
    ]
    given = Feedback(
        key=request.key or uuid.uuid4().hex,
        episode=request.episode,
        reviewer=reviewer(request.reviewer),
        verdict=request.verdict,
        created=datetime.now(UTC),
        answer=request.answer,
        marks=(*marks, *drawn),
        comment=request.comment,
        cannot_tell=request.cannot_tell,
        difficulty=request.difficulty,
        blinded=request.blinded,
    )
    return corrected_json(service, given, service.correct(given, draft=request.draft))


@router.post(
    "/feedback/{key}/change",
    response_model=ChangeReply,
    responses=_errors(*_SENDS, "not_found", "conflict", "bad_input", "bad_feedback"),
    tags=["Correct"],
)
def change(key: str, request: ChangeRequest, service: Served) -> dict[str, Any]:
    """Submit a draft, withdraw a correction, or undo its last change; nothing is learned from what is withdrawn."""
    state_now = service.revise(key, request.change, by=reviewer(request.reviewer), change_key=request.key)
    return {"key": key, "state": state_now, "learned_by": list(service.learned_by(key))}


@router.get(
    "/episodes/{episode}/feedback",
    response_model=list[GivenReply],
    responses=_errors(*_READS, *_SHOWN),
    tags=["Correct"],
)
def given(episode: str, service: Served) -> list[dict[str, Any]]:
    """All corrections of an answer, of every reviewer, oldest first, with what became of them."""
    service.episode(episode)
    found = service.store.feedback_of(episode, on_fault=lambda fault: logger.error("left out: %s", fault))
    return [feedback_json(service, one) for one in found]


@router.get("/episodes", response_model=list[AskReply], responses=_errors(*_READS, "bad_input"), tags=["Ask"])
def episodes(
    service: Served,
    study: Annotated[str | None, Query(max_length=256)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[dict[str, Any]]:
    """Earlier answers, newest first, but those kept back; one that was altered on the disk is left out and logged."""
    found = service.store.episodes(limit, study=study, on_fault=lambda fault: logger.error("left out: %s", fault))
    return [episode_json(episode) for episode in found if not kept_back(service.store, episode)]


@router.get("/episodes/{episode}", response_model=AskReply, responses=_errors(*_READS, *_SHOWN), tags=["Ask"])
def one_episode(episode: str, service: Served) -> dict[str, Any]:
    """One earlier answer."""
    return episode_json(service.episode(episode))


@router.get(
    "/episodes/{episode}/geometry", response_model=GeometryReply, responses=_errors(*_READS, *_OPENED), tags=["Ask"]
)
def geometry(episode: str, service: Served) -> dict[str, Any]:
    """Where the pixels of slice.png are in the patient."""
    asked = service.reopen(episode, images_only=True)
    return picture.geometry(asked, kept_back=kept_back(service.store, asked.episode))


@router.get(
    "/episodes/{episode}/tokens", response_model=TokensReply, responses=_errors(*_READS, *_PICTURED), tags=["Ask"]
)
def tokens(episode: str, service: Served) -> dict[str, Any]:
    """Each token of the evidence with its weight and place, for a viewer that draws them on any plane."""
    return picture.tokens(service.reopen(episode))


@router.get(
    "/episodes/{episode}/overlay.png",
    response_class=Response,
    responses=_file("image/png") | _errors(*_READS, *_PICTURED),
    tags=["Ask"],
)
def overlay(
    episode: str, service: Served, slice_index: Annotated[int | None, Query(alias="slice", ge=0, le=100_000)] = None
) -> Response:
    """A picture for a person: heat and boxes on the slices with most evidence, or on one slice."""
    return Response(picture.overlay(service.reopen(episode), slice_index), media_type="image/png")


@router.get(
    "/episodes/{episode}/slice.png",
    response_class=Response,
    responses=_file("image/png") | _errors(*_READS, *_PICTURED),
    tags=["Ask"],
)
def one_slice(
    episode: str,
    service: Served,
    slice_index: Annotated[int | None, Query(alias="slice", ge=0, le=100_000)] = None,
    evidence: bool = True,
) -> Response:
    """One slice, a pixel per voxel, for a viewer that draws on it. slice: default the one with most evidence.

    Of an answer that is kept back without evidence alone; slice: then by default the middle one.
    """
    asked = service.reopen(episode, images_only=not evidence)
    hidden = kept_back(service.store, asked.episode)
    return Response(picture.slice_png(asked, slice_index, evidence=evidence, kept_back=hidden), media_type="image/png")


@router.get(
    "/episodes/{episode}/labelmap.nii.gz",
    response_class=Response,
    responses=_file("application/gzip") | _errors(*_READS, *_PICTURED),
    tags=["Ask"],
)
def labelmap(episode: str, service: Served) -> Response:
    """The tokens of the evidence as voxels, 1 where they lie, on the study's own grid."""
    return Response(picture.labelmap_nifti(service.reopen(episode)), media_type="application/gzip")


@router.post(
    "/episodes/{episode}/dicom",
    response_model=DicomReply,
    responses=_errors(*_SENDS, *_PICTURED, "conflict", "not_stored"),
    tags=["Correct"],
)
def dicom(episode: str, service: Served, request: DicomRequest | None = None) -> dict[str, Any]:
    """Write an answer and its corrections as DICOM (structured report, segmentations), or store them in the PACS."""
    from sparsight import results  # highdicom takes a second to import

    wanted = request or DicomRequest()
    made = results.make_results(service, episode, wanted.objects)
    if wanted.store:
        results.send_results(service, made)
        return results.results_json(made)
    folder = service.config.home / "dicom"
    make_folder(folder)
    with disk_errors():
        return results.results_json(made, results.write_results(service, made, folder))


@router.get("/me", response_model=MeReply, responses=_errors(*_DOOR), tags=["Correct"])
def me() -> dict[str, Any]:
    """Who asks, as the token says: the pseudonym that corrections and signatures are recorded under."""
    caller = CALLER.get()
    return {"reviewer": caller and caller.pseudonym, "role": caller and caller.role.name.lower()}


@router.get("/studies", response_model=list[StudyReply], responses=_errors(*_READS, "bad_image"), tags=["Ask"])
def studies(service: Served) -> list[dict[str, Any]]:
    """The studies that can be asked about."""
    if service.studies is None:
        return []
    return [
        {
            "id": info.id,
            "modality": info.modality,
            "question": service.suggest(info.modality),
            "study_uid": info.study_uid,
            "series_uid": info.series_uid,
        }
        for info in service.studies.list()
    ]


@router.get("/policies", response_model=list[PolicyReply], responses=_errors(*_READS), tags=["Learn"])
def policies(service: Served) -> list[dict[str, Any]]:
    """All policy versions, oldest first."""
    return [policy_json(policy) for policy in service.policies()]


@router.post("/policies/rollback", response_model=PolicyReply, responses=_errors(*_SENDS, "conflict"), tags=["Learn"])
def rollback(service: Served) -> dict[str, Any]:
    """Make the live policy's parent live again, bit for bit."""
    return policy_json(service.rollback())


@router.post(
    "/policies/{policy}/promote",
    response_model=PolicyReply,
    responses=_errors(*_SENDS, "not_found", "conflict", "bad_input"),
    tags=["Learn"],
)
def promote(policy: str, service: Served, request: PromoteRequest | None = None) -> dict[str, Any]:
    """Make a version live: one that passed the gate, one shipped with a newer release, or a retired one again."""
    signed = request.sign_off if request else None
    return policy_json(service.promote(policy, sign_off=reviewer(signed) if signed else None))


@router.post(
    "/learn", response_model=LearnReply, status_code=202, responses=_errors(*_SENDS, "conflict"), tags=["Learn"]
)
def learn(job: Learning) -> dict[str, Any]:
    """Start learning from the corrections so far, in a process of its own; 409 while one runs."""
    return job.start()


@router.get("/learn", response_model=LearnReply, responses=_errors(*_DOOR), tags=["Learn"])
def learning(job: Learning) -> dict[str, Any]:
    """The latest learning job."""
    return job.status()


@router.post(
    "/next_case",
    response_model=NextCaseReply,
    responses=_errors(*_SENDS, "not_found", "bad_input", "bad_image", "queue_full"),
    tags=["Learn"],
)
def next_case(service: Served, request: NextCaseRequest | None = None) -> dict[str, Any]:
    """The study where one more correction would teach most, and a question to ask about it; and those that follow."""
    wanted = request or NextCaseRequest()
    cases = [asdict(case) for case in service.next_cases(wanted.count, exclude=frozenset(wanted.exclude))]
    return {"study": None, **(cases[0] if cases else {}), "queue": cases}


@router.get("/health/live", response_model=StateReply, responses=_errors("misdirected"), tags=["Health"])
def live() -> dict[str, Any]:
    """The process answers."""
    return {"state": "live"}


@router.get(
    "/health/ready", response_model=StateReply, responses=_errors(*_PROBED) | {503: _NOT_READY}, tags=["Health"]
)
def ready() -> Any:
    """Weights are loaded: a question is answered without waiting for them; `failed` comes with the error."""
    if failure := state.failure():
        return JSONResponse({"state": "failed", **failure.as_dict()}, status_code=503)
    if not state.is_ready():
        return JSONResponse({"state": "loading"}, status_code=503)
    return {"state": "ready", **state.service().status()}
