"""Which visual stream finds the evidence: accuracy, recall and pointing at equal budgets, in one run, on unseen cases.

Suites: sim_2d (simulated findings, test patients), sim_ood (picture kinds never trained on), and each real set that a
data folder holds (validation rows). Answers are read as the product reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.datasets import load_folder
from sparsight.model import PolicySelector
from sparsight.model.protocols import Reader
from sparsight.rl.evaluate import compare, evaluate, selectors_by_name, summarise
from sparsight.sim import SceneConfig, Simulator, Split
from sparsight.sim.real import standard
from sparsight.types import Case

STREAMS = ("all", "ours", "random", "grid", "saliency", "oracle")
REAL = ("bccd", "nih_cxr", "vqa_rad")  # all rows of ms_flair are training rows of nano
Step = Callable[[str, int, int], None]


def run(
    reader: Reader,
    ours: PolicySelector,
    *,
    n: int,
    budgets: Sequence[float],
    data: Path | None,
    seed: int,
    on_step: Step,
) -> dict[str, Any]:
    """{created, reader, policy, seed, rows [{suite, ...}], paired [{suite, ...}]}; n questions per suite at most."""
    rows: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    for suite, cases in suites(n, data, seed).items():
        names = [s for s in STREAMS if s != "oracle" or any(c.finding is not None for c in cases)]
        streams = selectors_by_name(names, reader, ours, seed=seed)
        done = _teller(on_step, suite, len(cases))
        results = evaluate(cases, reader, streams, budgets, on_case=done)
        rows += [{"suite": suite, **row} for row in summarise(results, seed=seed)]
        for rival in (s for s in names if s not in ("ours", "oracle")):
            paired += [{"suite": suite, **row} for row in compare(results, "ours", rival, seed=seed)]
    return {
        "created": datetime.now(UTC).isoformat(),
        "reader": reader.id,
        "policy": ours.id,
        "seed": seed,
        "rows": rows,
        "paired": paired,
    }


def suites(n: int, data: Path | None, seed: int) -> dict[str, list[Case]]:
    """Cases by suite; simulated ones come in scenes, real ones are drawn with the seed."""
    simulator = Simulator(SceneConfig(), standard(data))
    made = {"sim_2d": _simulated(simulator, "test", n, seed), "sim_ood": _simulated(simulator, "test_ood", n, seed)}
    for name in REAL:
        if data is not None and (data / name).is_dir():
            folder = load_folder(data / name, "val")
            chosen = np.sort(np.random.default_rng(seed).permutation(len(folder))[:n])
            made[name] = [folder[int(i)] for i in chosen]
    return made


def page(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = [
        f"Reader `{report['reader']}`, policy `{report['policy']}`, seed {report['seed']}, {report['created'][:10]}."
    ]
    for suite in dict.fromkeys(row["suite"] for row in report["rows"]):
        own = [row for row in report["rows"] if row["suite"] == suite]
        lines += ["", f"### {suite}, n = {own[0]['n']}", ""]
        lines += ["| stream | kept | accuracy [95 %] | evidence recall | pointing hit |", "|---|---|---|---|---|"]
        for row in own:
            low, high = row["accuracy_ci"]
            cells = [_number(row["evidence_recall"]), _number(row["pointing_hit"])]
            accuracy = f"{row['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
            lines.append(f"| {row['selector']} | {row['budget']:.0%} | {accuracy} | {cells[0]} | {cells[1]} |")
        lines += ["", "Paired difference in accuracy, ours minus:", ""]
        lines += [
            f"- {row['second']} at {row['budget']:.0%}: {row['difference']:+.3f} "
            f"[{row['difference_ci'][0]:+.3f}, {row['difference_ci'][1]:+.3f}]"
            for row in report["paired"]
            if row["suite"] == suite
        ]
    return "\n".join(lines) + "\n"


def _simulated(simulator: Simulator, split: Split, n: int, seed: int) -> list[Case]:
    cases: list[Case] = []
    index = 0
    while len(cases) < n:
        cases += simulator.scene(split, index, 1000 + seed).cases
        index += 1
    return cases[:n]


def _teller(on_step: Step, suite: str, total: int) -> Callable[[int], None]:
    return lambda done: on_step(suite, done, total)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
