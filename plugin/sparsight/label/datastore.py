"""The studies of the service as a MONAI Label datastore: the same ids, read only, labels kept apart from them.

Stock has two datastores: one lists only the files at the top of a folder and writes into it, the other knows only
DICOMweb, lists CT alone and caches that list for two hours. This one stands on `imaging.studies`, so that a folder of
DICOM, NIfTI and pictures, or a PACS, are served alike; labels and their index live under `home`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from sparsight.errors import ConflictError, InputError, SparsightError
from sparsight.imaging.export import read_mask, whole
from sparsight.imaging.files import RAS_TO_LPS
from sparsight.imaging.load import is_image_file, load
from sparsight.imaging.studies import FolderStudies, StudyInfo, open_studies
from sparsight.label.pacs import Pacs
from sparsight.store.files import TEMPORARY, disk_errors, locked, make_folder, replace_file
from sparsight.types import ImageVolume

logger = logging.getLogger(__name__)

_FRESH_S = 5.0  # a list older than this is read again, in the background
_MASKS = ("*.nii.gz", "*.nii", "*.seg.nrrd", "*.nrrd", "*.png", "*.tif", "*.tiff")


class StudiesDatastore(LocalDatastore):
    """Thread-safe. `studies`: a folder or a DICOMweb URL; `root`: where labels, index and converted images are kept."""

    def __init__(self, studies: str, root: Path) -> None:
        self._source = open_studies(studies)
        self._pacs = Pacs(studies) if studies.startswith(("http://", "https://")) else None
        self._guard = threading.RLock()
        self._infos: dict[str, StudyInfo] = {}
        self._listed_at = -_FRESH_S
        self._listing = threading.Lock()
        folder = root / hashlib.sha256(studies.encode()).hexdigest()[:16]
        make_folder(folder)
        self._index_lock = folder / "index.lock"
        super().__init__(str(folder), images_dir="images", extensions=list(_MASKS), auto_reload=False, read_only=True)
        with suppress(SparsightError):  # a PACS that does not answer yet must not keep the server from starting
            self._list_again()

    # --- images ---

    def list_images(self) -> list[str]:
        """Ids of all studies. An old list is given at once and read again in the background."""
        if time.monotonic() - self._listed_at > _FRESH_S:
            if self._infos:
                threading.Thread(target=self._list_quietly, name="sparsight-list", daemon=True).start()
            else:
                self._list_again()
        return list(self._infos)

    def has(self, image_id: str) -> bool:
        """Whether the study is there, now."""
        return self._known(image_id) is not None

    def get_image_uri(self, image_id: str) -> str:
        """A file with the image: the original, or a NIfTI of the DICOM series. Raises ImageNotFoundException."""
        if not self.has(image_id):
            raise ImageNotFoundException(f"Image {image_id} not found")
        if isinstance(self._source, FolderStudies):
            paths = self._source.paths(image_id)
            if len(paths) == 1 and is_image_file(paths[0]):
                return str(paths[0])
        name = hashlib.sha256(f"{image_id}:{self._source.fingerprint(image_id)}".encode()).hexdigest()[:16]
        made = Path(self._datastore.image_path()) / name / f"{image_id}.nii.gz"
        with self._guard:
            if not made.exists():
                make_folder(made.parent)
                with disk_errors():
                    write_volume(made, self._source.load(image_id))
        return str(made)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of the image without opening it."""
        info = self._known(image_id)
        if info is None:
            return {}
        known = {"Modality": info.modality, "StudyInstanceUID": info.study_uid, "SeriesInstanceUID": info.series_uid}
        return {**self._object(image_id).image.info, **{key: value for key, value in known.items() if value}}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:  # noqa: ARG002
        """Add a file to the studies folder; returns the id that it is listed under (of DICOM, its own UID).

        Raises InputError (a PACS), ConflictError (the id or the series is there), ImageError or GeometryError (what
        cannot be read), BusyError.
        """
        if not isinstance(self._source, FolderStudies):
            raise InputError("an upload to a PACS", expected="a served folder", todo="send it to the PACS itself")
        target = self._source.root / f"{image_id}{''.join(Path(image_filename).suffixes)}"
        load(Path(image_filename))  # whoever sends it hears at once, not whoever asks about it
        with self._guard:
            if self.has(image_id) or target.exists():
                raise _taken()
            with disk_errors(), whole(target) as temporary:
                shutil.copyfile(image_filename, temporary)
            listed = self._source.holder(target)
            if listed is None or len(self._source.paths(listed)) > 1:
                target.unlink()
                raise _taken()
            self._list_again()
        return listed

    def remove_image(self, image_id: str) -> None:  # noqa: ARG002
        """Refused: studies are read only. Raises InputError."""
        raise InputError("a study to delete", expected="studies are read only here", todo="delete it where it is kept")

    # --- labels ---

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label; a final one goes to the PACS as DICOM SEG, too.

        Raises ImageNotFoundException, ImageError for what is no mask, BusyError (disk full: the old label is kept).
        """
        study = self._known(image_id)
        if study is None:
            raise ImageNotFoundException(f"Image {image_id} not found")
        given = Path(label_filename)
        mask, _ = read_mask(given)
        _, extension = self._to_id(given.name)
        target = Path(self._datastore.label_path(label_tag)) / self._filename(image_id, extension)
        info = {**label_info, "empty": not mask.any(), "ts": int(time.time()), "name": target.name}
        make_folder(target.parent)
        with self._current(), disk_errors(), self._undone(target):
            with whole(target, durable=True) as temporary:
                shutil.copyfile(given, temporary)
            self._object(image_id).labels[label_tag] = DataModel(info=info, ext=extension)
            self._update_datastore_file()
        if self._pacs and label_tag == "final" and mask.any():  # last: who tries again must not send it twice
            sent = self._pacs.store_segmentation(study, given, info)
            try:
                self.update_label_info(image_id, label_tag, {"pacs": sent})
            except (SparsightError, LabelNotFoundException):  # label and PACS are as they should be
                logger.exception("what the PACS said of a label was not recorded")
        return image_id

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids with a final label."""
        with self._current():
            done = set(super().get_labeled_images(label_tag, labels))
        return [image_id for image_id in self.list_images() if image_id in done]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids without a final label."""
        done = set(self.get_labeled_images(label_tag, labels))
        return [image_id for image_id in self.list_images() if image_id not in done]

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Forget a label. Raises LabelNotFoundException."""
        with self._current():
            held = self._datastore.objects.get(label_id)
            if not held or label_tag not in held.labels:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            path = Path(self.get_label_uri(label_id, label_tag))
            del held.labels[label_tag]
            self._update_datastore_file()
            path.unlink(missing_ok=True)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of the image."""
        if not self.has(image_id):
            raise ImageNotFoundException(f"Image {image_id} not found")
        with self._current():
            self._object(image_id)
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of the label."""
        with self._current():
            super().update_label_info(label_id, label_tag, info)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and final label file."""
        pairs = [(self.get_image_uri(i), self.get_label_uri(i, "final")) for i in self.get_labeled_images()]
        return [
            {"image": image, "label": label} if full_path else {"image": Path(image).name, "label": Path(label).name}
            for image, label in pairs
        ]

    def json(self) -> dict[str, Any]:
        """The index of the studies that are there; labels of one that is gone are kept, and shown when it is back."""
        with self._current():
            listed = self.list_images()
            for image_id in listed:
                self._object(image_id)
            index: dict[str, Any] = super().json()
        return {**index, "objects": {image_id: index["objects"][image_id] for image_id in listed}}

    def refresh(self) -> None:
        """Read the list of studies again."""
        self._list_again()

    # --- inside ---

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Hold the index as it is on disk now, alone: a background job writes it, too. Raises BusyError."""
        with self._guard, locked(self._index_lock, timeout_s=10, what="the index of labels"):
            self._init_from_datastore_file()
            yield

    @contextmanager
    def _undone(self, target: Path) -> Iterator[None]:
        """Put back the label that was there where the block fails before the index on disk has changed."""
        index = Path(self._datastore_config_path)
        before = index.read_bytes() if index.exists() else None
        aside = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
        try:
            if target.exists():
                try:
                    aside.hardlink_to(target)
                except OSError:  # not every file system has links
                    shutil.copyfile(target, aside)
            try:
                yield
            except BaseException:
                if (index.read_bytes() if index.exists() else None) == before:
                    if aside.exists():
                        aside.replace(target)
                    else:
                        target.unlink(missing_ok=True)
                raise
        finally:
            aside.unlink(missing_ok=True)

    def _update_datastore_file(self, lock: bool = True) -> None:  # noqa: ARG002  (stock signature; _current holds one)
        """Replace the index in one step. Where the disk refuses it, memory goes back to what the disk holds."""
        index = Path(self._datastore_config_path)
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        try:
            with disk_errors():
                replace_file(index, text.encode())
                self._config_ts = index.stat().st_mtime
        except SparsightError:
            self._datastore.objects.clear()
            self._config_ts = 0
            self._init_from_datastore_file()
            raise

    def _known(self, image_id: str) -> StudyInfo | None:
        """What the list says of the study. Look once: the list is replaced in the background."""
        info = self._infos.get(image_id)
        if info is None:
            self._list_again()
            info = self._infos.get(image_id)
        return info

    def _object(self, image_id: str) -> ImageLabelModel:
        with self._guard:
            info = {"name": image_id}
            return self._datastore.objects.setdefault(image_id, ImageLabelModel(image=DataModel(ext="", info=info)))

    def _list_again(self) -> None:
        self._infos = {info.id: info for info in self._source.list()}
        self._listed_at = time.monotonic()

    def _list_quietly(self) -> None:
        if self._listing.acquire(blocking=False):  # one at a time
            try:
                self._list_again()
            except SparsightError as error:
                logger.warning("the list of studies is not current: %s", error.code)
            finally:
                self._listing.release()


def write_volume(path: Path, volume: ImageVolume) -> None:
    """Write a study as .nii.gz with exact geometry, for viewers that take files; whole numbers as int16."""
    voxels = volume.voxels
    if (voxels == np.rint(voxels)).all() and voxels.min() >= -32768 and voxels.max() <= 32767:
        voxels = voxels.astype(np.int16)
    affine = RAS_TO_LPS @ volume.ijk_to_lps  # the mirror is its own inverse
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with whole(path) as temporary:  # a reader sees all of it or nothing
        nibabel.save(image, temporary)


def _taken() -> ConflictError:
    return ConflictError("an id or a series that is there", expected="a new one", todo="choose another id")
