"""Stage 1: the encoder learns what findings look like from answers alone, by multiple-instance learning.

Every token has one logit per finding. A log-sum-exp over the part of the image that the question names says how likely
the finding is there; cross-entropy with the answer does the rest (in an earlier small study of ours image-level
pooling, or training end to end from scratch, stayed at the prior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsight.model.nano.encoder import PATCH, LocalEncoder
from sparsight.recipe.pool import Pool
from sparsight.recipe.supervision import REGIONS, Weak, read_answer, region_masks

_SHARPNESS = 4.0  # token logits are multiplied by it: near a maximum, still with gradient for all
_OUT = -1e4
_AROUND = 7  # tokens across the neighbourhood that a blanked patch takes its grey from
ATTRIBUTES = 3  # edge, brightness, size


class WeakHeads(nn.Module):
    """Logits of a token: one per finding, and edge, brightness, size; they end up as channels of the encoder.

    The first `kinds` findings are the answers that "what is it" can have.
    """

    def __init__(self, channels: int, findings: int, kinds: int) -> None:
        super().__init__()
        self.kinds = kinds
        self.findings = nn.Linear(channels, findings)
        self.attributes = nn.Linear(channels, ATTRIBUTES)
        self.bias = nn.Parameter(torch.full((findings,), 6.5))  # log N: absent until something stands out
        nn.init.normal_(self.findings.weight, std=0.1)
        nn.init.normal_(self.attributes.weight, std=0.01)

    @property
    def outputs(self) -> int:
        """Logits of a token: findings and attributes."""
        return self.findings.out_features + self.attributes.out_features

    def saliency(self, features: Tensor) -> Tensor:
        """How much a token looks like any of the first kinds: (..., C) to (...)."""
        z = _SHARPNESS * self.findings(features) - self.bias
        total: Tensor = z[..., : self.kinds].logsumexp(-1)
        return total

    @torch.no_grad()
    def fold_into(self, logits: nn.Linear) -> None:
        """Write what was learned to an encoder's logits: what a token alone says for each finding, in nats of log-odds.

        Sharpness and bias are folded in; edge, brightness and size come last, as they are.
        """
        folded = torch.cat([_SHARPNESS * self.findings.weight, self.attributes.weight])
        bias = torch.cat([_SHARPNESS * self.findings.bias - self.bias, self.attributes.bias])
        logits.weight.copy_(folded)
        logits.bias.copy_(bias)

    def loss(self, features: Tensor, shape: tuple[int, int, int], asked: Sequence[tuple[int, Weak]]) -> Tensor:
        """Mean cross-entropy of weak labels. features: (B, N, C); asked: (row of the batch, label)."""
        z = _SHARPNESS * self.findings(features)  # (B, N, F)
        extra = self.attributes(features)  # (B, N, 3)
        masks = torch.where(region_masks(shape), 0.0, _OUT)  # (R, N)
        losses = []
        by_form: dict[str, list[tuple[int, Weak]]] = {}
        for row, weak in asked:
            by_form.setdefault(weak.form, []).append((row, weak))
        for form, group in by_form.items():
            rows = torch.tensor([row for row, _ in group])
            target = torch.tensor([weak.target for _, weak in group])
            losses.append(self._form(form, z[rows], extra[rows], masks, [w for _, w in group], target))
        return torch.cat(losses).mean()

    def _form(self, form: str, z: Tensor, extra: Tensor, masks: Tensor, weak: list[Weak], target: Tensor) -> Tensor:
        """Losses (Q,) of one form. z: (Q, N, F); extra: (Q, N, 3); masks: (R, N) additive."""
        if form == "which_finding":
            region = masks[torch.tensor([w.region for w in weak])].unsqueeze(-1)
            pooled = (z[..., : self.kinds] + region).logsumexp(1)
            return functional.cross_entropy(pooled, target, reduction="none")
        first = torch.tensor([w.findings[0] for w in weak])
        of = z.gather(-1, first[:, None, None].expand(-1, z.shape[1], 1)).squeeze(-1)  # (Q, N)
        if form == "present":
            pooled = (of + masks[torch.tensor([w.region for w in weak])]).logsumexp(1) - self.bias[first]
            return functional.binary_cross_entropy_with_logits(pooled, target.float(), reduction="none")
        if form == "which_region":
            most = max(len(w.options) for w in weak)
            logits = torch.full((len(weak), most), _OUT)
            for n in {len(w.options) for w in weak}:
                at = [q for q, w in enumerate(weak) if len(w.options) == n]
                options = masks[torch.tensor([weak[q].options for q in at])]  # (Q', n, N)
                logits[at, :n] = (of[at].unsqueeze(1) + options).logsumexp(-1).to(logits.dtype)
            return functional.cross_entropy(logits, target, reduction="none")
        if form in ("edge", "brightness"):
            logit = (of.softmax(1) * extra[..., 0 if form == "edge" else 1]).sum(1)
            return functional.binary_cross_entropy_with_logits(logit, target.float(), reduction="none")
        if form == "larger":
            second = torch.tensor([w.findings[1] for w in weak])
            other = z.gather(-1, second[:, None, None].expand(-1, z.shape[1], 1)).squeeze(-1)
        else:
            left, right = REGIONS.index("left half"), REGIONS.index("right half")
            of, other = of + masks[left], of + masks[right]
        sizes = [(field.softmax(1) * extra[..., 2]).sum(1) for field in (of, other)]
        return functional.cross_entropy(torch.stack(sizes, 1), target, reduction="none")


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to lay a square down (four, for an oblong). Tokens are turned back after encoding.

    So a question's words keep their meaning, and the encoder, which knows no place, sees eight times as many images.
    """

    swap: bool
    axes: tuple[int, ...]  # of (rows, columns) that are mirrored, from the end

    @classmethod
    def draw(cls, rng: np.random.Generator, *, square: bool) -> Self:
        """All ways are as likely."""
        return cls(square and rng.random() < 0.5, tuple(a for a in (-2, -1) if rng.random() < 0.5))

    def there(self, pixels: Tensor) -> Tensor:
        """Lay images down: (B, h, w)."""
        return (pixels.transpose(-2, -1) if self.swap else pixels).flip(self.axes)

    def back(self, features: Tensor) -> Tensor:
        """Put tokens where they were: (B, gh, gw, C)."""
        features = features.flip([a - 1 for a in self.axes])
        return features.transpose(1, 2) if self.swap else features


def regrey(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Another display of the same images, each its own: (B, h, w) in [0, 1]; gain 0.85 to 1.15, offset up to 0.05."""
    gain, offset = (torch.from_numpy(rng.uniform(low, high, (len(pixels), 1, 1)).astype(np.float32))
                    for low, high in ((0.85, 1.15), (-0.05, 0.05)))  # fmt: skip
    return (pixels * gain + offset).clamp(0, 1)


def keep_salient(pixels: Tensor, salient: Tensor, rng: np.random.Generator) -> Tensor:
    """Blank all patches but the most salient 5 to 30 % (with Gumbel noise): evidence must do without its surroundings.

    pixels: (B, h, w); salient: (B, gh, gw), from the encoder, not from a mask. A blanked patch becomes the mean of the
    blanked patches around it, as in rl.evidence_tests.
    """
    b, gh, gw = salient.shape
    scores = salient + torch.from_numpy(rng.gumbel(size=salient.shape).astype(np.float32))
    k = max(1, round(rng.uniform(0.05, 0.3) * gh * gw))
    kept = torch.zeros(b, gh * gw).scatter_(1, scores.flatten(1).topk(k).indices, 1.0).reshape(b, 1, gh, gw)
    mean = functional.avg_pool2d(pixels.unsqueeze(1), PATCH)
    around = [functional.avg_pool2d(x, _AROUND, stride=1, padding=_AROUND // 2) for x in (mean * (1 - kept), 1 - kept)]
    fill = functional.interpolate(around[0] / around[1].clamp_min(1e-3), size=pixels.shape[-2:], mode="bilinear")
    open_ = functional.interpolate(kept, size=pixels.shape[-2:], mode="nearest")
    return (open_ * pixels.unsqueeze(1) + (1 - open_) * fill).squeeze(1)


class WeakBatches:
    """Draws batches of equally sized images with what their answers say, and gives the loss on them."""

    def __init__(self, pool: Pool, findings: Sequence[str], batch: int) -> None:
        self.pool, self.batch = pool, batch
        self.labels: dict[int, list[Weak]] = {}
        for item in pool.items:
            if weak := read_answer(item.question, item.answer, findings):
                self.labels.setdefault(item.image, []).append(weak)
        self.by_shape: dict[tuple[int, int, int], list[int]] = {}
        for image in self.labels:
            self.by_shape.setdefault(pool.geometry[image].shape, []).append(image)
        self.shapes = sorted(self.by_shape)
        images = np.array([len(self.by_shape[shape]) for shape in self.shapes], float)
        self.rates = images / images.sum()

    def loss(self, encoder: LocalEncoder, heads: WeakHeads, rng: np.random.Generator, *, blank: float = 0.0) -> Tensor:
        """Mean cross-entropy over one batch; a size with fewer images than a batch gives all it has.

        blank: how often only what the encoder itself finds salient stays in the images of a batch.
        """
        shape = self.shapes[int(rng.choice(len(self.shapes), p=self.rates))]
        members = self.by_shape[shape]
        n = min(max(1, self.batch // shape[0]), len(members))
        images = [members[i] for i in rng.choice(len(members), n, replace=False)]
        pixels = regrey(torch.cat([self.pool.image(i) for i in images]), rng)
        turn = Turn.draw(rng, square=shape[1] == shape[2])
        with torch.autocast("cpu", torch.bfloat16):
            if rng.random() < blank:
                with torch.no_grad():
                    salient = heads.saliency(encoder.look(pixels).float())
                pixels = keep_salient(pixels, salient, rng)
            features = turn.back(encoder.look(turn.there(pixels)))
        features = features.float().reshape(n, -1, encoder.channels)
        return heads.loss(features, shape, [(row, w) for row, i in enumerate(images) for w in self.labels[i]])
