"""The panel, with stand-ins for Qt, on the real scene and the real server."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import slicer
from fake_qt import Slicer
from mrml import oblique, read_volume
from servers import Proxy, raw_server, streams

from SparsightLib import volumes, words


@pytest.fixture
def panel(application: Slicer, server) -> Iterator[Any]:
    from Sparsight import SparsightWidget

    widget = SparsightWidget()
    widget.setup()
    widget.ui.urlEdit.write(server.url)
    yield widget
    widget.cleanup()


def until(panel: Any, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Let the timer tick."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, panel.ui.statusLabel.text
        panel._tick()
        time.sleep(0.005)


def done(panel: Any) -> str:
    """Wait for what runs; what the status line says then."""
    until(panel, lambda: panel._task is None)
    return panel.ui.statusLabel.text


def ask(panel: Any, volume: Any, question: str = "Is there a nodule?") -> None:
    panel.ui.volumeSelector.setCurrentNode(volume)
    panel.ui.questionEdit.plainText = question
    panel.ui.askButton.click()
    until(panel, lambda: panel._task is None)


def tick_slowly(panel: Any) -> None:
    for _ in range(10):
        panel._tick()


def test_a_review_from_the_first_look_to_the_reward(panel: Any, server, scene: Any) -> None:
    ui = panel.ui
    assert ui.researchLabel.text == words.RESEARCH
    assert not ui.askButton.enabled
    ui.connectButton.click()
    assert not ui.connectButton.enabled
    assert "Connected: reader nano" in done(panel)
    at = next(i for i, line in enumerate(ui.studyBox.lines) if line.endswith("  head"))
    ui.studyBox.choose(at)
    ui.loadButton.click()
    assert done(panel) == "Loaded."
    volume = ui.volumeSelector.currentNode()
    assert volume.GetName() == "head"
    ui.suggestionBox.choose(0)
    ui.budgetBox.value = 20
    ui.askButton.click()
    assert ui.cancelButton.enabled
    assert done(panel) == "Answered."
    answer = panel.logic.answer
    assert answer["study"] == "head"
    assert answer["budget"]["fraction"] > 0.19 or answer["recheck"]["first_budget"]["fraction"] < 0.21
    for said in (words.confidence(answer["confidence"]), "Grounded" if answer["grounded"] else "Not grounded"):
        assert said in ui.answerView.html
    assert (answer["recheck"] is None) or "Re-checked" in ui.answerView.html
    assert ui.evidenceButton.checked
    ui.followingButton.click()
    ui.evidenceButton.click()
    assert not panel.logic.segmentation.GetDisplayNode().GetVisibility()
    # the review
    ui.missedButton.click()
    tick_slowly(panel)
    assert ui.missedButton.checked
    [roi] = panel.logic._marks()
    centre = np.array(slicer.util.arrayFromVolume(volume).shape[::-1]) / 2
    at = volumes.ijk_to_ras(volume) @ [*centre, 1]
    roi.SetCenter(*at[:3])
    roi.SetSize(12, 12, 12)
    tick_slowly(panel)
    assert not ui.missedButton.checked
    assert ui.marksLabel.text == "Marked: 1 missed."
    ui.relevantButton.click()
    ui.undoButton.click()
    ui.submitButton.click()
    assert "without verdict" in ui.statusLabel.text
    ui.amendButton.click()
    ui.rightEdit.write("yes")
    ui.commentEdit.write("behind the heart")
    ui.reviewerEdit.write("reader-7")
    ui.submitButton.click()
    assert done(panel) == "Review recorded."
    assert ui.rewardLabel.text.startswith("Recorded. Reward ")
    kept = server.corrections()[-1]
    assert (kept.reviewer, kept.verdict, kept.answer, kept.comment) == ("reader-7", "amend", "yes", "behind the heart")
    assert np.allclose(np.mean(kept.marks[0].box_mm, 0), at[:3] * [-1, -1, 1], atol=0.01)
    ui.submitButton.click()  # once more: the same correction
    done(panel)
    assert len([one for one in server.corrections() if one.key == kept.key]) == 1
    assert ui.earlierBox.lines


def test_the_life_of_a_draft(panel: Any, server, head: Any) -> None:
    ui = panel.ui
    assert not ui.draftButton.enabled
    ask(panel, head, "Is there a spot?")
    assert not ui.withdrawButton.enabled
    ui.reviewerEdit.write("reader-9")
    ui.rejectButton.click()
    ui.cannotTellButton.click()
    ui.difficultyBox.choose(3)
    ui.draftButton.click()
    assert done(panel) == "Kept as a draft: nothing is learned from it."
    assert ui.rewardLabel.text.startswith("Kept as a draft. Reward ")
    assert ui.givenBox.lines == ["reader-9: reject (cannot tell), draft"]
    assert (ui.submitDraftButton.enabled, ui.withdrawButton.enabled, ui.revertButton.enabled) == (True, True, False)
    before = len(server.corrections())  # that are learned from
    ui.submitButton.click()
    assert done(panel) == "Review recorded."
    assert ui.givenBox.lines == ["reader-9: reject (cannot tell), submitted"], "the draft itself, not another review"
    kept = server.corrections()[-1]
    assert (len(server.corrections()), kept.cannot_tell, kept.difficulty) == (before + 1, True, "hard")
    for button, state in ((ui.withdrawButton, "withdrawn"), (ui.revertButton, "submitted"), (ui.revertButton, "draft")):
        button.click()
        assert done(panel) == f"The review is {state}."
        assert ui.givenBox.lines == [f"reader-9: reject (cannot tell), {state}"]
    assert len(server.corrections()) == before
    ui.submitDraftButton.click()
    assert done(panel) == "The review is submitted."
    ui.reviewerEdit.write("reader-10")
    ui.givenBox.choose(0)
    assert not ui.withdrawButton.enabled, "another reader's"
    ui.acceptButton.click()
    ui.submitButton.click()
    assert done(panel) == "Review recorded."
    assert [line.split(":")[0] for line in ui.givenBox.lines] == ["reader-10", "reader-9"]
    ask(panel, head, "Is there a nodule in the left half?")
    assert ui.givenBox.lines == []
    assert not ui.cannotTellButton.checked


@pytest.fixture
def strange(scene: Any, tmp_path: Path) -> Any:
    """A volume that the server does not have."""
    voxels = np.random.default_rng().normal(0, 9, (24, 24, 3)).astype(np.float32)  # another each time
    nibabel.save(nibabel.Nifti1Image(voxels, oblique()), tmp_path / "Doe.nii.gz")
    return read_volume(scene, str(tmp_path / "Doe.nii.gz"))


def test_an_image_is_sent_only_to_whoever_agrees(panel: Any, application: Slicer, strange: Any) -> None:
    application.agrees = False
    ask(panel, strange)
    [offer] = application.asked
    assert panel.ui.urlEdit.text in offer
    assert panel.ui.statusLabel.text == "Not sent."
    assert panel.logic.answer is None
    application.agrees = True
    ask(panel, strange)
    assert panel.logic.answer["study"] == volumes.upload_id(strange)
    assert panel.ui.statusLabel.text == "Answered."  # and it lies where the volume does
    application.asked.clear()
    ask(panel, strange, "Is there a ring?")
    assert application.asked == []


def test_a_series_that_only_slicer_knows_is_offered_under_its_content(
    panel: Any,
    application: Slicer,
    strange: Any,
) -> None:
    strange.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    ask(panel, strange)
    assert len(application.asked) == 1
    assert panel.logic.answer["study"].startswith("slicer-")


def test_regions_of_another_image_are_not_to_be_trusted(panel: Any, head: Any) -> None:
    head.SetOrigin(0, 0, 0)
    ask(panel, head)
    assert "do not trust" in panel.ui.statusLabel.text
    assert panel.ui.statusLabel.styleSheet


def test_a_server_that_is_away_costs_nothing(panel: Any, server, head: Any) -> None:
    proxy = Proxy(server.url)
    panel.ui.urlEdit.write(proxy.url)
    ask(panel, head)
    answer = panel.logic.answer
    panel.ui.acceptButton.click()
    proxy.stop()
    panel.ui.submitButton.click()
    assert "No server at this address. Expected: an answer. To do: see whether" in done(panel)
    assert panel.ui.submitButton.enabled
    assert (panel.logic.answer, panel.logic.draft["verdict"]) == (answer, "accept")
    proxy.start()
    panel.ui.submitButton.click()
    assert done(panel) == "Review recorded."
    proxy.stop()


def test_an_answer_is_shown_as_it_comes_and_half_of_one_does_not_stay(panel: Any, head: Any) -> None:
    ask(panel, head)
    before = panel.ui.answerView.html
    assert words.answer_html(panel.logic.answer) == before
    events = [
        ("start", {"episode": "e0123456789abcdef"}),
        ("progress", {"stage": "reading"}),
        ("kept", {"kept": 6, "total": 60, "regions": []}),
        ("token", {"text": "I see "}),
        ("token", {"text": "a <spot>"}),
    ]
    with raw_server(streams(*events, then=lambda connection: connection.recv(1))) as (url, _):
        panel.ui.urlEdit.write(url)
        panel.ui.questionEdit.plainText = "Which side?"
        panel.ui.askButton.click()
        until(panel, lambda: "I see a &lt;spot&gt;" in panel.ui.answerView.html)
        assert "Which side?" in panel.ui.answerView.html
        assert "reading: 6 of 60 tokens (10.0 %)" in panel.ui.answerView.html
        tick_slowly(panel)
        assert panel.ui.statusLabel.text.startswith("Reading, ")
        panel.ui.cancelButton.click()
    assert (panel.ui.answerView.html, panel.ui.statusLabel.text) == (before, "Cancelled.")
    done(panel)
    assert panel.ui.answerView.html == before


def test_waiting_can_be_cancelled(panel: Any, head: Any) -> None:
    silent = Proxy("", silent=True)
    panel.ui.urlEdit.write(silent.url)
    panel.ui.volumeSelector.setCurrentNode(head)
    panel.ui.questionEdit.plainText = "Is there a nodule?"
    panel.ui.askButton.click()
    tick_slowly(panel)
    assert panel.ui.statusLabel.text.startswith("Looking at the study, ")
    start = time.monotonic()
    panel.ui.cancelButton.click()
    assert panel.ui.statusLabel.text.startswith("Cancelled.")
    done(panel)
    assert time.monotonic() - start < 1
    assert panel.ui.askButton.enabled
    panel.ui.askButton.click()
    slicer.mrmlScene.Clear(0)  # closing the scene ends the wait, too
    done(panel)
    assert panel.logic.answer is None
    silent.stop()


def test_entries_that_cannot_be_used_are_said_before_anything_is_sent(panel: Any, application: Slicer) -> None:
    panel.ui.urlEdit.write("http://pacs.example.org")
    panel.ui.connectButton.click()
    assert "without TLS" in panel.ui.statusLabel.text
    panel.ui.urlEdit.write("https://127.0.0.1:1")
    application.path = "/nowhere/ca.pem"
    panel.ui.caFileButton.click()
    panel.ui.connectButton.click()
    assert "certificates" in panel.ui.statusLabel.text
    assert panel.ui.connectButton.enabled


def test_settings_are_kept_but_the_token_is_not(
    panel: Any,
    application: Slicer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from Sparsight import SparsightWidget

    panel.ui.tokenEdit.write("t0ken")
    panel.ui.reviewerEdit.write("reader-7")
    assert "t0ken" not in str(application.settings)
    monkeypatch.setenv("SPARSIGHT_TOKEN", "of-the-environment")
    again = SparsightWidget()
    again.setup()
    assert (again.ui.urlEdit.text, again.ui.reviewerEdit.text) == (panel.ui.urlEdit.text, "reader-7")
    assert again.ui.tokenEdit.text == "of-the-environment"
    again.cleanup()


def test_a_login_says_who_reviews(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ui = panel.ui
    for known, shown in ((None, "reader-7"), ("user-0f3a9c27b1de", "user-0f3a9c27b1de")):
        ui.reviewerEdit.write("reader-7")
        monkeypatch.setattr("SparsightLib.client.Client.me", lambda *_, known=known: {"reviewer": known, "role": None})
        ui.connectButton.click()
        assert done(panel).startswith("Connected")
        assert (ui.reviewerEdit.text, ui.reviewerEdit.enabled) == (shown, known is None)


@pytest.mark.parametrize("role", ["reader", "reviewer", "trainer"])
def test_what_a_role_may_not_do_is_not_offered(panel: Any, guarded, head: Any, strange: Any, role: str) -> None:
    ui, (url, token) = panel.ui, guarded
    ui.urlEdit.write(url)
    ui.tokenEdit.write(token(role))
    ask(panel, head)  # before anybody pressed Connect
    assert ui.statusLabel.text == "Answered."
    assert panel.logic.has_evidence
    buttons = {"reader": set(), "reviewer": {"accept", "missed", "paint", "submit"}}
    buttons["trainer"] = {*buttons["reviewer"], "learn", "promote", "rollback"}
    offered = {name for name in buttons["trainer"] if getattr(ui, f"{name}Button").enabled}
    assert offered == buttons[role]
    assert (ui.marksLabel.text == words.NO_REVIEW) == (role == "reader")
    ui.connectButton.click()
    assert f"Connected as {role}: reader nano" in done(panel)
    tick_slowly(panel)
    assert (ui.marksLabel.text == words.NO_REVIEW) == (role == "reader")
    assert (ui.learningLabel.text == words.learning(None)) == (role != "trainer")
    assert ui.policyBox.lines
    assert not ui.reviewerEdit.enabled
    if role != "reader":
        ui.acceptButton.click()
        ui.submitButton.click()
        assert done(panel) == "Review recorded."
        ui.discardButton.click()
    ask(panel, strange)
    assert f"as {role} you may not add one" in ui.statusLabel.text


def test_a_review_is_not_dropped_unasked(panel: Any, application: Slicer, head: Any) -> None:
    ask(panel, head)
    first = panel.logic.answer
    panel.ui.rejectButton.click()
    application.agrees = False
    panel.ui.askButton.click()
    assert (panel._task, panel.logic.answer) == (None, first)
    assert application.asked == ["This review was not submitted. Drop it?"]
    panel.ui.discardButton.click()
    assert not panel.ui.rejectButton.checked
    panel.ui.askButton.click()
    done(panel)
    assert panel.logic.answer["episode"] != first["episode"]
    panel.ui.earlierBox.choose(1)
    done(panel)
    assert panel.logic.answer == first
    assert panel.logic.has_evidence


def test_a_scene_that_is_loaded_shows_its_work(panel: Any, head: Any) -> None:
    ask(panel, head, "Is it new?")
    panel.ui.amendButton.click()
    panel.ui.rightEdit.write("yes")
    from Sparsight import SparsightWidget

    again = SparsightWidget()
    again.setup()
    assert (again.ui.questionEdit.plainText, again.ui.rightEdit.text) == ("Is it new?", "yes")
    assert again.ui.amendButton.checked
    assert again.ui.volumeSelector.currentNode() is head
    assert "Is it new?" in again.ui.answerView.html
    again.cleanup()
    slicer.mrmlScene.Clear(0)
    assert (panel.ui.answerView.html, panel.ui.rightEdit.text, panel.ui.questionEdit.plainText) == ("", "", "")
    assert not panel.ui.submitButton.enabled


def test_the_next_case_is_opened_and_can_be_skipped(panel: Any) -> None:
    seen = []
    for _ in range(20):
        panel.ui.nextButton.click()
        done(panel)
        if panel.ui.statusLabel.text.startswith("No other study"):
            break
        assert panel.ui.statusLabel.text.startswith("Next: ")
        assert panel.ui.questionEdit.plainText
        seen.append(panel.ui.volumeSelector.currentNode().GetName())
    assert len(set(seen)) == len(seen) > 0


def test_painting_and_pictures(panel: Any, application: Slicer, head: Any, tmp_path: Path) -> None:
    ask(panel, head)
    panel.ui.paintButton.click()
    assert application.shown == ["SegmentEditor"]
    application.path = str(tmp_path / "evidence.png")
    panel.ui.pictureButton.click()
    assert done(panel) == "Picture saved."
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")
    application.path = str(tmp_path / "no such folder" / "evidence.png")
    panel.ui.pictureButton.click()
    assert "not saved" in done(panel)
    panel.ui.undoButton.click()
    assert "No box to remove" in panel.ui.statusLabel.text


def test_learning_is_started_and_followed(panel: Any, application: Slicer, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = iter([{"state": "running", "stats": {"stage": "step", "done": n, "total": 3}} for n in (1, 2)])
    over = {"state": "done", "stats": {"promoted": False, "reasons": ["no gain"]}}
    monkeypatch.setattr("SparsightLib.client.Client.learn", lambda self, cancel: next(jobs))
    monkeypatch.setattr("SparsightLib.client.Client.learning", lambda self, cancel: next(jobs, over))
    monkeypatch.setattr("SparsightLib.learning._EVERY_S", 0.05)
    panel.ui.learnButton.click()
    done(panel)
    assert panel.ui.learningLabel.text == "Learning: step 1 of 3"
    until(panel, lambda: panel.ui.learningLabel.text == "Learning done: no gain")
    assert panel.ui.statusLabel.text == "Learning has ended: refresh to see the policies."
    panel.ui.refreshButton.click()
    done(panel)
    panel.ui.policyBox.choose(next(i for i, line in enumerate(panel.ui.policyBox.lines) if "  live  " in line))
    application.agrees = False
    panel.ui.rollbackButton.click()
    assert panel._task is None
    application.agrees = True
    panel.ui.rollbackButton.click()
    assert "has no parent" in done(panel) or "Expected:" in panel.ui.statusLabel.text
    panel.ui.promoteButton.click()
    assert "is live" in done(panel)


def test_a_defect_of_ours_is_said_and_logged(panel: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("SparsightLib.client.Client.ready", lambda self, cancel: 1 / 0)
    panel.ui.connectButton.click()
    assert "A defect of this module (ZeroDivisionError)" in done(panel)
    assert "ZeroDivisionError" in caplog.text
    assert panel.ui.connectButton.enabled
