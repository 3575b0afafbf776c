"""From a study to the tokens of a Hugging Face model, with exact geometry.

Each slice is one picture. It is resized and padded by `imaging.grid.prepare` to a size that the family's own image
processor leaves as it is, so a token's place is known to the pixel. Intensities are windowed to 8 bits, the same in all
three colours.
"""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.errors import ImageError, MemoryFullError, WeightsError
from sparsight.imaging.grid import Prepared, prepare
from sparsight.model.hf.families import Family, begins_itself
from sparsight.model.hf.prompts import Layout
from sparsight.types import ImageVolume, TokenGrid

_LEAST = 64  # tokens of a picture
_SHRUNK = 1.05  # pixels of an image that one of the picture stands for, along a side: less is rounding
_PIXELS = "pixel_values", "pixel_attention_mask"
_VISION = (*_PIXELS, "image_grid_thw", "image_sizes", "batch_num_images")


@dataclass(frozen=True)
class Pace:
    """How much of a study is looked at. tokens: the most of one picture, where the family leaves it open.

    tiles: the most tiles along a side of a single picture; slices: the most of a volume, spread evenly. batch: slices
    encoded at a time.
    """

    tokens: int = 1024
    tiles: int = 1
    slices: int = 24
    batch: int = 4

    def smaller(self) -> Pace:
        """The next rung down: half of all that can be halved."""
        return replace(
            self,
            tokens=min(self.tokens, max(_LEAST, self.tokens // 2)),
            tiles=max(1, self.tiles // 2),
            slices=min(self.slices, max(2, self.slices // 2)),
            batch=max(2, self.batch // 2),
        )


def give_back(error: torch.OutOfMemoryError) -> None:
    """Free what an attempt held that did not fit; the error's own frames would keep it as long as anyone has it."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_full() -> Iterator[None]:
    """A device's memory that is full, as an error of ours; what was held is given back first."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        give_back(error)
        raise MemoryFullError(
            "a question that the device's memory does not hold",
            expected="room for its tokens",
            todo="keep fewer tokens, or quantize the model (docs/models.md)",
        ) from error


class Vision:
    """Vision tower and connector of one model."""

    def __init__(self, model: Any, processor: Any, family: Family, pace: Pace) -> None:
        self.model, self.processor, self.family, self.pace = model, processor, family, pace
        self.patch, self.side = family.patch(model.config), family.side(model.config)
        self.seen = None if self.side is None else self.patch * family.along(model.config)  # pixels of a tile's side
        self.layout = lru_cache(maxsize=64)(self._layout)

    def encode(self, volume: ImageVolume, reader: str) -> TokenGrid:
        """(D * gh * gw, C) tokens; a volume of more than `pace.slices` slices is read at that many of them.

        Where the device's memory is full: a smaller picture, fewer tiles, fewer slices, and `notes` says so. Raises
        MemoryFullError where the smallest does not fit either.
        """
        pace = self.pace
        while True:
            try:
                with memory_full():
                    return self._encode(volume, reader, pace)
            except MemoryFullError:
                if (smaller := pace.smaller()) == pace:
                    raise
                pace = smaller

    def notes(self, grid: TokenGrid) -> tuple[str, ...]:
        """What a grid lacks: by a full memory when it was encoded, and what was shrunk or passed over to be seen."""
        (gd, gh, gw), (i, j, k) = grid.shape, grid.patch
        less = []
        if "smaller" in grid.extras:
            less.append(f"seen at {gh} x {gw} tokens in {gd} slices only: the device's memory held no more")
        if max(across := (j / self.patch, i / self.patch)) > _SHRUNK:
            less.append(f"shrunk: a pixel that was seen is {across[0]:.1f} x {across[1]:.1f} of the image's")
        if k > 1:
            less.append(f"seen in {gd} of {round(gd * k)} slices, spread evenly")
        return tuple(less)

    @torch.no_grad()
    def _encode(self, volume: ImageVolume, reader: str, pace: Pace) -> TokenGrid:
        prepared = self._prepare(volume, pace)
        at, slices = prepared.geometry, len(prepared.pixels)
        layout = self.layout(at.shape)
        rows, deep = [], list[list[Tensor]]()
        for pixels in np.array_split(prepared.pixels, max(1, slices // pace.batch)):  # never one of several
            features, levels = self._look(pixels)
            rows.append(features)
            deep.append(levels)
        features = torch.cat(rows)
        if len(features) != len(layout.token) + len(layout.rest):
            raise WeightsError(
                f"a vision tower that gives {len(features)} features for {len(layout.token) + len(layout.rest)} places",
                expected="a processor and a model that belong together",
                todo="copy both from where the model was published",
            )
        levels = [torch.cat(level) for level in zip(*deep, strict=True)]
        extras = {"rest": features[layout.rest]} | {f"deep{i}": level for i, level in enumerate(levels)}
        if pace != self.pace:
            extras["smaller"] = torch.ones(1)
        if volume.pair:
            extras["pair"] = torch.ones(1)
        grid = TokenGrid(
            features[layout.token], at.shape, at.patch, at.uvw_to_ijk, at.uvw_to_lps, reader, extras=extras
        )
        if not torch.isfinite(grid.features).all():
            raise ImageError(
                "a study whose tokens are not finite numbers",
                expected="a model that can read it",
                todo="run sparsight doctor",
            )
        return grid

    def inputs(self, volume: ImageVolume, text: str) -> dict[str, Any]:
        """What the family's own processor makes of the same pictures and a prompt with a place for each: to compare."""
        pixels = self._prepare(volume, self.pace).pixels
        given = self._process(pixels, text)
        given.pop("labels", None)
        return {name: value.to(self.model.device) for name, value in given.items() if isinstance(value, Tensor)}

    def _prepare(self, volume: ImageVolume, pace: Pace) -> Prepared:
        """Pixels of the slices that are looked at, and the geometry of their tokens."""
        depth = volume.shape[0]
        chosen = thinned(depth, pace.slices)
        looked = replace(volume, voxels=volume.voxels[chosen], sop_uids=()) if len(chosen) < depth else volume
        prepared = prepare(looked, long_side=self.long_side(len(chosen) == 1, pace), patch=self.patch)
        return Prepared(prepared.pixels, _spread(prepared.geometry, volume, len(chosen)))

    def _look(self, pixels: NDArray[np.float32]) -> tuple[Tensor, list[Tensor]]:
        """Feature rows of some slices (d, h, w), one after the other: (R, C), and of each deeper level."""
        moved = self._given(pixels)
        out = self.model.get_image_features(**moved, return_dict=True)
        pooled = out.pooler_output
        rows = pooled.flatten(0, 1) if isinstance(pooled, Tensor) else torch.cat(list(pooled))
        deep = [torch.cat(list(level)) for level in getattr(out, "deepstack_features", None) or ()]
        return rows.float().cpu(), [level.to("cpu", torch.float32) for level in deep]

    def pixels(self, volume: ImageVolume) -> tuple[dict[str, Tensor], tuple[int, int, int]]:
        """What the vision tower is given of a study, on the model's device, and the shape of its grid."""
        prepared = self._prepare(volume, self.pace)
        return self._given(prepared.pixels), prepared.geometry.shape

    def _given(self, pixels: NDArray[np.float32]) -> dict[str, Tensor]:
        given = self._process(pixels)
        moved = {name: given[name].to(self.model.device) for name in _VISION if name in given}
        moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        return moved

    def _process(self, pixels: NDArray[np.float32], text: str | None = None) -> Any:
        """What the family's processor makes of slices (d, h, w) in [0, 1] and of a text, which names each once."""
        d, h, w = pixels.shape
        size, tiles = self._size((h, w))
        framed = pixels[:, self._shown(h, size[0])][:, :, self._shown(w, size[1])]
        pictures = [np.repeat((plane * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=-1) for plane in framed]
        arguments = self.family.arguments(self.model.config, size, tiles)
        return self.processor(
            images=[pictures],
            text=[self.processor.image_token * d if text is None else text],
            add_special_tokens=text is None or not begins_itself(self.processor, text),
            return_tensors="pt",
            return_text_replacement_offsets=True,
            **arguments,
        )

    def _layout(self, shape: tuple[int, int, int]) -> Layout:
        """Where the tokens of a grid (gd, gh, gw) stand among the feature rows of its pictures."""
        gd, gh, gw = shape
        pixels = gh * self.patch, gw * self.patch
        given = self._process(np.zeros((gd, *pixels), np.float32))
        _, tiles = self._size(pixels)
        whole = (
            (gh, gw) if self.seen is None else (tiles[0] * self.seen // self.patch, tiles[1] * self.seen // self.patch)
        )
        rows = self.family.rows(self.model.config, whole, tiles, gd == 1)
        starts = rows.total * np.arange(gd)
        token = (starts[:, None, None] + rows.token[None, :gh, :gw]).ravel()
        framing = (starts[:, None] + rows.framing).ravel()
        rest = np.setdiff1d(np.arange(rows.total * gd), token)
        placeholders = tuple(part["replacement"] for part in given["text_replacement_offsets"][0])
        encoded = {name: given[name] for name in _VISION if name in given and name not in _PIXELS}
        where = [torch.from_numpy(part) for part in (token, framing, rest)]
        return Layout(where[0], where[1], where[2], placeholders, encoded)

    def long_side(self, single: bool, pace: Pace) -> int:
        """Pixels of the longer side of a picture, as it is seen. single: it is no slice of a volume."""
        if self.seen is None:
            return self.patch * math.isqrt(pace.tokens)
        return self.seen * (min(self.family.tiles, pace.tiles) if single else 1)

    def _size(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """A picture's size (h, w) as the family takes it, and the tiles (rows, columns) that it is cut into."""
        if self.side is None or self.seen is None:
            return size, (1, 1)
        r, c = -(-size[0] // self.seen), -(-size[1] // self.seen)
        return (r * self.side, c * self.side), (r, c)

    def _shown(self, n: int, whole: int) -> NDArray[np.int64]:
        """Which of n pixels each of `whole` shows: what no token covers, of a tile or a border, repeats the last."""
        at = np.arange(whole)
        if self.side is not None and self.seen is not None:
            at = at // self.side * self.seen + np.minimum(at % self.side, self.seen - 1)
        return np.minimum(at, n - 1)


def thinned(depth: int, most: int) -> NDArray[np.int64]:
    """At most `most` slices of `depth`, each in the middle of an equal share."""
    n = min(depth, most)
    return np.asarray(np.floor((np.arange(n) + 0.5) * depth / n), dtype=np.int64)


def _spread(geometry: Any, volume: ImageVolume, n: int) -> Any:
    """The geometry of n slices of a volume's D, each standing for D / n of them."""
    share = volume.shape[0] / n
    uvw_to_ijk = geometry.uvw_to_ijk.copy()
    uvw_to_ijk[2, 2], uvw_to_ijk[2, 3] = share, share / 2 - 0.5
    return replace(
        geometry,
        patch=(*geometry.patch[:2], share),
        uvw_to_ijk=uvw_to_ijk,
        uvw_to_lps=volume.ijk_to_lps @ uvw_to_ijk,
    )
