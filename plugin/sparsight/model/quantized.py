"""What quantization costs a model's answers, as `sparsight bench quantization` measured it: for pages and cards.

The figures are a file that the reader's own file names (`quantization_figures`); they are of the readers whose sha256
they hold, one for each quantization.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sparsight.config import ModelConfig
from sparsight.errors import ConfigError

_MOST_BYTES = 2**20
_HEAD = "quantization", "tokens kept", "KL, nats", "same first token", "accuracy", "to the published model's"


def told(config: ModelConfig, sha256: str, *, smaller: bool = False) -> list[str]:
    """Lines of a card about the reader of this sha256; where nothing was measured of it they say so.

    smaller: it was loaded in fewer bits than its file says.

    Raises ConfigError for a file of figures that is missing or is none.
    """
    if config.quantization == "none" and config.quantization_figures is None and not smaller:
        return ["The language stream is not quantized, as its file says."]
    report = _read(config)
    rung = next((name for name, own in report["sha256"].items() if own == sha256), None) if report else None
    if report is None or rung is None:
        of = "" if report is None else " (the figures that its file names are of another reader)"
        return [
            f"What quantization costs its answers was **not measured**{of}:",
            "`sparsight bench quantization` measures it, `quantization_figures` of the reader's file says where.",
        ]
    return [
        f"What quantization ({rung}) costs its answers, against the model as published:",
        "",
        how(report),
        "",
        *table([row for row in report["rows"] if row["quantization"] == rung]),
    ]


def how(report: dict[str, Any]) -> str:
    """On what it was measured."""
    of = f" ({report['of']})" if "of" in report else ""  # older figures do not say
    return (
        f"`sparsight bench quantization`, {report['made'][:10]}, {report['n']} questions{of} of "
        f"{report['groups']} groups, seed {report['seed']}. Intervals: 95 % bootstrap over groups; ratios are paired."
    )


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of a report as lines of Markdown."""
    lines = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    for row in rows:
        cells = [_words(row[name]) for name in ("kl", "agreement", "accuracy", "ratio")]
        lines.append(f"| {row['quantization']} | {row['share']:.0%} | {' | '.join(cells)} |")
    return lines


def _read(config: ModelConfig) -> dict[str, Any] | None:
    path = config.quantization_figures
    if path is None:
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        how(report), table(report["rows"]), report["sha256"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            "quantization_figures that cannot be read",
            expected="the JSON file that `sparsight bench quantization --out` wrote",
            todo="correct its path in the reader's file, or leave the setting out",
        ) from error
    return report


def _words(interval: dict[str, Any]) -> str:
    """A mean with its interval; a dash where there is none (NaN; null in a file)."""
    mean, low, high = (interval[name] for name in ("mean", "low", "high"))
    return "-" if mean is None or math.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
