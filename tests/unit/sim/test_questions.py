"""Questions: the answers follow from the findings, the masks cover what is asked, and text alone gives the prior."""

from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest

from sparsight.sim import KINDS, PRESETS, QUESTION_KINDS, SceneConfig, Simulator, texts
from sparsight.sim.words import plural

CONFIGS = {
    "image": SceneConfig(size=64),
    "many": SceneConfig(size=128, n_findings=(5, 8)),
    "volume": SceneConfig(size=64, depth=(8, 12)),
}


@cache
def scenes(name: str, count: int) -> tuple:
    simulator = Simulator(CONFIGS[name])
    return tuple(simulator.scene("train", i, seed=11) for i in range(count))


def named(text: str) -> list[str]:
    """The kinds that a question names, in order."""
    words = text.lower().replace("?", "").replace(".", "").replace(",", "").split()
    forms = {form: kind for kind in KINDS for form in (kind, plural(kind))}
    return [forms[w] for w in words if w in forms]


def region(text: str) -> list[str]:
    """The words of place in a question."""
    return [
        w
        for w in text.rstrip("?").split()
        if w in {"upper", "lower", "left", "right", "inferior", "middle", "superior"}
    ]


def inside(finding, places: list[str]) -> bool:
    return all(p in finding.quadrant.split() or p in finding.third.split() for p in places)


def expected(case, findings) -> str:
    """The answer, derived again from the text and the findings alone."""
    text, kinds = case.question.text, named(case.question.text)
    of_kind = [f for f in findings if kinds and f.kind == kinds[0]]
    match case.label:
        case "exists":
            return "yes" if any(inside(f, region(text)) for f in of_kind) else "no"
        case "what":
            (found,) = [f for f in findings if inside(f, region(text))]
            return found.kind
        case "where":
            return of_kind[0].quadrant
        case "side":
            return of_kind[0].quadrant.split()[1]
        case "level":
            return of_kind[0].third
        case "count":
            return str(len(of_kind))
        case "larger":
            return max((f for f in findings if f.kind in kinds), key=lambda f: int(f.local.sum())).kind
        case "larger_side":
            return "yes" if max(of_kind, key=lambda f: int(f.local.sum())).quadrant.endswith("left") else "no"
        case "more":
            left = sum("left" in f.quadrant for f in findings)
            return "left" if 2 * left > len(findings) else "right"
        case "brightness":
            return "bright" if of_kind[0].bright else "dark"
        case "edge":
            return "sharp" if of_kind[0].sharp else "smooth"
    raise AssertionError(case.label)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_answer_follows_from_the_findings(name):
    seen = Counter()
    for scene in scenes(name, 250):
        for case in scene.cases:
            assert case.answer == expected(case, scene.findings), case.question.text
            assert case.answer in case.question.choices
            seen[case.label] += 1
    assert set(seen) == set(QUESTION_KINDS) - (set() if name == "volume" else {"level"})


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mask_covers_exactly_the_findings_that_the_question_concerns(name):
    for scene in scenes(name, 250):
        for case in scene.cases:
            kinds = named(case.question.text)
            if case.answer in ("no", "0") and case.label in ("exists", "count"):
                assert case.finding is None
                continue
            places = region(case.question.text) if case.label in ("exists", "what") else []
            concerned = [f for f in scene.findings if (not kinds or f.kind in kinds) and inside(f, places)]
            assert np.array_equal(case.finding, np.any([f.mask() for f in concerned], axis=0)), case.question.text


@pytest.mark.parametrize("name", ["image", "volume"])
def test_text_alone_gives_no_more_than_the_prior(name):
    """A majority vote per question text, learned on one half, scores the other half at chance."""
    cases = [(c.label, c.question, c.answer) for s in scenes(name, 1200 if name == "image" else 500) for c in s.cases]
    votes, by_label = defaultdict(Counter), defaultdict(Counter)
    for label, question, answer in cases[::2]:
        votes[question.text][answer] += 1
        by_label[label][answer] += 1
    hits, chance = defaultdict(list), {}
    for label, question, answer in cases[1::2]:
        guess = (votes[question.text] or by_label[label]).most_common(1)[0][0]
        hits[label].append(guess == answer)
        chance[label] = 1 / len(question.choices)
    for label, got in hits.items():
        if len(got) >= 60:
            error = (chance[label] * (1 - chance[label]) / len(got)) ** 0.5
            assert np.mean(got) < chance[label] + 3.5 * error, label
    total = np.concatenate(list(hits.values()))
    prior = sum(chance[k] * len(v) for k, v in hits.items()) / len(total)
    assert abs(np.mean(total) - prior) < 0.04


def test_a_rationale_is_short_and_names_only_what_the_answer_rests_on():
    for scene in scenes("image", 250):
        for case in scene.cases:
            assert 3 <= len(case.rationale.split()) <= 16
            allowed = set(named(case.question.text)) | {case.answer}
            assert set(named(case.rationale)) <= allowed, case.rationale
            if case.finding is None:
                assert "no" in case.rationale.split()


def test_texts_hold_every_word_and_nearly_every_sentence_that_scenes_use():
    listed = set(texts())
    words = {w for t in listed for w in t.split()}
    for name in ("image", "volume"):
        for scene in scenes(name, 250):
            for case in scene.cases:
                assert case.question.text in listed
                assert case.answer in listed
                assert case.rationale in listed or ":" in case.rationale  # a list of places, in any order
                assert {w.strip(",.:") for w in case.rationale.split()} <= {w.strip(",.:") for w in words}


def test_scenes_give_nearly_as_many_questions_as_asked_for_and_none_twice():
    counts = []
    for scene in scenes("image", 250):
        texts_asked = [c.question.text for c in scene.cases]
        assert len(set(texts_asked)) == len(texts_asked)
        counts.append(len(texts_asked))
    assert max(counts) == CONFIGS["image"].questions
    assert np.mean(counts) > 3.5


def test_only_the_configured_kinds_are_asked():
    config = SceneConfig(size=64, question_kinds=("exists", "count"), questions=2)
    cases = [c for i in range(40) for c in Simulator(config).scene("val", i).cases]
    assert {c.label for c in cases} == {"exists", "count"}


def test_the_presets_can_all_be_drawn():
    for name, config in PRESETS.items():
        scene = Simulator(config).scene("test", 1)
        assert scene.cases, name
