"""The order of the next cases. What one is worth is looked at in test_evaluate, with its reader."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsight.rl.acquisition import Worth, in_order


def worth(disagreement: float, at: Sequence[float], **more: Any) -> Worth:
    place = np.array(at, np.float32)
    given: dict[str, Any] = {"undecided": 0.5, "necessity": 0.5} | more
    return Worth(disagreement, place=place / np.linalg.norm(place), said="'yes' with 50%", **given)


def test_the_next_cases_differ_from_each_other_and_from_what_was_corrected() -> None:
    here, beside, there = (1.0, 0.0), (1.0, 0.01), (0.0, 1.0)
    cases = [worth(0.30, here), worth(0.29, beside), worth(0.28, there)]
    order = in_order(cases, [])
    assert [i for i, _ in order] == [0, 2, 1]
    assert [score for _, score in order] == sorted((score for _, score in order), reverse=True)
    assert all(0 <= score <= 1 for _, score in order)
    assert in_order(cases, [cases[0].place])[0][0] == 2
    assert in_order([], [cases[0].place]) == []


@pytest.mark.parametrize("more", [{"undecided": 0.9}, {"necessity": -0.2}])
def test_who_is_undecided_or_answers_without_its_evidence_comes_first(more: dict[str, float]) -> None:
    place = (1.0, 0.0)
    assert in_order([worth(0.3, place), worth(0.3, place, **more)], [])[0][0] == 1
    assert in_order([worth(0.3, place, necessity=None), worth(0.3, place)], [])[0][0] == 1  # not known is not lacking
