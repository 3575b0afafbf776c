"""What the documents report was measured on what is shipped."""

import json
from hashlib import sha256
from pathlib import Path

from sparsight.model import base_policy, load_reader
from sparsight.model.nano.weights import SHIPPED

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_results_are_of_the_shipped_reader_and_policy() -> None:
    reader, policy = load_reader("nano"), f"p0000-{sha256(base_policy('nano')).hexdigest()[:8]}"
    figures = json.loads((DOCS / "results" / "evidence.json").read_text(encoding="utf-8"))
    assert (figures["reader_sha256"], figures["policy"]) == (reader.sha256, policy)
    first = (DOCS / "results.md").read_text(encoding="utf-8")[:500]
    assert f"`{reader.id}`" in first
    assert f"`{policy}`" in first
    assert (SHIPPED / "card.md").read_text(encoding="utf-8").startswith(f"# {reader.id}\n")
