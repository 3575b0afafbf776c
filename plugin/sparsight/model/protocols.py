"""The two extension points of the models: a Reader and a Selector. Letters of shapes: types.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsight.imaging.grid import Grid
from sparsight.model.completions import AdapterPolicy
from sparsight.model.together import Behind, Work
from sparsight.types import Answer, ContextTokens, ImageVolume, Question, Selection, TokenGrid


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Ask for log p(answer | kept tokens, question) of each of G subsets. keeps: (G, K) int64; K = 0: no image.

    context: stands beside the kept tokens of each of the G subsets.
    """

    grid: TokenGrid
    question: Question
    answer: str
    keeps: Tensor
    context: ContextTokens | None = None


Where = Callable[[Tensor, Grid], NDArray[np.bool_]]  # (gd, h, w, findings) log-odds of a first look -> (gd,) slices


class Reader(Protocol):
    """A vision-language model: encode once (expensive), read and score many times (cheap)."""

    id: str  # name and the first characters of the weights' hash
    sha256: str  # of its weights
    max_tokens: int  # the most visual tokens one prompt holds

    def encode(self, volume: ImageVolume, where: Where | None = None) -> TokenGrid:
        """Turn a study into tokens with exact geometry. Raises ImageError for what it cannot take.

        where: asked after a first look which slices to encode (foveated encoding), by a reader that has one.
        """
        ...

    def first_look(self, volume: ImageVolume) -> Tensor | None:
        """What `where` is given, (gd, h, w, findings); None for a reader that has no first look."""
        ...

    def complete(self, grid: TokenGrid, on_step: Callable[[], None] = ...) -> TokenGrid:
        """Encode what `where` left out; on_step is called now and then, so that others may take a turn."""
        ...

    def embed(self, question: Question) -> Tensor:
        """Embed the question for the visual stream: (C_q,) float32, no gradient, the same for the same text."""
        ...

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer is longer than the reader takes."""
        ...

    def saliency(self, grid: TokenGrid) -> Tensor:
        """How much each token stands out to the encoder itself, whatever is asked: (N,). A rival of every policy."""
        ...

    def reading(
        self,
        question: Question,
        grid: TokenGrid,
        selection: Selection,
        *,
        on_token: Callable[[str], None] | None = None,
    ) -> Work[Answer]:
        """Reason over the kept tokens, at their original positions, then answer. on_token hears the reasoning.

        It stops at each text that is to be written, so that several readings can be written together.
        """
        ...

    def begin(self, prompt: Any, said: Sequence[int]) -> Behind:
        """Read a prompt that a reading wants a text after, and what was written of it (together.Begin)."""
        ...

    def read(
        self,
        question: Question,
        grid: TokenGrid,
        selection: Selection,
        *,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Do a reading by itself."""
        ...

    def attention(self, question: Question, grid: TokenGrid, selection: Selection, reasoning: str) -> Tensor | None:
        """What the language stream looks at while it reasons so about the kept tokens: (K,), sums to at most 1.

        Where there is no reasoning: when it is asked for the answer. None from a reader that cannot tell.
        """
        ...

    def adapt(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take on what a policy version holds for the language stream itself; nothing for it: as it was published.

        Raises WeightsError for an adapter of another model.
        """
        ...

    def writer(self, rank: int) -> AdapterPolicy | None:
        """The language stream as a policy over texts that learns by an adapter of that rank; None without one."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """Log p(answer | Z_S, question) of every subset, teacher-forced, one prefill each: a list of (G,) tensors."""
        ...


class Selector(Protocol):
    """A visual stream: which K of N tokens to keep for this question."""

    id: str

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Keep k tokens: greedy without a seed, sampled with one. Raises BudgetError if k is not in 1..N."""
        ...
