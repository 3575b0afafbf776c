"""Learning curves of the recipe's stages as one picture, from the lines of train.log: so they survive a resume."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = dict[int, float]  # by step: a mean over the last 25 steps
CURVES = "learning-curves.png"
REWARDED = ("scout", "policy")  # stages whose log has minus the reward as its loss
_LINE = re.compile(r"\S+ \S+ (.+?) (\d+)/\d+ loss (-?\d+\.\d+)$")
_COLUMNS = 3


def read_curves(log: Path) -> dict[str, Curve]:
    """Loss, or reward, by stage and step. Of a step that was done again after a resume, the last one."""
    curves: dict[str, Curve] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        if found := _LINE.match(line):
            stage, step, loss = found[1], int(found[2]), float(found[3])
            curves.setdefault(stage, {})[step] = -loss if stage in REWARDED else loss
    return curves


def draw_curves(log: Path, out: Path) -> dict[str, Curve]:
    """Draw each stage's curve into one PNG; nothing is written where the log has none. Returns what was drawn."""
    curves = read_curves(log)
    if not curves:
        return {}
    rows = -(-len(curves) // _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(rows, _COLUMNS)).ravel()
    for axes, (stage, curve) in zip(panels, curves.items(), strict=False):
        steps = sorted(curve)
        axes.plot(steps, [curve[step] for step in steps], marker="o" if len(steps) < 8 else "", ms=3, lw=1.2)
        axes.set_title(stage, fontsize=9)
        axes.set_ylabel("reward" if stage in REWARDED else "loss", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.savefig(out, format="png", dpi=110)
    return curves
