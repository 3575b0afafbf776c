"""Noise to ask an untrained reader about, and what a reviewer says of its answers."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from sparsight.service import Service, parse_question
from sparsight.types import Episode, Feedback, ImageVolume, Verdict

QUESTION = parse_question("Is there a nodule?")


def make_picture(seed: int, height: int = 96, width: int = 120) -> ImageVolume:
    """Pixels of half a millimetre."""
    voxels = np.random.default_rng(seed).uniform(0, 200, (1, height, width)).astype(np.float32)
    return ImageVolume(voxels, np.diag([0.5, 0.5, 1, 1]), "DX", (127.5, 255.0))


def feedback(episode: Episode, key: str = "k", verdict: Verdict = "amend", **more: Any) -> Feedback:
    return Feedback(key, episode.id, "reader-1", verdict, datetime.now(UTC), **more)


def lessons(service: Service, n: int) -> None:
    """So many answers, each corrected."""
    for seed in range(n):
        episode = service.ask(make_picture(seed), QUESTION).episode
        service.correct(feedback(episode, f"k{seed}", answer="yes" if seed % 2 else "no"))
