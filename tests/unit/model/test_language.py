from collections.abc import Callable

import pytest
import torch

from sparsight.model.nano.language import Batch, Row, _alike, _padded, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, QUESTION
from sparsight.model.positions import encode_positions
from sparsight.model.together import written


@pytest.fixture
def features(reader: NanoReader) -> torch.Tensor:
    return torch.randn(60, reader.encoder.width, generator=torch.Generator().manual_seed(0))


ASKED = [QUESTION, 40, 41, 42]
TEXT = [ANSWER, 50, END_ANSWER]


def batch(visual: torch.Tensor, seen: torch.Tensor | None = None) -> Batch:
    """One row of visual embeddings (1, K, hidden)."""
    seen = torch.ones(visual.shape[:2], dtype=torch.bool) if seen is None else seen
    return Batch(torch.tensor([ASKED]), visual, seen, torch.tensor([TEXT]))


@pytest.fixture(params=["sdpa", "eager"])
def states(request: pytest.FixtureRequest, reader: NanoReader, features: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Last states of the text, read with one of the two ways to compute attention that `hidden` chooses between."""

    def read(keep: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        language = reader.language
        visual = language.see(features[keep], encode_positions((1, 6, 10), keep))[None]
        with torch.set_grad_enabled(request.param == "eager"):
            result = language.hidden(batch(visual, seen[None]))[0, -len(TEXT) :].detach()
        assert language.lm.config._attn_implementation == request.param
        return result

    return read


KEPT = {
    "some": [0, 3, 17, 18, 44, 59],
    "neighbours": list(range(20, 31)),
    "one": [59],
    "none": [],
    "all but one": [n for n in range(60) if n != 7],
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_dropping_tokens_equals_masking_them(states: Callable[..., torch.Tensor], kept: list[int]) -> None:
    keep = torch.tensor(kept, dtype=torch.int64)
    everything, seen = torch.arange(60), torch.zeros(60, dtype=torch.bool)
    seen[keep] = True
    dropped = states(keep, torch.ones(len(keep), dtype=torch.bool))
    masked = states(everything, seen)
    assert torch.allclose(dropped, masked, atol=1e-5)
    assert not torch.allclose(masked, states(everything, ~seen), atol=1e-3)


def both_ways(reader: NanoReader, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities as they are when a reward is scored, and as they are when the stream is trained."""
    with torch.no_grad():
        scored = reader.language.log_probs(rows)
    assert reader.language.lm.config._attn_implementation == "sdpa"
    trained = reader.language.log_probs(rows).detach()
    return scored, trained


def test_the_gradient_path_reads_what_the_other_reads(reader: NanoReader, features: torch.Tensor) -> None:
    """Rows of many lengths together, so that padding on all three parts is in it."""
    rows = [
        Row([*ASKED, *more], *visual_row(features, (1, 6, 10), torch.arange(k)), [ANSWER, *[50] * n, END_ANSWER], n + 1)
        for k, n, more in ((0, 1, []), (3, 4, [44]), (40, 2, [44, 45, 46]), (60, 1, []))
    ]
    scored, trained = both_ways(reader, rows)
    assert reader.language.lm.config._attn_implementation == "eager"
    assert torch.allclose(scored, trained, atol=1e-5)


def test_a_long_prompt_keeps_fused_attention_with_a_gradient(reader: NanoReader) -> None:
    many = torch.randn(300, reader.encoder.width, generator=torch.Generator().manual_seed(1))
    rows = [Row(ASKED, *visual_row(many, (1, 15, 20), torch.arange(300)), TEXT, 2)]
    scored, trained = both_ways(reader, rows)
    assert reader.language.lm.config._attn_implementation == "sdpa"
    assert torch.allclose(scored, trained, atol=1e-5)


def test_where_a_kept_token_was_changes_what_is_read(reader: NanoReader, features: torch.Tensor) -> None:
    language = reader.language
    with torch.no_grad():
        here, there = (
            language.hidden(batch(language.see(features[:2], encode_positions((1, 6, 10), at))[None]))[0, -1]
            for at in (torch.tensor([0, 1]), torch.tensor([0, 59]))
        )
    assert not torch.allclose(here, there, atol=1e-3)


def test_the_question_reaches_every_visual_token(reader: NanoReader, features: torch.Tensor) -> None:
    """It stands before them: what a token is worth can depend on what is asked."""
    visual = reader.language.see(features[:5], encode_positions((1, 6, 10), torch.arange(5)))[None]
    with torch.no_grad():
        this, other = (
            reader.language.hidden(Batch(torch.tensor([asked]), visual, torch.ones(1, 5, dtype=torch.bool), text))
            for asked, text in ((ASKED, torch.tensor([TEXT])), ([QUESTION, 40, 43, 42], torch.tensor([TEXT])))
        )
    visual_part = slice(len(ASKED), len(ASKED) + 5)
    assert ((this - other)[0, visual_part].abs().amax(-1) > 1e-4).all()


def test_equal_positions_do_not_cut_attention(reader: NanoReader, features: torch.Tensor) -> None:
    """Without a mask transformers takes equal positions for packed sequences: here every token reaches the text."""
    keep = torch.arange(5)
    at = encode_positions((1, 6, 10), keep)
    visual = reader.language.see(features[keep], at)[None].detach().requires_grad_()
    reader.language.hidden(batch(visual))[0, -1].sum().backward()
    assert (visual.grad[0].abs().sum(-1) > 0).all()


def test_padding_changes_no_score(reader: NanoReader, features: torch.Tensor) -> None:
    rows = [
        Row(
            [*ASKED, *asked], *visual_row(features, (1, 6, 10), torch.arange(k)), [ANSWER, *[50] * n, END_ANSWER], n + 1
        )
        for k, n, asked in ((0, 1, []), (3, 4, [44]), (40, 2, [44, 45, 46]), (60, 1, []))
    ]
    with torch.no_grad():
        together = reader.language.log_probs(rows)
        alone = torch.cat([reader.language.log_probs([row]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_rows_share_is_read_once_and_changes_no_score(
    reader: NanoReader, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices of several questions, some with a text before them, of different lengths, beside rows of their own."""
    rows = []
    for k, begin, answers in (
        (40, [ANSWER], ([50, END_ANSWER], [51, 52, 53, END_ANSWER], [END_ANSWER])),
        (7, [ANSWER, 60, 61, 62, ANSWER], ([50, END_ANSWER], [51, 52, END_ANSWER])),
        (0, [ANSWER], ([50, END_ANSWER], [51, END_ANSWER])),
        (23, [ANSWER], ([50, END_ANSWER],)),
    ):
        visual, at = visual_row(features, (1, 6, 10), torch.arange(k))
        rows += [Row([*ASKED, *range(44, 44 + k % 3)], visual, at, [*begin, *own], len(own)) for own in answers]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    read = list[int]()
    embeds = reader.language.embeds
    monkeypatch.setattr(reader.language, "embeds", lambda batch: (read.append(len(batch.question)), embeds(batch))[1])
    with torch.no_grad():
        alone = torch.cat([reader.language.log_probs([row]) for row in rows])
        read.clear()
        together = reader.language.log_probs([rows[r] for r in order])
    assert torch.allclose(together, alone[order], atol=1e-5)
    assert sum(read) == 4, "each beginning once"


def test_subsets_of_several_budgets_are_hardly_padded(reader: NanoReader, features: torch.Tensor) -> None:
    """Padding costs as much as reading: rows of 3 and of 60 tokens do not share a forward, those of 55 and 60 do."""
    kept = (3, 60, 29, 55, 4, 30) * 4
    rows = [Row(ASKED, *visual_row(features, (1, 6, 10), torch.arange(k)), TEXT, 2) for k in kept]
    groups = _alike(rows)
    assert sorted(r for group in groups for r in group) == list(range(len(rows)))
    assert [sorted({kept[r] for r in group}) for group in groups] == [[3, 4], [29, 30], [55, 60]]
    assert sum(_padded([rows[r] for r in group]) for group in groups) < 1.1 * sum(row.length for row in rows)


def test_one_forward_is_bounded(reader: NanoReader, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsight.model.nano.language._ROWS_TOKENS", 150)
    rows = [Row(ASKED, *visual_row(features, (1, 6, 10), torch.arange(60)), TEXT, 2)] * 5
    assert [len(group) for group in _alike(rows)] == [2, 2, 1]


def test_cached_decoding_equals_decoding_anew(reader: NanoReader, features: torch.Tensor) -> None:
    visual, at = visual_row(features, (1, 6, 10), torch.arange(0, 60, 5))
    language = reader.language
    with torch.no_grad():
        said = written(language.begin, language.text_after(Row(ASKED, visual, at, TEXT[:1]), END_ANSWER, 8))
        assert said
        ids = list(TEXT[:1])
        for token in said:
            logits = language.lm.lm_head(language.hidden(language.pad([Row(ASKED, visual, at, ids)]))[0, -1])
            assert int(logits.argmax()) == token
            ids.append(token)
