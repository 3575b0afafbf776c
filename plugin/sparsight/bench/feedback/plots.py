"""The report's pictures: what corrections teach, what that costs, and which order teaches faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsight.bench.plots import drawing, save

Rows = list[dict[str, Any]]


def draw_plots(report: dict[str, Any], out: Path) -> dict[str, str]:
    """Write the PNG files; returns {file: what it shows}."""
    pictures: dict[str, str] = {}
    for shift in report["shifts"]:
        name = shift["name"]
        rows = [row for row in report["rows"] if row["shift"] == name and row["corrections"]]
        save(_learning(shift, rows), out / f"learning-{name}.png")
        pictures[f"learning-{name}.png"] = f"{name}: accuracy on what was new against the number of corrections"
        save(_keeping(shift, rows), out / f"keeping-{name}.png")
        pictures[f"keeping-{name}.png"] = f"{name}: change of the old accuracy against the number of corrections"
    save(_order(report), out / "order.png")
    pictures["order.png"] = "accuracy on what was new, by the order in which cases were corrected"
    return pictures


def _learning(shift: dict[str, Any], rows: Rows) -> Figure:
    figure, axes = drawing(shift["title"], "corrections", "accuracy on what is new")
    for name, style in (("before", ":"), ("oracle", "--"), ("all", "-.")):
        axes.axhline(shift[name]["mean"], color="0.5", ls=style, lw=1, label=name)
    _lines(axes, rows, "candidate", "new_accuracy", "learned")
    ours = [row for row in rows if row["learner"] == "ours"]
    _line(axes, ours, "live", "new_accuracy", "ours, after the gate", ls="--")
    axes.legend(fontsize=7, frameon=False)
    return figure


def _keeping(shift: dict[str, Any], rows: Rows) -> Figure:
    figure, axes = drawing(shift["title"], "corrections", "change of the old accuracy")
    axes.axhline(0, color="0.5", lw=1)
    axes.axhline(-0.01, color="0.5", ls=":", lw=1, label="one point")
    _lines(axes, rows, "candidate", "old_change", "learned")
    axes.legend(fontsize=7, frameon=False)
    return figure


def _order(report: dict[str, Any]) -> Figure:
    figure, axes = drawing("which case next", "corrections", "accuracy on what is new")
    for order in dict.fromkeys(row["order"] for row in report["order"]["rows"]):
        own = [row | {"learned": row} for row in report["order"]["rows"] if row["order"] == order]
        _line(axes, own, "learned", "new_accuracy", order)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _lines(axes: Axes, rows: Rows, who: str, what: str, said: str) -> None:
    for way in dict.fromkeys(row["learner"] for row in rows):
        _line(axes, [row for row in rows if row["learner"] == way], who, what, f"{way}, {said}")


def _line(axes: Axes, rows: Rows, who: str, what: str, label: str, ls: str = "-") -> None:
    """Means with their intervals; an end that is not there is drawn at the mean."""
    x = [row["corrections"] for row in rows]
    y = [row[who][what]["mean"] for row in rows]
    low, high = (
        [mean if row[who][what][end] is None else row[who][what][end] for row, mean in zip(rows, y, strict=True)]
        for end in ("low", "high")
    )
    error = [[m - a for m, a in zip(y, low, strict=True)], [b - m for m, b in zip(y, high, strict=True)]]
    axes.errorbar(x, y, yerr=error, marker="o", ms=3, lw=1.2, ls=ls, capsize=2, label=label)
