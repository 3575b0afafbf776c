"""What a correction says: its marks as tokens, its reward at once, and the example to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsight.errors import FeedbackError, GeometryError
from sparsight.imaging.grid import box_to_tokens, path_to_tokens, resample_mask, token_coverage
from sparsight.imaging.masks import check_frame
from sparsight.rl import rewards
from sparsight.rl.answers import choice_of, normalise
from sparsight.rl.rewards import Marks
from sparsight.types import Episode, Feedback, ImageVolume, Mark, Reward, TokenGrid

VERSION = f"feedback-3-{rewards.VERSION}"
MOST_POINTS = 2000  # of a stroke
MOST_MM = 100.0
_FAR_MM = 1e100  # what is computed from it still fits a number


def check(feedback: Feedback, episode: Episode) -> None:
    """Raise FeedbackError for a correction that says nothing or contradicts itself.

    And GeometryError for a mark in another frame of reference.
    """
    same = feedback.answer is not None and normalise(feedback.answer) == normalise(episode.answer.text)
    if feedback.answer is not None and same == (feedback.verdict == "reject") and feedback.verdict != "amend":
        raise FeedbackError(
            f"{feedback.verdict} with {'the same' if same else 'another'} answer",
            expected="accept for the answer that was given, amend for another",
            todo="leave the answer out, or amend",
        )
    if feedback.answer is not None and not 0 < len(feedback.answer.strip()) <= 2000:
        raise FeedbackError(
            f"a corrected answer of {len(feedback.answer)} characters",
            expected="1 to 2000",
            todo="leave it out, or write it in a few words",
        )
    choices = episode.question.answers
    if feedback.answer is not None and choices and choice_of(feedback.answer, choices) is None:
        raise FeedbackError(
            "a corrected answer that is none of the question's choices",
            expected=" or ".join(choices),
            todo="name one of them, say that the image cannot tell, or ask again with other choices or none",
        )
    if feedback.cannot_tell and (feedback.answer is not None or _accepts_an_answer(feedback, episode)):
        raise FeedbackError(
            "an answer to what cannot be told from this image", expected="one of the two", todo="leave one out"
        )
    if feedback.blinded and (feedback.verdict != "amend" or feedback.marks):
        raise FeedbackError(
            f"a verdict ({feedback.verdict}) or marks on an answer that was not seen",
            expected="amend, with the reader's own answer alone",
            todo="judge the answer in a second correction",
        )
    if feedback.verdict == "amend" and feedback.answer is None and not feedback.marks and not feedback.cannot_tell:
        raise FeedbackError(
            "an amendment that amends nothing", expected="an answer or a mark", todo="add one, or accept or reject"
        )
    for mark in feedback.marks:
        _check_mark(mark)
        check_frame(mark.frame_of_reference, episode.frame_of_reference)


def _accepts_an_answer(feedback: Feedback, episode: Episode) -> bool:
    return feedback.verdict == "accept" and not episode.answer.abstained


def _check_mark(mark: Mark) -> None:
    if sum(region is not None for region in (mark.box_mm, mark.mask, mark.path_mm)) != 1:
        raise FeedbackError("a mark without one region", expected="a box, a path or a mask", todo="draw one")
    if mark.box_mm is not None:
        low, high = np.array(mark.box_mm)
        if not (_near([low, high]) and (low <= high).all()):
            raise FeedbackError(
                f"a box from {mark.box_mm[0]} to {mark.box_mm[1]}",
                expected="finite millimetres, the least corner first",
                todo="swap its corners, or see `ask --json`",
            )
    if mark.path_mm is not None and not (
        1 <= len(mark.path_mm) <= MOST_POINTS and _near(mark.path_mm) and 0 <= mark.radius_mm <= MOST_MM
    ):
        raise FeedbackError(
            f"a path of {len(mark.path_mm)} points with a radius of {mark.radius_mm:g} mm",
            expected=f"1 to {MOST_POINTS} points of finite millimetres, a radius of 0 to {MOST_MM:g} mm",
            todo="draw it anew, or send a mask",
        )


def _near(points: Any) -> bool:
    return bool((np.abs(np.asarray(points, np.float64)) < _FAR_MM).all())  # not a number is not


def right_answer(feedback: Feedback, episode: Episode) -> str | None:
    """The answer that the reviewer holds for right; None where we were not told, or where there is none to be told.

    Of a question with choices it is the choice that they name ("No." is "no").
    """
    if feedback.answer is not None:
        return choice_of(feedback.answer, episode.question.answers) or feedback.answer
    accepted = feedback.verdict == "accept" and not episode.answer.abstained  # an abstention says nothing to accept
    return episode.answer.text if accepted else None


def wrong_answer(feedback: Feedback, episode: Episode) -> str | None:
    """The answer that the reviewer holds for wrong without saying more: of a bare rejection, unless it abstained.

    A rejection with marks may be of the evidence, so nothing is concluded from it about the answer.
    """
    bare = feedback.verdict == "reject" and feedback.answer is None and not feedback.marks and not feedback.cannot_tell
    return episode.answer.text if bare and not episode.answer.abstained else None


def marks_on(grid: TokenGrid, marks: Sequence[Mark]) -> Marks | None:
    """Marks as coverage of tokens. Raises GeometryError where one misses the image, FeedbackError where two clash."""
    if not marks:
        return None
    by_kind = {
        kind: _union(grid, [m for m in marks if m.kind == kind]) for kind in ("relevant", "irrelevant", "missed")
    }
    made = Marks(**by_kind)
    if made.wanted is not None and made.irrelevant is not None:
        shared = np.minimum(made.wanted, made.irrelevant).sum()
        if shared > 0.5 * min(made.wanted.sum(), made.irrelevant.sum()):
            raise FeedbackError(
                "the same region marked as relevant and as irrelevant", expected="one of them", todo="remove one mark"
            )
    return made


def reward_of(feedback: Feedback, episode: Episode, grid: TokenGrid | None) -> Reward:
    """What the correction says of the tokens that the policy chose: mean of the parts that apply, in [-1, 1].

    answer: of what was answered from them, the first reading where there was a re-check: 1 right, -1 wrong, None where
    only regions were amended or another answer was rejected. abstention: where the image cannot tell, 1 for having said
    so, else -1. grounding: wanted marks kept minus unwanted ones. grid: needed where there are marks.
    """
    first = episode.recheck.first if episode.recheck is not None else episode.answer
    grounded = _grounded(feedback, episode, grid)
    if feedback.cannot_tell:
        return _composed({"answer": None, "abstention": 1.0 if first.abstained else -1.0} | grounded)
    told = right_answer(feedback, episode)
    changed = episode.recheck is not None and episode.recheck.changed
    answer: float | None = -1.0 if feedback.verdict == "reject" and not changed else None
    if told is not None:
        answer = 1.0 if normalise(told) == normalise(first.text) else -1.0
    return _composed({"answer": answer, "abstention": None} | grounded)


def _grounded(feedback: Feedback, episode: Episode, grid: TokenGrid | None) -> dict[str, float | None]:
    marks = marks_on(grid, feedback.marks) if grid is not None else None
    return {"grounding": rewards.grounding(episode.selection.keep, marks)}


def _composed(parts: dict[str, float | None]) -> Reward:
    applicable = [value for value in parts.values() if value is not None]
    return Reward(sum(applicable) / len(applicable) if applicable else 0.0, parts, VERSION)


def _union(grid: TokenGrid, marks: Sequence[Mark]) -> NDArray[np.float32] | None:
    if not marks:
        return None
    return np.asarray(np.max([_coverage(grid, mark) for mark in marks], axis=0), np.float32)


def _coverage(grid: TokenGrid, mark: Mark) -> NDArray[np.float32]:
    if mark.box_mm is not None:
        coverage = box_to_tokens(grid, mark.box_mm)
        if not coverage.any():
            raise GeometryError(
                f"a {mark.kind} box outside the image", expected="LPS millimetres inside it", todo="check its frame"
            )
        return coverage
    if mark.path_mm is not None:
        coverage = path_to_tokens(grid, mark.path_mm, mark.radius_mm)
        if not coverage.any():
            raise GeometryError(
                f"a {mark.kind} path outside the image", expected="LPS millimetres inside it", todo="check its frame"
            )
        return coverage
    assert mark.mask is not None
    frame = _frame(grid)
    affine = mark.mask_ijk_to_lps
    if affine is None:  # a picture: it must lie on the image pixel by pixel; the frame may be padded by part of a token
        over = np.array(frame.shape) - mark.mask.shape
        if (over < 0).any() or (over > np.ceil(grid.patch[::-1])).any():
            raise GeometryError(
                f"a mask of {mark.mask.shape} pixels", expected="the size of the image", todo="draw it on the image"
            )
        affine = frame.ijk_to_lps.copy()
        affine[:3, 3] += over[0] * affine[:3, 2]  # of a pair, the current image: the last slice
    return token_coverage(grid, resample_mask(mark.mask, affine, frame))


def _frame(grid: TokenGrid) -> ImageVolume:
    """The voxel space that the grid covers, without voxels: marks can be placed long after the study is gone."""
    size = np.rint(np.array(grid.shape) * np.array(grid.patch)[::-1]).astype(int)  # (D, H, W), padding included
    empty = np.broadcast_to(np.float32(0), tuple(np.maximum(size, 1)))
    return ImageVolume(empty, grid.uvw_to_lps @ np.linalg.inv(grid.uvw_to_ijk), "OT", (0.0, 1.0))
