import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from PIL import Image
from pydicom.data import get_testdata_file

from sparsight.errors import BusyError, ConflictError, ImageError, InputError
from sparsight.imaging.load import load
from sparsight.label.datastore import StudiesDatastore, write_volume
from sparsight.types import ImageVolume

# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b c"):
        Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(folder / f"{name}.png")
    shutil.copy(str(get_testdata_file("CT_small.dcm")), folder / "ct.dcm")
    return folder


@pytest.fixture
def datastore(folder, tmp_path):
    return StudiesDatastore(str(folder), tmp_path / "home")


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.eye(20, 30, dtype=np.uint8) * 255).save(path)
    return str(path)


def ct(datastore):
    [uid] = [i for i in datastore.list_images() if i not in {"a", "b c"}]
    return uid


def test_all_kinds_of_images_and_nothing_written_beside_them(datastore, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(datastore.list_images()) == 3
    assert datastore.get_image_uri("a") == str(folder / "a.png")
    made = datastore.get_image_uri(ct(datastore))
    assert made.endswith(".nii.gz")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_converted_series_is_the_same_image(datastore, folder):
    ours, original = load(Path(datastore.get_image_uri(ct(datastore)))), load(folder / "ct.dcm")
    np.testing.assert_array_equal(ours.voxels, original.voxels)
    np.testing.assert_allclose(ours.ijk_to_lps, original.ijk_to_lps, atol=1e-4)


def test_a_changed_series_is_converted_again(datastore, folder):
    first = datastore.get_image_uri(ct(datastore))
    assert datastore.get_image_uri(ct(datastore)) == first
    path = folder / "ct.dcm"
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    assert datastore.get_image_uri(ct(datastore)) != first


def test_labels_are_kept_and_found_by_a_new_process(datastore, folder, mask, tmp_path):
    datastore.save_label("b c", mask, "final", {"client_id": "x"})
    datastore.save_label("a", mask, "original", {})
    again = StudiesDatastore(str(folder), tmp_path / "home")
    for store in (datastore, again):
        assert store.get_labeled_images() == ["b c"]
        assert "a" in store.get_unlabeled_images()
        assert store.get_label_info("b c", "final")["client_id"] == "x"
        assert store.get_labels_by_image_id("a") == {"original": "a"}
        assert store.status()["label_tags"] == {"final": 1, "original": 1}
        assert Path(store.get_label_uri("b c", "final")).read_bytes() == Path(mask).read_bytes()
    again.remove_label("b c", "final")
    assert datastore.get_labeled_images() == []
    with pytest.raises(LabelNotFoundException):
        datastore.remove_label("b c", "final")


def test_two_processes_do_not_lose_each_others_labels(datastore, folder, mask, tmp_path):
    other = StudiesDatastore(str(folder), tmp_path / "home")
    datastore.save_label("a", mask, "final", {})
    other.save_label("b c", mask, "final", {})
    datastore.update_label_info("b c", "final", {"score": 1})
    assert set(datastore.get_labeled_images()) == set(other.get_labeled_images()) == {"a", "b c"}
    assert other.get_label_info("a", "final")
    assert datastore.get_label_info("b c", "final")["score"] == 1


def test_threads_do_not_lose_each_others_labels(datastore, mask):
    def save(tag):
        datastore.save_label("a", mask, tag, {})

    threads = [threading.Thread(target=save, args=(f"tag{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(datastore.get_labels_by_image_id("a")) == 8


def test_a_study_that_leaves_the_list_between_two_looks(datastore, mask, monkeypatch):
    """The list is replaced in the background; whoever looked once must not look again."""
    known = datastore._infos["a"]

    class Leaving(dict):
        def get(self, key, default=None):
            return self.pop(key, default)

        def __contains__(self, key):
            return self.pop(key, None) is not None

    datastore._infos = Leaving(a=known)
    assert datastore.get_image_info("a")["Modality"] == known.modality
    datastore._infos = Leaving(a=known)
    assert datastore.save_label("a", mask, "final", {}) == "a"
    monkeypatch.setattr(datastore, "_list_again", lambda: None)
    assert datastore.get_image_info("a") == {}
    with pytest.raises(ImageNotFoundException):
        datastore.save_label("a", mask, "final", {})


def test_two_processes_at_once_lose_no_label(datastore, folder, mask, tmp_path):
    """Two datastores share no lock but that of the disk."""
    stores = [datastore, StudiesDatastore(str(folder), tmp_path / "home")]

    def save(n):
        stores[n % 2].save_label("a", mask, f"tag{n}", {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(24)))
    for store in stores:
        store.get_labeled_images()
        assert len(store.get_labels_by_image_id("a")) == 24


def test_a_full_disk_leaves_label_and_index_as_they_were(datastore, folder, mask, tmp_path, monkeypatch):
    datastore.save_label("a", mask, "final", {"client_id": "first"})
    other = tmp_path / "other.png"
    Image.fromarray(np.ones((20, 30), np.uint8) * 255).save(other)
    before = {path: path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:

        def refuse(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", refuse)
        for call in (
            lambda: datastore.save_label("a", str(other), "final", {}),
            lambda: datastore.save_label("b c", mask, "new", {}),
            lambda: datastore.update_label_info("a", "final", {"score": 1}),
            lambda: datastore.remove_label("a", "final"),
        ):
            with pytest.raises(BusyError, match="full"):
                call()
        patch.setattr(shutil, "copyfile", lambda *_: refuse(0))
        with pytest.raises(BusyError, match="full"):
            datastore.add_image("up", mask, {})
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in (tmp_path / "home").rglob("*") if path.is_file()} == set(before)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b c.png", "ct.dcm"]
    assert datastore.get_label_info("a", "final")["client_id"] == "first"
    assert datastore.get_labeled_images() == ["a"]
    datastore.save_label("a", str(other), "final", {})
    assert Path(datastore.get_label_uri("a", "final")).read_bytes() == other.read_bytes()


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("refused", ["a.png", "datastore_v2.json"])
def test_the_index_never_lists_a_label_that_is_not_there(
    datastore, folder, mask, tmp_path, monkeypatch, refused, earlier
):
    other = tmp_path / "other.png"
    Image.fromarray(np.ones((20, 30), np.uint8) * 255).save(other)
    if earlier:
        datastore.save_label("a", str(other), "final", {"client_id": "first"})
    before = {path: path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    rename = Path.replace

    def refuse(self, target):
        if Path(target).name == refused:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(BusyError):
            datastore.save_label("a", mask, "final", {})
    held = {path: path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert {path: data for path, data in held.items() if path.suffix != ".lock" and data} == {
        path: data for path, data in before.items() if path.suffix != ".lock" and data
    }
    for store in (datastore, StudiesDatastore(str(folder), tmp_path / "home")):
        assert store.get_labeled_images() == (["a"] if earlier else [])
    datastore.save_label("a", mask, "final", {})
    assert Path(datastore.get_label_uri("a", "final")).read_bytes() == Path(mask).read_bytes()


def test_a_label_goes_to_the_pacs_once_it_is_kept(datastore, mask, monkeypatch):
    """A client that was told of a full disk tries again: the PACS must not have two segmentations then."""
    sent = []

    class Pacs:
        def store_segmentation(self, study, label, info):
            assert datastore.get_labeled_images() == ["a"]
            sent.append(study.id)
            return {"stored": True, "SeriesInstanceUID": "1.2"}

    datastore._pacs = Pacs()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", refuse)
        with pytest.raises(BusyError, match="full"):
            datastore.save_label("a", mask, "final", {})
    assert sent == []
    datastore.save_label("a", mask, "final", {})
    assert sent == ["a"]
    assert datastore.get_label_info("a", "final")["pacs"]["stored"] is True

    def busy(*_):
        raise BusyError("the disk is full", expected="room", todo="free some")

    with monkeypatch.context() as patch:  # only the note is lost, so there is nothing to try again
        patch.setattr(datastore, "update_label_info", busy)
        datastore.save_label("a", mask, "final", {})
    assert sent == ["a", "a"]


def test_an_empty_mask_is_a_label(datastore, tmp_path):
    path = tmp_path / "empty.png"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    datastore.save_label("a", str(path), "final", {})
    assert datastore.get_label_info("a", "final")["empty"] is True


def test_what_is_no_mask_is_not_stored(datastore, tmp_path):
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(b"garbage")
    with pytest.raises(ImageError):
        datastore.save_label("a", str(path), "final", {})
    assert datastore.get_labeled_images() == []


def test_new_images_appear_and_gone_ones_disappear(datastore, folder):
    shutil.copy(folder / "a.png", folder / "new.png")
    assert datastore.has("new")
    (folder / "new.png").unlink()
    datastore.json()
    datastore.refresh()
    assert "new" not in datastore.list_images()
    assert set(datastore.json()["objects"]) == set(datastore.list_images())
    with pytest.raises(ImageNotFoundException):
        datastore.get_image_uri("new")


def test_uploads_never_overwrite(datastore, folder, mask):
    assert datastore.add_image("up", mask, {}) == "up"
    assert (folder / "up.png").exists()
    with pytest.raises(ConflictError):
        datastore.add_image("a", mask, {})
    with pytest.raises(InputError):
        datastore.remove_image("a")


def test_an_uploaded_dicom_file_has_its_own_id_and_joins_no_series(datastore, folder, tmp_path):
    mr = Path(get_testdata_file("MR_small.dcm"))
    uid = datastore.add_image("any name", str(shutil.copy(mr, tmp_path / "one.dcm")), {})
    assert datastore.has(uid)
    assert not datastore.has("any name")
    assert datastore._source.load(uid).voxels.shape == (1, 64, 64)
    with pytest.raises(ConflictError):
        datastore.add_image("again", str(shutil.copy(mr, tmp_path / "two.dcm")), {})
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".dcm") == ["any name.dcm", "ct.dcm"]


@pytest.mark.parametrize("name", ["x.png", "x.nii.gz", "x.nrrd", "x.dcm", "x.tif"])
def test_an_upload_that_cannot_be_read_is_refused_and_leaves_nothing(datastore, folder, tmp_path, name):
    before = sorted(path.name for path in folder.iterdir())
    broken = tmp_path / name
    broken.write_bytes(b"no image at all")
    with pytest.raises(ImageError):
        datastore.add_image("broken", str(broken), {})
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not datastore.has("broken")


@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_written_volume_is_read_back(tmp_path, scale):
    rng = np.random.default_rng(0)
    voxels = (rng.integers(-1000, 3000, (3, 5, 4)) * scale).astype(np.float32)
    affine = np.array([[0, 0.1, -2, 5], [0.5, 0, 0, -7], [0, -0.7, 0, 9], [0, 0, 0, 1.0]])
    write_volume(tmp_path / "v.nii.gz", ImageVolume(voxels, affine, "CT", (40, 400)))
    image = nibabel.load(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), voxels)
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ image.affine, affine, atol=1e-6)
    assert image.get_data_dtype() == (np.int16 if scale == 1 else np.float32)
