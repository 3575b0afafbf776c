"""A vision-language model of transformers as a Reader: any family of model.hf.families, from a folder, sparse."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sparsight.errors import BudgetError, ConfigError, QuestionError
from sparsight.model.completions import AdapterPolicy, adapter_of, rank_of
from sparsight.model.hf.adapter import Adapter
from sparsight.model.hf.answers import choices_of, messages, parse
from sparsight.model.hf.families import Family, begins_itself
from sparsight.model.hf.language import Language
from sparsight.model.hf.prompts import Study, TokenPrompt
from sparsight.model.hf.vision import Pace, Vision, memory_full
from sparsight.model.protocols import ScoreRequest, Where
from sparsight.types import Answer, ImageVolume, Question, Selection, TokenGrid

_QUESTION_TOKENS = 512
_ANSWER_TOKENS = 96
_CHUNK_TOKENS = 32_768  # of one forward pass: bounds memory


class HFReader:
    """Implements protocols.Reader. Not thread-safe: one question at a time (the service queues).

    max_tokens: the most visual tokens kept for one question. reasoning: the most tokens of a text. `confidence` is the
    probability of the answer as the model gives it, not calibrated.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        family: Family,
        sha256: str,
        *,
        name: str,
        pace: Pace = Pace(),  # noqa: B008 - frozen
        max_tokens: int = 4096,
        reasoning: int = 512,
        abstain_below: float = 0.5,
    ) -> None:
        self.model, self.processor, self.family, self.sha256 = model, processor, family, sha256
        self.id, self.max_tokens, self.reasoning, self.abstain_below = (
            f"{name}-{sha256[:8]}",
            max_tokens,
            reasoning,
            abstain_below,
        )
        self.vision, self.language = Vision(model, processor, family, pace), Language(model, processor, family)
        self._adapter: Adapter | None = None
        self.embed = lru_cache(maxsize=512)(self._embed)

    def encode(self, volume: ImageVolume, where: Where | None = None) -> TokenGrid:  # noqa: ARG002 - the protocol's
        """Turn a study into tokens; all of it, for there is no first look."""
        return self.vision.encode(volume, self.id)

    def first_look(self, volume: ImageVolume) -> None:  # noqa: ARG002 - the protocol's
        """None."""
        return

    def complete(self, grid: TokenGrid, on_step: Callable[[], None] = lambda: None) -> TokenGrid:  # noqa: ARG002
        """The grid as it is: nothing was left out."""
        return grid

    def saliency(self, grid: TokenGrid) -> Tensor:
        """How far each token is from the study's mean token, as an angle: (N,), 1 - cosine.

        Not an attention map: several vision towers have no token that stands for the whole picture, and fast attention
        gives no weights.
        """
        mean = grid.features.mean(0, keepdim=True)
        return 1 - functional.cosine_similarity(grid.features, mean)

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer has too many tokens."""
        for what, text, most in (
            ("a question", question.text, _QUESTION_TOKENS),
            ("an answer", answer, _ANSWER_TOKENS),
        ):
            if not 0 < (n := len(self.language.ids(text.strip()))) <= most:
                raise QuestionError(f"{what} of {n} tokens", expected=f"1 to {most}", todo="use a shorter one")

    @torch.inference_mode(False)  # it is kept, and a policy trains on it, whoever asked first
    @torch.no_grad()
    def _embed(self, question: Question) -> Tensor:
        """Mean and last hidden state of the question read without an image: (2 * hidden,)."""
        self.check(question, "-")
        ids = torch.tensor([self.language.ids(question.text.strip())], device=self.model.device)
        text = self.model.get_decoder()
        states = text(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state[0].float()
        return torch.cat([states.mean(0), states[-1]]).cpu()

    def prompt(self, grid: TokenGrid, question: Question, reasoned: bool) -> TokenPrompt:
        """The question with every token of the study in it. Raises QuestionError for what does not fit."""
        self.check(question, "-")
        if any(token in question.text for token in self.processor.tokenizer.all_special_tokens):
            raise QuestionError(
                "a question that holds a special token of the model", expected="words", todo="leave it out"
            )
        layout = self.vision.layout(grid.shape)
        text = self.family.write(self.processor, messages(question, len(layout.placeholders), reasoned))
        special = not begins_itself(self.processor, text)
        (text, *_), _ = self.processor.get_text_with_replacements(
            [self.family.frame(self.processor, text)], images_replacements=list(layout.placeholders)
        )
        ids = self.processor.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"][0]
        rows = int((ids == self.language.image).sum())
        if rows != len(layout.token) + len(layout.rest):
            raise ConfigError(
                f"a chat template that leaves {rows} places for {len(layout.token) + len(layout.rest)} features",
                expected="one for each",
                todo="use the template that the model was published with",
            )
        at = self.family.positions(self.model, ids, dict(layout.encoded))
        types = self.family.types(self.model.config, ids)
        return TokenPrompt(ids, at, types, Study.of(grid, layout), torch.arange(rows))

    def adapt(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Take on a policy version's adapter; none: as published. Raises WeightsError for another model's."""
        if rank := rank_of(adapter_of(arrays)):
            self._adapter_of(rank).from_arrays(arrays)
        elif self._adapter is not None:
            self._adapter.from_arrays({})

    def writer(self, rank: int) -> AdapterPolicy:
        """The language stream as a policy over texts. It goes on from the adapter that is there, of that rank."""
        from sparsight.model.hf.writing import HFLanguagePolicy

        return HFLanguagePolicy(self, self._adapter_of(rank))

    def _adapter_of(self, rank: int) -> Adapter:
        if self._adapter is not None and self._adapter.rank != rank:
            self._adapter.remove()
            self._adapter = None
        if self._adapter is None:
            self._adapter = Adapter(self.model, rank)
        return self._adapter

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """Log p(answer | Z_S, q) of each subset, without reasoning, its end included: one prefill each."""
        prompts, texts = list[TokenPrompt](), list[list[int]]()
        for request in requests:
            self.check(request.question, request.answer)
            whole = self.prompt(request.grid, request.question, False)
            answer = [*self.language.ids(request.answer.strip()), min(self.language.ends)]
            for keep in request.keeps:
                self._check_kept(len(keep))
                prompts.append(whole.keep(keep, self.language.image))
                texts.append(answer)
        parts = _chunks(prompts, texts) if prompts else []
        with memory_full():
            scores = torch.cat([torch.empty(0), *(self.language.likely(p, t).cpu() for p, t in parts)])
        for _ in range(self.language.most(len(parts)) - len(parts)):
            self.language.idle()
        return list(torch.split(scores, [len(request.keeps) for request in requests]))

    @torch.inference_mode()
    def read(
        self,
        question: Question,
        grid: TokenGrid,
        selection: Selection,
        *,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Reason, then answer: one of the choices where the question has any, free text otherwise.

        The probability behind the confidence is the mean of two readings, after the reasoning and without it. Raises
        BudgetError for more than max_tokens kept, MemoryFullError where the device's memory does not hold them.
        """
        self._check_kept(selection.size)
        with memory_full():
            return self._read(question, grid, selection, on_token)

    def _read(
        self, question: Question, grid: TokenGrid, selection: Selection, on_token: Callable[[str], None] | None
    ) -> Answer:
        keep = torch.from_numpy(np.asarray(selection.keep))
        started = time.perf_counter()
        reasoned = self.prompt(grid, question, True).keep(keep, self.language.image)
        direct = self.prompt(grid, question, False).keep(keep, self.language.image)
        text = self._say(reasoned, on_token)
        decoded = time.perf_counter()
        reasoning, said = parse(text)
        choices = choices_of(question)
        before = self.language.ids(f"<think>{reasoning}</think><answer>" if reasoning else "<answer>")
        options = choices or (said or "-",)
        answers = [self.language.ids(option) for option in options]
        end = self.language.ids("</answer>")
        likely = torch.stack(
            [
                self.language.likely_after(
                    reasoned.then(before, self.family.answer_type), [[*answer, *end] for answer in answers]
                ),
                self.language.likely_after(direct, [[*answer, min(self.language.ends)] for answer in answers]),
            ]
        ).cpu()
        p = likely.softmax(-1).mean(0) if choices else likely.exp().mean(0)
        best = int(p.argmax())
        confidence = float(p[best])
        done = time.perf_counter()
        return Answer(
            text=options[best] if choices else said,
            reasoning=reasoning,
            confidence=confidence,
            abstained=confidence < self.abstain_below or not (choices or said),
            choice=best if question.kind == "choice" else None,
            timings_ms={"decode": 1e3 * (decoded - started), "prefill": 1e3 * (done - decoded)},
            notes=self.vision.notes(grid),
        )

    def _say(self, prompt: TokenPrompt, on_token: Callable[[str], None] | None) -> str:
        """Write until the model ends; text is handed out as it comes, never half a character."""
        ids, shown = list[int](), ""
        for step in self.language.write([prompt], self.reasoning):
            (token,) = step.ids
            if token is None or token in self.language.ends:
                break
            ids.append(token)
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=False)
            if on_token and not text.endswith("\ufffd") and text != shown:
                on_token(text[len(shown) :])
                shown = text
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=False))

    def _check_kept(self, kept: int) -> None:
        if kept > self.max_tokens:
            raise BudgetError(f"{kept} tokens kept", expected=f"at most {self.max_tokens}", todo="lower the budget")


def _chunks(
    prompts: Sequence[TokenPrompt], texts: Sequence[Sequence[int]]
) -> list[tuple[Sequence[TokenPrompt], Sequence[Sequence[int]]]]:
    """Rows that go through the model together: as many as _CHUNK_TOKENS padded tokens hold."""
    parts, begin, longest = [], 0, 0
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        longest = max(longest, len(prompt.ids) + len(text))
        if i > begin and longest * (i + 1 - begin) > _CHUNK_TOKENS:
            parts.append((prompts[begin:i], texts[begin:i]))
            begin, longest = i, len(prompt.ids) + len(text)
    return [*parts, (prompts[begin:], texts[begin:])]
