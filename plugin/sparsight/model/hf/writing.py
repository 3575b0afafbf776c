"""The language stream as a policy over texts (completions.LanguagePolicy): what is trained is a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.model.completions import Completion, Prompt, Spoken, chances
from sparsight.model.hf.adapter import Adapter, checkpointing, standing_in
from sparsight.model.hf.answers import ANSWER, END_ANSWER, END_THINK, parse
from sparsight.model.hf.prompts import TokenPrompt
from sparsight.model.hf.reader import HFReader
from sparsight.types import Question


class HFLanguagePolicy:
    """Implements completions.LanguagePolicy on a reader's own model: training it changes how the reader answers."""

    def __init__(self, reader: HFReader, adapter: Adapter, state: Sequence[Tensor] | None = None) -> None:
        """state: matrices that stand in for the adapter's own whenever this stream speaks."""
        self._reader, self._state = reader, state
        self.module = adapter
        self.max_tokens, self.words = reader.max_tokens, reader.language.words

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer has too many tokens."""
        self._reader.check(question, answer)

    def frozen(self) -> Self:
        """The stream as it is now; a copy of the adapter only, the model is shared."""
        return type(self)(self._reader, self.module, [matrix.detach().clone() for matrix in self.module.matrices])

    def phrase(self, prompt: Prompt, answer: str) -> Completion:  # noqa: ARG002 - the protocol's
        """The answer's tokens and the end."""
        language = self._reader.language
        return self._spell(False, [*language.ids(answer.strip()), language.end])

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The adapter by name."""
        return self.module.to_arrays()

    @contextmanager
    def standing_as(self, arrays: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
        """The model with another version's adapter, for a while; none: as published."""
        with standing_in(self.module, self.module.state_of(arrays)):
            yield

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], m: int, limit: int, generators: Sequence[torch.Generator]
    ) -> list[list[Completion]]:
        """M texts of each prompt at temperature 1, until the model ends them or for `limit` tokens."""
        rows = [row for row in self._rows(prompts) for _ in range(m)]
        with self._speaking():
            steps = [step.ids for step in self._reader.language.write(rows, limit, chances(generators, m, limit))]
        texts = [[i for i in row if i is not None] for row in zip(*steps, strict=True)]
        return [
            [self._spell(prompt.reasoned, ids) for ids in texts[n * m : (n + 1) * m]]
            for n, prompt in enumerate(prompts)
        ]

    def speak(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Spoken:
        """Distributions along given texts, one pass, with gradient unless the stream is frozen."""
        texts = [list(text.ids) for group in completions for text in group]
        rows = [row for row, group in zip(self._rows(prompts), completions, strict=True) for _ in group]
        read: AbstractContextManager[Any] = torch.no_grad()
        if self._state is None:
            read = checkpointing(self._reader.model)
        with self._speaking(), read:
            log_p, counts = self._reader.language.log_p(rows, texts)
        longest = counts.shape[1]
        first = torch.tensor([longest - len(text) for text in texts])  # rows are padded on the left: shift them back
        at = (torch.arange(longest) + first.unsqueeze(1)).clamp_max(longest - 1).to(log_p.device)
        shifted = log_p.gather(1, at.unsqueeze(-1).expand(-1, -1, log_p.shape[-1])).cpu()
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        said = torch.arange(longest) < torch.tensor([len(text) for text in texts]).unsqueeze(1)
        return Spoken(shifted, ids, said)

    def _speaking(self) -> AbstractContextManager[None]:
        return nullcontext() if self._state is None else standing_in(self.module, self._state)

    def _rows(self, prompts: Sequence[Prompt]) -> list[TokenPrompt]:
        image = self._reader.language.image
        return [self._reader.prompt(p.grid, p.question, p.reasoned).keep(p.keep, image) for p in prompts]

    def _spell(self, reasoned: bool, ids: Sequence[int]) -> Completion:
        """A text and its answer; a text that the model did not end has none, nor has one out of the form asked for."""
        language = self._reader.language
        ended = bool(ids) and ids[-1] in language.ends
        text = language.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False).strip()
        if not reasoned:
            return Completion(tuple(ids), f"{ANSWER}{text}{END_ANSWER}", text if ended and text else None)
        formed = ended and END_THINK in text and ANSWER in text and text.endswith(END_ANSWER)
        answer = parse(text)[1]
        return Completion(tuple(ids), text, answer if formed and answer else None)
