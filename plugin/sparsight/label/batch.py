"""Batch inference that also works where there is no CUDA."""

from __future__ import annotations

from typing import Any

import torch
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from sparsight.errors import InputError, SparsightError
from sparsight.label.answer import evidence_tag


class BatchAnswerTask(BatchInferTask):
    """Stock divides by the number of CUDA devices; our service decides on the device anyway (defect 14)."""

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Any) -> dict[str, Any]:
        """Ask the same question about many studies; one that cannot be answered says why and stops no other.

        Returns {study: {"params": {"state": "answered", "episode"} or {"state": "failed", "error"}}}: MONAI Label logs
        it, so question and answer are left to the episodes. Raises InputError for a label_tag of `final`, and for
        max_workers, max_batch_size and device that are none.
        """
        evidence_tag(request)
        request = {**request, **{name: _whole(request, name) for name in ("max_workers", "max_batch_size")}}
        if not isinstance(request.get("device", ""), str):
            raise InputError("a device that is no text", expected="`cpu` or `cuda`", todo="leave it out")
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


def _whole(request: dict[str, Any], name: str) -> int:
    """A number from 0 on (stock: as it sees fit), which null is, too."""
    value = request.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name} that is no whole number", expected="0 or more", todo="leave it out")
    return value
