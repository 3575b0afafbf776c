"""The page at /sparsight/ in a real Chromium: an answer is shown with its study picked; what a narrow window shows."""

import shutil

import pytest

from chromium import asked

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

SHOWN = "['canvas', 'answer', 'feedback', 'view-tools'].filter((id) => document.getElementById(id).offsetParent)"


def value(browser, name):
    return browser.run(f"document.getElementById('{name}').value")


def opened(browser, number, study):
    """Open an earlier answer of the list, and wait until the page says that it shows its study."""
    browser.run(f"document.querySelectorAll('#history button')[{number}].click()")
    browser.wait(f"document.getElementById('view-title').textContent === 'Study {study}'")


def pick(browser, study):
    """Pick a study by hand."""
    browser.run(f"document.getElementById('study').value = '{study}'")
    browser.run("document.getElementById('study').dispatchEvent(new Event('change'))")


def test_an_earlier_answer_takes_the_study_along_and_another_study_puts_it_aside(browser, server, client):
    client.post("/sparsight/ask", json={"study": "head", "question": "How many rings?"}).raise_for_status()
    asked(browser, server, "chest")
    browser.wait("document.querySelector('#history button')?.textContent.startsWith('Is there')")
    opened(browser, 1, "head")
    assert (value(browser, "study"), value(browser, "question")) == ("head", "How many rings?")
    browser.run("document.getElementById('ask').click()")
    browser.wait("document.querySelectorAll('#history button')[0]?.textContent.startsWith('How many')")
    assert [one["study"] for one in client.get("/sparsight/episodes?limit=3").json()] == ["head", "chest", "head"]
    browser.run("document.getElementById('question').value = 'Is there a ring?'")
    opened(browser, 1, "chest")
    assert value(browser, "study") == "chest"
    assert value(browser, "question") == "Is there a ring?", "typed, not asked yet"

    browser.wait(f"{SHOWN}.length === 4")
    browser.run("document.getElementById('comment').value = 'begun'")
    pick(browser, "head")
    assert browser.run(SHOWN) == []
    assert "about chest is put aside" in browser.run("document.getElementById('answer-panel').innerText")
    assert browser.run("document.getElementById('view-title').textContent") == "Study"
    assert value(browser, "question") == "Is there a ring?"
    browser.run("document.activeElement.blur()")
    browser.key("a")  # nothing to accept is in sight
    pick(browser, "chest")
    assert len(browser.run(SHOWN)) == 4
    assert value(browser, "comment") == "begun"
    sent = [e["params"]["request"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert not [request for request in sent if request["url"].endswith("/feedback") and request["method"] == "POST"]
    assert not [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


def test_an_answer_whose_study_is_gone_leaves_nothing_picked(browser, server, client):
    copy = server.folder / "gone.png"
    shutil.copy(server.folder / "chest.png", copy)
    try:
        client.post("/sparsight/ask", json={"study": "gone", "question": "How many rings?"}).raise_for_status()
    finally:
        copy.unlink()
    browser.call("Page.navigate", url=f"{server.url}/sparsight/")
    browser.wait("document.querySelector('#history button') !== null && document.getElementById('study').value")
    opened(browser, 0, "gone")
    assert value(browser, "study") == ""
    assert browser.run("document.getElementById('ask').disabled")
    assert "Pick a study" in browser.run("document.getElementById('ask-panel').innerText")
    pick(browser, "head")
    assert not browser.run("document.getElementById('ask').disabled")
    assert "Pick a study" not in browser.run("document.getElementById('ask-panel').innerText")
    assert browser.run(SHOWN) == []


def test_of_two_answers_opened_at_once_the_last_is_shown_whichever_comes_first(browser, server, client):
    asks = [{"study": study, "question": "How many rings?"} for study in ("head", "chest")]
    slow, _ = (client.post("/sparsight/ask", json=ask).json()["episode"] for ask in asks)
    browser.call("Page.navigate", url=f"{server.url}/sparsight/")
    browser.wait("document.querySelectorAll('#history button').length >= 2")
    browser.run(
        "window.late = 0; const whole = window.fetch; window.fetch = async (path, options) => {"
        f"if (String(path).includes('{slow}/geometry')) {{"
        "await new Promise((resolve) => setTimeout(resolve, 1500)); setTimeout(() => { window.late = 1; }, 1000); }"
        "return whole(path, options); }"
    )
    browser.run("for (const n of [1, 0]) document.querySelectorAll('#history button')[n].click()")
    browser.wait("window.late === 1")
    assert browser.run("document.getElementById('view-title').textContent") == "Study chest"
    assert value(browser, "study") == "chest"
    assert browser.run("document.getElementById('slice-tools').hidden"), "chest is one picture, head twelve slices"


def test_a_narrow_page_breaks_no_word_of_a_cell_and_cuts_no_number(browser, server):
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    browser.call("Page.navigate", url=f"{server.url}/sparsight/")
    browser.wait("document.querySelector('#policies td') !== null")
    broken = """[...document.querySelectorAll('th, td:not(:nth-child(4))')].flatMap((cell) => {
        if (cell.firstChild?.nodeType !== Node.TEXT_NODE) return [];
        return [...cell.textContent.matchAll(/[\\w/]+/g)].filter((word) => {
            const range = document.createRange();
            range.setStart(cell.firstChild, word.index);
            range.setEnd(cell.firstChild, word.index + word[0].length);
            return range.getClientRects().length > 1;
        }).map(([word]) => word);
    })"""
    assert browser.run(broken) == []
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    room = """['history', 'reviews'].map((id) => {
        const list = document.getElementById(id), number = document.createElement('span');
        document.getElementById('feedback').hidden = false;
        number.textContent = '20.\\u00a0';
        list.append(number);
        const width = number.getBoundingClientRect().width;
        number.remove();
        return parseFloat(getComputedStyle(list).paddingLeft) - width;
    })"""
    assert min(browser.run(room)) >= 0
