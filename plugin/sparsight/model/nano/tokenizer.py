"""Words to numbers for the nano reader: a byte-level BPE of at most 2,048 pieces. Any script can be written in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, QUESTION, THINK, END_THINK, ANSWER, END_ANSWER = 0, 1, 2, 3, 4, 5
SPECIAL = ("<pad>", "<question>", "<think>", "</think>", "<answer>", "</answer>")
_WORD = re.compile(r"[^\W\d_]+")


def train_tokenizer(texts: Iterable[str], *, size: int = 2048) -> Tokenizer:
    """Learn the pieces from the texts a reader is trained on. Deterministic for the same texts in the same order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256 bytes: no text is out of vocabulary
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Pieces of a text. Text that spells a special token stays text: nobody closes the question from inside."""
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def decode_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of pieces, special tokens left out."""
    text: str = tokenizer.decode([i for i in ids if i >= len(SPECIAL)])
    return text.strip()


def words(text: str) -> list[str]:
    """Lower-case words without numbers and marks."""
    return _WORD.findall(text.lower())


def known_words(questions: Iterable[str], *, at_least: int = 3) -> tuple[str, ...]:
    """Words a reader has met often enough in questions to be asked about: sorted."""
    count = Counter(word for question in questions for word in words(question))
    return tuple(sorted(word for word, n in count.items() if n >= at_least))


def load_tokenizer(data: bytes) -> Any:
    """Read tokenizer.json."""
    return Tokenizer.from_str(data.decode("utf-8"))
