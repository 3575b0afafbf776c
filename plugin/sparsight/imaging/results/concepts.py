"""Coded concepts of reports and segmentations: DICOM's and SNOMED's where they have one, else our own.

Body parts: PS3.16 Annex L gives the code of each term of Body Part Examined; names are those of pydicom's dictionary.
"""

from __future__ import annotations

from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SCHEME = "99SPARSIGHT"  # PS3.16, 8: the name of a private scheme begins with 99

YES: Code = codes.SCT.Yes
NO: Code = codes.SCT.No
PERCENT, NO_UNITS = codes.UCUM.Percent, codes.UCUM.NoUnits
CONCLUSION, COMMENT = codes.DCM.Conclusion, codes.DCM.Comment
CERTAINTY = codes.DCM.CertaintyOfFinding
EXPLANATION = codes.DCM.VisualExplanation  # of a model's inference: what the regions of evidence are
EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500
SOURCE = Code("260753009", "SCT", "Source")


def _own(value: str, meaning: str) -> Code:
    return Code(value, SCHEME, meaning)


QUESTION = _own("question", "Question that was asked")
REASONING = _own("reasoning", "Reasoning of the algorithm")
ANSWER = _own("answer", "Answer of the algorithm")  # where it is not the report's conclusion
KEPT = _own("kept", "Share of the visual tokens read")
NECESSITY = _own("necessity", "Necessity of the evidence, nats")
GROUNDED = _own("grounded", "Answer depends on its evidence")
NOT_TESTED = _own("not-tested", "Not tested")
RECHECKED = _own("rechecked", "Answer was re-checked")
ABSTAINED = _own("abstained", "Too uncertain to answer")
WEIGHT = _own("weight", "Share of the evidence")
VERDICT = _own("verdict", "Verdict of the reviewer")
VERDICTS = {
    "accept": _own("accepted", "Accepted"),
    "amend": _own("amended", "Amended"),
    "reject": _own("rejected", "Rejected"),
}
MARKS = {
    "relevant": _own("relevant", "Region marked as relevant"),
    "irrelevant": _own("irrelevant", "Region marked as irrelevant"),
    "missed": _own("missed", "Region marked as missed"),
}

_PROCEDURES = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
    "NM": codes.cid100.NMUnspecifiedBodyRegion,
} | dict.fromkeys(("CR", "DX", "RG"), codes.cid100.XRUnspecifiedBodyRegion)

_BODY_PARTS = {  # term of Body Part Examined: keyword in pydicom's dictionary
    "ABDOMEN": "Abdomen",
    "ABDOMENPELVIS": "AbdomenAndPelvis",
    "ANKLE": "AnkleJoint",
    "AORTA": "Aorta",
    "BRAIN": "Brain",
    "BREAST": "Breast",
    "CALCANEUS": "Calcaneus",
    "CHEST": "Chest",
    "CHESTABDOMEN": "ChestAndAbdomen",
    "CHESTABDPELVIS": "ChestAbdomenAndPelvis",
    "CLAVICLE": "Clavicle",
    "COCCYX": "Coccyx",
    "CSPINE": "CervicalSpine",
    "ELBOW": "ElbowJoint",
    "EXTREMITY": "Extremity",
    "EYE": "Eye",
    "FEMUR": "Femur",
    "FINGER": "Finger",
    "FOOT": "Foot",
    "FOREARM": "Forearm",
    "HAND": "Hand",
    "HEAD": "Head",
    "HEADNECK": "HeadAndNeck",
    "HEART": "Heart",
    "HIP": "HipJoint",
    "HUMERUS": "Humerus",
    "JAW": "JawRegion",
    "KIDNEY": "Kidney",
    "KNEE": "Knee",
    "LEG": "LowerLimb",
    "LIVER": "Liver",
    "LSPINE": "LumbarSpine",
    "LSSPINE": "LumboSacralSpine",
    "LUNG": "Lung",
    "MANDIBLE": "Mandible",
    "MAXILLA": "Maxilla",
    "MEDIASTINUM": "Mediastinum",
    "NECK": "Neck",
    "PANCREAS": "Pancreas",
    "PELVIS": "Pelvis",
    "PROSTATE": "Prostate",
    "RIB": "Rib",
    "SACRUM": "Sacrum",
    "SCAPULA": "Scapula",
    "SHOULDER": "Shoulder",
    "SIJOINT": "SacroiliacJoint",
    "SINUS": "ParanasalSinus",
    "SKULL": "Skull",
    "SPINE": "Spine",
    "SPLEEN": "Spleen",
    "STERNUM": "Sternum",
    "THIGH": "Thigh",
    "THUMB": "Thumb",
    "THYROID": "Thyroid",
    "TLSPINE": "ThoracoLumbarSpine",
    "TOE": "Toe",
    "TSPINE": "ThoracicSpine",
    "UTERUS": "Uterus",
    "WHOLEBODY": "EntireBody",
    "WRIST": "WristJoint",
}
_SIDES = {"R": codes.SCT.Right, "L": codes.SCT.Left, "B": codes.SCT.Bilateral}


def schemes() -> list[Any]:
    """What an object says of the private scheme that its codes come from."""
    return [
        CodingSchemeIdentificationItem(
            designator=SCHEME,
            name="sparsight: answers about images",
            responsible_organization="The sparsight authors",
        )
    ]


def procedure(modality: str) -> Code:
    """The kind of imaging that is reported on (CID 100)."""
    found: Code = _PROCEDURES.get(modality, codes.cid100.ImagingProcedure)
    return found


def body_part(header: Dataset) -> Code | None:
    """Where in the body an image was taken: its own code, else that of Body Part Examined; None if it does not say."""
    for region in header.get("AnatomicRegionSequence") or []:
        value, scheme, meaning = (region.get(k) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
        if value and scheme and meaning:
            return Code(str(value), str(scheme), str(meaning))
    term = str(header.get("BodyPartExamined") or "").strip().upper().replace(" ", "").replace("_", "")
    keyword = _BODY_PARTS.get(term)
    found: Code | None = getattr(codes.SCT, keyword) if keyword else None
    return found


def side(header: Dataset) -> str:
    """R, L or B (both); empty where the image does not say."""
    for keyword in ("ImageLaterality", "Laterality", "FrameLaterality"):
        value = str(header.get(keyword) or "").strip().upper()
        if value in _SIDES:
            return value
    return ""


def side_code(header: Dataset) -> Code | None:
    """The same as a code (CID 244)."""
    return _SIDES.get(side(header))
