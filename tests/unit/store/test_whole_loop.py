"""Ask, correct, learn, promote, roll back, export and report: the same on both databases."""

from pathlib import Path

import numpy as np

from pictures import QUESTION, lessons, make_picture
from sparsight.config import Config
from sparsight.exchange.feedback import export_feedback, import_feedback
from sparsight.report.page import write_report
from sparsight.service import Service
from sparsight.store import Store


def test_the_loop_closes(store_url: str, tmp_path: Path, reader_folder: Path) -> None:
    config = Config.load(
        home=tmp_path / "home",
        database=store_url,
        serve={"reader": str(reader_folder)},
        learn={"steps": 3, "passes": 0, "batch": 4, "group": 4},
        gate={"sentinel": 20, "bootstrap": 100, "min_feedback": 1, "margin": 1.0, "min_gain": -9.0, "exact": False},
    )
    service = Service(config)
    before = service.ask(make_picture(50), QUESTION).episode
    lessons(service, 8)
    learned = service.learn()
    assert learned.promoted, learned.reasons
    assert (learned.corrections, learned.held_out) == (4, 4)
    assert learned.candidate is not None
    after = service.ask(make_picture(50), QUESTION).episode
    assert after.policy == learned.candidate.id
    assert not np.array_equal(after.selection.scores, before.selection.scores)
    assert service.learn().candidate is None
    service.rollback()
    again = service.ask(make_picture(50), QUESTION).episode
    assert np.array_equal(again.selection.scores, before.selection.scores)
    write_report(service, tmp_path / "page")
    assert learned.candidate.id in (tmp_path / "page" / "index.html").read_text()
    assert service.store.verify() == []
    count, _ = export_feedback(service.store, tmp_path / "given", site="site-a")
    service.close()
    assert count == 8
    with Store(tmp_path / "other.db", tmp_path / "other") as other:
        assert import_feedback(other, tmp_path / "given").corrections == 8
        assert import_feedback(other, tmp_path / "given").corrections == 0
