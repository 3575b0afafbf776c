"""What the language stream looked at, beside what the visual stream kept for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsight.model.protocols import Reader
from sparsight.types import Question, Selection, TokenGrid


def attended(
    reader: Reader, question: Question, grid: TokenGrid, selection: Selection, reasoning: str = ""
) -> Selection:
    """The selection with the reader's attention to its tokens; as it is from a reader that cannot tell."""
    found = reader.attention(question, grid, selection, reasoning) if len(selection.keep) else None
    if found is None:
        return selection
    attention = np.zeros(grid.n, np.float32)
    attention[selection.keep] = found.numpy()
    return replace(selection, attention=attention)
