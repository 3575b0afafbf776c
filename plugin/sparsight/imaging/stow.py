"""Storing objects in a PACS (DICOMweb, STOW-RS), and what it says became of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests
from pydicom import Dataset

from sparsight.errors import BusyError

DUPLICATE = 0x0111  # the PACS has it already: that is what a repeated request wants
_REASONS = {  # PS3.18 I.2.2
    0x0110: "processing failure",
    0x0117: "invalid object",
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0x0213: "out of resources",
}
_FAMILIES = {0xA7: "out of resources", 0xA9: "not of its SOP class", 0xC0: "not understood", 0xC1: "not understood"}
_AGAIN = {408, 429, 502, 503, 504}  # HTTP: the same request may succeed later


def store(client: Any, datasets: Sequence[Dataset]) -> dict[str, str]:
    """Send objects; why each of them was not stored, by SOP instance UID: empty if all were.

    client: a DICOMwebClient that does not retry, for it would send only the end of a large body again.
    What the PACS has already counts as stored. An object of which its reply says nothing does not.
    Raises BusyError where it does not answer, or says that it cannot now.
    """
    sent = [str(ds.SOPInstanceUID) for ds in datasets]
    try:
        reply = client.store_instances(list(datasets))
    except requests.HTTPError as error:
        return _refused(error.response, sent)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _away("does not answer") from error
    except Exception as error:  # stored or not, it did not say so in DICOM JSON
        return dict.fromkeys(sent, f"a reply that is not DICOM ({type(error).__name__})")
    return outcome(reply, sent, otherwise="a reply without a word about it")


def outcome(reply: Dataset, sent: Sequence[str], *, otherwise: str) -> dict[str, str]:
    """Read a Store Instances Response: why what was sent was not stored. otherwise: of what it does not mention."""
    failed = {_uid(item): _reason(item) for item in reply.get("FailedSOPSequence") or []}
    stored = {_uid(item) for item in reply.get("ReferencedSOPSequence") or []}
    unnamed = failed.pop("", None)  # some say only that something failed
    missing = [uid for uid in sent if uid not in stored and uid not in failed]
    found = {uid: why for uid, why in failed.items() if uid in sent and why is not None}
    return found | dict.fromkeys(missing, unnamed or otherwise)


def _uid(item: Dataset) -> str:
    return str(item.get("ReferencedSOPInstanceUID") or "")


def _reason(item: Dataset) -> str | None:
    """Its failure in words; None for what is there already."""
    try:
        code = int(item.get("FailureReason") or 0)
    except (TypeError, ValueError):
        code = 0
    if code == DUPLICATE:
        return None
    words = _REASONS.get(code) or _FAMILIES.get(code >> 8, "refused")
    return f"{words} (0x{code:04X})"


def _refused(response: requests.Response | None, sent: Sequence[str]) -> dict[str, str]:
    """Of an HTTP status that is an error; its body may still tell of each object."""
    if response is None:
        return dict.fromkeys(sent, "no reply")
    if response.status_code in _AGAIN:
        raise _away(f"answers with HTTP status {response.status_code}")
    otherwise = f"HTTP status {response.status_code}"
    try:
        return outcome(Dataset.from_json(response.json()), sent, otherwise=otherwise)
    except Exception:  # a page for a person, most often
        return dict.fromkeys(sent, otherwise)


def _away(what: str) -> BusyError:
    return BusyError(
        f"a PACS that {what}",
        expected="a DICOMweb server that takes objects at the configured address",
        todo="check the address and the network, then send again: nothing is stored twice",
    )
