"""`smol`: EfficientNet-Lite0 and SmolLM2-135M-Instruct, joined by a neck, a connector, a policy and LoRA of ours."""

import os
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "weights"
MANIFEST = "smol.json"  # of a trained part
# Prompts go up to 8,192 positions: six slices of 1,024 tokens and the text.
SETTINGS: dict[str, Any] = {"name": "smol", "slices": 6, "max_tokens": 2048, "reasoning_tokens": 48}


def is_smol(folder: Path) -> bool:
    """Whether a folder holds the trained part of a smol, or is where the shipped one belongs."""
    return folder == SHIPPED or (folder / MANIFEST).is_file()


def cached() -> Path:
    """Where the converted folder is: the user's cache (XDG)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsight" / "smol"
