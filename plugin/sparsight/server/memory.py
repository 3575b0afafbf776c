"""What a server that answers for months asks of the system's allocator."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h


def few_arenas() -> bool:
    """Have all threads share two of malloc's arenas from now on; says whether that could be had (glibc).

    Each of up to eight a core would keep what the largest answer in it once took: a fifth of the server's memory.
    """
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2))
    return False
