import pytest
import torch

from sparsight.recipe.supervision import REGIONS, Weak, read_answer, region_masks
from sparsight.sim import KINDS, Simulator
from sparsight.types import Question

FINDINGS = (*KINDS, "does this chest x-ray show nodule?")
THIRDS = (9, 10, 11)
NODULE, RING, OPACITY, REAL = (FINDINGS.index(n) for n in ("nodule", "ring", "opacity", FINDINGS[-1]))


@pytest.mark.parametrize(
    ("text", "answer", "weak"),
    [
        ("Is there a nodule in the upper left?", "yes", Weak("present", (NODULE,), 1, REGIONS.index("upper left"))),
        ("Can a ring be seen in the right half?", "no", Weak("present", (RING,), 0, REGIONS.index("right half"))),
        ("How many opacities are there?", "2", Weak("present", (OPACITY,), 1)),
        ("How many opacities are there?", "0", Weak("present", (OPACITY,), 0)),
        ("What do you see in the lower left?", "ring", Weak("which_finding", (), RING, REGIONS.index("lower left"))),
        ("Where is the nodule?", "upper right", Weak("which_region", (NODULE,), 1, options=(1, 2, 3, 4))),
        ("On which side is the ring?", "left", Weak("which_region", (RING,), 0, options=(5, 6))),
        (
            "Which third of the slices holds the ring?",
            "middle third",
            Weak("which_region", (RING,), 1, options=(9, 10, 11)),
        ),
        ("Is the nodule bright or dark?", "dark", Weak("brightness", (NODULE,), 0)),
        ("Is the edge of the nodule sharp or smooth?", "sharp", Weak("edge", (NODULE,), 1)),
        ("Which is larger, the ring or the nodule?", "nodule", Weak("larger", (RING, NODULE), 1)),
        ("Is the left ring larger than the right one?", "no", Weak("larger_side", (RING,), 1)),
        ("Does this chest X-ray show nodule?", "yes", Weak("present", (REAL,), 1)),
        ("Which side has more findings?", "left", None),
        ("Is the aorta tortuous?", "yes", None),
    ],
)
def test_an_answer_is_read_by_the_words_of_its_question(text: str, answer: str, weak: Weak | None) -> None:
    assert read_answer(Question(text), answer, FINDINGS) == weak


def test_what_is_read_is_true_of_the_simulated_findings() -> None:
    """The findings themselves are looked at here, and nowhere in training."""
    checked = 0
    for index in range(40):
        scene = Simulator().scene("train", index)
        for case in scene.cases:
            weak = read_answer(case.question, case.answer, KINDS)
            if weak is None or weak.form not in ("present", "which_finding"):
                continue
            region = REGIONS[weak.region].removesuffix(" half")
            there = [f for f in scene.findings if all(word in f.quadrant.split() for word in region.split())]
            if weak.form == "present":
                assert any(f.kind == KINDS[weak.findings[0]] for f in there) == bool(weak.target)
            else:
                assert [f.kind for f in there] == [KINDS[weak.target]]
            checked += 1
    assert checked > 40


def test_regions_are_halves_quarters_and_thirds() -> None:
    masks = dict(zip(REGIONS, region_masks((6, 4, 8)).reshape(-1, 6, 4, 8), strict=True))
    assert masks[""].all()
    assert masks["upper left"][:, :2, :4].all()
    assert masks["upper left"].sum() == 6 * 2 * 4
    assert torch.equal(masks["left half"] | masks["right half"], masks[""])
    assert torch.equal(masks["lower half"] & masks["right half"], masks["lower right"])
    assert masks["inferior third"][:2].all()
    assert masks["superior third"][4:].all()
    assert sum(int(masks[t].sum()) for t in REGIONS[-3:]) == 6 * 4 * 8
