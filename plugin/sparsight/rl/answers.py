"""When are two answers the same, and when does one say that nothing is there?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

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

    The usual normalisation of question answering (Rajpurkar et al. 2016, arXiv 1606.05250); equal texts are their exact
    match, which VQA-RAD, SLAKE and PathVQA are scored by.
    A decimal point between digits stays.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\0", " ")
    text = re.sub(r"(?<=\d)[.](?=\d)", "\0", text)
    text = "".join(c if c == "\0" or not unicodedata.category(c).startswith(("P", "S")) else " " for c in text)
    words = _ARTICLES.sub(" ", text.replace("\0", ".")).split()
    return " ".join(_NUMBERS.get(word, word) for word in words)


def is_right(said: str, right: str, choices: Sequence[str] = ()) -> bool:
    """Whether two answers are the same, normalised; of choices that no more than a mark tells apart, word for word.

    "HER2+" and "HER2-" normalise alike: where both can be chosen, one is not the other.
    """
    if normalise(said) != normalise(right):
        return False
    alike = [choice for choice in choices if normalise(choice) == normalise(right)]
    return len(alike) < 2 or said.strip().lower() == right.strip().lower()


def choice_of(said: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names, in the choice's own spelling; None where it names none."""
    return next((choice for choice in choices if is_right(said, choice, choices)), None)


def overlap(said: str, right: str) -> tuple[float, float]:
    """Recall and F1 of the words of an open answer, normalised: two shares, 0..1.

    Recall: share of the right answer's words that were said (LLaVA-Med, Li et al. 2023, arXiv 2306.00890, for open
    questions). F1: with the share of the said words that are right (Rajpurkar et al. 2016). Both differ from their
    sources in our normalisation (number words as digits), and recall counts a repeated word as often as both have it.
    Chinese is not split into words: there both are 1 for the same answer and else 0.
    """
    words, wanted = Counter(normalise(said).split()), Counter(normalise(right).split())
    if not words or not wanted:
        return float(words == wanted), float(words == wanted)
    common = (words & wanted).total()
    return common / wanted.total(), 2 * common / (words.total() + wanted.total())


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
