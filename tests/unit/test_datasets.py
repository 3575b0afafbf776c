"""Data folders: what is wrong is said before anything starts; what is right becomes cases."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sparsight.datasets import load_folder
from sparsight.errors import DataError
from sparsight.imaging.load import load

SIZE = (40, 30)  # width, height


def row(number: int, **changes) -> dict:
    base = {
        "id": f"r{number}",
        "image": f"images/{number}.png",
        "question": "Is there a nodule?",
        "answer": "yes" if number % 2 else "no",
        "answer_type": "yesno",
        "split": "train",
        "size": list(SIZE),
        "modality": "MR FLAIR brain",
        "label": "Nodule",
        "boxes": [],
        "mask": None,
        "group": f"g{number}",
    }
    return base | changes


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(1, 255, (SIZE[1], SIZE[0])).astype(np.uint8))


@pytest.fixture
def write(tmp_path):
    """Write rows (dicts, or raw lines) and an image for each; gives the folder."""

    def build(*rows: dict | str) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for r in rows:
            if isinstance(r, dict):
                for name in (r["image"], r.get("image_prior"), *r.get("slices", ())):
                    if name and name.startswith("images/") and not (tmp_path / name).exists():
                        picture(seed=len(list((tmp_path / "images").iterdir()))).save(tmp_path / name)
        lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
        (tmp_path / "data.jsonl").write_text("\n".join(lines), "utf-8")
        return tmp_path

    return build


def test_a_text_may_hold_other_line_ends_and_the_file_a_byte_order_mark(write) -> None:
    folder = write(row(0, question="Is there\u2028a mass?"), row(1))
    lines = (folder / "data.jsonl").read_text("utf-8").split("\n")
    plain = "\n".join(json.dumps(json.loads(line), ensure_ascii=False) for line in lines)
    (folder / "data.jsonl").write_text(plain, "utf-8-sig")
    assert len(load_folder(folder, "train")) == 2


def test_a_picture_whose_exif_is_damaged_is_refused(write) -> None:
    folder = write(row(0, image="images/0.jpg"), row(1))
    spelled = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0a\0\0\0\0\0\0\0"  # an orientation of "a"
    picture(0).save(folder / "images" / "0.jpg", exif=spelled)
    refused(folder, "image is not one", "r0")


def refused(folder: Path, *words: str, split: str = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        load_folder(folder, split)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_rows_become_cases_of_their_split(write):
    folder = write(row(0), row(1), row(2, split="val"), row(3, split="val"))
    cases = load_folder(folder, "val")
    assert [c.id for c in cases] == ["r2", "r3"]
    assert cases[1].answer == "yes"
    assert cases[1].question.kind == "yes_no"
    assert (cases[1].group, cases[1].label, cases[1].volume.modality) == ("g3", "Nodule", "MR")
    assert cases[1].volume.shape == (1, SIZE[1], SIZE[0])
    assert cases[-1].id == "r3"
    assert [c.id for c in cases[:1]] == ["r2"]


def test_images_are_read_when_a_case_is_taken_and_once_for_neighbours(write):
    read = []
    folder = write(row(0), row(1, image="images/0.png", group="g0"), row(2))
    cases = load_folder(folder, "train", load=lambda path: read.append(path.name) or load(path))
    assert read == []
    assert cases[0].volume is not None
    assert cases[1].volume is not None
    assert read == ["0.png"]


def test_boxes_and_masks_become_the_finding(write, tmp_path):
    folder = write(
        row(0, boxes=[[4.2, 5.0, 9.5, 7.0]]),
        row(1, mask="images/m.png"),
        row(2, boxes=[[0, 0, *SIZE]]),
        row(3, mask="images/none.png"),
    )
    Image.new("L", SIZE, 0).save(tmp_path / "images" / "none.png")
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[3:6, 10:12] = 255
    Image.fromarray(mask).save(tmp_path / "images" / "m.png")
    cases = load_folder(folder, "train")
    expected = np.zeros((1, SIZE[1], SIZE[0]), bool)
    expected[0, 5:7, 4:10] = True
    assert np.array_equal(cases[0].finding, expected)
    assert np.array_equal(cases[1].finding[0], mask > 0)
    assert cases[2].finding.all()
    assert cases[3].finding is None


def test_a_prior_becomes_the_first_slice_and_the_mask_lies_in_the_second(write):
    folder = write(row(0, image_prior="images/p.png", boxes=[[1, 1, 3, 3]]), row(1))
    case = load_folder(folder, "train")[0]
    assert case.volume.shape[0] == 2
    assert np.array_equal(case.volume.voxels[0], load(folder / "images" / "p.png").voxels[0])
    assert np.array_equal(case.volume.voxels[1], load(folder / "images" / "0.png").voxels[0])
    assert not case.finding[0].any()
    assert case.finding[1].sum() == 4


def test_closed_sets_become_choices_and_the_rest_is_free(write):
    side = {"question": "Which side?", "answer_type": "choice"}
    count = {"question": "How many?", "answer_type": "count"}
    folder = write(
        row(0, **side | {"answer": "left"}),
        row(1, **side | {"answer": "Left "}),
        row(2, **side | {"answer": "both"}, split="val"),
        row(3, **count | {"answer": 3}),
        row(4, **count | {"answer": "1"}),
        row(5, question="How many cells?", answer_type="count", answer="250"),
        row(6, question="Which plane?", answer_type="closed", answer="axial"),
        row(7, question="Which side?", answer_type="open", answer="the right lung"),
    )
    cases = {c.id: c for c in load_folder(folder, "train")}
    assert cases["r0"].question.choices == ("both", "left")
    assert cases["r1"].answer == "left"
    assert cases["r3"].question.choices == ("0", "1", "2", "3")
    assert cases["r3"].answer == "3"
    assert {cases[i].question.kind for i in ("r5", "r6", "r7")} == {"free"}


def test_choices_of_a_row_are_its_own_and_in_its_order(write):
    which = {"question": "Which is it?", "answer_type": "choice"}
    folder = write(
        row(0, **which | {"answer": "Mass ", "choices": ["nodule", " mass", "ring"]}),
        row(1, **which | {"answer": "left", "choices": ["right", "left"]}),
        row(2, **which | {"answer": "b"}),
        row(3, **which | {"answer": "a"}),
    )
    cases = {c.id: c for c in load_folder(folder, "train")}
    assert cases["r0"].question.choices == ("nodule", "mass", "ring")
    assert cases["r0"].answer == "mass"
    assert cases["r1"].question.choices == ("right", "left")
    assert cases["r2"].question.choices == ("a", "b")  # what other rows choose from is no answer to this one


def test_slices_become_one_volume_in_the_order_given(write):
    folder = write(row(0, slices=["images/b.png", "images/a.png"], boxes=[[1, 1, 3, 3]]), row(1))
    case = load_folder(folder, "train")[0]
    assert case.volume.shape == (3, SIZE[1], SIZE[0])
    assert not case.volume.pair
    for slice_index, name in enumerate(("0.png", "b.png", "a.png")):
        assert np.array_equal(case.volume.voxels[slice_index], load(folder / "images" / name).voxels[0])
    assert case.finding[2].sum() == case.finding.sum() == 4


def test_slices_of_another_size_are_refused_before_the_start(write, tmp_path):
    folder = write(row(0), row(1, slices=["images/a.png"]))
    Image.new("L", (SIZE[0], SIZE[1] + 1), 9).save(tmp_path / "images" / "a.png")
    refused(folder, "r1", "slices")


def test_a_missing_file_beside_an_archive_says_to_extract_it(write, tmp_path):
    folder = write(row(0), row(1, image="pictures/1.png"))
    (tmp_path / "pictures.zip").touch()
    assert "extract pictures.zip" in refused(folder, "r1").todo


def test_a_part_is_taken_and_asked_about_without_reading_an_image(write):
    cases = load_folder(write(row(0), row(1), row(2)), "train", load=lambda path: pytest.fail("an image was read"))
    part = cases.take([2, 1])
    assert len(part) == 2
    assert [(asked.question.kind, asked.answer, asked.group) for asked in part.asked()] == [
        ("yes_no", "no", "g2"),
        ("yes_no", "yes", "g1"),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_type": "essay"}, ["line 2", "answer_type"]),
        ({"answer": ""}, ["line 2", "answer"]),
        ({"boxes": [[1, 2, 3]]}, ["line 2", "boxes"]),
        ({"id": "r0"}, ["r0", "twice"]),
        ({"group": "g0", "split": "val"}, ["r1", "two splits"]),
        ({"image": "gone.png"}, ["r1", "missing"]),
        ({"image": "../gone.png"}, ["r1", "outside the folder"]),
        ({"mask": "images/gone.png"}, ["r1", "missing"]),
        ({"answer": "perhaps"}, ["r1", "yes or no"]),
        ({"answer": "some", "answer_type": "count"}, ["r1", "digits"]),
        ({"choices": ["yes", "no"]}, ["r1", "another answer_type"]),
        ({"choices": ["yes"], "answer_type": "choice"}, ["r1", "two or more"]),
        ({"choices": ["yes", "Yes "], "answer_type": "choice"}, ["r1", "two or more"]),
        ({"choices": ["yes", " "], "answer_type": "choice"}, ["r1", "two or more"]),
        ({"choices": ["left", "right"], "answer_type": "choice"}, ["r1", "none of their choices"]),
        ({"slices": ["gone.png"]}, ["r1", "missing"]),
        ({"size": [30, 40]}, ["r1", "size"]),
        ({"boxes": [[5, 5, 5, 9]]}, ["r1", "inverted"]),
        ({"boxes": [[9, 5, 5, 9]]}, ["r1", "inverted"]),
        ({"boxes": [[0, 0, 41, 9]]}, ["r1", "outside the image"]),
        ({"boxes": [[-1, 0, 4, 9]]}, ["r1", "outside the image"]),
        ({"answer": "no"}, ["same answer"]),
    ],
)
def test_a_faulty_row_is_named_with_what_to_do(write, changes, words):
    error = refused(write(row(0), row(1, **changes)), *words)
    assert error.todo
    assert error.code == "bad_data"


def test_a_line_that_is_no_json_is_named_without_its_text(write):
    error = refused(write(row(0), '{"id": "r1", "answer": "MUSTERMANN', row(3)), "line 2")
    assert "MUSTERMANN" not in str(error)


def test_an_infinite_box_is_refused(write):
    refused(write(row(0), json.dumps(row(1, boxes=[[0, 0, float("nan"), 4]]))), "line 2")


def test_an_unknown_split_is_refused_with_those_there_are(write):
    refused(write(row(0), row(1), row(2, split="val")), "'test'", "train, val", split="test")


def test_a_missing_empty_or_binary_file_is_refused(tmp_path, write):
    refused(tmp_path, "data.jsonl")
    refused(write(""), "empty")
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "UTF-8")


def test_an_image_that_is_none_is_refused_before_the_start(write, tmp_path):
    folder = write(row(0), row(1))
    (tmp_path / "images" / "1.png").write_bytes(b"not a picture")
    refused(folder, "r1")


def test_an_image_that_breaks_off_is_refused_by_its_row(write, tmp_path):
    folder = write(row(0), row(1, image="images/1.jpg"))
    whole = (tmp_path / "images" / "1.jpg").read_bytes()
    (tmp_path / "images" / "1.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    cases = load_folder(folder, "train")  # its header is whole
    assert cases[0].id == "r0"
    with pytest.raises(DataError, match="r1"):
        _ = cases[1]


def test_only_the_first_rows_at_fault_are_listed(write):
    error = refused(write(*[row(n, image="gone.png", group=f"g{n}") for n in range(30)]), "30 rows", "r0", "...")
    assert "r29" not in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from([*sorted(row(0)), "choices", "slices"]), value=json_values)
def test_whatever_a_row_holds_it_is_read_or_refused_as_data(write, key, value):
    folder = write(row(0), row(1))
    faulty = json.dumps(row(1) | {key: value})
    (folder / "data.jsonl").write_text(json.dumps(row(0)) + "\n" + faulty, "utf-8")
    with suppress(DataError):  # anything else fails the test
        assert all(case.answer for case in load_folder(folder, "train"))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "train", "val"),
    [("bccd", 409, 173), ("ms_flair", 216, 0), ("ms_followup", 67, 0), ("nih_cxr", 1537, 257), ("vqa_rad", 1566, 206)],
)
def test_the_real_folders_load(real_data, name, train, val):
    cases = load_folder(real_data / name, "train")
    assert len(cases) == train
    if val:
        assert len(load_folder(real_data / name, "val")) == val
    for index in range(0, train, max(1, train // 12)):
        case = cases[index]
        assert case.volume.shape[0] == (2 if name == "ms_followup" else 1)
        assert case.finding is None or 0 < case.finding.mean() < 0.6
        if case.question.choices:
            assert case.answer in case.question.choices
