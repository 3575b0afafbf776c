"""Every way to begin an answer is timed, on the tokens and positions that it says."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, SiglipVisionConfig

from sparsight.bench import prefill
from sparsight.errors import InputError
from sparsight.model import PolicySelector, TokenPolicy, load_base_policy
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.weights import SHIPPED

SMALL = LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=8,
)  # fmt: skip
VISION = SiglipVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
)


@pytest.fixture(scope="module")
def timed():
    reader = NanoReader.load(SHIPPED)
    selector = PolicySelector(TokenPolicy.from_arrays(load_base_policy("nano")), reader)
    seen, told = [], []
    original = prefill._Ways._prefill

    def spied(self, positions):
        logits = original(self, positions)
        assert logits.shape == (1, 1, SMALL.vocab_size)
        seen.append(positions)
        return logits

    prefill._Ways._prefill = spied
    try:
        report = prefill.measure(
            reader,
            selector,
            repeats=3,
            seed=0,
            on_step=lambda *step: told.append(step),
            language=SMALL,
            vision=VISION,
            slices=0,
        )
    finally:
        prefill._Ways._prefill = original
    return report, seen, told


def test_a_tenth_keeps_its_positions_and_all_of_the_text(timed):
    report, seen, told = timed
    assert told[-1] == ("rounds", 8, 8)
    assert len(seen) == 16  # two ways in each of four rounds of both types
    text = torch.arange(1024, 1024 + 64)
    for few, whole in zip(seen[::2], seen[1::2], strict=True):
        assert len(few) == 102 + 64
        assert few[-64:].equal(text)
        assert few[:-64].max() < 1024
        assert few[:-64].unique().numel() == 102
        assert whole.equal(torch.arange(1024 + 64))
    assert report["tokens"] == {"visual": 1024, "kept": 102, "text": 64}


def test_rows_have_intervals_and_verdicts_by_them(timed):
    report, _, _ = timed
    assert set(report["seconds"]) == {"float32", "bfloat16"}
    for seconds in report["seconds"].values():
        assert set(seconds) == {"nano", "vit", "select", "few", "all"}
        assert min(seconds.values()) > 0
    for row in report["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["n"] == 3
    by_name = {row["what"]: row for row in report["rows"] if row["type"] == "float32"}
    assert len(report["rows"]) == 2 * len(by_name)
    speed_up = by_name["prefill of all tokens / of a tenth"]
    assert speed_up["target"] == f"at least {0.9 * (1024 + 64) / (102 + 64):.3g}"
    assert speed_up["met"] == (speed_up["low"] >= 0.9 * report["linear"])
    share = by_name["selector's share, later question"]
    assert share["met"] == (share["high"] <= 0.01)


def test_a_long_volume_is_timed_where_there_is_a_first_look(looking_folder, timed):
    reader = NanoReader.load(looking_folder)
    selector = PolicySelector(TokenPolicy.from_arrays(load_base_policy(looking_folder)), reader)
    report = prefill.measure(
        reader, selector, repeats=1, seed=0, on_step=lambda *step: None, language=SMALL, vision=VISION, slices=64
    )
    assert report["volume"] == {"slices": 64, "encoded": 32}
    rows = {row["what"]: row for row in report["rows"] if row["type"] == "float32"}
    seconds = report["seconds"]["float32"]
    begun = seconds["looked"] + seconds["few"]
    for read, name in (("all", "all"), ("a tenth", "few")):
        row = rows[
            f"first question about 64 slices: all encoded, {read} read / 32 encoded after a first look, a tenth read"
        ]
        assert row["value"] == pytest.approx((seconds["everything"] + seconds[name]) / begun)
        assert row["target"] == "at least 3"
    assert timed[0]["volume"] is None


def test_another_reader_is_refused():
    with pytest.raises(InputError, match="fake"):
        prefill.measure(SimpleNamespace(id="fake"), None, repeats=1, seed=0, on_step=print)
