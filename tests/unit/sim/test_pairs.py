"""Pairs: what changed follows from the two slices, the mask covers what an answer rests on, text alone gives chance."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from sparsight.errors import ConfigError
from sparsight.sim import (
    KINDS,
    PAIR_QUESTION_KINDS,
    PRESETS,
    Background,
    Backgrounds,
    SceneConfig,
    Simulator,
    Source,
    texts,
)
from sparsight.sim.questions import LARGER

ASKED = replace(PRESETS["pair"], questions=12, backgrounds=("synthetic_tissue",))
# For counts over many scenes: each kind of question once at most, so that those counted are independent.
SMALL = replace(ASKED, size=64, questions=6)


@cache
def scenes(count: int, config: SceneConfig = ASKED) -> tuple:
    simulator = Simulator(config)
    return tuple(simulator.scene("train", index, seed=5) for index in range(count))


def expected(case, scene) -> str:
    """The answer, derived again from the words of the question and the findings of either slice."""
    prior = {f.kind: f for f in scene.findings if f.origin[0] == 0}
    current = {f.kind: f for f in scene.findings if f.origin[0] == 1}
    (kind,) = [k for k in KINDS if k in case.question.text.rstrip("?").split()] or [""]
    new = [f for f in current.values() if f.kind not in prior]
    match case.label:
        case "any_new":
            return "yes" if new else "no"
        case "new":
            return "yes" if kind in current and kind not in prior else "no"
        case "what_new":
            (found,) = new
            return found.kind
        case "where_new":
            return next(f.quadrant for f in new if f.kind == kind)
        case "grown":
            return "yes" if current[kind].local.sum() > LARGER * prior[kind].local.sum() else "no"
        case "still":
            assert kind in prior
            return "yes" if kind in current else "no"
    raise AssertionError(case.label)


def test_every_answer_follows_from_the_two_slices():
    seen = Counter()
    for scene in scenes(250):
        for case in scene.cases:
            assert case.answer == expected(case, scene), case.question.text
            assert case.answer in case.question.choices
            seen[case.label, case.answer if case.question.kind == "yes_no" else ""] += 1
    assert {label for label, _ in seen} == set(PAIR_QUESTION_KINDS)


def test_a_finding_has_grown_by_a_clear_ratio_or_kept_its_size_and_each_kind_is_there_once():
    statuses = Counter()
    for scene in scenes(250):
        assert scene.volume.shape == (2, 192, 192)
        assert len({c.kind for c in scene.changes}) == len(scene.changes)
        for change in scene.changes:
            statuses[change.status] += 1
            assert {"new": change.prior, "gone": change.current}.get(change.status) is None
            if change.status in ("same", "grown", "shrunk"):
                ratio = change.current.local.sum() / change.prior.local.sum()
                assert {"same": ratio == 1, "grown": ratio > LARGER, "shrunk": ratio < 1 / LARGER}[change.status]
    assert len(statuses) == 5


def test_the_mask_covers_the_slices_that_the_answer_rests_on():
    rests_on = {("new", "yes"): (1,), ("grown", "yes"): (0, 1), ("grown", "no"): (0, 1), ("any_new", "yes"): (1,)}
    rests_on |= {("still", "yes"): (0, 1), ("still", "no"): (0,)}
    for scene in scenes(250):
        for case in scene.cases:
            if case.label in ("what_new", "where_new"):
                slices = (1,)
            elif (case.label, case.answer) in rests_on:
                slices = rests_on[case.label, case.answer]
            else:
                continue
            assert tuple(np.flatnonzero(case.finding.any((1, 2)))) == slices, case.question.text
            named = [k for k in KINDS if k in case.question.text.rstrip("?").split()]
            if named:
                shown = np.any([f.mask() for f in scene.findings if f.kind == named[0]], axis=0)
                assert np.array_equal(case.finding, shown)
        if not any(c.status == "new" for c in scene.changes):
            assert all(c.finding is None for c in scene.cases if c.label == "any_new")


def test_text_alone_gives_no_more_than_chance():
    """A majority vote per question text, learned on every other pair, scores the rest at chance; yes is half of all."""
    votes, hits, yes = defaultdict(Counter), defaultdict(list), defaultdict(list)
    for scene in scenes(1500, SMALL)[::2]:
        for case in scene.cases:
            votes[case.question.text][case.answer] += 1
    for scene in scenes(1500, SMALL)[1::2]:
        for case in scene.cases:
            guess = votes[case.question.text].most_common(1)[0][0]
            hits[case.label].append((guess == case.answer) - 1 / len(case.question.choices))
            yes[case.label].append(case.answer == "yes")
    assert set(hits) == set(PAIR_QUESTION_KINDS)
    for label, got in hits.items():
        assert len(got) > 150
        assert np.mean(got) < 3.5 * 0.5 / len(got) ** 0.5, label
        if label in ("any_new", "new", "grown", "still"):
            assert abs(np.mean(yes[label]) - 0.5) < 3.5 * 0.5 / len(got) ** 0.5, label


def test_the_current_image_alone_does_not_tell_whether_a_finding_has_grown():
    areas = defaultdict(list)
    for scene in scenes(1500, SMALL):
        for change in scene.changes:
            if change.kind == "mass" and change.status in ("same", "grown", "shrunk"):
                areas[change.status].append(change.current.area)
    means = {status: np.mean(np.log(a)) for status, a in areas.items()}
    assert max(means.values()) - min(means.values()) < 0.08
    assert min(len(a) for a in areas.values()) > 40


def test_the_two_images_differ_by_their_findings_and_little_else():
    def make(split, n, shape):
        return Background(np.full(shape, 110, np.uint8), "flat", f"flat-{split}-{n}", "OT")

    config = replace(PRESETS["pair"], n_artefacts=(0, 0), noise=(0, 0))
    simulator = Simulator(config, Backgrounds([Source("flat", {"train": 1}, make)]))
    for index in range(20):
        scene = simulator.scene("train", index)
        voxels = scene.volume.voxels
        apart = np.abs(voxels - np.median(voxels, axis=(1, 2), keepdims=True)) > 2.5
        for finding in scene.findings:
            assert apart[finding.mask()].mean() > 0.45, finding.kind  # the finding is in its slice ...
        for change in scene.changes:
            if change.status in ("new", "gone"):
                (found,) = change.seen
                other = np.roll(found.mask(), 1, axis=0)
                assert not apart[other].any()  # ... and not in the other one
        assert abs(np.median(voxels[0]) - np.median(voxels[1])) < 40


def test_the_same_name_gives_the_same_pair_and_another_name_another():
    simulator = Simulator(ASKED)
    simulator.scene("train", 9, seed=5)
    again, first = simulator.scene("train", 3, seed=5), scenes(250)[3]
    assert np.array_equal(again.volume.voxels, first.volume.voxels)
    assert [(c.question, c.answer, c.rationale) for c in again.cases] == [
        (c.question, c.answer, c.rationale) for c in first.cases
    ]
    hashes = {simulator.scene(*name).volume.sha256 for name in (("train", 3, 5), ("train", 3, 6), ("val", 3, 5))}
    assert len(hashes) == 3


def test_sentences_are_all_listed_short_and_asked_once():
    listed = set(texts())
    for scene in scenes(250):
        assert len({c.question.text for c in scene.cases}) == len(scene.cases)
        for case in scene.cases:
            assert {case.question.text, case.answer, case.rationale} <= listed
            assert 3 <= len(case.rationale.split()) <= 16


@pytest.mark.parametrize(
    "bad",
    [
        {"pair": True},  # the questions of a single image
        {"question_kinds": PAIR_QUESTION_KINDS},  # those of a pair, of a single image
        {"pair": True, "question_kinds": PAIR_QUESTION_KINDS, "depth": (8, 12)},
        {"pair": True, "question_kinds": PAIR_QUESTION_KINDS, "kinds": KINDS[:4]},
    ],
)
def test_a_configuration_that_is_no_pair_is_refused(bad):
    with pytest.raises(ConfigError, match="SceneConfig"):
        SceneConfig(**bad)
