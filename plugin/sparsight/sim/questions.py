"""Questions on a scene: text, gold answer, a short rationale, and the findings that it concerns.

Answers are balanced: given the text of a question alone, every answer it can have is as likely as any other (kinds,
quadrants and sizes are drawn alike for all; where a scene would favour one answer, the question is asked with the
probability that evens it out). A rationale says no more than the answer's own level: kind, place, comparative words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sparsight.sim.config import SceneConfig
from sparsight.sim.place import QUADRANTS, THIRDS, Finding
from sparsight.sim.shapes import COMPARABLE, EDGE_VARIES, MAY_BE_DARK, least_comparable
from sparsight.sim.words import COUNTS, NUMBERS, RATIONALES, REGIONS, TEMPLATES, article, fill, plural
from sparsight.types import Question, QuestionKind

T = TypeVar("T")
LARGER = 1.5  # the least ratio of areas at which one may ask which is larger
HALVES = ("left", "right", "upper", "lower")


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with its answer; `concerns`: the findings that the answer rests on, none for a no."""

    kind: str
    question: Question
    answer: str
    rationale: str
    concerns: tuple[Finding, ...]


def within(finding: Finding, region: str) -> bool:
    """Whether a finding lies in a region of words.REGIONS (the empty region is everywhere)."""
    return region in ("", finding.quadrant, finding.third) or region in finding.quadrant.split()


def larger(a: Finding, b: Finding) -> bool:
    """Whether `a` is clearly larger than `b`, in its largest slice and, in a volume, in voxels too."""
    return a.area >= LARGER * b.area and (not a.third or int(a.local.sum()) >= LARGER * int(b.local.sum()))


class Asker:
    """Asks questions about one scene's findings; a builder gives None where the scene does not allow its kind."""

    def __init__(
        self, config: SceneConfig, findings: tuple[Finding, ...], focus: str, rng: np.random.Generator
    ) -> None:
        """focus: the kind that was drawn 0 to 3 times with equal chance, the one that may be counted."""
        self.config, self.findings, self.focus, self.rng = config, findings, focus, rng
        self.counts = Counter(f.kind for f in findings)
        self.single = [f for f in findings if self.counts[f.kind] == 1]

    def ask(self, kind: str) -> Asked | None:
        """One question of a kind of config.QUESTION_KINDS."""
        return {
            "exists": self._exists,
            "what": self._what,
            "where": self._where,
            "side": self._side,
            "count": self._count,
            "larger": self._larger,
            "larger_side": self._larger_side,
            "more": self._more,
            "brightness": self._brightness,
            "edge": self._edge,
            "level": self._level,
        }[kind]()

    def _pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def _asked(
        self,
        kind: str,
        answer: str,
        concerns: Sequence[Finding],
        words: dict[str, str],
        *,
        choices: tuple[str, ...] = (),
        rationale: int = 0,
    ) -> Asked:
        form: QuestionKind = "choice" if choices else "yes_no"
        question = Question(fill(self._pick(TEMPLATES[kind]), **words), form, choices or ("yes", "no"))
        return Asked(kind, question, answer, fill(RATIONALES[kind][rationale], **words), tuple(concerns))

    def _exists(self) -> Asked | None:
        region_kinds = [("",), QUADRANTS, HALVES] + ([THIRDS] if self.findings and self.findings[0].third else [])
        regions = self._pick(region_kinds)
        is_yes = self.rng.random() < 0.5
        if is_yes:
            regions = tuple(r for r in regions if any(within(f, r) for f in self.findings))
            if not regions:
                return None
        region = self._pick(regions)
        there = [f for f in self.findings if within(f, region)]
        if is_yes:
            kind = self._pick(sorted({f.kind for f in there}))
            concerns = [f for f in there if f.kind == kind]
            words = {"a": article(kind), "kind": kind, "region": REGIONS[region], "quadrant": concerns[0].quadrant}
            return self._asked("exists", "yes", concerns, words)
        # A no is worth asking where the kind is present elsewhere: only then does the place matter.
        elsewhere = sorted({f.kind for f in self.findings} - {f.kind for f in there})
        absent = [k for k in self.config.kinds if k not in self.counts]
        pool = elsewhere if elsewhere and (not absent or self.rng.random() < 0.6) else absent
        if not pool:
            return None
        kind = self._pick(pool)
        words = {"a": article(kind), "kind": kind, "region": REGIONS[region], "quadrant": ""}
        return self._asked("exists", "no", (), words, rationale=1)

    def _what(self) -> Asked | None:
        alone = [q for q in QUADRANTS if sum(f.quadrant == q for f in self.findings) == 1]
        if not alone:
            return None
        quadrant = self._pick(alone)
        found = next(f for f in self.findings if f.quadrant == quadrant)
        words = {"region": REGIONS[quadrant], "a": article(found.kind)}
        return self._asked("what", found.kind, (found,), words, choices=self.config.kinds)

    def _where(self) -> Asked | None:
        if not self.single:
            return None
        f = self._pick(self.single)
        return self._asked("where", f.quadrant, (f,), self._named(f), choices=QUADRANTS)

    def _side(self) -> Asked | None:
        if not self.single:
            return None
        f = self._pick(self.single)
        return self._asked("side", f.side, (f,), self._named(f), choices=("left", "right"))

    def _level(self) -> Asked | None:
        if not self.single or not self.single[0].third:
            return None
        f = self._pick(self.single)
        return self._asked("level", f.third, (f,), self._named(f), choices=THIRDS)

    def _count(self) -> Asked | None:
        concerns = [f for f in self.findings if f.kind == self.focus]
        n = len(concerns)
        if n > 3:
            return None
        words = {"kinds": self.focus if n == 1 else plural(self.focus), "number": NUMBERS[n]}
        asked_of = {**words, "places": ", ".join(sorted((f.quadrant for f in concerns), key=QUADRANTS.index))}
        made = self._asked("count", COUNTS[n], concerns, asked_of, choices=COUNTS, rationale=int(n > 0))
        text = fill(self._pick(TEMPLATES["count"]), kinds=plural(self.focus))
        return Asked(made.kind, Question(text, "choice", COUNTS), made.answer, made.rationale, made.concerns)

    def _larger(self) -> Asked | None:
        fair = least_comparable(self.config.area)
        able = [f for f in self.single if f.kind in COMPARABLE and f.area >= fair]
        pairs = [(a, b) for a in able for b in able if larger(a, b)]
        if not pairs:
            return None
        big, small = self._pick(pairs)
        first, second = (big, small) if self.rng.random() < 0.5 else (small, big)
        text = fill(self._pick(TEMPLATES["larger"]), kind=first.kind, other=second.kind)
        rationale = fill(
            RATIONALES["larger"][0], kind=big.kind, quadrant=big.quadrant, other=small.kind, place=small.quadrant
        )
        question = Question(text, "choice", (first.kind, second.kind))
        return Asked("larger", question, big.kind, rationale, (big, small))

    def _larger_side(self) -> Asked | None:
        for kind in sorted(k for k in COMPARABLE if self.counts[k] == 2):
            a, b = sorted((f for f in self.findings if f.kind == kind), key=lambda f: f.area)
            if a.side != b.side and larger(b, a):
                answer = "yes" if b.side == "left" else "no"
                return self._asked("larger_side", answer, (a, b), {"kind": kind, "side": b.side})
        return None

    def _more(self) -> Asked | None:
        left = sum(f.side == "left" for f in self.findings)
        right = len(self.findings) - left
        if left == right:
            return None
        words = {"left": str(left), "right": str(right)}
        answer = "left" if left > right else "right"
        return self._asked("more", answer, self.findings, words, choices=("left", "right"))

    def _brightness(self) -> Asked | None:
        able = [f for f in self.single if f.kind in MAY_BE_DARK]
        if not able or self.config.dark == 0:
            return None
        f = self._pick(able)
        # Bright ones are more frequent: ask about them more rarely, so that both answers are as likely.
        if f.bright and self.rng.random() > self.config.dark / (1 - self.config.dark):
            return None
        word = "brighter" if f.bright else "darker"
        answer = "bright" if f.bright else "dark"
        return self._asked("brightness", answer, (f,), self._named(f) | {"word": word}, choices=("bright", "dark"))

    def _edge(self) -> Asked | None:
        able = [f for f in self.single if f.kind in EDGE_VARIES]
        if not able:
            return None
        f = self._pick(able)
        answer = "sharp" if f.sharp else "smooth"
        return self._asked("edge", answer, (f,), self._named(f) | {"word": answer}, choices=("sharp", "smooth"))

    @staticmethod
    def _named(f: Finding) -> dict[str, str]:
        return {"kind": f.kind, "a": article(f.kind), "quadrant": f.quadrant, "side": f.side, "third": f.third}
