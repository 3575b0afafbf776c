"""A policy that was shown where the findings are: what ours could reach with labels."""

from __future__ import annotations

from sparsight.model.nano.reader import NanoReader
from sparsight.model.policy import PolicySelector, TokenPolicy


class MasksSelector(PolicySelector):
    """The architecture of `ours`, trained by cross-entropy with the finding's mask instead of by rewards.

    Of no paper: a labelled upper reference. The target of a token is its share of the finding that the question is
    about (recipe.rival_stage). Its budget head is not trained: it keeps as many tokens as the caller says.
    """

    def __init__(self, reader: NanoReader, policy: TokenPolicy) -> None:
        super().__init__(policy, reader, "masks")
