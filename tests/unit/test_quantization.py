"""What quantization costs is measured on the same tokens, and the page says what was found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from sparsight.bench import quantization
from sparsight.bench.quantization import Asked, card, measure
from sparsight.cli.main import app
from sparsight.config import ModelConfig
from sparsight.errors import DataError, WeightsError
from sparsight.model.hf import load as loading
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.tiny import save_tiny
from sparsight.types import Question

YES_NO = Question("Is there a bright spot?", "yes_no", ("yes", "no"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = save_tiny("llava", tmp_path_factory.mktemp("model"))
    return ModelConfig(weights=folder, name="own", device="cpu", dtype="float32")


def _asked(n: int = 6) -> list[Asked]:
    return [Asked(pattern(1, 60, 60, (0, 5 * i, 20), 16), YES_NO, ("yes", "no")[i % 2], f"p{i // 2}") for i in range(n)]


def test_a_model_is_measured_against_itself(config: ModelConfig) -> None:
    report = measure(config, _asked(), of="patches", seed=0, on_step=lambda *_: None)
    by = {(row["quantization"], row["share"]): row for row in report["rows"]}
    assert set(by) == {(q, s) for q in ("none", "int8", "nf4") for s in (1.0, 0.25, 0.1)}
    for share in (1.0, 0.25, 0.1):
        assert by["none", share]["kl"]["mean"] == pytest.approx(0, abs=1e-9)
        assert by["none", share]["agreement"]["mean"] == 1
        assert by["none", share]["ratio"]["mean"] == 1
        assert 0 < by["int8", share]["kl"]["mean"] < by["nf4", share]["kl"]["mean"]
        assert 0 <= by["nf4", share]["accuracy"]["mean"] <= 1
    assert (report["of"], report["groups"]) == ("patches", 3)
    assert len({*report["sha256"].values()}) == 3
    page = card(report)
    assert f"{by['nf4', 0.25]['kl']['mean']:.3f}" in page
    assert page.count("\n| nf4 |") == 3


def test_open_questions_count_for_the_distribution_alone(config: ModelConfig) -> None:
    free = Question("What is it?")
    report = measure(
        config,
        [Asked(one.volume, free, "a ring", one.group) for one in _asked(4)],
        of="patches",
        seed=0,
        on_step=lambda *_: None,
    )
    row = report["rows"][-1]
    assert row["n"] == 4
    assert row["n_closed"] == 0
    assert np.isnan(row["accuracy"]["mean"])
    assert "| - |" in card(report)


def test_a_rung_that_does_not_fit_is_not_measured_under_its_name(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = loading._model

    def full(folder: Path, config: ModelConfig, rung: loading.Quantization) -> object:
        if rung == "none":
            raise torch.OutOfMemoryError("no room")
        return own(folder, config, rung)

    monkeypatch.setattr(loading, "_model", full)
    with pytest.raises(WeightsError, match="does not fit"):
        measure(config, _asked(2), of="patches", seed=0, on_step=lambda *_: None)


def test_no_questions_are_refused(config: ModelConfig) -> None:
    with pytest.raises(DataError, match="no questions"):
        measure(config, [], of="patches", seed=0, on_step=lambda *_: None)


def test_the_command_writes_figures_and_a_page(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    rows = []
    for i in range(4):
        pixels = pattern(1, 60, 60, (0, 5 * i, 20), 16).voxels[0]
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / f"{i}.png")
        answer = ("yes", "no")[i % 2]
        rows.append(
            f'{{"id": "{i}", "image": "{i}.png", "question": "Is there a spot?", "answer": "{answer}", '
            f'"answer_type": "yesno", "split": "val"}}'
        )
    (tmp_path / "data" / "data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"weights": str(config.weights), "device": "cpu"}), encoding="utf-8")
    monkeypatch.setattr(quantization, "SHARES", (0.25,))
    out = tmp_path / "own.json"
    run = CliRunner().invoke(
        app, ["bench", "quantization", "--reader", str(own), "--data", str(tmp_path / "data"), "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    assert out.is_file()
    assert "4 questions (rows of val) of 4 groups" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_without_a_folder_simulated_questions_are_asked(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"weights": str(config.weights), "device": "cpu"}), encoding="utf-8")
    monkeypatch.setattr(quantization, "SHARES", (0.25,))
    run = CliRunner().invoke(app, ["bench", "quantization", "--reader", str(own), "--limit", "5", "--json"])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert (report["of"], report["n"], report["groups"]) == ("simulated test scenes", 5, 2)
    assert {row["n_closed"] for row in report["rows"]} == {5}
