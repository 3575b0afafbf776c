"""Learning curves come from the log, whatever calls it was written in."""

from pathlib import Path

from PIL import Image

from sparsight.recipe.curves import draw_curves, read_curves

LOG = """2026-01-01 10:00:00,001 encoder (easy) 25/300 loss 0.9000
2026-01-01 10:00:01,001 encoder (easy) 50/300 loss 0.7000
2026-01-01 10:00:02,001 encoder: 12.0 s
2026-01-01 10:00:03,001 encoder (easy) 50/300 loss 0.6500
2026-01-01 10:00:04,001 language 25/450 loss 0.5000
2026-01-01 10:00:05,001 policy 25/100 loss -0.7300
2026-01-01 10:00:05,002 entropy 3.145 spread 0.073 {'answer': 0.7}
2026-01-01 10:00:06,001 budget {'kept': 0.05}
"""


def test_a_step_done_again_counts_once_and_rewards_rise(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG)
    curves = read_curves(tmp_path / "train.log")
    assert curves == {"encoder (easy)": {25: 0.9, 50: 0.65}, "language": {25: 0.5}, "policy": {25: 0.73}}


def test_every_stage_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG)
    assert set(draw_curves(tmp_path / "train.log", tmp_path / "curves.png")) == {"encoder (easy)", "language", "policy"}
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 500
        assert len(image.convert("L").getcolors()) > 10
    (tmp_path / "train.log").write_text("2026-01-01 10:00:00,001 draw: 1.0 s\n")
    assert draw_curves(tmp_path / "train.log", tmp_path / "none.png") == {}
    assert not (tmp_path / "none.png").exists()
