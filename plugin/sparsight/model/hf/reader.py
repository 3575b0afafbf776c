"""A vision-language model of transformers as a Reader: any family of model.hf.families, from a folder, sparse."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sparsight.errors import BudgetError, ConfigError, QuestionError
from sparsight.model.calibration import platt
from sparsight.model.completions import AdapterPolicy, adapter_of, rank_of
from sparsight.model.hf.adapter import Adapter, standing_in
from sparsight.model.hf.answers import ANSWER, END_ANSWER, END_THINK, THINK, messages, parse, thought
from sparsight.model.hf.families import Family, begins_itself
from sparsight.model.hf.language import Language
from sparsight.model.hf.prompts import Study, TokenPrompt
from sparsight.model.hf.vision import Pace, Vision, memory_full
from sparsight.model.protocols import ScoreRequest, Where
from sparsight.model.together import Behind, Shown, Work, Write, alone, passed
from sparsight.types import Answer, ImageVolume, Question, Selection, TokenGrid

_QUESTION_TOKENS = 512
_ANSWER_TOKENS = 96
_CHUNK_TOKENS = 32_768  # of one forward pass: bounds memory
_CHUNK_LOGITS = 2**28  # of one forward pass: 1 GiB of them


class HFReader:
    """Implements protocols.Reader. Not thread-safe: the service queues. Several readings may be written together.

    max_tokens: the most visual tokens kept for one question. reasoning: the most tokens of a text. calibration: Platt's
    slope and offset, of the confidence over the probability that the model gives its answer; as it is, it is not
    calibrated. notes: what every answer has to do without.
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
        calibration: tuple[float, float] = (1.0, 0.0),
        notes: tuple[str, ...] = (),
    ) -> None:
        self.model, self.processor, self.family, self.sha256 = model, processor, family, sha256
        self.id, self.max_tokens, self.reasoning = f"{name}-{sha256[:8]}", max_tokens, reasoning
        self.longest = max(_ANSWER_TOKENS, reasoning)  # tokens of an answer: what it writes itself can be scored
        self.abstain_below, self.calibration, self.notes = abstain_below, calibration, notes
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

    def attention(self, question: Question, grid: TokenGrid, selection: Selection, reasoning: str) -> Tensor:
        """Mean over layers, heads and the words of the reasoning: (K,). One prefill of what was kept."""
        self._check_kept(selection.size)
        keep = torch.from_numpy(np.asarray(selection.keep))
        prompt = self.prompt(grid, question, True).keep(keep, self.language.image)
        with memory_full():
            by_row = self.language.attention(prompt, self.language.ids(reasoning or ANSWER))
        return by_row[torch.searchsorted(prompt.rows, prompt.study.layout.token[keep])]

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question, a choice or the answer has too many tokens, or a special one."""
        for what, text, most in (
            ("a question", question.text, _QUESTION_TOKENS),
            ("an answer", answer, self.longest),
            *(("a choice", choice, _ANSWER_TOKENS) for choice in question.choices),
        ):
            ids = self.language.ids(text.strip())
            if not 0 < len(ids) <= most:
                raise QuestionError(f"{what} of {len(ids)} tokens", expected=f"1 to {most}", todo="use a shorter one")
            if not self.language.special.isdisjoint(ids):  # it would end the turn, or stand for a picture
                raise QuestionError(
                    f"{what} that holds a special token of the model", expected="words", todo="leave it out"
                )

    @torch.inference_mode(False)  # it is kept, and a policy trains on it, whoever asked first
    @torch.no_grad()
    def _embed(self, question: Question) -> Tensor:
        """Mean and last hidden state of the question read without an image, by the model as published: (2 * hidden,).

        With an adapter on, the same question would be another to a policy before it was taught and after.
        """
        self.check(question, "-")
        ids = torch.tensor([self.language.ids(question.text.strip())], device=self.model.device)
        text = self.model.get_decoder()
        on = self._adapter
        with memory_full(), nullcontext() if on is None else standing_in(on, on.state_of({})):
            read = text(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        states = read.last_hidden_state[0].float()
        return torch.cat([states.mean(0), states[-1]]).cpu()

    def prompt(self, grid: TokenGrid, question: Question, reasoned: bool) -> TokenPrompt:
        """The question with every token of the study in it. Raises QuestionError for what does not fit."""
        self.check(question, "-")
        layout = self.vision.layout(grid.shape)
        turn = messages(question, len(layout.placeholders), reasoned, "pair" in grid.extras)
        text = self.family.write(self.processor, turn)
        if not reasoned and text.rstrip().endswith(THINK):  # the template begins a thought: none is asked for
            text += f"\n{END_THINK}\n\n"
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
            answer = [*self.language.ids(request.answer.strip()), self.language.end]
            for keep in request.keeps:
                self._check_kept(len(keep))
                prompts.append(whole.keep(keep, self.language.image))
                texts.append(answer)
        parts = _chunks(prompts, texts, self.language.words)
        with memory_full():
            scores = torch.cat([torch.zeros(0), *(self.language.likely(p, t).cpu() for p, t in parts)])
        for _ in range(self.language.most(len(parts)) - len(parts)):
            self.language.idle()
        return list(torch.split(scores, [len(request.keeps) for request in requests]))

    def read(
        self,
        question: Question,
        grid: TokenGrid,
        selection: Selection,
        *,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Do a reading by itself."""
        return alone(self.begin, self.reading(question, grid, selection, on_token=on_token))

    def begin(self, prompt: TokenPrompt, said: Sequence[int]) -> Behind:
        """Read a prompt and what was written after it. Raises MemoryFullError."""
        return self.language.begin(prompt, said)

    @torch.inference_mode()
    def reading(
        self,
        question: Question,
        grid: TokenGrid,
        selection: Selection,
        *,
        on_token: Callable[[str], None] | None = None,
    ) -> Work[Answer]:
        """Reason, then answer: one of the choices where the question has any, free text otherwise.

        The probability behind the confidence is the mean of two readings, after the reasoning and without it. Raises
        BudgetError for more than max_tokens kept, MemoryFullError where the device's memory does not hold them.
        """
        self._check_kept(selection.size)
        keep = torch.from_numpy(np.asarray(selection.keep))
        started = time.perf_counter()
        reasoned = self.prompt(grid, question, True).keep(keep, self.language.image)
        direct = self.prompt(grid, question, False).keep(keep, self.language.image)
        begun = self.processor.tokenizer.decode(reasoned.ids[-8:]).rstrip().endswith(THINK)
        text = (THINK if begun else "") + (yield from self._say(reasoned, on_token))
        decoded = time.perf_counter()
        reasoning, said = parse(text)
        choices = question.answers
        if not (choices or said):  # cut off before it came to an answer
            said = parse((yield from self._say(direct, on_token)))[1]
        said = self._scorable(said)
        thought = f"{'' if begun else THINK}{reasoning}{END_THINK}" if reasoning or begun else ""
        before = self.language.ids(f"{thought}{ANSWER}")
        options = choices or (said or "-",)
        answers = [self.language.ids(option) for option in options]
        end = self.language.ids(END_ANSWER)
        ways = (
            (reasoned.then(before, self.family.answer_type), [[*answer, *end] for answer in answers]),
            (direct, [[*answer, self.language.end] for answer in answers]),
        )
        likely = torch.stack((yield from passed(partial(self._likely, ways))))
        p = likely.softmax(-1).mean(0) if choices else likely.exp().mean(0)
        best = int(p.argmax())
        confidence = platt(float(p[best]), *self.calibration)
        done = time.perf_counter()
        return Answer(
            text=options[best] if choices else said,
            reasoning=reasoning,
            confidence=confidence,
            abstained=confidence < self.abstain_below or not (choices or said),
            choice=best if question.kind == "choice" else None,
            timings_ms={"decode": 1e3 * (decoded - started), "prefill": 1e3 * (done - decoded)},
            notes=(*self.notes, *self.vision.notes(grid)),
        )

    def _say(self, prompt: TokenPrompt, on_token: Callable[[str], None] | None) -> Work[str]:
        """Write until the model ends; its reasoning is handed out as it comes."""
        decode = partial(self.processor.tokenizer.decode, skip_special_tokens=False)
        shown = Shown(lambda ids: thought(decode(ids)), on_token)
        text = Write(prompt, self.language.ends, self.reasoning, shown)
        yield text
        return str(decode(text.ids))

    def _likely(self, ways: Sequence[tuple[TokenPrompt, list[list[int]]]]) -> list[Tensor]:
        """Log-probabilities of texts after each prompt. Raises MemoryFullError."""
        with memory_full():
            return [self.language.likely_after(prompt, texts).cpu() for prompt, texts in ways]

    def _scorable(self, said: str) -> str:
        """An answer that `check` takes: the model may go on for long, or spell out a special token."""
        ids = self.language.ids(said)
        own = [i for i in ids if i not in self.language.special][: self.longest - 8]  # spelled anew it may take more
        return said if own == ids else str(self.processor.tokenizer.decode(own)).strip()

    def _check_kept(self, kept: int) -> None:
        if kept > self.max_tokens:
            raise BudgetError(f"{kept} tokens kept", expected=f"at most {self.max_tokens}", todo="lower the budget")


def _chunks(
    prompts: Sequence[TokenPrompt], texts: Sequence[Sequence[int]], words: int
) -> list[tuple[Sequence[TokenPrompt], Sequence[Sequence[int]]]]:
    """Rows that go through the model together: as many as _CHUNK_TOKENS padded tokens and _CHUNK_LOGITS hold."""
    parts, begin, longest, spoken = [], 0, 0, 0
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        own = len(prompt.ids) + len(text), len(text) + 1
        longest, spoken, rows = max(longest, own[0]), max(spoken, own[1]), i + 1 - begin
        if rows > 1 and (longest * rows > _CHUNK_TOKENS or spoken * words * rows > _CHUNK_LOGITS):
            parts.append((prompts[begin:i], texts[begin:i]))
            begin, (longest, spoken) = i, own
    return [*parts, (prompts[begin:], texts[begin:])] if prompts else []
