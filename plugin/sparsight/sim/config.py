"""What a simulated scene may contain. Every range is (low, high), both included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sparsight.errors import ConfigError

Split = Literal["train", "val", "test", "test_ood"]
SPLITS: tuple[Split, ...] = get_args(Split)

KINDS = ("nodule", "ring", "calcification", "catheter", "spot", "opacity", "mass")
QUESTION_KINDS = (
    "exists",
    "what",
    "where",
    "side",
    "count",
    "larger",
    "larger_side",
    "more",
    "brightness",
    "edge",
    "level",
)
PAIR_QUESTION_KINDS = ("any_new", "new", "what_new", "where_new", "grown", "still")


@dataclass(frozen=True)
class SceneConfig:
    """The dials of the simulator; the defaults train the nano reader.

    Raises ConfigError for a range that is empty or outside what the shapes can honour.
    """

    size: int = 192  # pixels, rows = columns, 64..512
    depth: tuple[int, int] = (1, 1)  # slices; (1, 1) is a 2D image, else 8..256
    kinds: tuple[str, ...] = KINDS  # findings in use, at least two
    backgrounds: tuple[str, ...] = ()  # kinds of background; empty: all that the split has
    n_findings: tuple[int, int] = (2, 5)  # 1..8
    n_artefacts: tuple[int, int] = (0, 3)  # letters, noise patches, broad glows: never a finding
    contrast: tuple[float, float] = (0.08, 0.28)  # peak change, share of the display range, log-uniform, 0.02..0.8
    area: tuple[float, float] = (0.001, 0.02)  # share of one slice, 0.0005..0.03
    dark: float = 0.3  # share of nodules, rings and masses that are darker than around, 0..0.5
    noise: tuple[float, float] = (1.0, 4.0)  # standard deviation of white noise, grey levels of 255
    span: tuple[int, int] = (1, 6)  # slices that a finding of a volume covers
    questions: int = 4  # per scene; fewer where the scene does not allow that many
    question_kinds: tuple[str, ...] = QUESTION_KINDS  # of a pair PAIR_QUESTION_KINDS
    varied: float = 0.0  # share of the scenes whose anatomy is made to look as if taken otherwise (common.vary), 0..1
    pair: bool = False  # a prior and a current image of one size (two slices); n_findings then counts both together

    def __post_init__(self) -> None:
        """Check every range once, so that drawing need not."""
        bounds = {"n_findings": (1, 8), "n_artefacts": (0, 8), "contrast": (0.02, 0.8), "area": (0.0005, 0.03)}
        bounds |= {"noise": (0, 40), "span": (1, 6), "depth": (1, 256)}
        for name, (low, high) in bounds.items():
            given = getattr(self, name)
            if not (len(given) == 2 and low <= given[0] <= given[1] <= high):
                raise _bad(name, given, f"low <= high within {low}..{high}")
        if self.depth != (1, 1) and self.depth[0] < 8:
            raise _bad("depth", self.depth, "(1, 1), or 8 slices or more")
        if not 0 <= self.varied <= 1:
            raise _bad("varied", self.varied, "a share within 0..1")
        if not 64 <= self.size <= 512 or self.size % 8:
            raise _bad("size", self.size, "a multiple of 8 within 64..512")
        if not 0 <= self.dark <= 0.5 or not 1 <= self.questions <= 16:
            raise _bad("dark, questions", (self.dark, self.questions), "dark within 0..0.5 and questions within 1..16")
        asked = PAIR_QUESTION_KINDS if self.pair else QUESTION_KINDS
        for name, known in (("kinds", KINDS), ("question_kinds", asked)):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given) or not set(given) <= set(known):
                raise _bad(name, given, f"distinct names out of {', '.join(known)}")
        if len(self.kinds) < 2:
            raise _bad("kinds", self.kinds, "at least two kinds, else a question has one answer")
        if self.pair and (self.depth != (1, 1) or len(self.kinds) < 5):
            raise _bad("depth, kinds", (self.depth, self.kinds), "of a pair, depth (1, 1) and at least five kinds")


def _bad(name: str, given: object, expected: str) -> ConfigError:
    return ConfigError(f"SceneConfig.{name} = {given}", expected=expected, todo="change that setting")


# Benchmarks that tell selectors apart: the question concerns one finding of many; faint; tiny; volumes; pairs.
PRESETS: dict[str, SceneConfig] = {
    "default": SceneConfig(),
    "many": SceneConfig(n_findings=(5, 8), n_artefacts=(2, 4)),
    "faint": SceneConfig(contrast=(0.06, 0.12)),
    "tiny": SceneConfig(area=(0.0005, 0.0015)),
    "large": SceneConfig(area=(0.01, 0.03)),
    "volume": SceneConfig(depth=(8, 48), n_findings=(2, 6)),
    "pair": SceneConfig(pair=True, n_findings=(3, 6), question_kinds=PAIR_QUESTION_KINDS),
}
