"""The panel built by Qt from its .ui file, with stand-ins for the three widgets that are Slicer's own.

A widget is seen as PythonQt shows it: properties are attributes, signals go by their signature.
"""

from collections.abc import Callable
from typing import Any

import slicer
from PySide6.QtCore import Property
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QComboBox, QGroupBox, QWidget


class qMRMLWidget(QWidget):
    """The panel itself."""

    def setMRMLScene(self, scene: Any) -> None:
        pass


class ctkCollapsibleButton(QGroupBox):
    """A section; folded, only its title is seen."""

    def _fold(self, folded: bool) -> None:
        self.setMaximumHeight(self.fontMetrics().height() + 6 if folded else 16777215)

    text = Property(str, QGroupBox.title, QGroupBox.setTitle)
    collapsed = Property(bool, lambda self: self.maximumHeight() < 16777215, _fold)


class qMRMLNodeComboBox(QComboBox):
    """The scene's volumes: here the one that was chosen."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._slots: list[Callable[[Any], None]] = []

    def currentNode(self) -> Any:
        return self._node if self._node and slicer.mrmlScene.IsNodePresent(self._node) else None

    def setCurrentNode(self, node: Any) -> None:
        self._node = node
        self.clear()
        self.addItem(node.GetName())
        for slot in self._slots:
            slot(node)


class Seen:
    """A widget as PythonQt shows it. What it does not have is an error, as in Slicer."""

    def __init__(self, widget: QWidget) -> None:
        object.__setattr__(self, "widget", widget)

    def __getattr__(self, name: str) -> Any:
        if self.widget.metaObject().indexOfProperty(name) >= 0:
            return self.widget.property(name)
        return getattr(self.widget, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.widget.metaObject().indexOfProperty(name) < 0:
            raise AttributeError(f"{type(self.widget).__name__} has no property {name}")
        assert self.widget.setProperty(name, value), (name, value)

    def connect(self, signal: str, slot: Callable[..., None]) -> None:
        name, _, arguments = signal.rstrip(")").partition("(")
        if isinstance(self.widget, qMRMLNodeComboBox):
            self.widget._slots.append(slot)
        else:
            count = len(arguments.split(",")) if arguments else 0
            getattr(self.widget, name).connect(lambda *given: slot(*given[:count]))


def load_ui(path: str) -> Seen:
    """The panel as `slicer.util.loadUI` gives it."""
    loader = QUiLoader()
    for kind in (qMRMLWidget, ctkCollapsibleButton, qMRMLNodeComboBox):
        loader.registerCustomWidget(kind)
    panel = loader.load(path)
    assert panel is not None, loader.errorString()
    return Seen(panel)


def children(panel: Seen) -> dict[str, Seen]:
    """Every widget of the file by its name."""
    return {child.objectName(): Seen(child) for child in panel.widget.findChildren(QWidget) if child.objectName()}
