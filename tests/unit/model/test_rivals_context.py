"""Context tokens: what a stream hands the reader beside the tokens it kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsight.errors import BudgetError
from sparsight.model import ScoreRequest
from sparsight.model.nano.language import Batch, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, QUESTION
from sparsight.model.positions import encode_places, encode_positions, places
from sparsight.types import ContextTokens, ImageVolume, Question, Selection

YES_NO = Question("Is there a nodule?", "yes_no", ("yes", "no"))


def context_of(features: torch.Tensor, shape: tuple[int, int, int], at: list[int]) -> ContextTokens:
    return ContextTokens(features[at], encode_positions(shape, torch.tensor(at)))


def test_context_made_of_grid_tokens_reads_as_keeping_them(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    context = context_of(grid.features, grid.shape, [300, 7])
    few, all_four = torch.tensor([[20, 40], [21, 41]]), torch.tensor([[20, 40, 300, 7], [21, 41, 300, 7]])
    with_context, kept, without = reader.score(
        [
            ScoreRequest(grid, YES_NO, "yes", few, context),
            ScoreRequest(grid, YES_NO, "yes", all_four),
            ScoreRequest(grid, YES_NO, "yes", few),
        ]
    )
    assert torch.allclose(with_context, kept, atol=1e-5)
    assert not torch.allclose(with_context, without, atol=1e-5)
    selection = Selection(np.array([20, 40]), np.zeros(grid.n, np.float32), 0.0, "greedy", "x", context=context)
    same = Selection(np.array([7, 20, 40, 300]), selection.scores, 0.0, "greedy", "x")
    one, two = reader.read(YES_NO, grid, selection), reader.read(YES_NO, grid, same)
    assert (one.text, one.reasoning) == (two.text, two.reasoning)
    assert one.confidence == pytest.approx(two.confidence, abs=1e-4)


def test_context_alone_is_read(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    none = torch.zeros(1, 0, dtype=torch.int64)
    context = context_of(grid.features, grid.shape, [300, 7])
    with_context, kept = reader.score(
        [ScoreRequest(grid, YES_NO, "no", none, context), ScoreRequest(grid, YES_NO, "no", torch.tensor([[300, 7]]))]
    )
    assert torch.allclose(with_context, kept, atol=1e-5)
    selection = Selection(np.zeros(0, np.int64), np.zeros(grid.n, np.float32), 0.0, "greedy", "x", context=context)
    assert reader.read(YES_NO, grid, selection).text in ("yes", "no")


def test_dropping_tokens_equals_masking_them_beside_context(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(volume)
    language, asked, text = (
        reader.language,
        torch.tensor([[QUESTION, 40, 41]]),
        torch.tensor([[ANSWER, 50, END_ANSWER]]),
    )
    merged = ContextTokens(grid.features[100:140].mean(0, keepdim=True), encode_places(torch.tensor([[0.5, 0.3, 0.6]])))
    keep, everything = torch.tensor([0, 3, 17, 44]), torch.arange(60)
    outputs = []
    for tokens in (keep, everything):
        visual = language.see(*visual_row(grid.features, grid.shape, tokens, merged))[None]
        seen = torch.tensor([*torch.isin(tokens, keep).tolist(), True])[None]
        with torch.no_grad():
            outputs.append(language.hidden(Batch(asked, visual, seen, text))[0, -3:])
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)


def test_context_counts_for_the_budget(reader: NanoReader, volume: ImageVolume) -> None:
    grid = reader.encode(replace(volume, voxels=np.repeat(volume.voxels, 3, 0)))
    context = context_of(grid.features, grid.shape, [1, 2, 3])
    selection = Selection(np.arange(1022), np.zeros(grid.n, np.float32), 0.0, "greedy", "x", context=context)
    assert selection.size == 1025
    assert selection.fraction == 1025 / grid.n
    with pytest.raises(BudgetError):
        reader.read(YES_NO, grid, selection)


def test_a_place_between_tokens_is_encoded_as_a_token_there_would_be() -> None:
    two = places((1, 4, 8), torch.tensor([8, 17]))  # (row 1, column 0) and (row 2, column 1)
    assert torch.allclose(two.mean(0), torch.tensor([0.5, 0.5, 0.125]))
    assert torch.allclose(encode_places(places((2, 3, 5))), encode_positions((2, 3, 5)))
    odd = encode_positions((1, 3, 3))[4]  # the centre of a grid with an odd number of tokens
    even = places((1, 4, 4), torch.tensor([5, 10])).mean(0)  # between the four middle tokens of an even one
    assert torch.allclose(encode_places(even), odd, atol=1e-6)
