"""What reinforcement learning needs of a language stream: write texts, and say how likely each of their tokens was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsight.types import Question, TokenGrid

Arrays = Mapping[str, NDArray[np.float32]]
ADAPTER = "lora."  # begins the names of an adapter's arrays in the file of a policy version


def adapter_of(arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    """What the arrays of a policy version hold for the language stream itself."""
    return {name: array for name, array in arrays.items() if name.startswith(ADAPTER)}


def rank_of(adapter: Arrays) -> int:
    """The rank of an adapter's matrices; 0 for none."""
    return next((len(array) for name, array in adapter.items() if ".lora_A" in name), 0)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question with the tokens kept for it. keep: (K,) int64; K = 0: no image. reasoned: think first, then answer."""

    grid: TokenGrid
    question: Question
    keep: Tensor
    reasoned: bool = True


@dataclass(frozen=True)
class Completion:
    """A text that was written. ids: as sampled, the end included where it came.

    text: with its tags, those the prompt began with included. answer: None where the text is not well-formed.
    """

    ids: tuple[int, ...]
    text: str
    answer: str | None


@dataclass(frozen=True, eq=False)
class Spoken:
    """Next-token distributions along R texts. log_p: (R, T, V), log-probabilities; ids: (R, T); said: (R, T) bool.

    said: False for padding.
    """

    log_p: Tensor
    ids: Tensor
    said: Tensor

    @property
    def chosen(self) -> Tensor:
        """Log-probability of each token that was said: (R, T)."""
        return self.log_p.gather(-1, self.ids.unsqueeze(-1)).squeeze(-1)


def chances(generators: Sequence[torch.Generator], m: int, limit: int) -> Tensor:
    """What M texts of each prompt are drawn by, R = prompts * M: (R, limit) float64 in [0, 1)."""
    return torch.cat([torch.rand(m, limit, generator=g, dtype=torch.float64) for g in generators])


def draw(p: Tensor, chance: Tensor) -> Tensor:
    """One token of each row, by inverting its distribution: p (R, V) and chance (R,) in [0, 1) to (R,).

    torch.multinomial would give a row another token for every set of rows beside it.
    """
    sums = p.double().cumsum(-1)
    at = torch.searchsorted(sums, chance.to(sums).unsqueeze(-1) * sums[:, -1:], right=True)
    return at.squeeze(-1).clamp_max(p.shape[-1] - 1)


class LanguagePolicy(Protocol):
    """A language stream as a policy over texts."""

    max_tokens: int  # the most visual tokens one prompt holds
    words: int  # V

    @property
    def module(self) -> nn.Module:
        """What is trained: its parameters with requires_grad."""
        ...

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer is longer than the model takes."""
        ...

    def phrase(self, prompt: Prompt, answer: str) -> Completion:
        """An answer as the text that it would write after a prompt that asks for no reasoning."""
        ...

    def sample(
        self, prompts: Sequence[Prompt], m: int, limit: int, generators: Sequence[torch.Generator]
    ) -> list[list[Completion]]:
        """M texts for each prompt at temperature 1, at most `limit` tokens each, without gradient.

        generators: one for each prompt (several may share one). Texts do not depend on what is written beside them.
        """
        ...

    def speak(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Spoken:
        """Read M given texts after each prompt, with gradient; R = prompts * M, prompt by prompt."""
        ...

    def frozen(self) -> Self:
        """The stream as it is now, and stays: the reference that training is held to."""
        ...


class AdapterPolicy(LanguagePolicy, Protocol):
    """A language stream that learns by an adapter, which a policy version can hold."""

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The adapter by name, each name beginning with ADAPTER."""
        ...

    def standing_as(self, arrays: Mapping[str, NDArray[np.float32]]) -> AbstractContextManager[None]:
        """The stream with another version's adapter, for a while; none: as it was published."""
        ...
