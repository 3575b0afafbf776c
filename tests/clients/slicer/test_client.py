"""The client against the real routes, and against servers that misbehave."""

import gzip
import json
import socket
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from servers import Proxy, as_json, raw_server, says, streams

from SparsightLib import words
from SparsightLib.client import Cancel, Client
from SparsightLib.stream import Heard
from SparsightLib.wire import CancelledError, ClientError, RefusedError, UnreachableError

QUESTION = {"question": "Is there a nodule?"}
SCHEMA = json.loads((Path(__file__).parents[3] / "docs/openapi.json").read_text(encoding="utf-8"))


def fits(reply: object, model: str) -> None:
    rules = {"$ref": f"#/components/schemas/{model}", "components": SCHEMA["components"]}
    assert not list(Draft202012Validator(rules).iter_errors(reply))


def test_learning_and_policies(client: Client) -> None:
    """First of all: there is no correction yet, so the job ends soon."""
    fits(client.learning(), "LearnReply")
    started = client.learn()
    fits(started, "LearnReply")
    assert started["state"] == "running"
    with pytest.raises(RefusedError, match="one job at a time"):
        client.learn()
    [policy, *_] = client.policies()
    fits(policy, "PolicyReply")
    assert client.promote(policy["id"], "reviewer-1")["state"] == "live"
    with pytest.raises(RefusedError) as refused:
        client.rollback()
    assert refused.value.code == "conflict"
    for unknown in ("p9999-00000000", "../rollback", "a/b?c#d"):
        with pytest.raises(RefusedError) as refused:
            client.promote(unknown)
        assert refused.value.status in (404, 405)
    while (job := client.learning())["state"] == "running":
        time.sleep(0.2)
    fits(job, "LearnReply")
    assert job["state"] == "done"
    assert "no new correction" in words.learning(job)


def test_a_question_from_the_first_look_to_the_reward(client: Client, server) -> None:
    state, studies = client.ready(), client.studies()
    fits(state, "StateReply")
    fits(client.me(), "MeReply")
    assert {study["id"] for study in studies} >= {"head", "chest", "hand"}
    answer = client.ask({**QUESTION, "study": "head", "budget": 0.2})
    fits(answer, "AskReply")
    fits(client.geometry(answer["episode"]), "GeometryReply")
    label = nibabel.Nifti1Image.from_bytes(gzip.decompress(client.labelmap(answer["episode"])))
    assert label.shape == (48, 40, 10)
    assert np.asarray(label.dataobj).any()
    assert client.picture(answer["episode"]).startswith(b"\x89PNG")
    assert client.episodes("head")[0] == answer
    mark = {"kind": "relevant", "box_mm": answer["evidence"][0]["box_mm"]}
    review = {"episode": answer["episode"], "verdict": "amend", "marks": [mark], "key": "one", "reviewer": "r-1"}
    told = client.feedback(review)
    fits(told, "FeedbackReply")
    assert client.feedback(review) == told
    with pytest.raises(RefusedError) as refused:
        client.feedback({**review, "verdict": "reject"})
    assert (refused.value.code, refused.value.status) == ("conflict", 409)
    assert client.ready()["corrections"] == state["corrections"] + 1
    case = client.next_case(["chest"])
    fits(case, "NextCaseReply")
    assert case["study"] not in ("head", "chest")


def test_an_answer_is_heard_as_it_comes(client: Client) -> None:
    heard, names = Heard(QUESTION["question"]), []

    def hear(name: str, data: dict) -> None:
        names.append(name)
        heard.take(name, data)

    answer = client.ask({**QUESTION, "study": "head"}, hear=hear)
    fits(answer, "AskReply")
    assert (names[0], names[-2:]) == ("start", ["answer", "evidence"])
    assert names.count("token") > 2, "not word by word"
    assert heard.reasoning.strip() == answer["reasoning"]
    assert (heard.answer, heard.stage in ("reading", "rechecking")) == (answer["answer"], True)
    assert (heard.kept, heard.total) == (answer["budget"]["kept"], answer["budget"]["total"])
    said = words.heard_html(heard)
    assert all(
        part in said for part in (answer["answer"], f"{heard.kept} of {heard.total} tokens", words.stage(heard.stage))
    )


def test_a_second_reading_begins_anew_and_nothing_heard_is_html() -> None:
    heard = Heard("<script>?")
    assert "loading the study" in words.heard_html(heard)
    reading = {"kept": 6, "total": 60, "regions": []}
    for name, data in (
        ("kept", reading),
        ("token", {"text": "none"}),
        ("kept", reading),
        ("token", {"text": "<b>one"}),
    ):
        heard.take(name, data)
    assert heard.reasoning == "<b>one"
    said = words.heard_html(heard)
    assert "<script>" not in said
    assert "<b>one" not in said


START = ("start", {"episode": "e0123456789abcdef"})
ANSWERED = {
    "episode": "e0123456789abcdef", "study": "head", "answer": "yes", "confidence": 0.9, "abstained": False,
    "grounded": True, "budget": {}, "evidence": [],
}  # fmt: skip
NOT_THERE = as_json({"error": {"code": "not_found", "given": "no such episode", "expected": "one", "todo": "ask"}})


def test_an_answer_whose_stream_was_cut_is_looked_up() -> None:
    there = [says("404 Not Found", NOT_THERE), says("200 OK", as_json(ANSWERED))]
    with raw_server(streams(START), *there) as (url, heard):
        assert Client(url).ask({**QUESTION, "study": "head"}) == ANSWERED
    assert heard[1].startswith(b"GET /sparsight/episodes/e0123456789abcdef HTTP")
    assert b"Accept: text/event-stream\r\n" in heard[0]
    assert b"Accept: application/json\r\n" in heard[1]
    gone = raw_server(streams(START), *[says("404 Not Found", NOT_THERE)] * 3)
    with gone as (url, heard), pytest.raises(UnreachableError, match="before the answer was read") as cut:
        Client(url).ask({**QUESTION, "study": "head"})
    assert (cut.value.code, len(heard)) == ("cut", 4)


def test_what_goes_wrong_in_a_stream_is_told_in_the_servers_words() -> None:
    failed = {"error": {"code": "bad_image", "given": "a slice that is missing", "expected": "all", "todo": "send it"}}
    with raw_server(streams(START, ("error", failed))) as (url, _), pytest.raises(RefusedError) as refused:
        Client(url).ask({**QUESTION, "study": "head"})
    assert (refused.value.code, refused.value.given) == ("bad_image", "a slice that is missing")
    with raw_server(streams(START, ("progress", ["odd"]))) as (url, _), pytest.raises(ClientError, match="no object"):
        Client(url).ask({**QUESTION, "study": "head"})


def test_cancelling_a_question_closes_its_stream() -> None:
    closed, cancel = threading.Event(), Cancel()

    def until_closed(connection: socket.socket) -> None:
        if connection.recv(1) == b"":
            closed.set()

    with raw_server(streams(START, then=until_closed)) as (url, heard):
        with pytest.raises(CancelledError):
            Client(url).ask({**QUESTION, "study": "head"}, cancel, lambda name, data: cancel.cancel())
        assert closed.wait(5), "the server is not told"
    assert len(heard) == 1, "nothing is looked up"


def test_a_mask_is_sent_as_a_form(client: Client, server) -> None:
    answer = client.ask({**QUESTION, "study": "chest"})
    place = client.geometry(answer["episode"])
    mask = np.zeros(place["shape"], np.uint8)
    mask[:, 10:20, 30:50] = 1
    review = {"episode": answer["episode"], "verdict": "amend", "key": "two", "comment": 'neben dem Herzen, 中 "x"'}
    told = client.feedback(review, nrrd(mask), "missed")
    assert told["reward"]["parts"]["grounding"] is not None
    assert client.feedback(review, nrrd(mask), "missed") == told
    kept = server.corrections()[-1]
    assert (kept.comment, kept.marks[0].kind) == (review["comment"], "missed")
    assert (kept.marks[0].mask == (mask > 0)).all()


def test_a_correction_without_a_key_is_a_mistake_of_ours(client: Client) -> None:
    with pytest.raises(ValueError, match="key"):
        client.feedback({"episode": "e0", "verdict": "accept"})


def test_studies_are_fetched_and_sent(client: Client, studies_folder: Path) -> None:
    content, suffix = client.download("head")
    assert (content, suffix) == ((studies_folder / "head.nii.gz").read_bytes(), ".nii.gz")
    assert client.download("chest")[1] == ".png"
    with pytest.raises(RefusedError) as refused:
        client.download("nowhere")
    assert refused.value.code == "not_found"
    image = nrrd(np.random.default_rng(1).normal(0, 9, (4, 24, 24)).astype(np.float32))
    assert client.ask_any(["slicer-0a", "slicer-0b"], QUESTION) is None
    assert client.upload("slicer-0a", image) == "slicer-0a"
    assert client.upload("slicer-0a", image) == "slicer-0a"  # the answer to the first one may have been lost
    answer = client.ask_any(["slicer-0b", "slicer-0a"], QUESTION)
    assert answer is not None
    assert answer["study"] == "slicer-0a"
    with pytest.raises(RefusedError) as refused:
        client.upload("slicer-0c", b"no image")
    assert refused.value.code == "bad_image"
    with pytest.raises(RefusedError) as refused:
        client.upload("../outside", image)
    assert refused.value.code == "bad_input"


def nrrd(voxels: np.ndarray) -> bytes:
    """At the origin of LPS, a voxel a millimetre."""
    d, h, w = voxels.shape
    kind = {"float32": "float", "uint8": "unsigned char"}[voxels.dtype.name]
    head = f"NRRD0004\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\nsizes: {w} {h} {d}\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
    return (head + "space origin: (0,0,0)\n\n").encode() + voxels.tobytes()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"question": " ", "study": "head"}, "bad_question"),
        ({"question": "Is there a nodule?", "study": "head", "budget": 2}, "bad_budget"),
        ({"question": "Is there a nodule?", "study": "nowhere"}, "not_found"),
        ({"question": "Is there a nodule?"}, "bad_input"),
    ],
)
def test_the_server_is_quoted(client: Client, request_: dict, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        client.ask(request_)
    assert refused.value.code == code
    assert all((refused.value.given, refused.value.expected, refused.value.todo))


def test_a_token_is_sent_and_its_refusal_explained(server) -> None:
    proxy = Proxy(server.url, token="t0ken")
    assert Client(proxy.url, token="t0ken").ready()["state"] == "ready"
    for token in ("", "another"):
        with pytest.raises(RefusedError) as refused:
            Client(proxy.url, token=token).ready()
        assert refused.value.code == "http_401"
    proxy.stop()


@pytest.mark.parametrize(
    ("url", "token", "code"),
    [
        ("http://pacs.example.org", "", "clear_text"),
        ("http://127.0.0.1.example.org:8000", "", "clear_text"),
        ("ftp://127.0.0.1", "", "bad_address"),
        ("127.0.0.1:8000", "", "bad_address"),
        ("https://user:secret@127.0.0.1", "", "bad_address"),
        ("http://127.0.0.1:port", "", "bad_address"),
        ("http://[::1", "", "bad_address"),
        ("", "", "bad_address"),
        ("http://127.0.0.1", "a b", "bad_token"),
        ("http://127.0.0.1", "a\r\nHost: x", "bad_token"),
        ("http://127.0.0.1", "ü", "bad_token"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_sent(url: str, token: str, code: str) -> None:
    with pytest.raises(ClientError) as refused:
        Client(url, token=token)
    assert refused.value.code == code
    assert "secret" not in str(refused.value)


def test_tls_with_the_institutions_own_authority(server, authority: dict[str, str]) -> None:
    secure = Proxy(server.url, tls=(authority["cert"], authority["key"]))
    trusting = Client(secure.url, ca_file=authority["ca"])
    assert trusting.ready()["state"] == "ready"
    assert trusting.ask({**QUESTION, "study": "chest"})["study"] == "chest"
    with pytest.raises(UnreachableError) as refused:
        Client(secure.url).ready()
    assert (refused.value.code, refused.value.passing) == ("certificate", False)
    with pytest.raises(UnreachableError) as refused:  # the certificate is for the address, not for the name
        Client(secure.url.replace("127.0.0.1", "localhost"), ca_file=authority["ca"]).ready()
    assert refused.value.code == "certificate"
    with pytest.raises(ClientError):
        Client(secure.url.replace("https:", "http:")).studies()
    with pytest.raises(UnreachableError) as refused:
        Client(server.url.replace("http:", "https:")).ready()
    assert refused.value.code == "no_tls"
    for file in (authority["key"], authority["ca"] + ".none"):
        with pytest.raises(ClientError) as unreadable:
            Client(secure.url, ca_file=file)
        assert unreadable.value.code == "bad_ca_file"
    secure.stop()


def test_a_server_that_was_restarted_finds_the_review_once(server) -> None:
    proxy = Proxy(server.url)
    client = Client(proxy.url)
    answer, before = client.ask({**QUESTION, "study": "hand"}), client.ready()["corrections"]
    review = {"episode": answer["episode"], "verdict": "accept", "key": "kept"}
    proxy.stop()
    start = time.monotonic()
    with pytest.raises(UnreachableError) as away:
        client.feedback(review)
    assert away.value.code == "away"
    assert 0.9 < time.monotonic() - start < 5  # three tries
    proxy.start()
    assert client.feedback(review)["key"] == "kept"
    assert client.feedback(review)["key"] == "kept"
    assert client.ready()["corrections"] == before + 1
    proxy.stop()


def test_only_what_may_be_repeated_is_repeated() -> None:
    def hang_up(connection: object) -> None: ...

    told = as_json({"key": "k", "reward": {"total": 1.0, "parts": {}, "version": "1"}})
    with raw_server(hang_up, says("200 OK", told)) as (url, heard):
        assert Client(url).feedback({"episode": "e", "verdict": "accept", "key": "k"})["key"] == "k"
    assert len(heard) == 2
    with raw_server(hang_up, says("200 OK", b"{}")) as (url, heard):
        with pytest.raises(UnreachableError, match="broke off"):
            Client(url).ask({**QUESTION, "study": "head"})
        with pytest.raises(ClientError, match="without its fields"):
            Client(url).rollback()
    assert len(heard) == 2


def test_busy_is_waited_for() -> None:
    busy = as_json({"error": {"code": "busy", "given": "a full queue", "expected": "room", "todo": "wait"}})
    loading = as_json({"state": "loading"})
    with raw_server(
        says("423 Locked", busy, "Retry-After: 0"), says("503 x", loading, "Retry-After: 0"), says("200 OK", b"[]")
    ) as (url, heard):
        assert Client(url).studies() == []
    assert len(heard) == 3
    once = raw_server(says("423 Locked", busy, "Retry-After: 0"))
    with once as (url, heard), pytest.raises(RefusedError, match="a full queue"):
        Client(url).ask({**QUESTION, "study": "head"})
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (says("200 OK", b"<html>a portal</html>"), "odd_reply"),
        (says("200 OK", b'{"studies": []}'), "odd_reply"),
        (says("200 OK", b"[1, 2]"), "odd_reply"),
        (says("302 Found", b"", "Location: http://example.org/sparsight/studies"), "http_302"),
        (says("403 Forbidden", b'{"error": "no"}'), "http_403"),
        (says("500 Oops", b"\xff\xfe"), "http_500"),
        (says("200 OK", b"[{}", length=99), "broken_off"),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), "broken_off"),
    ],
)
def test_a_server_that_is_another_one_is_named_so(reply: object, code: str) -> None:
    with raw_server(*[reply] * 3) as (url, heard), pytest.raises(ClientError) as refused:
        Client(url).studies()
    assert refused.value.code == code
    assert len(heard) == (3 if code == "broken_off" else 1)


def test_a_body_that_was_refused_while_it_was_sent() -> None:
    large = as_json({"error": {"code": "too_large", "given": "9 bytes", "expected": "at most 8", "todo": "send less"}})
    with raw_server(says("413 Too Large", large)) as (url, _), pytest.raises(ClientError) as refused:
        Client(url).upload("slicer-1", bytes(2**24))
    assert refused.value.code in ("too_large", "broken_off")  # whether its words arrive is up to the machine


def test_a_server_that_says_nothing_is_given_up() -> None:
    with raw_server(lambda connection: time.sleep(2)) as (url, heard):
        patient = Client(url)
        patient.read_s = 0.2
        start = time.monotonic()
        with pytest.raises(UnreachableError) as slow:
            patient.studies()
    assert (slow.value.code, len(heard)) == ("slow", 1)
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("tls", [False, True])
def test_whoever_cancels_hears_at_once(tls: bool, authority: dict[str, str]) -> None:
    silent = Proxy("", silent=True, tls=(authority["cert"], authority["key"]) if tls else None)
    client, cancel = Client(silent.url, ca_file=authority["ca"]), Cancel()
    threading.Timer(0.3, cancel.cancel).start()
    start = time.monotonic()
    with pytest.raises(CancelledError):
        client.ask({**QUESTION, "study": "head"}, cancel)
    assert 0.2 < time.monotonic() - start < 3
    with pytest.raises(CancelledError):
        client.studies(cancel)
    silent.stop()


def test_a_prefix_stays_in_front_of_the_routes() -> None:
    with raw_server(says("200 OK", b"[]")) as (url, heard):
        assert Client(f"{url}/ward-3/").studies() == []
    assert heard[0].startswith(b"GET /ward-3/sparsight/studies HTTP/1.1\r\n")
    assert b"Authorization" not in heard[0]
