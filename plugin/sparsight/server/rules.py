"""Which role each route needs, stock routes and ours: the one table that entrance, log and metrics read.

A route that is not in it needs the highest role; a test holds the table and the application's routes together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from starlette.routing import compile_path


class Role(IntEnum):
    """Each may do what those before it may. NOBODY: without a token."""

    NOBODY = 0
    READER = 1
    REVIEWER = 2
    TRAINER = 3
    ADMIN = 4


@dataclass(frozen=True)
class Rule:
    """A route and who may use it."""

    method: str
    path: str
    role: Role

    @property
    def costly(self) -> bool:
        """Whether a GET reads or makes images: a person has only so many answered at the same time."""
        return self.method in {"GET", "HEAD"} and self.path in _COSTLY


_COSTLY = {
    "/sparsight/dicomweb/{path:path}", "/datastore/image", "/datastore/dataset",
    *(f"/sparsight/episodes/{{episode}}/{what}" for what in (
        "geometry", "tokens", "overlay.png", "slice.png", "labelmap.nii.gz"
    )),
}  # fmt: skip
_TABLE: dict[Role, tuple[str, ...]] = {
    Role.NOBODY: ("GET /sparsight/health/live", "GET /sparsight/health/ready"),  # probes have no token
    Role.READER: (  # sees studies and answers, asks
        "GET /", "GET /favicon.ico", "GET /openapi.json", "GET /static/{path:path}",
        "GET /info/", "GET /model/info/{model}", "GET /ohif/{path:path}",
        "POST /infer/{model}", "POST /infer/wsi/{model}", "POST /infer/wsi_v2/{model}",
        "GET /session/{session_id}", "PUT /session/", "DELETE /session/{session_id}",
        "GET /datastore/", "GET /datastore/image", "HEAD /datastore/image", "GET /datastore/image/info",
        "GET /datastore/label", "HEAD /datastore/label", "GET /datastore/label/info",
        "POST /activelearning/{strategy}", "POST /sparsight/next_case",
        "POST /sparsight/ask", "GET /sparsight/me", "GET /sparsight/studies", "GET /sparsight/policies",
        "GET /sparsight/episodes", "GET /sparsight/episodes/{episode}", "GET /sparsight/episodes/{episode}/geometry",
        "GET /sparsight/episodes/{episode}/tokens", "GET /sparsight/episodes/{episode}/overlay.png",
        "GET /sparsight/episodes/{episode}/slice.png", "GET /sparsight/episodes/{episode}/labelmap.nii.gz",
        "GET /sparsight/metrics", "GET /sparsight/dicomweb/{path:path}", "GET /sparsight/{path:path}",
    ),
    Role.REVIEWER: (  # corrects: labels, verdicts, results for the PACS
        "PUT /datastore/label", "PUT /datastore/label/info", "PUT /datastore/updatelabelinfo",
        "POST /sparsight/feedback", "POST /sparsight/feedback/mask", "POST /sparsight/feedback/{key}/change",
        "GET /sparsight/episodes/{episode}/feedback", "POST /sparsight/episodes/{episode}/dicom",
    ),
    Role.TRAINER: (  # decides what is learned and which policy answers
        "GET /train/", "POST /train/{model}", "DELETE /train/",
        "GET /scoring/", "POST /scoring/{method}", "DELETE /scoring/",
        "GET /batch/infer", "POST /batch/infer/{model}", "DELETE /batch/infer",
        "GET /sparsight/learn", "POST /sparsight/learn",
        "POST /sparsight/policies/rollback", "POST /sparsight/policies/{policy}/promote",
    ),
    Role.ADMIN: (  # adds and removes data, takes everything out, reads the log
        "PUT /datastore/", "PUT /datastore/image", "PUT /datastore/image/info", "GET /datastore/dataset",
        "DELETE /datastore/", "DELETE /datastore/image", "DELETE /datastore/label",
        "GET /model/{model}", "PUT /model/{model}", "DELETE /model/{model}", "GET /logs/", "GET /logs/gpu",
    ),
}  # fmt: skip
RULES = tuple(
    Rule(method, path, role)
    for role, routes in _TABLE.items()
    for method, path in (route.split(" ") for route in routes)
)
_OTHER = Rule("*", "other", Role.ADMIN)
_COMPILED = tuple((rule, compile_path(rule.path)[0]) for rule in RULES)


def rule_of(method: str, path: str) -> Rule:
    """The rule of a request. path: as Starlette's routes match it (get_route_path), by the same expressions."""
    found = [rule for rule, pattern in _COMPILED if rule.method == method and pattern.match(path)]
    if not found and method == "HEAD":  # answered by the GET of pages and files
        return rule_of("GET", path)
    return max(found, key=lambda rule: len(rule.path.split("{", 1)[0]), default=_OTHER)  # the most exact one
