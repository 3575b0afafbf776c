"""Draw a scene: anatomy, findings blended into it, things that mislead, and questions with gold answers.

Hard-coded priors are listed in docs/simulation.md. The same (split, index, seed) gives the same scene, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparsight.sim.backgrounds import Backgrounds, synthetic
from sparsight.sim.common import Crowded, Scene, case_of, log_uniform, taken, until_placed, visible, volume_of
from sparsight.sim.config import SPLITS, SceneConfig, Split
from sparsight.sim.pairs import draw_pair, plan_pair
from sparsight.sim.place import QUADRANTS, THIRDS, Canvas, Finding, artefact
from sparsight.sim.questions import Asked, Asker
from sparsight.sim.shapes import COMPARABLE, EDGE_VARIES, MAY_BE_DARK, STRENGTH, area_range, draw, least_comparable

CHOSEN_BLIND = ("exists", "what", "count")
RARE = ("larger", "larger_side")  # asked wherever a scene allows them, which few do
COMPARED = 0.35  # share of scenes drawn large enough to compare findings


@dataclass(frozen=True)
class _Plan:
    """What a scene will show before anything has a place.

    focus: the kind that occurs 0 to 3 times with equal chance and may be counted; the others occur once at most.
    findings: (kind, area as a share of one slice, quadrant).
    """

    focus: str
    findings: tuple[tuple[str, float, str], ...]


@dataclass(frozen=True, eq=False)
class Simulator:
    """Scenes by (split, index, seed). Holds no state but the cache of backgrounds."""

    config: SceneConfig = field(default_factory=SceneConfig)
    backgrounds: Backgrounds = field(default_factory=lambda: Backgrounds(synthetic()))

    def scene(self, split: Split, index: int, seed: int = 0) -> Scene:
        """The scene of that name. Raises ConfigError if the split has no background of the configured kinds."""
        config, name = self.config, f"sim-{split}-{seed}-{index}"
        seeds = [SPLITS.index(split), seed, index]
        if config.pair:
            return until_placed(
                seeds,
                lambda rng: plan_pair(config, rng),
                lambda rng, plan: draw_pair(config, self.backgrounds, rng, split, name, plan),
            )
        return until_placed(seeds, self._plan, lambda rng, plan: self._draw(rng, split, name, plan))

    def _draw(self, rng: np.random.Generator, split: Split, name: str, plan: _Plan) -> Scene:
        config = self.config
        depth = int(rng.integers(config.depth[0], config.depth[1] + 1))
        background = self.backgrounds.pick(rng, split, (depth, config.size, config.size), config.backgrounds)
        canvas = Canvas(taken(rng, background.voxels, config.varied))
        findings = tuple(self._insert(rng, canvas, *wanted) for wanted in plan.findings)
        for _ in range(int(rng.integers(config.n_artefacts[0], config.n_artefacts[1] + 1))):
            self._mislead(rng, canvas)
        voxels = canvas.voxels
        voxels += np.float32(rng.uniform(*config.noise)) * rng.standard_normal(voxels.shape, np.float32)
        np.clip(voxels, 0, 255, out=voxels)
        volume = volume_of(voxels, background)
        asked = self._ask(Asker(config, findings, plan.focus, rng), rng)
        cases = tuple(case_of(f"{name}-{n}", volume, a, background.group) for n, a in enumerate(asked))
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
            area = log_uniform(rng, (max(least, low) if kind in COMPARABLE else least, most))
            drawn.append((str(kind), area, QUADRANTS[int(rng.integers(4))]))
        return _Plan(order[0], tuple(drawn))

    def _insert(self, rng: np.random.Generator, canvas: Canvas, kind: str, area: float, quadrant: str) -> Finding:
        config, shape = self.config, canvas.voxels.shape
        bright = not (kind in MAY_BE_DARK and rng.random() < config.dark)
        sharp = bool(rng.random() < 0.5) if kind in EDGE_VARIES else True
        third = THIRDS[int(rng.integers(3))] if shape[0] > 1 else ""
        span = int(rng.integers(config.span[0], min(config.span[1], shape[0] // 3) + 1)) if third else 1
        patch = draw(kind, rng, pixels=area * shape[1] * shape[2], span=span, sharp=sharp)
        change = 255 * log_uniform(rng, config.contrast) * STRENGTH.get(kind, 1.0) * (1 if bright else -1)
        size = patch.weight.shape
        place = canvas.locate(rng, (size[0], size[1], size[2]), quadrant, third, change)
        if place is None:
            raise Crowded
        at, spread = place
        canvas.add(patch, at, visible(change, spread))
        return Finding(kind, quadrant, third, area, bright, sharp, at, patch.mask, (shape[0], shape[1], shape[2]))

    def _mislead(self, rng: np.random.Generator, canvas: Canvas) -> None:
        shape = canvas.voxels.shape
        patch, strength = artefact(rng, shape[1], shape[0])
        change = 255 * strength * log_uniform(rng, self.config.contrast)
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
