"""Who agrees, who does not, and how much one reader may teach: against simulated readers whose faults are known."""

from dataclasses import replace

import numpy as np
import pytest

from sparsight.rl.readers import Opinion, agreement, caps, conspicuous, contradictions, left_out


def opinion(reader: str, case: int, answer: str | None, *, overturned: bool = False, sure: float = 0.9) -> Opinion:
    return Opinion(f"{reader}-{case}", reader, f"c{case}", answer, overturned, sure)


def panel(seed: int, wrong: dict[str, float], cases: int = 40) -> list[Opinion]:
    """All readers answer all cases; each is wrong at a rate. The answers shown are right in nine of ten."""
    rng = np.random.default_rng(seed)
    truth, shown = rng.random(cases) < 0.5, rng.random(cases) < 0.9
    found = []
    for reader, rate in wrong.items():
        said = truth ^ (rng.random(cases) < rate)
        found += [
            opinion(reader, n, "yes" if said[n] else "no", overturned=bool(said[n] != (truth[n] == shown[n])))
            for n in range(cases)
        ]
    return found


def test_kappa_of_two_readers_is_cohens() -> None:
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    said = [opinion(reader, n, pair[i]) for n, pair in enumerate(pairs) for i, reader in enumerate("ab")]
    [found] = agreement(said)
    assert (found.n, found.agreed) == (50, pytest.approx(0.7))
    assert found.kappa == pytest.approx(0.4)  # the textbook's table: p_o = 0.7, p_e = 0.5


def test_readers_without_a_common_case_or_with_one_answer_have_no_kappa() -> None:
    assert agreement([opinion("a", 1, "yes"), opinion("b", 2, "yes")]) == []
    [found] = agreement([opinion(reader, n, "yes") for n in range(5) for reader in "ab"])
    assert (found.agreed, found.kappa) == (1, None)


def test_a_contradiction_is_listed_and_only_a_strict_majority_is_learned_from() -> None:
    said = [opinion("a", 1, "yes"), opinion("b", 1, "no"), opinion("a", 2, "yes"), opinion("b", 2, "yes")]
    [found] = contradictions(said)
    assert (found.case, found.settled, found.answers) == ("c1", None, {"no": ("b",), "yes": ("a",)})
    assert set(left_out(said)) == {"a-1", "b-1"}
    [found] = contradictions([*said, opinion("c", 1, "no")])
    assert found.settled == "no"
    assert left_out([*said, opinion("c", 1, "no")]) == {"a-1": "contradicted by other readers"}


def test_who_changes_their_mind_contradicts_nobody() -> None:
    first, second = opinion("a", 1, "yes"), replace(opinion("a", 1, "no"), key="a-1-later")
    said = [first, opinion("b", 1, "no"), second]
    assert contradictions(said) == []
    assert left_out(said) == {"a-1": "replaced by the reader's later answer"}
    assert left_out([first, replace(second, blinded=True)]) == {}  # before it was seen, and after


@pytest.mark.parametrize("seed", range(10))
def test_a_hostile_reader_is_named_and_left_out_and_nobody_else(seed: int) -> None:
    said = panel(seed, {"a": 0.05, "b": 0.05, "hostile": 0.5, "c": 0.05})
    assert {one.reader for one in conspicuous(said) if one.left_out} == {"hostile"}
    out = left_out(said)
    assert all(f"hostile-{n}" in out for n in range(40))
    assert sum(not key.startswith("hostile") for key in out) < 20  # single slips of the others, outvoted


def test_careful_readers_are_hardly_ever_named() -> None:
    named = sum(bool(conspicuous(panel(seed, dict.fromkeys("abcd", 0.1)))) for seed in range(100))
    assert named <= 5  # 1 % each of two tests, Holm over four readers


def test_a_reader_who_flips_a_third_is_named_without_any_common_case() -> None:
    named = 0
    for seed in range(20):
        said = panel(seed, {"a": 0.0, "b": 0.0, "careless": 0.3}, cases=60)
        apart = [replace(o, case=f"{o.reader}{o.case}") for o in said]
        found = conspicuous(apart)
        assert all(not one.left_out for one in found)  # that reader's cases may be the harder ones
        assert {one.reader for one in found} <= {"careless"}
        named += bool(found)
    assert named >= 16


@pytest.mark.parametrize(
    ("counts", "share", "shares"),
    [
        ({"a": 10}, 0.5, {"a": 1.0}),
        ({"a": 300, "b": 30, "c": 20}, 0.5, {"a": 0.5}),
        ({"a": 300, "b": 100}, 0.5, {"a": 0.5, "b": 0.5}),
        ({"a": 300, "b": 100}, 0.1, {"a": 0.5, "b": 0.5}),  # two readers: less than a half each is not possible
        ({"a": 500, "b": 300, "c": 100, "d": 50}, 0.3, {"a": 0.3, "b": 0.3}),
        ({"a": 40, "b": 30, "c": 30}, 0.5, {"a": 0.4, "b": 0.3, "c": 0.3}),
        ({"a": 100, "b": 1}, 0.5, {"b": 1 / 101}),  # one correction of a stranger is not worth as much as a hundred
    ],
)
def test_no_reader_holds_more_than_the_share(counts: dict[str, int], share: float, shares: dict[str, float]) -> None:
    weights = caps(counts, share)
    total = sum(weights[reader] * n for reader, n in counts.items())
    assert max(weights.values()) == 1
    for reader, expected in shares.items():
        assert weights[reader] * counts[reader] / total == pytest.approx(expected)


def test_nobody_is_no_reader() -> None:
    assert caps({}, 0.5) == {}
    assert left_out([]) == {}
    assert conspicuous([opinion("a", 1, None, overturned=True)]) == []
