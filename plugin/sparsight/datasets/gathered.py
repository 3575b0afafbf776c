"""What becomes of the records of a published set: rows to ask, or a count of what is left out and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from sparsight.datasets.checks import plain
from sparsight.datasets.rows import Row, refusal

_STRAY = 0.01  # share of unusable records that a published set may have; with more it is another file than was meant


class Gathered:
    """Rows, and how many records were left out, by reason.

    keys, of `ask` and `choose`: id, image, question, split and whatever else a Row has.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.left_out: Counter[str] = Counter()
        self._unusable: dict[str, list[str]] = defaultdict(list)  # ids by what a record lacks

    def ask(self, answer: str, *, closed: bool, **keys: Any) -> None:
        """A question that is answered with yes or no or another closed answer (closed), or freely."""
        bare = answer.rstrip(".")
        yes_no = closed and plain(bare) in {"yes", "no"}
        kind = "yesno" if yes_no else "closed" if closed else "open"
        lacking = "" if answer else "an answer"
        self._add(lacking, answer=bare if yes_no else answer, answer_type=kind, **keys)

    def choose(self, options: Mapping[str, str], letter: str, **keys: Any) -> None:
        """A question with options by letter, of which one is right."""
        lacking = "" if letter in options else "an answer among the options"
        if len({plain(option) for option in options.values()} - {""}) < max(len(options), 2):
            lacking = "two or more different options"
        answer = options.get(letter, "")
        self._add(lacking, answer=answer, answer_type="choice", choices=tuple(options.values()), **keys)

    def leave_out(self, why: str, times: int = 1) -> None:
        """Count what this program cannot ask, or must not."""
        self.left_out[why] += times

    def close(self) -> None:
        """Leave out the few records that are unusable as published. Raises DataError where they are more than a few."""
        total = len(self.rows) + self.left_out.total() + sum(len(ids) for ids in self._unusable.values())
        for lacking, ids in self._unusable.items():
            if len(ids) > _STRAY * total:
                raise refusal(ids, f"records without {lacking}", lacking, "take the files as they were published")
            self.leave_out(f"without {lacking}", len(ids))

    def _add(self, lacking: str, **keys: Any) -> None:
        """One row, unless it lacks something: an id, an image, a question, or what the caller says."""
        lacking = next((f"an {key}" for key in ("id", "image") if not keys[key]), lacking)
        lacking = lacking if keys["question"] else "a question"
        if lacking:
            self._unusable[lacking].append(keys["id"] or "(no id)")
        else:
            self.rows.append(Row(**keys))
