"""What smol can do: the simulator's test scenes and VQA-RAD beside nano, and the card that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight.errors import finite
from sparsight.model import PolicySelector, load_nano, load_policy
from sparsight.model.hf.reader import HFReader
from sparsight.model.policy import TokenPolicy
from sparsight.model.protocols import Reader
from sparsight.model.smol.load import CARD
from sparsight.recipe import sources
from sparsight.rl.evaluate import evaluate, fits, selectors_by_name
from sparsight.rl.scoring import Posed, Said, by_choices, by_reading
from sparsight.rl.tables import by_kind, compare, summarise, value
from sparsight.types import Case, Question, Selection, TokenGrid

_SEED = 777  # of the test scenes, as in recipe.train
_BUDGET = 0.1
_STREAMS = ("ours", "random")  # every token, or more streams, would take longer than the training
_MADE = ("size", "images", "seconds", "probe_r2")

Log = Callable[[str, int, int], None]


class _Blind:
    """Keeps nothing: what the question alone is answered."""

    id = "no image"

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:  # noqa: ARG002 - the protocol's
        return Selection(np.zeros(0, np.int64), np.zeros(grid.n, np.float32), 0.0, "greedy", self.id)


def measure_smol(
    reader: HFReader, policy: TokenPolicy, data: Path | None, n: tuple[int, int], log: Log
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tables by set and reader. n: simulated images, and questions of VQA-RAD, the first ones in random order."""
    scenes = sources.scenes("test", 0, n[0], _SEED, data, log, asked=4)
    sets: dict[str, list[Case]] = {"simulated": [case for _, cases in scenes for case in cases]}
    if data is not None and (data / "vqa_rad").is_dir():
        rows = [case for case in sources.real_cases(data / "vqa_rad", "val") if fits(reader, case.question)]
        order = np.random.default_rng(_SEED).permutation(len(rows))[: n[1]]
        sets["vqa_rad"] = sorted((rows[i] for i in order), key=lambda case: case.volume.sha256)
    readers: tuple[tuple[str, Reader, TokenPolicy], ...] = (
        ("nano", load_nano("nano"), load_policy("nano")),
        ("smol", reader, policy),
    )
    for (who, one, own), (name, cases) in product(readers, sets.items()):
        yield f"{name}, {who}", _table(one, own, cases, partial(log, f"measure {who} on {name}"))


def _table(reader: Reader, policy: TokenPolicy, cases: list[Case], tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Questions with choices by one prefill without reasoning, the others as the product answers them."""
    streams = selectors_by_name(_STREAMS, reader, PolicySelector(policy, reader))
    streams["no image"] = lambda case, grid: _Blind()
    few = {name: make for name, make in streams.items() if name != "random"}
    closed = [case for case in cases if case.question.answers]
    opened = [case for case in cases if not case.question.answers]
    ask = by_prefix if isinstance(reader, HFReader) else by_choices
    results = evaluate(closed, reader, streams, [_BUDGET], ask=ask, on_case=lambda done: tell(done, len(cases)))
    results += evaluate(
        opened, reader, few, [_BUDGET], ask=by_reading, on_case=lambda done: tell(len(closed) + done, len(cases))
    )
    paired = [row for rival in (*_STREAMS[1:], "no image") for row in compare(results, "ours", rival)]
    table = {"n": len(cases), "rows": summarise(results), "kinds": by_kind(results), "paired": paired}
    found: dict[str, Any] = finite(table)
    return found


def by_prefix(reader: Reader, posed: Sequence[Posed]) -> list[Said]:
    """As scoring.by_choices, with one prefill for all choices of a question."""
    assert isinstance(reader, HFReader)
    language, said = reader.language, []
    for p in posed:
        keep = torch.from_numpy(np.asarray(p.selection.keep, np.int64))
        prompt = reader.prompt(p.grid, p.question, False).keep(keep, language.image)
        likely = language.likely_after(prompt, [[*language.ids(c), language.end] for c in p.question.answers])
        each = tuple(likely.double().softmax(0).tolist())
        best = int(np.argmax(each))
        said.append(Said(p.question.answers[best], each[best], each))
    return said


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write card.md and figures.json beside the weights."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sets = ", ".join(name for name in figures["images"] if name != "simulated") or "none"
    lines = [_HEAD.format(seed=figures["seed"], sets=sets), "## Figures", ""]
    measured = {name: part for name, part in figures.items() if isinstance(part, dict) and "rows" in part}
    if not measured:
        lines += ["Not measured.", ""]
    for name, part in measured.items():
        lines += [f"### {name}: {part['n']} questions, accuracy [95 % interval, bootstrap over images]", ""]
        lines += ["| tokens | questions | n | share | accuracy | words' F1 |", "|---|---|---|---|---|---|"]
        for row in part["kinds"]:
            share = "-" if row["selector"] == "no image" else f"{row['budget']:.0%}"
            f1 = "-" if row["word_f1"] is None else f"{row['word_f1']:.2f}"
            shown = value(row["accuracy"], row["accuracy_ci"])
            lines.append(f"| {row['selector']} | {row['kind']} | {row['n']} | {share} | {shown} | {f1} |")
        lines.append("")
    lines += ["## How it was made", ""]
    lines += [f"- {name}: {figures[name]}." for name in (*_MADE, "history") if name in figures]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


_HEAD = """# smol

EfficientNet-Lite0 (ImageNet) and SmolLM2-135M-Instruct (4-bit, as its wheel has it), both Apache-2.0 and as published;
ours are the neck and connector between them, LoRA of rank 8 on SmolLM2, and the token policy (seed {seed}). Research
use only; not a medical device.

- **Supervision.** Questions with answers: simulated ones with rationales, and train rows of these sets, each under
  terms of its own: {sets}. No mask or box.
- **Spatial priors.** "Upper left" and its like name that part of an image (neck, warm start of the policy); the
  connector begins by saying SmolLM2's words for the quadrant a token lies in; tokens carry sines and cosines of their
  place.
- **It cannot** see more than 256 x 256 pixels of a slice or more than six slices of a volume. It learned from single
  images only: volumes and pairs are read, but nothing taught it to compare slices. Its budget head is not trained: a
  budget of `auto` means nothing. Its confidence is not calibrated. Two small general models do not know radiology:
  what its answers on real images are worth stands in the table, beside those given without the image.
"""
