"""Processes that train one model together, each on its share of a step's questions. Here: one, alone.

Every process draws the same batch from (seed, step) and moves its own copy of what is trained by the same summed
gradient: what one process would have done, to within rounding. Files and progress are the first one's.
cluster.processes has those that accelerate starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import nn

from sparsight.errors import ConfigError
from sparsight.model.protocols import Reader

T = TypeVar("T")


class Ranks:
    """rank: number of this process; size: how many there are.

    in_step: whether the reader's layers are spread over the processes, so that each forward pass needs all of them.
    """

    rank, size, in_step = 0, 1, False

    def check(self, batch: int) -> None:
        """Raise ConfigError for a batch that cannot be shared out."""
        shared = f"{self.size} processes for {batch} questions of a step"
        if batch < self.size:
            raise ConfigError(
                shared, expected="a question for each process at least", todo="start fewer, or raise batch"
            )
        if self.in_step and batch % self.size:
            raise ConfigError(
                f"{shared}, with the model's layers spread over them",
                expected="as many questions for each process",
                todo="start a number of processes that divides batch",
            )

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of this process."""
        return items[self.rank :: self.size]

    def lead(self, work: Callable[..., T], reader: Reader, given: Any, **here: Any) -> T:
        """Do `work(reader, ranks, given)` in every process, each with its own reader; what it gives in this one.

        work: a function of a module. here: further arguments that only this process's call has.
        """
        return work(reader, self, given, **here)

    def everyone(self, work: Callable[[], T]) -> list[T]:
        """What each process's work gives, in all of them; an error of one of them is raised in all."""
        return [work()]

    def same(self, value: T) -> T:
        """What the first process holds, in all of them."""
        return value

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""


ALONE = Ranks()
