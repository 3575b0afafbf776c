"""What structured reports say, and reviews to make them from."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydicom import Dataset, dcmread

from sparsight.imaging.results import Review
from sparsight.results import Results
from sparsight.service import Service
from sparsight.types import Episode, Feedback

NOON = datetime(2026, 3, 4, 12, 0, 0, 250, UTC)

SECRET = "Geheim"  # part of every text that is nobody else's business

NEEDED = {"PatientName": "Doe^Jane", "PatientID": "MRN-77", "AccessionNumber": "A-4711", "StudyID": "S-12"}


def objects(results: Results) -> dict[str, Dataset]:
    return {result.name: dcmread(io.BytesIO(result.content)) for result in results.objects}


def items(root: Dataset) -> list[Dataset]:
    """Every content item, depth first."""
    return [item for child in root.get("ContentSequence") or [] for item in (child, *items(child))]


def said(report: Dataset) -> dict[str, list[str]]:
    """Texts, numbers and codes by the name of their concept."""
    found: dict[str, list[str]] = {}
    for item in items(report):
        if not item.get("ConceptNameCodeSequence"):
            continue
        name = item.ConceptNameCodeSequence[0].CodeMeaning
        if item.ValueType == "NUM":
            value = str(item.MeasuredValueSequence[0].NumericValue)
        elif item.ValueType == "CODE":
            value = item.ConceptCodeSequence[0].CodeMeaning
        else:
            value = item.get("TextValue") or item.get("PersonName") or item.get("UID") or ""
        found.setdefault(name, []).append(str(value))
    return found


def review(episode: Episode, verdict: str = "accept", key: str = "k", **given: Any) -> Review:
    feedback = Feedback(key, episode.id, "reader-1", verdict, NOON, **given)  # type: ignore[arg-type] # a verdict as text
    return Review(feedback, 1)


def replace_id(served: Service, episode: Episode) -> str:
    """The same answer as another episode, without its corrections."""
    copied = replace(episode, id=f"{episode.id}-copy")
    served.store.save_episode(copied)
    return copied.id


def source(where: Dataset) -> str:
    return str(where.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
