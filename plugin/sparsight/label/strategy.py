"""The active-learning strategy: the study where one more correction would teach most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from sparsight.service import Service


class TeachMost(Strategy):
    """service.next_case; the keys beside `id` (question, score, reason) reach the client."""

    def __init__(self, service: Callable[[], Service], *, description: str) -> None:
        super().__init__(description)
        self._service = service

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """The next study; empty when all are labelled or corrected."""
        wanted = request.get("exclude")
        exclude = frozenset(map(str, wanted if isinstance(wanted, list) else ())) | set(datastore.get_labeled_images())
        case = self._service().next_case(exclude=exclude)
        if case is None:
            return {}
        return {"id": case.study, "question": case.question, "score": case.score, "reason": case.reason}
