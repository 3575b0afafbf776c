"""What a model is asked, and how its text is read. Rules only; the words are ours, the turns are the model's own.

Reasoning stands between <think> and </think>: reasoning models write it of their own accord, others are asked to.
"""

from __future__ import annotations

import re
from typing import Any

from sparsight.types import Question

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"

_THOUGHT = re.compile(r"(?:<think>)?(.*?)</think>", re.DOTALL | re.IGNORECASE)
_BETWEEN = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_SAID = re.compile(
    r"(?:^|\n|\.\s)\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is\s*)?:?\s*(.+?)\s*$", re.DOTALL | re.IGNORECASE
)
_END = re.compile(r"</think>|<answer>", re.IGNORECASE)
_HALF = re.compile(r"<[^<>\s]*$")  # may become a tag
_CHATTER = re.compile(r"<\|?[a-z_ ]+\|?>", re.IGNORECASE)  # a special token that was written out


_PAIR = "The first image is the prior, the second the current one."
_SLICES = "The images are slices of one study, in order."


def messages(question: Question, pictures: int, reasoned: bool, pair: bool = False) -> list[dict[str, Any]]:
    """One turn of a chat: what several pictures are, the pictures, then the question and the form of its answer.

    pair: the pictures are a prior and a current image. What they are is a sentence that holds where a model's own
    template puts all pictures first, too.
    """
    choices = question.answers
    words = [question.text.strip()]
    if choices and question.kind != "yes_no":
        words.append("Choices: " + "; ".join(choices) + ".")
    form = "one of the choices" if choices and question.kind != "yes_no" else "yes or no" if choices else "a few words"
    if reasoned:
        words.append(
            f"First reason about what the images show between {THINK} and {END_THINK}, "
            f"then answer with {form} between {ANSWER} and {END_ANSWER}."
        )
    else:
        words.append(f"Answer with {form} only.")
    content: list[dict[str, Any]] = [{"type": "image"} for _ in range(pictures)]
    if pictures > 1:
        content.insert(0, {"type": "text", "text": f"{_PAIR if pair else _SLICES}\n"})
    return [{"role": "user", "content": [*content, {"type": "text", "text": " ".join(words)}]}]


def parse(text: str) -> tuple[str, str]:
    """Reasoning and answer of what a model wrote.

    An answer in its tags, in a LaTeX box, after "Answer:", or else all that follows the reasoning; none where that was
    cut off.
    """
    text = text.strip()
    thought = _THOUGHT.match(text)
    if thought is None and text.lower().startswith(THINK):
        return text[len(THINK) :].strip(), ""
    rest = text[thought.end() :] if thought else text
    reasoning = thought.group(1).strip() if thought else ""
    for pattern in (_BETWEEN, _BOXED, _SAID):
        if found := pattern.search(rest):
            before = rest[: found.start()].strip()
            return (reasoning or before, _plain(found.group(1)))
    return reasoning, _plain(rest)


def thought(text: str) -> str:
    """The reasoning in a text that is still being written: it only grows, and never has a tag or half of one."""
    written = re.sub(r"^\s*(<think>\s*)?", "", text, flags=re.IGNORECASE)
    return _HALF.sub("", _END.split(written, maxsplit=1)[0])


def _plain(text: str) -> str:
    return _CHATTER.sub("", text).strip().strip("*").strip().rstrip(".").strip()
