"""What configs/inference.json of a bundle names: a callable that answers with the bundle's own reader and policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from sparsight import evidence
from sparsight.config import ServeConfig
from sparsight.errors import InputError, finite
from sparsight.exchange.bundle import Bundle, read_bundle
from sparsight.exchange.check import check_sizes
from sparsight.exchange.layout import READER
from sparsight.exchange.site import check_named, check_same, site_reader
from sparsight.imaging.export import write_labelmap
from sparsight.imaging.grid import tokens_to_labelmap
from sparsight.imaging.load import load as load_image
from sparsight.model import PolicySelector, Reader, TokenPolicy, load_configured, model_config
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import NanoSpec
from sparsight.service import parse_question
from sparsight.service.answering import Answering, shown
from sparsight.service.question import check_budget, usual_budget
from sparsight.types import Budget, ImageVolume


@dataclass(frozen=True, eq=False)
class Answered:
    """reply: as `sparsight ask --json`, without what a store adds. labelmap: (D, H, W), 1 where the evidence lies."""

    reply: dict[str, Any]
    labelmap: NDArray[np.uint8]
    volume: ImageVolume


class Answerer:
    """A bundle's policy and its reader, loaded once. The settings are the defaults of serve.yaml; nothing is recorded.

    reader: this site's configuration of the model, where the bundle does not hold it. Raises BundleError where a file
    is not what was exported (other files in the folder do no harm), InputError (no reader is named), WeightsError
    (another reader than the policy's, or one that does not fit the memory as it is configured).
    """

    def __init__(self, bundle_root: str | Path = ".", reader: str | Path = "") -> None:
        root = Path(bundle_root)
        bundle = read_bundle(root, alone=False)
        self._reader = _of_site(bundle, str(reader)) if bundle.spec is None else _held(bundle, bundle.spec, root)
        self._policy = bundle.manifest.policy
        arrays = load(bundle.policy)
        self._reader.adapt(arrays)
        policy = TokenPolicy.from_arrays(arrays)
        self._selector = PolicySelector(policy, self._reader, self._policy.id)
        self._config = ServeConfig()

    def __call__(
        self, image: str | Path, question: str, *, choices: Sequence[str] = (), budget: Budget | None = None
    ) -> Answered:
        """Answer a question about an image's file or a DICOM series' folder. budget: as of `sparsight ask`."""
        asked = parse_question(question, choices=tuple(choices), max_chars=self._config.max_question_chars)
        share = check_budget(usual_budget(self._selector.policy, self._config) if budget is None else budget)
        volume = load_image(Path(image))
        grid = self._reader.encode(volume)
        answering = Answering(self._reader, self._config, volume, grid, asked, lambda progress: None)
        reading = answering.answer(self._selector, share)
        kept = shown(reading.selection, reading.recheck)
        threshold = self._config.necessity_nats
        found = evidence.describe(volume, grid, kept, necessity=reading.necessity, threshold=threshold)
        read = reading.recheck.kept if reading.recheck else len(reading.selection.keep)
        reply = {
            "question": asked.text,
            "answer": reading.answer.text,
            "reasoning": reading.answer.reasoning,
            "confidence": round(reading.answer.confidence, 4),
            "abstained": reading.answer.abstained,
            "grounded": found.grounded,
            "necessity_nats": reading.necessity,
            "budget": {"kept": read, "total": grid.n, "fraction": round(read / grid.n, 6)},
            "evidence": [
                {"box_mm": region.box_mm, "weight": round(region.weight, 4), "slice": region.slice_index}
                for region in found.regions
            ],
            "notes": list(reading.answer.notes),
            "policy": {"id": self._policy.id, "sha256": self._policy.sha256},
            "reader": self._reader.id,
        }
        return Answered(reply, tokens_to_labelmap(grid, kept.keep, volume.shape), volume)


def _held(bundle: Bundle, spec: NanoSpec, root: Path) -> Reader:
    """The bundle's own reader."""
    check_sizes(bundle.reader_files, spec)
    return NanoReader.load(root / READER)  # whatever else lies there


def _of_site(bundle: Bundle, name: str) -> Reader:
    """The site's own reader, which is the one that the policy was trained for."""
    check_named(name)
    here = site_reader(name)
    check_same(here, bundle.manifest)
    here.check_policy(bundle.policy)
    return load_configured(model_config(name), smaller=False)


def answer(
    answerer: Answerer,
    image: str,
    question: str,
    choices: Sequence[str] = (),
    budget: Budget | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Answer, print the reply as JSON and return it; output: file for the evidence as a label map."""
    if not image:
        raise InputError("no image", expected="an image's file, or a DICOM series' folder", todo="add --image PATH")
    answered = answerer(image, question, choices=choices, budget=budget)
    if output:
        write_labelmap(Path(output), answered.labelmap, answered.volume)
    print(json.dumps(finite(answered.reply), indent=2, ensure_ascii=False))
    return answered.reply
