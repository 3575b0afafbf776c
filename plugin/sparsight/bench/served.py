"""What the product answers where a no would be wrong, re-check and all, against what it answers from all tokens.

Both ways of asking are those of the product: reasoning first, and what is negative or does not need its tokens is read
again from more (service.answering) before it counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsight.config import ServeConfig
from sparsight.model import PolicySelector, Reader
from sparsight.model.selectors import AllSelector
from sparsight.rl.answers import is_negative
from sparsight.rl.scoring import deniable
from sparsight.rl.statistics import bootstrap_mean
from sparsight.service.answering import Answering
from sparsight.types import Case, Doubt, TokenGrid


@dataclass(frozen=True)
class Served:
    """One question, wrongly denied or not: at first, as shown after any re-check, and from all tokens.

    all: as many of them as a prompt holds. tokens: of both readings together, of N. changed: by the re-check.
    """

    case: str
    group: str
    first: bool
    shown: bool
    all: bool
    doubt: Doubt | None
    changed: bool
    tokens: int
    of: int


def may_be_denied(case: Case) -> bool:
    """Whether a no, none or 0 could be said to a question, and would be wrong."""
    return deniable(case.question, case.answer)


def serve(reader: Reader, ours: PolicySelector, case: Case, grid: TokenGrid, budget: float) -> Served:
    """Ask as the product does, with the settings it is shipped with but for the budget."""
    answering = Answering(reader, ServeConfig(), None, grid, case.question, lambda progress: None)
    reading = answering.answer(ours, budget)
    again = reading.recheck
    first = again.first if again else reading.answer
    whole = reader.read(case.question, grid, AllSelector(reader.max_tokens).select(grid, case.question, grid.n))
    return Served(
        case.id,
        case.group,
        first=is_negative(case.question, first.text),
        shown=is_negative(case.question, reading.answer.text),
        all=is_negative(case.question, whole.text),
        doubt=again.reason if again else None,
        changed=bool(again and again.changed),
        tokens=reading.selection.size + (again.kept if again else 0),
        of=grid.n,
    )


def summarise_served(served: Sequence[Served], budget: float, seed: int) -> dict[str, Any]:
    """Shares wrongly denied with intervals, and minus that with all tokens, paired. Empty for none.

    doubts: how many were read again, by why; changed: answers that this changed; tokens: mean share of N.
    """
    if not served:
        return {}
    groups = np.unique([s.group for s in served], return_inverse=True)[1].astype(np.int64)
    whole = np.array([float(s.all) for s in served])
    rows = []
    for answers in ("first", "shown", "all"):
        own = np.array([float(getattr(s, answers)) for s in served])
        rate, more = (bootstrap_mean(values, groups=groups, seed=seed) for values in (own, own - whole))
        rows.append(
            {
                "answers": answers,
                "rate": rate.mean,
                "rate_ci": [rate.low, rate.high],
                "difference": more.mean,
                "difference_ci": [more.low, more.high],
            }
        )
    return {
        "n": len(served),
        "groups": int(groups.max()) + 1,
        "budget": budget,
        "rows": rows,
        "doubts": dict(Counter(s.doubt for s in served if s.doubt)),
        "changed": sum(s.changed for s in served),
        "tokens": float(np.mean([s.tokens / s.of for s in served])),
    }
