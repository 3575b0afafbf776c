"""What differs between families of vision-language models: where the tokens of a picture lie, and a few arguments.

The default serves LLaVA, whose picture is one square. Everything else goes one way for all (model.hf.prompts):
transformers takes encoded images (`mm_encoder_outputs`) beside the placeholders of `input_ids`.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Rows:
    """Which feature rows of one picture are its tokens, and which are something else.

    token: (v, u) int64, the feature row of each token of the picture, as it lies on it. total: rows in all. framing:
    (m,) rows that are no token and stay whatever is kept (ends of lines). What is in neither (a second, coarser view of
    the whole picture, tokens of a border) is in the prompt only where every token is kept.
    """

    token: NDArray[np.int64]
    total: int
    framing: NDArray[np.int64]


class Family:
    """The default: one square picture of `vision_config.image_size`, a row for each patch, line by line."""

    tiles = 1  # the most tiles along a side that a picture may be cut into
    answer_type = 0  # token type of what follows the prompt
    listed = True  # its vision tower gives a list of pictures, not one tensor

    def side(self, config: Any) -> int | None:
        """Pixels of the side of a tile; None: pictures of any size that is a multiple of `patch`."""
        return _one(config.vision_config.image_size)

    def patch(self, config: Any) -> int:
        """Pixels of a token's side."""
        return _one(config.vision_config.patch_size)

    def along(self, config: Any) -> int:
        """Tokens along the side of a tile. The pixels that are left (6 of 384 by 14) are part of none."""
        return _one(config.vision_config.image_size) // self.patch(config)

    def arguments(self, config: Any, size: tuple[int, int], tiles: tuple[int, int]) -> dict[str, Any]:
        """For the image processor, so that a picture of exactly `size` (height, width) stays as it is.

        tiles: (rows, columns) that it is cut into.
        """
        return {}

    def rows(self, config: Any, grid: tuple[int, int], tiles: tuple[int, int], alone: bool) -> Rows:
        """Feature rows of one picture. grid: tokens (gh, gw) of the whole of it; alone: the only one of its prompt."""
        return Rows(np.arange(math.prod(grid)).reshape(grid), math.prod(grid), _NONE)

    def positions(self, model: Any, ids: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """Of all tokens of an unpruned prompt, ids (L,): (P, L), P = 1, or what the family's rotary embedding takes."""
        return torch.arange(len(ids)).unsqueeze(0)

    def types(self, config: Any, ids: Tensor) -> Tensor | None:
        """Token types of a prompt, (L,), by which some families choose who attends to whom."""
        return None

    def write(self, processor: Any, messages: list[dict[str, Any]]) -> str:
        """The prompt as text for the family's processor, one image token for each picture, ready for the answer."""
        return _chat(processor, messages, add_generation_prompt=True)

    def end(self, processor: Any, ends: frozenset[int]) -> int:
        """Which of the tokens that end a text ends an answer: the one that the chat template writes after it.

        A model may name several, and the first is often the end of a document, which never follows an answer.
        """
        tokenizer, parts = processor.tokenizer, [{"type": "text", "text": "yes"}]
        turns = [{"role": role, "content": parts} for role in ("user", "assistant")]
        with suppress(ConfigError):
            ids = tokenizer(_chat(processor, turns), add_special_tokens=False)["input_ids"]
            if said := [token for token in ids if token in ends]:
                return int(said[-1])
        return int(tokenizer.eos_token_id) if tokenizer.eos_token_id in ends else min(ends)

    def frame(self, processor: Any, text: str) -> str:
        """The text with what the family's processor itself puts around it."""
        return text


class _Qwen(Family):
    """Pictures of any size; merge x merge patches become a token; positions are (time, row, column)."""

    def side(self, config: Any) -> int | None:
        return None

    def patch(self, config: Any) -> int:
        return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)

    def arguments(self, config: Any, size: tuple[int, int], tiles: tuple[int, int]) -> dict[str, Any]:
        return {"size": {"shortest_edge": math.prod(size), "longest_edge": math.prod(size)}}

    def positions(self, model: Any, ids: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        """(4, L): the place in the text, then time, row and column."""
        kind = (ids == model.config.image_token_id).int()
        places, _ = model.model.get_rope_index(
            ids[None], mm_token_type_ids=kind[None], image_grid_thw=encoded["image_grid_thw"]
        )
        return torch.cat([torch.arange(len(ids)).unsqueeze(0), places[:, 0].cpu()])


class _Gemma3(Family):
    """The patches of a picture are averaged to `mm_tokens_per_image` tokens."""

    listed = False

    def patch(self, config: Any) -> int:
        pixels = super().patch(config)
        return pixels * (_one(config.vision_config.image_size) // pixels // math.isqrt(config.mm_tokens_per_image))

    def types(self, config: Any, ids: Tensor) -> Tensor | None:
        """1 for visual tokens: those of one picture all see each other."""
        visual: Tensor = ids == config.image_token_id
        return visual.long()


class _PaliGemma(Family):
    """No chat: the picture, then a line; all of it sees each other, the answer is causal. Positions from one."""

    answer_type = 1
    listed = False

    def types(self, config: Any, ids: Tensor) -> Tensor | None:
        return torch.zeros_like(ids)

    def positions(self, model: Any, ids: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        return torch.arange(1, len(ids) + 1).unsqueeze(0)

    def write(self, processor: Any, messages: list[dict[str, Any]]) -> str:
        parts = [part for message in messages for part in message["content"]]
        images = sum(part["type"] == "image" for part in parts)
        words = " ".join(part["text"] for part in parts if part["type"] == "text")
        return f"{processor.image_token * images}answer en {words}"

    def frame(self, processor: Any, text: str) -> str:
        first = text.rfind(processor.image_token) + len(processor.image_token)
        return f"{text[:first]}{processor.tokenizer.bos_token}{text[first:]}\n"


def _chat(processor: Any, messages: list[dict[str, Any]], **how: Any) -> str:
    """A conversation as the model's own template writes it. Raises ConfigError."""
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise ConfigError(
            "a model without a chat template",
            expected="chat_template.jinja, or chat_template in its processor or tokenizer configuration",
            todo="copy it from where the model was published",
        )
    try:
        text: str = processor.apply_chat_template(messages, tokenize=False, **how)
    except Exception as error:  # a template may do anything
        raise ConfigError(
            f"a chat template that does not write pictures and text ({type(error).__name__})",
            expected="one that takes a message as a list of parts",
            todo="use the template that the model was published with",
        ) from error
    return text


def begins_itself(processor: Any, text: str) -> bool:
    """Whether a prompt has its own first special token: then the tokenizer must not add one (as transformers does)."""
    bos = processor.tokenizer.bos_token
    return bool(bos) and text.startswith(bos)


class _Shuffled(Family):
    """Pixel shuffle: r x r patches become a token. Tiles come line by line, then one view of the whole picture."""

    tiles = 4

    def shuffle(self, config: Any) -> int:
        return int(config.scale_factor)

    def patch(self, config: Any) -> int:
        return super().patch(config) * self.shuffle(config)

    def rows(self, config: Any, grid: tuple[int, int], tiles: tuple[int, int], alone: bool) -> Rows:
        token = _tiled(grid, tiles)
        view = token.size // math.prod(tiles) if math.prod(tiles) > 1 else 0
        return Rows(token, token.size + view, _NONE)


class _Idefics3(_Shuffled):
    def arguments(self, config: Any, size: tuple[int, int], tiles: tuple[int, int]) -> dict[str, Any]:
        side = _one(config.vision_config.image_size)
        return {
            "size": {"longest_edge": max(size)},
            "max_image_size": {"longest_edge": side},
            "do_image_splitting": math.prod(tiles) > 1,
        }


class _InternVL(_Shuffled):
    listed = False

    def shuffle(self, config: Any) -> int:
        ratio: float = config.downsample_ratio
        return round(1 / ratio)

    def arguments(self, config: Any, size: tuple[int, int], tiles: tuple[int, int]) -> dict[str, Any]:
        n = math.prod(tiles)
        return {"crop_to_patches": n > 1, "min_patches": n, "max_patches": n}


class _OneVision(Family):
    """The whole picture, then its tiles as one raster whose lines each end in a row of their own.

    Of several pictures in one prompt there is only the first part, with one such row after each.
    """

    tiles = 3

    def rows(self, config: Any, grid: tuple[int, int], tiles: tuple[int, int], alone: bool) -> Rows:
        gh, gw = grid
        if not alone:
            return Rows(np.arange(gh * gw).reshape(grid), gh * gw + 1, np.array([gh * gw]))
        view = gh * gw // math.prod(tiles)
        raster = view + np.arange(gh * (gw + 1)).reshape(gh, gw + 1)
        return Rows(raster[:, :-1], view + raster.size, raster[:, -1])


def family_of(model_type: str) -> Family:
    """The family of a model by the `model_type` of its config. Raises ConfigError for one that is not known."""
    if model_type not in FAMILIES:
        raise ConfigError(
            f"a model of type {str(model_type)[:40]!r}",
            expected=", ".join(sorted(FAMILIES)),
            todo="choose one of these",
        )
    return FAMILIES[model_type]


def _one(value: Any) -> int:
    """A side that some configurations give twice."""
    return int(value if isinstance(value, int) else value[0])


def _tiled(grid: tuple[int, int], tiles: tuple[int, int]) -> NDArray[np.int64]:
    """Feature rows (gh, gw) of a picture whose tiles (rows, columns) come one after the other."""
    (gh, gw), (r, c) = grid, tiles
    rows = np.arange(gh * gw).reshape(r, c, gh // r, gw // c)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(grid)


_NONE = np.empty(0, np.int64)
FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": _Qwen(),
    "qwen3_vl": _Qwen(),
    "gemma3": _Gemma3(),
    "llava": Family(),
    "llava_onevision": _OneVision(),
    "idefics3": _Idefics3(),
    "smolvlm": _Idefics3(),
    "internvl": _InternVL(),
    "paligemma": _PaliGemma(),
}
