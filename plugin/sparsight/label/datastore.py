"""The studies of the service as a MONAI Label datastore: the same ids, read only, labels kept apart from them.

Stock has two datastores: one lists only the files at the top of a folder and writes into it, the other knows only
DICOMweb, lists CT alone and caches that list for two hours. This one stands on `imaging.studies`, so that a folder of
DICOM, NIfTI and pictures, or a PACS, are served alike; labels and their index live under `home`.
"""

from __future__ import annotations

import hashlib
import logging
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
from sparsight.imaging.export import read_mask
from sparsight.imaging.files import RAS_TO_LPS
from sparsight.imaging.load import is_image_file
from sparsight.imaging.studies import FolderStudies, StudyInfo, open_studies
from sparsight.label.pacs import Pacs
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
        folder.mkdir(parents=True, exist_ok=True)
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
        if image_id not in self._infos:
            self._list_again()
        return image_id in self._infos

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
                made.parent.mkdir(parents=True, exist_ok=True)
                write_volume(made, self._source.load(image_id))
        return str(made)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of the image without opening it."""
        if not self.has(image_id):
            return {}
        info = self._infos[image_id]
        known = {"Modality": info.modality, "StudyInstanceUID": info.study_uid, "SeriesInstanceUID": info.series_uid}
        return {**self._object(image_id).image.info, **{key: value for key, value in known.items() if value}}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:  # noqa: ARG002
        """Add a file to the studies folder. Raises InputError for a PACS, ConflictError if the id is taken."""
        if not isinstance(self._source, FolderStudies):
            raise InputError("an upload to a PACS", expected="a served folder", todo="send it to the PACS itself")
        target = self._source.root / f"{image_id}{''.join(Path(image_filename).suffixes)}"
        if self.has(image_id) or target.exists():
            raise ConflictError("an id that is taken", expected="a new id", todo="choose another one")
        shutil.copyfile(image_filename, target)
        self._list_again()
        return image_id

    def remove_image(self, image_id: str) -> None:  # noqa: ARG002
        """Refused: studies are read only. Raises InputError."""
        raise InputError("a study to delete", expected="studies are read only here", todo="delete it where it is kept")

    # --- labels ---

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label; a final one goes to the PACS as DICOM SEG, too. Raises ImageError for what is no mask."""
        if not self.has(image_id):
            raise ImageNotFoundException(f"Image {image_id} not found")
        mask, _ = read_mask(Path(label_filename))
        info = {**label_info, "empty": not mask.any()}
        if self._pacs and label_tag == "final" and mask.any():
            info["pacs"] = self._pacs.store_segmentation(self._infos[image_id], Path(label_filename), info)
        with self._current():
            self._object(image_id)
            saved: str = super().save_label(image_id, label_filename, label_tag, info)
        return saved

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
            Path(self.get_label_uri(label_id, label_tag)).unlink(missing_ok=True)
            del held.labels[label_tag]
            self._update_datastore_file()

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
        """Hold the index as it is on disk now: a background job writes it, too."""
        with self._guard:
            self._init_from_datastore_file()
            yield

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
    temporary = path.with_name(f"writing-{path.name}")
    nibabel.save(image, temporary)
    temporary.replace(path)  # a reader sees all of it or nothing
