"""The processes that `accelerate launch` starts, as rl.ranks.Ranks.

What they tell each other (gradients of what is trained, rewards, the questions to learn from) goes over gloo whatever
the device: a policy is 0.3 MB, an adapter of rank 16 for a model of 7 billion weights 0.16 GB a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sparsight.cluster.identity import package_sha256
from sparsight.cluster.sharded import spread
from sparsight.errors import ConfigError, MemoryFullError, SparsightError, WeightsError
from sparsight.model.protocols import Reader
from sparsight.rl.ranks import ALONE, Ranks, T

_PATIENCE = timedelta(days=7)  # the others wait while the first one collects questions; a dead one is noticed at once


@contextmanager
def launched() -> Iterator[Ranks]:
    """The processes that `accelerate launch` started; this one alone where it did not. Raises ConfigError.

    All but the first only `follow`. What is no error of ours ends this process without a word to the others: the
    launcher ends them.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    from accelerate import PartialState

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < gpus < here:
        raise ConfigError(
            f"{here} processes on a machine of {gpus} GPUs", expected="one GPU for each", todo="lower num_processes"
        )
    PartialState(cpu=not gpus)  # starts the process group; NCCL moves what FSDP gathers
    ranks = Processes(in_step=os.environ.get("ACCELERATE_USE_FSDP") == "true")
    try:
        yield ranks
    except SparsightError:
        ranks.close()
        raise
    ranks.close()


class Processes(Ranks):
    """The processes of torch.distributed's group. Raises ConfigError where they run different programs."""

    def __init__(self, *, in_step: bool = False) -> None:
        self.rank, self.size, self.in_step = dist.get_rank(), dist.get_world_size(), in_step
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        programs = self.everyone(package_sha256)
        if len(set(programs)) > 1:
            raise ConfigError(
                f"{len(set(programs))} different versions of sparsight among {self.size} processes",
                expected="the same files on every machine",
                todo="install the same version everywhere",
            )

    def lead(self, work: Callable[..., T], reader: Reader, given: Any, **here: Any) -> T:
        """As in Ranks: the first process tells the others what to do."""
        self.same((work, given))
        return self._together(work, reader, given, **here)

    def follow(self, reader: Reader) -> None:
        """Take part in what the first process leads, until it is done."""
        nothing: Any = None
        while (told := self.same(nothing)) is not None:
            work, given = told
            with suppress(SparsightError):  # the first process has it too
                self._together(work, reader, given)

    def close(self) -> None:
        """Leave; the first process lets those go that follow."""
        if self.rank == 0:
            self.same(None)
        dist.destroy_process_group()

    def _together(self, work: Callable[..., T], reader: Reader, given: Any, **here: Any) -> T:
        readers = self.everyone(lambda: reader.sha256)
        if len(set(readers)) > 1:
            raise WeightsError(
                f"{len(set(readers))} different readers among {self.size} processes",
                expected=f"{reader.id} in all of them",
                todo="copy the same weights to every machine",
            )
        if self.in_step:
            spread(reader, self.most)
        return work(reader, self, given, **here)

    def everyone(self, work: Callable[[], T]) -> list[T]:
        """As in Ranks: what each process made of it, by rank."""
        own: T | Exception
        try:
            own = work()
        except (SparsightError, torch.OutOfMemoryError) as error:
            if self.in_step and isinstance(error, MemoryFullError | torch.OutOfMemoryError):
                raise MemoryError("a device's memory is full, and the other processes wait in a pass") from error
            own = error
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, own, group=self._group)
        for one in told:
            if isinstance(one, SparsightError | torch.OutOfMemoryError):
                raise one
        return told

    def same(self, value: T) -> T:
        """As in Ranks: the first process's value."""
        held: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(held, src=0, group=self._group)
        told: T = held[0]
        return told

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """As in Ranks: the sum over all processes, in each of them."""
        own = list(parameters)
        there = torch.tensor([float(p.grad is not None) for p in own])
        parts = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().float().cpu() for p in own]
        summed = torch.cat([*parts, there])
        dist.all_reduce(summed, group=self._group)
        *sums, there = torch.split(summed, [*(p.numel() for p in own), len(own)])
        for parameter, part, given in zip(own, sums, there.tolist(), strict=True):
            if given:  # by any process: Adam moves what has a gradient, if only of zero
                parameter.grad = part.reshape(parameter.shape).to(parameter)

    def most(self, n: int) -> int:
        """The largest number that any process names."""
        largest = torch.tensor(n)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._group)
        return int(largest)
