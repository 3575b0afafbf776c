"""The part of the panel about the review: verdict, marks, drafts, and what became of the reviews of this answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import slicer

from . import words
from .learning import fill
from .logic import KINDS, SparsightLogic

VERDICTS = ("accept", "reject", "amend")
DIFFICULTIES = ("", "easy", "moderate", "hard")  # as the box lists them
_CHANGES = {"submitDraft": "submit", "withdraw": "withdraw", "revert": "undo"}


class ReviewPanel:
    """start(doing, work, done): one thing at a time; guarded(action): what may fail; say(text): to the reader."""

    def __init__(self, ui: Any, logic: SparsightLogic, start: Any, guarded: Any, say: Any) -> None:
        self._ui, self._logic, self._start, self._guarded, self._say = ui, logic, start, guarded, say
        self._given: list[words.Json] = []  # of this answer, the newest first
        self._busy, self._may = False, True
        fill(ui.difficultyBox, [words.difficulty(name) for name in DIFFICULTIES])
        clicked: dict[str, Callable[[], Any]] = {
            "cannotTell": lambda: logic.write(cannot_tell=ui.cannotTellButton.checked),
            "paint": self._paint,
            "undo": self._undo,
            "submit": lambda: guarded(self._submit),
            "draft": lambda: guarded(lambda: self._submit(draft=True)),
            "discard": self._discard,
        }
        clicked.update({verdict: _with(self._judge, verdict) for verdict in VERDICTS})
        clicked.update({kind: _with(self._mark, kind) for kind in KINDS})
        clicked.update({name: _with(self._change, change) for name, change in _CHANGES.items()})
        for name, action in clicked.items():
            getattr(ui, f"{name}Button").connect("clicked()", action)
        for name, field in (("rightEdit", "answer"), ("commentEdit", "comment")):
            getattr(ui, name).connect("textEdited(QString)", lambda text, f=field: logic.write(**{f: text}))
        ui.difficultyBox.connect("activated(int)", lambda index: logic.write(difficulty=DIFFICULTIES[index]))
        ui.givenBox.connect("activated(int)", lambda _: self.enable(self._busy, self._may))

    def show(self) -> None:
        """The draft as the scene has it; what was given before is not known yet."""
        ui, draft = self._ui, self._logic.draft
        ui.rightEdit.text, ui.commentEdit.text = draft["answer"], draft["comment"]
        ui.cannotTellButton.checked = draft["cannot_tell"]
        ui.difficultyBox.currentIndex = DIFFICULTIES.index(draft["difficulty"])
        ui.rewardLabel.text = ""
        self._judge(draft["verdict"])
        self.show_given([])

    def show_given(self, given: list[words.Json]) -> None:
        """Every reader's reviews of this answer, oldest first."""
        chosen = self._ui.givenBox.currentIndex if len(given) == len(self._given) else 0
        self._given = given[::-1]
        fill(self._ui.givenBox, [words.given(one) for one in self._given])
        if self._given:
            self._ui.givenBox.currentIndex = chosen
        self.enable(self._busy, self._may)

    def enable(self, busy: bool, may: bool) -> None:
        """What can be done now. may: whether who logged in may review."""
        self._busy, self._may = busy, may
        answered, ui = self._logic.answer is not None and may, self._ui
        can = dict.fromkeys((*VERDICTS, *KINDS, "undo", "discard", "cannotTell"), answered)
        can.update(dict.fromkeys(("submit", "draft"), answered and not busy))
        can["paint"] = self._logic.has_evidence and may
        one = self._chosen()
        changes = possible(one) if one and one["reviewer"] == self._reviewer and not busy else []
        can.update({name: change in changes for name, change in _CHANGES.items()})
        for name, enabled in can.items():
            getattr(ui, f"{name}Button").enabled = enabled
        ui.difficultyBox.enabled = answered
        ui.marksLabel.text = words.marks(self._logic.counts(), self._logic.painted) if may else words.NO_REVIEW

    def tick(self) -> None:
        """What changes by itself: a box that was drawn, or given up in Slicer."""
        drawing = self._logic.drawing
        for kind in KINDS:
            getattr(self._ui, f"{kind}Button").checked = kind == drawing
        if self._may:
            self._ui.marksLabel.text = words.marks(self._logic.counts(), self._logic.painted)

    def may_be_lost(self) -> bool:
        """Ask, where something was not submitted."""
        lost = "This review was not submitted. Drop it?"
        return not self._logic.unsent or slicer.util.confirmYesNoDisplay(lost, windowTitle="Drop the review?")

    @property
    def _reviewer(self) -> str:
        return self._ui.reviewerEdit.text.strip() or "anonymous"

    def _chosen(self) -> words.Json | None:
        return self._given[self._ui.givenBox.currentIndex] if self._given else None

    def _judge(self, verdict: str) -> None:
        if verdict != self._logic.draft["verdict"]:
            self._logic.write(verdict=verdict)
        for name in VERDICTS:
            getattr(self._ui, f"{name}Button").checked = name == verdict

    def _mark(self, kind: str) -> None:
        if self._logic.begin_mark(kind):
            self._say(f"Draw a box around what is {kind}.")

    def _undo(self) -> None:
        if not self._logic.undo():
            self._say("No box to remove; painting is undone in the Segment Editor.")

    def _paint(self) -> None:
        segmentation, volume = self._logic.segmentation, self._logic.volume
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(segmentation)
        editor.setSourceVolumeNode(volume)

    def _discard(self) -> None:
        given = self._given[::-1]
        self._guarded(self._logic.discard)
        self.show()
        self.show_given(given)

    def _submit(self, draft: bool = False) -> None:
        """Send the review, or keep it as a draft; a draft that is still what was written is submitted as it is."""
        parts = self._logic.corrections(self._reviewer, draft)
        keys, reviewer = [request["key"] for request, _, _ in parts], self._reviewer
        begun = self._logic.drafted and not draft
        episode = parts[0][0]["episode"]

        def work(client: Any, cancel: Any) -> Any:
            if begun:
                for key in keys:
                    client.change(key, "submit", reviewer, f"{key}-submit", cancel)
            else:
                for request, mask, kind in parts:
                    client.feedback(request, mask, kind, cancel)
            return client.given(episode, cancel)

        def done(given: list[words.Json]) -> None:
            if (self._logic.answer or {}).get("episode") != episode:
                return
            mine = [one for one in given if one["key"] in keys]
            kept = any(one["state"] == "draft" for one in mine)  # what was submitted before is no draft again
            self._logic.sent(kept)
            self._ui.rewardLabel.text = words.reward(mine, kept)
            self._say("Kept as a draft: nothing is learned from it." if kept else "Review recorded.")
            self.show_given(given)

        self._start("Sending the review", work, done)

    def _change(self, change: str) -> None:
        one, reviewer, key = self._chosen(), self._reviewer, f"slicer-{uuid.uuid4().hex}"
        if one is None:
            return

        def work(client: Any, cancel: Any) -> Any:
            client.change(one["key"], change, reviewer, key, cancel)
            return client.given(one["episode"], cancel)

        def done(given: list[words.Json]) -> None:
            if (self._logic.answer or {}).get("episode") == one["episode"]:
                state = next((now["state"] for now in given if now["key"] == one["key"]), "gone")
                self._say(f"The review is {state}.")
                self.show_given(given)

        self._start("Changing the review", work, done)


def _with(action: Callable[[str], None], name: str) -> Callable[[], None]:
    """What a button of this name does."""
    return lambda: action(name)


def possible(given: words.Json) -> list[str]:
    """What its reviewer may do with a review now, as the server's own rules are (docs/api.md)."""
    changes = [one["change"] for one in given["changes"]]
    states = [] if changes[:1] == ["draft"] else ["submitted"]
    for change in changes:
        if change == "undo":
            states.pop()
        else:
            states.append(change)
    found = {"draft": ["submit", "withdraw"], "submitted": ["withdraw"]}.get(given["state"], [])
    return [*found, "undo"] if len(states) > 1 else found
