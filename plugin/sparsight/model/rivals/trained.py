"""The weights of the rivals that labels taught: one file beside the reader's own, with a note of what it belongs to.

They are never part of a reader: nothing here is read unless a rival is asked for by name.
"""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sparsight.errors import InputError, WeightsError
from sparsight.model.nano.language import NanoLanguage
from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import TokenPolicy

WEIGHTS, NOTE = "rivals.safetensors", "rivals.json"
_FORMAT = 1
_TIED = "lm.lm_head.weight"  # the same as the input's embedding
_AGAIN = "run `sparsight train rivals` for this reader"


def save_rivals(
    folder: Path, reader: NanoReader, writer: NanoLanguage, policy: TokenPolicy, made: dict[str, Any]
) -> str:
    """Write both to a reader's folder in float16; returns the file's sha256. The note comes last: no half file.

    made: how they were trained and what they reach, plain values, kept in the note.
    """
    tensors = {f"vitos.{name}": value for name, value in writer.state_dict().items() if name != _TIED}
    tensors |= {f"masks.{name}": value for name, value in policy.state_dict().items()}
    data = save_tensors({name: value.detach().half().contiguous() for name, value in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    note = {"format": _FORMAT, "reader_sha256": reader.sha256, "sha256": {WEIGHTS: sha256}, "made": made}
    for name, content in ((WEIGHTS, data), (NOTE, (json.dumps(note, indent=1) + "\n").encode())):
        partial = folder / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)
    return sha256


def load_rivals(reader: NanoReader) -> tuple[NanoLanguage, TokenPolicy]:
    """The box writer and the policy that lie beside a reader, in float32.

    Raises InputError where there are none, WeightsError where they are altered or were trained for another reader.
    """
    folder = reader.folder
    if folder is None or not (folder / NOTE).is_file():
        raise InputError(f"no {NOTE} beside the reader {reader.id}", expected="its trained rivals", todo=_AGAIN)
    try:
        note = json.loads((folder / NOTE).read_bytes())
        if note["format"] != _FORMAT:
            raise ValueError("format")
        owner, sha256 = note["reader_sha256"], note["sha256"][WEIGHTS]
        data = (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{WEIGHTS} or {NOTE} that cannot be read", expected="both, as they were written", todo=_AGAIN
        ) from error
    if owner != reader.sha256:
        raise WeightsError("rivals that were trained for another reader", expected=f"those of {reader.id}", todo=_AGAIN)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise WeightsError(f"{WEIGHTS} is not the file that was written", expected=f"the sha256 of {NOTE}", todo=_AGAIN)
    tensors = load_tensors(data)
    writer = deepcopy(reader.language).requires_grad_(False)
    own = _part(tensors, "vitos")
    try:
        writer.load_state_dict(own | {_TIED: own["lm.model.embed_tokens.weight"]})
    except (KeyError, RuntimeError) as error:
        raise WeightsError("a box writer of other sizes", expected=f"that of {reader.id}", todo=_AGAIN) from error
    masks = _part(tensors, "masks")
    return writer, TokenPolicy.from_arrays({name: value.numpy() for name, value in masks.items()})


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): t.to(torch.float32) for key, t in tensors.items() if key.startswith(prefix)}
