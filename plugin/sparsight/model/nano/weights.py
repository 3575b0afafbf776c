"""The files of a nano reader: safetensors, tokenizer, and a manifest with the hash of each. Nothing is unpickled.

The policy that was trained with the reader lies beside it, and its hash stands in the same manifest; but it is no part
of the reader, whose own sha256 is the same with another policy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
CARD = "card.md"
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Calibration:
    """How a raw probability p becomes a confidence: sigmoid(slope * logit(p) + offset), Platt 1999; fitted on val.

    abstain_below: a confidence under it is shown as "not sure". unknown: the confidence given to a question with a
    word the reader was never taught. apart: fitted on half of the groups of real rows, so that the others can measure
    it.
    """

    slope: float = 1.0
    offset: float = 0.0
    abstain_below: float = 0.5
    unknown: float = 0.05
    apart: bool = False


@dataclass(frozen=True)
class NanoSpec:
    """What is not a tensor: sizes, the words it knows, calibration."""

    channels: int = 160
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    glance: int = 0  # channels of the first look at a volume (glance.py); 0: there is none
    logits: int = 7  # the encoder's answer-trained logits of each token
    findings: tuple[str, ...] = ()  # names of the first of them; their sum is the reader's saliency
    words: tuple[str, ...] = ()
    calibration: Calibration = Calibration()


def save_nano(folder: Path, tensors: dict[str, Tensor], tokenizer: Tokenizer, spec: NanoSpec) -> str:
    """Write a reader; returns its sha256 (`_reader_sha256`). The manifest comes last: no half reader.

    A policy that lies in the folder belongs to the reader that was there: `save_policy` again, of this one.
    """
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
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")
    return _reader_sha256(manifest)


def save_policy(folder: Path, data: bytes) -> None:
    """Write the policy trained with a reader (a safetensors file's bytes), and its hash to the reader's manifest.

    Raises WeightsError where the folder holds no reader.
    """
    manifest = _manifest(folder)
    (folder / POLICY).write_bytes(data)
    manifest["sha256"][POLICY] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")


def read_policy(folder: Path) -> bytes:
    """Read what `save_policy` wrote. Raises WeightsError: missing, altered, or unknown to the reader's manifest."""
    sha256 = _manifest(folder)["sha256"].get(POLICY)
    if sha256 is None:
        raise WeightsError(
            f"a reader whose {MANIFEST} has no hash of {POLICY}",
            expected="a policy that was saved with this reader",
            todo="reinstall sparsight, or train the reader and its policy again",
        )
    return _checked(folder / POLICY, sha256)


def load_nano(folder: Path) -> tuple[dict[str, Tensor], Tokenizer, NanoSpec, str]:
    """Read a reader: tensors, tokenizer, spec, sha256. Raises WeightsError for anything missing or altered."""
    manifest = _manifest(folder)
    hashes, sha256 = manifest["sha256"], _reader_sha256(manifest)
    spec = _spec(manifest)
    weights, vocabulary = (_checked(folder / name, hashes.get(name, "")) for name in (READER, TOKENIZER))
    return load_tensors(weights), load_tokenizer(vocabulary), spec, sha256


def read_files(folder: Path) -> dict[str, bytes]:
    """A reader and the policy shipped with it as files by name, and its card where it has one: what can be given away.

    Raises WeightsError as `check_files` does.
    """
    files = {name: _read(folder / name) for name in (READER, TOKENIZER, POLICY, MANIFEST)}
    if (folder / CARD).is_file():
        files[CARD] = _read(folder / CARD)
    check_files(files)
    return files


def check_files(files: Mapping[str, bytes]) -> tuple[NanoSpec, str]:
    """Spec and sha256 of a reader given as files by name. Raises WeightsError: one is not the manifest's, or missing.

    Nothing but the manifest is parsed.
    """
    manifest = _parsed(files.get(MANIFEST, b""))
    for name in (READER, TOKENIZER, POLICY):
        if hashlib.sha256(files.get(name, b"")).hexdigest() != manifest["sha256"].get(name):
            raise _damaged(name)
    return _spec(manifest), _reader_sha256(manifest)


def reader_id(sha256: str) -> str:
    """The id of the reader with this hash."""
    return f"nano-{sha256[:8]}"


def _manifest(folder: Path) -> dict[str, Any]:
    return _parsed(_read(folder / MANIFEST))


def _parsed(text: bytes) -> dict[str, Any]:
    """What manifest.json holds; `sha256` has the hashes of the other files by name."""
    try:
        manifest: dict[str, Any] = json.loads(text)
        manifest["sha256"] = dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(MANIFEST) from error
    return manifest


def _spec(manifest: dict[str, Any]) -> NanoSpec:
    try:
        spec = dict(manifest["spec"])
        calibration = Calibration(**spec.pop("calibration"))
        findings, known = tuple(spec.pop("findings")), tuple(spec.pop("words"))
        return NanoSpec(**spec, findings=findings, words=known, calibration=calibration)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(MANIFEST) from error


def _reader_sha256(manifest: dict[str, Any]) -> str:
    """Hash of what decides tokens and answers: weights, tokenizer, sizes and words.

    Neither the policy nor the calibration, which is fitted anew with each policy, makes another reader: what clinicians
    taught is kept by reader.
    """
    own = {name: sha256 for name, sha256 in manifest["sha256"].items() if name != POLICY}
    try:
        spec = {name: value for name, value in manifest["spec"].items() if name != "calibration"}
    except (KeyError, AttributeError) as error:
        raise _damaged(MANIFEST) from error
    return hashlib.sha256(_text({**manifest, "sha256": own, "spec": spec}).encode()).hexdigest()


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


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
