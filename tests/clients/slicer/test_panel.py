"""The .ui file is complete and its keys documented; the module's files fit together and run on Slicer's Python."""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_qt import CLASSES, MODULE, UI, told, widgets

from SparsightLib import words

ROOT = Path(__file__).parents[3]
EXTENSION = MODULE.parent
SOURCES = sorted(MODULE.rglob("*.py"))
PAGE = (ROOT / "docs/clients.md").read_text(encoding="utf-8")


def test_every_widget_is_of_a_class_that_slicer_has() -> None:
    assert {element.get("class") for element in widgets().values()} <= set(CLASSES)
    names = re.findall(r'<(?:widget|layout|spacer) class="\w+" name="(\w+)"|<spacer name="(\w+)"', UI.read_text())
    assert not [name for name, n in Counter(names).items() if n > 1]


def test_every_widget_that_the_code_names_is_there_and_every_button_does_something() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    named = set(re.findall(r"\bui\.(\w+)", code)) - {"py"}
    assert named <= set(widgets())
    buttons = {name for name, element in widgets().items() if element.get("class") == "QPushButton"}
    quoted = set(re.findall(r'"(\w+)"', code))
    assert not [name for name in buttons if name.removesuffix("Button") not in quoted]


def keys() -> dict[str, str]:
    return {name: told(e)["shortcut"] for name, e in widgets().items() if "shortcut" in told(e)}


def test_every_button_has_a_key_of_its_own_that_the_page_explains() -> None:
    buttons = {name for name, element in widgets().items() if element.get("class") == "QPushButton"}
    assert set(keys()) == buttons
    assert len(set(keys().values())) == len(buttons)
    for name, key in keys().items():
        given = told(widgets()[name])
        assert given["text"].endswith(f"({key})"), name
        assert list(given).index("text") < list(given).index("shortcut"), name  # setting a text drops the shortcut
        title = given["text"].removesuffix(f" ({key})")
        assert f"| **{title}** `{key}` |" in PAGE, name


def test_slicers_own_keys_are_left_alone() -> None:
    """Of the slice views (R: reset the field of view; V, G, T: show and hide) and of the main window."""
    taken = {"R", "V", "G", "T", "F", "B", "[", "]", "{", "}", "Ctrl+C", "Ctrl+V", "Ctrl+X", "Ctrl+S", "Ctrl+O"}
    taken |= {f"Ctrl+{n}" for n in (1, 2, 4, 5, 6, "H", "W", "F", "Y", "A")}
    assert not taken & set(keys().values())


def test_every_field_is_explained() -> None:
    for name, element in widgets().items():
        if element.get("class") in ("QLineEdit", "QComboBox", "QSpinBox", "QCheckBox", "qMRMLNodeComboBox"):
            given = told(element)
            assert given.get("toolTip") or given.get("placeholderText"), name
    for title in ("Address", "Token", "Certificates", "Reviewer", "Tokens to keep", "Re-check doubtful answers"):
        assert f"| **{title}** |" in PAGE


def test_the_build_files_name_what_is_there() -> None:
    scripts = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
    for path in (*SOURCES, UI):
        assert str(path.relative_to(MODULE)) in scripts
    assert "add_subdirectory(Sparsight)" in (EXTENSION / "CMakeLists.txt").read_text(encoding="utf-8")
    entry = json.loads((EXTENSION / "Sparsight.json").read_text(encoding="utf-8"))
    assert (ROOT / entry["build_subdirectory"] / "CMakeLists.txt").is_file()
    assert set(entry) <= {
        "$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision", "scm_type", "scm_url",
        "tier",
    }  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_it_is_python_3_9_and_imports_nothing_that_slicer_does_not_bring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    assert "from __future__ import annotations" in path.read_text(encoding="utf-8") or len(tree.body) == 1
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    brought = {"numpy", "vtk", "slicer", "qt", "ctk", "SparsightLib"}
    foreign = {name.split(".")[0] for name in imported} - brought
    assert foreign <= sys.stdlib_module_names
    if path.stem in ("client", "stream", "wire"):
        assert not {name.split(".")[0] for name in imported} & brought


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.95, "very likely right (about 10 in 10)"),
        (0.8, "likely right (about 8 in 10)"),
        (0.5, "uncertain (about 5 in 10)"),
    ],
)
def test_confidence_is_said_in_the_words_of_the_page(p: float, said: str) -> None:
    assert words.confidence(p) == said
    page = (ROOT / "plugin/sparsight/server/static/words.js").read_text(encoding="utf-8")
    assert said.split(" (", maxsplit=1)[0] in page


def test_stages_are_said_in_the_words_of_ohif() -> None:
    told = (ROOT / "plugin/clients/ohif/src/words.ts").read_text(encoding="utf-8")
    for name, said in words._STAGES.items():
        assert f"{name}: '{said}'" in told
    assert words.stage("another") == "another"


def test_an_answer_says_all_that_matters_and_nothing_is_html() -> None:
    answer = {
        "question": "<script>?", "answer": "no", "reasoning": "I see no <b>nodule</b>.", "confidence": 0.63,
        "abstained": False, "grounded": False, "budget": {"kept": 1024, "total": 6048, "fraction": 0.169},
        "slices": {"encoded": 48, "total": 384}, "evidence": [{}], "policy": {"id": "p0"},
        "recheck": {"note": "No was re-checked with all tokens: still no"}, "notes": ["one slice was left out"],
    }  # fmt: skip
    said = words.answer_html(answer)
    assert "<script>" not in said
    assert "<b>nodule" not in said
    for part in (
        "more likely right than not (about 6 in 10)", "Not grounded:", "1024 of 6048 tokens (16.9 %), 1 region<",
        "48 of 384 slices", "Re-checked:", "still no", "Note:", "one slice was left out",
    ):  # fmt: skip
        assert part in said
    abstained = words.answer_html({**answer, "abstained": True, "grounded": None, "recheck": None, "slices": None})
    for part in ("No answer", "It leaned towards: no", "too low to answer", "not tested"):
        assert part in abstained


def test_whose_left_and_right_it_is_is_said_in_the_words_of_ohif_and_the_page() -> None:
    plain = {"question": "Is it outright bright?", "answer": "no", "reasoning": None, "reader": "nano-2760bfd2"}
    assert words._sides(plain) == []
    for name in ("question", "answer", "reasoning"):
        [(_, whose)] = words._sides(plain | {name: "the upper Right"})
        assert whose == "those of the picture, not of the patient"
    [(_, unknown)] = words._sides(plain | {"answer": "left", "reader": "a-model"})
    for other in ("plugin/clients/ohif/src/words.ts", "plugin/sparsight/server/static/words.js"):
        told = (ROOT / other).read_text(encoding="utf-8")
        assert whose in told
        assert unknown in told


def test_rewards_jobs_and_policies_in_words() -> None:
    worth = {"reward": {"total": -0.5, "parts": {"answer": -1.0, "grounding": None}, "version": "1"}}
    assert words.reward([worth]) == "Recorded. Reward -0.50 (answer -1.00)"
    assert words.reward([worth], draft=True).startswith("Kept as a draft. Reward -0.50")
    foreign = worth | {"notes": ["another reader's"]}
    assert words.reward([foreign, foreign]).endswith("(answer -1.00); another reader's")
    given = {"reviewer": "r-1", "verdict": "amend", "answer": "no", "state": "submitted", "learned_by": ["p1"]}
    assert words.given(given) == "r-1: amend (no), submitted, learned by p1"
    assert words.learning({"state": "idle", "stats": {}}).startswith("Nothing was learned")
    assert words.learning({"state": "running", "stats": {}}) == "Learning: starting"
    assert words.learning({"state": "done", "stats": {"promoted": True}}) == "Learning done: promoted"
    assert words.learning({"state": "failed", "stats": {"error": {"given": "NaN loss"}}}) == "Learning failed: NaN loss"
    assert words.marks({"relevant": 2, "missed": 0}, painted=True) == "Marked: 2 relevant, painted regions."
    assert words.marks({}, painted=False) == "No regions marked."
