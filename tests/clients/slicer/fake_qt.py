"""As much of Qt as the panel uses, built from its .ui file. What a widget does not have is an error, as in Slicer.

Properties are attributes, as PythonQt gives them. Slots are called only by what a person can do: press, choose, write.
"""

import sys
import types
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicer
from mrml import read_volume

MODULE = Path(__file__).parents[3] / "plugin/clients/slicer/Sparsight"
UI = MODULE / "Resources/UI/Sparsight.ui"


class Widget:
    """properties: name to first value. signals: those that may be connected. slots: methods that do nothing here."""

    properties: dict[str, Any] = {}
    signals: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()

    def __init__(self, **given: Any) -> None:
        common = {"enabled": True, "toolTip": "", "styleSheet": ""}
        object.__setattr__(self, "_values", {**common, **self.properties, **given})
        object.__setattr__(self, "_connected", defaultdict(list))

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if name in self.slots:
            return lambda *_: None
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._values:
            raise AttributeError(f"{type(self).__name__} has no property {name}")
        if not isinstance(value, type(self._values[name])):
            raise TypeError(f"{type(self).__name__}.{name} = {value!r}")
        self._values[name] = value

    def connect(self, signal: str, slot: Callable[..., None]) -> None:
        if signal not in self.signals:
            raise AttributeError(f"{type(self).__name__} has no signal {signal}")
        self._connected[signal].append(slot)

    def fire(self, signal: str, *args: Any) -> None:
        for slot in self._connected[signal]:
            slot(*args)


class QPushButton(Widget):
    properties = {"text": "", "checkable": False, "checked": False, "shortcut": ""}
    signals = ("clicked()",)

    def click(self) -> None:
        """As a person does: a disabled button does nothing, a checkable one changes first."""
        if self.enabled:
            if self.checkable:
                self.checked = not self.checked
            self.fire("clicked()")


class QLineEdit(Widget):
    properties = {"text": "", "placeholderText": "", "echoMode": "", "maxLength": 32767}
    signals = ("textEdited(QString)", "editingFinished()")

    def write(self, text: str) -> None:
        self.text = text
        self.fire("textEdited(QString)", text)
        self.fire("editingFinished()")


class QPlainTextEdit(Widget):
    properties = {"plainText": "", "placeholderText": "", "tabChangesFocus": False}
    signals = ("textChanged()",)
    slots = ("setFocus",)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "plainText":
            self.fire("textChanged()")


class QComboBox(Widget):
    properties = {"currentIndex": -1}
    signals = ("activated(int)",)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        object.__setattr__(self, "lines", [])

    def clear(self) -> None:
        self.lines.clear()
        self.currentIndex = -1

    def addItems(self, lines: list[str]) -> None:
        assert all(isinstance(line, str) for line in lines)
        self.lines.extend(lines)
        self.currentIndex = 0 if self.lines else -1

    def choose(self, index: int) -> None:
        self.currentIndex = index
        self.fire("activated(int)", index)


class QMRMLNodeComboBox(Widget):
    signals = ("currentNodeChanged(vtkMRMLNode*)",)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        object.__setattr__(self, "_node", None)

    def currentNode(self) -> Any:
        return self._node if self._node and slicer.mrmlScene.IsNodePresent(self._node) else None

    def setCurrentNode(self, node: Any) -> None:
        object.__setattr__(self, "_node", node)
        self.fire("currentNodeChanged(vtkMRMLNode*)", node)


class QLabel(Widget):
    properties = {"text": "", "wordWrap": False}


class QTextBrowser(Widget):
    properties = {"html": ""}


class QSpinBox(Widget):
    properties = {"value": 0, "minimum": 0, "maximum": 99, "suffix": "", "specialValueText": ""}


class QCheckBox(Widget):
    properties = {"checked": False, "text": ""}


class CtkCollapsibleButton(Widget):
    properties = {"text": "", "collapsed": False}


class QMRMLWidget(Widget):
    slots = ("setMRMLScene",)


CLASSES = {
    "qMRMLNodeComboBox": QMRMLNodeComboBox,
    "qMRMLWidget": QMRMLWidget,
    "ctkCollapsibleButton": CtkCollapsibleButton,
    **{
        c.__name__: c
        for c in (QPushButton, QLineEdit, QPlainTextEdit, QComboBox, QLabel, QTextBrowser, QSpinBox, QCheckBox)
    },
}


def widgets() -> dict[str, ET.Element]:
    """Every widget of the .ui file by its name."""
    return {element.get("name"): element for element in ET.parse(UI).getroot().iter("widget")}


def told(element: ET.Element) -> dict[str, Any]:
    """The properties that the file gives a widget, in their order."""
    kinds = {"bool": lambda text: text == "true", "number": int}
    given = {}
    for described in element.findall("property"):
        [value] = described
        given[described.get("name")] = kinds.get(value.tag, str)(value.text or "")
    return given


class QTimer(Widget):
    signals = ("timeout()",)
    slots = ("setInterval", "start", "stop")


class Settings(dict):
    """QSettings of one session."""

    def value(self, key: str, default: str) -> str:
        return self.get(key, default)

    def setValue(self, key: str, value: str) -> None:
        self[key] = value


class Slicer:
    """What the tests say to the application, and what it was told."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.agrees = True  # to whatever is asked
        self.asked: list[str] = []
        self.shown: list[str] = []  # modules
        self.path = ""  # that the next file dialog gives


@pytest.fixture
def application(scene: Any, monkeypatch: pytest.MonkeyPatch) -> Slicer:
    """Slicer around the real MRML library: enough to import the module and to show its panel."""
    slicer_ = Slicer()

    class Base:
        def __init__(self, parent: Any = None) -> None:
            self.parent, self.layout = parent, types.SimpleNamespace(addWidget=lambda widget: None)

        def setup(self) -> None:
            pass

        def resourcePath(self, name: str) -> str:
            return str(MODULE / "Resources" / name)

    def confirm(text: str, windowTitle: str) -> bool:
        slicer_.asked.append(text)
        return slicer_.agrees

    def load_ui(path: str) -> Any:
        assert Path(path) == UI
        made = {name: CLASSES[e.get("class")](**_known(e)) for name, e in widgets().items()}
        panel = made["Sparsight"]
        object.__setattr__(panel, "children", made)
        return panel

    dialogs = types.SimpleNamespace(getOpenFileName=lambda *_: slicer_.path, getSaveFileName=lambda *_: slicer_.path)
    qt = types.SimpleNamespace(QTimer=QTimer, QSettings=lambda: slicer_.settings, QFileDialog=dialogs)
    editor = types.SimpleNamespace(setSegmentationNode=lambda node: None, setSourceVolumeNode=lambda node: None)
    loadable = types.SimpleNamespace(ScriptedLoadableModule=Base, ScriptedLoadableModuleWidget=Base)
    for name, module in (("qt", qt), ("ctk", object()), ("slicer.ScriptedLoadableModule", loadable)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "Sparsight", raising=False)
    representation = types.SimpleNamespace(self=lambda: types.SimpleNamespace(editor=editor))
    modules = types.SimpleNamespace(segmenteditor=types.SimpleNamespace(widgetRepresentation=lambda: representation))
    monkeypatch.setattr(slicer, "modules", modules, raising=False)
    for name, replacement in {
        "loadUI": load_ui,
        "childWidgetVariables": lambda panel: types.SimpleNamespace(**panel.children),
        "confirmYesNoDisplay": confirm,
        "selectModule": slicer_.shown.append,
        "setSliceViewerLayers": lambda background, fit: None,
        "loadVolume": lambda path, properties: read_volume(scene, path),
    }.items():
        monkeypatch.setattr(slicer.util, name, replacement)
    return slicer_


def _known(element: ET.Element) -> dict[str, Any]:
    """Without what only Qt knows, such as sizes."""
    kind = CLASSES[element.get("class")]
    return {name: value for name, value in told(element).items() if name in {**kind.properties, "toolTip": ""}}
