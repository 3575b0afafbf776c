"""Example overlays: simulated findings in synthetic anatomy, so that no patient's image gets into documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsight.evidence import describe, token_weights
from sparsight.imaging.export import overlay_png
from sparsight.model import Reader, Selector
from sparsight.model.attention import attended
from sparsight.model.selectors import tokens_at
from sparsight.rl.answers import normalise
from sparsight.rl.evaluate import finding_share
from sparsight.sim import SceneConfig, Simulator
from sparsight.types import Case

ANATOMY = ("synthetic_chest", "synthetic_brain", "synthetic_tissue")
_EACH = 3  # right and wrong
_SCENES = 30  # looked through at most
_SEED = 5000  # scenes that are in no suite


def draw_examples(reader: Reader, ours: Selector, out: Path, *, seed: int, budget: float) -> list[dict[str, Any]]:
    """Write example-*.png: the first three answers that are right and the first three that are wrong, as they come.

    Of scenes of the test split, one question each. Returns {file, right, question, answer, said, recall} of each.
    """
    simulator = Simulator(SceneConfig(backgrounds=ANATOMY))
    made: list[dict[str, Any]] = []
    for index in range(_SCENES):
        case = simulator.scene("test", index, _SEED + seed).cases[0]
        if case.finding is None or len(made) == 2 * _EACH:
            continue
        grid = reader.encode(case.volume)
        selection = ours.select(grid, case.question, tokens_at(budget, grid, reader))
        answer = reader.read(case.question, grid, selection)
        right = normalise(answer.text) == normalise(case.answer)
        same = [example for example in made if example["right"] == right]
        if len(same) == _EACH:
            continue
        file = f"example-{'right' if right else 'wrong'}-{len(same) + 1}.png"
        selection = attended(reader, case.question, grid, selection, answer.reasoning)
        evidence = describe(case.volume, grid, selection, necessity=None, threshold=0.0)
        overlay_png(
            case.volume, grid, token_weights(selection), evidence.regions, out / file, title=_title(case, answer.text)
        )
        share = finding_share(case, grid)
        recall = None if share is None else float(share[selection.keep].sum())
        made.append(
            {
                "file": file,
                "right": right,
                "question": case.question.text,
                "answer": case.answer,
                "said": answer.text,
                "recall": recall,
            }
        )
    return sorted(made, key=lambda example: example["file"])


def _title(case: Case, said: str) -> str:
    return f"{case.question.text} Said: {said}. Right: {case.answer}."
