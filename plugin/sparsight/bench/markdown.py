"""Cells and tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(x: float | None) -> str:
    """Three decimals, a dash for nothing."""
    return "-" if x is None else f"{x:.3f}"


def share(x: float) -> str:
    """`0.5 %`, `10 %`."""
    return f"{100 * x:g} %"


def table(head: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; a bar in a cell becomes a slash."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells),
    ]
