"""Texts of several questions, written together: one pass of the language model gives each of them its next token.

Continuous batching, the scheduling by iteration of Yu et al. 2022, "Orca: A Distributed Serving System for
Transformer-Based Generative Models", OSDI: a text joins between two tokens and leaves when it ends; nobody waits for
the longest. Here rows of different lengths stand in one key-value cache, padded on the left and masked there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sparsight.errors import MemoryFullError

_T = TypeVar("_T")


@dataclass(eq=False)
class Write:
    """A text that is wanted after a prompt: greedy, up to a token of `ends` or to `limit` tokens.

    prompt: as its reader knows it. on_ids: hears all ids so far after each of them; what it raises ends the text, and
    is raised where the text was wanted. ids: what is written, without the end.
    """

    prompt: Any
    ends: frozenset[int]
    limit: int
    on_ids: Callable[[list[int]], object] = lambda ids: None
    ids: list[int] = field(default_factory=list)
    error: BaseException | None = None
    _closed: bool = False

    @property
    def ended(self) -> bool:
        """Whether no token follows."""
        return self._closed or self.error is not None or len(self.ids) >= self.limit

    def take(self, token: int) -> None:
        """Go on with one token."""
        if token in self.ends:
            self._closed = True
            return
        self.ids.append(token)
        try:
            self.on_ids(self.ids)
        except BaseException as error:  # of whoever listens: raised in their own work, not in that of the others
            self.error = error


class Shown:
    """Hands out a text as it is written: an `on_ids`. A character whose bytes are not complete waits for the next id.

    spell: ids to the text that is shown.
    """

    def __init__(self, spell: Callable[[list[int]], str], on_token: Callable[[str], None] | None) -> None:
        self._spell, self._tell, self._shown = spell, on_token, ""

    def __call__(self, ids: list[int]) -> None:
        """Tell what is new."""
        if self._tell is None:
            return
        text = self._spell(ids)
        if not text.endswith("\ufffd") and text != self._shown:
            new, self._shown = text[len(self._shown) :], text
            self._tell(new)


Work = Generator[Write, None, _T]  # it stops wherever it wants a text, and goes on when that is written


@dataclass(eq=False)
class Behind:
    """What the next tokens of B texts are written behind.

    model: the language model. logits: (B, V) of the next token; mask: (B, L) of what was read; at: (..., B, 1) the last
    position; barred: an id that is never written.
    """

    model: Callable[..., Any]
    logits: Tensor
    mask: Tensor
    at: Tensor
    cache: Any
    barred: int | None = None

    @classmethod
    def prompts(cls, model: Callable[..., Any], given: dict[str, Any], barred: int | None = None) -> Self:
        """Read prompts. given: arguments of the model's forward."""
        out = model(**given, logits_to_keep=1, use_cache=True)
        at = given["position_ids"][..., -1:]
        return cls(model, out.logits[:, -1].float(), given["attention_mask"], at, out.past_key_values, barred)

    def allowed(self) -> Tensor:
        """The logits, -inf for what is barred: (B, V)."""
        if self.barred is None:
            return self.logits
        logits = self.logits.clone()
        logits[:, self.barred] = -torch.inf
        return logits

    def follow(self, ids: Tensor) -> None:
        """Go on with a token for each text: (B,)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        self.at = self.at + 1
        out = self.model(
            input_ids=ids.unsqueeze(1),
            attention_mask=self.mask,
            position_ids=self.at,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits, self.cache = out.logits[:, -1].float(), out.past_key_values

    @property
    def joinable(self) -> bool:
        """Whether texts can join these: of every layer, the cache is keys and values of the last tokens."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers)

    def join(self, other: Behind) -> None:
        """Take in the texts of another, after one's own."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        for part in (self, other):
            part._lengthen(length)
        self.mask = torch.cat([self.mask, other.mask])
        self.logits = torch.cat([self.logits, other.logits])
        self.at = torch.cat([self.at, other.at], dim=-2)
        for own, more in zip(self.cache.layers, other.cache.layers, strict=True):
            own.keys, own.values = torch.cat([own.keys, more.keys]), torch.cat([own.values, more.values])

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other texts go, and what only they were padded for."""
        at = torch.tensor(rows, device=self.mask.device)
        self.mask, self.logits, self.at = self.mask[at], self.logits[at], self.at.index_select(-2, at)
        self.cache.batch_select_indices(at)
        if self.joinable:
            self._lengthen(self.mask.shape[1] - int(self.mask.any(0).int().argmax()))

    def _lengthen(self, length: int) -> None:
        """Pad on the left to that length, or cut there."""
        self.mask = _right(self.mask.unsqueeze(-1), length).squeeze(-1)
        for layer in self.cache.layers:
            held = length
            if isinstance(layer, DynamicSlidingWindowLayer):
                held = min(length, layer.sliding_window - 1)
                layer.cumulative_length = length
            layer.keys, layer.values = _right(layer.keys, held), _right(layer.values, held)


Begin = Callable[[Any, Sequence[int]], Behind]  # reads a prompt and the ids that were written after it


class Together:
    """The texts that are written now. Not thread-safe.

    most: texts at once; fewer from the first time that the device's memory does not hold so many.
    """

    def __init__(self, begin: Begin, most: int = 1) -> None:
        self._begin, self.most = begin, most
        self._behind: Behind | None = None
        self._writes: list[Write] = []  # rows of _behind
        self._parked: list[Write] = []  # that were begun, and are read anew when there is room

    def __len__(self) -> int:
        return len(self._writes) + len(self._parked)

    @property
    def room(self) -> bool:
        """Whether a text can join."""
        return len(self) < self.most and not self._parked and (self._behind is None or self._behind.joinable)

    @torch.inference_mode()
    def join(self, write: Write) -> None:
        """Read its prompt. Where that finds no memory beside others it waits; alone, MemoryFullError is raised."""
        try:
            self._take_in(write)
        except MemoryFullError:
            if not self._writes:
                raise
            self.most = max(1, len(self._writes))
            self._parked.append(write)

    @torch.inference_mode()
    def step(self) -> list[Write]:
        """Write one token of each text; those that ended, for whatever cause."""
        while self._parked and len(self._writes) < self.most:
            write = self._parked.pop(0)
            try:
                self.join(write)
            except Exception as error:  # raised where this text was wanted, and no other
                write.error = error
                return [write]
        if self._behind is None:
            return []
        ids = self._behind.allowed().argmax(-1)
        for write, token in zip(self._writes, ids.tolist(), strict=True):
            write.take(token)
        ended = [write for write in self._writes if write.ended]
        stay = self._stay(lambda write: not write.ended)
        if self._behind is not None:
            try:
                self._behind.follow(ids[stay])
            except MemoryFullError as full:
                ended += self._with_fewer(full)
        return ended

    def drop(self, write: Write) -> None:
        """Forget a text that nobody wants any more."""
        self._parked = [other for other in self._parked if other is not write]
        self._stay(lambda other: other is not write)

    def restart(self) -> None:
        """Read all anew: after a pass that was broken off."""
        self._parked = [*self._writes, *self._parked]
        self._writes, self._behind = [], None

    def _take_in(self, write: Write) -> None:
        behind = self._begin(write.prompt, write.ids)
        if self._behind is None:
            self._behind = behind
        else:
            self._behind.join(behind)
        self._writes.append(write)

    def _stay(self, stays: Callable[[Write], bool]) -> list[int]:
        """Let the other texts go; the rows of those that stay."""
        rows = [r for r, write in enumerate(self._writes) if stays(write)]
        if len(rows) < len(self._writes):
            self._writes = [self._writes[r] for r in rows]
            if self._behind is not None and rows:
                self._behind.keep(rows)
            else:
                self._behind = None
        return rows

    def _with_fewer(self, full: MemoryFullError) -> list[Write]:
        """After a pass that found no memory: half as many from now on; a text that was alone ends."""
        writes = list(self._writes)
        self.restart()
        self.most = max(1, len(writes) // 2)
        if len(writes) > 1:
            return []
        writes[0].error = full
        self.drop(writes[0])
        return writes


class Task(Generic[_T]):
    """A work under way. result: what came of it, or what it raised."""

    def __init__(self, work: Work[_T]) -> None:
        self._work, self.result = work, Future[_T]()
        self.write: Write | None = None  # the last that it wanted

    def go_on(self, together: Together) -> None:
        """To the next text that it wants, which joins, or to its end."""
        error = None if self.write is None else self.write.error
        try:
            while True:
                self.write = next(self._work) if error is None else self._work.throw(error)
                error = None
                if not self.write.ended:
                    try:
                        together.join(self.write)
                    except MemoryFullError as full:
                        error = full
                        continue
                    return
        except StopIteration as stop:
            self.result.set_result(stop.value)
        except BaseException as raised:
            self.result.set_exception(raised)

    def fail(self, error: BaseException) -> None:
        """Raise it where the work stands."""
        self._work.close()
        self.result.set_exception(error)

    def end(self, together: Together) -> None:
        """Nobody wants it any more."""
        if self.write is not None:
            together.drop(self.write)
        self._work.close()


def alone(begin: Begin, work: Work[_T]) -> _T:
    """Do a work by itself."""
    together, task = Together(begin), Task(work)
    task.go_on(together)
    while not task.result.done():
        for _ in together.step():
            task.go_on(together)
    return task.result.result()


def written(begin: Begin, write: Write) -> list[int]:
    """Write a text by itself: its ids."""

    def work() -> Work[list[int]]:
        yield write
        return write.ids

    return alone(begin, work())


def _right(part: Tensor, length: int) -> Tensor:
    """The last `length` of (..., L, D), zeros before them where there are fewer."""
    missing = length - part.shape[-2]
    return functional.pad(part, (0, 0, missing, 0)) if missing > 0 else part[..., -missing:, :]
