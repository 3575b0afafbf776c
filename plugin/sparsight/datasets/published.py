"""Published sets in the files and keys their authors give them: each a function from a folder to its rows.

Which download a function follows is said in its docstring; docs/data.md has the table, and what could not be verified.
Splits are called train, val and test, whatever the files call them. Boxes and masks of these sets are not read.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sparsight.datasets.checks import Size, picture_size, plain
from sparsight.datasets.gathered import Gathered
from sparsight.datasets.records import Record, options_of, place_of, read_csv, read_json, read_jsonl, text
from sparsight.datasets.rows import refusal
from sparsight.errors import DataError

_RAD = "VQA_RAD Dataset Public.json"
_SLAKE = {"train": ("train.json",), "val": ("validate.json", "validation.json"), "test": ("test.json",)}
# Version 2 before 1 (compound figures); the test set that was checked by hand before either.
_PMC = {"train": ("train_2.csv", "train.csv"), "test": ("test_clean.csv", "test_2.csv", "test.csv")}
_GEMEX = ("closed_ended", "open_ended", "single_choice", "multi_choice")
_GEMEX_TRAIN = ("instruct_gemex_train_data.json", "sub_training_data.json")
_EARLY = {"train": 0, "val": 1}  # a group stays in the latest split it is in; every other split is later
_TENTH = 10


class Layout(NamedTuple):
    """A published set: recognised where any of the patterns `marks` exists; files: what it consists of, in words."""

    name: str
    marks: tuple[str, ...]
    files: str
    read: Callable[[Path], Gathered]


def vqa_rad(folder: Path) -> Gathered:
    """Lau et al. 2018 (doi 10.1038/sdata.2018.251), the OSF download: one JSON file and a folder of images.

    Test rows are those whose phrase_type begins with "test". 202 of its images are in both splits.
    """
    found = Gathered()
    records = read_json(folder / _RAD, ("qid", "phrase_type", "image_name", "question", "answer", "answer_type"))
    place = place_of(folder, (text(r["image_name"]) for r in records), ("VQA_RAD Image Folder", "images"))
    for r in records:
        found.ask(
            text(r["answer"]),
            closed=plain(text(r["answer_type"])) == "closed",
            id=text(r["qid"]),
            image=_in(place, r["image_name"]),
            question=text(r["question"]),
            split="test" if text(r["phrase_type"]).startswith("test") else "train",
            label=text(r.get("question_type")) or None,
        )
    return found


def slake(folder: Path) -> Gathered:
    """Liu et al. 2021 (arXiv 2102.09542), Slake 1.0: train.json, validate.json, test.json, imgs/xmlab*/source.jpg.

    English rows are of train, val and test, those of another language of train-zh and so on: each language has a split
    of its own, in which train images of the other are test images. So an image is one group for each language.
    """
    found = Gathered()
    for split, names in _SLAKE.items():
        file = _first(folder, names)
        for r in read_json(file, ("qid", "img_name", "question", "answer", "q_lang", "answer_type")) if file else ():
            image, language = _in("imgs", r["img_name"]), text(r["q_lang"])
            other = language not in {"en", ""}
            found.ask(
                text(r["answer"]),
                closed=plain(text(r["answer_type"])) == "closed",
                id=text(r["qid"]),
                image=image,
                question=text(r["question"]),
                split=f"{split}-{language}" if other else split,
                group=f"{image} {language}" if other else image,
                modality=text(r.get("modality")) or None,
                label=text(r.get("content_type")) or None,
            )
    return found


def path_vqa(folder: Path) -> Gathered:
    """He et al. 2020 (arXiv 2003.10286): images/SPLIT/NAME.jpg of the download, questions of the authors' repository.

    The download's own questions are pickles, which could run any code and are not read. The repository has the same
    ones as JSON, in baselines/method1/saved/lxmert: pvqa_train.json, pvqa_val.json, pvqa_test.json.
    """
    found = Gathered()
    files = {split: folder / f"pvqa_{split}.json" for split in ("train", "val", "test")}
    if not any(file.is_file() for file in files.values()):
        raise DataError(
            "PathVQA without its questions as JSON",
            expected=f"{', '.join(file.name for file in files.values())} beside images/",
            todo="take them from baselines/method1/saved/lxmert of the authors' repository; pickles are not read: "
            "they could run any code",
        )
    for split, file in files.items():
        records = read_json(file, ("img_id", "labelf", "sentf")) if file.is_file() else []
        names = [text(r["img_id"]) for r in records]
        place = place_of(folder, (f"{name}.jpg" for name in names), (f"images/{split}", f"pvqa/images/{split}"))
        for r, name in zip(records, names, strict=True):
            for number, (question, answer) in enumerate(_path_vqa_pairs(file, r)):
                found.ask(
                    answer,
                    closed=plain(answer) in {"yes", "no"},
                    id=f"{name}-{number}",
                    image=_in(place, f"{name}.jpg"),
                    question=question,
                    split=split,
                )
    return found


def _path_vqa_pairs(file: Path, record: Record) -> list[tuple[str, str]]:
    """Questions and answers about one image; an answer is given as {text: score}."""
    asked, given = (
        part.get("pvqa") if isinstance(part, dict) else None for part in (record["sentf"], record["labelf"])
    )
    if not isinstance(asked, list) or not isinstance(given, list) or len(asked) != len(given):
        what = f"images of {file.name} whose questions and answers differ in number"
        raise refusal([text(record["img_id"])], what, "lists sentf.pvqa and labelf.pvqa of one length")
    answers = [text(next(iter(scores), "")) if isinstance(scores, dict) else "" for scores in given]
    return [(text(question), answer) for question, answer in zip(asked, answers, strict=True)]


def pmc_vqa(folder: Path) -> Gathered:
    """Zhang et al. 2023 (arXiv 2305.10415): CSV files and the images they name, in figures/ (version 2) or images/.

    The group is the article (PMC number): its figures may be of one patient.
    """
    found = Gathered()
    columns = {letter: f"choice {letter.lower()}" for letter in "ABCD"}
    for split, names in _PMC.items():
        file = _first(folder, names)
        if file is None:
            continue
        records = read_csv(file, ("figure_path", "question", *columns.values()))
        place = place_of(folder, (text(r["figure_path"]) for r in records), ("figures", "images", "images/images"))
        for number, r in enumerate(records, start=1):
            options = {letter: _bare(letter, text(r[column])) for letter, column in columns.items()}
            answer = text(r.get("answer_label") or r.get("answer"))
            article = re.match(r"PMC\d+", text(r["figure_path"]))
            found.choose(
                options,
                answer if answer in options else _letter_of(options, _bare(answer[:1], answer)),
                id=f"{file.stem}-{number}",
                image=_in(place, r["figure_path"]),
                question=text(r["question"]),
                split=split,
                group=article[0] if article else None,
            )
    return found


def omnimedvqa(folder: Path) -> Gathered:
    """Hu et al. 2024 (arXiv 2402.09181), OmniMedVQA.zip: QA_information/Open-access/*.json and Images/. All is test.

    Restricted-access questions are not read: their images are not in the download.
    """
    found = Gathered()
    for file in sorted((folder / "QA_information" / "Open-access").glob("*.json")):
        for number, r in enumerate(read_json(file, ("question", "gt_answer", "image_path")), start=1):
            given = {key[-1]: text(r[key]) for key in sorted(r) if re.fullmatch("option_[A-Z]", key)}
            options = {letter: option for letter, option in given.items() if option}
            found.choose(
                options,
                _letter_of(options, text(r["gt_answer"])),
                id=f"{file.stem} {text(r.get('question_id')) or number}",
                image=_in("", r["image_path"]),
                question=text(r["question"]),
                split="test",
                modality=text(r.get("modality_type")).replace("(", " ") or None,
                label=text(r.get("question_type")) or None,
            )
    return found


def medxpertqa(folder: Path) -> Gathered:
    """Zuo et al. 2025 (arXiv 2501.18362): MM/dev.jsonl, MM/test.jsonl and images/ of the extracted images.zip.

    The options, repeated at the end of the question's text, are taken off it. Several images of one size become one
    volume; where they differ in size the row is left out, because one of them is not what was asked about.
    """
    found = Gathered()
    for split in ("dev", "test"):
        file = _first(folder, (f"MM/{split}.jsonl",))
        for r in read_jsonl(file, ("id", "question", "options", "label", "images")) if file else ():
            images = [_in("images", name) for name in (r["images"] if isinstance(r["images"], list) else [])]
            if len({_size(folder / image) for image in images}) > 1:
                found.leave_out("several images of different sizes")
                continue
            label = r["label"]
            found.choose(
                options_of(r["options"]),
                text(label[0] if isinstance(label, list) and label else label),
                id=text(r["id"]),
                image=images[0] if images and all(images) else "",
                slices=tuple(images[1:]),
                question=text(r["question"]).split("\nAnswer Choices:")[0].strip(),
                split=split,
                label=text(r.get("medical_task")) or None,
            )
    return found


def gemex(folder: Path) -> Gathered:
    """Liu et al. 2024 (arXiv 2411.16778): KIND_question.jsonl (test) and conversations (train) about MIMIC-CXR-JPG.

    Images lie in files/, as MIMIC-CXR-JPG has them, or in images/. The group is the patient, by the image's path.
    """
    found = Gathered()
    asked = [
        (kind, r)
        for kind in _GEMEX
        if (file := _first(folder, (f"{kind}_question.jsonl", f"test/{kind}_question.jsonl")))
        for r in read_jsonl(file, ("q_id", "question", "answer", "image_path"))
    ]
    train = _first(folder, _GEMEX_TRAIN)
    talks = read_json(train, ("conversations", "q_type", "image")) if train else []
    names = [text(r["image_path"]) for _, r in asked] + [text(r["image"]) for r in talks]
    place = place_of(folder, names, ("files", "images"))
    for kind, r in asked:
        listed = [text(option) for option in r["choices"]] if isinstance(r.get("choices"), list) else []
        options = {option[:1]: _bare(option[:1], option) for option in listed}
        answers = [text(answer) for answer in (r["answer"] if isinstance(r["answer"], list) else [r["answer"]])]
        keys: dict[str, Any] = {"id": f"{kind} {text(r['q_id'])}", "question": text(r["question"]), "split": "test"}
        keys |= {"image": _in(place, r["image_path"]), "label": text(r.get("type")) or None}
        _gemex_row(found, kind, options, answers, keys)
    for number, r in enumerate(talks, start=1):
        question, options, answers = _gemex_talk(r)
        keys = {"id": f"train {number}", "question": question, "split": "train", "image": _in(place, r["image"])}
        _gemex_row(found, text(r["q_type"]), options, answers, keys)
    return found


def _gemex_row(found: Gathered, kind: str, options: dict[str, str], answers: list[str], keys: dict[str, Any]) -> None:
    patient = re.search(r"/p\d\d/(p\d+)/", keys["image"])
    keys = keys | {"modality": "CR", "group": patient[1] if patient else None}
    answer = answers[0] if answers else ""
    if len(answers) > 1:
        found.leave_out("several right answers")
    elif "choice" in kind:
        found.choose(options, answer[:1], **keys)
    else:
        found.ask(answer, closed=kind.startswith("closed"), **keys)


def _gemex_talk(record: Record) -> tuple[str, dict[str, str], list[str]]:
    """Question, options and answers of "<image> QUESTION <choices>: [A: ...]" and "<answer> ... <reason> ..."."""
    turns = record["conversations"] if isinstance(record["conversations"], list) else []
    asked, reply = [*(text(turn.get("value")) for turn in turns if isinstance(turn, dict)), "", ""][:2]
    question, _, listed = asked.replace("<image>", "").partition("<choices>:")
    parts = re.split(r"(?:^|,)\s*(?=[A-Z]: )", listed.strip().removeprefix("[").removesuffix("]"))
    options = {part[0]: _bare(part[0], part) for part in parts if part}
    said = re.search(r"<answer>(.*?)(?:<reason>|\Z)", reply, re.DOTALL)
    answer = said[1].strip() if said else ""
    several = text(record["q_type"]).startswith("multi")
    return question.strip(), options, re.findall(r"\b[A-Z]\b", answer) if several else [answer]


LAYOUTS = (
    Layout("VQA-RAD", (_RAD,), f"{_RAD} and VQA_RAD Image Folder/", vqa_rad),
    Layout("OmniMedVQA", ("QA_information",), "QA_information/Open-access/*.json and Images/", omnimedvqa),
    Layout("MedXpertQA-MM", ("MM",), "MM/*.jsonl and images/", medxpertqa),
    Layout(
        "GEMeX",
        (*(f"{place}{kind}_question.jsonl" for place in ("", "test/") for kind in _GEMEX), *_GEMEX_TRAIN),
        "*_question.jsonl and files/",
        gemex,
    ),
    Layout("PathVQA", ("pvqa_*.json", "qas", "*_qa.pkl"), "pvqa_*.json and images/", path_vqa),
    Layout("PMC-VQA", tuple(sum(_PMC.values(), ())), "train_2.csv, test_2.csv and figures/", pmc_vqa),
    Layout("SLAKE", ("imgs", "imgs.zip", *_SLAKE["val"]), "train.json, validate.json, test.json and imgs/", slake),
)


def layout_of(folder: Path) -> Layout | None:
    """Which published set a folder holds, by its files; None where it is none of them."""
    if not folder.is_dir():
        return None
    return next((layout for layout in LAYOUTS if any(any(folder.glob(mark)) for mark in layout.marks)), None)


def read_published(layout: Layout, folder: Path) -> Gathered:
    """The rows of a published set, groups kept apart, images in order. Raises DataError.

    A group (image, article or patient) stays in its latest split only: as published, VQA-RAD has most of its test
    images in train, too. A set with train and without val rows has those of a tenth of the train groups as val.
    """
    found = layout.read(folder)
    found.close()
    if not found.rows:
        raise DataError(f"a {layout.name} folder without questions", expected=layout.files, todo="take all its files")
    latest: dict[str, int] = defaultdict(int)
    for row in found.rows:
        latest[row.patient] = max(latest[row.patient], _rank(row.split))
    rows = [row for row in found.rows if _rank(row.split) == latest[row.patient]]
    if len(rows) < len(found.rows):
        found.leave_out("in train or val although their group is in a later split", len(found.rows) - len(rows))
    splits = {row.split for row in rows}
    if "train" in splits and "val" not in splits:
        rows = [row.model_copy(update={"split": "val"}) if _held_out(row.split, row.patient) else row for row in rows]
    found.rows = sorted(rows, key=lambda row: row.image)  # neighbours share an image, which is read once
    return found


def _rank(split: str) -> int:
    return _EARLY.get(split.partition("-")[0], 2)


def _held_out(split: str, group: str) -> bool:
    return split == "train" and zlib.crc32(f"val {group}".encode()) % _TENTH == 0


def _in(place: str, name: Any) -> str:
    """A path relative to the folder; empty where the record names no file."""
    return "/".join(part for part in (place, text(name)) if part) if text(name) else ""


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of some files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _bare(letter: str, option: str) -> str:
    """An option without the letter before it: "A: a mass" or " A:a mass"."""
    return re.sub(rf"^{re.escape(letter)}\s*[:.)]\s*", "", option.strip()) if letter else option


def _letter_of(options: dict[str, str], answer: str) -> str:
    """The letter of the option that an answer spells out; capitals and a full stop make no difference."""
    said = plain(answer).rstrip(".")
    return next((letter for letter, option in options.items() if plain(option).rstrip(".") == said), "")


def _size(path: Path) -> Size | None:
    """Of a picture that can be opened; else None, and the checks say what is wrong."""
    with suppress(Exception):
        return picture_size(path)
    return None
