"""How we come to a PACS: with what login, and that it leads us nowhere else and ends."""

from __future__ import annotations

import os
from pathlib import Path

import requests

from sparsight.errors import ConfigError
from sparsight.imaging.pacs_limits import REPLY_S, BoundedAdapter

VARIABLE = "SPARSIGHT_PACS_AUTHORIZATION_FILE"  # a file, so that neither `ps` nor a dump of the environment shows it
_CHARS = 16_384


def pacs_login() -> dict[str, str]:
    """Headers of every request to the PACS: `Authorization` with the text of the file that VARIABLE names; else none.

    Raises ConfigError: not there, readable by others, or no header's value.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return {}
    try:
        path = Path(name)
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise _fault("a file that cannot be read") from error
    if mode & 0o077:
        raise _fault("a file that other users may read")
    if not (0 < len(text) <= _CHARS and text.isprintable()):
        raise _fault("a file without one line of text")
    return {"Authorization": text}


def pacs_session(reply_s: float = REPLY_S) -> requests.Session:
    """A session that follows no redirect: a PACS that lies could name any address that only we can reach.

    reply_s: the longest that a reply takes in all, seconds. Its size is bounded, too (imaging/pacs_limits.py).
    """
    session = requests.Session()
    session.max_redirects = 0
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(reply_s))
    return session


def _fault(given: str) -> ConfigError:
    return ConfigError(
        f"{VARIABLE}: {given}", expected="one line such as `Basic …` or `Bearer …`, mode 600", todo="correct the file"
    )
