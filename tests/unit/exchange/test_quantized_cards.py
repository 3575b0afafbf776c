"""What is told of a model's quantization, by the cards of its policies and of the bundles that they leave in."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsight.config import Config
from sparsight.errors import ConfigError
from sparsight.exchange import export_bundle, read_bundle
from sparsight.model.hf.tiny import save_tiny
from sparsight.report.cards import model_card
from sparsight.service import Service


def _service(folder: Path, quantization: str) -> closing[Service]:
    """On a tiny model, set up by folder/own.yaml."""
    save_tiny("llava", folder / "model")
    model = {"name": "own", "weights": "model", "quantization": quantization, "device": "cpu", "tokens_per_image": 64}
    (folder / "own.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    return closing(Service(Config.load(home=folder / "store", serve={"reader": str(folder / "own.yaml")})))


def _figures(sha256: str) -> dict[str, Any]:
    """As `sparsight bench quantization` writes them of questions without choices, which have no accuracy."""
    value, none = {"mean": 0.125, "low": 0.1, "high": 0.15, "n": 8}, {"mean": None, "low": None, "high": None, "n": 0}
    row = {"share": 0.25, "n": 8, "n_closed": 0, "kl": value, "agreement": value, "accuracy": none, "ratio": none}
    rows = [row | {"quantization": name} for name in ("none", "nf4")]
    hashes = {"none": "0" * 64, "nf4": sha256}
    return {
        "sha256": hashes,
        "made": "2026-11-29T12:00:00",
        "of": "rows of val",
        "n": 8,
        "groups": 4,
        "seed": 3,
        "rows": rows,
    }


def test_cards_say_what_quantization_costs_or_that_it_was_not_measured(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    with _service(tmp_path, "nf4") as service:

        def cards() -> tuple[str, str]:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            export_bundle(service, tmp_path / "out")
            page = (tmp_path / "out" / "docs" / "README.md").read_text(encoding="utf-8")
            return page, model_card(service, service.registry.live())

        assert all("was **not measured**:" in card for card in cards())
        file = own.with_name("figures.json")
        with own.open("a", encoding="utf-8") as text:
            text.write(f"quantization_figures: {file.name}\n")
        with pytest.raises(ConfigError, match="quantization_figures"):
            cards()
        file.write_text('{"rows": 1}', encoding="utf-8")
        with pytest.raises(ConfigError, match="bench quantization --out"):
            cards()
        file.write_text(json.dumps(_figures("1" * 64)), encoding="utf-8")
        assert all("not measured** (the figures that its file names are of another reader)" in card for card in cards())
        file.write_text(json.dumps(_figures(service.reader.sha256)), encoding="utf-8")
        for card in cards():
            assert "| nf4 | 25% | 0.125 [0.100, 0.150] | 0.125 [0.100, 0.150] | - | - |" in card
            assert "8 questions (rows of val) of 4 groups, seed 3" in card
            assert "| none |" not in card
            assert "**not measured**" not in card
        assert read_bundle(tmp_path / "out").manifest.reader.sha256 == service.reader.sha256  # as without figures


def test_a_model_that_is_not_quantized_loses_nothing_by_it(tmp_path: Path) -> None:
    with _service(tmp_path, "none") as service:
        assert "not quantized" in model_card(service, service.registry.live())
