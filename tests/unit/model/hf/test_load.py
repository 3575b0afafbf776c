"""A model's folder: whole and of the right kind, or a clear refusal; quantized without a trace in the tokens."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsight.config import ModelConfig
from sparsight.errors import ConfigError, WeightsError
from sparsight.model import GridSelector, PolicySelector, ScoreRequest, base_policy, load_policy, load_reader
from sparsight.model.hf import costs
from sparsight.model.hf import load as loading
from sparsight.model.hf.adapter import Adapter
from sparsight.model.hf.load import check_folder, hash_folder, load_model, untouched
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.tiny import tiny
from sparsight.types import Question

from .conftest import Make

Folder = Callable[[str], Path]
YES_NO = Question("Is there a mass?", "yes_no", ("yes", "no"))


@pytest.fixture
def copy(folder_of: Folder, tmp_path: Path) -> Path:
    """A folder of one's own to spoil."""
    return shutil.copytree(folder_of("llava"), tmp_path / "model")


def test_a_folder_is_a_reader(folder_of: Folder) -> None:
    reader = load_reader(folder_of("llava"))
    assert reader.id.startswith("llava-")
    assert len(reader.sha256) == 64
    grid = reader.encode(pattern(1, 60, 80))
    policy = load_policy(folder_of("llava"))
    assert policy.untrained
    selection = PolicySelector(policy, reader).select(grid, YES_NO, 9)
    assert len(selection.keep) == 9
    assert len(set((selection.keep // grid.shape[2]).tolist())) > 3
    assert base_policy(folder_of("llava")) == base_policy(folder_of("llava"))


def test_a_configuration_names_its_weights(folder_of: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"name: own\nfamily: llava\nweights: {folder_of('llava')}\ndtype: float32\n", encoding="utf-8")
    assert load_reader(file).id.startswith("own-")
    file.write_text("name: own\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="without weights"):
        load_reader(file)
    file.write_text("wieghts: here\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="wieghts"):
        load_reader(file)
    with pytest.raises(ConfigError, match=r"no such model configuration: none\.yaml"):
        load_reader(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"an unknown reader: .*Qwen3-VL-8b;"):
        load_reader(tmp_path / "Qwen3-VL-8b")
    file.write_text("weights: ~/models/Qwen3-VL-8b\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelConfig.read(file).weights == tmp_path / "models" / "Qwen3-VL-8b"
    with pytest.raises(WeightsError, match="no such folder of weights: Qwen3-VL-8b"):
        load_reader(file)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _other_type(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(told | {"model_type": "bert"}), encoding="utf-8")


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if "down_proj" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _odd_size(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")


def _holding(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _sharded(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "no such folder"),
        (_without("config.json"), "config.json"),
        (_without("tokenizer.json"), "tokenizer"),
        (_without("model.safetensors"), "without weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "model_type"),
        (_other_type, "bert"),
        (_cut, "broken off"),
        (_pickled, "pickle"),
        (_sharded, "1 of 2 weight files"),
        (_less, "without 1 of the model's tensors, .*down_proj"),
        (_odd_size, "cannot load"),
        (_holding("tokenizer_config.json", "[]"), "cannot load"),
        (_holding("generation_config.json", '{"eos_token_id": "x"}'), "cannot load"),
        (_holding("model.safetensors.index.json", "[]"), "cannot be read"),
        (_holding("adapter_config.json", "{}"), "adapter beside the model"),
    ],
)
def test_a_bad_folder_is_refused(copy: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(copy)
    with pytest.raises((WeightsError, ConfigError), match=says):
        load_model(copy, ModelConfig(device="cpu"))


def test_nobody_is_asked_to_run_code_of_the_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("processor_config.json", "tokenizer_config.json"):
        told = json.loads((copy / name).read_text(encoding="utf-8"))
        told |= {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}
        (copy / name).write_text(json.dumps(told), encoding="utf-8")
    (copy / "own.py").write_text("raise SystemExit", encoding="utf-8")
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(WeightsError, match="cannot load"):
        load_model(copy, ModelConfig(device="cpu"))
    assert not asked


def test_another_family_than_the_configuration_says(folder_of: Folder) -> None:
    with pytest.raises(ConfigError, match="llava"):
        check_folder(folder_of("llava"), ModelConfig(family="gemma3"))


def test_no_gpu_where_one_is_asked_for(folder_of: Folder) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="no GPU"):
        load_model(folder_of("llava"), ModelConfig(device="cuda"))


def test_a_model_without_a_chat_template_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    reader = load_model(copy, ModelConfig(device="cpu", dtype="float32"))
    with pytest.raises(ConfigError, match="chat template"):
        reader.prompt(reader.encode(pattern(1, 60, 80)), YES_NO, False)


def test_what_changes_tokens_makes_another_reader(folder_of: Folder) -> None:
    ids = {
        load_model(folder_of("llava"), ModelConfig.model_validate({"device": "cpu", **more})).id
        for more in ({}, {"dtype": "float32"}, {"slices": 3})
    }
    assert len(ids) == 3


def test_a_folder_of_any_name_gives_a_plain_id(folder_of: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder_of("llava"), tmp_path / "Own Modèl (2)")
    assert re.fullmatch("own-mod-l-2-[0-9a-f]{8}", load_reader(tmp_path / "Own Modèl (2)").id)


def test_the_hash_is_of_every_file_that_matters(copy: Path) -> None:
    first = hash_folder(copy)
    (copy / "README.md").write_text("other words", encoding="utf-8")
    assert hash_folder(copy) == first
    (copy / "chat_template.jinja").write_text("other turns", encoding="utf-8")
    assert hash_folder(copy) != first


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl", "llava"])
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantization_leaves_every_token_as_it_was(load: Make, family: str, quantization: str) -> None:
    plain, small = load(family), load(family, quantization=quantization)
    study = pattern(1, 60, 80)
    assert torch.equal(plain.encode(study).features, small.encode(study).features)
    kinds = {type(part).__name__ for part in small.model.get_decoder().modules()}
    assert {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[quantization] in kinds
    assert plain.id != small.id  # another model: what was learned for one is not the other's
    grid = small.encode(study)
    request = ScoreRequest(grid, YES_NO, "yes", torch.arange(0, grid.n, 5)[None])
    assert float((plain.score([request])[0] - small.score([request])[0]).abs()) < 1.0


def test_every_lora_matrix_gets_a_gradient_after_an_answer(load: Make) -> None:
    """4-bit layers that repack themselves in the first pass without gradients cut all of them off later."""
    reader = load("llava", quantization="nf4")
    grid = reader.encode(pattern(1, 60, 80))
    adapter = Adapter(reader.model, rank=4)
    reader.score([ScoreRequest(grid, YES_NO, "yes", torch.arange(5)[None])])
    prompt = reader.prompt(grid, YES_NO, False).keep(torch.arange(5), reader.language.image)
    reader.language.likely([prompt], [reader.language.ids("yes")]).sum().backward()
    assert len(adapter.names) == 2 * 7 * 2  # seven layers of two blocks, two matrices each
    second = [matrix for name, matrix in zip(adapter.names, adapter.matrices, strict=True) if ".lora_B" in name]
    assert len(second) == 7 * 2  # zero, as training begins: the other half has no gradient by right
    assert not any(bool(matrix.any()) for matrix in second)
    assert all(matrix.grad is not None and bool(matrix.grad.any()) for matrix in second)


def test_no_layer_is_left_that_would_repack_itself(load: Make) -> None:
    """On any CPU, also one where the layers would not: there the test above could not fail."""
    parts = [part for part in load("llava", quantization="nf4").model.modules() if type(part).__name__ == "Linear4bit"]
    assert len(parts) == 7 * 2
    assert not any(part.support_avx512bf16_for_cpu for part in parts)


def test_layers_that_nf4_cannot_hold_stay_as_they_are() -> None:
    """Inputs that are no multiple of 64, in the language stream, too."""
    model, _ = tiny("llava")
    layer = model.get_decoder().layers[0].mlp
    layer.down_proj = torch.nn.Linear(96, 64)
    left = untouched(model)
    assert [name for name in left if "language_model" in name] == ["model.language_model.layers.0.mlp.down_proj"]
    assert any("vision_tower" in name for name in left)
    assert "lm_head" in left


@pytest.mark.parametrize(("family", "rung"), [("llava", "nf4"), ("gemma3", "int8")])
def test_layers_that_a_file_keeps_are_not_quantized(load: Make, family: str, rung: str) -> None:
    """Keys and values here; it is another reader, takes more memory, and LoRA goes over both kinds of layers."""
    all_of_it = load(family, quantization=rung)
    reader = load(family, quantization=rung, quantization_keeps=["v_proj", "k_proj"])
    kinds = {name.rpartition(".")[2]: type(part).__name__ for name, part in reader.model.named_modules()}
    assert {kinds["k_proj"], kinds["v_proj"]} == {"Linear"}
    assert "bit" in kinds["q_proj"]
    assert reader.sha256 != all_of_it.sha256
    assert load(family, quantization=rung, quantization_keeps=["k_proj", "v_proj"]).sha256 == reader.sha256
    plain = load(family).sha256
    assert load(family, quantization_keeps=["k_proj", "v_proj"]).sha256 == plain  # nothing is quantized
    more, less = (costs.compute(reader.model.config, keeps=keeps) for keeps in (("k_proj", "v_proj"), ()))
    assert more.weights_bytes["none"] == less.weights_bytes["none"]
    assert more.weights_bytes[rung] > less.weights_bytes[rung]
    grid = reader.encode(pattern(1, 60, 80))
    asked = [ScoreRequest(grid, YES_NO, "yes", torch.arange(5)[None])]
    assert torch.isfinite(reader.score(asked)[0]).all()
    with pytest.raises(ConfigError, match="quantization_keeps: key"):
        load(family, quantization=rung, quantization_keeps=["key"])


def test_an_int8_layer_says_nothing_at_every_call(load: Make, caplog: pytest.LogCaptureFixture) -> None:
    reader = load("llava", quantization="int8")
    grid = reader.encode(pattern(1, 60, 80))
    with caplog.at_level(logging.WARNING):
        reader.score([ScoreRequest(grid, YES_NO, "yes", torch.arange(5)[None])])
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_nothing_asks_the_hub_and_nothing_is_said_of_it() -> None:
    """In a process of its own, where nobody but the package has set it, and bitsandbytes is imported anew."""
    code = "import sparsight.model.hf.load, bitsandbytes, huggingface_hub as h; print(h.constants.HF_HUB_OFFLINE)"
    own = {name: value for name, value in os.environ.items() if name not in {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=own)
    assert run.stdout.strip() == "True"
    assert "kernels" not in run.stderr


def test_out_of_memory_goes_down_the_ladder(folder_of: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    own = loading._model

    def full(folder: Path, config: ModelConfig, rung: loading.Quantization) -> object:
        tried.append(rung)
        if rung != "nf4":
            raise torch.OutOfMemoryError("no room")
        return own(folder, config, rung)

    monkeypatch.setattr(loading, "_model", full)
    reader = load_model(folder_of("llava"), ModelConfig(device="cpu"))
    assert tried == ["none", "int8", "nf4"]
    assert reader.id.startswith("llava-")
    grid = reader.encode(pattern(1, 60, 80))
    answer = reader.read(YES_NO, grid, GridSelector().select(grid, YES_NO, 5))
    assert answer.notes[0] == "loaded in nf4 instead of none: the device's memory held no more"
    with pytest.raises(WeightsError, match="does not fit"):
        load_model(folder_of("llava"), ModelConfig(device="cpu"), smaller=False)
    monkeypatch.setattr(loading, "_model", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(WeightsError, match="does not fit"):
        load_model(folder_of("llava"), ModelConfig(device="cpu"))
