"""What is said to the reader: words rather than bare numbers, the same as on the server's own page."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from .stream import Heard

Json = dict[str, Any]
RESEARCH = "Research use only: not for diagnosis."
NO_REVIEW = "Your login may look and ask; who reviews, or adds images, logs in with another role."


def confidence(p: float) -> str:
    """A calibrated probability in words."""
    if p >= 0.9:
        words = "very likely right"
    elif p >= 0.75:
        words = "likely right"
    else:
        words = "more likely right than not" if p >= 0.6 else "uncertain"
    return f"{words} (about {round(p * 10)} in 10)"


_STAGES = {
    "loading": "loading the study",
    "encoding": "looking at the images",
    "selecting": "choosing what to read",
    "reading": "reading",
    "rechecking": "in doubt: re-checking with more tokens",
}


def stage(name: str) -> str:
    """What the server does meanwhile."""
    return _STAGES.get(name, name)


def kept(n: int, total: int) -> str:
    """How much of the image was looked at."""
    return f"{n} of {total} tokens ({100 * n / total:.1f} %)"


def heard_html(heard: Heard) -> str:
    """An answer as far as it has come."""
    how_far = stage(heard.stage) + (f": {kept(heard.kept, heard.total)}" if heard.total else "")
    parts = [f"<p>{escape(heard.question)}</p>", f"<h3>{escape(heard.answer or '…')}</h3>"]
    return "".join([*parts, f"<p><i>{escape(heard.reasoning)}</i></p>", f"<p>{escape(how_far)}</p>"])


def answer_html(answer: Json) -> str:
    """An answer with all that a reader must know to trust it or not."""
    said = "No answer" if answer["abstained"] else answer["answer"]
    parts = [f"<p>{escape(answer['question'])}</p>", f"<h3>{escape(said)}</h3>"]
    if answer["abstained"] and answer["answer"]:
        parts.append(f"<p>It leaned towards: {escape(answer['answer'])}</p>")
    if answer.get("reasoning"):
        parts.append(f"<p><i>{escape(answer['reasoning'])}</i></p>")
    parts += [f"<p><b>{name}:</b> {escape(text)}</p>" for name, text in _facts(answer)]
    return "".join(parts)


_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_OURS = re.compile(r"(nano|smol)\b")  # their words name places in the picture; another model may mean the patient


def _sides(answer: Json) -> list[tuple[str, str]]:
    """Whose left and right it is: said where a question or its answer names one."""
    if not any(_SIDE.search(answer.get(name) or "") for name in ("question", "answer", "reasoning")):
        return []
    if _OURS.match(answer.get("reader") or ""):
        return [("Left, right", "those of the picture, not of the patient")]
    return [("Left, right", "those of the picture or of the patient: this model does not say which")]


def _facts(answer: Json) -> list[tuple[str, str]]:
    budget, grounded, slices, recheck = (answer.get(k) for k in ("budget", "grounded", "slices", "recheck"))
    regions = len(answer["evidence"])
    facts = _sides(answer)
    facts += [("Confidence", "too low to answer" if answer["abstained"] else confidence(answer["confidence"]))]
    if grounded is None:
        facts.append(("Grounded", "not tested"))
    elif grounded:
        facts.append(("Grounded", "yes: without these regions the answer loses its support"))
    else:
        facts.append(("Not grounded", "the answer hardly depends on the regions shown"))
    if budget:
        share = kept(budget["kept"], budget["total"])
        facts.append(("Looked at", f"{share}, {regions} region{'' if regions == 1 else 's'}"))
    if slices:
        facts.append(("First look", f"{slices['encoded']} of {slices['total']} slices were encoded before this answer"))
    if recheck:
        facts.append(("Re-checked", recheck["note"]))
    facts += [("Note", note) for note in answer.get("notes") or ()]
    if policy := answer.get("policy"):
        facts.append(("Policy", policy["id"]))
    return facts


def marks(counts: dict[str, int], painted: bool) -> str:
    """What was marked: boxes by kind, and whether something was painted."""
    said = [f"{n} {kind}" for kind, n in counts.items() if n] + (["painted regions"] if painted else [])
    return f"Marked: {', '.join(said)}." if said else "No regions marked."


def difficulty(name: str) -> str:
    """How hard it is, as a line of a box; empty: not said."""
    return name or "how hard?"


def given(one: Json) -> str:
    """A review of the answer, by whomever, in one line of a list."""
    said = "cannot tell" if one.get("cannot_tell") else one.get("answer")
    learned = f", learned by {', '.join(one['learned_by'])}" if one["learned_by"] else ""
    return f"{one['reviewer']}: {one['verdict']}{f' ({said})' if said else ''}, {one['state']}{learned}"


def reward(replies: list[Json], draft: bool = False) -> str:
    """What a correction, sent in one part or several, was worth, or would be if it were submitted."""
    told = []
    for worth in (reply["reward"] for reply in replies):
        parts = ", ".join(f"{name} {value:+.2f}" for name, value in worth["parts"].items() if value is not None)
        told.append(f"{worth['total']:+.2f}{f' ({parts})' if parts else ''}")
    told += dict.fromkeys(note for reply in replies for note in reply.get("notes", ()))  # once, of however many parts
    return f"{'Kept as a draft' if draft else 'Recorded'}. Reward {'; '.join(told)}"


def error(given: str, expected: str, todo: str) -> str:
    """What went wrong, and what to do."""
    return f"{given[:1].upper()}{given[1:]}. Expected: {expected}. To do: {todo}."


def learning(job: Json | None) -> str:
    """How far learning is, or how it ended. None: it is not theirs to follow."""
    if job is None:
        return "Learning is followed and started by a trainer."
    stats, state = job.get("stats") or {}, job["state"]
    if state == "idle":
        return "Nothing was learned since the server started."
    if state == "running":
        how_far = f" {stats.get('done')} of {stats['total']}" if stats.get("total") else ""
        return f"Learning: {stats.get('stage') or 'starting'}{how_far}"
    error = stats.get("error") or {}
    why = stats.get("reasons") or [error.get("given") or "not promoted"]
    return f"Learning {state}: {'promoted' if stats.get('promoted') else '; '.join(map(str, why))}"


def policy(version: Json) -> str:
    """A policy version in one line of a list."""
    return f"{version['id']}  {version['state']}  {version['created'][:16].replace('T', ' ')}"


def earlier(answer: Json) -> str:
    """An earlier answer in one line of a list."""
    return f"{answer['question']} → {'no answer' if answer['abstained'] else answer['answer']}"
