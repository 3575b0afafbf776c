"""The nouns of sparsight: frozen dataclasses, no behaviour beyond what they are.

Letters of shapes, used in every docstring and comment:
    D, H, W   voxels: slices, rows, columns          N   visual tokens of one study
    gd, gh, gw   token grid: slices, rows, columns    K   tokens kept (N = gd * gh * gw)
    C   channels of a token                           G   subsets drawn for one question (a group)
    T   text tokens                                   B   batch

Arrays of voxels are indexed [k, j, i] (slice, row, column); an affine named `ijk_to_lps` takes (i, j, k, 1), columns
first as in DICOM and NIfTI, to LPS millimetres of the voxel's centre. World coordinates are LPS millimetres everywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Point = tuple[float, float, float]  # LPS mm
Box = tuple[Point, Point]  # (min, max) corners
QuestionKind = Literal["free", "yes_no", "choice"]
Verdict = Literal["accept", "amend", "reject"]
MarkKind = Literal["relevant", "irrelevant", "missed"]
Difficulty = Literal["easy", "moderate", "hard"]
FeedbackState = Literal["draft", "submitted", "withdrawn"]
Change = Literal["submit", "withdraw", "undo"]
PolicyState = Literal["candidate", "held", "live", "retired"]
Doubt = Literal["negative", "not grounded"]


@dataclass(frozen=True, eq=False)
class ImageVolume:
    """One series as numbers with geometry; a radiograph or a photograph has D = 1.

    voxels: (D, H, W) float32, CT in HU, colour as luminance, MONOCHROME1 already inverted.
    window: (centre, width) to show and to encode it with, in voxel values.
    has_mm: False where the file knew no millimetres (then one pixel counts as one millimetre).
    sop_uids: one per slice (repeated for a multi-frame object); empty where the source is not DICOM.
    """

    voxels: NDArray[np.float32]
    ijk_to_lps: NDArray[np.float64]  # (4, 4)
    modality: str  # DICOM code (CT, MR, CR, DX, US, ...) or OT
    window: tuple[float, float]
    has_mm: bool = True
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    sop_uids: tuple[str, ...] = ()
    body_part: str = ""
    pair: bool = False  # two images, not neighbours: slice 0 is a prior, slice 1 the current image (imaging/pair.py)

    @property
    def current(self) -> ImageVolume:
        """The image that was asked about: of a pair slice 1 alone, at its own place; else the volume itself."""
        if not self.pair:
            return self
        ijk_to_lps = self.ijk_to_lps.copy()
        ijk_to_lps[:3, 3] += ijk_to_lps[:3, 2]
        return replace(self, voxels=self.voxels[1:], ijk_to_lps=ijk_to_lps, sop_uids=self.sop_uids[1:], pair=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        d, h, w = self.voxels.shape
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (i, j, k): column, row and slice direction."""
        x, y, z = np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @cached_property
    def sha256(self) -> str:
        """Hash of voxels and geometry: the same image has the same hash wherever it was loaded from."""
        digest = hashlib.sha256(np.ascontiguousarray(self.voxels).data)
        digest.update(np.round(self.ijk_to_lps, 4).astype("<f8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Question:
    """What the clinician asks. `region` (LPS mm) narrows it to a part of the study."""

    text: str
    kind: QuestionKind = "free"
    choices: tuple[str, ...] = ()
    region: Box | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that it can have; none for a free one."""
        return ("yes", "no") if self.kind == "yes_no" else self.choices


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """The visual tokens of one study: encoded once, asked many times.

    features: (N, C) float32 tensor, token n = (w * gh + v) * gw + u for the token in slice w, row v, column u.
    uvw_to_ijk: (4, 4), token (u, v, w, 1) to the voxel index of its centre; uvw_to_lps: the same in LPS mm.
    patch: a token's extent in voxels along (i, j, k); may be fractional where the image was resized.
    encoded: (gd,) slices whose tokens are there; None: all of them. The tokens of the others are zeros: selectors pass
    them over.
    extras: what the reader that made the grid needs again (deep features, position ids); opaque to all others.
    """

    features: Tensor
    shape: tuple[int, int, int]  # (gd, gh, gw)
    patch: tuple[float, float, float]
    uvw_to_ijk: NDArray[np.float64]
    uvw_to_lps: NDArray[np.float64]
    reader: str  # id of the reader that made it
    encoded: NDArray[np.bool_] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """N, the number of tokens."""
        gd, gh, gw = self.shape
        return gd * gh * gw


@dataclass(frozen=True, eq=False)
class ContextTokens:
    """m tokens that are none of the grid's: merged background, or a coarser view of the study.

    features: (m, C) float32, channels of the grid's own tokens. at: (m, 24) float32, where they stand, as
    model.positions gives it; a merged token stands at the weighted mean of the places it was merged from.
    """

    features: Tensor
    at: Tensor

    def __len__(self) -> int:
        return self.features.shape[-2]


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens a visual stream kept, and with which probability.

    keep: (K,) int64, ascending, distinct. scores: (N,) float32, higher is more relevant.
    log_prob: of the ordered draw that produced it (Plackett-Luce); 0 for a selector that has no distribution.
    context: further tokens for the reader, out of the same budget. Only rivals make them; episodes store none.
    attention: (N,) float32, what the language stream looked at when it read them, 0 for a token that it did not read;
    None: not known. It ranks the evidence (evidence.token_weights); log_prob and propensities are the scores' alone.
    """

    keep: NDArray[np.int64]
    scores: NDArray[np.float32]
    log_prob: float
    mode: Literal["greedy", "sampled"]
    policy: str
    seed: int | None = None
    context: ContextTokens | None = None
    attention: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        """Tokens that the reader is given: K and those of the context."""
        return len(self.keep) + (0 if self.context is None else len(self.context))

    @property
    def fraction(self) -> float:
        """Their share of N."""
        return self.size / len(self.scores)


Budget = float | Literal["auto"]  # share of the tokens in (0, 1]; auto: as many as the policy holds to be worth it


@dataclass(frozen=True)
class Answer:
    """What the language stream said. confidence: calibrated probability that `text` is right, 0..1.

    notes: what it had to do without, in words (fewer tokens than asked for, say).
    """

    text: str
    reasoning: str
    confidence: float
    abstained: bool = False
    choice: int | None = None  # index into Question.choices
    timings_ms: dict[str, float] = field(default_factory=dict)  # prefill, decode
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Region:
    """One connected group of kept tokens. box_mm: axis-aligned in LPS; box_ijk: voxel index bounds, upper exclusive."""

    box_mm: Box
    box_ijk: tuple[tuple[int, int, int], tuple[int, int, int]]
    weight: float  # share of the evidence's weight, 0..1; all regions sum to 1
    sop_uid: str | None  # slice through its heaviest token, of a pair the image it lies in
    slice_index: int
    propensity: float | None = None  # that the policy draws a token of it first, out of all N; None: older episodes


@dataclass(frozen=True)
class Evidence:
    """What the answer rests on. necessity: log p(answer | kept) - log p(answer | the rest), nats (docs/method.md)."""

    regions: tuple[Region, ...]
    kept: int  # tokens that the regions were made of
    total: int  # N
    necessity: float | None
    grounded: bool | None  # necessity is at least serve.necessity_nats; None: not tested


@dataclass(frozen=True)
class Recheck:
    """A first answer that was negative or not grounded; the question was read again from more tokens.

    Episode.answer is the second reading's. kept: tokens it saw, the best of Selection.scores, hence the first ones too.
    changed: it says something else; then Episode.evidence is its evidence, otherwise that of the first reading.
    """

    reason: Doubt
    first: Answer
    first_necessity: float | None  # nats, as in Evidence
    kept: int
    changed: bool


@dataclass(frozen=True)
class Episode:
    """One question answered: the unit of record, replay and audit.

    selection: the policy's own choice at the budget that was asked for, also where the answer was re-checked.
    """

    id: str
    created: datetime  # UTC
    study: str  # the id it was asked under; for a file of a served folder its name, which may hold a patient's
    series_uid: str
    volume_sha256: str
    question: Question
    selection: Selection
    answer: Answer
    evidence: Evidence
    grid_shape: tuple[int, int, int]
    reader: str
    policy: str
    policy_sha256: str
    config_sha256: str
    timings_ms: dict[str, float]
    recheck: Recheck | None = None
    prior: str | None = None  # the id of the study it was compared with; slice 0 is then the prior, slice 1 the study
    slices: int | None = None  # how many were encoded, chosen by a first look at all; None: all of them
    modality: str = ""  # as ImageVolume's; empty: answers of before it was recorded
    frame_of_reference: str = ""  # UID, as ImageVolume's; empty: the image has none, or it was not recorded yet
    blinded: bool = False  # the answer is kept back until a reader has given their own (service/blinded.py)


@dataclass(frozen=True, eq=False)
class Mark:
    """A region a clinician pointed at: one of a box, a path or a mask.

    box_mm: LPS. path_mm: points of a stroke in LPS mm, one for a click; radius_mm: half the pen's width, 0 marks the
    tokens that the path runs through. mask: (D, H, W) bool with its own affine.
    frame_of_reference: UID of the frame that its millimetres are of, empty where it is not told; compared with the
    image's when the correction is made (service/corrections.py), and not recorded.
    """

    kind: MarkKind
    box_mm: Box | None = None
    mask: NDArray[np.bool_] | None = None
    mask_ijk_to_lps: NDArray[np.float64] | None = None
    path_mm: tuple[Point, ...] | None = None
    radius_mm: float = 0.0
    frame_of_reference: str = ""


@dataclass(frozen=True, eq=False)
class Feedback:
    """A correction. `key` makes it idempotent: the same key with the same content is the same correction.

    What becomes of it afterwards (submitted, withdrawn, undone) is kept beside it: it is never altered.
    cannot_tell: this image does not answer the question. blinded: given before the answer was seen, hence kept apart
    from verdicts on it, and from learning.
    """

    key: str
    episode: str
    reviewer: str  # pseudonym
    verdict: Verdict
    created: datetime  # UTC
    answer: str | None = None
    marks: tuple[Mark, ...] = ()
    comment: str = ""
    cannot_tell: bool = False
    difficulty: Difficulty | None = None
    blinded: bool = False


@dataclass(frozen=True)
class FeedbackChange:
    """One step in the life of a correction; each is a record of its own. state: what it led to."""

    key: str
    feedback: str
    change: Change | Literal["draft"]
    by: str  # pseudonym
    created: datetime  # UTC
    state: FeedbackState


@dataclass(frozen=True)
class Reward:
    """total in [-1, 1]; parts by name (None = not applicable); version of the reward function that gave it."""

    total: float
    parts: dict[str, float | None]
    version: str


@dataclass(frozen=True)
class Origin:
    """Where an imported policy comes from: what the bundle that brought it said, not checked by anyone here."""

    bundle_sha256: str  # of the bundle's manifest, which holds the hash of each of its files
    site: str | None  # pseudonym of the site that exported it
    parent: str | None  # its parent there
    state: PolicyState  # there, when it was exported
    imported: datetime  # UTC


@dataclass(frozen=True)
class PolicyVersion:
    """One token-selector policy on disk: safetensors plus this manifest."""

    id: str
    parent: str | None
    sha256: str
    reader: str
    created: datetime  # UTC
    state: PolicyState
    metrics: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()  # why the gate promoted or held it
    sign_off: str | None = None
    origin: Origin | None = None  # of a policy of another site; it has no parent here
    sentinel: str = ""  # version of the sentinel set that it was measured on (rl.sentinel)


@dataclass(frozen=True, eq=False)
class Case:
    """A question with its gold answer, simulated or from a data folder.

    finding: (D, H, W) bool in the volume's voxels, for SCORING evidence only: nothing that trains may read it,
        but the rivals that are labelled as taught by it (recipe.rival_stage).
    rationale: gold reasoning where the source has one. choices of an answer type come with the question.
    """

    id: str
    volume: ImageVolume
    question: Question
    answer: str
    group: str = ""  # patient or case: splits are disjoint by it
    label: str = ""  # finding kind, modality or question kind: a stratum to report by
    rationale: str = ""
    finding: NDArray[np.bool_] | None = None
