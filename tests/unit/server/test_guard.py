import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.errors import InputError, NotFoundError
from sparsight.server import guard


@given(st.text())
def test_a_safe_id_stays_in_its_folder(tmp_path_factory, value):
    root = tmp_path_factory.getbasetemp()
    try:
        guard.safe_id(value, "id")
    except InputError:
        return
    assert (root / value).parent == root
    assert (root / value).name == value


@pytest.mark.parametrize("value", ["head", "1.2.840.1", "scan 1", "süß", "a..b", "ct__a.nii", "x" * 256])
def test_ids_of_real_studies_are_safe(value):
    assert guard.safe_id(value, "id") == value


@given(st.text(max_size=80))
def test_a_safe_tag_is_one_plain_word(value):
    try:
        tag = guard.safe_tag(value)
    except InputError:
        return
    assert tag
    assert set(tag) <= set(string.ascii_letters + string.digits + "_-")


@pytest.mark.parametrize(
    ("name", "extension"),
    [("a.nii.gz", ".nii.gz"), ("A.NII.GZ", ".nii.gz"), ("1.2.840.nii", ".nii"), ("/tmp/../b.seg.nrrd", ".seg.nrrd"),
     (None, ".nii.gz")],
)  # fmt: skip
def test_the_extension_is_all_that_counts(name, extension):
    assert guard.safe_extension(name, guard.MASK_EXTENSIONS) == extension


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_only_objects_pass(value):
    text = json.dumps(value)
    if isinstance(value, dict):
        assert set(guard.json_object(text)) == set(value)
    else:
        with pytest.raises(InputError):
            guard.json_object(text)


def test_an_absent_object_is_empty():
    assert guard.json_object(None) == guard.json_object("") == {}


@pytest.mark.parametrize("key", sorted(guard.RESERVED_PARAMS))
def test_reserved_names(key):
    with pytest.raises(InputError, match=key):
        guard.free_params({"question": "x", key: "y"})
    assert guard.free_params({"question": "x"}) == {"question": "x"}


@pytest.mark.parametrize(
    "params",
    [
        {"a": float("nan")}, {"a": [float("inf")]}, {"\ud800": 1}, {"a": "\udfff"}, {"a": "x" * 40_000},
        {"gpus": 3}, {"gpus": "0\x00"}, {"gpus": ["0"]}, {"gpus": "\ud800"}, {"model": "x"}, {"label_tag": "../x"},
    ],
)  # fmt: skip
def test_what_no_process_can_be_told(params):
    with pytest.raises(InputError):
        guard.job_params(params)


@pytest.mark.parametrize(
    "gpus", ["all", "0", "0,1", "", None, "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-1a/2/0"]
)
def test_what_a_process_is_told(gpus):
    params = {"gpus": gpus, "question": "肺部有结节吗?", "budget": 0.1}
    assert guard.job_params(params) == params


def test_the_longest_parameters_fit_into_one_argument():
    params = {"a": "é" * (2**14 - 5)}
    assert len(json.dumps(guard.job_params(params))) < 2**17 - 2**12


def test_messages_never_repeat_what_was_given():
    for attempt in (lambda: guard.safe_id("Jane/Doe", "id"), lambda: guard.known("Jane Doe", [], "image")):
        with pytest.raises((InputError, NotFoundError)) as raised:
            attempt()
        assert "Jane" not in str(raised.value)
