"""The figures of a trained reader: every visual stream at the same budgets on questions never trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sparsight.errors import finite
from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.selectors import AllSelector, GridSelector, RandomSelector, ScoreSelector
from sparsight.recipe.measure import Choose, measure
from sparsight.recipe.pool import Item, Pool
from sparsight.rl.scoring import Result
from sparsight.rl.tables import compare, summarise
from sparsight.types import Selection, TokenGrid

TABLES = ("simulated", "volumes", "pairs", "unseen anatomy")
BUDGETS = (0.02, 0.05, 0.1, 0.25)
_VOLUME_BUDGETS = (0.005, 0.01, 0.02)
Tell = Callable[[str, int, int], None]


def report(reader: NanoReader, policy: TokenPolicy, pools: dict[str, Pool], tell: Tell) -> dict[str, Any]:
    """Tables by pool, paired differences of ours to each rival, real sets against majority and blind baselines."""
    figures: dict[str, Any] = {}
    for name in TABLES:
        budgets = _VOLUME_BUDGETS if name == "volumes" else BUDGETS
        figures[name] = _table(reader, policy, pools[name], budgets, partial(tell, f"measure {name}"))
    figures["real val"] = _real(reader, policy, pools["real val"], tell)
    return figures


def streams(reader: NanoReader, policy: TokenPolicy) -> dict[str, Choose]:
    """Visual streams by name. The oracle takes the finding's tokens, from the mask."""
    ours, whole, even, chance = (
        PolicySelector(policy, reader),
        AllSelector(reader.max_tokens),
        GridSelector(),
        RandomSelector(),
    )
    seeds = iter(range(10**9))

    def oracle(grid: TokenGrid, item: Item, k: int) -> Selection:
        share = np.zeros(grid.n, np.float32) if item.share is None else item.share
        return ScoreSelector(share).select(grid, item.question, k)

    return {
        "ours": lambda grid, item, k: ours.select(grid, item.question, k),
        "saliency": lambda grid, item, k: ScoreSelector(reader.saliency(grid).numpy()).select(grid, item.question, k),
        "grid": lambda grid, item, k: even.select(grid, item.question, k),
        "random": lambda grid, item, k: chance.select(grid, item.question, k, seed=next(seeds)),
        "oracle": oracle,
        "all": lambda grid, item, k: whole.select(grid, item.question, k),
    }


def _table(
    reader: NanoReader, policy: TokenPolicy, pool: Pool, budgets: tuple[float, ...], tell: Callable[[int, int], None]
) -> dict[str, Any]:
    chosen = streams(reader, policy)
    every = range(len(pool.items))
    results = measure(reader, pool, every, "all", chosen["all"], 1.0)
    for done, budget in enumerate(budgets, start=1):
        for name, choose in chosen.items():
            if name != "all":
                results += measure(reader, pool, every, name, choose, budget)
        tell(done, len(budgets))
    rivals = [name for name in chosen if name not in ("ours", "oracle")]
    paired = [
        {"rival": rival, "budget": row["budget"], "gain": row["difference"], "ci": row["difference_ci"]}
        for rival in rivals
        for row in compare(results, "ours", rival)
    ]
    rows = [
        {
            "selector": row["selector"],
            "budget": row["budget"],
            "accuracy": row["accuracy"],
            "ci": row["accuracy_ci"],
            "p_right": row["p_right"],
            "recall": row["evidence_recall"],
        }
        for row in summarise(results)
    ]
    widest = [r for r in results if (r.selector, r.budget) == ("ours", budgets[-1])]
    by_label = {label: _by_label(widest, label) for label in sorted({r.label for r in widest})}
    figures: dict[str, Any] = finite(
        {"n": len(pool.items), "rows": rows, "paired": paired, "ours by question": by_label}
    )
    return figures


def _by_label(results: list[Result], label: str) -> list[float]:
    own = [r.correct for r in results if r.label == label]
    return [sum(own) / len(own), len(own)]


def _real(reader: NanoReader, policy: TokenPolicy, pool: Pool, tell: Tell) -> dict[str, Any]:
    """Accuracy per set at 10 % and with all tokens, beside the majority answer and the reader without an image.

    Only questions with choices; open answers are scored by what the reader writes elsewhere (`sparsight evaluate`).
    The majority answer is counted on the rows it is scored on: an upper bound of what majority voting would reach.
    """
    chosen = streams(reader, policy)
    chosen["no image"] = lambda grid, item, k: Selection(
        np.zeros(0, np.int64), np.zeros(grid.n, np.float32), 0.0, "greedy", "no image"
    )
    result: dict[str, Any] = {}
    sets = sorted({item.source for item in pool.items})
    for done, source in enumerate(sets, start=1):
        numbers = [
            n
            for n, i in enumerate(pool.items)
            if i.source == source and i.answer.lower() in (c.lower() for c in i.question.answers)
        ]
        items = [pool.items[n] for n in numbers]
        if not items:
            continue
        majority: dict[str, Counter[str]] = {}
        for item in items:
            majority.setdefault(item.question.text.lower() if source != "vqa_rad" else item.question.kind, Counter())[
                item.answer.lower()
            ] += 1
        top = sum(counter.most_common(1)[0][1] for counter in majority.values()) / len(items)
        ways = {"ours 0.1": ("ours", 0.1), "random 0.1": ("random", 0.1), "all 1": ("all", 1.0)}
        ways["no image"] = ("no image", 0.1)
        figures = {way: _accuracy(measure(reader, pool, numbers, w, chosen[w], b)) for way, (w, b) in ways.items()}
        result[source] = {"n": len(items), "majority": top, **figures}
        tell("measure real sets", done, len(sets))
    return result


def _accuracy(results: list[Result]) -> float:
    return sum(r.correct for r in results) / len(results)
