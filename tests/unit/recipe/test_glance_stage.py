"""The first look learns what the encoder would say, and from nothing else."""

from pathlib import Path

import numpy as np
import torch

from sparsight.model.nano.encoder import LocalEncoder
from sparsight.model.nano.glance import Glance, coarsest
from sparsight.recipe import sources
from sparsight.recipe.glance_stage import fit_glance
from sparsight.recipe.pool import Pool


def say(encoder: LocalEncoder, glance: Glance, pool: Pool) -> float:
    """Correlation of what both say, over all places of a pool's images."""
    pixels = torch.stack([pool.image(i)[0] for i in range(len(pool.pixels))])
    with torch.no_grad():
        wanted = coarsest(encoder.odds(encoder(pixels), 2)).flatten()
        said = glance.eval()(pixels).flatten()
    return float(np.corrcoef(wanted, said)[0, 1])


def test_it_says_of_images_it_has_not_seen_what_the_encoder_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = LocalEncoder(16, 2).eval()
    with torch.no_grad():
        encoder.logits.weight.mul_(8)
    train, test = (sources.easy("train", first, n, 0, lambda *_: None) for first, n in ((0, 24), (100, 8)))
    train.encode(encoder)
    torch.manual_seed(1)
    glance = Glance(2, 16)
    before = say(encoder, glance, test)
    fit_glance(
        glance, encoder, [train], steps=60, seed=0, run="r", checkpoint=tmp_path / "g.safetensors",
        on_step=lambda *_: None,
    )  # fmt: skip
    after = say(encoder, glance, test)
    assert after > 0.6 > before
