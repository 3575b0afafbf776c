"""Which rows of a data folder a command takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsight.errors import DataError

if TYPE_CHECKING:
    from sparsight.datasets import FolderCases
    from sparsight.model import Reader


def fitting(cases: FolderCases, reader: Reader) -> FolderCases:
    """The rows whose question the reader takes; how many are too long for it is added to what was left out."""
    from sparsight.rl.evaluate import fits

    taken = cases.take(i for i, asked in enumerate(cases.asked()) if fits(reader, asked.question))
    long = len(cases) - len(taken)
    if not taken:
        raise DataError(
            f"{long} questions that are all too long for the reader",
            expected="a shorter one",
            todo="take another reader",
        )
    if long:
        taken.left_out["too long for the reader, of this split"] = long
    return taken


def drawn(cases: FolderCases, limit: int | None, seed: int) -> FolderCases:
    """So many of the rows, drawn with the seed; all where there are fewer, or without a limit."""
    if limit is None or limit >= len(cases):
        return cases
    import numpy as np

    return cases.take(np.sort(np.random.default_rng(seed).permutation(len(cases))[:limit]).tolist())
