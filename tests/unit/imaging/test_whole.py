"""Files that take their place in one step, whatever is there already."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import itk
import numpy as np
import pytest
from PIL import Image

from sparsight.errors import InputError
from sparsight.imaging import export
from sparsight.imaging.studies import FolderStudies
from sparsight.imaging.whole import whole

# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
LABELS = np.ones((2, 3, 4), dtype=np.uint8)


def test_what_is_being_written_is_no_study(tmp_path: Path) -> None:
    studies = FolderStudies(tmp_path)
    with whole(tmp_path / "a.png") as temporary:
        Image.new("L", (20, 30)).save(temporary)
        assert studies.list() == []
    assert [info.id for info in studies.list()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    together = threading.Barrier(8)

    def write(n: int) -> None:
        with whole(target) as temporary:
            together.wait()
            temporary.write_bytes(bytes([n]) * 100_000)
            together.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(set(target.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_and_leads_to_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.nii", tmp_path / "link.nii"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    export.write_labelmap(link, LABELS, np.eye(4))
    assert link.is_symlink()
    assert not real.is_symlink()
    assert real.stat().st_size > 100
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["pipe.nii.gz", "pipe.nrrd"])
def test_a_pipe_is_written_to_and_stays(tmp_path: Path, name: str) -> None:
    pipe, copy = tmp_path / name, tmp_path / f"copy-{name}"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        export.write_labelmap(pipe, LABELS, np.eye(4))
        copy.write_bytes(read.result(timeout=30))
    assert pipe.is_fifo()
    assert export.read_mask(copy)[0].all()


def test_a_folder_is_refused_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(IsADirectoryError), whole(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), whole(tmp_path / "old") as temporary:
        temporary.rename(temporary.with_name("elsewhere")).unlink()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old", b"old")]


@pytest.mark.parametrize("extension", [".nii.gz", ".seg.nrrd"])
def test_the_longest_name_there_can_be(tmp_path: Path, extension: str) -> None:
    path = tmp_path / ("n" * (255 - len(extension)) + extension)
    export.write_labelmap(path, LABELS, np.eye(4))
    assert export.read_mask(path)[0].all()


def test_only_a_full_disk_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        export.write_labelmap(tmp_path / "none" / "a.nrrd", LABELS, np.eye(4))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("of ITK")

    monkeypatch.setattr(itk, "imwrite", refuse)
    with pytest.raises(InputError, match="cannot hold"):
        export.write_labelmap(tmp_path / "a.nrrd", LABELS, np.eye(4))
    assert list(tmp_path.iterdir()) == []
