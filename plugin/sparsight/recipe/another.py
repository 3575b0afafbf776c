"""Another policy for a reader that is there: the recipe's policy stage alone, with another seed.

What comes of one training may be luck: `sparsight bench evidence --policy` measures several in the same run.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sparsight.errors import ConfigError, InputError
from sparsight.model import load_nano
from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import TokenPolicy
from sparsight.recipe import sources
from sparsight.recipe.policy_stage import draw_examples, train_head, train_selector
from sparsight.recipe.sizes import PRICED, SIZES
from sparsight.rl.ranks import ALONE, Ranks
from sparsight.rl.trainer import Step


def train_another(
    reader_at: str | Path,
    out: Path,
    data: Path | None = None,
    *,
    seed: int = 1,
    size: str = "full",
    threads: int = 1,
    on_progress: sources.Tell | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Write `policy-SEED.safetensors` and, before it was reinforced, `warm-SEED.safetensors` to `out`.

    The scenes are those of the seed, numbered as the recipe numbers its policy's. ranks: processes that reinforce it
    together; this is the first of them. Returns what was made. Raises
    DataError for a fault in the data folder before anything is drawn; ConfigError, InputError.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size[:20]!r}", expected=", ".join(SIZES), todo="choose one of these")
    sources.check_data(data)
    torch.set_num_threads(threads)
    reader, tell, sizes = load_nano(reader_at), on_progress or (lambda *_: None), SIZES[size]
    if not isinstance(reader, NanoReader):
        raise InputError(f"reader {reader.id}", expected="a nano reader", todo="name one with --reader")
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    real = sources.real(data, "train", tell)
    real.encode(reader.encoder)
    examples = draw_examples(reader, real, sizes, seed, data, tell)
    rewards: list[float] = []

    def on_step(step: Step) -> None:
        rewards.append(step.reward)
        tell("policy", step.step, step.steps)

    policy = train_selector(
        reader,
        examples,
        warm=sizes.warm_steps,
        steps=sizes.policy_steps,
        batch=sizes.policy_batch,
        seed=seed,
        checkpoint=out / f"policy-{seed}-running.safetensors",
        on_step=on_step,
        on_warm=lambda warm: _save(warm, out / f"warm-{seed}.safetensors", reader, seed, "warm"),
        ranks=ranks,
    )
    budget = train_head(policy, reader, examples, PRICED * sizes.policy_steps, seed)
    _save(policy, out / f"policy-{seed}.safetensors", reader, seed, "reinforced")
    return {
        "reader": reader.id,
        "seed": seed,
        "data": bool(data),
        "size": asdict(sizes),
        "examples": len(examples),
        "reward": {"first": rewards[0], "last": rewards[-1]},
        "budget": asdict(budget),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _save(policy: TokenPolicy, path: Path, reader: NanoReader, seed: int, stage: str) -> None:
    """The file says whose it is: the benchmark asks."""
    made = {"reader": reader.sha256, "seed": str(seed), "stage": stage}
    save_file({name: value.contiguous() for name, value in policy.state_dict().items()}, path, made)
