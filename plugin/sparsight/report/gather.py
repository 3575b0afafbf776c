"""The numbers of the report, as one JSON object; nothing is drawn and no text of a person is in it but questions."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sparsight
from sparsight.errors import finite
from sparsight.reply import policy_json
from sparsight.service import Service, oversight, shadow
from sparsight.service.oversight import Oversight
from sparsight.types import Feedback, PolicyVersion

_SIDES = {"value": "", "low": "_low", "high": "_high", "n": "_n", "passed": "_passed"}  # of a check, in metrics


def gather(service: Service) -> dict[str, Any]:
    """Policies with their gates, corrections, readers, drift, and what a candidate says silently."""
    given = service.store.all_feedback(submitted=False, on_fault=lambda fault: None)
    states = {one.key: service.store.state_of(one.key) for one in given}
    submitted = [one for one in given if states[one.key] == "submitted"]
    found = Oversight.of(oversight.opinions(service.store, submitted))
    versions = service.policies()
    lineage = service.registry.lineage()
    trial = shadow.on_trial(service.registry)
    differences = shadow.differences(service.store, trial.id) if trial else None
    report = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": sparsight.__version__,
        "reader": service.reader.id,
        "live": lineage[0],
        "counts": service.store.counts(),
        "corrections": _corrections(given, states),
        "policies": [policy_json(v) | {"gate": gate_of(v)} | _used(service, v) for v in versions],
        "curve": curve(versions, lineage),
        "withdrawn_but_learned": _withdrawn(service, states, lineage),
        "readers": _readers(found, submitted),
        "agreement": [asdict(one) for one in found.agreement],
        "contradictions": [asdict(one) for one in found.contradictions],
        "conspicuous": [asdict(one) for one in found.conspicuous],
        "blinded": None if found.bias is None else asdict(found.bias),
        "drift": [asdict(one) for one in oversight.drift(service.store)],
        "shadow": None if differences is None else asdict(differences),
        "audit": {
            "problems": service.store.verify(readers=service.config.home / "readers"),
            "head": list(service.store.audit_head()),
        },
    }
    return dict(finite(report))  # JSON knows no NaN


def gate_of(version: PolicyVersion) -> list[dict[str, Any]]:
    """The checks a version went through, from its metrics: name, value, low, high, n, passed."""
    metrics = version.metrics
    names = [name.removesuffix("_passed") for name in metrics if name.endswith("_passed")]
    return [{"name": name, **{key: metrics.get(name + end) for key, end in _SIDES.items()}} for name in names]


def curve(versions: list[PolicyVersion], lineage: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every measured version against the corrections that it was trained on: those its own gate held out are not.

    Of its ancestors all count, for what was held out then is replayed since.
    """
    by_id = {v.id: v for v in versions}
    points = []
    for version in versions:
        if "mean_sentinel_candidate" not in version.metrics:
            continue
        trained_on, at = version.metrics.get("corrections", 0.0), version
        while at.parent is not None and at.parent in by_id:
            at = by_id[at.parent]
            trained_on += at.metrics.get("corrections", 0) + at.metrics.get("held_out", 0)
        names = ("mean_sentinel_live", "mean_sentinel_candidate", "mean_held_out_live", "mean_held_out_candidate")
        points.append(
            {"policy": version.id, "state": version.state, "corrections": trained_on, "in_line": version.id in lineage}
            | {name.removeprefix("mean_"): version.metrics.get(name) for name in names}
        )
    return points


def _used(service: Service, version: PolicyVersion) -> dict[str, int]:
    keys = service.store.learned_keys
    return {"learned_from": len(keys([version.id], "train")), "held_out": len(keys([version.id], "heldout"))}


def _corrections(given: list[Feedback], states: dict[str, Any]) -> dict[str, Any]:
    counted = {
        "state": Counter(states.values()),
        "verdict": Counter(one.verdict for one in given),
        "difficulty": Counter(one.difficulty or "not said" for one in given),
        "marks": Counter(mark.kind for one in given for mark in one.marks),
    }
    with_answer = sum(one.answer is not None for one in given)
    told = {"with_answer": with_answer, "cannot_tell": sum(o.cannot_tell for o in given)}
    return {
        **{name: dict(counts) for name, counts in counted.items()},
        **told,
        "blinded": sum(o.blinded for o in given),
    }


def _withdrawn(service: Service, states: dict[str, Any], lineage: tuple[str, ...]) -> list[dict[str, Any]]:
    """Corrections that do not count any more, but that the live policy or an ancestor has learned from."""
    learned = service.store.learned_keys(lineage)
    return [
        {"key": key, "state": state, "learned_by": list(service.learned_by(key))}
        for key, state in states.items()
        if state != "submitted" and key in learned
    ]


def _readers(found: Oversight, submitted: list[Feedback]) -> list[dict[str, Any]]:
    counts = Counter(one.reviewer for one in submitted)
    overturned = Counter(o.reader for o in found.opinions if o.overturned and not o.blinded)
    sighted = Counter(o.reader for o in found.opinions if not o.blinded)
    return [
        {"reader": reader, "corrections": n, "overturned": overturned[reader] / max(sighted[reader], 1)}
        for reader, n in counts.most_common()
    ]
