"""The rivals that labels teach: a ViToS cascade and a policy trained on masks. No part of the reader or of its policy.

Both learn on the scenes that the policy learns on, and read what no stage of train.py may read: where the findings are.
ViToS's first branch learns in two steps, to write labelled boxes and then by the IoU of what it writes; its second one
is the reader itself, which stays as it is. Each step leaves its checkpoint in `out`, so a second call goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsight.errors import ConfigError
from sparsight.model import load_nano
from sparsight.model.completions import Completion
from sparsight.model.nano.language import NanoLanguage, Row, visual_row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.sampling import NanoLanguagePolicy
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER
from sparsight.model.policy import TokenPolicy
from sparsight.model.protocols import Selector
from sparsight.model.rivals import MasksSelector, ViToSSelector
from sparsight.model.rivals.boxes import labelled_boxes, overlap, read_boxes, spell_boxes, write_boxes
from sparsight.model.rivals.common import spell
from sparsight.model.rivals.trained import save_rivals
from sparsight.model.rivals.vitos import TEXT
from sparsight.model.selectors import AllSelector
from sparsight.recipe import sources
from sparsight.recipe.fit import fit
from sparsight.recipe.language_stage import answer_loss, subset
from sparsight.recipe.policy_stage import fresh_policy
from sparsight.recipe.pool import Item, Pool
from sparsight.recipe.sizes import SIZES
from sparsight.recipe.train import OnProgress
from sparsight.rl.checkpoint import load_checkpoint, save_checkpoint
from sparsight.rl.language import LanguageConfig, LanguageStep, train_language
from sparsight.rl.trainer import Example

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_DEEP = 0.1  # share of the boxes' batches that are volumes
_TEXT_TOKENS = 40  # of a question with its boxes, about
_FEW = 48, 200  # tokens of a row in the first two thirds
_BUDGET = 0.1  # of what is measured


@dataclass(frozen=True)
class RivalSize:
    """How long each part learns. Scenes: as many as the policy's, recipe.sizes.SIZES of the same name."""

    box_steps: int
    box_tokens: int  # in a batch
    iou_steps: int
    iou_batch: int  # questions, 8 texts each
    mask_steps: int
    mask_tokens: int  # in a batch
    val_scenes: int  # four questions each


RIVAL_SIZES = {
    "full": RivalSize(750, 5_000, 25, 16, 1_000, 18_500, 50),
    "small": RivalSize(250, 5_000, 12, 8, 100, 18_500, 20),
    "tiny": RivalSize(3, 1_300, 2, 2, 3, 1_200, 2),  # for tests: runs everything, learns nothing
}


def train_rivals(
    reader_at: str | Path,
    out: Path,
    data: Path | None = None,
    *,
    seed: int = 0,
    size: str = "full",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train both for a reader and write rivals.safetensors beside its weights; returns what was made and measured.

    reader_at: as load_nano takes it. data: folder of data folders, for backgrounds, as its policy was trained with.
    seed, size: those of the reader's training, so that the scenes are its policy's. Log: out/rivals.log.
    Raises DataError for a fault in the data folder before anything is drawn or written.
    """
    if size not in RIVAL_SIZES:
        raise ConfigError(f"size {size[:20]!r}", expected=", ".join(RIVAL_SIZES), todo="choose one of these")
    sources.check_data(data)
    torch.set_num_threads(1)
    reader = load_nano(reader_at)
    assert reader.folder is not None  # it was loaded
    out.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(out / "rivals.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        made, writer, policy = _Stage(reader, out, data, seed, size, on_progress or (lambda *_: None)).run()
        made["sha256"] = save_rivals(reader.folder, reader, writer, policy, dict(made))
    finally:
        _LOG.removeHandler(handler)
        handler.close()
    return made


class _Stage:
    """Pools, the three trainings in order, the measurement."""

    def __init__(self, reader: NanoReader, out: Path, data: Path | None, seed: int, size: str, tell: OnProgress):
        self.reader, self.out, self.data, self.seed, self.tell = reader, out, data, seed, tell
        self.scenes, self.size = SIZES[size], RIVAL_SIZES[size]
        self.given = f"{reader.sha256} seed {seed} data {bool(data)} {asdict(self.scenes)}"
        self.seconds: dict[str, float] = {}

    def run(self) -> tuple[dict[str, Any], NanoLanguage, TokenPolicy]:
        pools = self._timed("draw", self._pools)
        policy = self._timed("masks", lambda: self._masks(pools))
        writer = self._timed("boxes", lambda: self._boxes(pools))
        writer = self._timed("iou", lambda: self._iou(writer, pools))
        figures = self._timed("measure", lambda: self._measure(writer, policy))
        made = {"reader": self.reader.id, "seed": self.seed, "data": bool(self.data), "size": asdict(self.size)}
        made |= {"scenes": [len(pool.pixels) for pool in pools], "seconds": self.seconds, "val": figures}
        return made, writer, policy

    def _pools(self) -> list[Pool]:
        """Images and volumes that the policy learned on, with the same questions, and where the findings are."""
        s, given = self.scenes, (self.seed, self.data, self.tell)
        pools = [
            sources.simulated("train", 2 * s.scenes, s.rl_scenes, *given, scoring=True, asked=sources.QUESTIONS),
            sources.volumes("train", s.volumes, s.rl_volumes, *given, scoring=True, asked=sources.QUESTIONS),
        ]
        for pool in pools:
            pool.encode(self.reader.encoder)
        return pools

    def _masks(self, pools: list[Pool]) -> TokenPolicy:
        torch.manual_seed(self.seed)
        policy = fresh_policy(self.reader)
        steps = self.size.mask_steps
        fit(
            policy,
            MaskBatches(pools, self.reader, self.size.mask_tokens).loss_of(policy),
            steps=steps,
            lr=2e-3,
            warm=max(1, steps // 20),
            seed=self.seed,
            run=f"masks {self.given} {steps} x {self.size.mask_tokens}",
            checkpoint=self.out / "rivals-masks.safetensors",
            on_step=self._log("masks"),
        )
        return policy

    def _boxes(self, pools: list[Pool]) -> NanoLanguage:
        """A copy of the language stream that writes labelled boxes, by cross-entropy."""
        writer = deepcopy(self.reader.language).requires_grad_(True)
        batches, steps = BoxBatches(pools, self.reader, self.size.box_tokens), self.size.box_steps

        def loss_of(step: int, rng: np.random.Generator) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return answer_loss(writer, batches.draw(rng, step / steps))

        fit(
            writer,
            loss_of,
            steps=steps,
            lr=2e-3,
            warm=max(1, steps // 20),
            seed=self.seed + 1,
            run=f"boxes {self.given} {steps} x {self.size.box_tokens}",
            checkpoint=self.out / "rivals-boxes.safetensors",
            on_step=self._log("boxes"),
            muon=0.01,
        )
        return writer

    def _iou(self, writer: NanoLanguage, pools: list[Pool]) -> NanoLanguage:
        """The same, by what its own texts earn: IoU with the labelled boxes."""
        size = self.size
        run, done = f"iou {self.given} {size}", self.out / "rivals-iou.safetensors"
        if load_checkpoint(done, run, writer, []):
            return writer.eval()
        rng = np.random.default_rng([self.seed, 2])
        asked = [(pool, item) for pool in pools for item in pool.items]
        picked = rng.permutation(len(asked))[: size.iou_steps * size.iou_batch]
        examples = [box_example(pool, item, self.reader.id) for pool, item in (asked[int(i)] for i in picked)]

        def on_step(step: LanguageStep) -> None:
            _LOG.info("iou %d/%d %.3f entropy %.3f kl %.3f", step.step, step.steps, step.reward, step.entropy, step.kl)
            self.tell("iou", step.step, step.steps)

        train_language(
            NanoLanguagePolicy(self.reader, writer),
            AllSelector(self.reader.max_tokens),
            examples,
            config=iou_config(size.iou_steps, size.iou_batch),
            judge=judge_boxes,
            seed=self.seed,
            on_step=on_step,
            checkpoint=self.out / "rivals-iou-part.safetensors",
        )
        save_checkpoint(done, run, writer, [], size.iou_steps)
        return writer

    def _measure(self, writer: NanoLanguage, policy: TokenPolicy) -> dict[str, float]:
        """On validation scenes, questions with a finding: IoU of the boxes, what they keep, evidence recall at 10 %."""
        given = (self.seed, self.data, self.tell)
        pool = sources.simulated("val", 0, self.size.val_scenes, *given, scoring=True)
        pool.encode(self.reader.encoder)
        vitos, masks = ViToSSelector(self.reader, writer), MasksSelector(self.reader, policy)
        seen: dict[str, list[float]] = {"iou": [], "kept by itself": [], "recall vitos": [], "recall masks": []}
        found = [item for item in pool.items if item.share is not None]
        for done, item in enumerate(found, start=1):
            grid = pool.grid(item.image, self.reader.id)
            assert item.share is not None
            right = labelled_boxes(item.share, grid.shape)
            seen["iou"].append(overlap(vitos.boxes(grid, item.question), right))
            seen["kept by itself"].append(vitos.natural(grid, item.question) / grid.n)
            both: tuple[Selector, ...] = (vitos, masks)
            for selector in both:
                keep = selector.select(grid, item.question, max(1, round(_BUDGET * grid.n))).keep
                seen[f"recall {selector.id}"].append(float(item.share[keep].sum()))
            self.tell("measure", done, len(found))
        return {"n": len(found)} | {name: round(float(np.mean(values)), 4) for name, values in seen.items() if values}

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        _LOG.info("%s took %.1f s", name, self.seconds[name])
        return result

    def _log(self, stage: str) -> Callable[[int, int, float], None]:
        def on_step(done: int, total: int, loss: float) -> None:
            if done % 25 == 0 or done == total:
                _LOG.info("%s %d/%d loss %.4f", stage, done, total, loss)
            self.tell(stage, done, total)

        return on_step


class MaskBatches:
    """Questions about a finding, with its share of every token: what a policy learns from labels."""

    def __init__(self, pools: list[Pool], reader: NanoReader, tokens: int) -> None:
        self.reader, self.tokens = reader, tokens
        self.embedded: dict[str, Tensor] = {}
        by_shape: dict[tuple[int, int, int], list[tuple[Pool, Item]]] = {}
        for pool in pools:
            for item in pool.items:
                if item.share is not None:
                    by_shape.setdefault(pool.geometry[item.image].shape, []).append((pool, item))
        self.groups = list(by_shape.items())
        self.rates = np.array([len(group) for _, group in self.groups]) / sum(len(group) for _, group in self.groups)

    def loss_of(self, policy: TokenPolicy) -> Callable[[int, np.random.Generator], Tensor]:
        """KL(share || softmax of the scores), but for the share's own entropy: mean over questions, scalar."""

        def loss(_: int, rng: np.random.Generator) -> Tensor:
            shape, group = self.groups[int(rng.choice(len(self.groups), p=self.rates))]
            n = int(np.prod(shape))
            drawn = [group[int(i)] for i in rng.integers(len(group), size=max(1, self.tokens // n))]
            features = torch.stack([pool.features[item.image].float() for pool, item in drawn])  # (B, N, C)
            share = torch.stack([torch.from_numpy(np.asarray(item.share)) for _, item in drawn])  # (B, N)
            questions = torch.stack([self._embed(item) for _, item in drawn])
            log_p = policy(features, shape, questions).log_softmax(-1)
            total: Tensor = -(share / share.sum(1, keepdim=True) * log_p).sum(1).mean()
            return total

        return loss

    def _embed(self, item: Item) -> Tensor:
        text = item.question.text
        if text not in self.embedded:
            self.embedded[text] = self.reader.embed(item.question)
        return self.embedded[text]


class BoxBatches:
    """Rows of [question | tokens | boxes]: images, and now and then volumes.

    In the first two thirds of a training few salient tokens, then all, thinned to what a prompt holds: a row of all
    costs five times as much, and a stream that reads all from the start learns more slowly (docs/lab-log.md).
    """

    def __init__(self, pools: list[Pool], reader: NanoReader, tokens: int) -> None:
        self.pools, self.reader, self.tokens = pools, reader, tokens
        self.whole = AllSelector(reader.max_tokens)

    def draw(self, rng: np.random.Generator, progress: float) -> list[Row]:
        """About `tokens` tokens of rows, of one pool and of equal length. progress: share of the training done."""
        pool = self.pools[-1] if rng.random() < _DEEP else self.pools[0]
        k = round(float(np.exp(rng.uniform(*np.log(_FEW))))) if progress < 2 / 3 else None
        n = max(1, self.tokens // ((k or min(pool.grid(0).n, self.reader.max_tokens)) + _TEXT_TOKENS))
        return [self._row(pool, pool.items[int(i)], k, rng) for i in rng.integers(len(pool.items), size=n)]

    def _row(self, pool: Pool, item: Item, k: int | None, rng: np.random.Generator) -> Row:
        example = box_example(pool, item, self.reader.id)
        grid, text = example.grid, spell_boxes(self.reader.tokenizer, example.answer or "")
        if k is None:
            keep = torch.from_numpy(self.whole.select(grid, item.question, grid.n).keep)
        else:
            keep = subset(self.reader.saliency(grid), grid.shape, k, rng, progress=0.0)
        visual, at = visual_row(grid.features, grid.shape, keep)
        return Row(spell(self.reader, item.question), visual, at, [ANSWER, *text, END_ANSWER], len(text) + 1)


def box_example(pool: Pool, item: Item, reader: str) -> Example:
    """A question whose right answer is the text of its labelled boxes: "-" where it is about no finding."""
    grid = pool.grid(item.image, reader)
    boxes = () if item.share is None else labelled_boxes(item.share, grid.shape)
    return Example(grid, item.question, write_boxes(boxes, deep=grid.shape[0] > 1))


def judge_boxes(example: Example, text: Completion) -> float:
    """IoU of written boxes with the labelled ones, 0..1; 0 for a text that says nothing or has no end."""
    deep = example.grid.shape[0] > 1
    return overlap(read_boxes(text.answer, deep=deep), read_boxes(example.answer, deep=deep) or ())


def iou_config(steps: int, batch: int) -> LanguageConfig:
    """GRPO as rl.language has it: 8 texts of each question, all tokens, no reasoning; no term on the evidence."""
    return LanguageConfig(
        steps=steps,
        batch=batch,
        subsets=1,
        completions=8,
        budgets=(1.0,),
        full=1.0,
        direct=1.0,
        limit=TEXT,
        credit="shared",  # over the 8 texts: there is one subset, all
        dependent=1.0,
        perception=0.0,
        sharpness=0.0,
        kl=0.02,
        lr=1e-4,
    )
