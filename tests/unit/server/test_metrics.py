"""What Prometheus is told: that it is so, that it is documented, and that it names nobody."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from sparsight.config import Config
from sparsight.errors import BusyError
from sparsight.rl.drift import Shift
from sparsight.server import metrics, problems, state
from sparsight.server.metrics import REGISTRY
from sparsight.server.routes import router
from sparsight.service import Service, parse_question
from sparsight.types import Feedback

ROOT = Path(__file__).parents[3]
STUDY = "doe-jane"


@pytest.fixture
def service(tmp_path: Path, reader_folder: Path) -> Iterator[Service]:
    studies = tmp_path / "studies"
    studies.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(studies / f"{STUDY}.png")
    service = Service(Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}), studies)
    state.use(service)
    yield service
    state.use(None)
    service.close()


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(router)
    app.include_router(metrics.router)
    problems.install(app)
    return TestClient(app)


def scrape(client: TestClient) -> dict[str, float]:
    """Samples by name and labels, as Prometheus reads them."""
    reply = client.get("/sparsight/metrics")
    assert reply.status_code == 200, reply.text
    families = text_string_to_metric_families(reply.text)
    return {
        s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value for f in families for s in f.samples
    }


def test_answers_and_corrections_are_counted(service: Service, client: TestClient) -> None:
    before = scrape(client)
    asked = [service.ask(STUDY, parse_question("Is there a nodule?"), budget=0.1).episode for _ in range(2)]
    for n, verdict in enumerate(("reject", "accept", "reject")):
        service.correct(Feedback(f"k{n}", asked[0].id, "r", verdict, datetime.now(UTC)))
    service.correct(Feedback("k0", asked[0].id, "r", "reject", datetime.now(UTC)))  # the same correction
    now = scrape(client)

    def more(name: str) -> float:
        return now[name] - before.get(name, 0.0)

    assert more("sparsight_asks_total grounded=true") + more("sparsight_asks_total grounded=false") == 2
    assert more("sparsight_rechecks_total") == sum(e.recheck is not None for e in asked)
    assert more("sparsight_kept_fraction_sum") == pytest.approx(sum(e.evidence.kept / e.evidence.total for e in asked))
    assert more("sparsight_confidence_sum") == pytest.approx(sum(e.answer.confidence for e in asked))
    seconds = sum(e.timings_ms["total"] for e in asked) / 1000
    assert more("sparsight_ask_seconds_sum stage=total") == pytest.approx(seconds)
    assert more("sparsight_corrections_total verdict=reject") == 2
    assert more("sparsight_corrections_total verdict=accept") == 1
    assert (now["sparsight_stored_episodes"], now["sparsight_stored_corrections"]) == (2, 3)


def test_what_is_so_now(service: Service, client: TestClient) -> None:
    told = scrape(client)
    assert told["sparsight_ready"] == 1
    assert told["sparsight_learning state=idle"] == 1
    assert told["sparsight_learning state=running"] == 0
    live = service.registry.live()
    assert told[f"sparsight_live_policy policy={live.id} reader={live.reader} sha256={live.sha256}"] == 1
    assert (told["sparsight_policies state=live"], told["sparsight_policies state=held"]) == (1, 0)
    with service._turnstile.turn():
        assert scrape(client)["sparsight_waiting priority=clinician"] == 0  # who is served does not wait
    assert {name for name in told if name.startswith("sparsight_drift_alarm")} == {
        f"sparsight_drift_alarm measure={m}" for m in ("kept fraction", "confidence", "necessity", "rejection rate")
    }


def test_drift_is_told_and_looked_at_only_now_and_then(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def drift(store: object) -> list[Shift]:
        looked.append(store)
        return [Shift("confidence", 0.8, 0.4, 400, 100, 1e-9, alarm=True)]

    monkeypatch.setattr(metrics, "drift", drift)
    for _ in range(3):
        told = scrape(client)
    assert len(looked) == 1
    assert told["sparsight_drift_alarm measure=confidence"] == 1
    assert told["sparsight_drift_mean measure=confidence window=now"] == 0.4


def test_a_store_that_does_not_answer_leaves_the_rest(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        raise BusyError("a locked store", expected="a free one", todo="wait")

    monkeypatch.setattr(service.store, "counts", busy)
    told = scrape(client)
    assert told["sparsight_ready"] == 1
    assert "sparsight_stored_episodes" not in told


def test_before_the_weights_are_loaded(client: TestClient) -> None:
    state.use(None)
    assert scrape(client)["sparsight_ready"] == 0


def test_no_study_is_named(service: Service, client: TestClient) -> None:
    service.ask(STUDY, parse_question("Is there a nodule in DOE JANE?"))
    text = client.get("/sparsight/metrics").text.lower()
    assert "doe" not in text
    assert "jane" not in text


def names() -> set[str]:
    """Every metric of ours there can be, as queries name it."""
    found = set()
    for family in REGISTRY.collect():
        if family.name.startswith("sparsight_"):
            found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return found


def test_every_metric_is_documented_and_no_other(service: Service) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(sparsight_\w+)`", page, re.MULTILINE)) == names()


def test_the_dashboard_asks_for_metrics_that_are_there(service: Service) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"sparsight_\w+", asked)}
    assert used == names()


def test_the_alerts_ask_for_metrics_and_labels_that_are_there(service: Service, client: TestClient) -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    for expression in expressions:
        for name in re.findall(r"sparsight_\w+", expression):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in names(), expression
    told = scrape(client)
    for name, label, value in re.findall(r'(sparsight_\w+)\{(\w+)="(\w+)"\}', " ".join(expressions)):
        assert f"{name} {label}={value}" in told
