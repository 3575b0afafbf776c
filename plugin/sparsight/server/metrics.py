"""Numbers for Prometheus, GET /sparsight/metrics; docs/operations.md lists them. Labels are ours: no id of a study.

What happens is counted when it does, in this process; what is so now is asked of the service at each scrape.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Count
from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client import generate_latest as written
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.responses import Response

from sparsight.errors import SparsightError
from sparsight.rl.drift import Shift
from sparsight.server.jobs import STATES, LearningJob
from sparsight.service import Service
from sparsight.service.oversight import drift
from sparsight.types import Episode, Feedback

logger = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_TENTHS = tuple(round(0.1 * n, 1) for n in range(1, 11))
_POLICY_STATES = ("candidate", "live", "held", "retired")
_DRIFT_FRESH_S = 600.0  # it reads five hundred answers

REQUESTS = Histogram(
    "sparsight_request_seconds",
    "Requests by route.",
    ("method", "route", "status"),
    buckets=_SECONDS,
    registry=REGISTRY,
)
ASKS = Counter("sparsight_asks", "Answers, by whether the evidence carries them.", ("grounded",), registry=REGISTRY)
ABSTAINED = Counter("sparsight_abstentions", "Answers shown as not sure.", registry=REGISTRY)
RECHECKED = Counter("sparsight_rechecks", "Answers that were read again from more tokens.", registry=REGISTRY)
STAGES = Histogram(
    "sparsight_ask_seconds", "Time of an ask, by stage.", ("stage",), buckets=_SECONDS, registry=REGISTRY
)
KEPT = Histogram(
    "sparsight_kept_fraction",
    "Share of the tokens that the policy kept.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1),
    registry=REGISTRY,
)
CONFIDENCE = Histogram("sparsight_confidence", "Calibrated, of answers.", buckets=_TENTHS, registry=REGISTRY)
NECESSITY = Histogram(
    "sparsight_necessity_nats",
    "Support an answer loses without its evidence.",
    buckets=(0, 0.1, 0.25, 0.5, 1, 2, 4, 8),
    registry=REGISTRY,
)
CORRECTIONS = Counter("sparsight_corrections", "Corrections, by verdict.", ("verdict",), registry=REGISTRY)
for _value in ("true", "false"):  # from 0 on: a rate has no first value else
    ASKS.labels(_value)
for _value in ("accept", "amend", "reject"):
    CORRECTIONS.labels(_value)
ProcessCollector(registry=REGISTRY)


class Standing(Collector):
    """What is so now, of the service that `follow` named."""

    def __init__(self) -> None:
        self.service: Service | None = None
        self._drift: tuple[float, list[Shift]] = (float("-inf"), [])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Readiness always; the rest where there is a service and its store answers."""
        yield _gauge("sparsight_ready", "Whether the weights are loaded.", float(self.service is not None))
        yield _gauges(
            "sparsight_learning", "State of the latest learning job.", "state", _one(STATES, LearningJob().state())
        )
        if self.service is not None:
            try:
                yield from list(self._of(self.service))
            except SparsightError as error:
                logger.warning("metrics are not whole: %s", error.code)

    def _of(self, service: Service) -> Iterator[GaugeMetricFamily]:
        waiting = {str(p.name).lower(): float(n) for p, n in service.waiting().items()}
        yield _gauges("sparsight_waiting", "Who waits for the models.", "priority", waiting)
        counts = service.store.counts()
        yield _gauge("sparsight_stored_episodes", "Answers in the store.", counts["episodes"])
        yield _gauge("sparsight_stored_corrections", "Submitted corrections in the store.", counts["corrections"])
        policies = service.policies()
        states = Count(str(policy.state) for policy in policies)
        yield _gauges("sparsight_policies", "Policy versions.", "state", {s: float(states[s]) for s in _POLICY_STATES})
        live = GaugeMetricFamily(
            "sparsight_live_policy", "Which policy answers.", labels=("policy", "sha256", "reader")
        )
        for policy in policies:
            if policy.state == "live":
                live.add_metric((policy.id, policy.sha256, policy.reader), 1)
        yield live
        shifts = self._drifts(service)
        yield _gauges(
            "sparsight_drift_alarm",
            "A change that is sure and large.",
            "measure",
            {s.name: float(s.alarm) for s in shifts},
        )
        means = GaugeMetricFamily("sparsight_drift_mean", "Means of the drift watch.", labels=("measure", "window"))
        for s in shifts:
            means.add_metric((s.name, "before"), s.before)
            means.add_metric((s.name, "now"), s.now)
        yield means

    def _drifts(self, service: Service) -> list[Shift]:
        at, found = self._drift
        if time.monotonic() - at > _DRIFT_FRESH_S:
            found = drift(service.store)
            self._drift = (time.monotonic(), found)
        return found


STANDING = Standing()
REGISTRY.register(STANDING)

router = APIRouter(prefix="/sparsight", include_in_schema=False)


@router.get("/metrics")
def show() -> Response:
    """All of it, in Prometheus's text format."""
    return Response(written(REGISTRY), media_type=CONTENT_TYPE_LATEST)


def follow(service: Service | None) -> None:
    """Count what this service does from now on."""
    STANDING.service, STANDING._drift = service, (float("-inf"), [])
    if service is not None and count not in service.listeners:
        service.listeners.append(count)


def count(new: Episode | Feedback) -> None:
    """Count an answer, or a correction by its verdict."""
    if isinstance(new, Feedback):
        CORRECTIONS.labels(new.verdict).inc()
    else:
        _count_answer(new)


def _count_answer(episode: Episode) -> None:
    ASKS.labels(str(episode.evidence.grounded).lower()).inc()
    ABSTAINED.inc(episode.answer.abstained)
    RECHECKED.inc(episode.recheck is not None)
    for stage, ms in episode.timings_ms.items():
        STAGES.labels(stage).observe(ms / 1000)
    KEPT.observe(episode.evidence.kept / episode.evidence.total)
    CONFIDENCE.observe(episode.answer.confidence)
    if episode.evidence.necessity is not None:
        NECESSITY.observe(episode.evidence.necessity)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=value)


def _gauges(name: str, about: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _one(states: tuple[str, ...], now: str) -> dict[str, float]:
    return {state: float(state == now) for state in states}
