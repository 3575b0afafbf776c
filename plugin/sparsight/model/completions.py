"""What reinforcement learning needs of a language stream: write texts, and say how likely each of their tokens was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from sparsight.types import Question, TokenGrid


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


class LanguagePolicy(Protocol):
    """A language stream as a policy over texts. module: its trainable parameters are those with requires_grad."""

    max_tokens: int  # the most visual tokens one prompt holds

    @property
    def module(self) -> nn.Module:
        """Its parameters."""
        ...

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer is longer than the model takes."""
        ...

    def sample(
        self, prompts: Sequence[Prompt], m: int, limit: int, generator: torch.Generator
    ) -> list[list[Completion]]:
        """M texts for each prompt at temperature 1, at most `limit` tokens each, without gradient."""
        ...

    def speak(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Spoken:
        """Read M given texts after each prompt, with gradient; R = prompts * M, prompt by prompt."""
        ...

    def frozen(self) -> Self:
        """The stream as it is now, and stays: the reference that training is held to."""
        ...
