"""An answer as it comes (docs/api.md): the server's events, and what was heard of them so far."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

EVENTS = "text/event-stream"
_LONGEST = 2**24  # bytes of an event


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, bytes]]:
    """Name and data of each server-sent event; comments are left out, half an event at the end is dropped."""
    name, data = "", b""
    while line := response.readline(_LONGEST):
        line = line.rstrip(b"\r\n")
        if line.startswith(b"event: "):
            name = line[7:].decode("ascii", "replace")
        elif line.startswith(b"data: "):
            data = line[6:]
        elif not line and name:
            yield name, data
            name, data = "", b""


class Heard:
    """Of one question: the stage, the tokens that are read, the reasoning word by word, the answer."""

    def __init__(self, question: str) -> None:
        self.question, self.stage, self.reasoning, self.answer = question, "loading", "", ""
        self.kept, self.total = 0, 0  # tokens of the reading that is under way

    def take(self, name: str, data: dict[str, Any]) -> None:
        """Take an event in. Text before `kept` is of an earlier reading."""
        if name == "progress":
            self.stage = str(data.get("stage", ""))
        elif name == "kept":
            self.kept, self.total, self.reasoning = data.get("kept", 0), data.get("total", 0), ""
        elif name == "token":
            self.reasoning += str(data.get("text", ""))
        elif name == "answer":
            self.answer = str(data.get("answer", ""))
