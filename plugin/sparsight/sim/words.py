"""Every sentence the simulator can say: templates of questions and rationales, and how they are filled."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from sparsight.sim.config import KINDS
from sparsight.sim.place import QUADRANTS, THIRDS

NUMBERS = ("no", "one", "two", "three")
REGIONS = {
    "": "",
    **{q: f"in the {q}" for q in QUADRANTS},
    **{h: f"in the {h} half" for h in ("left", "right", "upper", "lower")},
    **{t: f"in the {t}" for t in THIRDS},
}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "exists": ("Is there {a} {region}?", "Do you see {a} {region}?", "Can {a} be seen {region}?"),
    "what": ("What is the finding {region}?", "What do you see {region}?", "Which finding lies {region}?"),
    "where": ("Where is the {kind}?", "In which quadrant is the {kind}?", "Which quadrant holds the {kind}?"),
    "side": ("On which side is the {kind}?", "Is the {kind} on the left or on the right?"),
    "count": ("How many {kinds} are there?", "How many {kinds} do you see?", "Count the {kinds}."),
    "larger": ("Which is larger, the {kind} or the {other}?", "Is the {kind} or the {other} larger?"),
    "larger_side": (
        "Is the {kind} on the left larger than the one on the right?",
        "Is the left {kind} larger than the right one?",
    ),
    "more": ("Which side has more findings?", "Are there more findings on the left or on the right?"),
    "brightness": ("Is the {kind} bright or dark?", "Is the {kind} brighter or darker than its surroundings?"),
    "edge": ("Is the edge of the {kind} sharp or smooth?", "Does the {kind} have a sharp or a smooth edge?"),
    "level": ("In which third of the slices is the {kind}?", "Which third of the slices holds the {kind}?"),
    "any_new": ("Is there a new finding?", "Has anything new appeared?", "Is anything new since the prior image?"),
    "new": (
        "Is there a new {kind}?",
        "Compared with the prior image, is there a new {kind}?",
        "Has a new {kind} appeared?",
    ),
    "what_new": (
        "What is new in the current image?",
        "Which finding is new?",
        "What is new compared with the prior image?",
    ),
    "where_new": (
        "Where is the new {kind}?",
        "In which quadrant is the new {kind}?",
        "Which quadrant holds the new {kind}?",
    ),
    "grown": (
        "Has the {kind} grown since the prior image?",
        "Is the {kind} larger than in the prior image?",
        "Has the {kind} grown?",
    ),
    "still": (
        "Is the {kind} still there?",
        "Is the {kind} of the prior image still there?",
        "Can the {kind} still be seen?",
    ),
}
RATIONALES: dict[str, tuple[str, ...]] = {
    "exists": ("I see {a} in the {quadrant}.", "I see no {kind} {region}."),
    "what": ("The finding {region} is {a}.",),
    "where": ("I see {a} in the {quadrant}.",),
    "side": ("I see {a} in the {quadrant}. That is the {side} side.",),
    "count": (
        "I see {number} {kinds}.",
        "{kinds} in the {places}: {number}.",
    ),
    "larger": ("The {kind} in the {quadrant} is larger than the {other} in the {place}.",),
    "larger_side": ("The {kind} on the {side} is the larger one.",),
    "more": ("I count {left} on the left and {right} on the right.",),
    "brightness": ("The {kind} in the {quadrant} is {word} than its surroundings.",),
    "edge": ("The {kind} in the {quadrant} has a {word} edge.",),
    "level": ("I see {a} in the {third}.",),
    "any_new": ("The {kind} in the {quadrant} is new.", "Nothing new is seen."),
    "new": (
        "The {kind} in the {quadrant} is new.",
        "The {kind} in the {quadrant} was there before.",
        "The {kind} in the {quadrant} is gone.",
        "I see no {kind}.",
    ),
    "what_new": ("The {kind} in the {quadrant} is new.",),
    "where_new": ("The {kind} in the {quadrant} is new.",),
    "grown": (
        "The {kind} in the {quadrant} is larger now.",
        "The {kind} in the {quadrant} is smaller now.",
        "The {kind} in the {quadrant} has the same size.",
    ),
    "still": ("The {kind} in the {quadrant} is still there.", "The {kind} in the {quadrant} is gone."),
}
COUNTS = ("0", "1", "2", "3")
WORDS = ("brighter", "darker", "sharp", "smooth")


def article(kind: str) -> str:
    """`a ring`, `an opacity`."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def plural(kind: str) -> str:
    """The plural of a kind's name."""
    return {"opacity": "opacities", "mass": "masses"}.get(kind, kind + "s")


def fill(template: str, **words: str) -> str:
    """Fill a template; the gap that an empty region leaves is closed."""
    return template.format(**words).replace("  ", " ").replace(" ?", "?").replace(" .", ".").strip()


def texts() -> Iterator[str]:
    """Every question, rationale and answer that can occur, with repetitions: to train a tokenizer on.

    Only the places of a count's rationale are left to their order: all words are there, not every list of places.
    """
    slots = {"region": [*REGIONS.values()], "quadrant": [*QUADRANTS], "third": [*THIRDS], "side": ["left", "right"]}
    slots |= {"other": [*KINDS], "place": [*QUADRANTS], "places": [", ".join(QUADRANTS)], "word": [*WORDS]}
    digits = [str(n) for n in range(9)]
    slots |= {"number": [*NUMBERS], "left": digits, "right": digits}
    for group in (TEMPLATES, RATIONALES):
        for template in (t for ts in group.values() for t in ts):
            names = [name for name in slots if f"{{{name}}}" in template]
            of_kind = any(f"{{{name}}}" in template for name in ("a", "kind", "kinds"))
            for kind in KINDS if of_kind else KINDS[:1]:
                for kinds in (kind, plural(kind)) if "{kinds}" in template else ("",):
                    named = {"a": article(kind), "kind": kind, "kinds": kinds}
                    for values in product(*(slots[name] for name in names)):
                        yield fill(template, **named, **dict(zip(names, values, strict=True)))
    yield from (*KINDS, *QUADRANTS, *THIRDS, *COUNTS, *WORDS, "left", "right", "yes", "no", "bright", "dark")
