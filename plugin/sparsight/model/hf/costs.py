"""What a model costs at a share of its visual tokens: computed from its structure, and measured where it is loaded."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from sparsight.model.hf.families import Family, Rows, family_of
from sparsight.model.hf.load import Quantization, untouched
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.vision import Pace
from sparsight.types import Question

SHARES = (1.0, 0.25, 0.1)
TEXT = 64  # tokens of words in a prompt, assumed where they are not counted
_BYTES: dict[Quantization, float] = {"none": 2.0, "int8": 1.0, "nf4": 0.5 + 0.127 / 8}  # a quantized weight takes
_SPARE = 1.1  # of computed memory, for what comes and goes


@dataclass(frozen=True)
class Cost:
    """At one share of the tokens of one picture. kv_bytes: keys and values of the whole prompt, bfloat16.

    What the prompt holds beside the kept tokens (ends of lines; with all of them, the coarse view) is counted, too.
    prefill_flops: of the language stream, multiply and add counted apart.
    """

    share: float
    kept: int
    kv_bytes: int
    prefill_flops: float


@dataclass(frozen=True)
class Computed:
    """From structure alone. weights_bytes: by quantization, what is never quantized included."""

    family: str
    parameters: int
    language_parameters: int
    tokens: int  # visual tokens of one square picture
    weights_bytes: dict[str, int]
    costs: tuple[Cost, ...]
    longest_kv_bytes: int  # of the longest prompt: one whole picture, or as much of a volume as may be kept

    def memory_bytes(self, quantization: str) -> int:
        """That must be free: weights, keys and values of the longest prompt, and a tenth for what comes and goes."""
        return int(_SPARE * (self.weights_bytes[quantization] + self.longest_kv_bytes))


@dataclass(frozen=True)
class Stage:
    """One stage of an answer: milliseconds (of decoding: for each token), and the most memory that was held in it.

    Of the GPU, where there is one, else of this process, all that it had loaded included.
    """

    ms: float
    peak_bytes: int


@dataclass(frozen=True)
class Measured:
    """Of a loaded model at one share: medians of times, the most of memory."""

    share: float
    kept: int
    encode: Stage
    prefill: Stage
    decode: Stage

    @property
    def first_token_ms(self) -> float:
        """Until the first token of an answer about a study that is new: encoding and prefill together."""
        return self.encode.ms + self.prefill.ms


def compute(config: Any, pace: Pace = Pace(), most: int = 4096, keeps: Sequence[str] = ()) -> Computed:  # noqa: B008 - frozen
    """Costs of a model of this configuration, nothing allocated. most: visual tokens kept for one question.

    keeps: layers that are not quantized (`untouched`). Raises ConfigError for one that the model does not have.
    """
    family = family_of(config.model_type)
    with torch.device("meta"):
        shell = transformers.AutoModelForImageTextToText.from_config(config)
    stays = set(untouched(shell, keeps))
    language = shell.get_decoder()
    inside = {f"{name}.weight" for name, part in shell.named_modules() if isinstance(part, torch.nn.Linear)}
    small = sum(
        p.numel() for n, p in shell.named_parameters() if n in inside and n.removesuffix(".weight") not in stays
    )
    total = sum(p.numel() for p in shell.parameters())
    weights: dict[str, int] = {q: int(2 * (total - small) + _BYTES[q] * small) for q in _BYTES}
    text = config.get_text_config()
    rows = rows_of(family, config, pace)
    n = rows.token.size
    linear = sum(p.numel() for n_, p in language.named_parameters() if p.ndim == 2 and "embed" not in n_)
    costs = tuple(_cost(text, linear, share, max(1, round(share * n)), rows) for share in SHARES)
    volume = min(most, pace.slices * rows_of(family, config, replace(pace, tiles=1)).token.size)
    longest = TEXT + max(rows.total, volume)
    parameters = sum(p.numel() for p in language.parameters())
    return Computed(config.model_type, total, parameters, n, weights, costs, _kv_bytes(text, longest))


def rows_of(family: Family, config: Any, pace: Pace) -> Rows:
    """Feature rows of one square picture, in as many tiles as it is cut into."""
    if family.side(config) is None:
        along, tiles = math.isqrt(pace.tokens), 1
    else:
        tiles = min(family.tiles, pace.tiles)
        along = family.along(config) * tiles
    return family.rows(config, (along, along), (tiles, tiles), alone=True)


def measure(reader: HFReader, repeats: int = 3, shares: Sequence[float] = SHARES) -> list[Measured]:
    """Time a reader on one square picture; the shares take turns, so that a busy moment hits all of them."""
    study = pattern(1, 256, 256)
    question = Question("Is there a bright spot?", "yes_no", ("yes", "no"))
    encode = _middle([_stage(lambda: reader.encode(study)) for _ in range(repeats)])
    grid = reader.encode(study)
    whole = reader.prompt(grid, question, True)
    seen: dict[float, list[tuple[Stage, Stage]]] = {share: [] for share in shares}
    kept = {share: max(1, round(share * grid.n)) for share in shares}
    for _ in range(repeats):
        for share in shares:
            keep = torch.arange(grid.n)[:: max(1, grid.n // kept[share])][: kept[share]]
            seen[share].append(_write(reader, whole.keep(keep, reader.language.image)))
    return [
        Measured(share, kept[share], encode, *(_middle(stage) for stage in zip(*rows, strict=True)))
        for share, rows in seen.items()
    ]


def peak_bytes() -> int:
    """Most memory that was held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration):  # ru_maxrss is never less than that of who started the process
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _peak_anew() -> None:
    """Let `peak_bytes` begin anew, where the system knows how (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _cost(text: Any, linear: int, share: float, kept: int, rows: Rows) -> Cost:
    """2 operations for each weight and token; 4 h L^2 for scores and values of a causal layer, half of them masked."""
    length = TEXT + (rows.total if kept == rows.token.size else kept + len(rows.framing))
    flops = 2.0 * linear * length + 2.0 * text.num_hidden_layers * text.num_attention_heads * _head(text) * length**2
    return Cost(share, kept, _kv_bytes(text, length), flops)


def _kv_bytes(text: Any, length: int) -> int:
    """Keys and values of a prompt in every layer, two bytes each."""
    return int(2 * 2 * text.num_hidden_layers * text.num_key_value_heads * _head(text) * length)


def _head(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _write(reader: HFReader, prompt: Any) -> tuple[Stage, Stage]:
    """To the first token, and each of the tokens after it."""
    steps = reader.language.write([prompt], 4)
    first = _stage(lambda: next(steps))
    count = 0

    def rest() -> None:
        nonlocal count
        count = sum(1 for _ in steps)

    later = _stage(rest)
    return first, Stage(later.ms / max(1, count), later.peak_bytes)


def _stage(call: Callable[[], object]) -> Stage:
    _peak_anew()
    start = time.perf_counter()
    call()
    return Stage(1e3 * (time.perf_counter() - start), peak_bytes())


def _middle(stages: Sequence[Stage]) -> Stage:
    return Stage(statistics.median(one.ms for one in stages), max(one.peak_bytes for one in stages))
