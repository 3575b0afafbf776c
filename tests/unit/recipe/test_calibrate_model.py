"""A model that says more than it knows is found out, and what mends it is measured on other patients."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from one_token import SeesOneToken, cases
from sparsight.cli.main import app
from sparsight.config import ModelConfig
from sparsight.errors import DataError
from sparsight.model import GridSelector, load_configured
from sparsight.model.calibration import platt
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.tiny import save_tiny
from sparsight.recipe.calibrate import calibrate_model
from sparsight.types import Answer, Case, Question, Selection, TokenGrid

TRUE = (0.4, -0.3)


class Boasts(SeesOneToken):
    """Right as often as platt(p, *TRUE), and says p."""

    calibration = (0.7, 0.1)  # of before; it has to come back

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def read(self, question: Question, grid: TokenGrid, selection: Selection, *, on_token: Any = None) -> Answer:
        self.seen.append(self.calibration)
        rng = np.random.default_rng(len(self.seen))
        p = float(rng.uniform(0.5, 0.99))
        right = rng.random() < platt(p, *TRUE)
        bright = grid.features.max() > 0.5
        return Answer("yes" if bool(bright) == right else "no", "", p)


def test_slope_and_offset_are_found_and_help_on_other_groups() -> None:
    reader = Boasts()
    found = calibrate_model(reader, GridSelector(), cases(1200), 0.2, seed=1)  # type: ignore[arg-type]  # a stand-in
    assert set(reader.seen) == {(1.0, 0.0)}
    assert reader.calibration == (0.7, 0.1)
    assert (found.fitted_on, found.measured_on) == (600, 600)
    assert found.ece_before > 0.15
    assert found.ece_after < 0.5 * found.ece_before
    assert found.brier_gain_ci[0] > 0


def test_groups_are_never_on_both_sides() -> None:
    asked = [replace(case, group=f"g{n % 3}") for n, case in enumerate(cases(90))]
    found = calibrate_model(Boasts(), GridSelector(), asked, 0.2)  # type: ignore[arg-type]  # a stand-in
    assert (found.fitted_on, found.measured_on) == (60, 30)


def test_one_patient_is_not_enough() -> None:
    asked: list[Case] = [replace(case, group="one") for case in cases(20)]
    with pytest.raises(DataError, match="1 group"):
        calibrate_model(Boasts(), GridSelector(), asked, 0.2)  # type: ignore[arg-type]  # a stand-in


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tiny model's file, and questions of which it answers some right, for they have other answers."""
    weights = save_tiny("llava", tmp_path / "llava")
    rows = []
    for i in range(8):
        Image.fromarray(pattern(1, 60, 60, (0, 5 * i, 20), 16).voxels[0].astype(np.uint8)).save(tmp_path / f"{i}.png")
        row = {"id": str(i), "image": f"{i}.png", "question": "Is there a spot?", "answer": ("yes", "no")[i // 2 % 2]}
        rows.append(json.dumps(row | {"answer_type": "yesno", "split": "val"}))
    (tmp_path / "data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    file = tmp_path / "own.yaml"
    settings = {"weights": weights.name, "device": "cpu", "reasoning_tokens": 4}
    file.write_text(f"# ours\n{yaml.safe_dump(settings)}confidence_slope: 9.5\n", encoding="utf-8")
    return file


def test_the_command_writes_what_it_found_into_the_file_and_the_reader_takes_it(own: Path) -> None:
    common = ["--home", str(own.parent / "home"), "--reader"]
    run = CliRunner().invoke(
        app, [*common, str(own), "calibrate", "--data", str(own.parent), "--write", "--json"], catch_exceptions=False
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    text = own.read_text(encoding="utf-8")
    assert text.startswith("# ours\n")
    assert "9.5" not in text
    config = ModelConfig.read(own)
    assert config.confidence_slope == found["settings"]["confidence_slope"] == pytest.approx(found["slope"], abs=1e-4)
    assert load_configured(config).calibration == (config.confidence_slope, config.confidence_offset)


def test_who_cannot_be_calibrated_is_refused(own: Path, reader_folder: Path) -> None:
    common = ["--home", str(own.parent / "home"), "--reader"]
    for reader, more in ((str(reader_folder), []), (str(own.parent / "llava"), ["--write"])):
        run = CliRunner().invoke(app, [*common, reader, "calibrate", "--data", str(own.parent), *more])
        assert run.exit_code == 1, run.output
        assert run.exception is not None
