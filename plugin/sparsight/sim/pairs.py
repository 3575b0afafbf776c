"""Pairs of a prior and a current image: what changed between them, and questions that need both.

Slice 0 is the prior, slice 1 the current image. Both show the same anatomy, a little apart in place, greys and noise;
findings are new, gone, grown, shrunk or the same, each of a kind of its own, so that "the ring" is one.

Answers are balanced given the text of a question: a status is drawn alike for every kind, the current size of a finding
alike for every status, and where scenes allow one answer more often, it is asked for more rarely (`_EVEN`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsight.sim.backgrounds import Backgrounds
from sparsight.sim.common import Crowded, Scene, case_of, log_uniform, taken, visible, volume_of
from sparsight.sim.config import SceneConfig, Split
from sparsight.sim.place import QUADRANTS, Canvas, Change, Finding, Status, artefact
from sparsight.sim.questions import LARGER, Asked
from sparsight.sim.shapes import COMPARABLE, EDGE_VARIES, MAY_BE_DARK, STRENGTH, Patch, area_range, draw
from sparsight.sim.words import RATIONALES, TEMPLATES, fill
from sparsight.types import Question

T = TypeVar("T")
Floats = NDArray[np.float32]
_HOW_MANY = (0.5, 0.35, 0.15)  # how often 0, 1, 2 findings are new; the same of those that are gone
_GROWN, _SHRUNK = 0.4, 0.15  # share of the comparable findings of both images
_RATIO = (1.1 * LARGER, 3.0)  # of areas, where a finding has grown or shrunk
_SHIFT = 2  # pixels: how far the prior may be displaced
# Half of the scenes have nothing new (gone). Asked in half of those, "is there a new ring" is as often a yes as a no if
# three in four of the other scenes say yes: 1/2 * 3/4 = 1/2 * 1/4 + 1/2 * 1/2.
_ASKED_OF_NONE, _EVEN = 0.5, 0.75


@dataclass(frozen=True)
class Planned:
    """One finding before it has a place. Areas are shares of a slice, in the prior and in the current image."""

    status: Status
    kind: str
    quadrant: str
    prior_area: float
    area: float


def plan_pair(config: SceneConfig, rng: np.random.Generator) -> tuple[Planned, ...]:
    """What a pair will show: 0-2 new, 0-2 gone, at least one in both; kinds are drawn alike for all of these."""
    kinds = [str(k) for k in rng.permutation(config.kinds)]
    new, gone = (int(rng.choice(3, p=_HOW_MANY)) for _ in range(2))
    total = int(rng.integers(config.n_findings[0], config.n_findings[1] + 1))
    kept = min(max(total - new - gone, 1), len(kinds) - new - gone)
    planned: list[Planned] = []
    for n, kind in enumerate(kinds[: new + gone + kept]):
        quadrant = QUADRANTS[int(rng.integers(4))]
        if n < new + gone:
            area = log_uniform(rng, area_range(kind, config.area))
            planned.append(Planned("new" if n < new else "gone", kind, quadrant, area, area))
        else:
            planned.append(_kept(config, rng, kind, quadrant))
    return tuple(planned[n] for n in rng.permutation(len(planned)))


def _kept(config: SceneConfig, rng: np.random.Generator, kind: str, quadrant: str) -> Planned:
    """A finding of both images. Its area in the current one tells nothing of whether it has grown or shrunk."""
    least, most = area_range(kind, config.area)
    if not may_grow(kind, config):
        area = log_uniform(rng, (least, most))
        return Planned("same", kind, quadrant, area, area)
    ratio = float(rng.uniform(_RATIO[0], min(_RATIO[1], (most / least) ** 0.5)))
    area = log_uniform(rng, (least * ratio, most / ratio))
    fate = rng.random()
    if fate < _GROWN:
        return Planned("grown", kind, quadrant, area / ratio, area)
    if fate < _GROWN + _SHRUNK:
        return Planned("shrunk", kind, quadrant, area * ratio, area)
    return Planned("same", kind, quadrant, area, area)


def may_grow(kind: str, config: SceneConfig) -> bool:
    """Whether one may ask if a finding of this kind has grown: comparable, and of areas that leave room for it."""
    least, most = area_range(kind, config.area)
    return kind in COMPARABLE and (most / least) ** 0.5 > _RATIO[0]


def draw_pair(
    config: SceneConfig,
    backgrounds: Backgrounds,
    rng: np.random.Generator,
    split: Split,
    name: str,
    plan: Sequence[Planned],
) -> Scene:
    """Draw the pair of a plan. Raises Crowded if a finding finds no room."""
    background = backgrounds.pick(rng, split, (1, config.size, config.size), config.backgrounds)
    room = Canvas(taken(rng, background.voxels, config.varied))  # what lies in either image takes its place in both
    images = (room.voxels.copy(), room.voxels.copy())
    changes = [_insert(config, rng, room, images, planned) for planned in plan]
    for _ in range(int(rng.integers(config.n_artefacts[0], config.n_artefacts[1] + 1))):
        _mislead(config, rng, room, images)
    down, right = (int(rng.integers(-_SHIFT, _SHIFT + 1)) for _ in range(2))
    voxels = np.concatenate(
        [_acquired(config, rng, _displaced(images[0], down, right)), _acquired(config, rng, images[1])]
    )
    moved = tuple(_move_prior(change, down, right) for change in changes)
    volume = volume_of(voxels, background, pair=True)
    asked = ask_pair(config, moved, rng)
    cases = tuple(case_of(f"{name}-{n}", volume, a, background.group) for n, a in enumerate(asked))
    return Scene(volume, tuple(f for change in moved for f in change.seen), cases, moved)


def _insert(
    config: SceneConfig, rng: np.random.Generator, room: Canvas, images: tuple[Floats, Floats], planned: Planned
) -> Change:
    """Draw one finding into the images that show it: the same shape at the same place, of either size."""
    kind, pixels = planned.kind, config.size**2
    bright = not (kind in MAY_BE_DARK and rng.random() < config.dark)
    sharp = bool(rng.random() < 0.5) if kind in EDGE_VARIES else True
    seed = int(rng.integers(2**32))
    patches = tuple(
        draw(kind, np.random.default_rng(seed), pixels=area * pixels, span=1, sharp=sharp)
        for area in (planned.prior_area, planned.area)
    )
    change = 255 * log_uniform(rng, config.contrast) * STRENGTH.get(kind, 1.0) * (1 if bright else -1)
    height, width = (max(patch.weight.shape[axis] for patch in patches) for axis in (1, 2))
    place = room.locate(rng, (1, height, width), planned.quadrant, "", change)
    if place is None:
        raise Crowded
    (_, top, left), spread = place
    room.take((0, top, left), (1, height, width))
    change = visible(change, spread)
    found: list[Finding | None] = []
    for number, (patch, area) in enumerate(zip(patches, (planned.prior_area, planned.area), strict=True)):
        strength = change * rng.uniform(0.93, 1.07)
        if planned.status == ("new", "gone")[number]:
            found.append(None)
            continue
        h, w = patch.weight.shape[1:]
        j, i = top + (height - h) // 2, left + (width - w) // 2
        _paint(images[number], patch, (j, i), strength)
        shape = (2, config.size, config.size)
        found.append(Finding(kind, planned.quadrant, "", area, bright, sharp, (number, j, i), patch.mask, shape))
    return Change(planned.status, found[0], found[1])


def _mislead(config: SceneConfig, rng: np.random.Generator, room: Canvas, images: tuple[Floats, Floats]) -> None:
    """A thing that is no finding, in both images or in one: what is new need not be one."""
    patch, strength = artefact(rng, config.size, 1)
    change = 255 * strength * log_uniform(rng, config.contrast)
    size = (1, patch.weight.shape[1], patch.weight.shape[2])
    place = room.locate(rng, size, QUADRANTS[int(rng.integers(4))], "", change)
    shown = ((0, 1), (0, 1), (0,), (1,))[int(rng.integers(4))]
    if place is None:
        return
    room.take(place[0], size)
    for number in shown:
        _paint(images[number], patch, place[0][1:], change)


def _paint(image: Floats, patch: Patch, at: tuple[int, int], change: float) -> None:
    """Add `change` grey levels times the patch's weight to an image (1, H, W), in place."""
    _, h, w = patch.weight.shape
    image[:, at[0] : at[0] + h, at[1] : at[1] + w] += np.float32(change) * patch.weight


def _displaced(image: Floats, down: int, right: int) -> Floats:
    """The image (1, H, W) moved by whole pixels, _SHIFT at most; its margin is repeated."""
    padded = np.pad(image, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)), mode="edge")
    top, left = _SHIFT - down, _SHIFT - right
    return np.asarray(padded[:, top : top + image.shape[1], left : left + image.shape[2]], np.float32)


def _acquired(config: SceneConfig, rng: np.random.Generator, image: Floats) -> Floats:
    """The image (1, H, W) as one acquisition gives it: greys and noise of its own, 0..255."""
    grey = (np.clip(image, 0, 255) / 255) ** np.float32(np.exp(rng.uniform(-0.08, 0.08)))
    grey = 255 * np.float32(rng.uniform(0.93, 1.07)) * grey + np.float32(rng.uniform(-6, 6))
    grey += np.float32(rng.uniform(*config.noise)) * rng.standard_normal(grey.shape, np.float32)
    return np.asarray(np.clip(grey, 0, 255), np.float32)


def _move_prior(change: Change, down: int, right: int) -> Change:
    if change.prior is None:
        return change
    k, j, i = change.prior.origin
    return replace(change, prior=replace(change.prior, origin=(k, j + down, i + right)))


def ask_pair(config: SceneConfig, changes: Sequence[Change], rng: np.random.Generator) -> list[Asked]:
    """Up to `config.questions` questions, no text twice; fewer where the pair does not allow those that were drawn.

    Which kinds of question are asked is decided before looking at the pair, and nothing takes the place of one that it
    does not allow: pairs without change allow fewer kinds, and fillers would be asked of them more often.
    """
    asker = _PairAsker(config, changes, rng)
    order = [str(k) for k in rng.permutation(config.question_kinds)]
    first = {kind: int(rng.integers(len(TEMPLATES[kind]))) for kind in order}
    most = min(config.questions, sum(len(TEMPLATES[kind]) for kind in order))
    slots = [(order[n % len(order)], n // len(order)) for n in range(most)]
    asked = [asker.ask(kind, (first[kind] + turn) % len(TEMPLATES[kind])) for kind, turn in slots]
    return [made for made in asked if made is not None]


class _PairAsker:
    """Asks about one pair; a builder gives None where the pair, or the balance of answers, does not allow it."""

    def __init__(self, config: SceneConfig, changes: Sequence[Change], rng: np.random.Generator) -> None:
        self.config, self.rng, self.changes = config, rng, changes
        self.new = [c for c in changes if c.status == "new"]
        self.gone = [c for c in changes if c.status == "gone"]
        self.kept = [c for c in changes if c.status not in ("new", "gone")]

    def ask(self, kind: str, template: int) -> Asked | None:
        """One question of a kind of PAIR_QUESTION_KINDS, in the words of one of its templates."""
        build = {
            "any_new": self._any_new,
            "new": self._new,
            "what_new": self._what_new,
            "where_new": self._where_new,
            "grown": self._grown,
            "still": self._still,
        }[kind]
        return build(TEMPLATES[kind][template])

    def _pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def _any_new(self, template: str) -> Asked:
        if not self.new:
            return _yes_no("any_new", template, "no", 1)
        shown = self._pick(self.new)
        findings = tuple(f for change in self.new for f in change.seen)
        return replace(_yes_no("any_new", template, "yes", 0, shown), concerns=findings)

    def _new(self, template: str) -> Asked | None:
        if self.new and self.rng.random() < _EVEN:
            return _yes_no("new", template, "yes", 0, self._pick(self.new))
        if not self.new and self.rng.random() >= _ASKED_OF_NONE:
            return None
        # Any other kind alike, whatever became of it: each is a no as often as it is a yes.
        kind = self._pick([k for k in self.config.kinds if k not in {c.kind for c in self.new}])
        known = next((c for c in self.changes if c.kind == kind), None)
        if known is None:
            question = Question(fill(template, kind=kind), "yes_no", ("yes", "no"))
            return Asked("new", question, "no", fill(RATIONALES["new"][3], kind=kind), ())
        return _yes_no("new", template, "no", 2 if known.status == "gone" else 1, known)

    def _what_new(self, template: str) -> Asked | None:
        if len(self.new) != 1:
            return None
        (found,) = self.new
        return _choice("what_new", template, found.kind, self.config.kinds, found)

    def _where_new(self, template: str) -> Asked | None:
        if not self.new:
            return None
        found = self._pick(self.new)
        return _choice("where_new", template, found.quadrant, QUADRANTS, found)

    def _grown(self, template: str) -> Asked | None:
        able = [c for c in self.kept if may_grow(c.kind, self.config)]
        if not able:
            return None
        found = self._pick(able)
        if found.status == "grown":
            return _yes_no("grown", template, "yes", 0, found)
        # Fewer have grown than not: ask about the others more rarely, so that both answers are as likely.
        if self.rng.random() > _GROWN / (1 - _GROWN):
            return None
        return _yes_no("grown", template, "no", 1 if found.status == "shrunk" else 2, found)

    def _still(self, template: str) -> Asked | None:
        if self.gone and self.rng.random() < _EVEN:
            return _yes_no("still", template, "no", 1, self._pick(self.gone))
        if not self.gone and self.rng.random() >= _ASKED_OF_NONE:
            return None
        return _yes_no("still", template, "yes", 0, self._pick(self.kept))


def _yes_no(label: str, template: str, answer: str, rationale: int, found: Change | None = None) -> Asked:
    words = {"kind": found.kind, "quadrant": found.quadrant} if found else {}
    question = Question(fill(template, **words), "yes_no", ("yes", "no"))
    return Asked(label, question, answer, fill(RATIONALES[label][rationale], **words), found.seen if found else ())


def _choice(label: str, template: str, answer: str, choices: tuple[str, ...], found: Change) -> Asked:
    words = {"kind": found.kind, "quadrant": found.quadrant}
    question = Question(fill(template, **words), "choice", choices)
    return Asked(label, question, answer, fill(RATIONALES[label][0], **words), found.seen)
