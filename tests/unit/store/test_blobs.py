"""Arrays by content: exact, deduplicated, and no altered byte goes unseen."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

from sparsight.errors import WeightsError
from sparsight.store.blobs import BlobStore, pack

dtypes = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_])
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@given(st.dictionaries(st.text("abc.", min_size=1), arrays, max_size=4))
def test_packing_is_exact_and_has_one_form(given: dict[str, np.ndarray]) -> None:
    data = pack(given)
    assert pack(dict(reversed(given.items()))) == data
    for name, array in load(data).items():
        assert array.dtype == given[name].dtype
        np.testing.assert_array_equal(array, given[name])


@given(arrays)
def test_memory_order_and_byte_order_do_not_matter(array: np.ndarray) -> None:
    assert (
        pack({"a": array.T.copy().T}) == pack({"a": array}) == pack({"a": array.astype(array.dtype.newbyteorder(">"))})
    )


def test_equal_arrays_are_one_file(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    assert blobs.put({"a": np.arange(5)}) == blobs.put({"a": np.arange(5)})
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("byte", [0, 20, -1])
def test_an_altered_byte_is_found_and_healed_by_storing_again(tmp_path: Path, byte: int) -> None:
    blobs = BlobStore(tmp_path)
    sha256 = blobs.put({"a": np.arange(5)})
    (path,) = tmp_path.rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="altered"):
        blobs.get(sha256)
    blobs.put({"a": np.arange(5)})
    np.testing.assert_array_equal(blobs.get(sha256)["a"], np.arange(5))
    path.unlink()
    with pytest.raises(WeightsError, match="missing"):
        blobs.get(sha256)


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        BlobStore(tmp_path / "blobs").get("../../../etc/passwd")


def test_what_a_dead_writer_left_is_swept_but_not_a_living_ones(tmp_path: Path) -> None:
    BlobStore(tmp_path)
    old, new = tmp_path / "tmp" / ".tmp-old", tmp_path / "tmp" / ".tmp-new"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    BlobStore(tmp_path)
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == [".tmp-new"]
