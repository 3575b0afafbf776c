"""A careless reader: three in ten of one reader's answers are wrong. Is that reader named, and is anything unlearned?

Four readers; some cases are read by all of them, the others by one each. Only where readers share cases can one be
told from the others (rl.readers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.bench.feedback.clinic import RIGHT, Clinician, clinic, policy_of
from sparsight.bench.feedback.curves import Start, figure
from sparsight.bench.feedback.shifts import Shift, Tell
from sparsight.config import Config
from sparsight.rl.statistics import bootstrap_mean

CARELESS = Clinician("dora", wrong=0.3)
PANEL = (*RIGHT, CARELESS)


def run(
    shift: Shift,
    config: Config,
    start: Start,
    *,
    shared: int,
    single: int,
    seeds: Sequence[int],
    folder: Path,
    tell: Tell,
) -> dict[str, Any]:
    """shared: cases that all four read; single: cases of one reader each. Means over the seeds of learning."""
    olds, news, by_seed = [], [], []
    for seed in seeds:
        cases = shift.lessons(shared + single, seed)
        learn = config.learn.model_copy(update={"seed": seed})
        with clinic(config.model_copy(update={"home": folder / f"flips-{seed}", "learn": learn})) as service:
            flipped = 0
            for n, case in enumerate(cases):
                readers = PANEL if n < shared else (PANEL[n % len(PANEL)],)
                for reader in readers:  # each asks for himself: readers do not see each other's answers
                    episode = service.ask(case.volume, case.question).episode
                    service.correct(reader.judge(case, episode, seed))
                    flipped += reader.holds(case, seed) != case.answer
                tell("a careless reader", n + 1, len(cases))
            learned = service.learn()
            policy = policy_of(service, learned.candidate.id) if learned.candidate else service.live_selector().policy
        old, new = start.old.right(policy) - start.before_old, start.new.right(policy) - start.before_new
        olds.append(old)
        news.append(new)
        named = [reader.name for reader in PANEL if any(_names(reader, reason) for reason in learned.reasons)]
        by_seed.append(
            {
                "seed": seed,
                "corrections": 4 * shared + single,
                "flipped": flipped,
                "named": named,
                "promoted": learned.promoted,
                "old_change": float(old.mean()),
                "reasons": list(learned.reasons),
            }
        )
    return {
        "share_flipped": CARELESS.wrong,
        "careless": CARELESS.name,
        "shared": shared,
        "single": single,
        "old_change": figure(bootstrap_mean(np.mean(olds, axis=0), groups=start.old.groups)),
        "new_gain": figure(bootstrap_mean(np.mean(news, axis=0), groups=start.new.groups)),
        "by_seed": by_seed,
    }


def _names(reader: Clinician, reason: str) -> bool:
    return re.match(rf"reader {re.escape(reader.name)} ", reason) is not None
