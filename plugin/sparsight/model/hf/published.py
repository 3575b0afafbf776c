"""The sizes of one well-known model of each family, after the configurations they were published with.

To compute what such a model costs without having it: the structure is built on torch's meta device, without weights.
"""

from __future__ import annotations

from typing import Any

import transformers


def published() -> dict[str, tuple[str, Any]]:
    """By `model_type`: the model, and its configuration as far as its costs depend on it."""
    qwen = _text(3584, 18944, 28, 28, 4, 152_064)
    siglip = _vision(1152, 4304, 27, 16) | {"model_type": "siglip_vision_model", "vision_use_head": False}
    qwen3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    qwen25 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    clip = _vision(1024, 4096, 24, 16) | {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    intern = _vision(1024, 4096, 24, 16) | {"model_type": "internvl_vision", "image_size": 448, "patch_size": 14}
    points = [[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)]
    return {
        "qwen2_5_vl": (
            "Qwen2.5-VL-7B (Lingshu-7B)",
            transformers.Qwen2_5_VLConfig(text_config=qwen, vision_config=qwen25),
        ),
        "qwen3_vl": (
            "Qwen3-VL-8B",
            transformers.Qwen3VLConfig(
                text_config=_text(4096, 12288, 36, 32, 8, 151_936) | {"head_dim": 128}, vision_config=qwen3
            ),
        ),
        "gemma3": (
            "Gemma 3 4B (MedGemma 4B)",
            transformers.Gemma3Config(
                text_config=_text(2560, 10240, 34, 8, 4, 262_208) | {"head_dim": 256},
                vision_config=siglip | {"image_size": 896, "patch_size": 14},
                mm_tokens_per_image=256,
            ),
        ),
        "llava": (
            "LLaVA-1.5-7B",
            transformers.LlavaConfig(
                text_config=_text(4096, 11008, 32, 32, 32, 32_064) | {"model_type": "llama"}, vision_config=clip
            ),
        ),
        "llava_onevision": (
            "LLaVA-OneVision-7B",
            transformers.LlavaOnevisionConfig(
                text_config=qwen | {"model_type": "qwen2"},
                vision_config=siglip | {"num_hidden_layers": 26, "image_size": 384, "patch_size": 14},
                image_grid_pinpoints=points,
            ),
        ),
        "idefics3": (
            "Idefics3-8B",
            transformers.Idefics3Config(
                text_config=_text(4096, 14336, 32, 32, 8, 128_259) | {"model_type": "llama"},
                vision_config=_vision(1152, 4304, 27, 16) | {"image_size": 364, "patch_size": 14},
                scale_factor=2,
            ),
        ),
        "smolvlm": (
            "SmolVLM-2.2B",
            transformers.SmolVLMConfig(
                text_config=_text(2048, 8192, 24, 32, 32, 49_280) | {"model_type": "llama"},
                vision_config=_vision(1152, 4304, 27, 16) | {"image_size": 384, "patch_size": 14},
                scale_factor=3,
            ),
        ),
        "internvl": (
            "InternVL3-8B",
            transformers.InternVLConfig(
                text_config=_text(3584, 18944, 28, 28, 4, 151_674) | {"model_type": "qwen2"}, vision_config=intern
            ),
        ),
        "paligemma": (
            "PaliGemma-3B 448",
            transformers.PaliGemmaConfig(
                text_config=_text(2048, 16384, 18, 8, 1, 257_216) | {"model_type": "gemma", "head_dim": 256},
                vision_config=siglip | {"image_size": 448, "patch_size": 14},
                projection_dim=2048,
            ),
        ),
    }


def _text(hidden: int, inner: int, layers: int, heads: int, kv: int, words: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words,
    }


def _vision(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
