"""Can this machine serve that vision-language model, and does it read few tokens as it would read them among all?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsight.config import ModelConfig
from sparsight.doctor import Finding

if TYPE_CHECKING:
    from sparsight.model.hf.costs import Stage

_GIB = 2.0**30
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelReport:
    """Findings for people, and every figure for programs."""

    findings: tuple[Finding, ...]
    figures: dict[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that keeps it from working."""
        return all(finding.ok for finding in self.findings)


def examine_model(config: ModelConfig, tell: Tell = lambda stage, done, total: None) -> ModelReport:
    """Load a model, prove it on its own weights, and say what it costs here.

    Raises WeightsError, ConfigError, MemoryFullError.
    """
    from sparsight.model import load_configured, model_folder
    from sparsight.model.hf import costs
    from sparsight.model.hf.load import LADDER, check_folder, device_of, pace_of, shape_of
    from sparsight.model.hf.proofs import MOST, prove
    from sparsight.model.hf.vision import memory_full

    folder = model_folder(config)
    check_folder(folder, config)
    computed = costs.compute(shape_of(folder), pace_of(config), config.max_tokens, config.quantization_keeps)
    free = free_bytes(device_of(config))
    needed = computed.memory_bytes(config.quantization)
    smaller = [q for q in LADDER[LADDER.index(config.quantization) + 1 :] if computed.memory_bytes(q) <= free]
    advice = f"quantization: {smaller[0]}" if smaller else "a smaller model, a lower max_tokens, or a larger GPU"
    fits = Finding(
        "memory",
        needed <= free,
        f"about {needed / _GIB:.1f} GiB needed as {config.quantization} (computed), {free / _GIB:.1f} free",
        "" if needed <= free else advice,
    )
    if not fits.ok:
        return ModelReport((fits,), {"computed": _plain(computed), "free_bytes": free})
    tell("load", 0, 3)
    reader = load_configured(config)
    with memory_full():
        tell("measure", 1, 3)
        before = costs.peak_bytes()
        measured = costs.measure(reader)  # first: a process keeps what the proofs' batches took
        tell("prove", 2, 3)  # the longest part
        proofs = prove(reader, lambda proof: tell(f"proven: {proof.name}", 2, 3))
    sides = [reader.vision.long_side(single, reader.vision.pace) for single in (True, False)]
    findings = [
        Finding(
            "model",
            True,
            f"{reader.id}, {computed.parameters / 1e9:.2f} billion parameters, {computed.tokens} tokens a picture, "
            f"which is seen at {sides[0]} pixels along its longer side, a volume's slices at {sides[1]}",
        ),
        fits,
        *(
            Finding(
                p.name,
                p.passed,
                f"{p.worst:.2g} of at most {p.limit:.2g} {p.unit}",
                _broken(p.passed, rounds="logits" in p.unit and p.limit >= MOST),
            )
            for p in proofs
        ),
    ]
    for row, cost in zip(measured, computed.costs, strict=True):
        findings.append(
            Finding(
                f"{row.share:.0%} of the tokens",
                True,
                f"{row.kept} kept: {_said('encode', row.encode)}, {_said('prefill', row.prefill)}, "
                f"{_said('then', row.decode)} a token; {cost.kv_bytes / 2**20:.0f} MiB of keys and values, "
                f"{cost.prefill_flops / 1e9:.3g} GFLOP",
            )
        )
    figures = {
        "reader": reader.id,
        "computed": _plain(computed),
        "measured": [asdict(row) | {"first_token_ms": row.first_token_ms} for row in measured],
        "proofs": [asdict(proof) | {"passed": proof.passed} for proof in proofs],
        "free_bytes": free,
        "peak_bytes": max(before, *(s.peak_bytes for row in measured for s in (row.encode, row.prefill, row.decode))),
    }
    return ModelReport(tuple(findings), figures)


def examine_tiny(tell: Tell = lambda stage, done, total: None) -> ModelReport:
    """Every family on a tiny random model, saved to a folder and loaded from it as a real one would be."""
    from sparsight.model.hf.load import load_model
    from sparsight.model.hf.proofs import prove
    from sparsight.model.hf.tiny import families, save_tiny

    findings, figures = [], {}
    names = families()
    for done, family in enumerate(names):
        tell(family, done, len(names))
        with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
            save_tiny(family, Path(folder))
            reader = load_model(
                Path(folder),
                ModelConfig(name="tiny", family=family, dtype="float32", device="cpu", tokens_per_image=64, tiles=2),
            )
            proofs = prove(reader)
        failed = [proof.name for proof in proofs if not proof.passed]
        found = f"{len(proofs) - len(failed)} of {len(proofs)} proofs" + (
            f"; not: {', '.join(failed)}" if failed else ""
        )
        findings.append(Finding(family, not failed, found, _broken(not failed)))
        figures[family] = [asdict(proof) | {"passed": proof.passed} for proof in proofs]
    return ModelReport(tuple(findings), {"proofs": figures})


def free_bytes(device: str) -> int:
    """Memory that a model could take now: of the GPU where it would go there, else of this machine."""
    import torch

    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return pages
    told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return told.get("MemAvailable", pages)


def _said(what: str, stage: Stage) -> str:
    return f"{what} {stage.ms:.0f} ms at {stage.peak_bytes / _GIB:.2f} GiB"


def _broken(passed: bool, *, rounds: bool = False) -> str:
    if passed:
        return ""
    if rounds:
        return "do not serve it unless it passes in float32 and without quantization: rounding may hide a mistake here"
    return "do not serve it: its tokens are not where they are said to be; check the versions, tell us"


def _plain(computed: Any) -> dict[str, Any]:
    return asdict(computed) | {"memory_bytes": {q: computed.memory_bytes(q) for q in computed.weights_bytes}}
