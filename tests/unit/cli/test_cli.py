"""The command line as a program: exit codes, JSON on stdout, one clear message on errors, never a traceback."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import data_store
import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from sparsight.cli import main as program
from sparsight.errors import SparsightError

MARKS_JSON = {"box_mm", "box_ijk", "weight", "propensity", "sop_uid", "slice", "image"}


@pytest.fixture
def run(
    tmp_path: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Call `sparsight ARGS --json` in this process: (exit code, parsed stdout)."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "learn.yaml").write_text("steps: 2\nbatch: 4\ngroup: 2\n")
    (configs / "gate.yaml").write_text("sentinel: 20\n")

    def call(*args: str) -> tuple[int, dict[str, Any]]:
        common = ["--home", str(tmp_path / "home"), "--configs", str(configs), "--reader", str(reader_folder)]
        monkeypatch.setattr(sys, "argv", ["sparsight", *common, *args, "--json"])
        with pytest.raises(SystemExit) as left:
            program()
        out = capsys.readouterr().out
        return int(left.value.code or 0), json.loads(out)

    return call


def test_ask_correct_learn_and_list(run: Any, picture: Path, tmp_path: Path) -> None:
    overlay, labels = tmp_path / "o.png", tmp_path / "l.nii.gz"
    pictures = ("--overlay", str(overlay), "--labelmap", str(labels))
    code, asked = run("ask", str(picture), "Is there a nodule?", "--no-recheck", *pictures)
    assert code == 0
    assert asked["recheck"] is None
    assert asked["budget"] == {"kept": 48, "total": 480, "fraction": 0.1}
    assert set(asked["timings_ms"]) >= {"load", "encode", "select", "prefill", "decode", "total"}
    assert all(set(region) == MARKS_JSON for region in asked["evidence"])
    with Image.open(overlay) as drawn:
        assert drawn.size[0] > 200
    assert labels.stat().st_size > 0
    code, corrected = run("correct", asked["episode"], "--answer", "no", "--mark", str(labels), "--key", "k1")
    assert code == 0
    assert corrected["reward"]["parts"]["grounding"] == pytest.approx(1, abs=0.01)  # marked exactly what was kept
    assert run("correct", asked["episode"], "--answer", "no", "--mark", str(labels), "--key", "k1") == (0, corrected)
    code, learned = run("learn")
    assert code == 0
    assert learned["corrections"] == 1
    assert not learned["promoted"]  # one correction proves nothing
    assert {path.name for path in tmp_path.glob(f"home/readers/*/cards/{learned['candidate']}/*")} == {
        "model.md",
        "data.md",
    }
    code, listed = run("policies")
    assert [p["state"] for p in listed["policies"]] == ["live", "held"]
    assert run("promote", learned["candidate"])[1]["error"]["code"] == "conflict"
    assert run("rollback")[1]["error"]["code"] == "conflict"


def test_a_study_is_asked_about_beside_its_prior(run: Any, picture: Path, tmp_path: Path) -> None:
    prior, overlay, labels = tmp_path / "prior.png", tmp_path / "o.png", tmp_path / "l.nii.gz"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 60), dtype=np.uint8)).save(prior)
    pictures = ("--overlay", str(overlay), "--labelmap", str(labels))
    code, asked = run("ask", str(picture), "Is there a new nodule?", "--prior", str(prior), *pictures)
    assert code == 0
    assert asked["budget"]["total"] == 2 * 480
    assert asked["prior"].startswith("sha256-")
    assert asked["prior"] != asked["study"]
    assert {region["image"] for region in asked["evidence"]} <= {"prior", "current"}
    assert all(region["image"] == ("prior", "current")[region["slice"]] for region in asked["evidence"])
    with Image.open(overlay) as drawn:
        assert drawn.size[0] > 1.5 * drawn.size[1]  # side by side
    assert nibabel.load(labels).shape == (120, 96, 1)  # of the study alone


def test_an_untrained_reader_is_read_again_and_a_person_is_told(
    run: Any, picture: Path, tmp_path: Path, reader_folder: Path
) -> None:
    """Its answers need no evidence, whatever they are."""
    code, asked = run("ask", str(picture), "Is there a nodule?")
    assert code == 0
    assert asked["budget"] == asked["recheck"]["budget"] == {"kept": 480, "total": 480, "fraction": 1.0}
    assert asked["recheck"]["first_budget"] == {"kept": 48, "total": 480, "fraction": 0.1}
    assert asked["timings_ms"]["recheck"] > 0
    from sparsight.cli.main import app

    common = ["--home", str(tmp_path / "home"), "--reader", str(reader_folder)]
    printed = CliRunner().invoke(app, [*common, "ask", str(picture), "Is there a nodule?"]).stdout
    assert " was re-checked with all tokens: " in printed.replace("\n", " ").replace("  ", " ")
    assert "480 of 480" in printed


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["ask", "nowhere.dcm", "Is there a nodule?"], "not_found"),
        (["ask", "{picture}", " "], "bad_question"),
        (["ask", "{picture}", "q" * 100_000], "bad_question"),
        (["ask", "{picture}", "Is it?", "--prior", "nowhere.png"], "not_found"),
        (["ask", "{picture}", "Is it?", "--prior", "{picture}"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--prior", "{empty}"], "bad_image"),
        (["ask", "{picture}", "Is it?", "--budget", "0"], "bad_budget"),
        (["ask", "{picture}", "Is it?", "--budget", "2"], "bad_budget"),
        (["ask", "{picture}", "Is it?", "--budget", "x"], "bad_budget"),
        (["ask", "{picture}", "Is it?", "--budget", "nan"], "bad_budget"),
        (["ask", "{picture}", "Is it?", "--budget", "inf"], "bad_budget"),
        (["ask", "{picture}", ""], "bad_question"),
        (["ask", "{hard}/noise.dcm", "Is it?"], "bad_image"),
        (["ask", "{hard}/sealed.dcm", "Is it?"], "bad_image"),
        (["ask", "{hard}/empty.dcm", "Is it?"], "bad_image"),
        (["ask", "{hard}/huge.png", "Is it?"], "bad_image"),
        (["ask", "{picture}", "Is it?", "--overlay", "{empty}/none/a.png"], "bad_input"),
        (["ask", "{empty}", "Is it?"], "bad_image"),
        (["ask", "{picture}", "Is it?", "--overlay", "{empty}"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--overlay", "{empty}/a.txt"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--overlay", "/proc/x.png"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--overlay", "{empty}/" + "n" * 300 + ".png"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--labelmap", "{empty}/x.txt"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--labelmap", "/proc/l.nii.gz"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--labelmap", "/proc/l.nrrd"], "bad_input"),
        (["ask", "{picture}", "Is it?", "--labelmap", "{empty}/none/l.nrrd"], "bad_input"),
        (["ask", "{picture}", "Which?", "--choice", "one"], "bad_question"),
        (["correct", "e404", "--answer", "no"], "not_found"),
        (["correct", "e404", "--verdict", "maybe"], "bad_feedback"),
        (["correct", "e404"], "bad_feedback"),
        (["correct", "e404", "--comment", "nice"], "bad_feedback"),
        (["correct", "e404", "--box", "1,2,3"], "bad_feedback"),
        (["correct", "e404", "--mark", "{picture}.gone"], "not_found"),
        (["promote", "p404"], "not_found"),
        (["rollback"], "conflict"),
        (["evaluate", "--data", "{empty}"], "bad_data"),
        (["evaluate", "--data", "{empty}", "--budgets", "0.1,3"], "bad_budget"),
        (["train", "mega", "--out", "{empty}"], "bad_input"),
        (["train", "nano", "--out", "{empty}/out", "--data", "{empty}/none"], "bad_data"),
        (["train", "nano", "--out", "{empty}/out", "--data", "{empty}"], "bad_data"),
        (["next", "--studies", "{empty}/none"], "not_found"),
        (["serve", "--studies", "{empty}/none"], "not_found"),
        (["serve", "--studies", "{empty}", "--host", "0.0.0.0"], "bad_config"),
        (["serve", "--studies", "{empty}", "--host", "::"], "bad_config"),
    ],
)
def test_errors_have_a_code_and_exit_1(
    run: Any, picture: Path, tmp_path: Path, hard_files: Path, args: list[str], code: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    exit_code, reply = run(*(arg.format(picture=picture, empty=empty, hard=hard_files) for arg in args))
    assert (exit_code, reply["error"]["code"]) == (1, code)
    assert all(reply["error"][part] for part in ("given", "expected", "todo"))
    if {"--overlay", "--labelmap"} & set(args):  # refused before it was asked
        assert not (tmp_path / "home").exists()
    assert list(empty.iterdir()) == [] or args[0] == "train"


def test_a_file_that_fails_late_does_not_hide_the_answer(
    run: Any, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "Name^Patient.png")

    monkeypatch.setattr("sparsight.imaging.export.overlay_png", refuse)
    args = ("ask", str(picture), "Is there a nodule?", "--overlay", str(tmp_path / "o.png"))
    code, asked = run(*args)
    assert (code, asked["error"]["code"]) == (1, "bad_input")
    assert "Patient" not in json.dumps(asked["error"])
    assert run("correct", asked["episode"], "--answer", "no")[0] == 0
    monkeypatch.setattr(sys, "argv", [arg for arg in sys.argv if arg != "--json"][:7] + list(args))
    with pytest.raises(SystemExit) as left:
        program()
    said = capsys.readouterr()
    assert left.value.code == 1
    assert f"episode {asked['episode'][:1]}" in said.out
    assert said.err.startswith("bad_input")


def test_the_longest_names_and_devices_are_written_to(run: Any, picture: Path, tmp_path: Path) -> None:
    labels = tmp_path / ("n" * 250 + ".nii")
    code, _ = run("ask", str(picture), "Is there a nodule?", "--overlay", os.devnull, "--labelmap", str(labels))
    assert code == 0
    assert labels.stat().st_size > 0
    assert Path(os.devnull).is_char_device()


def test_a_strip_of_20000_pixels_is_answered_and_drawn(run: Any, hard_files: Path, tmp_path: Path) -> None:
    overlay, labels = tmp_path / "o.png", tmp_path / "l.nii.gz"
    pictures = ("--overlay", str(overlay), "--labelmap", str(labels))
    code, asked = run("ask", str(hard_files / "strip.png"), "Is there a nodule?", *pictures)
    assert code == 0
    assert asked["evidence"]
    assert nibabel.load(labels).shape == (20_000, 8, 1)
    with Image.open(overlay) as drawn:
        assert drawn.size[0] * drawn.size[1] < 20e6


@pytest.mark.parametrize("question", ["هل توجد عقدة في الرئة؟", "肺部有结节吗?", "🫁❓", "есть ли узел?"])
def test_a_question_in_another_script_is_kept_as_it_was_asked(run: Any, picture: Path, question: str) -> None:
    code, asked = run("ask", str(picture), question)
    assert (code, asked["question"]) == (0, question)


def test_a_mark_of_another_geometry_is_resampled_or_refused(run: Any, picture: Path, tmp_path: Path) -> None:
    _, asked = run("ask", str(picture), "Is there a nodule?")
    other, away, coarse = tmp_path / "other.png", tmp_path / "away.nii.gz", tmp_path / "coarse.nii.gz"
    Image.fromarray(np.full((20, 31), 255, np.uint8)).save(other)  # a picture has only its pixels to lie by
    nibabel.save(
        nibabel.Nifti1Image(np.ones((4, 4, 1), np.uint8), np.diag([1.0, 1, 1, 1]) + 5000 * np.eye(4, k=3)), away
    )
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 1), np.uint8), np.diag([-10.0, -10, 1, 1])), coarse)
    for mark in (other, away):
        code, refused = run("correct", asked["episode"], "--mark", str(mark))
        assert (code, refused["error"]["code"]) == (1, "bad_geometry")
    code, corrected = run("correct", asked["episode"], "--mark", str(coarse))
    assert code == 0
    assert corrected["reward"]["parts"]["grounding"] is not None


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_segmentation_in_another_frame_of_reference_is_refused(run: Any, tmp_path: Path) -> None:
    image = pydicom.dcmread(Path(data_store.__file__).parent / "data" / "693_UNCR.dcm")
    image.PatientName, image.FrameOfReferenceUID, image.PositionReferenceIndicator = "", generate_uid(), ""
    image.save_as(tmp_path / "image.dcm")
    drawn = np.ones((1, image.Rows, image.Columns), np.uint8)
    segment = highdicom.seg.SegmentDescription(
        1, "s", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, algorithm_type="MANUAL"
    )
    seg = highdicom.seg.Segmentation(
        [image], drawn, "BINARY", [segment], generate_uid(), 1, generate_uid(), 1, "maker", "model", "1", "serial",
    )  # fmt: skip
    _, asked = run("ask", str(tmp_path / "image.dcm"), "Is there a nodule?")
    said = []
    for frame in (image.FrameOfReferenceUID, generate_uid()):
        seg.FrameOfReferenceUID = frame
        seg.save_as(tmp_path / "mark.dcm")
        said.append(run("correct", asked["episode"], "--mark", str(tmp_path / "mark.dcm"), "--mark-kind", "missed"))
    (taken, _), (refused, told) = said
    assert (taken, refused, told["error"]["code"]) == (0, 1, "bad_geometry")
    assert "frame of reference" in told["error"]["given"]


@pytest.mark.parametrize("name", ["manifest.json", "reader.safetensors", "tokenizer.json", "policy.safetensors"])
@pytest.mark.parametrize("missing", [True, False])
def test_weights_that_are_missing_or_altered(
    run: Any, picture: Path, tmp_path: Path, reader_folder: Path, name: str, missing: bool
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(reader_folder, folder)
    data = (folder / name).read_bytes()
    if missing:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, reply = run("--reader", str(folder), "ask", str(picture), "Is there a nodule?")
    assert (code, reply["error"]["code"]) == (1, "bad_weights")


def test_a_published_set_is_evaluated_and_says_what_it_left_out(run: Any, tmp_path: Path) -> None:
    rows = [
        {"qid": n, "phrase_type": "test_freeform", "image_name": f"{n // 2}.jpg", "question": question}
        | {"answer": answer, "answer_type": kind}
        for n, (question, answer, kind) in enumerate(
            [
                ("Is there a mass?", "Yes", "CLOSED"),
                ("What is shown?", "a mass", "OPEN"),
                ("Is there a mass?", "No", "CLOSED"),
                ("What, " + 400 * "and what else, ", "a ring", "OPEN"),
            ]
        )
    ]
    (tmp_path / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    (tmp_path / "VQA_RAD Image Folder").mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 255, (48, 60), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "VQA_RAD Image Folder" / f"{n}.jpg")
    command = ("evaluate", "--data", str(tmp_path), "--selectors", "all,ours", "--budgets", "0.1")
    code, told = run(*command, "--split", "test")
    assert code == 0
    assert (told["set"], told["left_out"]) == ("VQA-RAD", {"too long for the reader, of this split": 1})
    assert [row["n"] for row in told["rows"]] == [3, 3]
    assert [(row["selector"], row["kind"], row["n"]) for row in told["kinds"]] == [
        ("all", "yes_no", 2),
        ("all", "free", 1),
        ("ours", "yes_no", 2),
        ("ours", "free", 1),
    ]
    assert run(*command, "--split", "test", "--limit", "2")[1]["rows"][0]["n"] == 2
    code, refused = run(*command, "--split", "dev")
    assert (code, refused["error"]["code"]) == (1, "bad_data")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_serve_says_a_url_that_can_be_opened(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    def serve(*_: Any, on_start: Any, **__: Any) -> int:
        on_start()
        return 0

    monkeypatch.setattr("sparsight.server.run.serve", serve)
    code, printed = run("serve", "--studies", str(tmp_path), "--host", host, "--port", "8123")
    url = urlsplit(printed["url"])
    assert (code, url.hostname, url.port, url.path) == (0, host, 8123, "/sparsight/")


def test_the_app_of_images_opens_its_own_page(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def serve(*_: Any, on_start: Any, **rest: Any) -> int:
        given.update(rest)
        on_start()
        return 0

    monkeypatch.setattr("sparsight.server.run.serve", serve)
    code, printed = run("serve", "--studies", str(tmp_path), "--app", "images")
    assert (code, urlsplit(printed["url"]).path, given["app"]) == (0, "/sparsight/reader", "images")


def test_without_json_an_error_is_three_lines_on_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsight.cli", "--home", str(tmp_path), "--reader", "gone", "policies"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "bad_config" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import sparsight.cli.main; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_every_command_and_option_is_documented() -> None:
    import typer

    from sparsight.cli.main import app

    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    group = typer.main.get_command(app)
    commands = dict(group.commands)  # type: ignore[attr-defined]
    for above in ("bench", "audit", "config"):
        commands |= {f"{above} {name}": sub for name, sub in commands.pop(above).commands.items()}
    for name, command in commands.items():
        assert f"## `sparsight {name}" in text, name
        for parameter in command.params:
            for option in parameter.opts:
                assert option in text or not option.startswith("--"), (name, option)


def test_every_error_code_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "errors.md").read_text()

    def tree(kind: type[SparsightError]) -> list[type[SparsightError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in tree(sub))]

    for kind in tree(SparsightError)[1:]:
        assert f"| `{kind.code}` | {kind.status} |" in text, kind


def test_version() -> None:
    from sparsight.cli.main import app

    assert CliRunner().invoke(app, ["--version"]).stdout.strip()
