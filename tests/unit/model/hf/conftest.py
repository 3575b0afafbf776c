"""Tiny random models of every family, made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from sparsight.config import ModelConfig
from sparsight.model.hf.families import family_of
from sparsight.model.hf.load import load_model
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.tiny import save_tiny, tiny
from sparsight.model.hf.vision import Pace

Make = Callable[..., HFReader]


@pytest.fixture(scope="session")
def reader_of() -> Make:
    """reader_of(family, tiles): in memory, float32; the same one every time: do not change it."""

    @cache
    def make(family: str, tiles: int = 1) -> HFReader:
        model, processor = tiny(family)
        pace = Pace(tokens=64, tiles=tiles)
        return HFReader(model, processor, family_of(family), "0" * 64, name=family, pace=pace, reasoning=12)

    return make


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder_of(family): as a hospital would bring it; the same one every time."""
    base = tmp_path_factory.mktemp("models")

    @cache
    def make(family: str) -> Path:
        return save_tiny(family, base / family)

    return make


@pytest.fixture
def load(folder_of: Callable[[str], Path]) -> Make:
    """load(family, **settings): from its folder, a new one every time."""

    def make(family: str, **settings: object) -> HFReader:
        return load_model(
            folder_of(family),
            ModelConfig.model_validate({"device": "cpu", "tokens_per_image": 64, "reasoning_tokens": 12, **settings}),
        )

    return make
