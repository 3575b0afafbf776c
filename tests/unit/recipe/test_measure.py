"""Figures of the model card: how a pool is measured, and what the card says of how its figures came about."""

from pathlib import Path

import pytest

from sparsight.model import GridSelector, load_reader
from sparsight.model.nano.weights import NanoSpec
from sparsight.recipe.card import write_card
from sparsight.recipe.measure import measure
from sparsight.recipe.pool import Pool
from sparsight.recipe.report import TABLES
from sparsight.rl.evaluate import evaluate, selectors_by_name
from sparsight.rl.scoring import by_choices
from sparsight.sim import SceneConfig, Simulator


def test_a_pool_is_measured_as_the_cases_it_was_made_of(reader_folder: Path) -> None:
    reader = load_reader(reader_folder)
    scene = Simulator(SceneConfig(backgrounds=("synthetic_brain",))).scene("test", 0, 5)
    pool = Pool()
    pool.add(scene.cases, "sim", scoring=True)
    pool.encode(reader.encoder)
    grid = GridSelector()
    got = measure(
        reader, pool, range(len(pool.items)), "grid", lambda at, item, k: grid.select(at, item.question, k), 0.2
    )
    streams = selectors_by_name(["grid"], reader, grid)
    wanted = evaluate(scene.cases, reader, streams, [0.2], ask=by_choices)
    assert {r.group for r in got} == {"0"}
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine.kept, mine.of, mine.label) == (theirs.kept, theirs.of, theirs.label)
        assert mine.recall == pytest.approx(theirs.recall)
        assert mine.p_right == pytest.approx(theirs.p_right, abs=0.02)  # a pool keeps features as float16


def test_the_card_says_what_supervised_and_how_majority_was_counted(tmp_path: Path) -> None:
    row = {"selector": "ours", "budget": 0.1, "accuracy": 0.5, "ci": [0.4, 0.6], "p_right": 0.5, "recall": 0.7}
    whole = {**row, "selector": "all", "budget": 1.0}
    paired = [{"rival": "all", "budget": 0.1, "gain": 0.0, "ci": [-0.1, 0.1]}]
    table = {"n": 4, "rows": [whole, row], "paired": paired, "ours by question": {"where": [0.5, 4]}}
    figures = dict.fromkeys(TABLES, table)
    figures |= {"real val": {"bccd": {"n": 4, "majority": 0.5, "ours 0.1": 0.5, "no image": 0.5}}, "reader": "nano-0"}
    write_card(tmp_path, {**figures, "seed": 0, "seconds": {}, "threads": 1, "images": {}, "size": {}}, NanoSpec())
    text = " ".join((tmp_path / "card.md").read_text().split())
    for said in ("simulator's rationales", "as a target or reward", "lesion mask of one FLAIR", "over images]"):
        assert said in text
    assert "an upper bound of what majority voting would reach" in text
