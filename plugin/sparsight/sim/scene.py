"""Draw a scene: anatomy, findings blended into it, things that mislead, and questions with gold answers.

Hard-coded priors are listed in docs/simulation.md. The same (split, index, seed) gives the same scene, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsight.sim.backgrounds import Background, Backgrounds, synthetic
from sparsight.sim.config import SPLITS, SceneConfig, Split
from sparsight.sim.place import QUADRANTS, THIRDS, Canvas, Finding, artefact
from sparsight.sim.questions import Asked, Asker
from sparsight.sim.shapes import COMPARABLE, EDGE_VARIES, MAY_BE_DARK, STRENGTH, area_range, draw, least_comparable
from sparsight.types import Case, ImageVolume

Floats = NDArray[np.float32]
CHOSEN_BLIND = ("exists", "what", "count")
RARE = ("larger", "larger_side")  # asked wherever a scene allows them, which few do
COMPARED = 0.35  # share of scenes drawn large enough to compare findings
MOST_RAISED = 60.0  # grey levels: how far local texture may raise the contrast of a finding


@dataclass(frozen=True, eq=False)
class Scene:
    """One image with several questions. Every case shares `volume`; see Finding for the meaning of left and right."""

    volume: ImageVolume
    findings: tuple[Finding, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class _Plan:
    """What a scene will show before anything has a place.

    focus: the kind that occurs 0 to 3 times with equal chance and may be counted; the others occur once at most.
    findings: (kind, area as a share of one slice, quadrant).
    """

    focus: str
    findings: tuple[tuple[str, float, str], ...]


class _Crowded(Exception):  # noqa: N818 not an error: the scene is drawn anew
    """A finding found no room."""


@dataclass(frozen=True, eq=False)
class Simulator:
    """Scenes by (split, index, seed). Holds no state but the cache of backgrounds."""

    config: SceneConfig = field(default_factory=SceneConfig)
    backgrounds: Backgrounds = field(default_factory=lambda: Backgrounds(synthetic()))

    def scene(self, split: Split, index: int, seed: int = 0) -> Scene:
        """The scene of that name. Raises ConfigError if the split has no background of the configured kinds."""
        name = [SPLITS.index(split), seed, index]
        plan = self._plan(np.random.default_rng(name))
        attempt = 0
        while True:  # a crowded scene is placed anew with the same findings, so large ones are not dropped more often
            try:
                rng = np.random.default_rng([*name, attempt := attempt + 1])
                return self._draw(rng, split, f"sim-{split}-{seed}-{index}", plan)
            except _Crowded:
                if attempt % 20 == 0:  # it may be impossible
                    plan = self._plan(np.random.default_rng([*name, 0, attempt]))

    def _draw(self, rng: np.random.Generator, split: Split, name: str, plan: _Plan) -> Scene:
        config = self.config
        depth = int(rng.integers(config.depth[0], config.depth[1] + 1))
        background = self.backgrounds.pick(rng, split, (depth, config.size, config.size), config.backgrounds)
        canvas = Canvas(jitter(rng, background.voxels))
        findings = tuple(self._insert(rng, canvas, *wanted) for wanted in plan.findings)
        for _ in range(int(rng.integers(config.n_artefacts[0], config.n_artefacts[1] + 1))):
            self._mislead(rng, canvas)
        voxels = canvas.voxels
        voxels += np.float32(rng.uniform(*config.noise)) * rng.standard_normal(voxels.shape, np.float32)
        np.clip(voxels, 0, 255, out=voxels)
        volume = _volume(voxels, background)
        asked = self._ask(Asker(config, findings, plan.focus, rng), rng)
        cases = tuple(_case(f"{name}-{n}", volume, a, background.group) for n, a in enumerate(asked))
        return Scene(volume, findings, cases)

    def _plan(self, rng: np.random.Generator) -> _Plan:
        config = self.config
        order = [str(k) for k in rng.permutation(config.kinds)]
        total = int(rng.integers(config.n_findings[0], config.n_findings[1] + 1))
        repeats = int(rng.integers(0, 4))
        kinds = order[:1] * repeats + order[1 : 1 + max(total - repeats, 0)]
        # Only findings above the least area that all comparable kinds reach may be compared; see Asker.
        low = least_comparable(config.area) if rng.random() < COMPARED else 0
        drawn = []
        for kind in rng.permutation(kinds) if kinds else []:
            least, most = area_range(kind, config.area)
            area = _log_uniform(rng, (max(least, low) if kind in COMPARABLE else least, most))
            drawn.append((str(kind), area, QUADRANTS[int(rng.integers(4))]))
        return _Plan(order[0], tuple(drawn))

    def _insert(self, rng: np.random.Generator, canvas: Canvas, kind: str, area: float, quadrant: str) -> Finding:
        config, shape = self.config, canvas.voxels.shape
        bright = not (kind in MAY_BE_DARK and rng.random() < config.dark)
        sharp = bool(rng.random() < 0.5) if kind in EDGE_VARIES else True
        third = THIRDS[int(rng.integers(3))] if shape[0] > 1 else ""
        span = int(rng.integers(config.span[0], min(config.span[1], shape[0] // 3) + 1)) if third else 1
        patch = draw(kind, rng, pixels=area * shape[1] * shape[2], span=span, sharp=sharp)
        change = 255 * _log_uniform(rng, config.contrast) * STRENGTH.get(kind, 1.0) * (1 if bright else -1)
        size = patch.weight.shape
        place = canvas.locate(rng, (size[0], size[1], size[2]), quadrant, third, change)
        if place is None:
            raise _Crowded
        at, spread = place
        # Not fainter than the texture it lies on, else nobody could see it.
        change = float(np.copysign(max(abs(change), min(1.1 * spread, MOST_RAISED)), change))
        canvas.add(patch, at, change)
        return Finding(kind, quadrant, third, area, bright, sharp, at, patch.mask, (shape[0], shape[1], shape[2]))

    def _mislead(self, rng: np.random.Generator, canvas: Canvas) -> None:
        shape = canvas.voxels.shape
        patch, strength = artefact(rng, shape[1], shape[0])
        change = 255 * strength * _log_uniform(rng, self.config.contrast)
        size = patch.weight.shape
        place = canvas.locate(rng, (size[0], size[1], size[2]), QUADRANTS[int(rng.integers(4))], "", change)
        if place is not None:  # no room, no artefact: nothing is asked about it
            canvas.add(patch, place[0], change)

    def _ask(self, asker: Asker, rng: np.random.Generator) -> list[Asked]:
        """Up to `config.questions` questions, no text twice.

        Whether to ask the kinds of CHOSEN_BLIND is decided before looking at the scene: a scene of three masses allows
        few other questions, so were they fillers, three would be the likeliest count and its kinds likelier answers.
        The answers of all other kinds are as likely in any scene.
        """
        kinds, wanted = self.config.question_kinds, self.config.questions
        share = min(1.0, 1.5 * wanted / len(kinds))
        order = [str(k) for k in rng.permutation(kinds) if k in CHOSEN_BLIND and rng.random() < share]
        order += [k for k in RARE if k in kinds]
        others = [k for k in kinds if k not in CHOSEN_BLIND + RARE]
        order += [str(k) for _ in range(4) for k in rng.permutation(others)]
        asked: dict[str, Asked] = {}
        for kind in order:
            if len(asked) == wanted:
                break
            made = asker.ask(kind)
            if made is not None:
                asked.setdefault(made.question.text, made)
        questions = list(asked.values())
        return [questions[n] for n in rng.permutation(len(questions))]


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))


def jitter(rng: np.random.Generator, voxels: NDArray[np.uint8]) -> Floats:
    """Shift, scale and stretch a little along rows and columns, change gamma and contrast; never flip: sides matter.

    (D, H, W) uint8 to float32, 0..235: some room stays above for what is inserted. Linear, one axis after the other.
    """
    grey = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-0.3, 0.3))
    grey = grey * rng.uniform(0.75, 1.0) * 215 + rng.uniform(0, 20)
    image = np.asarray(grey, np.float32)[voxels]
    for axis in (1, 2):
        n = voxels.shape[axis]
        at = np.linspace(-1, 1, n)
        bend = rng.uniform(-0.04, 0.04) * np.sin(np.pi * at + rng.uniform(0, 2 * np.pi))
        at = rng.uniform(0.9, 1.06) * at + rng.uniform(-0.05, 0.05) + bend
        at = np.clip((at + 1) / 2 * (n - 1), 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        part = np.asarray(at - low, np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        image = image.take(low, axis) * (1 - part) + image.take(low + 1, axis) * part
    return np.asarray(image, np.float32)


def _volume(voxels: Floats, background: Background) -> ImageVolume:
    """Identity geometry: columns run to the patient's left, rows to posterior, slices to superior (LPS)."""
    return ImageVolume(voxels, np.eye(4), background.modality, (127.5, 255.0), has_mm=False)


def _case(name: str, volume: ImageVolume, asked: Asked, group: str) -> Case:
    mask = np.zeros(volume.shape, np.bool_) if asked.concerns else None
    for finding in asked.concerns:
        assert mask is not None
        mask[finding.slices] |= finding.local
    return Case(name, volume, asked.question, asked.answer, group, asked.kind, asked.rationale, mask)
