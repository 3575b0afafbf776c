"""Proofs that a model reads few tokens as it would read them among all: on its own weights, whatever they are.

Run by `sparsight doctor` on a hospital's model and by the tests on a tiny one of each family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsight.model.completions import chances
from sparsight.model.hf.adapter import checkpointing
from sparsight.model.hf.answers import messages
from sparsight.model.hf.prompts import TokenPrompt
from sparsight.model.hf.reader import HFReader
from sparsight.types import ImageVolume, Question, TokenGrid

_QUESTION = Question("Is there a bright spot?", "yes_no", ("yes", "no"))
_PLACES = (  # of bright patches, down and across, as shares of a picture: corners, borders, inside
    (0, 0), (0, 0.99), (0.5, 0.33), (0.93, 0.06), (0.33, 0.94), (0.99, 0.5), (0.7, 0.75), (0.99, 0.99), (0.2, 0.6),
)  # fmt: skip
_ROUNDINGS = 3.0  # neither of what is compared is without, and a layer rounds more than once
_LEAST = 2e-6  # float32: sums in another order, also where a model is small and rounds little
MOST = 0.12  # a text one place off differs by .13 at least in smol's trained weights, positions that move up by .28
_MOST_QUANTIZED = 0.25  # int8 rounds what goes into a layer, too: of smol's mistakes only the larger ones show
_SPREAD = "of the logits' spread"
_BESIDE = 0.25  # .18 in smol's trained tower, .27 with two of each four neighbours exchanged
_TEXT = "It is in the upper left"  # long enough that a cache is used several times


@dataclass(frozen=True)
class Proof:
    """One property. worst: the largest difference found; limit: the largest that passes; both in the same unit."""

    name: str
    worst: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the worst difference is within the limit."""
        return self.worst <= self.limit


def prove(reader: HFReader, on_proof: Callable[[Proof], None] = lambda proof: None) -> list[Proof]:
    """All proofs, one after the other.

    Differences of logits are shares of their spread. They may be as large as a few roundings in the model's own number
    format make them on its own weights, which is measured first (`_rounding`).
    """
    found, limits = list[Proof](), list[float]()

    def proven(name: str, worst: float, limit: float, unit: str = _SPREAD) -> None:
        found.append(Proof(name, worst, limit, unit))
        on_proof(found[-1])

    with torch.no_grad():
        for study, where in ((pattern(1, 96, 120), "a picture"), (pattern(3, 96, 96), "a volume")):
            grid = reader.encode(study)
            whole = reader.prompt(grid, _QUESTION, True)
            kept = _subsets(grid)
            limits.append(limit := _limit(reader, whole, kept))
            proven(f"all tokens are the unmodified model, {where}", _identity(reader, study, grid, whole), limit)
            proven(f"pruning is masking, {where}", max(_masked(reader, whole, keep) for keep in kept[:3]), limit)
            proven(f"rows of several lengths, {where}", _ragged(reader, whole, kept), limit)
            proven(f"a cache changes nothing, {where}", _cached(reader, whole, kept), limit)
            if (joined := _joined(reader, whole, kept)) is not None:
                proven(f"texts may join and leave, {where}", joined, limit)
        far, beside = _misplaced(reader)
        proven("a bright patch is where its token is", far, 0.0, "patches")
        proven("bright patches are not beside their tokens", beside, _BESIDE, "of the change")
    proven("gradient checkpointing keeps the mask", _checkpointed(reader), max(limits))
    return found


def pattern(
    depth: int, height: int, width: int, bright: tuple[int, int, int] | None = None, size: int = 0
) -> ImageVolume:
    """A dim, uneven study; `bright`: the first voxel (k, j, i) of a square of `size` that is white in one slice."""
    rng = np.random.default_rng(height * width + depth)
    voxels = rng.normal(40, 6, (depth, height, width)).astype(np.float32)
    if bright is not None:
        k, j, i = bright
        voxels[k, j : j + size, i : i + size] = 100
    return ImageVolume(voxels, np.eye(4), "OT", (50.0, 100.0))


def _subsets(grid: TokenGrid) -> list[Tensor]:
    """Different subsets: a half, a fifth and a tenth of the tokens, and one token."""
    rng = torch.Generator().manual_seed(0)
    sizes = sorted({max(1, grid.n // 2), max(1, grid.n // 5), max(1, grid.n // 10), 1}, reverse=True)
    return [torch.randperm(grid.n, generator=rng)[:k].sort().values for k in sizes]


def _logits(reader: HFReader, prompts: Sequence[TokenPrompt], last: int = 1) -> Tensor:
    """(B, last, V) at the end of each prompt."""
    logits: Tensor = reader.model(**reader.language.inputs(prompts), logits_to_keep=last, use_cache=False).logits
    return logits.float()


def _apart(a: Tensor, b: Tensor) -> float:
    """How far two logits (..., V) of one place are apart, as a share of their spread: the worst place.

    The root mean square over all words, without what all words have in common: that changes no probability. Infinite
    where one of them is no number.
    """
    worst = float(((a - b).std(-1) / b.std(-1).clamp_min(1e-9)).max())
    return worst if np.isfinite(worst) else float("inf")


def _limit(reader: HFReader, whole: TokenPrompt, kept: Sequence[Tensor]) -> float:
    """The largest difference that rounding explains; no more than the least that a mistake makes."""
    prompts = [whole, *(whole.keep(keep, reader.language.image) for keep in kept)]
    most = _MOST_QUANTIZED if getattr(reader.model, "is_quantized", False) else MOST
    return min(most, max(_LEAST, _ROUNDINGS * max(_rounding(reader, prompt) for prompt in prompts)))


def _rounding(reader: HFReader, prompt: TokenPrompt) -> float:
    """How far the logits move when what each layer gives is rounded once more, up or down by chance.

    Monte Carlo arithmetic (Parker 1997, CSD-970002, UCLA): about as far as another order of the same sums moves them.
    """
    still = _logits(reader, [prompt])
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: _rounded(i, out))
        for i, layer in enumerate(reader.model.get_decoder().layers)
    ]
    try:
        return _apart(_logits(reader, [prompt]), still)
    finally:
        for hook in hooks:
            hook.remove()


def _rounded(layer: int, values: Tensor) -> Tensor:
    """Values rounded once more, after a change by chance of up to half a unit in the last place."""
    rng = torch.Generator(values.device).manual_seed(layer)
    by = torch.rand(values.shape, generator=rng, device=values.device, dtype=torch.float64) - 0.5
    return (values.double() * (1 + by * torch.finfo(values.dtype).eps)).to(values.dtype)


def _identity(reader: HFReader, study: ImageVolume, grid: TokenGrid, whole: TokenPrompt) -> float:
    """Against the model as published: its own processor, its own forward pass from pixels."""
    turn = messages(_QUESTION, grid.shape[0], True, study.pair)
    given = reader.vision.inputs(study, reader.family.write(reader.processor, turn))
    if given["input_ids"].shape[1] != len(whole.ids) or (given["input_ids"][0].cpu() != whole.ids).any():
        return float("inf")
    return _apart(_logits(reader, [whole]), reader.model(**given, logits_to_keep=1).logits.float())


def _masked(reader: HFReader, whole: TokenPrompt, keep: Tensor) -> float:
    """The pruned prompt against the whole one, the placeholders of dropped tokens masked."""
    image = reader.language.image
    rows = whole.study.layout.kept(keep)
    masked = reader.language.inputs([whole])
    places = (whole.ids == image).nonzero().squeeze(1)
    masked["attention_mask"][0, places] = 0
    masked["attention_mask"][0, places[rows]] = 1
    seen = reader.model(**masked, logits_to_keep=1, use_cache=False).logits.float()
    return _apart(_logits(reader, [whole.keep(keep, image)]), seen)


def _ragged(reader: HFReader, whole: TokenPrompt, kept: Sequence[Tensor]) -> float:
    """Subsets of several sizes in one batch against each by itself, no image among them."""
    prompts = [whole.keep(keep, reader.language.image) for keep in [*kept, torch.empty(0, dtype=torch.long)]]
    together = _logits(reader, prompts)
    return max(_apart(row[None], _logits(reader, [prompt])) for row, prompt in zip(together, prompts, strict=True))


def _cached(reader: HFReader, whole: TokenPrompt, kept: Sequence[Tensor]) -> float:
    """Several texts written after several subsets, token by token from a cache, against one pass over each."""
    prompts = [whole.keep(keep, reader.language.image) for keep in kept for _ in range(2)]
    steps = list(reader.language.write(prompts, 6, chances([torch.Generator().manual_seed(1)], len(prompts), 6)))
    worst = 0.0
    for b, prompt in enumerate(prompts):
        said = [token for step in steps if (token := step.ids[b]) is not None]
        full = _logits(reader, [prompt.then(said, reader.family.answer_type)], len(said) + 1)[0, :-1]
        own = torch.stack([step.logits[b] for step in steps[: len(said)]])
        worst = max(worst, _apart(own, full))
    return worst


def _joined(reader: HFReader, whole: TokenPrompt, kept: Sequence[Tensor]) -> float | None:
    """Texts that join others between two tokens, shorter and longer ones, and one that leaves, against one pass each.

    None for a model whose texts are written one after the other.
    """
    prompts = [whole.keep(keep, reader.language.image) for keep in (kept[1], kept[0], kept[-1])]
    said: list[list[int]] = [[] for _ in prompts]
    behind, rows, worst = reader.language.begin(prompts[0]), [0], 0.0
    for step in range(8):
        if not behind.joinable:
            return None
        if step in (2, 4):
            behind.join(reader.language.begin(prompts[step // 2]))
            rows.append(step // 2)
        if step == 6:
            behind.keep([0, 2])
            rows = [0, 2]
        for row, b in enumerate(rows):
            alone = _logits(reader, [prompts[b].then(said[b], reader.family.answer_type)])[0]
            worst = max(worst, _apart(behind.logits[row], alone[0]))
        ids = behind.allowed().argmax(-1)
        for b, token in zip(rows, ids.tolist(), strict=True):
            said[b].append(token)
        behind.follow(ids)
    return worst


def _misplaced(reader: HFReader) -> tuple[float, float]:
    """How many bright patches are not found, and by how much, on average, their own tokens change less than others.

    A change counts by what is usual for its token: in a trained tower some answer to everything. There neighbours look
    at each other, too. So a patch is found where its token or one beside it changes at least half as much as any other.
    The second, of the worse study: 1 - the change of a patch's token as a share of the largest, which grows where
    tokens are shifted by one, or exchanged with a neighbour.
    """
    far, beside = 0, 0.0
    for study in (pattern(1, 96, 120), pattern(3, 96, 96)):
        before = reader.encode(study)
        gd, gh, gw = before.shape
        places = [(k, v, u) for k in range(gd) for v, u in _PLACES[k::gd]]
        at = [(k, min(int(v * gh), gh - 1), min(int(u * gw), gw - 1)) for k, v, u in places]
        changed = torch.stack([_change(reader, study, before, place) for place in at])
        relative = changed / (changed.median(0).values + changed.mean()).clamp_min(1e-9)
        shares = (relative / relative.amax(1, keepdim=True).clamp_min(1e-9)).reshape(-1, gd, gh, gw)
        near = [
            share[k, max(0, v - 1) : v + 2, max(0, u - 1) : u + 2].max()
            for (k, v, u), share in zip(at, shares, strict=True)
        ]
        own = [share[place] for place, share in zip(at, shares, strict=True)]
        far += int((torch.stack(near) < 0.5).sum())
        beside = max(beside, 1 - float(torch.stack(own).mean()))
    return float(far), beside


def _change(reader: HFReader, study: ImageVolume, before: TokenGrid, place: tuple[int, int, int]) -> Tensor:
    """How far each token (gd * gh * gw,) moves with a bright patch on that at `place` (k, v, u)."""
    k, v, u = place
    i, j, slice_ = (before.uvw_to_ijk @ [u, v, k, 1])[:3]
    size = int(max(2, min(before.patch[:2]) * 0.8))
    first = round(slice_), max(0, round(j - size / 2 + 0.5)), max(0, round(i - size / 2 + 0.5))
    after = reader.encode(pattern(*study.shape, first, size))
    moved: Tensor = (after.features - before.features).norm(dim=-1)
    return moved


def _checkpointed(reader: HFReader) -> float:
    """A training pass, which has no cache, against the same text read token by token behind one.

    Only without a cache does transformers take the gaps of a pruned prompt for several sequences where the mask is
    lost. So what it is compared with is right also where all passes lose it.
    """
    grid = reader.encode(pattern(1, 96, 120))
    prompt = reader.prompt(grid, _QUESTION, False).keep(_subsets(grid)[1], reader.language.image)
    text = reader.language.ids(_TEXT)
    with torch.no_grad():
        behind = reader.language.begin(prompt)
        steps = [behind.logits]
        for token in text[:-1]:
            behind.follow(torch.tensor([token], device=behind.logits.device))
            steps.append(behind.logits)
    with checkpointing(reader.model):
        trained, _ = reader.language.log_p([prompt], [text])
    return _apart(trained.detach(), torch.stack(steps, dim=1).log_softmax(-1))
