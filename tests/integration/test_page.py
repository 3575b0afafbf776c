"""The page at /sparsight/ in a real Chromium: ask, look, mark, correct, learn, by mouse and by keyboard."""

import base64
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from chromium import asked
from issuer import Issuer
from sparsight.config import Config
from sparsight.server.run import free_port, start, wait_until_ready

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

STATIC = Path(__file__).parents[2] / "plugin/sparsight/server/static"


def test_the_whole_loop(browser, server, client, tmp_path):
    browser.call("Page.navigate", url=f"{server.url}/sparsight/?study=head")
    browser.wait("document.querySelectorAll('#study option').length >= 3 && document.getElementById('question').value")
    browser.run("document.getElementById('question').value = 'Is there a <b>nodule</b> on the left?'")
    browser.run("document.getElementById('question').focus()")
    browser.key("Enter", ctrl=True)
    browser.wait("document.querySelector('#answer .said') !== null")
    browser.wait("document.getElementById('canvas').width > 400")
    assert browser.run("document.querySelector('#answer b') === null"), "a question must stay text"
    told = browser.run("document.getElementById('answer').textContent")
    assert "Left, rightthose of the picture, not of the patient" in told
    browser.run("document.activeElement.blur()")

    browser.run(
        "document.getElementById('slice').value = 5; document.getElementById('slice').dispatchEvent(new Event('input'))"
    )
    browser.wait("document.getElementById('slice-words').textContent.startsWith('6 of 12')")
    browser.key("1")  # mark a relevant region: the middle of the slice, a fifth of its width
    x, y, width, height = canvas(browser)
    for kind, share in (("mousePressed", 0.4), ("mouseMoved", 0.5), ("mouseMoved", 0.6), ("mouseReleased", 0.6)):
        browser.mouse(kind, x + share * width, y + share * height)
    browser.wait("document.getElementById('marks').textContent === 'Marked: 1 relevant.'")
    browser.key("z", ctrl=True)
    assert browser.run("document.getElementById('marks').textContent") == "No regions marked."
    for kind, share in (("mousePressed", 0.4), ("mouseMoved", 0.6), ("mouseReleased", 0.6)):
        browser.mouse(kind, x + share * width, y + share * height)
    browser.run("document.activeElement.blur()")
    browser.key("c")
    browser.wait("/Recorded. Reward [+-]/.test(document.getElementById('reward').textContent)")
    browser.run(
        "for (const n of [1, 2]) document.querySelector('[data-verdict=accept]').click();"
        "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', repeat: true}))"
    )
    browser.wait("!document.getElementById('amend').disabled")
    browser.run("document.querySelector('[data-verdict=accept]').click()")
    browser.wait("!document.getElementById('amend').disabled")
    picture = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    (tmp_path / "page.png").write_bytes(picture)
    assert len(picture) > 50_000

    posted = [
        json.loads(e["params"]["request"]["postData"])
        for e in browser.events
        if e.get("method") == "Network.requestWillBeSent" and e["params"]["request"].get("hasPostData")
    ]
    reviews = [body for body in posted if "verdict" in body]
    assert [body["verdict"] for body in reviews] == ["amend", "accept", "accept"]
    assert reviews[1]["key"] == reviews[2]["key"] != reviews[0]["key"]
    [box] = [mark["box_mm"] for body in posted for mark in body.get("marks", []) if body["verdict"] == "amend"]
    (low, high) = box  # head.nii.gz: 64 x 56 x 12 voxels of 2 x 2 x 3 mm
    assert [round(h - lo, 1) for lo, h in zip(low, high, strict=True)] == pytest.approx([25.6, 22.4, 3], abs=2)
    geometry = client.get(f"/sparsight/episodes/{posted[-1]['episode']}/geometry").json()
    assert geometry["shape"] == [12, 56, 64]

    faults = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not faults, faults
    asked = {e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"}
    assert all(url.startswith((server.url, "about:", "blob:")) for url in asked), asked


def canvas(browser):
    """Where the canvas is, once what comes in above it and beside it has come."""
    before, now = None, [0, 0, 0, 0]
    while now != before:
        before, now = (
            now,
            browser.run(
                "(({x, y, width, height}) => [x, y, width, height])"
                "(document.getElementById('canvas').getBoundingClientRect())"
            ),
        )
        time.sleep(0.2)
    return now


def drag(browser, *shares):
    """Press at the first point of the canvas, shares of its size, and release at the last."""
    x, y, width, height = canvas(browser)
    kinds = ["mousePressed", *["mouseMoved"] * (len(shares) - 1), "mouseReleased"]
    for kind, (u, v) in zip(kinds, [*shares, shares[-1]], strict=True):
        browser.mouse(kind, x + u * width, y + v * height)


def test_every_kind_of_correction(browser, server, client):
    asked(browser, server, "head")
    browser.key("4")  # a stroke
    browser.run("document.getElementById('pen').value = 4")
    browser.key("2")
    drag(browser, (0.3, 0.3), (0.4, 0.5), (0.6, 0.5))
    browser.key("4")  # points
    browser.key("1")
    drag(browser, (0.5, 0.25))
    browser.wait("document.getElementById('marks').textContent === 'Marked: 1 relevant, 1 missed.'")
    browser.run(
        "document.getElementById('difficulty').value = 'hard'; document.getElementById('comment').value = 'rim'"
    )
    browser.run("document.activeElement.blur()")
    browser.key("d")
    browser.wait("document.querySelector('#reviews [data-state=draft]') !== null")
    assert browser.run("document.getElementById('reward').textContent").startswith("Kept as a draft.")
    for change, state in (("submit", "submitted"), ("withdraw", "withdrawn"), ("undo", "submitted")):
        browser.run(f"document.querySelector('#reviews [data-change={change}]').click()")
        browser.wait(f"document.querySelector('#reviews [data-state={state}]') !== null")
    browser.key("t")
    browser.key("c")
    browser.wait("document.querySelectorAll('#reviews > li').length === 2")
    assert "the image cannot tell" in browser.run("document.getElementById('reviews').textContent")

    episode = client.get("/sparsight/episodes").json()[0]["episode"]
    first, second = client.get(f"/sparsight/episodes/{episode}/feedback").json()
    assert (first["difficulty"], first["comment"], first["verdict"]) == ("hard", "rim", "amend")
    assert [one["change"] for one in first["changes"]] == ["draft", "submit", "withdraw", "undo"]
    stroke, point = first["marks"]
    assert (stroke["kind"], stroke["radius_mm"], point["kind"], len(point["path_mm"])) == ("missed", 2, "relevant", 1)
    geometry = client.get(f"/sparsight/episodes/{episode}/geometry").json()
    to_ijk = np.linalg.inv(np.array(geometry["ijk_to_lps"]))
    _, rows, columns = geometry["shape"]
    found = (to_ijk @ np.c_[np.array(stroke["path_mm"] + point["path_mm"]), np.ones(4)].T).T[:, :2] + 0.5
    wanted = np.array([(0.3, 0.3), (0.4, 0.5), (0.6, 0.5), (0.5, 0.25)]) * [columns, rows]
    assert found == pytest.approx(wanted, abs=0.6)
    assert (second["cannot_tell"], second["answer"]) == (True, None)
    assert not [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


def test_a_blinded_reading_comes_before_the_answer(browser, server, client):
    asked(browser, server, "chest", blinded=True)
    shown = "document.querySelector('main').innerText"
    assert "kept back" in browser.run(shown)
    assert browser.run("document.querySelector('#answer .said') === null")
    hidden = "[...document.querySelectorAll('.sighted')].every((part) => part.offsetParent === null)"
    assert browser.run(hidden), "nothing to judge yet"
    browser.key("a")  # no verdict on what was not seen
    browser.run("document.getElementById('right').value = 'no'")
    browser.key("c")
    browser.wait("document.getElementById('own') !== null")
    assert browser.run("document.getElementById('own').textContent") == "You said before you saw it: no"
    assert browser.run("document.querySelector('#answer .said') !== null")
    browser.wait("document.querySelectorAll('#reviews > li').length === 1")
    episode = client.get("/sparsight/episodes").json()[0]["episode"]
    [given] = client.get(f"/sparsight/episodes/{episode}/feedback").json()
    assert (given["blinded"], given["answer"]) == (True, "no")
    urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    before = urls[: next(n for n, url in enumerate(urls) if url.endswith("/feedback"))]
    assert not [url for url in before if "evidence=true" in url or "overlay" in url]
    assert not [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


def test_the_page_loads_nothing_from_elsewhere_and_says_so(client):
    for file in (path for path in STATIC.iterdir() if path.is_file()):
        links = re.findall(r"""(?:src|href|url\()\s*=?\s*["']?([^"'\s)>]+)""", file.read_text(encoding="utf-8"))
        assert not [link for link in links if "//" in link], file
        reply = client.get(f"/sparsight/{file.name}")
        assert reply.status_code == 200
        assert "default-src 'self'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert "style=" not in html
    assert " on" + "click" not in html


def test_the_reader_lists_images_without_dicom(browser, server):
    browser.call("Page.navigate", url=f"{server.url}/sparsight/reader?study=chest&question=Is%20there%20a%20nodule%3F")
    browser.wait("document.querySelector('#answer .said') !== null")
    browser.wait("document.getElementById('canvas').width > 200")
    assert browser.run("document.title") == "sparsight reader"
    browser.wait("document.getElementById('view-title').textContent === 'Image chest'")
    listed = browser.run("[...document.getElementById('study').options].map((option) => option.value)")
    assert sorted(listed) == ["chest", "head"], "the DICOM study is left out"
    faults = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not faults, faults


@pytest.fixture
def guarded(tmp_path, studies_folder, reader_folder):
    """A server where people log in; `as_`: what a proxy adds to each of a person's requests."""
    issuer = Issuer()
    config = Config.load(home=tmp_path / "home", serve={"reader": str(reader_folder)}, site={"issuer": issuer.url})
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(config, str(studies_folder), port=port)

    def as_(sub, role):
        return {"Authorization": f"Bearer {issuer.token(sub=sub, roles=[role], exp=time.time() + 600)}"}

    try:
        wait_until_ready(url, process=process)
        yield SimpleNamespace(url=url, as_=as_)
    finally:
        process.terminate()
        process.wait(30)
        issuer.close()


def test_who_logged_in_is_the_reviewer_and_sees_what_their_role_may(browser, guarded):
    jane = guarded.as_("jane", "reviewer")
    browser.call("Network.setExtraHTTPHeaders", headers=jane)
    asked(browser, guarded, "chest")
    assert browser.run("document.getElementById('learn').offsetParent") is None, "a trainer's"
    browser.key("a")
    browser.wait("document.querySelector('#reviews [data-change=withdraw]') !== null")
    browser.run("document.querySelector('#reviews [data-change=withdraw]').click()")
    browser.wait("document.querySelector('#reviews [data-state=withdrawn]') !== null")
    with httpx.Client(base_url=guarded.url, headers=jane, trust_env=False) as client:
        me = client.get("/sparsight/me").json()["reviewer"]
        episode = client.get("/sparsight/episodes").json()[0]["episode"]
        [given] = client.get(f"/sparsight/episodes/{episode}/feedback").json()
    assert (given["reviewer"], given["changes"][-1]["by"]) == (me, me)
    assert me in browser.run("document.getElementById('reviews').textContent")

    browser.call("Network.setExtraHTTPHeaders", headers=guarded.as_("joe", "reviewer"))
    browser.call("Page.navigate", url=f"{guarded.url}/sparsight/")
    browser.wait("document.querySelector('#history button') !== null")
    browser.run("document.querySelector('#history button').click()")
    browser.wait("document.querySelectorAll('#reviews > li').length === 1")
    assert browser.run("document.querySelector('#reviews button') === null"), "not his to change"

    browser.call("Network.setExtraHTTPHeaders", headers=guarded.as_("rita", "reader"))
    browser.call("Page.navigate", url=f"{guarded.url}/sparsight/?study=head&question=Is%20there%20a%20nodule%3F")
    browser.wait("document.querySelector('#answer .said') !== null && document.getElementById('canvas').width > 200")
    shown = "['feedback', 'learn', 'blinded'].filter((id) => document.getElementById(id).offsetParent !== null)"
    assert browser.run(shown) == []
    browser.run("document.activeElement.blur()")
    browser.key("a")

    browser.call("Network.setExtraHTTPHeaders", headers=guarded.as_("tom", "trainer"))
    browser.call("Page.navigate", url=f"{guarded.url}/sparsight/")
    browser.wait("document.querySelectorAll('#policies tr').length === 1 && !document.getElementById('learn').disabled")
    assert browser.run("document.getElementById('learn').offsetParent !== null")

    # nobody was refused anything by their own page, nor told so
    faults = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not faults, faults
    refused = [e["params"]["response"] for e in browser.events if e.get("method") == "Network.responseReceived"]
    assert {response["status"] for response in refused} <= {200, 304}, refused


def test_an_ended_login_and_a_proxy_that_answers_are_told_and_lose_nothing(browser, guarded):
    browser.call("Network.setExtraHTTPHeaders", headers=guarded.as_("jane", "reviewer"))
    asked(browser, guarded, "chest")
    browser.run("document.getElementById('comment').value = 'a thought'")
    browser.call("Network.setExtraHTTPHeaders", headers={})
    status = "document.getElementById('status').textContent"
    for way, told in (
        ("null", "your login has ended"),
        ("window.fetch = async () => new Response('<h1>Log in</h1>')", "a reply that is none of ours (200)"),
        ("window.fetch = async () => { throw new TypeError('Failed to fetch') }", "the server does not answer"),
    ):
        browser.run(f"{way}; document.getElementById('status').textContent = ''")
        browser.run("document.activeElement.blur()")
        browser.key("a")
        browser.wait(f"{status}.includes({told!r})")
        assert "SyntaxError" not in browser.run(status)
        assert browser.run("document.getElementById('comment').value") == "a thought"
