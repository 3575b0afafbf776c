"""Is another process running the same program?"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import sparsight


@cache
def package_sha256() -> str:
    """Hash of this package's own Python files, by name and content."""
    root = Path(sparsight.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(f"{path.relative_to(root).as_posix()} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()
