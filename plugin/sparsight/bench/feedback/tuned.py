"""What the language stream would learn from the same corrections: a comparison, for the service has no place for it.

A reader whose `writer` is None has no adapter that a policy version could hold. So a copy of its language stream is
tuned whole, by the same cross-entropy that teaches adapters (rl.tuning), on the corrections that ours trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsight.config import Config
from sparsight.model import PolicySelector, TokenPolicy, load_nano
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.sampling import NanoLanguagePolicy
from sparsight.rl.trainer import Example
from sparsight.rl.tuning import TuningConfig, tune_language
from sparsight.service.learning import split
from sparsight.service.lesson import Correction
from sparsight.types import Case

_PASSES = 6  # times that each correction is drawn, as learn.yaml has it for the policy


def tuned(reader: NanoReader, policy: TokenPolicy, cases: Sequence[Case], config: Config) -> NanoReader:
    """A copy of the reader, tuned on right answers about what `policy` keeps; the service's held-out cases left out."""
    corrections = [
        Correction(
            case.id,
            case.volume.sha256,
            (),
            Example(reader.encode(case.volume), case.question, case.answer),
        )
        for case in cases
    ]
    train, _ = split(corrections, config.learn)
    batch = min(TuningConfig.batch, len(train))
    settings = TuningConfig(
        steps=math.ceil(_PASSES * len(train) / batch),
        batch=batch,
        budgets=config.learn.budgets,
        full=0.0,  # slow, and nothing here is read from all tokens
        lr=config.learn.tuning_lr,
    )
    copy = load_nano(config.serve.reader)
    tune_language(
        NanoLanguagePolicy(copy),
        PolicySelector(policy, reader),
        [c.example for c in train],
        config=settings,
        seed=config.learn.seed,
    )
    return copy
