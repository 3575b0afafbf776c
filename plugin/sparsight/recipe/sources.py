"""What the nano reader is trained and measured on: simulated scenes, and the train rows of a data folder.

Of a folder in a published layout (docs/data.md) only so much is taken as a small reader can hold: the first groups, and
questions and answers that fit into its prompt however they are spelled.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from sparsight.datasets import Asked, FolderCases, load_folder
from sparsight.errors import DataError
from sparsight.recipe.pool import Pool
from sparsight.sim import KINDS, PRESETS, SceneConfig, Simulator, Split
from sparsight.sim.real import standard
from sparsight.types import Case

REAL = ("nih_cxr", "bccd", "ms_flair", "ms_followup", "vqa_rad")
# Folders of sets as their authors publish them; vqa_rad may be one, too.
PUBLISHED = ("slake", "path_vqa", "pmc_vqa", "gemex")
# Sets whose few patients are all in train: one of them is left out of it, else nothing could be measured on patients
# that are new.
LEFT_OUT = {"ms_flair": "ms-x19", "ms_followup": "ms-l03"}
# Share of the simulated images by preset: mostly ordinary, some of what tells selectors apart.
_MIX: tuple[tuple[str, int], ...] = (("default", 6), ("many", 2), ("faint", 1), ("tiny", 1))
QUESTIONS = 12  # per training image: answers are the only supervision, and one more costs no further image
_SCORED = 4  # per image that is measured on
_MOST_GROUPS = 2_000  # of a split of a published set: more than all of REAL have together; PMC-VQA has 100,000 and more
_MOST_BYTES = (150, 80)  # of its questions and answers: at worst every byte is a piece, and a prompt has 256 (MAX_TEXT)
_TEMPLATE = 30  # rows that ask in the same words: the question is then a finding of its own

# A curriculum: on faint and tiny findings in real anatomy at once, the encoder stays at the prior for 600 steps.
_EASY = ("synthetic_chest", "synthetic_brain", "synthetic_tissue")

Tell = Callable[[str, int, int], None]


def folders(data: Path | None) -> list[Path]:
    """The sets that training knows, those of them that are there."""
    return [data / name for name in (*REAL, *PUBLISHED) if (data / name).is_dir()] if data else []


def check_data(data: Path | None) -> None:
    """Check all rows that training and its measurements will ask for, in seconds, before anything is drawn or trained.

    Raises DataError: no such folder, none of the sets in it, or (naming the set) whatever `load_folder` refuses.
    Whether a picture is whole shows when it is read, which `train_nano` does before it draws a scene.
    """
    if data is None:
        return
    if not data.is_dir():
        raise DataError("a data folder that is not there", expected="a folder of data folders", todo="check --data")
    found = folders(data)
    if not found:
        raise DataError(
            "a data folder without a set that training knows",
            expected=f"one of the folders {', '.join((*REAL, *PUBLISHED))}",
            todo="check --data, or leave it out to train on simulated images only",
        )
    for folder in found:
        try:
            for split in ("train", "val"):
                _check_split(folder, split)
        except DataError as error:
            raise DataError(f"{folder.name}: {error.given}", expected=error.expected, todo=error.todo) from error


def _check_split(folder: Path, split: str) -> None:
    """Raise DataError unless real_cases can give rows of this split."""
    unseen = LEFT_OUT.get(folder.name)
    cases = load_folder(folder, "train" if unseen else split)
    if cases.published and not _taken(cases):
        raise DataError(
            f"no {split} row that is short enough",
            expected=f"questions of at most {_MOST_BYTES[0]} bytes and answers of {_MOST_BYTES[1]}",
            todo="leave that folder out",
        )
    if unseen and not any((group == unseen) == (split == "val") for group in cases.groups):
        raise DataError(
            f"no row {'of' if split == 'val' else 'beside those of'} {unseen}, the patient that is measured on",
            expected="rows of that patient and of at least one other",
            todo="add them, or leave that folder out",
        )


def simulated(
    split: Split,
    first: int,
    n: int,
    seed: int,
    data: Path | None,
    tell: Tell,
    *,
    scoring: bool = False,
    asked: int | None = None,
    varied: float = 0.0,
) -> Pool:
    """Draw n images, numbers first to first + n of a split: the presets in turn, on real and synthetic anatomy.

    asked: questions of each; 12, or 4 where they score. The image is the same whatever is asked.
    varied: see SceneConfig.
    """
    pool = Pool()
    asked = asked or (_SCORED if scoring else QUESTIONS)
    for preset, cases in scenes(split, first, n, seed, data, tell, asked=asked, varied=varied):
        pool.add(cases, f"sim {preset}", scoring=scoring)
    return pool


def scenes(
    split: Split, first: int, n: int, seed: int, data: Path | None, tell: Tell, *, asked: int, varied: float = 0.0
) -> Iterator[tuple[str, Sequence[Case]]]:
    """Draw images as `simulated` does, one by one: the preset, and the cases of one image."""
    backgrounds = standard(data)
    turns = [name for name, times in _MIX for _ in range(times)]
    simulators = {
        name: Simulator(replace(PRESETS[name], questions=asked, varied=varied), backgrounds)
        for name in dict.fromkeys(turns)
    }
    for index in range(first, first + n):
        preset = turns[index % len(turns)]
        yield preset, simulators[preset].scene(split, index, seed).cases
        tell(f"draw {split} scenes", index + 1 - first, n)


def easy(split: Split, first: int, n: int, seed: int, tell: Tell) -> Pool:
    """Draw n ordinary images on synthetic anatomy: what the encoder begins with."""
    simulator = Simulator(SceneConfig(backgrounds=_EASY, questions=QUESTIONS))
    pool = Pool()
    for index in range(first, first + n):
        pool.add(simulator.scene(split, index, seed + 1).cases, "sim easy")
        tell(f"draw easy {split} scenes", index + 1 - first, n)
    return pool


def volumes(
    split: Split,
    first: int,
    n: int,
    seed: int,
    data: Path | None,
    tell: Tell,
    *,
    scoring: bool = False,
    asked: int | None = None,
    varied: float = 0.0,
) -> Pool:
    """Draw n volumes of 8 to 32 slices; asked: as above."""
    asked = asked or (_SCORED if scoring else QUESTIONS)
    config = SceneConfig(depth=(8, 32), n_findings=(2, 6), questions=asked, varied=varied)
    simulator = Simulator(config, standard(data))
    pool = Pool()
    for index in range(first, first + n):
        pool.add(simulator.scene(split, index, seed).cases, "sim volume", scoring=scoring)
        tell(f"draw {split} volumes", index + 1 - first, n)
    return pool


def pairs(
    split: Split,
    first: int,
    n: int,
    seed: int,
    data: Path | None,
    tell: Tell,
    *,
    scoring: bool = False,
    varied: float = 0.0,
) -> Pool:
    """Draw n pairs of a prior and a current image: two slices, 1,152 tokens."""
    simulator = Simulator(
        replace(PRESETS["pair"], questions=_SCORED if scoring else QUESTIONS, varied=varied), standard(data)
    )
    pool = Pool(by_question=True)  # a pair without change allows fewer questions than others
    for index in range(first, first + n):
        pool.add(simulator.scene(split, index, seed).cases, "sim pair", scoring=scoring)
        tell(f"draw {split} pairs", index + 1 - first, n)
    return pool


def calibrates(name: str, group: str) -> bool:
    """Whether val rows of this group of a set fit the confidence. The other half measures it: see bench.figures."""
    return name not in LEFT_OUT and zlib.crc32(f"confidence {group}".encode()) % 2 == 0


def real(
    data: Path | None, split: str, tell: Tell, *, scoring: bool = False, keep: Callable[[str, str], bool] | None = None
) -> Pool:
    """All rows of a split (train or val) of the folders that are there; none is no error: the simulator is enough.

    keep: (set, group) -> whether rows of that group are wanted; None: all.
    """
    pool = Pool()
    found = folders(data)
    for number, folder in enumerate(found):
        for cases in by_image(real_cases(folder, split)):
            wanted = [case for case in cases if keep is None or keep(folder.name, case.group)]
            pool.add(wanted, folder.name, scoring=scoring)
        tell(f"read {split} rows", number + 1, len(found))
    return pool


def real_cases(folder: Path, split: str) -> Sequence[Case]:
    """Rows of a split: train or val; of a set in LEFT_OUT, val is the patient that is left out of train.

    Those of a published set are read one by one as they are taken.
    """
    unseen = LEFT_OUT.get(folder.name)
    if unseen is None:
        cases = load_folder(folder, split)
        return cases.take(_taken(cases)) if cases.published else list(cases)
    return [case for case in load_folder(folder, "train") if (case.group == unseen) == (split == "val")]


def _taken(cases: FolderCases) -> list[int]:
    """Numbers of the rows of a published set that training takes: short ones of its first groups, by hash."""
    groups = sorted(cases.groups, key=lambda group: zlib.crc32(f"take {group}".encode()))[:_MOST_GROUPS]
    kept = frozenset(groups)
    return [i for i, asked in enumerate(cases.asked()) if asked.group in kept and _is_short(asked)]


def _is_short(asked: Asked) -> bool:
    answers = (asked.answer, *asked.question.choices)
    return (
        len(asked.question.text.encode()) <= _MOST_BYTES[0] and max(len(a.encode()) for a in answers) <= _MOST_BYTES[1]
    )


def by_image(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases that share an image. A published set has them together, so that one image at a time is held."""
    if isinstance(cases, FolderCases):
        yield from (list(same) for _, same in groupby(cases, key=lambda case: case.volume.sha256))
        return
    by_image: dict[str, list[Case]] = {}
    for case in cases:
        by_image.setdefault(case.volume.sha256, []).append(case)
    yield from by_image.values()


def findings_of(pool: Pool) -> tuple[str, ...]:
    """What the encoder has a head for: the simulator's kinds, and each question that many real images are asked."""
    told = [item for item in pool.items if item.answer.lower() in ("yes", "no") or item.answer.isdigit()]
    asked = Counter(item.question.text.lower() for item in told)
    return (*KINDS, *sorted(text for text, n in asked.items() if n >= _TEMPLATE))
