"""A segmentation without the patient: the Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E.

The rules are those of table E.1-1 for the attributes that our objects can have: what they copy from the images
(images.py) and what is written into them; whatever else is of a person's name, a date, or private goes, too. The
profile removes the content of structured reports, so a report cannot be had this way.
"""

from __future__ import annotations

from copy import deepcopy

from pydicom import DataElement, Dataset
from pydicom.sr.codedict import codes

from sparsight.imaging.results.images import OF_ANIMALS, uid

_EMPTIED = {  # Z; of type 2 in our objects
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "AccessionNumber",
    "ContentCreatorName",
}
_REPLACED = {  # D, or Z where a DICOMDIR demands a value
    "StudyDate": "19000101",
    "StudyTime": "000000",
    "StudyID": "1",
    "ContentDate": "19000101",
    "ContentTime": "000000",
    "DeviceSerialNumber": "removed",
}
_REMOVED = {  # X, or what only means something beside what was removed
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "IssuerOfAccessionNumberSequence",
    "TimezoneOffsetFromUTC",
    "SeriesDescription",
    *OF_ANIMALS,
    "TrackingID",  # names the answer in the store that it comes from
    "TrackingUID",
}
_OF_PERSONS_AND_TIMES = {"PN", "DA", "TM", "DT"}
_OF_THE_STANDARD = {"TransferSyntaxUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID"}


def deidentified(made: Dataset, key: str) -> Dataset:
    """A copy of a segmentation that names nobody and no time.

    key: a secret; UIDs become others that are made of it and of themselves, the same ones everywhere, so that objects
    still refer to each other. The patient's name and id are a pseudonym made of the study's.
    """
    clean = deepcopy(made)
    _strip(clean, key)
    name = f"anonymous-{clean.StudyInstanceUID[-12:]}"
    clean.PatientName, clean.PatientID = f"{name}^", name
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "DICOM PS3.15 Basic Profile, by sparsight"
    profile, how = codes.DCM.BasicApplicationConfidentialityProfile, Dataset()
    how.CodeValue, how.CodingSchemeDesignator, how.CodeMeaning = (
        profile.value,
        profile.scheme_designator,
        profile.meaning,
    )
    clean.DeidentificationMethodCodeSequence = [how]
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    return clean


def _strip(dataset: Dataset, key: str) -> None:
    """Carry out the rules in place, also inside sequences."""
    for element in list(dataset):
        keyword = element.keyword
        if keyword in _REPLACED:
            element.value = _REPLACED[keyword]
        elif keyword in _EMPTIED:
            element.value = ""
        elif not keyword or keyword in _REMOVED or element.VR in _OF_PERSONS_AND_TIMES:
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                _strip(item, key)
        elif _is_instance(element):
            values = [element.value] if element.VM == 1 else element.value
            element.value = [uid("without identity", key, str(value)) for value in values]


def _is_instance(element: DataElement) -> bool:
    """Whether it is the UID of something of this patient, and not of a class or a code."""
    keyword = element.keyword
    return element.VR == "UI" and not keyword.endswith("ClassUID") and keyword not in _OF_THE_STANDARD
