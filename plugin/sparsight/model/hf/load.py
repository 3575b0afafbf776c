"""Read a model from its folder: checked first, safetensors only, quantized where its config says so.

The vision tower, the connector and the output layer stay as they are: quantized, they would change every token before
the policy sees it. Only the language stream's own layers are made small.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from torch import nn

from sparsight.config import ModelConfig
from sparsight.errors import ConfigError, SparsightError, WeightsError
from sparsight.model.hf.families import FAMILIES, Family, family_of
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.vision import Pace, give_back
from sparsight.model.policy import TokenPolicy

Quantization = Literal["none", "int8", "nf4"]
LADDER: tuple[Quantization, ...] = ("none", "int8", "nf4")  # each takes less memory than the one before
_INDEX = "model.safetensors.index.json"
_PICKLES = "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt"
_NEEDED = "config.json", "preprocessor_config.json|processor_config.json", "tokenizer.json|tokenizer.model"
_BLOCK = 2**24  # bytes hashed at a time
_AS_IT_LIES: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # and nobody is asked about code
_SAID = 160  # characters of another library's message that are logged
_LOG = logging.getLogger(__name__)


def load_model(folder: Path, config: ModelConfig, *, smaller: bool = True) -> HFReader:
    """Load a reader. Raises WeightsError (files), ConfigError (another family, a device that is not there).

    Where the GPU's memory does not hold it, the next smaller quantization is tried if `smaller`; the log and every
    answer say so. It is another reader then: what was learned for the larger one is not used.
    """
    family = check_folder(folder, config)
    files = hash_folder(folder)
    processor = _loaded(lambda: transformers.AutoProcessor.from_pretrained(folder, **_AS_IT_LIES))
    rungs = LADDER[LADDER.index(config.quantization) :] if smaller else (config.quantization,)
    for rung in rungs:
        try:
            model = _loaded(lambda: _model(folder, config, rung))  # noqa: B023 - called at once
            break
        except torch.OutOfMemoryError as error:
            give_back(error)
            if rung == rungs[-1]:
                raise WeightsError(
                    "a model that does not fit the device's memory",
                    expected=f"room for its weights in {rung}",
                    todo="use a smaller model or a larger GPU; sparsight doctor says how much it needs",
                ) from error
            _LOG.warning("out of memory: the model is loaded in the next smaller quantization")
    less = f"loaded in {rung} instead of {config.quantization}: the device's memory held no more"
    reader: HFReader = _loaded(
        lambda: HFReader(
            model,
            processor,
            family,
            _sha256(files, config, rung),
            name=_name(folder, config),
            pace=pace_of(config),
            max_tokens=config.max_tokens,
            reasoning=config.reasoning_tokens,
            abstain_below=config.abstain_below,
            calibration=(config.confidence_slope, config.confidence_offset),
            notes=() if rung == config.quantization else (less,),
        )
    )
    return reader


def identify(folder: Path, config: ModelConfig) -> tuple[str, str]:
    """Name and sha256 of the reader that `load_model` makes where it fits: every file is read, none of it loaded.

    Raises WeightsError, ConfigError.
    """
    check_folder(folder, config)
    return _name(folder, config), _sha256(hash_folder(folder), config, config.quantization)


def policy_of(folder: Path, config: ModelConfig) -> bytes:
    """The file of the policy that a configuration names; a new one, the same for every model of that size, without.

    Raises WeightsError.
    """
    if config.policy is not None:
        try:
            return config.policy.read_bytes()
        except OSError as error:
            raise WeightsError(
                "no such policy", expected="the file that training wrote", todo="correct `policy`, or leave it out"
            ) from error
    check_folder(folder, config)
    text = shape_of(folder).get_text_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = TokenPolicy(text.hidden_size, 2 * text.hidden_size, normed=True)
    data: bytes = save_arrays(policy.to_arrays())
    return data


def check_folder(folder: Path, config: ModelConfig) -> Family:
    """The family of the model in a folder, whose files are all there. Raises WeightsError, ConfigError."""
    if not folder.is_dir():
        raise WeightsError(
            f"no such folder of weights: {folder.name[:80]}",
            expected="a folder with config.json",
            todo="check its path",
        )
    for names in _NEEDED:
        if not any((folder / name).is_file() for name in names.split("|")):
            raise _incomplete(f"a folder without {names.replace('|', ' or ')}")
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = str(told["model_type"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _incomplete("a config.json without a model_type") from error
    family = family_of(model_type)
    if (folder / "adapter_config.json").is_file():  # transformers would put it on, and ours would take it off again
        raise WeightsError(
            "an adapter beside the model",
            expected="one whole model",
            todo="merge it into the weights where it was trained (peft: merge_and_unload)",
        )
    if config.family is not None and config.family != model_type:
        raise ConfigError(
            f"a model of type {model_type!r}",
            expected=f"{config.family}, as its configuration says",
            todo=f"begin with configs/model/{model_type}.yaml, or check weights",
        )
    _check_tensors(folder)
    return family


def shape_of(folder: Path) -> Any:
    """The configuration of the model in a folder. Raises WeightsError."""
    return _loaded(lambda: transformers.AutoConfig.from_pretrained(folder, **_AS_IT_LIES))


def shell_of(folder: Path) -> Any:
    """The model of a folder without its weights, on torch's meta device. Raises WeightsError."""
    with torch.device("meta"):
        return _loaded(lambda: transformers.AutoModelForImageTextToText.from_config(shape_of(folder)))


def hash_folder(folder: Path) -> str:
    """One sha256 over all that decides tokens and answers: weights, configurations, tokenizer, chat template."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"} and path.is_file():
            part = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    part.update(block)
            whole.update(f"{path.name} {part.hexdigest()}\n".encode())
    return whole.hexdigest()


def _check_tensors(folder: Path) -> None:
    """Every shard there, whole, and none of it a pickle."""
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if not shards and any(any(folder.glob(pattern)) for pattern in _PICKLES):
        raise WeightsError(
            "weights that are pickled",
            expected="safetensors: a pickle runs code",
            todo="convert them where you trust them",
        )
    index = folder / _INDEX
    if index.is_file():
        try:
            wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _incomplete(f"an {_INDEX} that cannot be read") from error
        if missing := [name for name in wanted if name not in shards]:
            raise _incomplete(f"{len(missing)} of {len(wanted)} weight files missing, {str(missing[0])[:60]} first")
    elif not shards:
        raise _incomplete("a folder without weights")
    for name in shards:
        try:
            with safe_open(folder / name, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise _incomplete(f"{name[:60]} broken off or damaged") from error


def _incomplete(what: str) -> WeightsError:
    return WeightsError(what, expected="all files of the model as it was published", todo="copy the folder again")


def _loaded(make: Callable[[], Any]) -> Any:
    """What transformers makes of files that may hold anything, its errors as ours."""
    try:
        return make()
    except (torch.OutOfMemoryError, SparsightError):
        raise
    except Exception as error:
        _LOG.warning("transformers: %s", str(error)[:_SAID])  # some of its messages list all the models there are
        raise WeightsError(
            f"a model that transformers cannot load ({type(error).__name__})",
            expected=f"a model of {', '.join(sorted(FAMILIES))}, as published",
            todo="copy the folder again; if that is no help, see the log",
        ) from error


def _name(folder: Path, config: ModelConfig) -> str:
    return config.name or re.sub("[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-") or "model"


def pace_of(config: ModelConfig) -> Pace:
    """How much of a study is looked at, as a configuration says."""
    return Pace(tokens=config.tokens_per_image, tiles=config.tiles, slices=config.slices)


def _sha256(files: str, config: ModelConfig, rung: Quantization) -> str:
    """Of a reader: all that decides tokens and answers. files: `hash_folder`."""
    kept = f" {sorted(set(config.quantization_keeps))}" if rung != "none" and config.quantization_keeps else ""
    return hashlib.sha256(f"{files} {rung}{kept} {config.dtype} {pace_of(config)}".encode()).hexdigest()


def device_of(config: ModelConfig) -> str:
    """Where a model goes: this process's GPU where there is one. Raises ConfigError for one that is not there."""
    gpus = torch.cuda.device_count()
    device = config.device or (f"cuda:{torch.cuda.current_device()}" if gpus else "cpu")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= gpus:
        there = f"a GPU below {gpus}" if gpus else "cpu: there is no GPU here"
        raise ConfigError(f"device {device}", expected=there, todo="leave device out")
    return device


def _model(folder: Path, config: ModelConfig, rung: Quantization) -> Any:
    given: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "use_safetensors": True, **_AS_IT_LIES}
    if rung != "none":
        given["quantization_config"] = _quantized(folder, rung, config.quantization_keeps)
    model, told = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, device_map={"": device_of(config)}, attn_implementation="sdpa", output_loading_info=True, **given
    )
    if missing := sorted(told["missing_keys"]):  # transformers would go on with random numbers
        raise _incomplete(f"weights without {len(missing)} of the model's tensors, {missing[0][:80]} first")
    keep_gradients(model)
    return model.eval()


def _quantized(folder: Path, rung: Quantization, keeps: Sequence[str]) -> Any:
    """Only the layers of the language stream. Names are read off the model's own structure, without its weights."""
    skip = untouched(shell_of(folder), keeps)
    if rung == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skip,
    )


def untouched(model: Any, keeps: Sequence[str] = ()) -> list[str]:
    """Names of the parts that are not quantized: all linear layers outside the language stream, and the output layer.

    A layer whose inputs are no multiple of 64 stays, too: NF4 on a CPU cannot hold it. keeps: those of the language
    stream that stay besides, by the last part of their names. Raises ConfigError for one that no layer has.
    """
    stream = {id(part) for part in model.get_decoder().modules()}
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    inside = {name: part for name, part in layers.items() if id(part) in stream}
    ends = {name.rpartition(".")[2] for name in inside}
    if unknown := sorted(set(keeps) - ends):
        raise ConfigError(
            f"quantization_keeps: {unknown[0][:80]}",
            expected=f"names of the language stream's layers: {', '.join(sorted(ends))}",
            todo="correct it, or leave it out",
        )
    left = [name for name, part in inside.items() if part.in_features % 64 or name.rpartition(".")[2] in keeps]
    return sorted({*(layers.keys() - inside.keys()), *left, "lm_head"})


def keep_gradients(model: Any) -> None:
    """Stop CPUs with AVX512-BF16 from repacking 4-bit weights: after one such pass no LoRA matrix gets a gradient."""
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
