"""The scoring method: does the evidence of an answer agree with what the clinician then drew?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from numpy.typing import NDArray

from sparsight.errors import SparsightError
from sparsight.imaging.export import check_frame, frame_of, read_mask
from sparsight.label.corrections import on_study
from sparsight.service import Service


class Grounding(ScoringMethod):
    """For each final label: coverage (share of it that is evidence) and spill (share of the evidence beside it)."""

    def __init__(self, service: Callable[[], Service], *, description: str) -> None:
        super().__init__(description)
        self._service = service

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:  # noqa: ARG002  (stock signature)
        """Score the newest answer of every labelled image; written to the label's info under `sparsight`."""
        scores = {}
        for image_id in datastore.get_labeled_images():
            try:
                scores[image_id] = self._score(datastore, image_id)
            except SparsightError as error:  # one bad label must not hide the other scores
                scores[image_id] = {"error": error.code}
            datastore.update_label_info(image_id, "final", {"sparsight": scores[image_id]})
        return scores

    def _score(self, datastore: Datastore, image_id: str) -> dict[str, Any]:
        service = self._service()
        newest = service.store.episodes(1, study=image_id)
        if not newest:
            return {"coverage": None, "spill": None}
        asked = service.reopen(newest[0].id)
        label = Path(datastore.get_label_uri(image_id, "final"))
        mask, ijk_to_lps = read_mask(label)
        check_frame(frame_of(label), asked.image.frame_of_reference_uid)
        drawn = on_study(mask, ijk_to_lps, asked.image) if mask.any() else np.zeros(asked.image.shape, bool)
        return {"episode": asked.episode.id, **agreement(asked.labelmap() > 0, drawn)}


def agreement(evidence: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> dict[str, float | None]:
    """coverage: share of the drawn region that is evidence; spill: share of the evidence outside it. (D, H, W) each."""
    both = int((evidence & drawn).sum())
    return {
        "coverage": both / int(drawn.sum()) if drawn.any() else None,
        "spill": 1 - both / int(evidence.sum()) if evidence.any() else None,
    }
