"""Published sets in the files and keys their authors give them, every record and picture made up here."""

import csv
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (12, 10)  # width, height


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(path.name.encode())
    Image.fromarray(np.random.default_rng(seed).integers(1, 255, size[::-1], dtype=np.uint8)).save(path)


def dump(path: Path, records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(records), "utf-8")


def rad(folder: Path) -> None:
    def row(qid: Any, phrase: str, image: str, answer: Any, kind: str) -> dict[str, Any]:
        question = "Is there a mass?" if kind.startswith("CLOSED") else "What is shown?"
        keys = {"qid": qid, "phrase_type": phrase, "image_name": image, "image_organ": "CHEST", "answer": answer}
        return keys | {"question": question, "question_type": "PRES", "answer_type": kind}

    dump(
        folder / "VQA_RAD Dataset Public.json",
        [
            row("0", "freeform", "synpic1.jpg", "Yes", "CLOSED"),
            row(1, "para", "synpic2.jpg", "a mass", "OPEN"),
            row(2, "test_freeform", "synpic3.jpg", "No ", "CLOSED "),
            row(3, "test_para", "synpic3.jpg", 4, "OPEN"),
            row(4, "freeform", "synpic3.jpg", "Yes", "CLOSED"),  # its image is a test image
        ],
    )
    for n in (1, 2, 3):
        picture(folder / "VQA_RAD Image Folder" / f"synpic{n}.jpg")


def slake(folder: Path) -> None:
    def row(qid: int, image: int, question: str, answer: str, kind: str, lang: str = "en") -> dict[str, Any]:
        keys = {"qid": qid, "img_id": image, "img_name": f"xmlab{image}/source.jpg", "question": question}
        more = {"q_lang": lang, "answer_type": kind, "modality": "MRI", "content_type": "Organ", "location": "Brain"}
        return keys | {"answer": answer} | more

    which = "Which is larger, liver or spleen?"
    dump(
        folder / "train.json",
        [
            row(0, 1, "Is the lung healthy?", "Yes", "CLOSED"),
            row(1, 1, which, "Liver", "CLOSED"),
            row(2, 1, "What is shown?", "Lung", "OPEN"),
            row(3, 3, "肺是健康的吗?", "是的", "CLOSED", "zh"),
        ],
    )
    dump(
        folder / "validate.json",
        [row(4, 2, "Is the lung healthy?", "No", "CLOSED"), row(5, 2, which, "Spleen", "CLOSED")],
    )
    dump(
        folder / "test.json",
        [
            row(6, 3, "Is the lung healthy?", "Yes", "CLOSED"),
            row(7, 3, "What is shown?", "Lung", "OPEN"),
            row(8, 1, "肺是健康的吗?", "不是", "CLOSED", "zh"),
            row(9, 1, "显示了什么?", "肺", "OPEN", "zh"),
        ],
    )
    for n in (1, 2, 3):
        picture(folder / "imgs" / f"xmlab{n}" / "source.jpg")
        Image.new("RGB", SIZE, (9, 0, 0)).save(folder / "imgs" / f"xmlab{n}" / "mask.png")


def path_vqa(folder: Path) -> None:
    for split in ("train", "val", "test"):
        image = f"{split}_0000"
        questions, answers = ["Is a nucleus seen?", "What is seen?"], [{"yes": 1}, {f"cells of {split}": 1}]
        dump(
            folder / f"pvqa_{split}.json",
            [{"img_id": image, "sentf": {"pvqa": questions}, "labelf": {"pvqa": answers}}],
        )
        picture(folder / "images" / split / f"{image}.jpg")


def pmc_vqa(folder: Path) -> None:
    choices = [" A:CT ", " B: MRI ", "C:X-ray", "D:PET"]

    def write(name: str, rows: list[list[str]]) -> None:
        header = ["index", "Figure_path", "Caption", "Question", *(f"Choice {c}" for c in "ABCD"), "Answer", "split"]
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])

    def row(figure: str, answer: str) -> list[str]:
        picture(folder / "figures" / figure)
        return ["0", figure, "a caption, with\na line", "Which modality is it?", *choices, answer, "x"]

    write("train_2.csv", [row("PMC1_Fig1_1.jpg", "A"), row("PMC2_Fig1_1.jpg", "C")])
    write("test_2.csv", [row("PMC3_Fig1_1.jpg", "B"), row("PMC3_Fig2_1.jpg", "D"), row("PMC4_Fig2_1.jpg", "D")])


def omnimedvqa(folder: Path) -> None:
    def row(number: int, answer: str, **options: str) -> dict[str, Any]:
        image = f"Images/ACRIMA/Im{number}.png"
        picture(folder / image)
        keys = {"dataset": "ACRIMA", "question_id": f"ACRIMA_{number:04}", "question_type": "Modality Recognition"}
        more = {"modality_type": "CT(Computed Tomography)", "image_path": image, "gt_answer": answer}
        return keys | more | {"question": "Which technique is it?"} | options

    four = {"option_A": "PET scan", "option_B": "CT scan", "option_C": "Blood test", "option_D": "Fundus imaging"}
    dump(
        folder / "QA_information" / "Open-access" / "ACRIMA.json",
        [row(0, "Fundus imaging", **four), row(1, "no.", option_A="No", option_B="Yes")],
    )
    dump(folder / "QA_information" / "Restricted-access" / "AIDA.json", [{"question": "left out"}])


def medxpertqa(folder: Path) -> None:
    def row(n: int, images: list[str], label: str, options: Any = None) -> dict[str, Any]:
        own = options or {letter: f"cause {letter}" for letter in "ABCDE"}
        asked = f"A man falls. What next? {n}\nAnswer Choices: (A) cause A (B) cause B"
        keys = {"id": f"MM-{n}", "question": asked, "options": own, "label": label, "images": images}
        return keys | {"medical_task": "Treatment", "body_system": "Skeletal", "question_type": "Reasoning"}

    dump(folder / "MM" / "dev.jsonl", [row(100, ["MM-100-a.jpeg"], "A"), row(101, ["MM-101-a.jpeg"], "B")])
    dump(
        folder / "MM" / "test.jsonl",
        [
            row(0, ["MM-0-a.jpeg", "MM-0-b.jpeg"], "C"),
            row(1, ["MM-1-a.jpeg"], "B", ["one", "two"]),
            row(2, ["MM-2-a.jpeg", "MM-2-b.jpeg"], "E"),
        ],
    )
    for name in ("0-a", "0-b", "1-a", "2-a", "100-a", "101-a"):
        picture(folder / "images" / f"MM-{name}.jpeg")
    picture(folder / "images" / "MM-2-b.jpeg", (20, 10))


def gemex(folder: Path) -> None:
    listed = ["A: 0.5 cm", "B: Right lung, lower zone", "C: 1.2 cm", "D: none"]

    def row(q_id: int, answer: Any, **more: Any) -> dict[str, Any]:
        path = f"p10/p1000000{q_id // 2}/s1/image{q_id}.jpg"
        picture(folder / "files" / path)
        keys = {"question": "What is seen?", "type": "finding", "answer": answer, "reason": "seen", "q_id": q_id}
        return keys | {"visual_locations": [[1, 2, 300, 400]], "image_path": path, "ori_report": "text"} | more

    dump(folder / "closed_ended_question.jsonl", [row(0, "No."), row(1, "Yes.")])
    dump(folder / "open_ended_question.jsonl", [row(0, "An enlarged heart.")])
    dump(folder / "single_choice_question.jsonl", [row(0, "B", choices=listed)])
    dump(
        folder / "multi_choice_question.jsonl",
        [row(0, ["A", "C"], choices=listed), row(1, ["C"], choices=listed)],
    )

    def talk(asked: str, reply: str, kind: str, n: int) -> dict[str, Any]:
        path = f"p11/p1100000{n}/s1/image.jpg"
        picture(folder / "files" / path)
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": reply}]
        return {"conversations": turns, "row_id": n, "q_type": kind, "type_prompt": "", "image": path}

    choices = f"<image>\nWhere is it? <choices>: [{', '.join(listed)}]"
    dump(
        folder / "sub_training_data.json",
        [
            talk(
                "<image>\nIs it seen?",
                "<answer> Yes. <reason> It is. <location> [[1, 2, 3, 4]]",
                "closed_ended_questions",
                1,
            ),
            talk(choices, "<answer> B <reason> It is.", "single_choice_questions", 2),
            talk(choices, "<answer> ['A', 'D'] <reason> Both.", "multi_choice_questions", 3),
        ],
    )


BUILD: dict[str, Callable[[Path], None]] = {
    "VQA-RAD": rad,
    "SLAKE": slake,
    "PathVQA": path_vqa,
    "PMC-VQA": pmc_vqa,
    "OmniMedVQA": omnimedvqa,
    "MedXpertQA-MM": medxpertqa,
    "GEMeX": gemex,
}
