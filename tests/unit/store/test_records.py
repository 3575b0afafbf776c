"""What goes in comes out: any text, any number, any mask."""

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsight.errors import FeedbackError, InputError
from sparsight.store.records import (
    canonical,
    episode_from_record,
    episode_to_record,
    feedback_from_record,
    feedback_to_record,
    reward_from_json,
    reward_to_json,
)
from sparsight.types import Answer, Episode, Evidence, Feedback, Mark, Question, Recheck, Region, Reward, Selection

texts = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(
    ["\x00", "a\ud800b", "👩‍⚕️", "שלום", "\u202e", "'; DROP TABLE episodes; --", "NaN"]
)
ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
numbers = st.floats(allow_nan=False)
points = st.tuples(numbers, numbers, numbers)
boxes = st.tuples(points, points)
index_points = st.tuples(*[st.integers(0, 9999)] * 3)
times = st.datetimes(timezones=st.just(UTC)) | st.datetimes(
    min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(timezone(timedelta(hours=-7)))
)
timings = st.dictionaries(texts, numbers, max_size=3)
questions = st.builds(
    Question,
    texts,
    st.sampled_from(["free", "yes_no", "choice"]),
    st.lists(texts, max_size=3).map(tuple),
    st.none() | boxes,
)
regions = st.builds(
    Region, boxes, st.tuples(index_points, index_points), numbers, st.none() | texts, st.integers(0, 99)
)
evidence = st.builds(
    Evidence,
    st.lists(regions, max_size=2).map(tuple),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.none() | numbers,
    st.none() | st.booleans(),
)
selections = st.builds(
    Selection,
    hnp.arrays(np.int64, st.integers(0, 9)),
    hnp.arrays(np.float32, st.integers(0, 20)),
    numbers,
    st.sampled_from(["greedy", "sampled"]),
    texts,
    st.none() | st.integers(0, 2**63),
    attention=st.none() | hnp.arrays(np.float32, st.integers(0, 20)),
)
answers = st.builds(Answer, texts, texts, numbers, st.booleans(), st.none() | st.integers(0, 9), timings)
rechecks = st.builds(
    Recheck,
    st.sampled_from(["negative", "not grounded"]),
    answers,
    st.none() | numbers,
    st.integers(0, 10**6),
    st.booleans(),
)
episodes = st.builds(
    Episode,
    id=ids,
    created=times,
    study=texts,
    series_uid=texts,
    volume_sha256=texts,
    question=questions,
    selection=selections,
    answer=answers,
    evidence=evidence,
    grid_shape=index_points,
    reader=texts,
    policy=texts,
    policy_sha256=texts,
    config_sha256=texts,
    timings_ms=timings,
    recheck=st.none() | rechecks,
    prior=st.none() | st.text(min_size=1),
    modality=st.text(),
    frame_of_reference=st.text(),
)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
marks = st.builds(
    Mark,
    st.sampled_from(["relevant", "irrelevant", "missed"]),
    st.none() | boxes,
    st.none() | masks,
    st.none() | hnp.arrays(np.float64, (4, 4), elements=numbers),
)
corrections = st.builds(
    Feedback,
    ids,
    ids,
    texts,
    st.sampled_from(["accept", "amend", "reject"]),
    times,
    st.none() | texts,
    st.lists(marks, max_size=3).map(tuple),
    texts,
)


def assert_same(given: object, expected: object) -> None:
    """Equality that looks into arrays, types included."""
    assert type(given) is type(expected)
    if isinstance(expected, np.ndarray):
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given, expected)
    elif hasattr(expected, "__dataclass_fields__"):
        for field in fields(expected):
            assert_same(getattr(given, field.name), getattr(expected, field.name))
    elif isinstance(expected, tuple):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert_same(one, other)
    else:
        assert given == expected


@settings(max_examples=150, deadline=None)
@given(episodes)
def test_an_episode_survives(episode: Episode) -> None:
    record, arrays = episode_to_record(episode)
    text = canonical(record)
    assert text.isascii()
    assert "\x00" not in text
    assert_same(episode_from_record(json.loads(text), arrays), episode)


def test_a_record_of_before_the_recheck_is_the_same_text(make_episode: Callable[..., Episode]) -> None:
    record, arrays = episode_to_record(make_episode())
    assert not {"recheck", "prior"} & set(record)
    assert episode_from_record(json.loads(canonical(record)), arrays).recheck is None


@settings(max_examples=150, deadline=None)
@given(corrections)
def test_a_correction_survives(feedback: Feedback) -> None:
    record, arrays = feedback_to_record(feedback)
    assert_same(feedback_from_record(json.loads(canonical(record)), arrays), feedback)


@given(st.builds(Reward, st.floats(-1, 1), st.dictionaries(texts, st.none() | st.floats()), texts))
def test_a_reward_survives(reward: Reward) -> None:
    given = reward_from_json(reward_to_json(reward))
    assert (given.total, given.version, given.parts.keys()) == (reward.total, reward.version, reward.parts.keys())
    np.testing.assert_equal(given.parts, reward.parts)  # NaN is NaN


def test_numbers_of_numpy_become_plain_ones() -> None:
    assert canonical({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}) == '{"a":0.5,"b":3,"c":true}'


def test_a_mask_costs_its_bounding_box() -> None:
    mask = np.zeros((64, 256, 256), np.bool_)
    mask[30:33, 100:110, 50:60] = True
    _, arrays = feedback_to_record(
        Feedback("k", "e", "r", "amend", datetime.now(UTC), marks=(Mark("missed", mask=mask),))
    )
    assert sum(array.nbytes for array in arrays.values()) < 1000


@pytest.mark.parametrize("key", ["", "a b", "é", "a" * 201, "a\n", "\x00", "\ud800"])
def test_a_key_that_no_database_could_hold_is_refused(key: str) -> None:
    with pytest.raises(FeedbackError) as error:
        feedback_to_record(Feedback(key, "e", "r", "accept", datetime.now(UTC)))
    assert len(key) < 2 or key not in str(error.value)


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(InputError, match="time zone"):
        feedback_to_record(Feedback("k", "e", "r", "accept", datetime(2025, 1, 1)))
