"""The page says what is in the store: curve, gates, changed cases, readers, withdrawals; and shows no script to run."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsight.config import Config
from sparsight.report.cards import data_card, model_card
from sparsight.report.cases import changed_cases
from sparsight.report.gather import curve, gather
from sparsight.report.page import write_report
from sparsight.service import Service, parse_question
from sparsight.service.answering import Reading
from sparsight.types import Episode, Feedback

QUESTION = parse_question("Is there a nodule <script>alert(1)</script>?")


class Page(HTMLParser):
    """Every tag with its attributes, and the text; raises nothing, so tags are balanced by count."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def service(tmp_path: Path, reader_folder: Path) -> Iterator[Service]:
    studies = tmp_path / "studies"
    studies.mkdir()
    for n in range(7):
        pixels = np.random.default_rng(n).integers(0, 200, (32, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(studies / f"s{n}.png")
    config = Config.load(
        home=tmp_path / "home",
        serve={"reader": str(reader_folder)},
        learn={"steps": 3, "passes": 0, "batch": 4, "group": 4},
        gate={"sentinel": 20, "min_feedback": 2, "bootstrap": 200},
    )
    service = Service(config, studies)
    yield service
    service.close()


def teach(service: Service) -> str:
    """Seven corrected answers and a candidate that is made live; its id."""
    for n in range(7):
        episode = service.ask(f"s{n}", QUESTION).episode
        for reader, answer in (("a", "yes"), ("b", "yes" if n else "no")):
            given = Feedback(f"{reader}{n}", episode.id, reader, "amend", datetime.now(UTC), answer)
            service.correct(given)
    learned = service.learn().candidate
    assert learned is not None
    if learned.state != "live":
        service.registry.approve(learned.id, reasons=["better"])
        service.promote(learned.id)
    return learned.id


def test_the_page_says_what_was_learned(service: Service, tmp_path: Path) -> None:
    live = teach(service)
    service.revise("a3", "withdraw", by="a")
    report = write_report(service, tmp_path / "out", cases=3)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["live"] == live
    assert [one["key"] for one in report["withdrawn_but_learned"]] == ["a3"]
    assert report["withdrawn_but_learned"][0]["learned_by"] == [live]
    [both] = report["agreement"]
    assert (both["n"], both["agreed"]) == (6, pytest.approx(5 / 6))  # what was withdrawn is no opinion
    [clash] = report["contradictions"]
    assert (clash["settled"], clash["answers"]) == (None, {"no": ["b"], "yes": ["a"]})
    [point] = report["curve"]
    assert (point["policy"], point["in_line"]) == (live, True)
    assert 0 <= point["sentinel_candidate"] <= 1
    gate = next(policy["gate"] for policy in report["policies"] if policy["id"] == live)
    assert {"sentinel_non_inferior", "enough_feedback", "held_out_gain"} <= {check["name"] for check in gate}
    assert len(report["cases"]) == 3
    assert report["changed"]["looked_at"] == 7
    assert all(case["before"]["policy"] != live == case["after"]["policy"] for case in report["cases"])
    assert report["audit"]["problems"] == []
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert live in page.text
    assert "Correction a3 is withdrawn" in page.text
    assert "Of the 7 newest corrected answers of another policy" in page.text
    pictures = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 1 + 2 * 3  # the curve, and each case before and after
    assert all(src.startswith("data:image/png;base64,") for src in pictures)


def test_what_a_person_typed_is_text_and_nothing_is_loaded_from_elsewhere(service: Service, tmp_path: Path) -> None:
    teach(service)
    write_report(service, tmp_path / "out", cases=1)
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "Is there a nodule <script>alert(1)</script>?" in page.text
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert re.match(r"data:image/png|cards/", attrs.get(name) or "cards/"), attrs
    assert "http" not in text.replace("http-equiv", "")


def test_an_empty_store_has_a_page_too(service: Service, tmp_path: Path) -> None:
    report = write_report(service, tmp_path / "out")
    assert report["curve"] == report["cases"] == report["contradictions"] == []
    assert "No candidate was measured yet" in (tmp_path / "out" / "index.html").read_text()


def test_without_the_studies_a_case_is_told_without_pictures(service: Service, tmp_path: Path) -> None:
    teach(service)
    alone = Service(service.config)
    report = write_report(alone, tmp_path / "out", cases=2)
    alone.close()
    assert len(report["cases"]) == 2
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    assert "The study is not served" in page.text


def test_every_version_has_its_cards(service: Service, tmp_path: Path) -> None:
    live = teach(service)
    write_report(service, tmp_path / "out")
    versions = service.policies()
    assert {path.name for path in (tmp_path / "out" / "cards").iterdir()} == {version.id for version in versions}
    version = service.registry.get(live)
    model, data = model_card(service, version), data_card(service, version)
    assert version.sha256 in model
    gain = next(line for line in model.splitlines() if line.startswith("| held_out_gain"))
    assert f"{version.metrics['held_out_gain']:.3f}" in gain, version.metrics
    assert all(reason in model for reason in version.reasons)
    learned = service.store.learned_keys([live])
    trained, held = version.metrics["corrections"], version.metrics["held_out"]
    assert trained + held == len(learned) > trained > 0
    assert f"Trained on {trained:.0f} corrections, measured on {held:.0f} others that were held out" in data
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in data.splitlines() if line[:3] in ("| a", "| b")]
    assert sorted(row[0] for row in rows) == ["a", "b"]
    assert [sum(int(row[n]) for row in rows) for n in (1, 2)] == [trained, held]
    base = service.registry.get(versions[0].id)
    assert "nothing was learned here" in model_card(service, base)
    assert "Trained on 0 corrections" in data_card(service, base)


def test_the_curve_counts_what_was_trained_on(service: Service) -> None:
    live = service.registry.live()
    numbers = {"mean_sentinel_candidate": 0.8}
    parent, child = (
        replace(live, id=f"p{n}", parent=f"p{n - 1}", metrics=numbers | {"corrections": 10.0 * n, "held_out": 4.0 * n})
        for n in (1, 2)
    )
    points = curve([live, parent, child], ("p2", "p1", live.id))
    assert [point["corrections"] for point in points] == [10, 20 + 10 + 4]  # what was held out then is replayed
    learned = service.registry.get(teach(service))
    [told] = [one for one in gather(service)["policies"] if one["id"] == learned.id]
    assert (told["learned_from"], told["held_out"]) == (learned.metrics["corrections"], learned.metrics["held_out"])


def test_cases_that_changed_come_first_and_are_counted(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven answers: of the oldest the answer is another one now, of the second the tokens."""
    teach(service)
    asked = [service.store.feedback(f"a{n}").episode for n in range(7)]
    again = service.again

    def read(episode: Episode, policy: str) -> Reading:
        reading = again(episode, policy)
        answer, selection = episode.recheck.first if episode.recheck else episode.answer, episode.selection
        if episode.id == asked[0]:
            answer = replace(answer, text=f"not {answer.text}")
        if episode.id == asked[1]:
            keep = np.setdiff1d(np.arange(len(selection.scores)), selection.keep)[: len(selection.keep)]
            selection = replace(selection, keep=keep)
        return replace(reading, answer=answer, selection=selection)

    monkeypatch.setattr(service, "again", read)
    changed = changed_cases(service, 3)
    assert changed.counts() == {"looked_at": 7, "answer": 1, "evidence": 1}
    assert [case["episode"] for case in changed.cases] == [asked[0], asked[1], asked[6]]  # then the newest
    assert [(case["answer_changed"], case["overlap"]) for case in changed.cases] == [(True, 1), (False, 0), (False, 1)]
    assert changed_cases(service, 1).looked_at == 4  # the oldest are not among the newest four
    assert changed_cases(service, 0).cases == []
