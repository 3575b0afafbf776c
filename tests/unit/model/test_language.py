import pytest
import torch

from sparsight.model.nano.language import Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, QUESTION
from sparsight.model.positions import encode_positions


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(60, 32, generator=torch.Generator().manual_seed(0))


TEXT = [QUESTION, 40, 41, 42, ANSWER, 50, END_ANSWER]


def states(reader: NanoReader, features: torch.Tensor, keep: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    language = reader.language
    visual = language.see(features[keep], encode_positions((1, 6, 10), keep))[None]
    with torch.no_grad():
        return language.hidden(visual, seen[None], torch.tensor([TEXT]))[0]


def test_dropping_tokens_equals_masking_them(reader: NanoReader, features: torch.Tensor) -> None:
    keep = torch.tensor([0, 3, 17, 18, 44, 59])
    everything, seen = torch.arange(60), torch.zeros(60, dtype=torch.bool)
    seen[keep] = True
    dropped = states(reader, features, keep, torch.ones(6, dtype=torch.bool))
    masked = states(reader, features, everything, seen)
    assert torch.allclose(dropped, masked, atol=1e-5)


def test_where_a_kept_token_was_changes_what_is_read(reader: NanoReader, features: torch.Tensor) -> None:
    language, seen = reader.language, torch.ones(1, 2, dtype=torch.bool)
    with torch.no_grad():
        here, there = (
            language.hidden(
                language.see(features[:2], encode_positions((1, 6, 10), at))[None], seen, torch.tensor([TEXT])
            )
            for at in (torch.tensor([0, 1]), torch.tensor([0, 59]))
        )
    assert not torch.allclose(here, there, atol=1e-3)


def test_equal_positions_do_not_cut_attention(reader: NanoReader, features: torch.Tensor) -> None:
    """Without a mask transformers takes equal positions for packed sequences: here every token reaches the text."""
    keep = torch.arange(5)
    at = encode_positions((1, 6, 10), keep)
    visual = reader.language.see(features[keep], at)[None].detach().requires_grad_()
    out = reader.language.hidden(visual, torch.ones(1, 5, dtype=torch.bool), torch.tensor([TEXT]))
    out[0, -1].sum().backward()
    assert (visual.grad[0].abs().sum(-1) > 0).all()


def test_padding_changes_no_score(reader: NanoReader, features: torch.Tensor) -> None:
    rows = [
        Row(*visual_row(features, (1, 6, 10), torch.arange(k)), TEXT[:-2] + [50] * n + [END_ANSWER], n + 1)
        for k, n in ((0, 1), (3, 4), (40, 2), (60, 1))
    ]
    with torch.no_grad():
        together = reader.language.log_probs(rows)
        alone = torch.cat([reader.language.log_probs([row]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_cached_decoding_equals_decoding_anew(reader: NanoReader, features: torch.Tensor) -> None:
    visual, at = visual_row(features, (1, 6, 10), torch.arange(0, 60, 5))
    with torch.no_grad():
        stream = reader.language.continue_text(Row(visual, at, TEXT[:4]), END_ANSWER, 8)
        said = list(stream)
        ids = list(TEXT[:4])
        for token in said:
            logits = reader.language.lm.lm_head(
                reader.language.hidden(
                    reader.language.see(visual, at)[None], torch.ones(1, 12, dtype=torch.bool), torch.tensor([ids])
                )[0, -1]
            )
            assert int(logits.argmax()) == token
            ids.append(token)
        assert said
        total = reader.language.log_probs([Row(visual, at, ids, len(said))])[0]
    assert float(total) == pytest.approx(stream.log_prob, abs=1e-3)
