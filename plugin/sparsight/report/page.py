"""The page: one HTML file with its pictures inside, and the cards beside it. It loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparsight.imaging.whole import whole
from sparsight.report.cards import write_cards
from sparsight.report.cases import changed_cases
from sparsight.report.gather import gather
from sparsight.service import Service


def write_report(service: Service, out: Path, *, cases: int = 8) -> dict[str, Any]:
    """Write OUT/index.html, report.json and cards/POLICY/{model,data}.md; what report.json holds.

    cases: the most corrected answers shown as they were and as they are now. Raises OSError.
    """
    report = gather(service)
    changed = changed_cases(service, cases)
    report["cases"] = [{k: v for k, v in case.items() if not k.endswith("_png")} for case in changed.cases]
    report["changed"] = changed.counts()
    out.mkdir(parents=True, exist_ok=True)
    write_cards(service, out / "cards")
    shown = [
        case | {f"{name}_src": _src(case[f"{name}_png"]) for name in ("before", "after")} for case in changed.cases
    ]
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(report=report, cases=shown, curve=_src(_curve(report["curve"])) if report["curve"] else None)
    )
    _write(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False))
    _write(out / "index.html", page)
    return report


def _environment() -> Environment:
    environment = Environment(loader=PackageLoader("sparsight.report", "."), autoescape=True, trim_blocks=True)
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.{digits}f}"


def _src(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()


def _write(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _curve(points: list[dict[str, Any]]) -> bytes:
    """Accuracy on the sentinel set and reward on held-out corrections, against corrections."""
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("sentinel", "sentinel accuracy"), ("held_out", "reward, held-out corrections")),
        strict=True,
    ):
        for point in points:
            before, after = point[f"{name}_live"], point[f"{name}_candidate"]
            if before is None or after is None:
                continue
            colour = "#1b7f5c" if point["in_line"] else "#b0452f"
            axes.plot([point["corrections"]] * 2, [before, after], color=colour, lw=1, alpha=0.6)
            axes.plot(point["corrections"], before, marker="o", mfc="white", color=colour, ms=5)
            axes.plot(point["corrections"], after, marker="o", color=colour, ms=6)
            axes.annotate(
                point["policy"][:5], (point["corrections"], after), (4, 3), textcoords="offset points", size=7
            )
        line = [p for p in points if p["in_line"] and p[f"{name}_candidate"] is not None]
        axes.plot([p["corrections"] for p in line], [p[f"{name}_candidate"] for p in line], color="#1b7f5c", lw=1.5)
        axes.set_xlabel("corrections trained on, the line's together")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
