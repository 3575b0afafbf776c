"""The part of the panel about learning: start it, follow it, see the policy versions, put one live or back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import slicer

from . import words

_EVERY_S = 2.0  # between two looks at a job that runs


class LearningPanel:
    """start(doing, work, done): one thing at a time; beside(work, done): besides; say(text): to the reader."""

    def __init__(self, ui: Any, start: Any, beside: Any, say: Any) -> None:
        self._ui, self._start, self._beside, self._say = ui, start, beside, say
        self._policies: list[words.Json] = []
        self._runs = False
        self._due_s: float | None = None
        for name, action in (("learn", self._learn), ("promote", self._promote), ("rollback", self._roll_back)):
            getattr(ui, f"{name}Button").connect("clicked()", action)

    def show(self, job: words.Json | None, policies: list[words.Json]) -> None:
        """State of the latest job (None: of no concern to who logged in), and all versions, oldest first."""
        self._policies = policies[::-1]
        fill(self._ui.policyBox, [words.policy(version) for version in self._policies])
        self._follow(job)

    def tick(self) -> None:
        """Look again where a job runs; a server that does not answer is not asked on and on."""
        if self._due_s is not None and time.monotonic() >= self._due_s:
            self._due_s = None
            self._beside(lambda client, cancel: client.learning(cancel), self._follow)

    def _learn(self) -> None:
        self._start("Starting to learn", lambda client, cancel: client.learn(cancel), self._follow)

    def _follow(self, job: words.Json | None) -> None:
        self._ui.learningLabel.text = words.learning(job)
        if job is None:
            self._runs, self._due_s = False, None
            return
        if self._runs and job["state"] != "running":
            self._say("Learning has ended: refresh to see the policies.")
        self._runs = job["state"] == "running"
        self._due_s = time.monotonic() + _EVERY_S if self._runs else None

    def _promote(self) -> None:
        if self._policies:
            policy = self._policies[self._ui.policyBox.currentIndex]["id"]
            signed = self._ui.reviewerEdit.text.strip()
            ask = f"Make {policy} live, signed by {signed}?"
            self._change(ask, lambda client, cancel: client.promote(policy, signed, cancel))

    def _roll_back(self) -> None:
        self._change("Make the live policy's parent live again?", lambda client, cancel: client.rollback(cancel))

    def _change(self, ask: str, work: Any) -> None:
        def change(client: Any, cancel: Any) -> Any:
            return work(client, cancel), client.learning(cancel), client.policies(cancel)

        def done(found: Any) -> None:
            version, *lists = found
            self.show(*lists)
            self._say(f"Policy {version['id']} is {version['state']}.")

        if slicer.util.confirmYesNoDisplay(ask, windowTitle="Change the policy that answers?"):
            self._start("Changing the policy", change, done)


def fill(box: Any, lines: Iterable[str]) -> None:
    """Offer these lines in a box, in place of what it offered."""
    box.clear()
    box.addItems(list(lines))
