"""An alarm says that something changed: it must come where it did, and hardly ever where it did not."""

import math

import numpy as np
import pytest

from sparsight.rl.drift import shift


def test_a_change_of_each_kind_is_found() -> None:
    rng = np.random.default_rng(0)
    assert shift("confidence", rng.normal(0.8, 0.1, 400), rng.normal(0.7, 0.1, 100), least=0.05).alarm
    found = shift("rejection rate", rng.random(400) < 0.1, rng.random(100) < 0.4, least=0.1)
    assert found.alarm
    assert found.now > found.before + 0.2


def test_a_change_too_small_to_matter_is_none_however_sure() -> None:
    found = shift("kept", np.full(400, 0.1), np.full(400, 0.101), least=0.02)
    assert found.p < 1e-9
    assert not found.alarm


def test_without_a_change_there_is_hardly_ever_an_alarm() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(shift("x", rng.normal(size=400), rng.normal(size=100), least=0.01).alarm for _ in range(500))
    alarms += sum(shift("x", rng.random(400) < 0.2, rng.random(100) < 0.2, least=0.01).alarm for _ in range(500))
    assert alarms <= 4


@pytest.mark.parametrize("n", [0, 1, 19])
def test_too_few_say_nothing(n: int) -> None:
    found = shift("x", np.zeros(100), np.ones(n), least=0.1)
    assert math.isnan(found.p)
    assert not found.alarm
