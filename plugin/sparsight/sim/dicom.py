"""Write a simulated study as real DICOM, for samples and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from sparsight.types import ImageVolume

_STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "CR": ComputedRadiographyImageStorage}


def write_dicom(volume: ImageVolume, folder: Path, name: str) -> str:
    """Write a volume as a DICOM series of single-frame images, 12 bits, one file a slice; returns the series UID.

    The same volume and name give the same UIDs. Patient and study attributes say that it is a sample.
    """
    study, series, frame = (generate_uid(entropy_srcs=[part, name, volume.sha256]) for part in ("st", "se", "fr"))
    folder.mkdir(parents=True, exist_ok=True)
    low = volume.window[0] - volume.window[1] / 2
    stored = np.clip((volume.voxels - low) / volume.window[1] * 4095, 0, 4095).astype(np.uint16)
    for k, plane in enumerate(stored):
        path = folder / f"{k:04d}.dcm"
        if not path.exists():
            sop = generate_uid(entropy_srcs=["im", name, volume.sha256, str(k)])
            dataset = _instance(volume, k, plane, (study, series, sop, frame))
            dataset.save_as(path, enforce_file_format=True)
    return str(series)


def _instance(volume: ImageVolume, k: int, plane: Any, uids: tuple[str, str, str, str]) -> Dataset:
    study, series, sop, frame = uids
    modality = volume.modality if volume.modality in _STORAGE else "MR"
    dx, dy, dz = volume.spacing_mm
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = _STORAGE[modality], sop
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
    ds.PatientName, ds.PatientID = "SAMPLE^SIMULATED FINDINGS", f"sample-{series[-6:]}"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20260101", "120000", "", "1"
    ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName = "", "", ""
    ds.Modality = modality
    ds.Manufacturer, ds.SeriesDescription = "simulated", "Sample with simulated findings: research use only"
    ds.SeriesNumber, ds.InstanceNumber, ds.PositionReferenceIndicator = 1, k + 1, ""
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.ImagePositionPatient = [float(x) for x in (volume.ijk_to_lps @ np.array([0, 0, k, 1.0]))[:3]]
    ds.ImageOrientationPatient = [float(x) for x in (*volume.ijk_to_lps[:3, 0] / dx, *volume.ijk_to_lps[:3, 1] / dy)]
    ds.PixelSpacing, ds.SliceThickness = [dy, dx], dz
    ds.Rows, ds.Columns = plane.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.WindowCenter, ds.WindowWidth = 2047.5, 4095
    ds.RescaleIntercept, ds.RescaleSlope = 0, 1
    ds.PixelData = plane.astype("<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds
