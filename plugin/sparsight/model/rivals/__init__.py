"""Other ways to choose tokens, each behind the `Selector` protocol: what a policy is measured against.

What each paper does and where this differs: the docstring of its file, and docs/rivals.md.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsight.errors import InputError
from sparsight.model.nano.reader import NanoReader
from sparsight.model.protocols import Reader, Selector
from sparsight.model.rivals.cdpruner import CDPrunerSelector
from sparsight.model.rivals.coarser import DownsampledSelector, PooledSelector
from sparsight.model.rivals.divprune import DivPruneSelector
from sparsight.model.rivals.fastv import FastVSelector
from sparsight.model.rivals.masks import MasksSelector
from sparsight.model.rivals.trained import load_rivals
from sparsight.model.rivals.visionzip import VisionZipSelector
from sparsight.model.rivals.vitos import ViToSSelector
from sparsight.types import ImageVolume

# In the order of docs/rivals.md; the first without training.
UNTRAINED = ("downsampled", "pooled", "visionzip", "fastv", "divprune", "cdpruner")
LABELLED = ("vitos", "masks")  # boxes or masks taught them: `sparsight train rivals`
RIVALS = (*UNTRAINED, *LABELLED)

__all__ = [
    "LABELLED",
    "RIVALS",
    "UNTRAINED",
    "CDPrunerSelector",
    "DivPruneSelector",
    "DownsampledSelector",
    "FastVSelector",
    "MasksSelector",
    "PooledSelector",
    "ViToSSelector",
    "VisionZipSelector",
    "rival_of",
]


def rival_of(name: str, reader: Reader) -> Callable[[ImageVolume], Selector]:
    """A rival by its id, for any study of this reader: volume -> selector.

    Raises InputError for an unknown name, for one that looks into `nano` where the reader is another, and for a trained
    one where there are no weights of it; WeightsError where these are damaged or another reader's.
    """
    alone: dict[str, Selector] = {s.id: s for s in (PooledSelector(), VisionZipSelector(), DivPruneSelector())}
    if name in alone:
        return lambda volume: alone[name]
    if not isinstance(reader, NanoReader):
        raise InputError(
            f"the rival {name} with reader {reader.id}", expected="the reader nano", todo="leave this rival out"
        )
    if name in LABELLED:
        writer, policy = load_rivals(reader)
        taught = ViToSSelector(reader, writer) if name == ViToSSelector.id else MasksSelector(reader, policy)
        return lambda volume: taught
    inner: dict[str, Selector] = {s.id: s for s in (FastVSelector(reader), CDPrunerSelector(reader))}
    if name in inner:
        return lambda volume: inner[name]
    if name == DownsampledSelector.id:
        return lambda volume: DownsampledSelector(reader, volume)
    raise InputError(f"the rival {name[:40]}", expected=", ".join(RIVALS), todo="choose from these")
