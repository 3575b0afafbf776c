"""Folders of published sets, built when a test asks for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from published_sets import BUILD


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], Path]:
    """Write the published set of a name; gives its folder."""

    def write(name: str) -> Path:
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        BUILD[name](folder)
        return folder

    return write


@pytest.fixture
def built() -> frozenset[str]:
    """Names of the sets that can be built."""
    return frozenset(BUILD)
