"""Texts of several questions, written together: one pass of the language model gives each of them its next token.

Continuous batching, the scheduling by iteration of Yu et al. 2022, "Orca: A Distributed Serving System for
Transformer-Based Generative Models", OSDI: a text joins between two tokens and leaves when it ends; nobody waits for
the longest. Here rows of different lengths stand in one key-value cache, padded on the left and masked there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sparsight.errors import MemoryFullError

_LOG = logging.getLogger(__name__)
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


@dataclass(eq=False)
class Pass(Generic[_T]):
    """Work of the device that is wanted at once, and done again where it found no memory beside texts."""

    call: Callable[[], _T]
    result: _T | None = None


# It stops wherever it wants a text or a pass, and goes on when that is done.
Work = Generator[Write | Pass[Any], None, _T]
Guard = Callable[[], AbstractContextManager[Any]]


@dataclass(eq=False)
class Behind:
    """What the next tokens of B texts are written behind.

    model: the language model. logits: (B, V) of the next token; mask: (B, L) of what was read; at: (..., B, 1) the last
    position; barred: an id that is never written; guard: what its work is done within, so that a device without memory
    raises MemoryFullError.
    """

    model: Callable[..., Any]
    logits: Tensor
    mask: Tensor
    at: Tensor
    cache: Any
    barred: int | None = None
    guard: Guard = nullcontext

    @classmethod
    def prompts(
        cls, model: Callable[..., Any], given: dict[str, Any], *, barred: int | None = None, guard: Guard = nullcontext
    ) -> Self:
        """Read prompts. given: arguments of the model's forward."""
        with guard():
            out = model(**given, logits_to_keep=1, use_cache=True)
            logits = out.logits[:, -1].float()
        at = given["position_ids"][..., -1:]
        return cls(model, logits, given["attention_mask"], at, out.past_key_values, barred, guard)

    def allowed(self) -> Tensor:
        """The logits, -inf for what is barred: (B, V)."""
        if self.barred is None:
            return self.logits
        logits = self.logits.clone()
        logits[:, self.barred] = -torch.inf
        return logits

    def follow(self, ids: Tensor) -> None:
        """Go on with a token for each text: (B,)."""
        with self.guard():
            self._follow(ids)

    def _follow(self, ids: Tensor) -> None:
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
        """Take in the texts of another, after one's own. What it raises leaves both of no use."""
        with self.guard():
            self._join(other)

    def _join(self, other: Behind) -> None:
        length = max(self.mask.shape[1], other.mask.shape[1])
        for part in (self, other):
            part._lengthen(length)
        self.mask = torch.cat([self.mask, other.mask])
        self.logits = torch.cat([self.logits, other.logits])
        self.at = torch.cat([self.at, other.at], dim=-2)
        for own, more in zip(self.cache.layers, other.cache.layers, strict=True):
            own.keys, own.values = torch.cat([own.keys, more.keys]), torch.cat([own.values, more.values])

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other texts go, and what only they were padded for. What it raises leaves these of no use."""
        with self.guard():
            self._keep(rows)

    def _keep(self, rows: Sequence[int]) -> None:
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

    most: texts at once. Where a pass fails, half as many are tried, down to one: what fails alone is raised where it
    was wanted. When nothing is written any more, it is `most` again.
    """

    def __init__(self, begin: Begin, most: int = 1) -> None:
        self._begin, self.most, self._now = begin, most, most
        self._behind: Behind | None = None
        self._writes: list[Write] = []  # rows of _behind
        self._parked: list[Write] = []  # that were begun, and are read anew when there is room
        self._ended: list[Write] = []  # not handed out yet

    def __len__(self) -> int:
        return len(self._writes) + len(self._parked) + len(self._ended)

    @property
    def room(self) -> bool:
        """Whether a text can join."""
        return len(self) < self._now and not self._parked and (self._behind is None or self._behind.joinable)

    @torch.inference_mode()
    def join(self, write: Write) -> None:
        """Read its prompt. Where that fails for want of memory beside others it waits; else it is raised."""
        if not len(self):
            self._now = self.most
        beside = self._behind is not None
        try:
            self._take_in(write)
        except MemoryFullError:
            if not beside:
                raise
            self._fewer()
            self._parked.append(write)

    @torch.inference_mode()
    def do(self, wanted: Pass[Any]) -> None:
        """A pass for one of those who write. Where it finds no memory beside texts, these make room."""
        try:
            wanted.result = wanted.call()
        except MemoryFullError:
            if self._behind is None:
                raise
            self._fewer()
            wanted.result = wanted.call()

    @torch.inference_mode()
    def step(self) -> list[Write]:
        """Write one token of each text; those that ended, for whatever cause."""
        if not self._ended:
            self._go_on()
        ended, self._ended = self._ended, []
        return ended

    def drop(self, write: Write) -> None:
        """Forget a text that nobody wants any more."""
        self._parked, self._ended = ([w for w in some if w is not write] for some in (self._parked, self._ended))
        self._stay([w for w in self._writes if w is not write])

    def restart(self) -> None:
        """Read all anew: after a pass that was broken off."""
        self._parked = [*self._writes, *self._parked]
        self._writes, self._behind = [], None

    def _go_on(self) -> None:
        while self._parked and len(self._writes) < self._now:
            write = self._parked.pop(0)
            try:
                self.join(write)
            except Exception as error:  # raised where this text was wanted, and no other
                self._fails(write, error)
                return
        if self._behind is None:
            return
        ids = self._behind.allowed().argmax(-1)
        for write, token in zip(self._writes, ids.tolist(), strict=True):
            write.take(token)
        self._ended += [write for write in self._writes if write.ended]
        going = [r for r, write in enumerate(self._writes) if not write.ended]
        self._writes, writes = [self._writes[r] for r in going], self._writes
        try:
            if not going:
                self._behind = None
                return
            if len(going) < len(writes):
                self._behind.keep(going)
            self._behind.follow(ids[going])
        except Exception as error:
            if len(self._writes) > 1:
                self._fewer()
            else:
                [write], self._writes, self._behind = self._writes, [], None
                self._fails(write, error)

    def _take_in(self, write: Write) -> None:
        behind = self._begin(write.prompt, write.ids)
        if self._behind is None:
            self._behind = behind
        else:
            try:
                self._behind.join(behind)
            except BaseException:
                self.restart()
                raise
        self._writes.append(write)

    def _stay(self, writes: list[Write]) -> None:
        rows = [r for r, write in enumerate(self._writes) if any(write is one for one in writes)]
        if len(rows) == len(self._writes):
            return
        self._writes = writes
        if self._behind is not None and rows:
            try:
                self._behind.keep(rows)
            except Exception:
                self.restart()
        else:
            self._behind = None

    def _fewer(self) -> None:
        """Half as many from now on, all read anew."""
        self._now = max(1, min(self._now, len(self._writes) + len(self._parked)) // 2)
        _LOG.warning("a pass over texts that are written together failed: %d at once from now on", self._now)
        self.restart()

    def _fails(self, write: Write, error: Exception) -> None:
        write.error = error.with_traceback(None)  # whose frames hold the cache
        self._ended.append(write)


class Task(Generic[_T]):
    """A work under way. result: what came of it, or what it raised."""

    def __init__(self, work: Work[_T]) -> None:
        self._work, self.result = work, Future[_T]()
        self.write: Write | None = None  # the text that it waits for

    def go_on(self, together: Together) -> None:
        """To the next text that it wants, which joins, or to its end."""
        error = None if self.write is None else self.write.error
        self.write = None
        try:
            while True:
                wanted = next(self._work) if error is None else self._work.throw(error)
                error = None
                try:
                    if isinstance(wanted, Pass):
                        together.do(wanted)
                    elif not wanted.ended:
                        together.join(wanted)
                        self.write = wanted
                        return
                except MemoryFullError as full:
                    error = full.with_traceback(None)
        except StopIteration as stop:
            self.result.set_result(stop.value)
        except BaseException as raised:
            self.result.set_exception(raised)

    def fail(self, error: BaseException, together: Together) -> None:
        """End it so."""
        self.end(together)
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
        if together.step():
            task.go_on(together)
    return task.result.result()


def written(begin: Begin, write: Write) -> list[int]:
    """Write a text by itself: its ids."""

    def work() -> Work[list[int]]:
        yield write
        return write.ids

    return alone(begin, work())


def passed(call: Callable[[], _T]) -> Work[_T]:
    """A pass within a work, and what it gives."""
    wanted = Pass(call)
    yield wanted
    return wanted.result  # type: ignore[return-value]  # it was done


def _right(part: Tensor, length: int) -> Tensor:
    """The last `length` of (..., L, D), zeros before them where there are fewer."""
    missing = length - part.shape[-2]
    return functional.pad(part, (0, 0, missing, 0)) if missing > 0 else part[..., -missing:, :]
