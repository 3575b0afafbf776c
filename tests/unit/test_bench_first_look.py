"""The first look is judged by what is shown: both ways are asked as the product asks, and paired over volumes."""

import pytest

from sparsight.bench.first_look import Looked, look_at, summarise_looked
from sparsight.bench.suites import Suite, cases_of
from sparsight.model import PolicySelector, load_policy, load_reader


def one(n: int, looked: bool, whole: bool, completed: bool) -> Looked:
    return Looked(f"c{n}", f"g{n // 2}", looked, whole, completed, 32, 64, 2.0 if completed else 1.0, 4.0)


def test_accuracy_is_paired_and_what_waited_is_told_apart() -> None:
    found = summarise_looked([one(n, n % 4 > 0, True, n % 2 == 0) for n in range(40)], 0)
    assert (found["n"], found["groups"], found["encoded"], found["completed"]) == (40, 20, 0.5, 0.5)
    assert (found["accuracy"], found["accuracy_whole"], found["difference"]) == (0.75, 1.0, -0.25)
    low, high = found["difference_ci"]
    assert -0.45 < low < -0.25 < high < -0.05
    assert found["speedup"] == pytest.approx(4 / 1.5)
    assert found["speedup_at_once"] == 4.0
    assert summarise_looked([one(0, True, True, True)], 0)["speedup_at_once"] is None
    assert summarise_looked([], 0) == {}


@pytest.mark.slow
def test_a_long_volume_is_asked_about_both_ways() -> None:
    reader = load_reader("nano")
    ours = PolicySelector(load_policy("nano"), reader, "ours")
    (case,) = (drawn.case for drawn in cases_of(Suite("sim_deep", 1, ()), None, 0, 0))
    assert 128 <= len(case.volume.voxels) <= 192
    (found,) = look_at(reader, ours, [case])
    assert found.of == len(case.volume.voxels)
    assert found.encoded in (32, found.of)
    if found.completed or found.encoded == found.of:  # then the same slices were read
        assert found.looked == found.whole
    assert min(found.seconds_looked, found.seconds_whole) > 0
