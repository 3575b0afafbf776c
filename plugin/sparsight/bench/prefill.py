"""What pruning saves before the first word, on a language model of SmolLM2-135M's size.

How long a forward takes depends on sizes, not on weights: they are random, so nothing has to be had. All ways to begin
an answer are timed in turns, one round after the other, and compared within a round.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from sparsight.bench.looks import SLICES, LongVolume, sees_first, timed
from sparsight.errors import InputError
from sparsight.model import PolicySelector
from sparsight.model.nano.encoder import PATCH
from sparsight.model.nano.reader import NanoReader
from sparsight.model.protocols import Reader
from sparsight.types import Question, TokenGrid

Step = Callable[[str, int, int], None]
_SIDE = 32  # tokens: 1,024 in all
_TEXT = 64  # tokens of text behind them
_SHARE = 0.1
_OF_LINEAR = 0.9  # of (N + T) / (K + T), what the speed-up is to reach
_QUESTION = Question("Is there a nodule in the upper left?")
# SmolLM2-135M, https://huggingface.co/HuggingFaceTB/SmolLM2-135M: config.json
LANGUAGE = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True,
)  # fmt: skip
# A ViT of SigLIP-B's size (Zhai et al. 2023, arXiv 2303.15343) for 512 x 512 pixels: 1,024 patches of 16.
VISION = SiglipVisionConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=16 * _SIDE,
    patch_size=16,
)  # fmt: skip


def measure(
    reader: Reader,
    selector: PolicySelector,
    *,
    repeats: int,
    seed: int,
    on_step: Step,
    language: LlamaConfig = LANGUAGE,
    vision: SiglipVisionConfig = VISION,
    slices: int = SLICES,
) -> dict[str, Any]:
    """A report: rows {what, type, value, low, high, target, met, n}, medians over rounds, 95 % intervals by bootstrap.

    type: of the models' numbers, float32 and bfloat16; the policy and its encoder are float32 always.

    reader, selector: whose encoder and policy are timed. repeats: rounds; one more is run first and not counted.
    slices: of a long volume, timed where the reader has a first look; 0: none.
    Raises InputError for another reader than nano, whose encoder is none of ours to time.
    """
    if not isinstance(reader, NanoReader):
        raise InputError(f"reader {reader.id}", expected="a nano reader", todo="name one with serve.reader")
    n = _SIDE * _SIDE
    k = round(_SHARE * n)
    long = LongVolume(reader, selector, slices, seed) if slices and sees_first(reader, selector) else None
    rows, medians = [], {}
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        torch.manual_seed(seed)
        ways = _Ways(reader, selector, language, vision, n, k, dtype, long)
        rounds = []
        for r in range(repeats + 1):
            rounds.append(ways.round())
            on_step("rounds", number * (repeats + 1) + r + 1, 2 * (repeats + 1))
        seconds = {name: np.array([one[name] for one in rounds[1:]]) for name in rounds[0]}
        name = str(dtype).removeprefix("torch.")
        medians[name] = {part: float(np.median(values)) for part, values in seconds.items()}
        rows += [{"type": name, **row} for row in _rows(seconds, (n + _TEXT) / (k + _TEXT), seed, long)]
    return {
        "created": datetime.now(UTC).isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "threads": torch.get_num_threads()},
        "reader": reader.id,
        "tokens": {"visual": n, "kept": k, "text": _TEXT},
        "linear": (n + _TEXT) / (k + _TEXT),
        "volume": {"slices": slices, "encoded": long.encoded} if long else None,
        "seconds": medians,
        "seed": seed,
        "rows": rows,
    }


def _rows(
    seconds: dict[str, NDArray[np.float64]], linear: float, seed: int, long: LongVolume | None
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = [
        _row("prefill of all tokens / of a tenth", seconds["all"] / seconds["few"], rng, at_least=_OF_LINEAR * linear)
    ]
    for encoder in ("nano", "vit"):
        begun = seconds[encoder] + seconds["select"] + seconds["few"]
        name = {"nano": "the nano encoder", "vit": "an encoder of SigLIP-B's size"}[encoder]
        rows.append(
            _row(f"first question, {name}: all / a tenth", (seconds[encoder] + seconds["all"]) / begun, rng, at_least=3)
        )
        rows.append(_row(f"selector's share, first question, {name}", seconds["select"] / begun, rng, at_most=0.01))
    later = seconds["select"] + seconds["few"]
    rows.append(_row("later question, study encoded: all / a tenth", seconds["all"] / later, rng))
    rows.append(_row("selector's share, later question", seconds["select"] / later, rng, at_most=0.01))
    if long is not None:
        begun = seconds["looked"] + seconds["few"]
        for name in ("all", "few"):
            what = (
                f"first question about {long.slices} slices: all encoded, {'all' if name == 'all' else 'a tenth'} read"
            )
            what += f" / {long.encoded} encoded after a first look, a tenth read"
            rows.append(_row(what, (seconds["everything"] + seconds[name]) / begun, rng, at_least=3))
    return rows


class _Ways:
    """The parts of the time to the first token, each a call."""

    def __init__(
        self,
        reader: NanoReader,
        selector: PolicySelector,
        language: LlamaConfig,
        vision: SiglipVisionConfig,
        n: int,
        k: int,
        dtype: torch.dtype,
        long: LongVolume | None = None,
    ) -> None:
        self.reader, self.selector, self.n, self.k, self.long = reader, selector, n, k, long
        self.language, self.vision = (
            model.to(dtype).eval() for model in (LlamaForCausalLM(language), SiglipVisionModel(vision))
        )
        self.pixels = torch.rand(1, _SIDE * PATCH, _SIDE * PATCH)
        self.picture = torch.rand(1, 3, vision.image_size, vision.image_size, dtype=dtype)
        with torch.inference_mode():
            features = reader.encoder(self.pixels).flatten(0, 2)
        at = np.eye(4)
        self.grid = TokenGrid(features, (1, _SIDE, _SIDE), (PATCH, PATCH, 1), at, at, reader.id)
        self.embeds = torch.randn(1, n + _TEXT, language.hidden_size, dtype=dtype)

    @torch.inference_mode()
    def round(self) -> dict[str, float]:
        """Seconds of each part."""
        seconds = {}
        seconds["nano"], _ = timed(lambda: self.reader.encoder(self.pixels))
        seconds["vit"], _ = timed(lambda: self.vision(pixel_values=self.picture))
        seconds["select"], kept = timed(lambda: self.selector.select(self.grid, _QUESTION, self.k).keep)
        text = torch.arange(self.n, self.n + _TEXT)
        seconds["few"], _ = timed(lambda: self._prefill(torch.cat([torch.from_numpy(kept), text])))
        seconds["all"], _ = timed(lambda: self._prefill(torch.arange(self.n + _TEXT)))
        if self.long is not None:
            seconds["everything"], _ = timed(self.long.everything)
            seconds["looked"], _ = timed(self.long.looked)
        return seconds

    def _prefill(self, positions: Tensor) -> Tensor:
        """Logits of the first token: (1, 1, vocabulary). positions: of what is kept; with a cache, as for an answer."""
        mask = torch.ones(1, len(positions), dtype=torch.long)
        out = self.language(
            inputs_embeds=self.embeds[:, positions],
            attention_mask=mask,
            position_ids=positions[None],
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits
        return logits


def _row(
    what: str,
    values: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    """A median with the interval of its bootstrap, and whether all of that interval is on the right side."""
    drawn = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = (float(x) for x in np.percentile(drawn, (2.5, 97.5)))
    row = {"what": what, "value": float(np.median(values)), "low": low, "high": high, "n": len(values)}
    if at_least is not None:
        return row | {"target": f"at least {at_least:.3g}", "met": low >= at_least}
    if at_most is not None:
        return row | {"target": f"at most {at_most:.3g}", "met": high <= at_most}
    return row | {"target": None, "met": None}
