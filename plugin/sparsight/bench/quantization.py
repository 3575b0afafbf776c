"""What quantization costs a model's answers, at several shares of the visual tokens, against the model as published.

The same questions, the same tokens (spread evenly, so that no policy is in it), one model in memory at a time. Compared
are the distributions of the answer's first token, and which of a question's choices is the likeliest.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.config import ModelConfig
from sparsight.errors import DataError
from sparsight.model import GridSelector, load_configured
from sparsight.model.hf.load import LADDER, Quantization
from sparsight.model.hf.reader import HFReader
from sparsight.model.quantized import how, table
from sparsight.model.selectors import tokens_at
from sparsight.rl.statistics import bootstrap_mean, bootstrap_ratio
from sparsight.types import ImageVolume, Question, TokenGrid

Step = Callable[[str, int, int], None]
SHARES = (1.0, 0.25, 0.1)
_KEPT = 0.99  # accuracy of NF4 to that of bfloat16 at 25 %, what is aimed at


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with its right answer about one study. group: patient or case, for the intervals."""

    volume: ImageVolume
    question: Question
    answer: str
    group: str


@dataclass(frozen=True, eq=False)
class _Seen:
    """One model on all questions at one share. first: (n, V) log-probabilities; right: (n,), NaN without choices."""

    first: Tensor
    right: NDArray[np.float64]


def measure(config: ModelConfig, asked: Sequence[Asked], *, of: str, seed: int, on_step: Step) -> dict[str, Any]:
    """A report: rows {quantization, share, n, kl, agreement, accuracy, ratio}, each with its 95 % interval.

    kl: of the published model's first token from the quantized one's, nats; agreement: share of questions with the same
    likeliest first token; accuracy: of the likeliest choice, where there are choices; ratio: to the published model's.
    of: what is asked, in words.
    Raises DataError without questions; WeightsError, ConfigError.
    """
    if not asked:
        raise DataError("no questions", expected="at least one", todo="name a folder with rows of that split")
    groups = np.unique([one.group for one in asked], return_inverse=True)[1]
    names = {one.group for one in asked}
    seen: dict[Quantization, dict[float, _Seen]] = {}
    grids: list[TokenGrid] = []
    sha256 = {}
    for done, rung in enumerate(LADDER):
        own = config.model_copy(update={"quantization": rung})
        reader = load_configured(own, smaller=False)  # else a smaller one would go by its name
        if not grids:  # the same for all: the vision tower is never quantized
            grids = [reader.encode(one.volume) for one in asked]
        sha256[rung] = reader.sha256
        seen[rung] = {}
        for i, share in enumerate(SHARES):
            seen[rung][share] = _look(reader, asked, grids, share)
            on_step("models", done * len(SHARES) + i + 1, len(LADDER) * len(SHARES))
        del reader
        gc.collect()
    rows = [
        _row(rung, share, seen["none"][share], seen[rung][share], np.asarray(groups), seed)
        for rung in LADDER
        for share in SHARES
    ]
    target = next(row for row in rows if row["quantization"] == "nf4" and row["share"] == 0.25)["ratio"]
    return {
        "model": config.name or (config.weights or Path()).name,
        "sha256": sha256,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "of": of,
        "n": len(asked),
        "groups": len(names),
        "seed": seed,
        "rows": rows,
        "target": {"what": "accuracy of nf4 to none at 25 %", "wanted": _KEPT, "measured": target},
    }


def card(report: dict[str, Any]) -> str:
    """The report as a page to keep beside the model."""
    return "\n".join([f"# Quantization of {report['model']}", "", how(report), "", *table(report["rows"])]) + "\n"


@torch.inference_mode()
def _look(reader: HFReader, asked: Sequence[Asked], grids: Sequence[TokenGrid], share: float) -> _Seen:
    firsts, right = [], []
    for one, grid in zip(asked, grids, strict=True):
        k = tokens_at(share, grid, reader)
        keep = torch.from_numpy(GridSelector().select(grid, one.question, k).keep)
        prompt = reader.prompt(grid, one.question, False).keep(keep, reader.language.image)
        log_p, _ = reader.language.log_p([prompt], [reader.language.ids(one.answer)[:1]])
        firsts.append(log_p[0, 0].cpu())
        choices = one.question.answers
        if not choices:
            right.append(np.nan)
            continue
        texts = [[*reader.language.ids(choice), reader.language.end] for choice in choices]
        likely = reader.language.likely_after(prompt, texts)
        right.append(float(choices[int(likely.argmax())] == one.answer))
    return _Seen(torch.stack(firsts), np.array(right))


def _row(
    rung: str, share: float, published: _Seen, other: _Seen, groups: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    kl = (published.first.exp() * (published.first - other.first)).sum(-1).double().numpy()
    same = (published.first.argmax(-1) == other.first.argmax(-1)).double().numpy()
    closed = ~np.isnan(published.right)
    over, under, of = other.right[closed], published.right[closed], groups[closed]
    return {
        "quantization": rung,
        "share": share,
        "n": len(kl),
        "n_closed": int(closed.sum()),
        "kl": asdict(bootstrap_mean(kl, groups=groups, seed=seed)),
        "agreement": asdict(bootstrap_mean(same, groups=groups, seed=seed)),
        "accuracy": asdict(bootstrap_mean(over, groups=of, seed=seed)),
        "ratio": asdict(bootstrap_ratio(over, under, groups=of, seed=seed)),
    }
