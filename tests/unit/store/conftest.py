"""Small but complete nouns for the tests of the store."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from sparsight.store import PolicyRegistry, Store
from sparsight.types import Answer, Episode, Evidence, Feedback, Mark, Question, Region, Reward, Selection

NOON = datetime(2025, 3, 4, 12, 0, 0, 123456, UTC)


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    def make(episode_id: str = "e1", study: str = "study-1", text: str = "Where is the nodule?") -> Episode:
        region = Region(((0.0, 1.0, 2.0), (3.0, 4.0, 5.5)), ((0, 0, 0), (4, 4, 1)), 1.0, "1.2.3", 0)
        return Episode(
            id=episode_id,
            created=NOON,
            study=study,
            series_uid="1.2.3.4",
            volume_sha256="a" * 64,
            question=Question(text, "choice", ("left", "right"), ((0.0, 0.0, 0.0), (9.0, 9.0, 9.0))),
            selection=Selection(np.array([1, 5]), np.linspace(-1, 1, 8, dtype=np.float32), -2.5, "sampled", "p1", 7),
            answer=Answer("left", "it is on the left", 0.75, choice=0, timings_ms={"prefill": 12.5}),
            evidence=Evidence((region,), 2, 8, 0.4, True),
            grid_shape=(1, 2, 4),
            reader="nano-12345678",
            policy="p0000-12345678",
            policy_sha256="b" * 64,
            config_sha256="c" * 64,
            timings_ms={"total": 100.25},
        )

    return make


@pytest.fixture
def make_feedback() -> Callable[..., Feedback]:
    def make(key: str = "k1", episode: str = "e1", answer: str = "right", *, marked: bool = True) -> Feedback:
        mask = np.zeros((2, 4, 4), np.bool_)
        mask[1, 2:, 1:3] = True
        marks = (Mark("relevant", mask=mask, mask_ijk_to_lps=np.diag([0.5, 0.5, 2.0, 1.0])),) if marked else ()
        return Feedback(key, episode, "reviewer-1", "amend", NOON, answer, marks, "see slice 2")

    return make


@pytest.fixture
def reward() -> Reward:
    return Reward(-0.25, {"answer": 0.0, "grounding": None}, "1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db", tmp_path, busy_timeout_s=0.5) as opened:
        yield opened


@pytest.fixture
def registry(tmp_path: Path) -> PolicyRegistry:
    return PolicyRegistry(tmp_path, busy_timeout_s=0.5)
