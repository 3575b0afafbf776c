"""The first look learns to say what the encoder would say, on the images that the encoder has just been run on.

No answer, mask or box is read here: the encoder, which answers taught, is the only teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsight.model.nano.encoder import LocalEncoder
from sparsight.model.nano.glance import Glance, coarsest
from sparsight.recipe.fit import fit
from sparsight.recipe.pool import Pool

_BATCH = 64  # slices
_SOFTENED = 4.0  # nats: log-odds are divided by it before they are compared, else only the surest count


def fit_glance(
    glance: Glance,
    encoder: LocalEncoder,
    pools: Sequence[Pool],
    *,
    steps: int,
    seed: int,
    run: str,
    checkpoint: Path,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Train in place on encoded pools: cross-entropy with what the encoder takes each place for."""
    findings = glance.local.logits.out_features
    by_size: dict[tuple[int, int], list[tuple[Pool, int, int]]] = {}
    for pool in pools:
        for i, image in enumerate(pool.pixels):
            by_size.setdefault(image.shape[1:], []).extend((pool, i, k) for k in range(len(image)))
    sizes = sorted(by_size)
    rates = np.array([len(by_size[size]) for size in sizes], float)

    def loss_of(_: int, rng: np.random.Generator) -> Tensor:
        members = by_size[sizes[int(rng.choice(len(sizes), p=rates / rates.sum()))]]
        drawn = [members[int(i)] for i in rng.integers(len(members), size=_BATCH)]
        pixels = torch.stack([torch.from_numpy(pool.pixels[i][k]) for pool, i, k in drawn]).float() / 255
        with torch.no_grad():
            odds = torch.stack([_odds(pool, i, k, encoder, findings) for pool, i, k in drawn])
        said = glance(pixels) / _SOFTENED
        return functional.binary_cross_entropy_with_logits(said, (coarsest(odds) / _SOFTENED).sigmoid())

    fit(
        glance,
        loss_of,
        steps=steps,
        lr=3e-3,
        warm=max(1, steps // 20),
        seed=seed,
        run=run,
        checkpoint=checkpoint,
        on_step=on_step,
        muon=0.02,
        hidden=glance.local,
    )


def _odds(pool: Pool, image: int, k: int, encoder: LocalEncoder, findings: int) -> Tensor:
    """The encoder's log-odds of slice k: (gh, gw, findings)."""
    gd, gh, gw = pool.geometry[image].shape
    features = pool.features[image].reshape(gd, gh, gw, -1)[k].float()
    return encoder.odds(features, findings)
