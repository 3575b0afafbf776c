"""The reader that scores of visual streams are tried on."""

import pytest

from one_token import SeesOneToken


@pytest.fixture(scope="module")
def reader() -> SeesOneToken:
    return SeesOneToken()
