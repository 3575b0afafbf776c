"""What training reads of data folders: checked before anything is drawn, and one patient of the small sets left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsight.errors import DataError
from sparsight.recipe import sources, train_nano
from sparsight.recipe.sources import LEFT_OUT, check_data, real, real_cases

Rows = list[dict[str, Any]]


def rows_of(name: str, groups: list[str], split: str) -> Rows:
    """Two questions a group, yes and no."""
    return [
        {
            "id": f"{name}-{split}-{group}-{answer}",
            "image": f"images/{split}-{group}.png",
            "question": "Is there a lesion?",
            "answer": answer,
            "answer_type": "yesno",
            "split": split,
            "group": group,
        }
        for group in groups
        for answer in ("yes", "no")
    ]


def write(folder: Path, rows: Rows) -> Path:
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(sorted({row["image"] for row in rows})):
        pixels = np.random.default_rng(number).integers(1, 255, (48, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of two sets: one with splits of its own, one whose val rows are a left-out patient's."""
    write(tmp_path / "bccd", rows_of("b", ["1", "2"], "train") + rows_of("b", ["3"], "val"))
    write(tmp_path / "ms_flair", rows_of("m", ["ms-x07", LEFT_OUT["ms_flair"]], "train"))
    return tmp_path


def change(folder: Path, how: Callable[[Rows], Rows]) -> None:
    path = folder / "data.jsonl"
    rows = how([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("\n".join(json.dumps(row) for row in rows))


def of(split: str, rows: Rows) -> Rows:
    return [row for row in rows if row["split"] == split]


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no such folder": (lambda data: data.rename(data.with_name("away")), ["not there"]),
    "no known set": (
        lambda data: [(data / name).rename(data / f"other-{name}") for name in ("bccd", "ms_flair")],
        ["nih_cxr"],
    ),
    "no rows": (lambda data: (data / "bccd" / "data.jsonl").unlink(), ["bccd", "data.jsonl"]),
    "missing image": (
        lambda data: (data / "bccd" / "images" / "train-2.png").unlink(),
        ["bccd", "b-train-2", "missing"],
    ),
    "no image": (lambda data: (data / "bccd" / "images" / "val-3.png").write_bytes(b"?"), ["bccd", "b-val-3"]),
    "box outside": (
        lambda data: change(data / "bccd", lambda rows: [rows[0] | {"boxes": [[0, 0, 65, 9]]}, *rows[1:]]),
        ["bccd", "b-train-1", "outside"],
    ),
    "box inverted": (
        lambda data: change(data / "ms_flair", lambda rows: [rows[0] | {"boxes": [[9, 0, 4, 9]]}, *rows[1:]]),
        ["ms_flair", "m-train-ms-x07", "inverted"],
    ),
    "an id twice": (lambda data: change(data / "bccd", lambda rows: [*rows, rows[0]]), ["bccd", "b-train-1", "twice"]),
    "one answer to learn from": (
        lambda data: change(
            data / "bccd", lambda rows: [r for r in rows if r["split"] == "val" or r["answer"] == "no"]
        ),
        ["bccd", "train", "same answer"],
    ),
    "one answer to measure on": (
        lambda data: change(
            data / "bccd", lambda rows: of("train", rows) + [r | {"answer": "no"} for r in of("val", rows)]
        ),
        ["bccd", "val", "same answer"],
    ),
    "nothing to learn from": (lambda data: change(data / "bccd", lambda rows: of("val", rows)), ["bccd", "'train'"]),
    "nothing to measure on": (lambda data: change(data / "bccd", lambda rows: of("train", rows)), ["bccd", "'val'"]),
    "nobody left out": (
        lambda data: change(data / "ms_flair", lambda rows: [r for r in rows if r["group"] == "ms-x07"]),
        ["ms_flair", "ms-x19"],
    ),
    "everybody left out": (
        lambda data: change(data / "ms_flair", lambda rows: [r for r in rows if r["group"] == "ms-x19"]),
        ["ms_flair", "ms-x19"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_stops_training_before_anything_is_drawn_or_written(
    data: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    spoil, words = FAULTS[fault]
    spoil(data)
    drawn: list[str] = []
    for name in ("easy", "simulated", "volumes", "pairs", "real"):
        monkeypatch.setattr(sources, name, lambda *args, name=name, **more: drawn.append(name))
    out = tmp_path_factory.mktemp("trained") / "out"
    with pytest.raises(DataError) as refused:
        train_nano(out, data, size="tiny")
    assert all(word in str(refused.value) for word in words)
    assert refused.value.todo
    assert drawn == []
    assert not out.exists()


def test_a_picture_that_breaks_off_stops_training_before_a_scene_is_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header is whole, so only reading it tells."""
    folder = data / "bccd"
    Image.open(folder / "images" / "train-2.png").save(folder / "images" / "2.jpg")
    whole = (folder / "images" / "2.jpg").read_bytes()
    (folder / "images" / "2.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    change(folder, lambda rows: [r | {"image": "images/2.jpg"} if r["group"] == "2" else r for r in rows])
    check_data(data)
    drawn: list[str] = []
    for name in ("easy", "simulated", "volumes", "pairs"):
        monkeypatch.setattr(sources, name, lambda *args, name=name, **more: drawn.append(name))
    with pytest.raises(DataError, match="b-train-2"):
        train_nano(tmp_path / "out", data, size="tiny")
    assert drawn == []


def test_a_whole_folder_or_none_is_fine(data: Path) -> None:
    check_data(data)
    check_data(None)


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_the_left_out_patient_is_measured_on_and_nobody_else(tmp_path: Path, name: str) -> None:
    unseen = LEFT_OUT[name]
    folder = write(tmp_path / name, rows_of("m", ["a", unseen, "b"], "train"))
    train, val = real_cases(folder, "train"), real_cases(folder, "val")
    assert {case.group for case in train} == {"a", "b"}
    assert {case.group for case in val} == {unseen}
    assert len(train) + len(val) == 6


def test_other_sets_keep_their_own_splits(data: Path) -> None:
    assert {case.group for case in real_cases(data / "bccd", "train")} == {"1", "2"}
    assert {case.group for case in real_cases(data / "bccd", "val")} == {"3"}
    pool = real(data, "val", lambda *_: None)
    assert [item.source for item in pool.items] == ["bccd", "bccd", "ms_flair", "ms_flair"]
    assert len(pool.pixels) == 2


def published(folder: Path, answers: list[str], images: int = 8) -> None:
    """SLAKE in its own files: yes and no about every image, and further open answers."""
    for split, first in (("train", 0), ("validate", 100)):
        rows = [
            {"qid": f"{split}-{image}-{n}", "img_name": f"xmlab{image}/source.jpg", "question": "Is it healthy?"}
            | {"answer": answer, "q_lang": "en", "answer_type": "CLOSED" if n < 2 else "OPEN"}
            for image in range(first, first + images)
            for n, answer in enumerate(("Yes", "No", *answers))
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.json").write_text(json.dumps(rows))
        for image in range(first, first + images):
            (folder / "imgs" / f"xmlab{image}").mkdir(parents=True)
            pixels = np.random.default_rng(image).integers(1, 255, (24, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "imgs" / f"xmlab{image}" / "source.jpg")


def test_a_published_set_is_trained_on_as_it_is_published(data: Path) -> None:
    published(data / "slake", ["a mass", 81 * "x"])
    check_data(data)
    pool = real(data, "train", lambda *_: None)
    own = [item for item in pool.items if item.source == "slake"]
    assert len({item.image for item in own}) == 8
    assert {item.answer for item in own} == {"yes", "no", "a mass"}  # what fits into no prompt is left out
    assert {item.source for item in pool.items} == {"bccd", "ms_flair", "slake"}
    assert len(real_cases(data / "slake", "val")) == 8 * 3


def test_of_a_large_published_set_the_first_groups_are_taken(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(data / "slake", [])
    every = {case.group for case in real_cases(data / "slake", "train")}
    monkeypatch.setattr(sources, "_MOST_GROUPS", 3)
    taken = {case.group for case in real_cases(data / "slake", "train")}
    assert len(taken) == 3
    assert taken < every
    assert taken == {case.group for case in real_cases(data / "slake", "train")}


def test_a_published_set_without_a_short_row_stops_training(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(data / "slake", [])
    monkeypatch.setattr(sources, "_MOST_BYTES", (3, 80))
    with pytest.raises(DataError, match="slake: no train row"):
        check_data(data)


@pytest.mark.realdata
def test_the_left_out_patients_are_in_the_real_sets(real_data: Path) -> None:
    check_data(real_data)
    for name in LEFT_OUT:
        assert real_cases(real_data / name, "train")
        assert real_cases(real_data / name, "val")
