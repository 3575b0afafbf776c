"""Errors cross processes: raised in a worker, they arrive as they were."""

import pickle

import pytest

from sparsight import errors
from sparsight.errors import SparsightError

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SparsightError)]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_arrives_as_it_was_raised(kind: type[SparsightError]) -> None:
    back = pickle.loads(pickle.dumps(kind("a shoe", expected="a hat", todo="take it off")))
    assert type(back) is kind
    assert (str(back), back.as_dict()) == (
        "a shoe; expected a hat; take it off",
        kind("a shoe", expected="a hat", todo="take it off").as_dict(),
    )
