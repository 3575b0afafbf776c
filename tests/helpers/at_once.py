"""A reading without a text that is to be written: for a fake in the place of a reader's language stream."""

from collections.abc import Callable
from typing import Any

from sparsight.model.together import Work
from sparsight.types import Answer


def at_once(read: Callable[..., Answer]) -> Callable[..., Work[Answer]]:
    """Reader.reading that answers as `read` does."""

    def reading(*given: Any, **more: Any) -> Work[Answer]:
        yield from ()
        return read(*given, **more)

    return reading
