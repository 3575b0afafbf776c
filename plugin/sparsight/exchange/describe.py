"""What a bundle says of itself: metadata for MONAI, a card for people, the licence."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import sparsight
from sparsight.errors import NotFoundError
from sparsight.exchange.layout import INFERENCE, POLICY, READER, SETTINGS, Manifest, ModelEntry

# The schema that MONAI's `verify_metadata` downloads; the keys it demands are in docs/exchange.md.
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_INTENDED = "Research use only; not a medical device. Not to be used for diagnosis or treatment."
_NEEDS = ("safetensors", "tokenizers", "transformers")


def metadata(manifest: Manifest) -> dict[str, Any]:
    """configs/metadata.json (MONAI bundle specification)."""
    policy, reader = manifest.policy, manifest.reader
    number = f"{sparsight.__version__}+{policy.id}"
    by = f"; the policy: {manifest.site}" if manifest.site else ""
    what = "A reader (encoder and language model) and the policy that chooses the tokens it reads. "
    card, needs = "docs/README.md", list(_NEEDS)
    if isinstance(reader, ModelEntry):
        what = (
            "A policy that chooses the tokens which a vision-language model reads, with LoRA of its language stream "
            "where that has learned; the model itself is not part of the bundle. "
        )
        card = "the model's own card, which is not part of the bundle,"
        needs += ["peft"] if reader.settings.quantization == "none" else ["peft", "bitsandbytes"]
    return {
        "schema": _SCHEMA,
        "version": number,
        "changelog": {number: f"policy {policy.id} of reader {reader.id}"},
        "monai_version": _plain("monai"),
        "pytorch_version": _plain("torch"),
        "numpy_version": _plain("numpy"),
        "required_packages_version": {"sparsight": sparsight.__version__, **{name: _plain(name) for name in needs}},
        "name": f"sparsight {reader.id}",
        "task": "Answer a question about a medical image from a small share of its visual tokens, and show which",
        "description": f"{what}Policy {policy.id} (sha256 {policy.sha256}), "
        f"reader {reader.id} (sha256 {reader.sha256}). No model.pt: all weights are safetensors.",
        "authors": f"The sparsight authors{by}",
        "copyright": "Copyright (c) The sparsight authors",
        "data_source": f"{card} says what the reader learned from; the policy may have learned from the "
        "corrections of the site that exported it, which are not part of the bundle",
        "intended_use": _INTENDED,
        "eval_metrics": policy.metrics,
        "network_data_format": {
            "inputs": {"image": _tensor("magnitude", {"0": "image"}, "float32"), "question": "text"},
            "outputs": {"pred": _tensor("segmentation", {"0": "rest", "1": "evidence"}, "uint8"), "answer": "text"},
        },
    }


def readme(manifest: Manifest, card: str | None = None, rank: int = 0, measured: Sequence[str] = ()) -> str:
    """docs/README.md: the card of the policy, and that of the reader after it. rank: of the policy's LoRA; 0: none.

    measured: what is known of a model's quantization (model.quantized).
    """
    policy, reader = manifest.policy, manifest.reader
    without = isinstance(reader, ModelEntry)
    place = "that of the site itself, set up as below" if without else f"`{READER}/`"
    own = " --reader FILE" if without else ""
    metrics = [f"| {name} | {value:g} |" for name, value in sorted(policy.metrics.items())]
    lines = [
        f"# {reader.id} with policy {policy.id}",
        "",
        f"**{_INTENDED}**",
        "",
        "A reader of sparsight answers a question about a medical image from a small share of its visual tokens; the",
        "policy chooses them. Weights are safetensors files: a pickle (`model.pt`) would run code when it is read.",
        "",
        "## The policy",
        "",
        f"- `{POLICY}`, sha256 `{policy.sha256}`, made {policy.created:%Y-%m-%d}, exported by "
        f"{manifest.site or 'a site that gave no name'}, where it was {policy.state}.",
        f"- For reader `{reader.id}`, sha256 `{reader.sha256}` ({place}), and no other.",
        *([f"- For its language stream: {f'LoRA of rank {rank}' if rank else 'nothing'}."] if without else []),
        f"- Parent there: {policy.parent or 'none: it was shipped with the reader, or imported'}.",
        "- It may have learned from corrections of clinicians. No image, question, answer or name is in the bundle;",
        "  what weights may tell of the studies they learned from was not examined.",
        "",
        *(["| measured before it was exported | value |", "|---|---|", *metrics] if metrics else ["No measurements."]),
        "",
        "## Use",
        "",
        "```",
        f"sparsight{own} import-bundle BUNDLE            # a candidate; it goes live when a person promotes it by name",
        f"python -m monai.bundle run --config_file {INFERENCE}{own} --image IMAGE --question QUESTION",
        "```",
        "",
        "The second one is run in the bundle's folder, needs sparsight and the package fire, and prints JSON;",
        "`--output FILE.nii.gz` writes the evidence as a label map. `manifest.json` has the hash of every other file.",
        "",
        "## The reader",
        "",
        *([*_model(reader), "", *measured] if isinstance(reader, ModelEntry) else [_card(card, reader.id)]),
        "",
    ]
    return "\n".join(lines)


def _card(card: str | None, reader: str) -> str:
    return (card or f"No card lies beside {reader}.").replace("\n#", "\n##").removeprefix("# ").strip()


def _model(reader: ModelEntry) -> list[str]:
    """What to know of a model that is not in the bundle."""
    settings = reader.settings.model_dump(mode="json", exclude={"name"})
    return [
        f"`{reader.settings.name}`, of family {reader.settings.family}. It is not in the bundle: its licence is its",
        "authors', and so is its card. A site that has the same files makes this reader of them with these settings",
        f"(`{SETTINGS}`; copy it, name the model's folder). The sha256 above is that of files and settings together.",
        "`LICENSE` is sparsight's; what was learned on a model may fall under the terms of that model as well.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items()),
    ]


def licence() -> bytes:
    """The licence, as installed or in the checkout. Raises NotFoundError."""
    with suppress(PackageNotFoundError):
        if text := distribution("sparsight").read_text("licenses/LICENSE"):
            return text.encode()
    beside = Path(sparsight.__file__).resolve().parents[2] / "LICENSE"
    if not beside.is_file():
        raise NotFoundError("no LICENSE", expected="it beside the package", todo="install the package again")
    return beside.read_bytes()


def _plain(name: str) -> str:
    return version(name).split("+")[0]


def _tensor(kind: str, channels: dict[str, str], dtype: str) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "modality": "n/a",
        "num_channels": 1,
        "spatial_shape": ["*", "*", "*"],
        "dtype": dtype,
        "value_range": [],
        "is_patch_data": False,
        "channel_def": channels,
    }
