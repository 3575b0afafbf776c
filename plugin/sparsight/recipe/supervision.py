"""What an answer says about an image, and no more: the supervision of the encoder.

A question is read by its words: which findings it names, and which part of the image. Two spatial priors are hard-coded
here and nowhere else: "upper left", "left half" or "middle third" name that part of the image or of the slices, and a
finding asked about without a place may be anywhere. No mask, box or label other than the answer is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsight.types import Question

Form = Literal["present", "which_finding", "which_region", "edge", "brightness", "larger", "larger_side"]
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
SIDES = ("left", "right")
THIRDS = ("inferior third", "middle third", "superior third")
REGIONS = ("", *QUADRANTS, "left half", "right half", "upper half", "lower half", *THIRDS)
_PLURALS = {"opacity": "opacities", "mass": "masses"}
_PAIRS: dict[tuple[str, str], Form] = {("smooth", "sharp"): "edge", ("dark", "bright"): "brightness"}


@dataclass(frozen=True)
class Weak:
    """One constraint on token logits. findings: indices of named ones; options: regions to choose among; target: which.

    present: target 0 or 1. which_finding: target is a finding. which_region: target is an option. edge, brightness:
    target 1 for sharp and bright. larger: target 0 or 1 of the two findings. larger_side: target 0 left, 1 right.
    """

    form: Form
    findings: tuple[int, ...]
    target: int
    region: int = 0  # index into REGIONS
    options: tuple[int, ...] = ()


def read_answer(question: Question, answer: str, findings: Sequence[str]) -> Weak | None:
    """What (question, answer) says about where findings are; None where it says nothing that tokens can be held to."""
    text, answer = question.text.lower(), answer.strip().lower()
    if text in findings:  # a question asked of many images in the same words is a finding of its own
        return _present((findings.index(text),), answer, 0)
    named, region = _named(text, findings), _region(text)
    if "larger" in text:
        return _larger(named, answer, findings)
    if not named:
        return Weak("which_finding", (), findings.index(answer), region) if answer in findings else None
    return _of_one(named, answer, region) if len(named) == 1 else None


def _of_one(named: tuple[int, ...], answer: str, region: int) -> Weak | None:
    """What an answer says about the one finding that the question names."""
    for group, suffix in ((QUADRANTS, ""), (SIDES, " half"), (THIRDS, "")):
        if answer in group:
            options = tuple(REGIONS.index(name + suffix) for name in group)
            return Weak("which_region", named, group.index(answer), options=options)
    for words, form in _PAIRS.items():
        if answer in words:
            return Weak(form, named, words.index(answer))
    return _present(named, answer, region)


def region_masks(shape: tuple[int, int, int]) -> Tensor:
    """Which tokens belong to each of REGIONS: (len(REGIONS), N) bool; a token belongs where its centre is."""
    gd, gh, gw = shape
    slices, rows, columns = ((torch.arange(n) + 0.5) / n for n in (gd, gh, gw))
    upper, left = rows < 0.5, columns < 0.5
    part = (slices * 3).long()
    every = [torch.ones(n, dtype=torch.bool) for n in (gd, gh, gw)]
    axes = [every]
    axes += [[every[0], upper if v == "upper" else ~upper, left if h == "left" else ~left] for v, h in _split()]
    axes += [[every[0], every[1], left], [every[0], every[1], ~left], [every[0], upper, every[2]]]
    axes += [[every[0], ~upper, every[2]], *([part == t, every[1], every[2]] for t in range(3))]
    return torch.stack([(d[:, None, None] & h[None, :, None] & w[None, None, :]).flatten() for d, h, w in axes])


def _split() -> list[tuple[str, str]]:
    return [(q.split()[0], q.split()[1]) for q in QUADRANTS]


def _present(named: tuple[int, ...], answer: str, region: int) -> Weak | None:
    if answer in ("yes", "no"):
        return Weak("present", named, int(answer == "yes"), region)
    if answer.isdigit():
        return Weak("present", named, int(int(answer) > 0), region)
    return None


def _larger(named: tuple[int, ...], answer: str, findings: Sequence[str]) -> Weak | None:
    if len(named) == 2 and answer in findings and findings.index(answer) in named:
        return Weak("larger", named, named.index(findings.index(answer)))
    if len(named) == 1 and answer in ("yes", "no"):  # "is the left one larger than the right one?"
        return Weak("larger_side", named, int(answer == "no"))
    return None


def _named(text: str, findings: Sequence[str]) -> tuple[int, ...]:
    """Findings that a text names, in the order of the text."""
    at = {}
    for index, name in enumerate(findings):
        pattern = rf"\b(?:{re.escape(name)}|{re.escape(_PLURALS.get(name, name + 's'))})\b"
        if found := re.search(pattern, text):
            at[found.start()] = index
    return tuple(at[start] for start in sorted(at))


def _region(text: str) -> int:
    return next((index for index, name in enumerate(REGIONS) if name and name in text), 0)
