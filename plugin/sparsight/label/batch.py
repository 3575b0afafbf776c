"""Batch inference that also works where there is no CUDA."""

from __future__ import annotations

from typing import Any

import torch
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from sparsight.errors import SparsightError
from sparsight.label.answer import evidence_tag


class BatchAnswerTask(BatchInferTask):
    """Stock divides by the number of CUDA devices; our service decides on the device anyway (defect 14)."""

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Any) -> dict[str, Any]:
        """Ask the same question about many studies; one that cannot be answered says why and stops no other.

        Returns {study: {"params": {"state": "answered", "episode"} or {"state": "failed", "error"}}}: MONAI Label logs
        it, so question and answer are left to the episodes. Raises InputError for a label_tag of `final`.
        """
        evidence_tag(request)
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}
        datastore.refresh()

        def attempt(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                answer: dict[str, Any] = infer(one, store)
            except SparsightError as error:
                return {"file": None, "params": {"state": "failed", **error.as_dict()}}
            return {"file": answer["file"], "params": {"state": "answered", "episode": answer["params"]["episode"]}}

        results: dict[str, Any] = super().__call__(request, datastore, attempt)
        return results
