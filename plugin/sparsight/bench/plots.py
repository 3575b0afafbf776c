"""The report's pictures: retention, reliability, abstention, insertion and deletion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparsight.rl.tables import EVERY

_FIRST = ("ours", "oracle", "saliency", "random", "grid")  # the same colour in every picture
_DPI = 110


def draw_plots(report: dict[str, Any], out: Path) -> dict[str, str]:
    """Write the PNG files; returns {file: what it shows}."""
    pictures: dict[str, str] = {}
    for name in dict.fromkeys(row["suite"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["suite"] == name]
        file = f"retention-{name}.png"
        save(_retention(rows, name), out / file)
        pictures[file] = f"{name}: accuracy against the share of the tokens kept, with 95 % intervals"
    suite = report["suites"].get("sim_2d", {})
    confidence = suite.get("read", {}).get("confidence", {})
    if confidence.get("read", {}).get("n"):
        save(_reliability(confidence), out / "reliability.png")
        pictures["reliability.png"] = "sim_2d: how often an answer of a given confidence is right"
        save(_abstention(confidence), out / "abstention.png")
        pictures["abstention.png"] = "sim_2d: accuracy on the questions it is surest of"
    if suite.get("curves"):
        save(_changes(suite["curves"]), out / "insertion-deletion.png")
        pictures["insertion-deletion.png"] = "sim_2d: probability of the right answer as tokens come and go, best first"
    return pictures


def _retention(rows: list[dict[str, Any]], name: str) -> Figure:
    figure, axes = drawing(name, "share of the tokens kept", "accuracy")
    streams = list(dict.fromkeys(row["selector"] for row in rows))
    several = [s for s in streams if len([r for r in rows if r["selector"] == s]) > 1]
    for stream in several:
        own = sorted((row for row in rows if row["selector"] == stream), key=lambda row: row["budget"])
        x = [row["budget"] for row in own]
        colour, width = _style(stream, several)
        axes.plot(x, [row["accuracy"] for row in own], color=colour, lw=width, marker="o", ms=3, label=stream)
        low, high = _band(own)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    for stream, style in (("all", "-"), (EVERY, "-."), ("no image", ":"), ("majority", "--")):
        for row in (row for row in rows if row["selector"] == stream):
            thinned = stream == "all" and (row["fraction"] or 1) < 1
            label = f"all, thinned to {row['kept']:,.0f}" if thinned else stream
            axes.axhline(row["accuracy"], color="0.4", ls=style, lw=1, label=label)
    for row in (row for row in rows if row["selector"] == "auto"):
        colour, _ = _style("ours", several)
        axes.plot([row["fraction"]], [row["accuracy"]], color=colour, marker="*", ms=10, ls="", label="auto")
    axes.set_xscale("log")
    ticks = sorted({row["budget"] for row in rows if row["selector"] in several})
    axes.set_xticks(ticks, [f"{tick:.1%}" if tick < 0.01 else f"{tick:.0%}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7, ncols=2, frameon=False)
    return figure


def _reliability(confidence: dict[str, Any]) -> Figure:
    figure, axes = drawing("how sure, how right", "confidence", "accuracy")
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    for kind, label in (("read", "as the product answers"), ("scored", "one prefill, not calibrated")):
        own = confidence[kind]
        points = own["reliability"]
        size = [8 + 120 * p["n"] / max(own["n"], 1) for p in points]
        ece = "-" if own["ece"] is None else f"{own['ece']:.3f}"
        axes.scatter(
            [p["confidence"] for p in points],
            [p["accuracy"] for p in points],
            s=size,
            alpha=0.8,
            label=f"{label}: ECE {ece}, n = {own['n']}",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _abstention(confidence: dict[str, Any]) -> Figure:
    figure, axes = drawing("what abstaining gains", "share of the questions answered, surest first", "accuracy")
    for kind, label in (("read", "as the product answers"), ("scored", "one prefill")):
        points = confidence[kind]["abstention"]
        x = [p["coverage"] for p in points]
        (line,) = axes.plot(x, [p["accuracy"] for p in points], marker="o", ms=3, label=label)
        axes.fill_between(x, *_band(points), color=line.get_color(), alpha=0.15, lw=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _changes(curves: list[dict[str, Any]]) -> Figure:
    figure, axes = drawing("tokens come, tokens go", "share of the tokens changed, best first", "p(right answer)")
    streams = list(dict.fromkeys(c["selector"] for c in curves))
    for c in curves:
        colour, _ = _style(c["selector"], streams)
        style = "-" if c["curve"] == "insertion" else "--"
        x, y = ([p[key] for p in c["points"]] for key in ("share", "p_right"))
        axes.plot(x, y, color=colour, ls=style, marker="o", ms=3, label=f"{c['curve']}: {c['selector']}")
    axes.set_xscale("symlog", linthresh=0.02)
    ticks = [p["share"] for p in curves[0]["points"]]
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7, ncols=2, frameon=False)
    return figure


def drawing(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty plot with its title and the names of its axes."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.2)
    return figure, axes


def _style(stream: str, streams: list[str]) -> tuple[Any, float]:
    """A colour that belongs to the stream, and a thick line for ours."""
    order = [*_FIRST, *(s for s in sorted(streams) if s not in _FIRST)]
    return colormaps["tab20"](order.index(stream) % 20), 2.2 if stream == "ours" else 1.2


def _band(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Lower and upper ends; where there is no interval (one group only), nothing is shaded."""
    ends = [row["accuracy_ci"] for row in rows]
    low, high = ([np.nan if e[i] is None or not np.isfinite(e[i]) else e[i] for e in ends] for i in (0, 1))
    return low, high


def save(figure: Figure, path: Path) -> None:
    """Write it as PNG."""
    figure.savefig(path, format="png", dpi=_DPI)
