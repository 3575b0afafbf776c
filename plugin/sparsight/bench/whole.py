"""Every token of a study in one prompt, also where that is more than a prompt may hold: what pruning is compared with.

`all` is thinned to `max_tokens` there, as the product would be. No reader was trained on longer prompts, so what is
lost with them is not only what pruning gains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsight.model.nano.reader import NanoReader
from sparsight.model.selectors import AllSelector
from sparsight.rl.evaluate import finding_share, posed_as
from sparsight.rl.scoring import Posed, Result, Said, judge
from sparsight.rl.tables import EVERY
from sparsight.types import Case, TokenGrid


def read_whole(reader: NanoReader, cases: Sequence[tuple[Case, TokenGrid]]) -> list[Result]:
    """Questions with choices, each answered from all N tokens in one prefill, in bfloat16 as the others are scored."""
    results = []
    for case, grid in cases:
        selection = AllSelector(grid.n).select(grid, case.question, grid.n)
        posed = posed_as(EVERY, 1.0, case, grid, selection, finding_share(case, grid))
        results.append(judge(posed, _said(reader, posed)))
    return results


def _said(reader: NanoReader, posed: Posed) -> Said:
    choices = posed.question.answers
    with torch.autocast("cpu", torch.bfloat16):
        scores = reader.weigh(posed.question, posed.grid, choices)
    likely = tuple(scores.double().softmax(0).tolist())
    best = int(scores.argmax())
    return Said(choices[best], likely[best], likely)
