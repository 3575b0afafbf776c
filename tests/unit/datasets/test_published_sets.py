"""Published sets become rows as their authors mean them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsight.datasets import FolderCases, load_folder
from sparsight.datasets.published import LAYOUTS
from sparsight.errors import DataError

Build = Callable[[str], Path]
SIZE = (12, 10)  # width, height, of the pictures that are built
YES_NO = ("yes", "no")
RAD = "VQA_RAD Dataset Public.json"


def by_id(cases: FolderCases) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Kind, choices and answer by id, of cases whose images are read."""
    return {case.id: (case.question.kind, case.question.choices, case.answer) for case in cases}


def test_every_layout_is_built_and_recognised(build: Build, built: frozenset[str]) -> None:
    assert built == {layout.name for layout in LAYOUTS}
    for name in built:
        folder = build(name)
        assert load_folder(folder, "test").published == name
        shutil.rmtree(folder)


def test_vqa_rad(build: Build) -> None:
    folder = build("VQA-RAD")
    cases = load_folder(folder, "test")
    assert by_id(cases) == {"2": ("yes_no", YES_NO, "no"), "3": ("free", (), "4")}
    assert cases[0].label == "PRES"
    assert cases[0].group == "VQA_RAD Image Folder/synpic3.jpg"
    assert cases.left_out == {"in train or val although their group is in a later split": 1}
    train = load_folder(folder, "train")
    assert set(by_id(train)) == {"0", "1"}
    assert train.groups.isdisjoint(cases.groups)


def test_slake_has_a_split_for_each_language(build: Build) -> None:
    folder = build("SLAKE")
    assert by_id(load_folder(folder, "test")) == {"6": ("yes_no", YES_NO, "yes"), "7": ("free", (), "Lung")}
    train = load_folder(folder, "train")
    assert by_id(train)["1"] == ("choice", ("Liver", "Spleen"), "Liver")  # out of the folder's answers to the question
    assert set(by_id(train)) == {"0", "1", "2"}
    assert (train[0].volume.modality, train[0].label, train[0].finding) == ("MR", "Organ", None)
    assert set(by_id(load_folder(folder, "val"))) == {"4", "5"}
    chinese = load_folder(folder, "test-zh")
    assert by_id(chinese)["8"] == ("choice", ("不是", "是的"), "不是")
    assert chinese.groups.isdisjoint(train.groups)  # of the same image, but their splits are apart
    assert train.left_out == {}
    (folder / "validate.json").rename(folder / "validation.json")
    assert set(by_id(load_folder(folder, "val"))) == {"4", "5"}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_path_vqa(build: Build, split: str) -> None:
    cases = load_folder(build("PathVQA"), split)
    image = f"{split}_0000"
    assert by_id(cases) == {f"{image}-0": ("yes_no", YES_NO, "yes"), f"{image}-1": ("free", (), f"cells of {split}")}
    assert cases.groups == {f"images/{split}/{image}.jpg"}


def test_pmc_vqa(build: Build) -> None:
    folder = build("PMC-VQA")
    cases = load_folder(folder, "test")
    choices = ("CT", "MRI", "X-ray", "PET")
    assert {case.id: case.answer for case in cases} == {"test_2-1": "MRI", "test_2-2": "PET", "test_2-3": "PET"}
    assert {case.question.choices for case in cases} == {choices}
    assert cases.groups == {"PMC3", "PMC4"}  # articles
    train = {case.id: case for split in ("train", "val") for case in some(folder, split)}
    assert train["train_2-2"].answer == "X-ray"


def test_pmc_vqa_of_the_first_version_with_its_checked_test_set(build: Build) -> None:
    folder = build("PMC-VQA")
    (folder / "figures").rename(folder / "images")
    first = (folder / "test_2.csv").read_text("utf-8").replace("Answer,split", "Answer_label,Answer")
    (folder / "test_clean.csv").write_text(first, "utf-8")
    cases = load_folder(folder, "test")
    assert {case.id: case.answer for case in cases}["test_clean-1"] == "MRI"
    assert len(cases) == 3  # those of test_2.csv are not added


def test_omnimedvqa(build: Build) -> None:
    cases = load_folder(build("OmniMedVQA"), "test")
    assert by_id(cases) == {
        "ACRIMA ACRIMA_0000": ("choice", ("PET scan", "CT scan", "Blood test", "Fundus imaging"), "Fundus imaging"),
        "ACRIMA ACRIMA_0001": ("choice", ("No", "Yes"), "No"),
    }
    assert (cases[0].label, cases[0].volume.modality) == ("Modality Recognition", "CT")


def test_medxpertqa(build: Build) -> None:
    folder = build("MedXpertQA-MM")
    cases = load_folder(folder, "test")
    five = tuple(f"cause {letter}" for letter in "ABCDE")
    assert by_id(cases) == {"MM-0": ("choice", five, "cause C"), "MM-1": ("choice", ("one", "two"), "two")}
    assert cases[0].volume.shape == (2, SIZE[1], SIZE[0])
    assert cases[1].volume.shape == (1, SIZE[1], SIZE[0])
    assert cases[0].question.text == "A man falls. What next? 0"
    assert cases.left_out == {"several images of different sizes": 1}
    assert len(load_folder(folder, "dev")) == 2


def test_gemex(build: Build) -> None:
    folder = build("GEMeX")
    cases = load_folder(folder, "test")
    listed = ("0.5 cm", "Right lung, lower zone", "1.2 cm", "none")
    assert by_id(cases) == {
        "closed_ended 0": ("yes_no", YES_NO, "no"),
        "closed_ended 1": ("yes_no", YES_NO, "yes"),
        "open_ended 0": ("free", (), "An enlarged heart."),
        "single_choice 0": ("choice", listed, "Right lung, lower zone"),
        "multi_choice 1": ("choice", listed, "1.2 cm"),
    }
    assert cases.groups == {"p10000000"}  # patients
    assert {case.finding for case in cases} == {None}
    assert cases.left_out == {"several right answers": 2}
    train = {case.id: case for split in ("train", "val") for case in some(folder, split)}
    assert (train["train 1"].question.text, train["train 1"].answer) == ("Is it seen?", "yes")
    assert (train["train 2"].question.choices, train["train 2"].answer) == (listed, "Right lung, lower zone")
    assert set(train) == {"train 1", "train 2"}


def some(folder: Path, split: str) -> list[Any]:
    """Of two groups a tenth may be none."""
    try:
        return list(load_folder(folder, split))
    except DataError:
        return []


def test_a_set_without_val_has_a_tenth_of_its_train_groups_as_val(build: Build) -> None:
    folder = build("VQA-RAD")
    of_train, *others = json.loads((folder / RAD).read_text("utf-8"))
    more = [of_train | {"qid": 10 + n, "image_name": f"{n // 2}.jpg"} for n in range(200)]
    for n in range(100):
        shutil.copy(folder / "VQA_RAD Image Folder" / "synpic1.jpg", folder / "VQA_RAD Image Folder" / f"{n}.jpg")
    for n, row in enumerate(more):
        row["answer"] = ("Yes", "No")[n % 2]
    (folder / RAD).write_text(json.dumps([*more, of_train, *others]), "utf-8")
    train, val = load_folder(folder, "train"), load_folder(folder, "val")
    assert len(train) + len(val) == 202
    assert train.groups.isdisjoint(val.groups)
    assert 4 <= len(val.groups) <= 18
    assert load_folder(folder, "val").groups == val.groups


def test_a_stray_unusable_record_is_left_out_and_counted(build: Build) -> None:
    folder = build("VQA-RAD")
    rows = json.loads((folder / RAD).read_text("utf-8"))
    rows += [rows[3] | {"qid": 10 + n, "answer": "" if n == 7 else "a mass"} for n in range(120)]
    (folder / RAD).write_text(json.dumps(rows), "utf-8")
    cases = load_folder(folder, "test")
    assert cases.left_out["without an answer"] == 1
    assert "17" not in by_id(cases)
    assert len(cases) == 2 + 119
    assert cases.take([0]).left_out == cases.left_out


def test_rows_of_an_image_follow_one_another(build: Build) -> None:
    folder = build("VQA-RAD")
    rows = json.loads((folder / RAD).read_text("utf-8"))
    rows += [rows[n] | {"qid": 10 + n, "question": f"{rows[n]['question']} Say so."} for n in range(2)]
    (folder / RAD).write_text(json.dumps(rows), "utf-8")
    images = [case.group for split in ("train", "val") for case in some(folder, split)]
    assert images == sorted(images)
    assert len(images) == 4


def test_only_the_images_of_the_split_are_asked_for(build: Build) -> None:
    folder = build("PMC-VQA")
    for path in (folder / "figures").glob("PMC[12]_*"):
        path.unlink()
    assert len(load_folder(folder, "test")) == 3
    with pytest.raises(DataError, match="missing"):
        load_folder(folder, "train")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud800\0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FILES = {
    "VQA-RAD": RAD,
    "SLAKE": "test.json",
    "PathVQA": "pvqa_test.json",
    "OmniMedVQA": "QA_information/Open-access/ACRIMA.json",
    "MedXpertQA-MM": "MM/test.jsonl",
    "GEMeX": "single_choice_question.jsonl",
}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_record_holds_it_is_read_or_refused_as_data(build: Build, name: str, data: st.DataObject) -> None:
    folder = build(name)
    file = folder / FILES[name]
    text = file.read_text("utf-8")
    lines = file.suffix == ".jsonl"
    records = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    records[0][data.draw(st.sampled_from(sorted(records[0])))] = data.draw(json_values)
    file.write_text("\n".join(json.dumps(r) for r in records) if lines else json.dumps(records), "utf-8")
    try:
        cases = load_folder(folder, "test")
    except DataError:  # anything else fails the test
        return
    assert all(case.answer in (case.question.choices or (case.answer,)) for case in cases)
