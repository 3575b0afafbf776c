"""The panel as Qt lays it out and draws it: it can be read, no word is cut off, and it does what it says."""

import os
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slicer
from fake_qt import Slicer

pytest.importorskip("PySide6", reason="no Qt: make test-viewers installs it")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QComboBox, QLabel
from real_qt import children, load_ui

WIDTH = 500  # pixels, of Slicer's module panel as it is at first


@pytest.fixture(scope="module")
def qt() -> QApplication:
    return QApplication.instance() or QApplication(["sparsight"])


@pytest.fixture
def panel(qt: QApplication, application: Slicer, server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module's widget; `window` is the panel that Qt made."""
    monkeypatch.setattr(slicer.util, "loadUI", load_ui)
    monkeypatch.setattr(
        slicer.util, "childWidgetVariables", lambda made: types.SimpleNamespace(**children(made)), raising=False
    )
    from Sparsight import SparsightWidget

    widget = SparsightWidget()
    shown = []
    widget.layout = types.SimpleNamespace(addWidget=shown.append)
    widget.setup()
    [made] = shown
    widget.window = made.widget
    widget.window.resize(WIDTH, widget.window.sizeHint().height())
    widget.window.show()
    widget.ui.urlEdit.text = server.url
    yield widget
    widget.cleanup()
    widget.window.close()


def done(panel: Any, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while panel._task is not None:
        assert time.monotonic() < deadline, panel.ui.statusLabel.text
        panel._tick()
        QApplication.processEvents()
        time.sleep(0.005)
    return panel.ui.statusLabel.text


def press(panel: Any, name: str) -> None:
    button = getattr(panel.ui, f"{name}Button").widget
    assert button.isEnabled(), name
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def cut_off(panel: Any) -> list[str]:
    """Buttons and labels in sight that have less room than their text needs."""
    kinds = (QAbstractButton, QLabel)
    return [
        child.objectName()
        for kind in kinds
        for child in panel.window.findChildren(kind)
        if child.isVisible() and child.text() and not _wraps(child) and child.width() < child.sizeHint().width()
    ]


def _wraps(child: Any) -> bool:
    return isinstance(child, QLabel) and child.wordWrap()


def test_a_review_by_mouse_and_keys_on_what_qt_draws(panel: Any, head: Any, artefacts: Path) -> None:
    ui = panel.ui
    assert cut_off(panel) == []
    ui.serverSection.collapsed = False
    QApplication.processEvents()
    press(panel, "connect")
    assert done(panel).startswith("Connected")
    ui.volumeSelector.setCurrentNode(head)
    ui.questionEdit.widget.setFocus()
    QTest.keyClicks(ui.questionEdit.widget, "Is there a spot?")
    press(panel, "ask")
    assert done(panel) == "Answered."
    assert panel.logic.answer["question"] == "Is there a spot?"
    assert panel.logic.answer["reasoning"] in ui.answerView.widget.toPlainText()
    press(panel, "amend")
    QTest.keyClicks(ui.rightEdit.widget, "yes")
    press(panel, "submit")
    assert done(panel) == "Review recorded."
    for _ in range(10):
        panel._tick()
    assert ui.rewardLabel.text.startswith("Recorded. Reward ")
    assert cut_off(panel) == []
    ui.serverSection.collapsed = True
    QApplication.processEvents()
    panel.window.resize(WIDTH, ui.learningSection.widget.geometry().bottom() + 12)
    QApplication.processEvents()
    picture = panel.window.grab()
    assert picture.save(str(artefacts / "slicer-panel.png"))
    image = picture.toImage()
    assert (image.width(), image.height() > 600) == (WIDTH, True)
    assert len({image.pixel(x, y) for x in range(0, WIDTH, 3) for y in range(0, image.height(), 3)}) > 20, "it is drawn"


def test_every_control_is_reached_by_tab(panel: Any) -> None:
    wanted = {
        child.objectName()
        for kind in (QAbstractButton, QComboBox)
        for child in panel.window.findChildren(kind)
        if child.isVisible() and child.isEnabled() and child.objectName() in vars(panel.ui)
    }
    panel.window.activateWindow()
    reached, one = set(), panel.window.nextInFocusChain()
    while one is not panel.window:
        if one.focusPolicy() & Qt.FocusPolicy.TabFocus:
            reached.add(one.objectName())
        one = one.nextInFocusChain()
    assert wanted <= reached
