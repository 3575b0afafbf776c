"""Which case next: the order of Service.next_case against a random one, over the same pool of studies.

The pool is a served folder. Each study is asked the question that serve.yaml suggests, about the finding that is new,
and corrected; at each checkpoint the clinic learns, so that the next cases are chosen by whatever policy answers then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from sparsight.bench.feedback.clinic import RIGHT, clinic, policy_of
from sparsight.bench.feedback.curves import Start, figure
from sparsight.bench.feedback.exam import Right
from sparsight.bench.feedback.shifts import UNSEEN, Shift, Tell
from sparsight.config import Config
from sparsight.rl.statistics import bootstrap_mean
from sparsight.service import Service, parse_question
from sparsight.sim.words import article
from sparsight.types import Case

Order = Literal["random", "active"]
ORDERS: tuple[Order, ...] = get_args(Order)
QUESTION = f"Is there {article(UNSEEN)}?"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What n corrections in one order came to. right: of the exam on what is new, by the candidate that was learned.

    live: by what answers after the gate.
    """

    order: Order
    n: int
    right: Right
    live: Right
    promoted: bool
    positive: float  # share of the corrected cases in which the finding is


def run(
    shift: Shift,
    config: Config,
    start: Start,
    *,
    pool: int,
    numbers: Sequence[int],
    seeds: Sequence[int],
    folder: Path,
    tell: Tell,
) -> dict[str, Any]:
    """Accuracy on what is new by order and number of corrections, and n active ones against twice as many random ones.

    pool: studies to choose among. numbers: checkpoints, each of which may be twice another. Means over the seeds.
    """
    reached: list[Checkpoint] = []
    for seed in seeds:
        studies = folder / f"pool-{seed}"
        cases = _pool(shift, pool, seed, studies)
        for order in ORDERS:
            settings = {
                "home": folder / f"{order}-{seed}",
                "serve": config.serve.model_copy(update={"suggested_questions": {"default": QUESTION}}),
                "learn": config.learn.model_copy(update={"seed": seed}),
            }
            with clinic(config.model_copy(update=settings), studies) as service:
                reached += _taught(service, order, cases, numbers, seed, start, tell)
    own = {
        (order, n): [c for c in reached if (c.order, c.n) == (order, n)] for order in ORDERS for n in sorted({*numbers})
    }
    return {
        "question": QUESTION,
        "pool": pool,
        "seeds": list(seeds),
        "rows": [_row(order, n, found, start) for (order, n), found in own.items()],
        "paired": [_paired(n, own["active", n], own["random", 2 * n], start) for n in numbers if 2 * n in numbers],
    }


def _taught(
    service: Service,
    order: Order,
    cases: Mapping[str, Case],
    numbers: Sequence[int],
    seed: int,
    start: Start,
    tell: Tell,
) -> Iterator[Checkpoint]:
    """Correct one case after the other and learn at each checkpoint."""
    chosen, taken, live = _chosen(service, order, sorted(cases), seed), list[Case](), start.before_new
    for n in sorted(numbers):
        while len(taken) < n:
            study = next(chosen)
            case = cases[study]
            episode = service.ask(study, case.question).episode
            service.correct(RIGHT[len(taken) % len(RIGHT)].judge(case, episode, seed))
            taken.append(case)
            tell(f"{order} order, seed {seed}", len(taken), max(numbers))
        learned = service.learn()
        policy = policy_of(service, learned.candidate.id) if learned.candidate else service.live_selector().policy
        positive = float(np.mean([case.answer == "yes" for case in taken]))
        right = start.new.right(policy)
        live = right if learned.promoted else live
        yield Checkpoint(order, n, right, live, learned.promoted, positive)


def _chosen(service: Service, order: Order, studies: Sequence[str], seed: int) -> Iterator[str]:
    """The next study, again and again; the active one looks at what was corrected meanwhile."""
    if order == "random":
        yield from (studies[i] for i in np.random.default_rng([seed, 2]).permutation(len(studies)))
        return
    while (case := service.next_case()) is not None:
        yield case.study


def _pool(shift: Shift, n: int, seed: int, folder: Path) -> dict[str, Case]:
    """N studies as files, each with the answer to QUESTION and the finding it rests on, by id."""
    folder.mkdir(parents=True)
    question, cases = parse_question(QUESTION), dict[str, Case]()
    for index, scene in zip(range(n), shift.pool(seed), strict=False):
        name = f"study-{index:04d}"
        Image.fromarray(np.rint(scene.volume.voxels[0]).astype(np.uint8)).save(folder / f"{name}.png")
        found = [f for f in scene.findings if f.kind == UNSEEN]
        mask = np.zeros(scene.volume.shape, np.bool_)
        for finding in found:
            mask[finding.slices] |= finding.local
        cases[name] = Case(name, scene.volume, question, "yes" if found else "no", finding=mask if found else None)
    return cases


def _row(order: Order, n: int, found: Sequence[Checkpoint], start: Start) -> dict[str, Any]:
    right, live, groups = _mean(found, "right"), _mean(found, "live"), start.new.groups
    return {
        "order": order,
        "corrections": n,
        "new_accuracy": figure(bootstrap_mean(right, groups=groups)),
        "new_gain": figure(bootstrap_mean(right - start.before_new, groups=groups)),
        "by_seed": [float(c.right.mean()) for c in found],
        "live_gain": figure(bootstrap_mean(live - start.before_new, groups=groups)),
        "live_by_seed": [float(c.live.mean()) for c in found],
        "promoted": sum(c.promoted for c in found),
        "positive": float(np.mean([c.positive for c in found])),
    }


def _paired(n: int, active: Sequence[Checkpoint], other: Sequence[Checkpoint], start: Start) -> dict[str, Any]:
    """N corrections in active order against twice as many in random order: what was learned, what then answers."""
    compared: dict[str, Any] = {"active": n, "random": 2 * n}
    for who, what in (("learned", "right"), ("live", "live")):
        difference = bootstrap_mean(_mean(active, what) - _mean(other, what), groups=start.new.groups)
        by_seed = [float((getattr(a, what) - getattr(b, what)).mean()) for a, b in zip(active, other, strict=True)]
        compared[who] = figure(difference) | {"by_seed": by_seed}
    return compared


def _mean(found: Sequence[Checkpoint], what: str) -> Right:
    """Over the seeds. what: `right` or `live`."""
    return np.asarray(np.mean([getattr(c, what) for c in found], axis=0), np.float64)
