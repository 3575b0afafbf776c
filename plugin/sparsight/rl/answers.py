"""When are two answers the same, and when does one say that nothing is there?"""

from __future__ import annotations

import re
import unicodedata

from sparsight.types import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}
_NONE = frozenset({"no", "not", "none", "nothing", "nowhere", "0", "neither", "absent", "negative"})
_OF_ALL = frozenset(("many", "count", "number", "more", "most", "fewer", "larger", "largest", "bigger", "smaller"))
_SOUND = frozenset({"normal", "clear", "unremarkable", "healthy"})


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


def is_of_all(question: Question, answer: str) -> bool:
    """Whether an answer counts or compares, so that a part of a study that was not looked at could change it."""
    words = {*normalise(question.text).split(" "), *normalise(answer).split(" ")}
    return bool(words & _OF_ALL) or any(word.isdigit() for word in words)


def is_negative(question: Question, answer: str) -> bool:
    """Whether an answer says that nothing is there: what a language model also says when its evidence was pruned away.

    It begins with a word of nothing (no, none, 0 nodules), is one of normality, or is the yes to a question that ends
    in one ("Are the lungs clear?").
    """
    said = normalise(answer)
    if said in _SOUND or said.split(" ")[0] in _NONE:
        return True
    asked = normalise(question.text).split(" ")
    return question.kind == "yes_no" and said == "yes" and asked[-1] in _SOUND
