"""A smol of tiny random parts: the real wiring, tower and recipe, without the wheels."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sparsight.model.policy import TokenPolicy
from sparsight.model.smol import SETTINGS
from sparsight.model.smol.convert import IMAGE, assemble
from sparsight.model.smol.load import load_base, ours, save_smol
from sparsight.model.smol.tower import LiteConfig, LiteTower

SIDE = 64
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def save_base(folder: Path) -> Path:
    """A converted folder of random weights, of 64 x 64 pixels and 64 tokens a picture."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|im_end|>", eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    torch.manual_seed(0)
    end = fast.eos_token_id
    config = transformers.LlamaConfig(vocab_size=320, eos_token_id=end, pad_token_id=end, **TINY)
    language = transformers.LlamaForCausalLM(config)
    tower = LiteTower(LiteConfig(image_size=SIDE))
    for part in tower.modules():  # their usual beginning would let next to nothing through eleven blocks
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
    trunk = {n: t for n, t in tower.state_dict().items() if n.startswith(("stem.", "blocks."))}
    return assemble(language.state_dict(), config, fast, trunk, folder, image_size=SIDE)


def save_trained(folder: Path, base: Path) -> Path:
    """A trained part for a converted folder, of random numbers that do something."""
    from sparsight.config import ModelConfig

    reader = load_base(base, ModelConfig(**SETTINGS))
    torch.manual_seed(1)
    vision = {
        n: torch.randn(t.shape) * (0.5 if t.ndim == 1 else t[0].numel() ** -0.5) for n, t in ours(reader.model).items()
    }
    writer = reader.writer(2)
    adapter = {n: a + 0.01 for n, a in writer.to_arrays().items()}
    hidden = reader.model.config.get_text_config().hidden_size
    save_smol(folder, base, vision, TokenPolicy(hidden, 2 * hidden, prior=7, normed=True).to_arrays() | adapter)
    return folder
