"""A published set that is broken is refused before anything starts, with what to do and without its text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsight.datasets import load_folder
from sparsight.datasets.published import LAYOUTS
from sparsight.errors import DataError

Build = Callable[[str], Path]
RAD = "VQA_RAD Dataset Public.json"
OMNI = "QA_information/Open-access/ACRIMA.json"
TEXTS = ("man falls", "technique", "modality is it", "nucleus", "lung healthy", "a mass?")  # of questions


def refused(folder: Path, *words: str, split: str = "test") -> DataError:
    with pytest.raises(DataError) as caught:
        list(load_folder(folder, split))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.todo
    assert not any(text in str(caught.value) for text in TEXTS)
    return caught.value


def change(file: Path, how: Callable[[Any], object]) -> None:
    """Alter the records of a JSON or JSONL file."""
    text = file.read_text("utf-8")
    lines = file.suffix == ".jsonl"
    records = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    how(records)
    file.write_text("\n".join(json.dumps(r) for r in records) if lines else json.dumps(records), "utf-8")


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def _header(folder: Path) -> str:
    return (folder / "test_2.csv").read_text("utf-8").splitlines()[0] + "\n"


def _emptied(folder: Path) -> None:
    for path in [*folder.iterdir()]:
        path.rename(folder.parent / f"away-{folder.name}-{path.name}")


FAULTS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "rad: no image folder": ("VQA-RAD", lambda f: (f / "VQA_RAD Image Folder").rename(f / "x"), ("missing", "2")),
    "rad: no key": ("VQA-RAD", lambda f: change(f / RAD, lambda r: r[1].pop("answer")), ("number 2", "answer_type")),
    "rad: no list": ("VQA-RAD", lambda f: (f / RAD).write_text('{"a": 1}'), ("without records",)),
    "rad: cut off": ("VQA-RAD", lambda f: (f / RAD).write_text((f / RAD).read_text()[:-9]), ("no JSON",)),
    "rad: no UTF-8": ("VQA-RAD", lambda f: (f / RAD).write_bytes(b"\xff\xfe"), ("UTF-8",)),
    "rad: an id twice": ("VQA-RAD", lambda f: change(f / RAD, lambda r: r[3].update(qid=2)), ("2", "twice")),
    "rad: no id": ("VQA-RAD", lambda f: change(f / RAD, lambda r: r[3].update(qid=None)), ("an id",)),
    "rad: no answer": ("VQA-RAD", lambda f: change(f / RAD, lambda r: r[3].update(answer=" ")), ("an answer", "3")),
    "rad: no question": ("VQA-RAD", lambda f: change(f / RAD, lambda r: r[3].update(question={})), ("a question", "3")),
    "rad: no image name": (
        "VQA-RAD",
        lambda f: change(f / RAD, lambda r: r[3].update(image_name="")),
        ("an image", "3"),
    ),
    "rad: an image outside": (
        "VQA-RAD",
        lambda f: change(f / RAD, lambda r: r[3].update(image_name="../../x.jpg")),
        ("outside the folder", "3"),
    ),
    "rad: a name no file has": (
        "VQA-RAD",
        lambda f: change(f / RAD, lambda r: r[3].update(image_name="\0.jpg")),
        ("outside the folder", "3"),
    ),
    "slake: not extracted": (
        "SLAKE",
        lambda f: ((f / "imgs").rename(f / "x"), (f / "imgs.zip").touch()),
        ("missing", "extract imgs.zip"),
    ),
    "slake: half extracted": ("SLAKE", lambda f: (f / "imgs/xmlab3/source.jpg").unlink(), ("missing", "6, 7")),
    "slake: no questions": (
        "SLAKE",
        lambda f: [(f / f"{name}.json").unlink() for name in ("train", "validate", "test")],
        ("SLAKE folder without questions", "test.json"),
    ),
    "slake: no test": ("SLAKE", lambda f: (f / "test.json").unlink(), ("'test'", "train, train-zh, val")),
    "path: more questions than answers": (
        "PathVQA",
        lambda f: change(f / "pvqa_test.json", lambda r: r[0]["sentf"]["pvqa"].append("?")),
        ("test_0000", "differ in number"),
    ),
    "path: other keys": (
        "PathVQA",
        lambda f: change(f / "pvqa_test.json", lambda r: r[0].update(sentf=[])),
        ("test_0000", "sentf.pvqa"),
    ),
    "path: no images": ("PathVQA", lambda f: (f / "images").rename(f / "x"), ("missing",)),
    "path: no picture": (
        "PathVQA",
        lambda f: (f / "images/test/test_0000.jpg").write_bytes(b"?"),
        ("image is not one", "test_0000"),
    ),
    "pmc: no column": ("PMC-VQA", lambda f: replaced(f / "test_2.csv", "Choice C", "C"), ("columns choice c",)),
    "pmc: another csv": ("PMC-VQA", lambda f: (f / "test_clean.csv").write_text("a,b\n1,2\n"), ("figure_path",)),
    "pmc: empty": ("PMC-VQA", lambda f: (f / "test_2.csv").write_text(""), ("columns figure_path",)),
    "pmc: header only": ("PMC-VQA", lambda f: (f / "test_2.csv").write_text(_header(f)), ("without records",)),
    "pmc: short lines": ("PMC-VQA", lambda f: (f / "test_2.csv").write_text(_header(f) + "0,PMC.jpg\n"), ("number 1",)),
    "pmc: an option missing": ("PMC-VQA", lambda f: replaced(f / "test_2.csv", "D:PET", "D:"), ("different options",)),
    "pmc: an option twice": ("PMC-VQA", lambda f: replaced(f / "test_2.csv", "D:PET", "D:ct"), ("different options",)),
    "pmc: no such letter": (
        "PMC-VQA",
        lambda f: replaced(f / "test_2.csv", ",D,", ",F,"),
        ("test_2-2", "among the options"),
    ),
    "pmc: an endless field": (
        "PMC-VQA",
        lambda f: (f / "test_2.csv").write_text(_header(f) + '"' + 200_000 * "x"),
        ("test_2.csv", "cannot be read"),
    ),
    "pmc: no figures": (
        "PMC-VQA",
        lambda f: ((f / "figures").rename(f / "x"), (f / "images_2.zip").touch()),
        ("missing", "extract images_2.zip"),
    ),
    "omni: no options": (
        "OmniMedVQA",
        lambda f: change(f / OMNI, lambda r: [r[0].pop(f"option_{c}") for c in "ABCD"]),
        ("ACRIMA_0000", "options"),
    ),
    "omni: another answer": (
        "OmniMedVQA",
        lambda f: change(f / OMNI, lambda r: r[0].update(gt_answer="MRI")),
        ("ACRIMA_0000", "among the options"),
    ),
    "omni: no questions": ("OmniMedVQA", lambda f: (f / OMNI).unlink(), ("without questions", "Open-access")),
    "omni: no images": ("OmniMedVQA", lambda f: (f / "Images").rename(f / "x"), ("missing",)),
    "medxpert: no label": (
        "MedXpertQA-MM",
        lambda f: change(f / "MM/test.jsonl", lambda r: r[0].update(label="J")),
        ("MM-0", "among the options"),
    ),
    "medxpert: no options": (
        "MedXpertQA-MM",
        lambda f: change(f / "MM/test.jsonl", lambda r: r[0].update(options=None)),
        ("MM-0", "options"),
    ),
    "medxpert: no images named": (
        "MedXpertQA-MM",
        lambda f: change(f / "MM/test.jsonl", lambda r: r[0].update(images=[])),
        ("MM-0", "an image"),
    ),
    "medxpert: a second image missing": (
        "MedXpertQA-MM",
        lambda f: [(f / f"images/MM-0-{c}.jpeg").unlink() for c in "ab"],
        ("MM-0", "missing"),
    ),
    "medxpert: a line cut off": (
        "MedXpertQA-MM",
        lambda f: (f / "MM/test.jsonl").write_text((f / "MM/test.jsonl").read_text()[:-5]),
        ("line 3", "no JSON"),
    ),
    "gemex: no letter": (
        "GEMeX",
        lambda f: change(f / "single_choice_question.jsonl", lambda r: r[0].update(answer="E")),
        ("single_choice 0", "among the options"),
    ),
    "gemex: no choices": (
        "GEMeX",
        lambda f: change(f / "single_choice_question.jsonl", lambda r: r[0].pop("choices")),
        ("single_choice 0", "options"),
    ),
    "gemex: no images": ("GEMeX", lambda f: (f / "files").rename(f / "x"), ("missing",)),
    "gemex: no conversation": (
        "GEMeX",
        lambda f: change(f / "sub_training_data.json", lambda r: r[0].update(conversations="?")),
        ("train 1", "a question"),
    ),
    "parquet": ("PathVQA", lambda f: (_emptied(f), (f / "train-00000.parquet").touch()), ("Parquet", "not read")),
    "unknown": ("PathVQA", _emptied, ("no known layout", "data.jsonl", "GEMeX", "SLAKE")),
    "not extracted": ("PathVQA", lambda f: (_emptied(f), (f / "OmniMedVQA.zip").touch()), ("extract OmniMedVQA.zip",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_set_is_refused_with_what_to_do(build: Build, fault: str) -> None:
    name, spoil, words = FAULTS[fault]
    folder = build(name)
    assert load_folder(folder, "test")
    spoil(folder)
    refused(folder, *words)


def test_a_folder_that_is_not_there_or_is_a_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "not there")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "not there")


def test_an_unknown_folder_is_told_every_layout_there_is(tmp_path: Path) -> None:
    refused(tmp_path, *(layout.name for layout in LAYOUTS))


def test_path_vqa_as_pickles_is_refused_and_no_pickle_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = tmp_path / "qas" / "test" / "test_qa.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(b"cbuiltins\nprint\n(S'it was opened'\ntR.")
    assert "pickles are not read" in refused(tmp_path, "pvqa_test.json").todo
    assert capsys.readouterr().out == ""


def test_our_own_rows_come_before_published_files(build: Build) -> None:
    folder = build("SLAKE")
    (folder / "data.jsonl").write_text("")
    refused(folder, "empty data.jsonl")
