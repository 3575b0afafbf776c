"""The visual stream: a small policy that scores every token for one question, and the selector that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sparsight.errors import WeightsError
from sparsight.imaging.grid import Grid, box_to_tokens
from sparsight.model import plackett_luce
from sparsight.model.budget import BUDGETS, BudgetHead
from sparsight.model.completions import ADAPTER
from sparsight.model.coverage import with_background
from sparsight.model.positions import DIM, encode_positions
from sparsight.model.protocols import Reader
from sparsight.model.selectors import OUTSIDE, GridSelector, check_budget, restrict, top_k
from sparsight.types import Question, Selection, TokenGrid

SOFTENED = 3.0  # log-odds of an encoder are divided by it where a policy begins at them, so that it explores
FOVEA = 8  # of how many slices of a volume one is encoded before its first answer
_CHUNK = 8_192  # tokens scored at a time: bounds the memory of a volume


class TokenPolicy(nn.Module):
    """FiLM network: what a token shows and where it is, modulated by the question, becomes one score.

    About 120,000 parameters, always float32. What the network adds is averaged over 3 x 3 neighbours of a slice: else
    RL likes tokens beside the finding, to which the encoder's receptive field leaks (the answer is right, the
    evidence is off). `prior` (0: none) is the number of logits whose log-sum-exp is added as it is: where the encoder
    has learned what findings look like, a policy may start there (`begin_at`) instead of uniform. `meant` is what the
    question adds to each of these logits and to each part of a token's position: which finding it is about, and where.
    `budget` says how many tokens to keep where the caller does not. normed: tokens and questions are brought to one
    scale first, which those of a pretrained model are not.
    """

    def __init__(
        self, channels: int, question: int, hidden: int = 128, prior: int = 0, *, normed: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if normed else None
        self.norm_question = nn.LayerNorm(question) if normed else None
        self.prior = nn.Linear(channels, prior) if prior else None
        self.meant = nn.Linear(question, prior + DIM) if prior else None
        self.look = nn.Linear(channels + DIM, hidden)
        self.film = nn.Linear(question, 2 * hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)
        self.budget = BudgetHead(question)
        nn.init.zeros_(self.out.weight)  # starts uniform: every subset equally likely
        nn.init.zeros_(self.out.bias)
        if self.meant is not None:
            nn.init.zeros_(self.meant.weight)
            nn.init.zeros_(self.meant.bias)

    def forward(
        self, features: Tensor, shape: tuple[int, int, int], question: Tensor, slices: Tensor | None = None
    ) -> Tensor:
        """Score tokens. features: (B, n, C); question: (B, C_q); returns (B, n) log-weights.

        n = N for the whole grid (gd, gh, gw); with slices (s,) the features are those of these only, n = s gh gw.
        """
        if self.norm_question is not None:
            question = self.norm_question(question)
        gd, gh, gw = shape
        slices = torch.arange(gd) if slices is None else slices
        at = encode_positions(shape, slice_tokens(shape, slices))  # (n, 24)
        chunks = [
            self._score(features[:, i : i + _CHUNK], at[i : i + _CHUNK], question)
            for i in range(0, features.shape[1], _CHUNK)
        ]
        field = torch.cat(chunks, dim=1).reshape(-1, 1, gh, gw)  # (B * s, 1, gh, gw)
        field = functional.avg_pool2d(field, 3, stride=1, padding=1, count_include_pad=False)
        scores = field.reshape(-1, len(slices) * gh * gw)
        return scores if self.prior is None else scores + self._prior(self.prior(features), at, question)

    def _prior(self, logits: Tensor, at: Tensor, question: Tensor) -> Tensor:
        """Scores (B, n) of logits (B, n, prior) at positions (n, 24), as the question (B, C_q) moves them."""
        if self.meant is None:
            return logits.logsumexp(-1)
        kinds, places = self.meant(question).split([logits.shape[-1], DIM], dim=-1)
        score: Tensor = (logits + kinds.unsqueeze(1)).logsumexp(-1) + places @ at.T
        return score

    def slices(self, odds: Tensor, question: Tensor) -> Tensor:
        """Score slices by their best place, as the prior does. odds: (D, h, w, prior); question: (C_q,); returns (D,).

        Log-odds of a first look stand in for those of the encoder, softened as the policy's own are where it begins.
        Raises WeightsError for a policy that began at nothing.
        """
        if self.prior is None:
            raise WeightsError("a policy without a prior", expected="one that began at log-odds", todo="train one")
        at = encode_positions((odds.shape[0], odds.shape[1], odds.shape[2]))
        scores = self._prior(odds.flatten(0, 2)[None] / SOFTENED, at, question[None])[0]
        return scores.reshape(len(odds), -1).amax(1)

    @torch.no_grad()
    def begin_at(self, weight: Tensor, bias: Tensor) -> None:
        """Set the prior. weight: (prior, c) of the first c channels; bias: (prior,)."""
        assert self.prior is not None
        self.prior.weight.zero_()[:, : weight.shape[1]] = weight
        self.prior.bias.copy_(bias)

    def _score(self, features: Tensor, at: Tensor, question: Tensor) -> Tensor:
        if self.norm is not None:
            features = self.norm(features)
        x = torch.cat([features, at.expand(len(features), -1, -1)], dim=-1)
        scale, shift = self.film(question).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, hidden) each
        x = functional.gelu(self.look(x) * (1 + scale) + shift)
        score: Tensor = self.out(functional.gelu(self.mix(x))).squeeze(-1)
        return score

    @property
    def untrained(self) -> bool:
        """Whether it still scores every token alike."""
        return self.prior is None and not bool(self.out.weight.any())

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All weights by name, for safetensors."""
        return {name: value.detach().numpy().copy() for name, value in self.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Self:
        """Rebuild a policy; its sizes are read off the weights. Raises WeightsError if they are not a policy's."""
        try:
            arrays = {name: value for name, value in arrays.items() if not name.startswith(ADAPTER)}
            hidden, wide = arrays["look.weight"].shape
            prior = len(arrays["prior.bias"]) if "prior.bias" in arrays else 0
            policy = cls(wide - DIM, arrays["film.weight"].shape[1], hidden, prior, normed="norm.weight" in arrays)
            policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
        except (KeyError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{len(arrays)} arrays that are not a token policy",
                expected="look, film, mix, out and budget of one TokenPolicy, perhaps prior, meant and norm",
                todo="choose another policy version",
            ) from error
        return policy.eval()


def slice_tokens(shape: tuple[int, int, int], slices: Tensor) -> Tensor:
    """Indices of all tokens of some slices, slice by slice: (s * gh * gw,)."""
    area = shape[1] * shape[2]
    return (slices.unsqueeze(1) * area + torch.arange(area)).flatten()


class PolicySelector:
    """Serve a policy: greedy top-K without a seed, a Plackett-Luce draw with one. Implements protocols.Selector.

    coverage: share of the K that is spent on merged tokens of what is not kept (model.coverage); log_prob is then that
    of the kept ones.
    """

    def __init__(self, policy: TokenPolicy, reader: Reader, id: str = "policy", *, coverage: float = 0.0) -> None:  # noqa: A002 - the protocol's name
        self.policy, self.reader, self.id, self.coverage = policy.eval(), reader, id, coverage

    def scores(self, grid: TokenGrid, question: Question) -> Tensor:
        """(N,) log-weights, -1e4 outside `question.region`. Raises WeightsError for another reader's grid."""
        if grid.features.shape[1] + DIM != self.policy.look.in_features:
            raise WeightsError(
                f"tokens of {grid.features.shape[1]} channels",
                expected=f"{self.policy.look.in_features - DIM}",
                todo="use a policy that was trained for this reader",
            )
        with torch.inference_mode():
            scores = self.policy(grid.features[None], grid.shape, self.reader.embed(question)[None])[0]
        return restrict(scores, grid, question)

    def slices(self, odds: Tensor, grid: Grid, question: Question, n: int) -> NDArray[np.bool_]:
        """The n slices that are worth encoding for this question: (gd,) bool.

        odds: (gd, h, w, findings) of a first look. Those that hold nothing of `question.region` come last.
        """
        with torch.inference_mode():
            scores = self.policy.slices(odds, self.reader.embed(question))
        if question.region is not None:
            inside = torch.from_numpy(box_to_tokens(grid, question.region) > 0).reshape(grid.shape).any(-1).any(-1)
            scores = torch.where(inside, scores, scores + OUTSIDE)
        chosen = np.zeros(len(odds), np.bool_)
        chosen[top_k(scores, min(n, len(odds))).numpy()] = True
        return chosen

    def budget(self, grid: TokenGrid, question: Question) -> float:
        """The share of the tokens that the policy itself would keep for this question, one of budget.BUDGETS."""
        with torch.inference_mode():
            log_p = self.policy.budget(self.scores(grid, question)[None], self.reader.embed(question)[None])
        return BUDGETS[int(log_p.argmax())]

    def select(self, grid: TokenGrid, question: Question, k: int, *, seed: int | None = None) -> Selection:
        """Keep k tokens. Selection.keep is in token order; log_prob belongs to the ordered draw."""
        check_budget(k, grid.n)
        m = min(round(self.coverage * k), grid.n - k)
        scores, k = self.scores(grid, question), k - m
        if seed is None and self.policy.untrained:  # all subsets are equally likely: one that is spread evenly
            draw = torch.from_numpy(GridSelector().select(grid, question, k).keep)
        elif seed is None:
            draw = top_k(scores, k)
        else:
            draw = plackett_luce.sample(scores, k, 1, torch.Generator().manual_seed(seed))[0]
        log_prob = float(plackett_luce.log_prob(scores, draw[None])[0])
        keep = draw.sort().values.numpy()
        mode: Literal["greedy", "sampled"] = "greedy" if seed is None else "sampled"
        return with_background(grid, question, Selection(keep, scores.numpy(), log_prob, mode, self.id, seed), m)
