"""Real anatomy as backgrounds: what installed packages carry, and what a data folder adds.

Which split a source serves (a patient is in one split only):
    icbm152    ICBM152 T1 template inside nilearn; an average, no patient           train
    nih_cxr    chest X-rays without finding; patients of the folder's own split     train, val, test (val rows halved)
    ms_flair   FLAIR of one patient with few lesions, each filled from around it    train
    demo_t1    de-faced T1 series of one person                                     test
    packages   CT, MR and CR images of pydicom-data, a picture kind never trained   test_ood
"""

from __future__ import annotations

import importlib.util
import json
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sparsight.imaging.load import load as load_image
from sparsight.sim.backgrounds import Background, Backgrounds, Source, synthetic
from sparsight.sim.config import Split
from sparsight.types import ImageVolume

Loader = Callable[[Path], ImageVolume]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

PEAK = 235  # brightest grey level of a background
SLICES = 60  # 2D backgrounds taken from one volume
# Of pydicom-data: one file per patient, greyscale, large enough.
PACKAGE_FILES = (
    "693_UNCI.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm",
    "MR2_UNCI.dcm",
    "RG1_UNCI.dcm",
    "RG3_UNCI.dcm",
    "explicit_VR-UN.dcm",
)


def standard(data: Path | None = None) -> Backgrounds:
    """Synthetic anatomy, what packages carry, and, where a data folder is given, what it has.

    Real images are read on first use. A package or a part of the folder that is missing is left out.
    """
    return Backgrounds([*synthetic(), *from_packages(), *(from_folder(data) if data else [])])


def from_packages(load: Loader = load_image) -> list[Source]:
    """icbm152 (needs nilearn) and packages (needs pydicom-data)."""
    sources = []
    template = _package_file("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    if template:
        sources.append(_of_volume("icbm152", {"train": SLICES}, lambda _: to_lps(load(template)).voxels))
    files = [p for name in PACKAGE_FILES if (p := _package_file("data_store", f"data/{name}"))]
    if files:
        sources.append(_of_images("packages", {"test_ood": files}, load))
    return sources


def from_folder(data: Path, load: Loader = load_image) -> list[Source]:
    """Sources in a data folder: nih_cxr, ms_flair, demo_dicom; those that are not there are left out."""
    sources = []
    if (data / "nih_cxr" / "data.jsonl").is_file():
        sources.append(_of_images("nih_cxr", _chest_files(data / "nih_cxr"), load))
    flair = data / "ms_flair" / "volumes" / "patient07_FLAIR_mni.nii.gz"
    if flair.is_file():
        lesions = flair.with_name("patient07_lesions_mni.nii.gz")
        sources.append(_of_volume("ms_flair", {"train": SLICES}, lambda _: _without(lesions, flair, load)))
    archive = data / "demo_dicom" / "dicom_t1_pddl.tar.xz"
    if archive.is_file():
        sources.append(_of_volume("demo_t1", {"test": SLICES}, lambda _: _unpacked(archive, load)))
    return sources


def to_lps(volume: ImageVolume) -> ImageVolume:
    """Turn the array (no resampling) so that columns run to left, rows to posterior, slices to superior."""
    direction = volume.ijk_to_lps[:3, :3] / np.linalg.norm(volume.ijk_to_lps[:3, :3], axis=0)
    axis_of = [int(a) for a in np.abs(direction).argmax(1)]  # for x, y, z: which of i, j, k
    if sorted(axis_of) != [0, 1, 2]:
        axis_of = [0, 1, 2]
    voxels = volume.voxels.transpose([2 - axis_of[2], 2 - axis_of[1], 2 - axis_of[0]])
    turn = [slice(None, None, -1 if direction[n, axis_of[n]] < 0 else 1) for n in (2, 1, 0)]
    return ImageVolume(np.ascontiguousarray(voxels[tuple(turn)]), np.eye(4), volume.modality, volume.window)


def to_bytes(voxels: Floats, window: tuple[float, float] | None, size: int) -> Bytes:
    """One slice (H, W) to (size, size) bytes: windowed (or by percentiles), padded to a square, resized smoothly."""
    image = np.asarray(voxels, np.float32)
    if window is None:
        low, high = (float(q) for q in np.quantile(image, (0.005, 0.995)))
    else:
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    side = max(image.shape)
    missing = [side - n for n in image.shape]
    image = np.pad(image, [(m // 2, m - m // 2) for m in missing])
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(np.asarray(resized) * PEAK, np.uint8)


def _package_file(package: str, path: str) -> Path | None:
    """A file inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / path
    return file if file.is_file() else None


def _chest_files(folder: Path) -> dict[Split, list[Path]]:
    """Images without finding by split; the folder's val patients are halved into val and test by their name."""
    files: dict[Split, list[Path]] = {"train": [], "val": [], "test": []}
    for line in (folder / "data.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["label"] is None and row["answer"] == "no":
            half: Split = "val" if zlib.crc32(str(row["group"]).encode()) % 2 else "test"
            files["train" if row["split"] == "train" else half].append(folder / row["image"])
    return files


def _of_images(kind: str, files: dict[Split, list[Path]], load: Loader) -> Source:
    def make(split: Split, n: int, shape: tuple[int, int, int]) -> Background:
        path = files[split][n]
        volume = load(path)
        window = volume.window if volume.modality == "CT" else None
        voxels = to_bytes(volume.voxels[volume.shape[0] // 2], window, shape[1])[None]
        modality = "CR" if volume.modality == "OT" else volume.modality
        return Background(voxels, kind, f"{kind}-{path.stem.split('_')[0]}", modality)

    return Source(kind, {s: len(f) for s, f in files.items()}, make, images_only=True)


def _of_volume(
    kind: str,
    counts: dict[Split, int],
    voxels_of: Callable[[Split], Floats],
) -> Source:
    """Slices, or slabs, of one person's volume per split."""

    @cache
    def prepared(split: Split, size: int) -> Bytes:
        voxels = voxels_of(split)
        low, high = (float(q) for q in np.quantile(voxels[:: max(1, len(voxels) // 40)], (0.005, 0.997)))
        cropped = _body(voxels, low + 0.1 * (high - low))
        return np.stack([to_bytes(s, ((low + high) / 2, high - low), size) for s in cropped])

    def make(split: Split, n: int, shape: tuple[int, int, int]) -> Background:
        slices = prepared(split, shape[1])
        spread = len(slices) - 1
        if shape[0] == 1:
            chosen = slices[[round(n / (counts[split] - 1) * spread)]]
        else:  # a slab of 60 to 100 % of the height, resampled to the depth asked for
            length = (0.6 + 0.4 * (n % 7) / 6) * spread
            start = (spread - length) * (n % 5) / 4
            chosen = slices[np.rint(np.linspace(start, start + length, shape[0])).astype(int)]
        return Background(chosen, kind, f"{kind}-{split}", "MR")

    return Source(kind, counts, make)


def _body(voxels: Floats, air: float) -> Floats:
    """The slices that show a large section of the body, cropped in plane to it with 6 % around."""
    body = voxels > air
    covered = body.mean((1, 2))
    body = body[covered > 0.6 * covered.max()]
    bounds = []
    for axis in (1, 2):
        inside = np.flatnonzero(body.mean((0, 3 - axis)) > 0.02)
        margin = int(0.06 * (inside[-1] - inside[0]))
        bounds.append(slice(max(inside[0] - margin, 0), inside[-1] + margin + 1))
    return np.asarray(voxels[covered > 0.6 * covered.max()][:, bounds[0], bounds[1]])


def _without(lesions: Path, image: Path, load: Loader) -> Floats:
    """A volume whose marked lesions, and 2 mm around them, are replaced by the mean of what is near."""
    voxels = to_lps(load(image)).voxels
    known = ~ndimage.binary_dilation(to_lps(load(lesions)).voxels > 0.5, iterations=2)
    weight = ndimage.gaussian_filter(known.astype(np.float32), 2)
    return np.where(known, voxels, ndimage.gaussian_filter(voxels * known, 2) / np.maximum(weight, 1e-3))


def _unpacked(archive: Path, load: Loader) -> Floats:
    """The one series in a tar archive of DICOM files."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        series = next(Path(folder).rglob("*.dcm")).parent
        return to_lps(load(series)).voxels
