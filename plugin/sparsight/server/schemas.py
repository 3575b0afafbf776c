"""What goes over the wire under /sparsight. Boxes are LPS millimetres, [[min x, y, z], [max x, y, z]]."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from sparsight.server import examples
from sparsight.server.access import ANONYMOUS
from sparsight.types import Change, Difficulty, Doubt, FeedbackState

Point = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Corners = tuple[Point, Point]
Voxel = tuple[int, int, int]
Kind = Literal["report", "evidence", "corrections"]  # of DICOM objects
Identifier = Annotated[str, Field(min_length=1, max_length=256)]
Pseudonym = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
_BOUND = "where people log in it must be their own (GET /sparsight/me), or left out"


def _shown(*bodies: dict[str, Any]) -> ConfigDict:
    """Whole bodies as examples in the schema."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")  # a reply may grow; what is named here stays


class AskRequest(_Request):
    """A question about one study."""

    model_config = _shown(examples.ASK_REQUEST)

    study: Identifier = Field(description="an id that GET /sparsight/studies lists")
    question: str = Field(min_length=1, max_length=20_000)
    prior: Identifier | None = Field(None, description="an earlier study to compare with; both must be single images")
    kind: Literal["free", "yes_no", "choice"] | None = Field(None, description="default: seen from the question")
    choices: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=20)
    region: Corners | None = Field(None, description="ask about this part only, LPS mm")
    budget: Annotated[float, Field(gt=0, le=1, strict=True)] | Literal["auto"] | None = Field(
        None, description="share of the visual tokens to keep; auto: the policy decides"
    )
    recheck: bool = Field(True, description="read a negative or ungrounded answer again from more tokens")
    blinded: bool = Field(False, description="keep the answer back until a blinded correction (a reader's own) came")
    batch: bool = Field(False, description="nobody waits for it: questions of others go first")

    @model_validator(mode="after")
    def _choices_for_a_choice(self) -> Self:
        if self.kind == "choice" and len(set(self.choices)) < 2:
            raise ValueError("a choice needs two or more different choices")
        return self


class BudgetReply(BaseModel):
    """How many of the study's visual tokens the answer rests on."""

    model_config = _shown(examples.BUDGET)

    kept: int
    total: int
    fraction: float


class RecheckReply(BaseModel):
    """The first answer was negative or not grounded, so the question was read again from more tokens."""

    model_config = _shown(examples.RECHECK)

    reason: Doubt
    changed: bool = Field(description="the answer shown differs from the first one")
    first_answer: str
    first_confidence: float
    first_budget: BudgetReply = Field(description="what the first answer was read from")
    budget: BudgetReply = Field(description="what the answer shown was read from")
    note: str = Field(description="for a person")


class RegionReply(_Reply):
    """One region of evidence."""

    model_config = _shown(examples.REGION)

    box_mm: Corners
    box_ijk: tuple[Voxel, Voxel] = Field(description="the same in voxels (column, row, slice), upper bound exclusive")
    weight: float = Field(description="share of the evidence")
    propensity: float | None = Field(None, description="that the policy draws a token of it before any other")
    sop_uid: str | None = None
    slice: int = Field(description="slice with most of it")
    image: Literal["prior", "current"] | None = Field(None, description="which of the two it lies in; null: one study")


class PolicyUsed(BaseModel):
    """Which policy chose the regions."""

    model_config = _shown(examples.POLICY_USED)

    id: str
    sha256: str


class SlicesReply(_Reply):
    """Slices that an answer after a first look was read from."""

    model_config = _shown(examples.SLICES)

    encoded: int = Field(description="chosen by the policy after a first look at all of them")
    total: int


class AskReply(_Reply):
    """An answer with what it rests on; the same JSON as `sparsight ask --json`."""

    model_config = _shown(examples.ASK_REPLY)

    episode: str
    created: str = Field(description="ISO 8601")
    study: str
    prior: str | None = Field(None, description="the study it was compared with")
    series_uid: str = Field(description="of DICOM, else empty")
    question: str
    answer: str
    reasoning: str
    confidence: float = Field(description="calibrated probability that the answer is right, 0..1")
    abstained: bool
    grounded: bool | None = Field(description="does the answer need its evidence; null: not tested")
    necessity_nats: float | None = Field(description="fall of the answer's log-probability without its evidence")
    budget: BudgetReply = Field(description="what the answer shown was read from")
    recheck: RecheckReply | None = Field(description="null: the first reading is shown")
    slices: SlicesReply | None = Field(None, description="null: all slices were encoded before the answer")
    evidence: list[RegionReply]
    notes: list[str] = Field(default_factory=list, description="what the reader had to do without, in words")
    policy: PolicyUsed
    reader: str
    timings_ms: dict[str, float]


class WithheldReply(_Reply):
    """A question that was asked blinded. Its answer is recorded, and shown after a blinded correction of it."""

    model_config = _shown(examples.WITHHELD_REPLY)

    withheld: Literal[True]
    episode: str = Field(description="to correct with blinded: true")
    created: str = Field(description="ISO 8601")
    study: str
    prior: str | None = None
    series_uid: str = Field(description="of DICOM, else empty")
    question: str


class MarkRequest(_Request):
    """A region the reviewer points at: a box, or a path (a stroke; one point is a click)."""

    model_config = _shown(examples.MARK, examples.STROKE)

    kind: Literal["relevant", "irrelevant", "missed"]
    box_mm: Corners | None = None
    path_mm: list[Point] | None = Field(None, min_length=1, max_length=2000, description="points of a stroke, LPS mm")
    radius_mm: float = Field(0.0, ge=0, le=100, description="half the pen's width; 0: the tokens that it runs through")
    frame_of_reference: str | None = Field(None, max_length=64, pattern=r"^[0-9.]+$", description="UID of the image's")

    @model_validator(mode="after")
    def _one_region(self) -> Self:
        if (self.box_mm is None) == (self.path_mm is None):
            raise ValueError("a mark needs either box_mm or path_mm")
        low, high = self.box_mm or ((0, 0, 0), (0, 0, 0))
        if any(a > b for a, b in zip(low, high, strict=True)):
            raise ValueError("the first corner must hold the smaller coordinates")
        return self


class FeedbackRequest(_Request):
    """A correction. The same key with the same content is the same correction, however often it is sent."""

    model_config = _shown(examples.FEEDBACK_REQUEST)

    episode: Identifier
    reviewer: Pseudonym = Field(ANONYMOUS, description="a pseudonym, never a name; " + _BOUND)
    verdict: Literal["accept", "amend", "reject"]
    answer: str | None = Field(None, min_length=1, max_length=2000, description="the right answer")
    cannot_tell: bool = Field(False, description="this image does not answer the question")
    marks: list[MarkRequest] = Field(default_factory=list, max_length=50)
    difficulty: Difficulty | None = None
    comment: str = Field("", max_length=2000)
    blinded: bool = Field(False, description="the reviewer's own answer, given before ours was seen; verdict amend")
    draft: bool = Field(False, description="keep it, but learn nothing from it until it is submitted")
    key: Identifier | None = Field(None, description="chosen by the client; default: a new one")


class ChangeRequest(_Request):
    """What becomes of a correction. undo takes back its last change."""

    model_config = _shown(examples.CHANGE_REQUEST)

    change: Change
    reviewer: Pseudonym = Field(ANONYMOUS, description="pseudonym of who changes it; " + _BOUND)
    key: Identifier | None = Field(None, description="makes a repeated request the same change")


class MeReply(BaseModel):
    """Who logged in."""

    model_config = _shown(examples.ME)

    reviewer: str | None = Field(description="this person's pseudonym; null where nobody logs in")
    role: Literal["reader", "reviewer", "trainer", "admin"] | None


class RewardReply(BaseModel):
    """What the correction is worth to the policy that answered."""

    model_config = _shown(examples.REWARD)

    total: float = Field(description="-1..1")
    parts: dict[str, float | None]
    version: str


class FeedbackReply(BaseModel):
    """The correction as recorded."""

    model_config = _shown(examples.FEEDBACK_REPLY)

    key: str
    episode: str
    state: FeedbackState
    policy: PolicyUsed = Field(description="that answered, and that the reward is of")
    reward: RewardReply
    notes: list[str] = Field(default_factory=list, description="that another reader answered, or what the reward is of")


class ChangeReply(BaseModel):
    """A correction after a change."""

    model_config = _shown(examples.CHANGE_REPLY)

    key: str
    state: FeedbackState
    learned_by: list[str] = Field(description="the live policy and its ancestors, those that learned from it already")


class GivenReply(_Reply):
    """One correction of an answer."""

    model_config = _shown(examples.GIVEN)

    key: str
    episode: str
    reviewer: str
    verdict: Literal["accept", "amend", "reject"]
    created: str = Field(description="ISO 8601")
    answer: str | None
    cannot_tell: bool
    difficulty: Difficulty | None
    blinded: bool
    comment: str
    marks: list[dict[str, Any]] = Field(description="kind, and box_mm, path_mm with radius_mm, or voxels of a mask")
    state: FeedbackState
    changes: list[dict[str, str]] = Field(description="key, change, by, created, state; oldest first")
    learned_by: list[str]
    reward: RewardReply


class DicomRequest(_Request):
    """Which DICOM objects to make of an answer, and where they go."""

    model_config = _shown(examples.DICOM_REQUEST)

    objects: list[Kind] | None = Field(None, min_length=1, max_length=3, description="default: all that there can be")
    store: bool = Field(False, description="send them to the PACS; else they are written to files on the server")


class DicomObjectReply(BaseModel):
    """One object. A report has a version for each correction, each referring to the one before."""

    model_config = _shown(examples.DICOM_OBJECT)

    kind: Kind
    sop_class_uid: str
    sop_uid: str
    series_uid: str
    sha256: str = Field(description="of the file")
    file: str | None = Field(None, description="where it was written, on the server; null: it is in the PACS")


class DicomLeftOutReply(BaseModel):
    """A kind of object that cannot be made of this answer."""

    model_config = _shown(examples.DICOM_LEFT_OUT)

    kind: Kind
    why: str


class DicomReply(_Reply):
    """What was made. The same answer gives the same objects under the same UIDs, however often it is asked for."""

    model_config = _shown(examples.DICOM_REPLY)

    episode: str
    status: Literal["preliminary", "verified", "rejected"] = Field(description="of the last version of the report")
    to: Literal["folder", "pacs"]
    study_uid: str
    objects: list[DicomObjectReply]
    left_out: list[DicomLeftOutReply]


class OriginReply(_Reply):
    """The bundle that a policy was imported from, and what it said of it."""

    model_config = _shown(examples.ORIGIN)

    bundle_sha256: str = Field(description="of the bundle's manifest, which holds the hash of each file")
    site: str | None = Field(description="pseudonym of the site that exported it")
    parent: str | None = Field(description="its parent there")
    state: Literal["candidate", "held", "live", "retired"] = Field(description="there, when it was exported")
    imported: str = Field(description="ISO 8601")


class PolicyReply(_Reply):
    """One version of the token-selection policy."""

    model_config = _shown(examples.POLICY)

    id: str
    parent: str | None
    state: Literal["candidate", "held", "live", "retired"]
    sha256: str
    reader: str
    created: str
    metrics: dict[str, float]
    reasons: list[str]
    sign_off: str | None = None
    sentinel: str | None = Field(None, description="version of the sentinel set that it was measured on")
    origin: OriginReply | None = Field(None, description="of a policy of another site")


class PromoteRequest(_Request):
    """Who signs, where the gate asks for a signature."""

    model_config = _shown(examples.PROMOTE_REQUEST)

    sign_off: Pseudonym | None = Field(None, description="a pseudonym; " + _BOUND)


class LearnReply(_Reply):
    """The latest learning job. stats: progress while it runs, its outcome afterwards."""

    model_config = _shown(examples.LEARN)

    state: Literal["idle", "running", "done", "failed", "stopped"]
    started: str | None = None
    ended: str | None = None
    stats: dict[str, Any] = Field(default_factory=dict)


class NextCaseRequest(_Request):
    """Studies to leave out, for example those on another screen."""

    model_config = _shown(examples.NEXT_CASE_REQUEST)

    exclude: list[Identifier] = Field(default_factory=list, max_length=10_000)
    count: int = Field(1, ge=1, le=16, description="how many to name in the queue")


class CaseReply(BaseModel):
    """One study to correct, and a question to ask about it."""

    model_config = _shown(examples.CASE)

    study: str
    question: str
    score: float = Field(description="0..1, higher teaches more")
    reason: str


class NextCaseReply(BaseModel):
    """Where one more correction would teach most. study is null when all were seen."""

    model_config = _shown(examples.NEXT_CASE_REPLY)

    study: str | None
    question: str | None = None
    score: float | None = None
    reason: str | None = None
    queue: list[CaseReply] = Field(description="it and those that follow, as many as were asked for, best first")


class StudyReply(_Reply):
    """One study that can be asked about, and a first question for it."""

    model_config = _shown(examples.STUDY)

    id: str
    modality: str
    question: str
    study_uid: str = Field("", description="of DICOM, else empty")
    series_uid: str = Field("", description="of DICOM, else empty")


class GeometryReply(BaseModel):
    """Where a picture's pixels are: column i, row j, slice k to LPS mm."""

    model_config = _shown(examples.GEOMETRY)

    shape: tuple[int, int, int] = Field(description="(D, H, W): slices, rows, columns")
    ijk_to_lps: list[list[float]]
    spacing_mm: tuple[float, float, float] = Field(description="along (i, j, k)")
    slices: list[int] = Field(description="slices that hold evidence, heaviest first")


class TokensReply(BaseModel):
    """The visual tokens of the evidence: (u, v, w) along columns, rows and slices of the tokens' grid."""

    model_config = _shown(examples.TOKENS)

    shape: tuple[int, int, int] = Field(description="of the grid: along w, v, u")
    uvw_to_lps: list[list[float]] = Field(description="(u, v, w, 1) of a token to LPS mm; it reaches 0.5 around")
    tokens: list[tuple[int, int, int, float]] = Field(description="u, v, w and weight; weights sum to 1")


class ErrorDetail(_Reply):
    """What was given, what was expected, what to do."""

    code: str = Field(description="stable, one of docs/errors.md")
    given: str
    expected: str
    todo: str


class ErrorReply(BaseModel):
    """The body of every failed request."""

    model_config = _shown(examples.FAILURES["bad_input"].body("bad_input"))

    error: ErrorDetail


class StateReply(_Reply):
    """Whether the server answers, and with what."""

    model_config = _shown(examples.STATE)

    state: Literal["live", "ready", "loading", "failed"]
