"""Train what is ours of smol: neck, connector, LoRA and policy. EfficientNet-Lite0 and SmolLM2 stay as published.

1 neck (answers by place, as nano's encoder), 2 connector (tokens learn to say, in SmolLM2's own words, what the neck
takes them for and in which quadrant they lie), 3 connector and LoRA (answers, from few tokens), 4 policy (warm start,
RL). Then the weights are written, and only then measured, which takes longest. Each stage leaves its checkpoint in
`out`, so a second call goes on where the first one stopped.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsight.config import LearnConfig, ModelConfig
from sparsight.errors import ConfigError
from sparsight.model import load_configured, model_config
from sparsight.model.hf.reader import HFReader
from sparsight.model.policy import SOFTENED, TokenPolicy
from sparsight.model.smol import SETTINGS, cached
from sparsight.model.smol.load import lay_over, load_base, ours, save_smol
from sparsight.recipe import sources
from sparsight.recipe.encoder_stage import ATTRIBUTES, WeakHeads
from sparsight.recipe.fit import fit
from sparsight.recipe.smol_measure import measure_smol, write_card
from sparsight.recipe.smol_rows import Picture, answers_loss, draw_row, names_of, picture, spelled, tokens_of, tower_of
from sparsight.recipe.supervision import Weak, read_answer
from sparsight.recipe.warm_start import warm_start
from sparsight.rl.trainer import Example, Step, train_policy
from sparsight.sim import KINDS
from sparsight.types import Case, Question

_LOG = logging.getLogger(__name__)
_MOST_REAL = 300  # images of a real set: each takes two megabytes for as long as it trains
_REAL = 0.25  # share of the images of a language step that are real
_RANK = 8  # of LoRA
_SURE = 4.0  # nats by which a token may fall short of "there is one" and still say so: a finding has several
_FULL = 0.04  # share of the images of a language step that are read with every token
_PLACES = ("upper", "lower", "left", "right")
_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)  # of the tokens, that the policy's subsets are drawn at


@dataclass(frozen=True)
class SmolSize:
    """How much of everything. questions: about each image of a step; most: tokens kept of it, all of them apart."""

    scenes: int
    neck_steps: int
    neck_batch: int
    naming_steps: int
    language_steps: int
    language_images: int
    questions: int
    most: int
    rl_scenes: int
    warm_steps: int
    policy_steps: int
    policy_batch: int
    test: tuple[int, int]  # simulated images, and questions of VQA-RAD


SMOL_SIZES = {
    "full": SmolSize(2_400, 700, 32, 300, 900, 2, 12, 160, 150, 250, 25, 6, (30, 80)),
    "small": SmolSize(150, 150, 16, 100, 30, 2, 6, 128, 30, 60, 4, 4, (6, 12)),
    "tiny": SmolSize(10, 3, 4, 3, 2, 2, 3, 16, 3, 3, 1, 2, (2, 2)),  # for tests: runs everything, learns nothing
}


def train_smol(
    out: Path,
    data: Path | None = None,
    *,
    seed: int = 0,
    size: str = "full",
    base: Path | None = None,
    on_progress: sources.Tell = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Train, write to `out/smol`, measure, and write the card; returns its figures. Log: out/train.log.

    data: a folder of data folders, whose train rows are learned from (`sources.folders`); of VQA-RAD val rows are
    measured on. base: the converted folder. Raises ConfigError, DataError before anything is trained; WeightsError
    without the base.
    """
    if size not in SMOL_SIZES:
        raise ConfigError(f"size {size[:20]!r}", expected="full, small", todo="choose one of these")
    sources.check_data(data)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    base = base or cached()
    reader = load_base(base, ModelConfig(**SETTINGS))
    handler = logging.FileHandler(out / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        recipe = _Recipe(out, data, seed, SMOL_SIZES[size], reader, on_progress)
        arrays = recipe.train()
        save_smol(out / "smol", base, ours(reader.model), arrays)
        _LOG.info("written")
        figures: dict[str, Any] = {"seed": seed, "size": asdict(SMOL_SIZES[size]), "seconds": recipe.seconds}
        figures |= {"images": recipe.images, "probe_r2": recipe.r2}
        write_card(out / "smol", figures)  # of a run that ends here, too
        if base == cached():
            reader = load_configured(model_config(out / "smol"))
        policy = TokenPolicy.from_arrays(arrays)
        for name, table in measure_smol(reader, policy, data, SMOL_SIZES[size].test, recipe.tell):
            figures[name] = table
            write_card(out / "smol", figures)
            _LOG.info("measured: %s", name)
    finally:
        _LOG.removeHandler(handler)
        handler.close()
    return figures


class _Seeing:
    """A reader whose tokens say, by least squares, what the neck takes them for."""

    def __init__(self, reader: HFReader, probe: nn.Linear) -> None:
        self.probe, self.findings, self._reader = probe, KINDS, reader

    def odds(self, features: Tensor) -> Tensor:
        odds: Tensor = self.probe(features)
        return odds

    def embed(self, question: Question) -> Tensor:
        return self._reader.embed(question)


class _Recipe:
    """The stages in order."""

    def __init__(
        self, out: Path, data: Path | None, seed: int, size: SmolSize, reader: HFReader, tell: sources.Tell
    ) -> None:
        self.out, self.data, self.seed, self.size, self.reader, self.tell = out, data, seed, size, reader, tell
        self.seconds: dict[str, float] = {}
        self.images: dict[str, int] = {}
        self.r2 = 0.0
        own = asdict(size)
        sets = " ".join(folder.name for folder in sources.folders(data))
        self.run = f"smol {reader.sha256} seed {seed} data {sets} scenes {own['scenes']}"
        self.run += f" neck {own['neck_steps']} x {own['neck_batch']}"
        torch.manual_seed(seed)
        self.tower = deepcopy(tower_of(reader)).float()
        for name, part in self.tower.named_children():
            if name in ("neck", "logits"):
                part.apply(_fresh)
        self.kinds, self.places = names_of(reader, [*KINDS, "nothing"]), names_of(reader, _PLACES)
        self.connector = deepcopy(reader.model.model.multi_modal_projector).float().apply(_fresh)

    def train(self) -> dict[str, Any]:
        """All stages; returns the arrays of the policy with the adapter."""
        with self._timed("images"):
            sim = list(self._pictures(cases for _, cases in self._scenes(0, self.size.scenes)))
            own = self.real_pictures()
        self.images = {"simulated": len(sim)} | {name: len(some) for name, some in own.items()}
        real = [one for some in own.values() for one in some]
        with self._timed("neck"):
            self._fit_neck(sim)
        for one in [*sim, *real]:
            tokens_of(one, self.tower, self.reader, len(KINDS))
        with self._timed("connector"):
            self._fit_names(sim)
        language = self.reader.writer(_RANK)
        with self._timed("language"):
            self._fit_language(language.module, sim, real)
        self._lay_over()
        del sim, real, own
        with self._timed("policy"):
            policy = self._policy()
        return policy.to_arrays() | language.to_arrays()

    def _scenes(self, first: int, n: int) -> Iterator[tuple[str, Sequence[Case]]]:
        return sources.scenes("train", first, n, self.seed, self.data, self.tell, asked=sources.QUESTIONS)

    def real_pictures(self) -> dict[str, list[Picture]]:
        """The first single images of the train rows of every set that is there, by its name."""
        found = {}
        for folder in sources.folders(self.data):
            images = self._pictures(sources.by_image(sources.real_cases(folder, "train")))
            found[folder.name] = list(islice(images, _MOST_REAL))
        return found

    def _pictures(self, cases: Iterable[Sequence[Case]]) -> Iterator[Picture]:
        return (one for same in cases if (one := picture(self.reader, same)) is not None)

    def _fit_neck(self, pictures: list[Picture]) -> None:
        """Multiple-instance learning from answers, as in recipe.encoder_stage, on what EfficientNet sees."""
        tower = self.tower
        labels = [
            [w for t in one.taught if (w := read_answer(t.question, t.answer, KINDS)) is not None] for one in pictures
        ]
        told = [i for i, own in enumerate(labels) if own and pictures[i].shape == pictures[0].shape]
        every = torch.cat([pictures[i].seen for i in told[:200]]).float()
        with torch.no_grad():
            tower.mean.copy_(every.mean((0, 2, 3)))
            tower.scale.copy_(1 / every.std((0, 2, 3)).clamp_min(1e-3))
        tower.requires_grad_(False)
        tower.neck.requires_grad_(True)
        heads = WeakHeads(tower.config.width, len(KINDS), len(KINDS))
        both = nn.ModuleDict({"neck": tower.neck, "heads": heads})
        gh, gw = pictures[0].shape[1:]

        def loss_of(_: int, rng: np.random.Generator) -> Tensor:
            chosen = rng.choice(told, min(self.size.neck_batch, len(told)), replace=False)
            seen = torch.cat([pictures[i].seen for i in chosen]).float()
            with torch.autocast("cpu", torch.bfloat16):
                look = tower.look(seen)
            asked: list[tuple[int, Weak]] = [(row, w) for row, i in enumerate(chosen) for w in labels[i]]
            return heads.loss(look[:, :gh, :gw].float().flatten(1, 2), pictures[0].shape, asked)

        self._fit("neck", both, loss_of, self.size.neck_steps, 3e-3)
        heads.fold_into(tower.logits)
        assert tower.config.logits == len(KINDS) + ATTRIBUTES

    def _fit_names(self, pictures: list[Picture]) -> None:
        """So that both streams need not first find each other's words: in nano that took several hundred steps."""

        def loss_of(_: int, rng: np.random.Generator) -> Tensor:
            return self._naming(pictures[int(rng.integers(len(pictures)))])

        self._fit("connector", self.connector, loss_of, self.size.naming_steps, 2e-3)

    def _naming(self, one: Picture) -> Tensor:
        """How far the tokens of an image are from SmolLM2's words for what they show and where they lie: scalar.

        A share of the words' own spread. Tokens that look like nothing count a tenth.
        """
        assert one.grid is not None
        assert one.odds is not None
        p = torch.cat([one.odds + _SURE, torch.zeros(len(one.odds), 1)], -1).softmax(-1)
        index = torch.arange(len(one.odds))
        low = (index // one.shape[2] >= one.shape[1] / 2).long()
        right = (index % one.shape[2] >= one.shape[2] / 2).long()
        target = p @ self.kinds + 0.5 * (self.places[low] + self.places[2 + right])
        weight = 0.1 + 1 - p[:, -1:]
        error = (self.connector(one.grid.features.float()) - target).square() * weight
        loss: Tensor = error.mean() / (weight.mean() * self.kinds.var())
        return loss

    def _fit_language(self, adapter: nn.Module, sim: list[Picture], real: list[Picture]) -> None:
        """Answers from few tokens, which go on saying what they show.

        Without that they drifted to four times the length of SmolLM2's words (once, seed 0), and nothing was read.
        """
        size, steps = self.size, self.size.language_steps
        self.run += f" names {size.naming_steps} kept language {steps} x {size.language_images} x {size.questions}"

        def loss_of(step: int, rng: np.random.Generator) -> Tensor:
            losses = []
            for _ in range(size.language_images):
                pool = real if real and rng.random() < _REAL else sim
                one = pool[int(rng.integers(len(pool)))]
                assert one.grid is not None
                keep, asked = draw_row(
                    one, rng, questions=size.questions, most=size.most, full=_FULL, progress=step / steps
                )
                with torch.autocast("cpu", torch.bfloat16):  # a fifth faster: LoRA is float32
                    losses.append(answers_loss(self.reader, self.connector, one.grid, keep, asked))
                losses.append(0.3 * self._naming(one))
            return torch.stack(losses).sum() / size.language_images

        both = nn.ModuleDict({"connector": self.connector, "adapter": adapter})
        self._fit("language", both, loss_of, steps, 5e-4)

    def _lay_over(self) -> None:
        """What was trained in float32 goes into the model as it will be loaded."""
        found = {f"model.vision_tower.{n}": p for n, p in self.tower.named_parameters()}
        found |= {f"model.multi_modal_projector.{n}": p for n, p in self.connector.named_parameters()}
        vision = {name: found[name].detach().bfloat16() for name in ours(self.reader.model)}
        whole = hashlib.sha256(b"".join(t.view(torch.int16).numpy().tobytes() for t in vision.values()))
        lay_over(self.reader, vision, whole.hexdigest())

    def _policy(self) -> TokenPolicy:
        size, reader, examples = self.size, self.reader, list[Example]()
        features, seen = list[Tensor](), list[Tensor]()
        tower = tower_of(reader)
        for _, cases in self._scenes(10 * size.scenes, size.rl_scenes):
            grid = reader.encode(cases[0].volume)
            examples += [Example(grid, case.question, spelled(case.question, case.answer)) for case in cases]
            with torch.no_grad():
                look = tower.look(tower.see(reader.vision.pixels(cases[0].volume)[0]["pixel_values"]))
                odds = tower.logits(look).float().flatten(0, 2)[:, : len(KINDS)]
            features.append(grid.features)
            seen.append(odds[reader.vision.layout(grid.shape).token])
        probe, self.r2 = probed(torch.cat(features), torch.cat(seen))
        torch.manual_seed(self.seed)
        hidden = reader.model.config.get_text_config().hidden_size
        policy = TokenPolicy(hidden, 2 * hidden, prior=len(KINDS), normed=True)
        policy.begin_at(probe.weight / SOFTENED, probe.bias / SOFTENED)
        warm_start(policy, _Seeing(reader, probe), examples, steps=size.warm_steps, seed=self.seed)

        def on_step(step: Step) -> None:
            _LOG.info("policy %d/%d reward %.4f entropy %.3f", step.step, step.steps, step.reward, step.entropy)
            self.tell("policy", step.step, step.steps)

        config = LearnConfig(
            steps=size.policy_steps, batch=size.policy_batch, group=6, replay=0.0, budgets=_SHARES, kl=0.1, lr=5e-4,
            floor=0.1,
        )  # fmt: skip
        train_policy(
            policy, reader, examples, config=config, anchor=deepcopy(policy), seed=self.seed, on_step=on_step,
            checkpoint=self.out / "policy.safetensors",
        )  # fmt: skip
        return policy

    def _fit(
        self,
        stage: str,
        module: nn.Module,
        loss_of: Callable[[int, np.random.Generator], Tensor],
        steps: int,
        lr: float,
    ) -> None:
        recent: list[float] = []

        def on_step(done: int, total: int, loss: float) -> None:
            recent.append(loss)
            if done % 20 == 0 or done == total:
                _LOG.info("%s %d/%d loss %.4f", stage, done, total, float(np.mean(recent[-20:])))
            self.tell(stage, done, total)

        fit(
            module,
            loss_of,
            steps=steps,
            lr=lr,
            warm=max(1, steps // 15),
            seed=self.seed,
            run=f"{stage} {self.run}",
            checkpoint=self.out / f"{stage}.safetensors",
            on_step=on_step,
            save_every=20,
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Seconds of this call."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - began, 1)
        _LOG.info("%s: %.0f s", stage, self.seconds[stage])


def probed(features: Tensor, odds: Tensor) -> tuple[nn.Linear, float]:
    """The linear map from tokens (n, C) to log-odds (n, findings) that errs least, and its R2 on these tokens."""
    ones = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    gram = ones.T @ ones
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    found = torch.linalg.solve(gram, ones.T @ odds.double())
    left = (ones @ found - odds).square().sum() / (odds - odds.mean(0)).double().square().sum()
    probe = nn.Linear(features.shape[1], odds.shape[1]).requires_grad_(False)
    probe.weight.copy_(found[:-1].T)
    probe.bias.copy_(found[-1])
    return probe, float(1 - left)


def _fresh(part: nn.Module) -> None:
    if isinstance(part, nn.Linear | nn.Conv2d):
        part.reset_parameters()
