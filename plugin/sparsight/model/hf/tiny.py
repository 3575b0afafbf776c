"""Tiny random models of every family, whole with processor and tokenizer: for proofs without a download.

They have each family's own classes and wiring, and nothing that was ever learned. Sizes are such that NF4 can hold
every layer (in_features divisible by 64) and that a picture becomes a few dozen tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SIDE = 64  # pixels of a picture's side where a family fixes it
PATCH = 8
_HIDDEN = 64
_TEXT = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "attention_dropout": 0.0,
}
_VISION = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
# "{image}" stands once for each image; {end} ends a turn. Written for these models; real ones bring their own.
_CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '@image@' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)

_Made = tuple[Any, Any]  # config, processor


def families() -> tuple[str, ...]:
    """The `model_type` of every family that there is a tiny model of."""
    return tuple(_MAKERS)


def tiny(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A random model of a family in float32, in eval mode, and its processor."""
    config, processor = _MAKERS[family]()
    config.text_config.eos_token_id = config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<end>")
    config.text_config.pad_token_id = config.pad_token_id = processor.tokenizer.pad_token_id
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    for name, weight in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma's begins at zero: no picture would be seen
            torch.nn.init.normal_(weight, std=0.1)
    model.get_output_embeddings().weight.data *= 10  # else none of its answers could ever be likely, whatever it learns
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model.float().eval(), processor


def save_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a tiny model as a hospital would bring one: config, safetensors, processor, tokenizer."""
    model, processor = tiny(family, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(image: str, **special: str) -> Any:
    """Bytes as they are, and a family's special tokens by the attribute it looks for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"image_token": image} | special
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<start>",
        extra_special_tokens=named,
        padding_side="left",
    )
    fast.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]}, replace_extra_special_tokens=False)
    fast.chat_template = None
    return fast


def _chat(image: str) -> str:
    return _CHAT.replace("@image@", image)


def _size(tokenizer: Any) -> int:
    return -(-len(tokenizer) // 64) * 64


def _qwen(version: str) -> _Made:
    image = "<|image_pad|>"
    framed = f"<|vision_start|>{image}<|vision_end|>"
    tokenizer = _tokenizer(
        image, video_token="<|video_pad|>", vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>"
    )
    text = _TEXT | {"vocab_size": _size(tokenizer), "rope_parameters": _mrope()}
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": _HIDDEN,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": _HIDDEN,
        "patch_size": PATCH,
    }
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids(image),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    pictures = transformers.Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 16 * PATCH**2, "longest_edge": 4096 * PATCH**2}
    )
    config: Any
    if version == "2.5":
        vision |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        video = transformers.Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2)
        processor = transformers.Qwen2_5_VLProcessor(pictures, tokenizer, video, chat_template=_chat(framed))
    else:
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        config = transformers.Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision, **ids)
        video = transformers.Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=2)
        processor = transformers.Qwen3VLProcessor(pictures, tokenizer, video, chat_template=_chat(framed))
    return config, processor


def _mrope() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def _gemma3() -> _Made:
    tokenizer = _tokenizer("<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    config = transformers.Gemma3Config(
        text_config=_TEXT | {"vocab_size": _size(tokenizer), "head_dim": 16, "sliding_window": 4096},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_VISION},
        mm_tokens_per_image=16,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    pictures = transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    chat = _chat("<start_of_image>")
    return config, transformers.Gemma3Processor(pictures, tokenizer, chat_template=chat, image_seq_length=16)


def _llava() -> _Made:
    tokenizer = _tokenizer("<image>")
    config = transformers.LlavaConfig(
        text_config=_TEXT | {"model_type": "llama", "vocab_size": _size(tokenizer)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": _HIDDEN, **_VISION},
        image_token_id=tokenizer.image_token_id,
        image_seq_length=64,
    )
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=_chat("<image>"),
        num_additional_image_tokens=1,
    )
    return config, processor


def _llava_onevision() -> _Made:
    tokenizer = _tokenizer("<image>", video_token="<video>")
    points = [[SIDE * h, SIDE * w] for h in (1, 2, 3) for w in (1, 2, 3)]
    config = transformers.LlavaOnevisionConfig(
        text_config=_TEXT | {"model_type": "qwen2", "vocab_size": _size(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_VISION},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=points,
    )
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(
            size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=points, do_pad=True
        ),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>"),
    )
    return config, processor


def _tiled_tokenizer() -> Any:
    grid = {f"row_{r}_col_{c}": f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)}
    return _tokenizer(
        "<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
        **grid,
    )


def _idefics3() -> _Made:
    tokenizer = _tiled_tokenizer()
    config = transformers.Idefics3Config(
        text_config=_TEXT | {"model_type": "llama", "vocab_size": _size(tokenizer)},
        vision_config=_VISION | {"model_type": "idefics3_vision"},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    pictures = transformers.Idefics3ImageProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    return config, transformers.Idefics3Processor(pictures, tokenizer, image_seq_len=16, chat_template=_chat("<image>"))


def _smolvlm() -> _Made:
    tokenizer = _tiled_tokenizer()
    config = transformers.SmolVLMConfig(
        text_config=_TEXT | {"model_type": "llama", "vocab_size": _size(tokenizer)},
        vision_config=_VISION | {"model_type": "smolvlm_vision"},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    pictures = transformers.SmolVLMImageProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    video = transformers.SmolVLMVideoProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, num_frames=1, fps=1
    )
    return config, transformers.SmolVLMProcessor(
        pictures, tokenizer, video, image_seq_len=16, chat_template=_chat("<image>")
    )


def _internvl() -> _Made:
    tokenizer = _tokenizer(
        "<IMG_CONTEXT>",
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    config = transformers.InternVLConfig(
        text_config=_TEXT | {"model_type": "qwen2", "vocab_size": _size(tokenizer)},
        vision_config=_VISION | {"model_type": "internvl_vision"},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": SIDE, "width": SIDE}, crop_to_patches=False),
        tokenizer,
        transformers.InternVLVideoProcessor(size={"height": SIDE, "width": SIDE}),
        image_seq_length=16,
        chat_template=_chat("<IMG_CONTEXT>"),
    )
    return config, processor


def _paligemma() -> _Made:
    tokenizer = _tokenizer("<image>")
    config = transformers.PaliGemmaConfig(
        text_config=_TEXT | {"model_type": "gemma", "vocab_size": _size(tokenizer) + 1280, "head_dim": 16},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_VISION},
        image_token_index=tokenizer.image_token_id,
        projection_dim=_HIDDEN,
        hidden_size=_HIDDEN,
    )
    pictures = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    pictures.image_seq_length = 64
    return config, transformers.PaliGemmaProcessor(pictures, tokenizer)


_MAKERS: dict[str, Callable[[], _Made]] = {
    "qwen2_5_vl": lambda: _qwen("2.5"),
    "qwen3_vl": lambda: _qwen("3"),
    "gemma3": _gemma3,
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "paligemma": _paligemma,
}
