import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import data_store
import nibabel
import numpy as np
import pytest
from PIL import Image

from sparsight.errors import BudgetError, FeedbackError, GeometryError, InputError, QuestionError, TrainingError
from sparsight.label.answer import AnswerTask, infer
from sparsight.label.batch import BatchAnswerTask
from sparsight.label.corrections import correction, on_study, pseudonym, submitted
from sparsight.label.learn import LearnTask
from sparsight.label.learner import give_way
from sparsight.label.scoring import Grounding, agreement
from sparsight.label.strategy import TeachMost
from sparsight.service import Learned, NextCase, Progress
from sparsight.types import Answer, Episode, Evidence, ImageVolume, Question, Reward, Selection

# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture
def asked():
    """An answer about a volume of 4 x 10 x 12 whose evidence is one block of voxels."""
    labels = np.zeros((4, 10, 12), np.uint8)
    labels[1, 2:6, 3:7] = 1
    episode = Episode(
        id="e1", created=datetime.now(UTC), study="head", series_uid="", volume_sha256="0" * 64,
        question=Question("Is there a nodule?", "yes_no", ("yes", "no")),
        selection=Selection(np.array([0]), np.zeros(4, np.float32), 0.0, "greedy", "p"),
        answer=Answer("yes", "I see it.", 0.8), evidence=Evidence((), 1, 4, None, None), grid_shape=(1, 2, 2),
        reader="r", policy="p", policy_sha256="0" * 64, config_sha256="0" * 64, timings_ms={},
    )  # fmt: skip
    volume = ImageVolume(np.zeros((4, 10, 12), np.float32), AFFINE, "CT", (40, 400))
    return SimpleNamespace(episode=episode, volume=volume, image=volume, labelmap=lambda: labels)


class FakeService:
    """What the tasks call, with what they were called with."""

    def __init__(self, asked, episodes=True):
        self.asked, self.calls, self.rechecks, self.feedback = asked, [], [], []
        self.reader = SimpleNamespace(id="r")
        self.config = SimpleNamespace(serve=SimpleNamespace(max_question_chars=2000))
        self.studies = SimpleNamespace(list=lambda: [SimpleNamespace(id="head", modality="MR")])
        self.store = SimpleNamespace(episodes=lambda limit, study: [asked.episode] if episodes else [])
        self.next = NextCase("head", "Is there a spot?", 0.7, "uncertain")

    def ask(self, study, question, *, budget=None, recheck=True):
        self.rechecks.append(recheck)
        self.calls.append((study, question, budget))
        return self.asked

    def suggest(self, modality):
        return f"What about {modality}?"

    def reopen(self, episode):
        return self.asked

    def episode(self, episode):
        return replace(self.asked.episode, id=episode)

    def correct(self, feedback):
        self.feedback.append(feedback)
        return Reward(0.5, {"grounding": 0.5}, "v")

    def next_case(self, *, exclude):
        self.calls.append(exclude)
        return None if self.next.study in exclude else self.next


@pytest.fixture
def service(asked):
    return FakeService(asked)


@pytest.fixture
def task(service):
    return AnswerTask(lambda: service, description="d", budget=0.1)


def write(path: Path, mask, affine=None) -> Path:
    """A label file: NIfTI with its affine, or PNG."""
    if affine is None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), path)
    return path


# --- infer ---


def test_an_answer_is_a_label_map_and_the_json_of_ask(task, service):
    path, reply = task({"study": "head", "question": " Is there a nodule? ", "budget": "0.2"})
    assert service.calls == [("head", Question("Is there a nodule?", "yes_no", ("yes", "no")), 0.2)]
    assert np.asarray(nibabel.load(path).dataobj).sum() == 16
    assert (reply["episode"], reply["answer"], reply["label_names"]) == ("e1", "yes", {"evidence": 1})
    json.dumps(reply)
    Path(path).unlink()


def test_options(task, service):
    for extension in (".nrrd", ".nii"):
        path, _ = task({"study": "head", "choices": "left; right ;", "result_extension": extension, "budget": ""})
        assert path.endswith(extension)
        Path(path).unlink()
        _, question, budget = service.calls[-1]
        assert (question.text, question.choices, budget) == ("What about MR?", ("left", "right"), None)
    path, _ = task({"study": "head", "question": ["First?", "Second?"]})
    assert service.calls[-1][1].text == "First?"
    Path(path).unlink()


@pytest.mark.parametrize(
    ("sent", "meant"),
    [({}, True), ({"recheck": False}, False), ({"recheck": "False"}, False), ({"recheck": "true"}, True)],
)
def test_the_recheck_can_be_turned_off(task, service, sent, meant):
    path, _ = task({"study": "head", **sent})
    assert service.rechecks == [meant]
    Path(path).unlink()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"question": 3}, InputError),
        ({"question": "x" * 2001}, QuestionError),
        ({"budget": "much"}, BudgetError),
        ({"budget": [0.1]}, BudgetError),
        ({"recheck": "maybe"}, InputError),
        ({"recheck": [False]}, InputError),
        ({"result_extension": "/../x"}, InputError),
    ],
)
def test_options_that_cannot_be_used(task, service, request_, error):
    with pytest.raises(error):
        task({"study": "head", **request_})
    assert service.calls == []


def test_a_file_of_its_own_is_asked_about_as_a_volume(task, service, tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)).save(path)
    made, _ = task({"image": str(path), "question": "Is it?"})
    assert service.calls[0][0].shape == (1, 16, 16)
    Path(made).unlink()


def test_a_served_study_goes_by_its_id_even_if_a_file_of_that_name_lies_about(task, service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "head").write_text("not an image")
    saved = []
    datastore = SimpleNamespace(list_images=lambda: ["head"], save_label=lambda *a: saved.append(a) or "head")
    request = {"model": "sparsight", "image": "head", "question": "Is it?"}
    result = infer(task, request, datastore)
    assert service.calls[0][0] == "head"
    assert result["file"] == result["label"]
    assert not saved
    infer(task, request | {"save_label": True, "label_tag": "draft"}, datastore)
    assert saved[0][0] == "head"
    assert saved[0][2] == "draft"
    assert saved[0][3] == {"model": "sparsight", "params": {"episode": "e1"}}  # the episode has the patient's text


def test_evidence_is_never_a_final_label(task, service):
    datastore = SimpleNamespace(list_images=lambda: ["head"], refresh=lambda: None)
    request = {"model": "sparsight", "image": "head", "save_label": True, "label_tag": "final"}
    with pytest.raises(InputError, match="final"):
        infer(task, request, datastore)
    with pytest.raises(InputError, match="final"):
        BatchAnswerTask()(request, datastore, lambda *_: None)
    assert service.calls == []


# --- submitted labels ---

LIVER = Path(data_store.__file__).parent / "data" / "liver.dcm"


def test_a_segmentation_of_another_frame_of_reference_is_neither_a_correction_nor_scored(asked, service):
    asked.volume = asked.image = replace(asked.volume, frame_of_reference_uid="1.2.3")
    labels = SimpleNamespace(get_label_uri=lambda *_: str(LIVER), get_label_info=lambda *_: {})
    with pytest.raises(GeometryError, match="another frame of reference"):
        submitted(lambda: service, labels, "head", "head", "final")
    assert service.feedback == []
    with pytest.raises(GeometryError, match="another frame of reference"):
        Grounding(lambda: service, description="d")._score(labels, "head")


def test_a_mask_on_the_evidence_is_relevant_and_one_beside_it_was_missed(asked, tmp_path):
    ras = np.diag([-1, -1, 1, 1]) @ AFFINE
    for voxels, kind in (((slice(3, 5), slice(2, 4), 1), "relevant"), ((slice(9, 11), slice(7, 9), 3), "missed")):
        mask = np.zeros((12, 10, 4))
        mask[voxels] = 1
        feedback = correction(asked, write(tmp_path / f"{kind}.nii.gz", mask, ras), {}, "reader-1")
        assert (feedback.verdict, feedback.episode, feedback.answer) == ("amend", "e1", None)
        [mark] = feedback.marks
        assert mark.kind == kind
        assert mark.mask.sum() == mask.sum()


def test_the_same_label_is_the_same_correction(asked, tmp_path):
    path = write(tmp_path / "a.png", np.ones((10, 12)))
    asked.volume = asked.image = replace(asked.volume, voxels=np.zeros((1, 10, 12), np.float32))
    asked.labelmap = lambda: np.ones((1, 10, 12), np.uint8)
    first, again = (correction(asked, path, {}, "reader-1") for _ in range(2))
    other = correction(asked, path, {"answer": "no"}, "reader-1")
    assert first.key == again.key != other.key
    colleague = correction(asked, path, {}, "reader-2")
    assert colleague.key == correction(asked, path, {}, "reader-2").key != first.key
    assert other.answer == "no"


@pytest.mark.parametrize(
    ("kind", "told", "verdict", "answer"),
    [("yes_no", None, "amend", "no"), ("free", None, "reject", None), ("free", "clear", "amend", "clear")],
)
def test_an_empty_mask(asked, tmp_path, kind, told, verdict, answer):
    asked.episode = replace(asked.episode, question=Question("q", kind))
    path = write(tmp_path / "empty.nii.gz", np.zeros((12, 10, 4)), AFFINE)
    feedback = correction(asked, path, {"answer": told}, "reader-1")
    assert (feedback.verdict, feedback.answer, feedback.marks) == (verdict, answer, ())


def test_only_a_final_label_about_an_answer_is_a_correction(asked, tmp_path):
    path = write(tmp_path / "a.nii.gz", np.ones((12, 10, 4)), np.diag([-1, -1, 1, 1]) @ AFFINE)
    labels = SimpleNamespace(get_label_info=lambda *_: {"episode": "e7"}, get_label_uri=lambda *_: str(path))
    service = FakeService(asked)
    assert submitted(lambda: service, labels, "head", "head", "draft")["correction"] is None
    reply = submitted(lambda: service, labels, "head", "head", "final")
    assert reply["reward"]["total"] == 0.5
    assert len(service.feedback) == 1
    labels.get_label_info = lambda *_: {}
    silent = FakeService(asked, episodes=False)
    assert "nothing was asked" in submitted(lambda: silent, labels, "head", "head", "final")["why"]
    assert not silent.feedback


def test_a_label_is_of_who_logged_in_or_of_its_client(asked, tmp_path):
    path = write(tmp_path / "a.nii.gz", np.ones((12, 10, 4)), np.diag([-1, -1, 1, 1]) @ AFFINE)
    labels = SimpleNamespace(get_label_info=lambda *_: {"client_id": "user-jane"}, get_label_uri=lambda *_: str(path))
    service = FakeService(asked)
    submitted(lambda: service, labels, "head", "head", "final")
    submitted(lambda: service, labels, "head", "head", "final", reviewer="user-0f3a9c27b1de")
    by_client, by_login = service.feedback
    assert by_client.reviewer.startswith("client-")
    assert "jane" not in by_client.reviewer
    assert by_login.reviewer == "user-0f3a9c27b1de"
    assert by_login.key != by_client.key


def test_a_label_about_another_readers_answer_says_so(asked, tmp_path):
    path = write(tmp_path / "a.nii.gz", np.zeros((12, 10, 4)), AFFINE)
    labels = SimpleNamespace(get_label_uri=lambda *_: str(path), get_label_info=lambda *_: {})
    service = FakeService(asked)
    assert submitted(lambda: service, labels, "head", "head", "final")["notes"] == []
    service.reader.id = "another"
    [note] = submitted(lambda: service, labels, "head", "head", "final")["notes"]
    assert "reader r's" in note


def test_an_answer_about_another_image_is_not_corrected(asked, tmp_path):
    path = write(tmp_path / "a.nii.gz", np.ones((12, 10, 4)), np.diag([-1, -1, 1, 1]) @ AFFINE)
    labels = SimpleNamespace(get_label_info=lambda *_: {"episode": "e7"}, get_label_uri=lambda *_: str(path))
    service = FakeService(asked)
    with pytest.raises(FeedbackError):
        submitted(lambda: service, labels, "chest", "chest", "final")
    assert not service.feedback


def test_pseudonyms_are_stable_and_tell_nothing():
    assert pseudonym("user-jane") == pseudonym("user-jane") != pseudonym("user-john")
    assert pseudonym(None) == pseudonym("") == pseudonym(3) == "anonymous"


def test_a_picture_has_the_studys_size_or_no_place(asked):
    with pytest.raises(GeometryError):
        on_study(np.ones((1, 10, 12), bool), None, asked.volume)
    assert on_study(np.ones((4, 10, 12), bool), None, asked.volume).all()


# --- the other tasks ---


def test_learning_reports_to_a_file_that_another_process_reads(tmp_path):
    stats_file = tmp_path / "sub" / "learning.json"
    seen = []

    def learn(on_progress):
        on_progress(Progress("step", 3, 10))
        seen.append(LearnTask(None, description="", stats_file=stats_file).stats())
        return Learned(None, False, ("too little",), 2, 1, 0.5, {})

    task = LearnTask(lambda: SimpleNamespace(learn=learn), description="d", stats_file=stats_file)
    assert task.stats() == {}
    outcome = task({}, None)
    assert (seen[0]["stage"], seen[0]["done"], seen[0]["total"]) == ("step", 3, 10)
    assert task.stats()["stage"] == "finished"
    assert task.stats()["reasons"] == outcome["reasons"] == ["too little"]
    assert [p.name for p in stats_file.parent.iterdir()] == ["learning.json"]


def test_a_disk_that_takes_no_progress_ends_no_learning(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def learn(on_progress):
        on_progress(Progress("step", 3, 10))
        return Learned(None, False, ("too little",), 2, 1, 0.5, {})

    monkeypatch.setattr(os, "fsync", refuse)
    task = LearnTask(lambda: SimpleNamespace(learn=learn), description="d", stats_file=tmp_path / "s.json")
    assert task({}, None)["reasons"] == ["too little"]
    assert list(tmp_path.iterdir()) == []


def test_learning_that_stops_says_why(tmp_path):
    def learn(on_progress):
        raise TrainingError("a loss of NaN", expected="a number", todo="lower lr")

    task = LearnTask(lambda: SimpleNamespace(learn=learn), description="d", stats_file=tmp_path / "s.json")
    with pytest.raises(TrainingError):
        task({}, None)
    assert task.stats()["stage"] == "failed"
    assert task.stats()["error"]["code"] == "training_stopped"
    task = LearnTask(lambda: {}["Jane Doe"], description="d", stats_file=tmp_path / "s.json")
    with pytest.raises(KeyError):
        task({}, None)
    assert task.stats()["stage"] == "failed"
    assert "KeyError" in task.stats()["error"]["given"]
    assert "Jane" not in json.dumps(task.stats())
    (tmp_path / "s.json").write_text("{")
    assert task.stats() == {}


def test_learning_gives_way_where_the_system_knows_priorities(monkeypatch):
    lowered = []
    monkeypatch.setattr(os, "nice", lowered.append, raising=False)
    give_way()
    assert lowered
    assert lowered[0] > 0
    monkeypatch.delattr(os, "nice")
    give_way()
    assert len(lowered) == 1


def test_the_strategy_leaves_out_what_is_labelled_or_named(service):
    strategy = TeachMost(lambda: service, description="d")
    none = SimpleNamespace(get_labeled_images=list)
    assert strategy({}, none) == {"id": "head", "question": "Is there a spot?", "score": 0.7, "reason": "uncertain"}
    assert strategy({"exclude": ["head"]}, none) == {}
    assert strategy({}, SimpleNamespace(get_labeled_images=lambda: ["head"])) == {}
    assert strategy({"exclude": "head"}, none)  # not a list: not understood, not an error


def test_agreement():
    evidence, drawn = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    assert agreement(evidence, drawn) == {"coverage": None, "spill": None}
    evidence[0, :2], drawn[0, :, :2] = True, True
    assert agreement(evidence, drawn) == {"coverage": 0.5, "spill": 0.5}
    assert agreement(evidence, evidence) == {"coverage": 1.0, "spill": 0.0}


@pytest.mark.parametrize("params", [{"max_workers": "0"}, {"max_batch_size": -1}, {"max_workers": 1.5}, {"device": 3}])
def test_a_batch_refuses_what_it_cannot_count_with(params):
    datastore = SimpleNamespace(refresh=lambda: None, list_images=lambda: ["good"])
    with pytest.raises(InputError, match=next(iter(params))):
        BatchAnswerTask()(params, datastore, lambda *_: pytest.fail("asked"))


def test_a_batch_runs_without_cuda_and_survives_a_bad_image():
    devices = []

    def one(request, datastore):
        devices.append(request["device"])
        if request["image"] == "bad":
            raise GeometryError("a gap", expected="none", todo="export again")
        return {"file": None, "params": {"episode": "e1", "question": "Jane Doe?", "answer": "yes"}}

    datastore = SimpleNamespace(refresh=lambda: None, list_images=lambda: ["bad", "good"])
    for workers in (1, 2):
        results = BatchAnswerTask()({"max_workers": workers, "multi_gpu": True, "device": "cuda"}, datastore, one)
        assert results["good"] == {"file": None, "params": {"state": "answered", "episode": "e1"}}  # it is logged
        assert results["bad"]["params"]["error"]["code"] == "bad_geometry"
    assert len(devices) == 4
