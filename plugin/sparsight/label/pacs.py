"""Final labels as DICOM SEG in the PACS they belong to, with MONAI Label's own converter (dcmqi)."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from monailabel.datastore.utils.dicom import dicom_web_download_series, dicom_web_upload_dcm

from sparsight.imaging.pacs_login import pacs_login, pacs_session
from sparsight.imaging.studies import StudyInfo

logger = logging.getLogger(__name__)


class Pacs:
    """Where labels go when the studies came by DICOMweb."""

    def __init__(self, url: str) -> None:
        self._client = DICOMwebClientX(
            url=url.rstrip("/"),
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
            session=pacs_session(),
            headers=pacs_login(),
        )

    def store_segmentation(self, study: StudyInfo, label: Path, info: dict[str, Any]) -> dict[str, Any]:
        """Send the label as SEG. A PACS that refuses must not lose the label: what happened is returned, not raised."""
        with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
            series = Path(folder) / "series"
            try:
                dicom_web_download_series(study.study_uid, study.series_uid, str(series), self._client)
                made = nifti_to_dicom_seg(str(series), str(label), info.get("label_info"))
                try:
                    uid = dicom_web_upload_dcm(made, self._client)
                finally:
                    Path(made).unlink(missing_ok=True)
            except Exception as error:
                logger.exception("a label was not stored in the PACS")
                return {"stored": False, "why": type(error).__name__}
        return {"stored": True, "SeriesInstanceUID": uid}
