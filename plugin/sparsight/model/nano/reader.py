"""The embedded reader: a local-token encoder and a small language model, 1.8 million parameters, on any CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from sparsight.errors import BudgetError, QuestionError, WeightsError
from sparsight.imaging.grid import prepare
from sparsight.model.calibration import platt
from sparsight.model.completions import ADAPTER
from sparsight.model.nano.encoder import LONG_SIDE, PATCH, LocalEncoder
from sparsight.model.nano.glance import Glance, look_over
from sparsight.model.nano.language import MAX_TEXT, NanoLanguage, Row, visual_row
from sparsight.model.nano.tokenizer import (
    ANSWER,
    END_ANSWER,
    END_THINK,
    QUESTION,
    THINK,
    decode_text,
    encode_text,
    words,
)
from sparsight.model.nano.weights import NanoSpec, load_nano, reader_id, save_nano
from sparsight.model.protocols import ScoreRequest, Where
from sparsight.model.together import Behind, Shown, Work, alone
from sparsight.types import Answer, ImageVolume, Question, Selection, TokenGrid

_SLICES = 16  # encoded at a time: bounds memory, and fills the core
_LONG = 128  # slices: of fewer, what a first look saves is lost again where its answer is in doubt (docs/speed.md)
_QUESTION_TOKENS = 160
_REASONING_TOKENS = 64
_ANSWER_TOKENS = 24


class NanoReader:
    """Implements protocols.Reader. Not thread-safe: the service queues. Several readings may be written together.

    folder: where its files lie; None for a reader that was not loaded.
    """

    max_tokens = 1024

    def __init__(
        self,
        encoder: LocalEncoder,
        language: NanoLanguage,
        tokenizer: Tokenizer,
        spec: NanoSpec,
        sha256: str,
        folder: Path | None = None,
        glance: Glance | None = None,
    ) -> None:
        self.glance = None if glance is None else glance.eval().to(memory_format=torch.channels_last)
        self.encoder = encoder.eval().to(memory_format=torch.channels_last)
        self.language = language.eval()
        self.tokenizer, self.spec, self.sha256 = tokenizer, spec, sha256
        self.id, self.folder = reader_id(sha256), folder
        self._words = frozenset(spec.words)

    @classmethod
    def load(cls, folder: Path) -> NanoReader:
        """Read a reader from its files. Raises WeightsError if a file is missing, altered or of another model."""
        tensors, tokenizer, spec, sha256 = load_nano(folder)
        encoder, language = build(spec, tokenizer.get_vocab_size())
        parts: dict[str, nn.Module] = {"encoder": encoder, "language": language}
        glance = Glance(len(spec.findings), spec.glance) if spec.glance else None
        if glance is not None:
            parts["glance"] = glance
        try:
            for name, part in parts.items():
                prefix = f"{name}."
                own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
                missing = part.load_state_dict(own, strict=False)
                if missing.unexpected_keys or set(missing.missing_keys) - {"lm.lm_head.weight"}:  # tied to the input
                    raise RuntimeError(name)
        except RuntimeError as error:
            raise WeightsError(
                "weights whose sizes differ from the manifest", expected="one nano reader", todo="reinstall sparsight"
            ) from error
        return cls(encoder, language, tokenizer, spec, sha256, folder, glance)

    def save(self, folder: Path) -> str:
        """Write the reader's files; returns their sha256."""
        parts: dict[str, nn.Module] = {"encoder": self.encoder, "language": self.language}
        if self.glance is not None:
            parts["glance"] = self.glance
        tensors = {
            f"{name}.{key}": value.contiguous()
            for name, part in parts.items()
            for key, value in part.state_dict().items()
            if key != "lm.lm_head.weight"
        }
        return save_nano(folder, tensors, self.tokenizer, self.spec)

    def encode(self, volume: ImageVolume, where: Where | None = None) -> TokenGrid:
        """Turn a study into tokens, slice by slice: (D * gh * gw, C).

        where: chooses slices of a long volume after a first look at all of them; only those are encoded. A reader
        without a first look does not ask it.
        """
        prepared = prepare(volume, long_side=LONG_SIDE, patch=PATCH)
        pixels, at = torch.from_numpy(prepared.pixels), prepared.geometry
        features = torch.zeros(at.shape[0] * at.shape[1] * at.shape[2], self.encoder.width)
        grid = TokenGrid(features, at.shape, at.patch, at.uvw_to_ijk, at.uvw_to_lps, reader=self.id)
        chosen = np.ones(len(pixels), np.bool_)
        if where is not None and self.glance is not None and len(pixels) >= _LONG:
            chosen = where(look_over(self.glance, pixels), at)
        self._fill(features, pixels, np.flatnonzero(chosen))
        if chosen.all():
            return grid
        return replace(grid, encoded=chosen, extras={"pixels": pixels})

    def first_look(self, volume: ImageVolume) -> Tensor | None:
        """Log-odds of every finding at a quarter of the tokens, (gd, h, w, findings); None without a first look."""
        if self.glance is None:
            return None
        return look_over(self.glance, torch.from_numpy(prepare(volume, long_side=LONG_SIDE, patch=PATCH).pixels))

    def complete(self, grid: TokenGrid, on_step: Callable[[], None] = lambda: None) -> TokenGrid:
        """The same grid with all slices encoded, as `encode` gives them; on_step is called now and then."""
        if grid.encoded is None:
            return grid
        self._fill(grid.features, grid.extras["pixels"], np.flatnonzero(~grid.encoded), on_step)
        return replace(grid, encoded=None, extras={})

    @torch.no_grad()  # not inference_mode: a policy trains on these
    def _fill(
        self,
        features: Tensor,
        pixels: Tensor,
        slices: NDArray[np.int64],
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode slices into (N, C) features."""
        by_slice = features.reshape(len(pixels), -1, features.shape[-1])
        for start in range(0, len(slices), _SLICES):
            chosen = torch.from_numpy(slices[start : start + _SLICES])
            by_slice[chosen] = self.encoder(pixels[chosen]).flatten(1, 2)
            on_step()

    @torch.inference_mode()
    def saliency(self, grid: TokenGrid) -> Tensor:
        """How much each token looks like any finding the encoder learned from answers, whatever is asked: (N,)."""
        scores: Tensor = self.odds(grid.features).logsumexp(-1)
        return scores

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of what the encoder learned to see."""
        return self.spec.findings

    def odds(self, features: Tensor) -> Tensor:
        """The encoder's log-odds of each finding by token, in nats: (..., C) to (..., findings)."""
        return self.encoder.odds(features, len(self.spec.findings))

    def check(self, question: Question, answer: str) -> None:
        """Raise QuestionError where question or answer has too many word pieces."""
        self._question(question)
        self._answer(answer)

    @torch.no_grad()  # not inference_mode: a policy trains on these
    def embed(self, question: Question) -> Tensor:
        """Mean and last hidden state of the question read without an image: (2 * hidden,)."""
        return self.language.embed(self._question(question))

    def adapt(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Raise WeightsError for an adapter: this reader has no place for one."""
        if any(name.startswith(ADAPTER) for name in arrays):
            raise WeightsError(
                "a policy with an adapter of another model",
                expected="a visual stream alone",
                todo="use a policy that was trained for this reader",
            )

    def writer(self, rank: int) -> None:
        """None: its language stream is trained whole, and is then another reader (recipe)."""

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """Log p(answer | Z_S, q) of each subset, without reasoning: the answer form trained for one prefill."""
        rows: list[Row] = []
        seen: dict[
            tuple[int, int, int], tuple[Sequence[Tensor], Sequence[Tensor]]
        ] = {}  # rows that share are read once
        for request in requests:
            ids, answer = self._question(request.question), self._answer(request.answer)
            key = (id(request.grid), id(request.keeps), id(request.context))
            if key not in seen:
                visual, at = visual_row(request.grid.features, request.grid.shape, request.keeps, request.context)
                seen[key] = visual.unbind(), at.unbind()
            rows += [Row(ids, v, p, [ANSWER, *answer], len(answer)) for v, p in zip(*seen[key], strict=True)]
        scores = self.language.log_probs(rows)
        return list(torch.split(scores, [len(request.keeps) for request in requests]))

    @torch.inference_mode()
    def weigh(self, question: Question, grid: TokenGrid, answers: Sequence[str]) -> Tensor:
        """As `score` with every token of the study, however many, in one prefill for all answers: (A,). For benchmarks.

        Nothing was trained on prompts of more than max_tokens, and the product asks none.
        """
        visual, at = visual_row(grid.features, grid.shape, torch.arange(grid.n))
        row = Row(self._question(question), visual, at, [ANSWER])
        return self.language.log_probs_after(row, [self._answer(answer) for answer in answers])

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

    def begin(self, prompt: Row, said: Sequence[int]) -> Behind:
        """Read a prompt and what was written after it."""
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

        The probability behind the confidence is the mean of two readings, with the reasoning and without it: where
        they disagree, the reader is not sure. Raises BudgetError for more than max_tokens kept.
        """
        if selection.size > self.max_tokens:
            raise BudgetError(
                f"{selection.size} tokens kept", expected=f"at most {self.max_tokens}", todo="lower the budget"
            )
        ids = self._question(question)
        keep = torch.from_numpy(np.asarray(selection.keep))
        visual, at = visual_row(grid.features, grid.shape, keep, selection.context)
        started = time.perf_counter()
        shown = Shown(partial(decode_text, self.tokenizer), on_token)
        thought = self.language.text_after(Row(ids, visual, at, [THINK]), END_THINK, _REASONING_TOKENS, shown)
        yield thought
        decoded = time.perf_counter()
        reasoned = [THINK, *thought.ids, END_THINK, ANSWER]
        choices = question.answers
        if choices:
            answers = [self._answer(choice) for choice in choices]
            rows = [
                Row(ids, visual, at, text + answer, len(answer)) for text in (reasoned, [ANSWER]) for answer in answers
            ]
            likely = self.language.log_probs(rows).reshape(2, len(choices)).softmax(-1).mean(0)
            choice = int(likely.argmax())
            text, p = choices[choice], float(likely[choice])
        else:
            said = self.language.text_after(Row(ids, visual, at, reasoned), END_ANSWER, _ANSWER_TOKENS)
            yield said
            rows = [
                Row(ids, visual, at, [*text, *said.ids, END_ANSWER], len(said.ids) + 1) for text in (reasoned, [ANSWER])
            ]
            choice, p = None, float(self.language.log_probs(rows).exp().mean())
            text = decode_text(self.tokenizer, said.ids)
        confidence = self.confidence(question, p)
        done = time.perf_counter()
        timings = {"decode": 1e3 * (decoded - started), "prefill": 1e3 * (done - decoded)}
        return Answer(
            text=text,
            reasoning=decode_text(self.tokenizer, thought.ids),
            confidence=confidence,
            abstained=confidence < self.spec.calibration.abstain_below,
            choice=choice if question.kind == "choice" else None,
            timings_ms=timings,
            notes=self._notes(question),
        )

    @torch.inference_mode()
    def attention(self, question: Question, grid: TokenGrid, selection: Selection, reasoning: str) -> Tensor:
        """Mean over layers, heads and the reasoning's words: (K,). One prefill of what was kept."""
        visual, at = visual_row(grid.features, grid.shape, torch.from_numpy(selection.keep), selection.context)
        text = [THINK, *encode_text(self.tokenizer, reasoning), END_THINK] if reasoning else [ANSWER]
        by_place = self.language.attention(Row(self._question(question), visual, at, text))
        return by_place[:, 1 if reasoning else 0 :, : len(selection.keep)].mean((0, 1))

    def confidence(self, question: Question, p: float) -> float:
        """Calibrated probability that an answer of raw probability p is right; low for words never taught."""
        calibration = self.spec.calibration
        if self._strange(question):
            return min(calibration.unknown, p)
        return platt(p, calibration.slope, calibration.offset)

    def _strange(self, question: Question) -> list[str]:
        """Words of a question that it was not taught with, each once."""
        return [word for word in dict.fromkeys(words(question.text)) if self._words and word not in self._words]

    def _notes(self, question: Question) -> tuple[str, ...]:
        strange = self._strange(question)
        named = ", ".join(strange[:3]) + (" ..." if len(strange) > 3 else "")
        return (f"the reader was never taught what this means: {named}; do not rely on its answer",) if strange else ()

    def _question(self, question: Question) -> list[int]:
        ids = encode_text(self.tokenizer, question.text.strip().lower())
        if not 0 < len(ids) <= _QUESTION_TOKENS:
            raise QuestionError(
                f"a question of {len(ids)} pieces of words" if ids else "a question without words",
                expected=f"at most {_QUESTION_TOKENS}, which is some hundred words",
                todo="ask a shorter one" if ids else "write it",
            )
        return [QUESTION, *ids]

    def _answer(self, text: str) -> list[int]:
        ids = encode_text(self.tokenizer, text.strip().lower())
        if len(ids) >= MAX_TEXT - _QUESTION_TOKENS:
            raise QuestionError(f"an answer of {len(ids)} word pieces", expected="a few words", todo="shorten it")
        return [*ids, END_ANSWER]


def build(spec: NanoSpec, vocabulary: int) -> tuple[LocalEncoder, NanoLanguage]:
    """The two parts with fresh weights: encoder and language stream."""
    encoder = LocalEncoder(spec.channels, spec.logits)
    return encoder, NanoLanguage(encoder.width, vocabulary, hidden=spec.hidden, layers=spec.layers, heads=spec.heads)
