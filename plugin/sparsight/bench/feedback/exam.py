"""The same questions answered with one policy after the other: which of them are right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsight.bench.feedback.shifts import Tell
from sparsight.model import PolicySelector, Reader, TokenPolicy
from sparsight.rl.evaluate import SelectorFor, pose, selectors_by_name
from sparsight.rl.scoring import answered
from sparsight.types import Case, TokenGrid

Right = NDArray[np.float64]  # (n,) 1 where a question was answered right


class Exam:
    """Cases, encoded once; choices are scored in one prefill each, at `share` of the tokens unless another is named.

    groups: (n,) of which patient each case is.
    """

    def __init__(self, cases: Sequence[Case], reader: Reader, share: float, tell: Tell) -> None:
        self.cases, self.reader, self.share = list(cases), reader, share
        encoded: dict[str, TokenGrid] = {}
        self._grids: list[TokenGrid] = []
        for n, case in enumerate(self.cases):
            if (key := case.volume.sha256) not in encoded:
                encoded[key] = reader.encode(case.volume)
            self._grids.append(encoded[key])
            tell("exam", n + 1, len(self.cases))
        self.groups: NDArray[np.int64] = np.unique([c.group for c in self.cases], return_inverse=True)[1].astype(
            np.int64
        )

    def __len__(self) -> int:
        return len(self.cases)

    def right(self, policy: TokenPolicy, answers: Reader | None = None) -> Right:
        """Of each case, whether it is answered right from what a policy keeps.

        answers: a reader with another language stream, of the same tokens; the policy reads questions as it always did.
        """
        ours = PolicySelector(policy, self.reader)
        return self._right(lambda case, grid: ours, answers=answers)

    def by_name(self, name: str, policy: TokenPolicy, share: float | None = None) -> Right:
        """The same with a visual stream of rl.evaluate: `ours`, `oracle` (the finding's own tokens), `all` of them."""
        streams = selectors_by_name((name,), self.reader, PolicySelector(policy, self.reader))
        return self._right(streams[name], name, share=share)

    def _right(
        self, stream: SelectorFor, name: str = "ours", *, answers: Reader | None = None, share: float | None = None
    ) -> Right:
        posed = []
        for case, grid in zip(self.cases, self._grids, strict=True):
            posed += pose(case, grid, self.reader, {name: stream}, [share or self.share])
        return np.array([result.correct for result in answered(answers or self.reader, posed)], np.float64)
