"""The figures of a trained reader: every visual stream at the same budgets on questions never trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import PolicySelector, TokenPolicy
from sparsight.model.selectors import AllSelector, GridSelector, RandomSelector, ScoreSelector
from sparsight.recipe.measure import Choose, Measured, choices_of, interval, measure
from sparsight.recipe.pool import Item, Pool
from sparsight.types import TokenGrid

BUDGETS = (0.02, 0.05, 0.1, 0.25)
_VOLUME_BUDGETS = (0.005, 0.01, 0.02)
Tell = Callable[[str, int, int], None]


def report(reader: NanoReader, policy: TokenPolicy, pools: dict[str, Pool], tell: Tell) -> dict[str, Any]:
    """Tables by pool, paired differences of ours to each rival, real sets against majority and blind baselines."""
    figures: dict[str, Any] = {}
    for name in ("simulated", "volumes", "unseen anatomy"):
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

    def oracle(grid: TokenGrid, item: Item, k: int) -> Any:
        share = np.zeros(grid.n, np.float32) if item.share is None else item.share
        return ScoreSelector(share).select(grid, item.question, k).keep

    return {
        "ours": lambda grid, item, k: ours.select(grid, item.question, k).keep,
        "saliency": lambda grid, item, k: (
            ScoreSelector(reader.saliency(grid).numpy()).select(grid, item.question, k).keep
        ),
        "grid": lambda grid, item, k: even.select(grid, item.question, k).keep,
        "random": lambda grid, item, k: chance.select(grid, item.question, k, seed=next(seeds)).keep,
        "oracle": oracle,
        "all": lambda grid, item, k: whole.select(grid, item.question, k).keep,
    }


def _table(
    reader: NanoReader, policy: TokenPolicy, pool: Pool, budgets: tuple[float, ...], tell: Callable[[int, int], None]
) -> dict[str, Any]:
    chosen = streams(reader, policy)
    rows: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    whole = measure(reader, pool, pool.items, chosen["all"], 1.0)
    images = np.array([item.image for item in pool.items], np.int64)
    rows.append(_row("all", 1.0, whole, images))
    for done, budget in enumerate(budgets, start=1):
        results = {n: measure(reader, pool, pool.items, c, budget) for n, c in chosen.items() if n != "all"}
        rows += [_row(name, budget, result, images) for name, result in results.items()]
        for rival, result in {**results, "all": whole}.items():
            if rival not in ("ours", "oracle"):
                gain = results["ours"].right.astype(float) - result.right.astype(float)
                paired.append(
                    {"rival": rival, "budget": budget, "gain": float(gain.mean()), "ci": interval(gain, images)}
                )
        tell(done, len(budgets))
    ours = results["ours"].right
    labels = np.array([item.label for item in pool.items])
    by_label = {
        str(label): [float(ours[labels == label].mean()), int((labels == label).sum())] for label in np.unique(labels)
    }
    return {"n": len(pool.items), "rows": rows, "paired": paired, "ours by question": by_label}


def _row(name: str, budget: float, m: Measured, images: NDArray[np.int64]) -> dict[str, Any]:
    seen = m.recall[~np.isnan(m.recall)]
    return {
        "selector": name,
        "budget": budget,
        "accuracy": float(m.right.mean()),
        "ci": interval(m.right.astype(float), images),
        "p_right": float(m.p_right.mean()),
        "recall": float(seen.mean()) if len(seen) else None,
    }


def _real(reader: NanoReader, policy: TokenPolicy, pool: Pool, tell: Tell) -> dict[str, Any]:
    """Accuracy per set at 10 % and with all tokens, beside the majority answer and the reader without an image.

    Only questions with choices; open answers are scored by what the reader writes elsewhere (`sparsight evaluate`).
    The majority answer is counted on the rows it is scored on: an upper bound of what majority voting would reach.
    """
    chosen = streams(reader, policy)
    blank: Choose = lambda grid, item, k: np.zeros(0, np.int64)  # noqa: E731
    result: dict[str, Any] = {}
    sets = sorted({item.source for item in pool.items})
    for done, source in enumerate(sets, start=1):
        items = [i for i in pool.items if i.source == source and i.answer.lower() in (c.lower() for c in choices_of(i))]
        if not items:
            continue
        majority: dict[str, Counter[str]] = {}
        for item in items:
            majority.setdefault(item.question.text.lower() if source != "vqa_rad" else item.question.kind, Counter())[
                item.answer.lower()
            ] += 1
        top = sum(counter.most_common(1)[0][1] for counter in majority.values()) / len(items)
        ways = {"ours": 0.1, "random": 0.1, "all": 1.0}
        figures = {
            f"{w} {b:g}": float(measure(reader, pool, items, chosen[w], b).right.mean()) for w, b in ways.items()
        }
        figures["no image"] = float(measure(reader, pool, items, blank, 0.1).right.mean())
        result[source] = {"n": len(items), "majority": top, **figures}
        tell("measure real sets", done, len(sets))
    return result
