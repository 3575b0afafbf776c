"""The benchmark's cases are the same at every run and from the splits they claim; a run measures all of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sparsight.bench import evidence
from sparsight.bench.figures import figures_of
from sparsight.bench.page import page
from sparsight.bench.parts import Setup, Task, measure_part
from sparsight.bench.suites import LONG_BUDGETS, Suite, cases_of, check_data
from sparsight.config import PoolConfig
from sparsight.errors import BudgetError, DataError, InputError, SparsightError, WeightsError
from sparsight.model import load_base_policy, load_reader
from sparsight.recipe.sources import real_cases
from sparsight.rl.tables import compare
from sparsight.types import Case

TINY = evidence.Size(
    sim_2d=6,
    sim_ood=4,
    sim_long=2,
    sim_pair=4,
    sim_deep=1,
    real=6,
    tested=6,
    curves=2,
    read=2,
    whole=1,
    served=6,
    looked=(128, 1),
)


def drawn(name: str, n: int, seed: int) -> list[Case]:
    suite = Suite(name, n, (0.1,))
    return [one.case for part in range(suite.parts) for one in cases_of(suite, None, seed, part)]


def test_cases_are_reproducible_and_follow_the_seed() -> None:
    first, again, other = (drawn("sim_2d", 12, seed) for seed in (0, 0, 1))
    assert len(first) == 12
    assert [(c.id, c.question, c.answer) for c in first] == [(c.id, c.question, c.answer) for c in again]
    assert not {c.id for c in first} & {c.id for c in other}


def test_parts_share_a_suite_without_repeating_a_question() -> None:
    suite = Suite("sim_2d", 90, (0.1,))
    assert suite.parts == 2
    parts = [[one.case for one in cases_of(suite, None, 0, part)] for part in range(2)]
    assert [len(part) for part in parts] == [45, 45]
    assert len({case.id for part in parts for case in part}) == 90
    presets = {one.source for part in range(2) for one in cases_of(suite, None, 0, part)}
    assert presets == {"default", "many", "faint", "tiny", "large"}


def test_suites_are_what_they_are_called() -> None:
    images, long, other = (drawn(name, 8, 0) for name in ("sim_2d", "sim_long", "sim_ood"))
    assert all(case.id.startswith("sim-test-") for case in [*images, *long])
    assert all(case.id.startswith("sim-test_ood-") for case in other)
    assert all(16 <= case.volume.shape[0] <= 32 for case in long)
    pairs = drawn("sim_pair", 8, 0)
    assert all(case.id.startswith("sim-test-") and case.volume.pair for case in pairs)
    assert {case.volume.shape[0] for case in pairs} == {2}
    assert len(pairs) == 8
    assert len({case.group for case in images}) == len({case.volume.sha256 for case in images}) > 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small bccd: even images have a bright spot and a yes, with its box."""
    folder = tmp_path / "data" / "bccd"
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(8):
        pixels = np.random.default_rng(i).integers(40, 80, (96, 96), dtype=np.uint8)
        box = [16 + 4 * i, 24, 32 + 4 * i, 40]
        if i % 2 == 0:
            pixels[box[1] : box[3], box[0] : box[2]] = 250
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        row = {"id": f"r{i}", "image": f"images/{i}.png", "question": "Is a platelet visible?", "split": "val"}
        row |= {"answer": "no" if i % 2 else "yes", "answer_type": "yesno", "label": "Platelets"}
        rows.append({**row, "boxes": [] if i % 2 else [box], "group": f"g{i}"})
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder.parent


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """ms_flair and ms_followup of two patients each, of which one is left out of training; lesions on even images."""
    folder = tmp_path / "lesions"
    for name, patients in (("ms_flair", ("ms-x07", "ms-x19")), ("ms_followup", ("ms-l01", "ms-l03"))):
        (folder / name / "images").mkdir(parents=True)
        rows = []
        for n, patient in enumerate(4 * patients):
            rng = np.random.default_rng([n, len(name)])
            now, prior = rng.integers(40, 80, (2, 64, 64), dtype=np.uint8)
            there = n // 2 % 2 == 0
            mask = np.zeros((64, 64), np.uint8)
            mask[8:16, 40:48] = 255 * there
            now[mask > 0] = 250
            for kind, pixels in (("now", now), ("prior", prior), ("mask", mask)):
                Image.fromarray(pixels).save(folder / name / "images" / f"{n}-{kind}.png")
            row = {"id": f"{patient}-{n}", "image": f"images/{n}-now.png", "split": "train", "group": patient}
            row |= {"question": "Is there a lesion?", "answer": "yes" if there else "no", "answer_type": "yesno"}
            row |= {"mask": f"images/{n}-mask.png"} if there else {}
            rows.append(row | ({"image_prior": f"images/{n}-prior.png"} if name == "ms_followup" else {}))
        (folder / name / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.mark.parametrize(("name", "unseen"), [("ms_flair", "ms-x19"), ("ms_followup", "ms-l03")])
def test_of_lesions_only_the_patient_left_out_of_training_is_asked_about(lesions: Path, name: str, unseen: str) -> None:
    assert check_data(lesions) == ("ms_flair", "ms_followup")
    suite = Suite(name, 300, (0.1,))
    cases = [one.case for part in range(suite.parts) for one in cases_of(suite, lesions, 0, part)]
    assert {case.group for case in cases} == {unseen}
    assert len(cases) == 4
    assert {case.volume.shape[0] for case in cases} == {2 if name == "ms_followup" else 1}
    assert not {case.id for case in real_cases(lesions / name, "train")} & {case.id for case in cases}
    assert sum(case.finding is not None for case in cases) == 2
    if name == "ms_followup":  # what is new is in the current image
        assert not any(case.finding[0].any() for case in cases if case.finding is not None)


def test_a_set_without_the_patient_that_is_left_out_is_refused(lesions: Path) -> None:
    file = lesions / "ms_flair" / "data.jsonl"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "ms-x19" not in line))
    with pytest.raises(DataError, match="left out"):
        check_data(lesions)


@pytest.mark.slow
def test_lesions_are_measured_like_the_other_sets_without_intervals(setup: Setup, lesions: Path) -> None:
    report = evidence.run(replace(setup, data=lesions), size=TINY, budgets=[0.1], workers=1, tell=lambda *_: None)
    for name in ("ms_flair", "ms_followup"):
        suite = report["suites"][name]
        assert (suite["n"], suite["groups"], suite["unit"]) == (4, 1, "patient")
        row = next(r for r in report["rows"] if (r["suite"], r["selector"]) == (name, "ours"))
        assert row["accuracy_ci"] == [None, None]
        assert row["evidence_recall"] is not None
    lines = [line for line in report["targets"] if "ms_flair" in line["target"]]
    assert [line["verdict"] for line in lines] == ["not measured"] * 2  # one patient has no interval
    assert all("n = " in line["measured"] for line in lines)
    said = page(report, {}, [])
    assert said.count("One patient only") == 2
    assert "inf]" not in said


@pytest.mark.parametrize("fault", ["missing", "empty", "image gone", "no rows"])
def test_a_broken_data_folder_is_refused_before_anything_runs(data: Path, fault: str) -> None:
    assert check_data(data) == ("bccd",)
    if fault == "missing":
        data = data / "nowhere"
    elif fault == "empty":
        (data / "bccd").rename(data / "unknown")
    elif fault == "image gone":
        (data / "bccd" / "images" / "3.png").unlink()
    else:
        (data / "bccd" / "data.jsonl").write_text("")
    with pytest.raises(DataError) as refused:
        check_data(data)
    assert "bccd" in str(refused.value) or fault == "missing"


@pytest.fixture
def setup(reader_folder: Path, data: Path) -> Setup:
    names = ("all", "ours", "random", "saliency", "fastv", "oracle")
    return Setup(reader_folder, load_base_policy(reader_folder), "p", names, data, 0)


def test_streams_budgets_and_names_are_checked(setup: Setup) -> None:
    assert {"all", "ours", "random", "grid", "saliency", "oracle"} <= set(evidence.usable(setup, []))
    assert evidence.usable(setup, ["grid"]) == ("all", "ours", "grid")
    with pytest.raises(InputError):
        evidence.usable(setup, ["grid", "best"])
    with pytest.raises(BudgetError):
        evidence.plan(TINY, (0.1, 1.0), ())


def test_other_policies_are_measured_beside_ours(setup: Setup, tmp_path: Path) -> None:
    whose = {"reader": load_reader(setup.reader).sha256, "seed": "1"}
    for name, stage in (("same", "warm"), ("after", "reinforced")):
        save_file(load_base_policy(setup.reader), tmp_path / f"{name}.safetensors", whose | {"stage": stage})
    files = [tmp_path / "same.safetensors", tmp_path / "after.safetensors"]
    setup = replace(setup, others=evidence.policies_of(files, whose["reader"]))
    assert setup.reinforced == [("ours after", "ours same")]
    part = measure_part(setup, Task(Suite("sim_2d", 6, (0.1,)), 0, 2, 0, 0))
    said = {name: [r.said for r in part.results if r.selector == name] for name in ("ours", "ours same")}
    assert len(said["ours"]) == 6
    assert said["ours"] == said["ours same"]
    assert {"ours", "ours same", "ours after"} <= {o.result.selector for o in part.tests}
    figures = figures_of("sim_2d", [part], 0, setup.reinforced)
    assert "ours same" in {row["selector"] for row in figures["rows"]}
    assert {(row["first"], row["second"]) for row in figures["others"]} == {
        (other, rival) for other in ("ours same", "ours after") for rival in ("all", "random", "saliency")
    }
    (changed,) = figures["reinforced"]  # the same weights: nothing
    assert (changed["first"], changed["second"]) == ("ours after", "ours same")
    assert [row["difference"] for row in changed["accuracy"]] == [0.0]
    assert changed["pointing"]["difference"] == changed["recall"]["difference"] == 0
    assert changed["sensitivity"]["ours_minus"] == 0
    assert all(row["difference"] == 0 for row in compare(part.results, "ours", "ours same"))


def test_files_that_are_no_policies_are_refused_before_anything_runs(reader_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        save_file(load_base_policy(reader_folder), folder / "one.safetensors", {"reader": "mine"})
    with pytest.raises(InputError, match="two policies"):
        evidence.policies_of([tmp_path / "one.safetensors", tmp_path / "a" / "one.safetensors"], "mine")
    with pytest.raises(WeightsError, match="of mine"):
        evidence.policies_of([tmp_path / "one.safetensors"], "another")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes()[:500])
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors", {"reader": "mine"})
    for name in ("half", "missing", "other"):
        with pytest.raises(WeightsError):
            evidence.policies_of([tmp_path / f"{name}.safetensors"], "mine")


def test_every_question_is_tested_and_read_as_often_as_the_size_says() -> None:
    for size in evidence.SIZES.values():
        tasks = evidence.plan(size, (0.1,), ("bccd",))
        of_2d = [task for task in tasks if task.suite.name == "sim_2d"]
        assert sum(task.tested for task in of_2d) == size.tested
        assert sum(task.curves for task in of_2d) == size.curves
        assert sum(task.read for task in of_2d) == size.read
        assert sum(task.served for task in of_2d) == size.served
        long = [task for task in tasks if task.suite.name == "sim_long"]
        assert sum(task.whole for task in long) == sum(task.whole for task in tasks) == size.whole
        assert sum(task.tested for task in long) >= size.tested / 12
        assert len({(task.suite.name, task.part) for task in tasks}) == len(tasks)
    assert evidence.SIZES["full"].sim_2d >= 1_000


@pytest.mark.slow
def test_a_run_measures_everything_and_does_not_depend_on_the_processes(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []
    report = evidence.run(setup, size=TINY, budgets=[0.05, 0.1], workers=1, tell=lambda *step: steps.append(step))
    assert steps[-1][1] == steps[-1][2] == len(steps)
    rows = {(row["suite"], row["selector"], row["budget"]): row for row in report["rows"]}
    ordinary = dict.fromkeys(("sim_2d", "sim_pair", "bccd"), (0.05, 0.1))
    for suite, budgets in (*ordinary.items(), ("sim_long", LONG_BUDGETS)):
        for name in ("ours", "random", "saliency", "oracle"):
            for budget in budgets:
                assert rows[suite, name, budget]["n"] == report["suites"][suite]["n"]
        assert {(suite, name, b) for name, b in (("all", 1.0), ("no image", 0.0), ("majority", 0.0))} <= set(rows)
    assert rows["sim_2d", "oracle", 0.1]["evidence_recall"] > 0.9  # one token in ten holds any finding of this size
    assert rows["sim_long", "ours", 0.01]["fraction"] == pytest.approx(0.01, rel=0.01)
    assert rows["sim_long", "all", 1.0]["fraction"] < 0.12  # what a prompt holds
    assert rows["bccd", "majority", 0.0]["accuracy"] >= 0.5
    strata = {row["by"] for row in report["suites"]["sim_2d"]["strata"]}
    assert strata == {"source", "question", "anatomy", "evidence"}
    tests = {row["test"] for row in report["suites"]["sim_2d"]["tests"]}
    assert {"kept", "pixel sufficiency", "pixel necessity", "complement", "no image"} <= tests
    assert {"shuffled image", "blank image"} <= tests
    for suite in ("sim_2d", "sim_long"):
        tested = {(row["selector"], row["test"]) for row in report["suites"][suite]["tests"]}
        assert {(name, "pixel necessity") for name in ("ours", "fastv", "saliency", "oracle")} <= tested
    assert rows["sim_long", "every token", 1.0]["n"] == 1
    assert rows["sim_long", "every token", 1.0]["fraction"] == 1
    assert ("sim_2d", "every token", 1.0) not in rows
    served = report["suites"]["sim_2d"]["served"]
    assert 0 < served["n"] <= 6
    assert report["first_token"] == {}  # this reader has no first look
    sensitivity = {row["selector"]: row for row in report["suites"]["sim_2d"]["sensitivity"]}
    assert sensitivity["random"]["ours_minus"] is not None
    assert report["left_out"]["grid"] == "not asked for"
    assert "sparsight train rivals" in report["left_out"]["vitos"]
    assert {c["curve"] for c in report["suites"]["sim_2d"]["curves"]} == {"insertion", "deletion"}
    assert report["suites"]["sim_2d"]["read"]["confidence"]["read"]["n"] == 2
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    kept = tmp_path / "out" / evidence.PARTS
    both = evidence.run(setup, size=TINY, budgets=[0.05, 0.1], workers=2, tell=lambda *_: None, kept=kept)
    assert (both["rows"], both["paired"]) == (report["rows"], report["paired"])

    for gone in sorted(kept.iterdir())[:2]:
        gone.unlink()
    measured: list[Task] = []
    measure_part = evidence.measure_part
    monkeypatch.setattr(evidence, "measure_part", lambda s, task: (measured.append(task), measure_part(s, task))[1])
    resumed = evidence.run(setup, size=TINY, budgets=[0.05, 0.1], workers=1, tell=lambda *_: None, kept=kept)
    assert (resumed["rows"], resumed["paired"]) == (report["rows"], report["paired"])
    assert len(measured) == 2
    other = replace(setup, seed=setup.seed + 1)
    assert not any(evidence.kept_of(other, kept).load(task) for task in measured)
    assert all(evidence.kept_of(setup, kept).load(task) for task in measured)

    evidence.write(report, setup, tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    long = text[text.index("## Simulated volumes") : text.index("## Simulated images")]
    assert "| accuracy | 0.5 % | 1 % | 2 % | area (log) |" in long  # what is read once has no column of its own
    assert "| all, thinned to 1,024 | 0." in long or "| all, thinned to 1,024 | 1." in long
    assert "| (ratio to every token) |" in long
    assert "`every token`: all of a volume in one prompt" in text
    assert "## Does it deny what is there?" in text
    named = [part.split(")")[0] for part in text.split("](")[1:]]
    assert named
    assert all((tmp_path / "out" / name).stat().st_size > 1_000 for name in named)
    assert json.loads((tmp_path / "out" / "results" / "evidence.json").read_text()) == report
    assert not kept.exists()


def test_an_error_survives_its_way_from_another_process(setup: Setup) -> None:
    lost = replace(setup, policy={"look.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(SparsightError):
        list(evidence._measured(lost, evidence.plan(TINY, (0.1,), ())[:1], 2, PoolConfig()))
