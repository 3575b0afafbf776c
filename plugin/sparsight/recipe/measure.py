"""Ask a reader the questions of a pool: what `sparsight bench evidence` does with cases, done with encoded images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sparsight.model.protocols import Reader
from sparsight.model.selectors import tokens_at
from sparsight.recipe.pool import Item, Pool
from sparsight.rl.scoring import Posed, Result, answered
from sparsight.types import Selection, TokenGrid

Choose = Callable[[TokenGrid, Item, int], Selection]
_QUESTIONS = 32  # per call: their grids are in memory together


def measure(
    reader: Reader, pool: Pool, numbers: Iterable[int], name: str, choose: Choose, share: float
) -> list[Result]:
    """Ask the items of these numbers with `share` of the tokens; only items with choices. One image is one group."""
    asked = list(numbers)
    results: list[Result] = []
    for start in range(0, len(asked), _QUESTIONS):
        posed = []
        for number in asked[start : start + _QUESTIONS]:
            item = pool.items[number]
            grid = pool.grid(item.image, reader.id)
            kept = choose(grid, item, tokens_at(share, grid, reader))
            case, group = str(number), str(item.image)
            posed.append(
                Posed(name, share, case, group, item.label, grid, item.question, item.answer, kept, share=item.share)
            )
        results += answered(reader, posed)
    return results
