"""Answers and corrections as DICOM objects that refer to the images they are about: reports (SR) and segmentations."""

from sparsight.imaging.results.deidentified import deidentified
from sparsight.imaging.results.images import Images, Outline
from sparsight.imaging.results.report import Review, make_report
from sparsight.imaging.results.segmentation import corrections_seg, evidence_seg

__all__ = ["Images", "Outline", "Review", "corrections_seg", "deidentified", "evidence_seg", "make_report"]
