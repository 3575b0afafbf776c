"""The files of a nano reader: safetensors, tokenizer, and a manifest with the hash of each. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer
from torch import Tensor

from sparsight.errors import WeightsError
from sparsight.model.nano.tokenizer import load_tokenizer

READER, TOKENIZER, POLICY, MANIFEST = "reader.safetensors", "tokenizer.json", "policy.safetensors", "manifest.json"
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Calibration:
    """How a raw probability p becomes a confidence: sigmoid(slope * logit(p) + offset), Platt 1999; fitted on val.

    abstain_below: a confidence under it is shown as "not sure". unknown: the confidence given to a question with a
    word the reader was never taught.
    """

    slope: float = 1.0
    offset: float = 0.0
    abstain_below: float = 0.5
    unknown: float = 0.05


@dataclass(frozen=True)
class NanoSpec:
    """What is not a tensor: sizes, the words it knows, calibration."""

    channels: int = 128
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    logits: int = 7  # the encoder's answer-trained logits of each token
    findings: tuple[str, ...] = ()  # names of the first of them; their sum is the reader's saliency
    words: tuple[str, ...] = ()
    calibration: Calibration = Calibration()


def save_nano(folder: Path, tensors: dict[str, Tensor], tokenizer: Tokenizer, spec: NanoSpec) -> str:
    """Write a reader; returns its sha256 (weights, tokenizer and spec). The manifest comes last: no half reader."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: value.detach().contiguous() for name, value in tensors.items()})
    vocabulary = tokenizer.to_str().encode()
    (folder / READER).write_bytes(weights)
    (folder / TOKENIZER).write_bytes(vocabulary)
    manifest = {
        "format": 1,
        "sha256": {READER: hashlib.sha256(weights).hexdigest(), TOKENIZER: hashlib.sha256(vocabulary).hexdigest()},
        "spec": asdict(spec),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def load_nano(folder: Path) -> tuple[dict[str, Tensor], Tokenizer, NanoSpec, str]:
    """Read a reader: tensors, tokenizer, spec, sha256. Raises WeightsError for anything missing or altered."""
    text = _read(folder / MANIFEST)
    try:
        manifest: dict[str, Any] = json.loads(text)
        hashes = manifest["sha256"]
        spec = manifest["spec"]
        calibration = Calibration(**spec.pop("calibration"))
        findings, known = tuple(spec.pop("findings")), tuple(spec.pop("words"))
        parsed = NanoSpec(**spec, findings=findings, words=known, calibration=calibration)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(MANIFEST) from error
    weights, vocabulary = (_checked(folder / name, hashes.get(name, "")) for name in (READER, TOKENIZER))
    return load_tensors(weights), load_tokenizer(vocabulary), parsed, hashlib.sha256(text).hexdigest()


def _checked(path: Path, sha256: str) -> bytes:
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(path.name)
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path.name} cannot be read",
            expected="the files of a nano reader in one folder",
            todo="reinstall sparsight, or name another folder",
        ) from error


def _damaged(name: str) -> WeightsError:
    return WeightsError(
        f"{name} is not the file that was released",
        expected="the sha256 of manifest.json",
        todo="reinstall sparsight, or train the reader again",
    )
