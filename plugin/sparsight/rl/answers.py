"""When are two answers the same?"""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}


def normalise(text: str) -> str:
    """Lower case, compatibility forms, no punctuation or articles, number words as digits, single spaces.

    The usual normalisation of question answering (Rajpurkar et al. 2016), without their token-level F1.
    A decimal point between digits stays.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\0", " ")
    text = re.sub(r"(?<=\d)[.](?=\d)", "\0", text)
    text = "".join(c if c == "\0" or not unicodedata.category(c).startswith(("P", "S")) else " " for c in text)
    words = _ARTICLES.sub(" ", text.replace("\0", ".")).split()
    return " ".join(_NUMBERS.get(word, word) for word in words)
