"""What the command line is tried on."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsight.cli import main as program


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run_at(
    tmp_path: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Call `sparsight ARGS --json` in this process, at a site: (exit code, parsed stdout)."""

    def call(site: str, *args: str, reader: Path = reader_folder) -> tuple[int, dict[str, Any]]:
        common = ["--home", str(tmp_path / site), "--reader", str(reader)]
        monkeypatch.setattr(sys, "argv", ["sparsight", *common, *args, "--json"])
        with pytest.raises(SystemExit) as left:
            program()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(left.value.code or 0), json.loads(said.out)

    return call
