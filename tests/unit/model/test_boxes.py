"""Boxes as text and as a ranking of tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import decode_text
from sparsight.model.rivals.boxes import (
    LATTICE,
    MOST,
    LatticeBox,
    box_scores,
    labelled_boxes,
    overlap,
    read_boxes,
    spell_boxes,
    write_boxes,
)

ALL = (0, LATTICE - 1)
cells = st.tuples(st.integers(0, LATTICE - 1), st.integers(0, LATTICE - 1)).map(lambda pair: tuple(sorted(pair)))


def made(slices: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> LatticeBox:
    return LatticeBox((slices[0], rows[0], columns[0]), (slices[1], rows[1], columns[1]))


def several(slices: st.SearchStrategy[tuple[int, int]]) -> st.SearchStrategy[tuple[LatticeBox, ...]]:
    return st.lists(st.builds(made, slices, cells, cells), max_size=MOST).map(tuple)


@given(flat=several(st.just(ALL)), deep=several(cells))
def test_what_is_written_is_read(flat: tuple[LatticeBox, ...], deep: tuple[LatticeBox, ...]) -> None:
    assert read_boxes(write_boxes(flat, deep=False), deep=False) == flat
    assert read_boxes(write_boxes(deep, deep=True), deep=True) == deep


def test_the_text_is_what_the_docstring_says() -> None:
    assert write_boxes((made(ALL, (3, 7), (2, 6)),), deep=False) == "cdgh"
    assert write_boxes((made((0, 1), (3, 7), (2, 6)),), deep=True) == "cdaghb"
    assert write_boxes((), deep=False) == "-"
    assert write_boxes((made(ALL, (0, 23), (0, 23)), made(ALL, (1, 1), (2, 2))), deep=False) == "aaxx cbcb"


@given(boxes=several(cells))
def test_ids_are_one_for_each_character_and_spell_the_text(reader: NanoReader, boxes: tuple[LatticeBox, ...]) -> None:
    text = write_boxes(boxes, deep=True)
    ids = spell_boxes(reader.tokenizer, text)
    assert len(ids) == len(text)
    assert decode_text(reader.tokenizer, ids) == text


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (None, None),
        ("", None),
        ("yes", None),
        ("abc", None),  # a corner too few
        ("cdaghb", None),  # of a volume
        ("gdch", None),  # last column before the first
        ("aayy", None),  # beyond the lattice
        ("AAXX", None),
        ("--", None),
        ("-", ()),
        (" - ", ()),
        ("cdgh gdch x", (made(ALL, (3, 7), (2, 6)),)),  # what can be read counts
        ("- cdgh", (made(ALL, (3, 7), (2, 6)),)),
        (" ".join(["aabb"] * 9), (made(ALL, (0, 1), (0, 1)),) * MOST),
    ],
)
def test_malformed_texts(text: str | None, boxes: tuple[LatticeBox, ...] | None) -> None:
    assert read_boxes(text, deep=False) == boxes


@given(st.text(alphabet="abwxyz -\n0", max_size=60), st.booleans())
def test_any_text_gives_boxes_that_lie_in_the_study_or_none(text: str, deep: bool) -> None:
    for box in read_boxes(text, deep=deep) or ():
        assert all(0 <= a <= b < LATTICE for a, b in zip(box.low, box.high, strict=True))


def test_a_finding_is_labelled_with_a_box_around_each_of_its_parts() -> None:
    share = np.zeros((1, 24, 24), np.float32)
    share[0, 3:6, 10:12] = 0.1
    share[0, 6, 12] = 0.05  # touches at a corner: the same part
    share[0, 20, 1] = 0.3
    assert labelled_boxes(share.ravel(), (1, 24, 24)) == (made(ALL, (3, 6), (10, 12)), made(ALL, (20, 20), (1, 1)))
    assert labelled_boxes(np.zeros(576, np.float32), (1, 24, 24)) == ()
    many = np.zeros((1, 24, 24), np.float32)
    many[0, ::3, 0] = np.arange(1, 9)  # eight, the later the heavier
    assert [box.low[1] for box in labelled_boxes(many.ravel(), (1, 24, 24))] == [6, 9, 12, 15, 18, 21]


@given(
    shape=st.tuples(st.sampled_from([1, 8, 30]), st.integers(3, 24), st.integers(3, 24)),
    seed=st.integers(0, 999),
)
def test_labelled_boxes_hold_all_of_a_finding(shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    share = np.zeros(shape, np.float32)
    low = [int(rng.integers(n)) for n in shape]
    share[tuple(slice(a, a + 4) for a in low)] = rng.random()
    boxes = labelled_boxes(share.ravel(), shape)
    assert len(boxes) == 1
    inside = box_scores(boxes, shape).numpy() >= -1
    assert inside[share.ravel() > 0].all()
    # On another lattice than that of 24 a box grows by less than a cell on each side.
    grown = [min(n, a + 4) - a + 2 * (n / LATTICE) + 1 for a, n in zip(low, shape, strict=True)]
    assert inside.sum() <= np.prod(grown)


def test_iou_of_boxes() -> None:
    one, two = (made(ALL, (0, 3), (0, 3)),), (made(ALL, (0, 3), (2, 5)),)
    assert overlap(one, one) == 1.0
    assert overlap(one, two) == pytest.approx(8 / 24)
    assert overlap(one + two, two + one) == 1.0
    assert overlap(one + two, one) == pytest.approx(16 / 24)
    assert overlap(one + one, one) == 1.0  # said twice
    assert overlap((made((0, 11), (0, 3), (0, 3)),), one) == 0.5  # half of the slices
    assert overlap((), ()) == 1.0
    assert overlap((), one) == overlap(one, ()) == overlap(None, one) == overlap(None, ()) == 0.0


@given(one=several(cells), two=several(cells))
def test_iou_is_symmetric_and_between_0_and_1(one: tuple[LatticeBox, ...], two: tuple[LatticeBox, ...]) -> None:
    assert overlap(one, two) == overlap(two, one)
    assert 0 <= overlap(one, two) <= 1


def test_tokens_are_ranked_from_the_centres_outwards() -> None:
    boxes = (made(ALL, (4, 6), (4, 6)), made(ALL, (14, 20), (14, 20)))
    scores = box_scores(boxes, (1, 24, 24)).reshape(24, 24)
    assert int((scores >= -1).sum()) == 9 + 49
    assert scores[[5, 17], [5, 17]].tolist() == pytest.approx([0, 0], abs=1e-6)  # several boxes get alike
    assert scores[5, 5] > scores[4, 5] > scores[3, 5] > scores[2, 5] > scores[0, 0]
    assert scores[4, 5] >= -1 > scores[3, 5]
    assert torch.equal(box_scores((), (2, 3, 4)), torch.zeros(24))


@given(boxes=several(cells).filter(len), shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)))
def test_inside_is_above_outside_on_any_grid(boxes: tuple[LatticeBox, ...], shape: tuple[int, int, int]) -> None:
    scores = box_scores(boxes, shape).reshape(shape)
    centre = [(np.arange(n) + 0.5) / n * LATTICE for n in shape]
    inside = np.zeros(shape, bool)
    for box in boxes:
        held = [(c >= a - 1e-4) & (c <= b + 1 + 1e-4) for c, a, b in zip(centre, box.low, box.high, strict=True)]
        inside |= held[0][:, None, None] & held[1][:, None] & held[2]
    assert np.array_equal((scores >= -1).numpy(), inside)
