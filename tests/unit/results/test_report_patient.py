"""What a report repeats of the patient and of what people typed, and what it does not."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from reports import NEEDED, NOON, SECRET, replace_id, review, said
from sparsight.imaging.results import Images, make_report
from sparsight.imaging.results.images import plain, pseudonym
from sparsight.results import make_results
from sparsight.service import Service, parse_question
from sparsight.types import Answer, Episode


@pytest.mark.parametrize("kind", ["ct", "cr", "enhanced"])
def test_no_text_of_the_patient_but_what_must_be_there(
    served: Service, episodes: dict[str, Episode], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        made = make_results(served, replace_id(served, episodes[kind]), ["report", "evidence"])
    for result in made.objects:
        assert SECRET.encode() not in result.content, result.name
        for keyword, value in NEEDED.items():
            assert result.dataset[keyword].value == value
        assert result.dataset.PatientBirthDate == "19700101"
        assert result.dataset.ReferringPhysicianName == "Referrer^Rita"
    for text in [SECRET, "Jane", "Rita", *NEEDED.values()]:
        assert text not in caplog.text


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "Юлий^Цил"),
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "王^小東"),
        (None, "Doe^Jane"),
    ],
)
def test_names_survive_every_character_set(
    episodes: dict[str, Episode], images: Callable[..., Images], charset: Any, name: str, tmp_path: Path
) -> None:
    episode = replace(episodes["mr"], question=parse_question("Ist da ein Knoten? 结节 \N{BONE}"))

    def change(header: Dataset) -> None:
        if charset is None:
            return
        header.SpecificCharacterSet = charset
        header.PatientName, header.PatientID = name, "日本-1" if charset == "ISO_IR 192" else "P-1"

    made = make_report(episode, images(change=change), [])
    made.save_as(tmp_path / "report.dcm")
    back = dcmread(tmp_path / "report.dcm")
    assert back.PatientName == name
    assert said(back)["Question that was asked"] == ["Ist da ein Knoten? 结节 \N{BONE}"]
    from_file = Dataset.from_json(json.loads(json.dumps(back.to_json_dict())))
    assert from_file.PatientName == name


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x00b\x07c", "a b c"),
        ("line\r\nnext\ttab", "line\r\nnext\ttab"),
        ("half \ud83d", "half ?"),
        ("back\\slash ^ = ", "back\\slash ^ ="),
        ("\x7f", ""),
    ],
)
def test_any_text_a_person_can_type_is_written(
    episodes: dict[str, Episode], images: Callable[..., Images], text: str, kept: str, tmp_path: Path
) -> None:
    assert plain(text) == kept
    episode = replace(episodes["mr"], answer=Answer(text, text, 0.5))
    made = make_report(episode, images(), [text])
    made.save_as(tmp_path / "report.dcm")
    assert said(dcmread(tmp_path / "report.dcm")).get("Reasoning of the algorithm", [""]) == [kept]


@pytest.mark.parametrize(
    ("reviewer", "name"), [("reader-1", "reader-1^"), ("Dr. Jörg^X=Y\\Z", "Dr._J_rg_X_Y_Z^"), ("", "anonymous^")]
)
def test_a_pseudonym_is_one_plain_name(reviewer: str, name: str) -> None:
    assert pseudonym(reviewer) == name
    assert len(pseudonym("x" * 500)) <= 64


def test_what_a_source_holds_against_the_standard_neither_stops_nor_shows(
    episodes: dict[str, Episode], images: Callable[..., Images]
) -> None:
    """A warning would repeat the value, and warnings are errors here."""

    def change(header: Dataset) -> None:
        from pydicom import config

        with config.disable_value_validation():
            header.PatientID, header.PatientBirthDate = "x" * 80, "not a date"
            header.PatientSex, header.StudyTime = "unknown", "15:18:59"
            header.PatientIdentityRemoved = "YES"  # without a method: then it says nothing

    made = make_report(episodes["mr"], images(change=change), [])
    assert made.PatientID == "x" * 80
    assert "PatientIdentityRemoved" not in made


def test_an_animal_stays_one(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    def change(header: Dataset) -> None:
        header.PatientSpeciesDescription, header.ResponsiblePerson = "Canis lupus familiaris", "Owner^Olga"

    made = make_report(episodes["mr"], images(change=change), [])
    assert made.PatientSpeciesDescription == "Canis lupus familiaris"
    assert made.ResponsiblePerson == "Owner^Olga"


def test_times_are_in_the_time_zone_of_the_images(episodes: dict[str, Episode], images: Callable[..., Images]) -> None:
    def change(header: Dataset) -> None:
        header.TimezoneOffsetFromUTC = "+0330"

    episode = replace(episodes["mr"], created=NOON)
    made = make_report(episode, images(change=change), [], review(episode))
    assert (made.ContentDate, made.ContentTime) == ("20260304", "153000.000250")
    assert made.TimezoneOffsetFromUTC == "+0330"
    assert made.StudyTime == "091500"
