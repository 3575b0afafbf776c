"""Train the nano reader and its policy from scratch on questions and answers; no mask or box is a target or a reward.

1 encoder (answers by place) and its first look (what the encoder says), 2 language stream (frozen features, pruned
input), 3 a policy that scouts (warm start, RL), 4 language stream on what the scout keeps, 5 the policy, on the reader
as it now is (warm start, RL), 6 both in turns (RL), 7 budget head, calibration and card.
Each stage leaves its checkpoint in `out`, so a second call goes on where the first one stopped.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from sparsight.errors import ConfigError
from sparsight.model.nano.encoder import LocalEncoder
from sparsight.model.nano.glance import Glance
from sparsight.model.nano.reader import NanoReader, build
from sparsight.model.nano.tokenizer import encode_text, known_words, train_tokenizer
from sparsight.model.nano.weights import NanoSpec, save_policy
from sparsight.model.policy import SOFTENED, TokenPolicy
from sparsight.recipe import sources
from sparsight.recipe.calibrate import calibrate
from sparsight.recipe.card import write_card
from sparsight.recipe.curves import CURVES, draw_curves
from sparsight.recipe.encoder_stage import ATTRIBUTES, WeakBatches, WeakHeads
from sparsight.recipe.fit import LossOf, fit
from sparsight.recipe.glance_stage import fit_glance
from sparsight.recipe.language_stage import Mixture, answer_loss, naming_loss
from sparsight.recipe.looks import looks_of
from sparsight.recipe.policy_stage import (
    draw_examples,
    examples_of,
    fresh_policy,
    take_turns,
    train_head,
    train_selector,
)
from sparsight.recipe.pool import Pool
from sparsight.recipe.report import report
from sparsight.recipe.sizes import PRICED, SIZES
from sparsight.rl.checkpoint import load_checkpoint, save_checkpoint
from sparsight.rl.trainer import Example, Step
from sparsight.sim import KINDS, texts

OnProgress = Callable[[str, int, int], None]  # stage, done, total
_LOG = logging.getLogger(__name__)
_NAMING = 0.5  # share of the language stage in which tokens also learn to name what they show
_RATES = {"easy": (3e-3, 0.02), "all": (2e-3, 0.02), "varied": (1e-3, 0.01)}  # of AdamW and Muon, by phase
_VARIED = 0.6  # share of the training scenes whose anatomy is made to look as if taken otherwise
_GLANCE = 64  # channels of the first look at a volume
_BLANK = 0.15  # share of the encoder's batches in which all but the salient patches is blanked
_LATE = 0.6  # progress at which the second language stage begins: subsets of every kind, no naming
_VALIDATION = 200  # questions
_SECONDS, _TRAIN_LOG = "seconds.json", "train.log"
_TEST_SEED = 777  # the test scenes are the same for every training seed


def train_nano(
    out: Path,
    data: Path | None = None,
    *,
    seed: int = 0,
    size: str = "full",
    threads: int = 1,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train, measure and write a reader with its policy and card to `out/nano`; returns the card's figures.

    data: a folder of data folders; its train rows are mixed in, its val rows are measured on. Log: out/train.log;
    learning curves of all stages: out/learning-curves.png.
    threads: two are 1.6 times as fast as one where nothing else runs, and slower where something does.
    Raises DataError for a fault in any of them before anything is drawn, written or trained.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size[:20]!r}", expected=", ".join(SIZES), todo="choose one of these")
    sources.check_data(data)
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for old in [*out.glob("*.safetensors"), out / _SECONDS]:
            old.unlink(missing_ok=True)
    torch.set_num_threads(threads)
    return _Recipe(out, data, seed, size, threads, on_progress or (lambda stage, done, total: None)).run()


class _Recipe:
    """The stages in order, with what they hand to each other."""

    def __init__(self, out: Path, data: Path | None, seed: int, size: str, threads: int, tell: OnProgress) -> None:
        self.out, self.data, self.seed, self.size, self.tell = out, data, seed, SIZES[size], tell
        self.threads = threads
        # What a stage depends on names its checkpoint: changing a later stage keeps the earlier ones.
        of = asdict(self.size)
        given = f"seed {seed} data {bool(data)} scenes {of['easy']} + {of['scenes']}"
        self.begun = f"{given} encoder of {NanoSpec.channels}, {_RATES}"
        self.begun = f"{self.begun}, {of['encoder_easy']} + {of['encoder_all']} x {of['encoder_batch']}"
        given = f"{self.begun} + {of['encoder_varied']} varied {_VARIED:g}"
        seen = f"{given} fresh scenes {of['scenes']} volumes {of['volumes']} pairs {of['pairs']}"
        language = f"{seen} language {of['language_steps']} x {of['language_tokens']}"
        learned = f"{of['rl_scenes']} + {of['rl_volumes']} + {of['rl_pairs']}"
        steps = f"{of['warm_steps']} warm + {of['policy_steps']} x {of['policy_batch']}"
        policy = f"{language} policy from odds / {SOFTENED:g}, {steps} on {learned}"
        looked = f"{policy} looked {of['looked_steps']} of {of['looks']}"
        turns = f"{looked} turns {of['turns']} x {of['turn_steps']}"
        self.runs = {"encoder": given, "glance": f"{seen} glance {of['glance_steps']} x {_GLANCE}"}
        self.runs |= {"language": language, "scout": policy, "looked": looked}
        self.runs |= {"policy": f"policy {looked}", "turns": turns, "budget": f"budget {turns}"}
        self.seconds = _Seconds(out / _SECONDS, self.runs)
        self.budget: dict[str, float] = {}
        self.handler = logging.FileHandler(out / _TRAIN_LOG)
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def run(self) -> dict[str, Any]:
        """All stages; the log gets a line every 25 steps."""
        _LOG.addHandler(self.handler)
        _LOG.setLevel(logging.INFO)
        try:
            reader, policy, pools = self._train()
            spec = calibrate(reader, policy, pools["val"], pools["real val"], self.tell)
            reader.spec = spec
            folder = self.out / "nano"
            sha256 = reader.save(folder)
            save_policy(folder, save(policy.to_arrays()))
            reader = NanoReader.load(folder)
            assert reader.sha256 == sha256
            test = self._test_pools(reader)
            figures = report(reader, policy, test, self.tell)
            figures |= {"seed": self.seed, "size": asdict(self.size), "threads": self.threads, "reader": reader.id}
            figures["seconds"] = self.seconds.by_stage
            figures["budget"] = self.budget
            figures["images"] = {name: len(pool.pixels) for name, pool in pools.items()}
            write_card(folder, figures, spec)
            draw_curves(self.out / _TRAIN_LOG, self.out / CURVES)
        finally:
            _LOG.removeHandler(self.handler)
            self.handler.close()
        return figures

    def _train(self) -> tuple[NanoReader, TokenPolicy, dict[str, Pool]]:
        size, seed = self.size, self.seed
        pools = {  # data folders first: a picture that breaks off is to be found before scenes are drawn for minutes
            "real": sources.real(self.data, "train", self.tell),
            "real val": sources.real(self.data, "val", self.tell, keep=sources.calibrates),
            "sim": sources.simulated("train", size.scenes, size.scenes, seed, self.data, self.tell, varied=_VARIED),
            "volumes": sources.volumes("train", 0, size.volumes, seed, self.data, self.tell, varied=_VARIED),
            "pairs": sources.pairs("train", 0, size.pairs, seed, self.data, self.tell, varied=_VARIED),
            "val": sources.simulated("val", 0, size.test_scenes // 3 + 1, seed, self.data, self.tell),
        }
        written = [
            t
            for pool in (pools["sim"], pools["real"])
            for i in pool.items
            for t in (i.question.text.lower(), i.answer.lower())
        ]
        tokenizer = train_tokenizer([t for text in texts() for t in (text, text.lower())] + written)
        questions = [i.question.text for name in ("sim", "volumes", "pairs", "real") for i in pools[name].items]
        findings = sources.findings_of(pools["real"])
        logits = len(findings) + ATTRIBUTES
        spec = NanoSpec(glance=_GLANCE, logits=logits, findings=KINDS, words=known_words(questions))
        torch.manual_seed(seed)
        encoder, _ = build(spec, tokenizer.get_vocab_size())
        self._encoder(encoder, findings, pools["real"])
        for pool in pools.values():
            pool.encode(encoder)
        glance = self._glance(encoder, pools)
        torch.manual_seed(seed + 2)
        _, language = build(spec, tokenizer.get_vocab_size())
        reader = NanoReader(encoder, language, tokenizer, spec, "0" * 64, glance=glance)
        self._language(reader, pools)
        return reader, self._streams(reader, pools), pools

    def _encoder(self, encoder: LocalEncoder, findings: tuple[str, ...], real: Pool) -> None:
        """First easy images only, for from the start on all of them it does not leave the prior; then all.

        Then most of them as if taken otherwise: there are few real backgrounds.

        On simulated images of its own: a language stream that read what the encoder has learned from might trust it too
        much (not measured).
        """
        torch.manual_seed(self.seed + 1)  # each stage by itself: the sizes of a later one change nothing here
        heads = WeakHeads(encoder.channels, len(findings), len(KINDS))
        both = nn.ModuleDict({"encoder": encoder.to(memory_format=torch.channels_last), "heads": heads})
        with _once(self.out / "encoder.safetensors", self.runs["encoder"], both) as todo:
            if todo:
                with self.seconds.of("encoder"):
                    self._fit_encoder(encoder, heads, both, findings, real)
        heads.fold_into(encoder.logits)

    def _fit_encoder(
        self, encoder: LocalEncoder, heads: WeakHeads, both: nn.Module, findings: tuple[str, ...], real: Pool
    ) -> None:
        size, given = self.size, (self.seed, self.data, self.tell)
        pools: dict[str, Callable[[], Pool]] = {  # drawn when a phase that is not done yet asks for them
            "easy": lambda: sources.easy("train", 0, size.easy, self.seed, self.tell),
            "sim": lambda: sources.simulated("train", 0, size.scenes, *given),
            "varied": lambda: sources.simulated("train", 0, size.scenes, *given, varied=_VARIED),
        }
        if real.pixels:
            pools["real"] = lambda: real
        batches = {name: _batches_of(make, findings, size.encoder_batch) for name, make in pools.items()}
        for phase, steps, mix in (
            ("easy", size.encoder_easy, {"easy": 1.0}),
            ("all", size.encoder_all, {"easy": 0.2, "sim": 0.65, "real": 0.15}),
            ("varied", size.encoder_varied, {"easy": 0.1, "varied": 0.75, "real": 0.15}),
        ):
            lr, muon = _RATES[phase]
            blank_after = {"easy": None, "all": steps // 4, "varied": 0}[phase]
            fit(
                both,
                _drawn_loss(encoder, heads, batches, mix, blank_after=blank_after),
                steps=steps,
                lr=lr,
                warm=max(1, steps // 10),
                seed=self.seed + len(phase),
                run=f"{phase} {self.begun if phase != 'varied' else self.runs['encoder']}",
                checkpoint=self.out / f"encoder-{phase}.safetensors",
                on_step=self._log(f"encoder ({phase})"),
                muon=muon,  # validation loss .39 where AdamW had .47, after the same 550 steps
                hidden=encoder,
            )

    def _glance(self, encoder: LocalEncoder, pools: dict[str, Pool]) -> Glance:
        torch.manual_seed(self.seed + 3)
        glance = Glance(len(KINDS), _GLANCE)
        with self.seconds.of("glance"):
            fit_glance(
                glance,
                encoder,
                [pools["sim"], pools["volumes"]],
                steps=self.size.glance_steps,
                seed=self.seed + 3,
                run=self.runs["glance"],
                checkpoint=self.out / "glance.safetensors",
                on_step=self._log("glance"),
            )
        return glance

    def _language(self, reader: NanoReader, pools: dict[str, Pool]) -> None:
        mixture = self._mixture(reader, pools)
        with self.seconds.of("language"):
            self._fit_language(reader, mixture, "language", self.size.language_steps, first=0.0, lr=2e-3, muon=0.02)

    def _mixture(self, reader: NanoReader, pools: dict[str, Pool]) -> Mixture:
        with torch.no_grad():
            return Mixture(
                _mixed(pools),
                lambda features: reader.encoder.odds(features, len(KINDS)).logsumexp(-1),
                reader.tokenizer,
            )

    def _fit_language(
        self, reader: NanoReader, mixture: Mixture, name: str, steps: int, *, first: float, lr: float, muon: float
    ) -> None:
        """Train the language stream on a mixture. first: the progress it begins at, 0..1."""
        encoder, language = reader.encoder, reader.language
        names = torch.tensor([encode_text(reader.tokenizer, kind)[0] for kind in KINDS])

        def loss_of(step: int, rng: np.random.Generator) -> torch.Tensor:
            progress = first + (1 - first) * step / steps
            rows = mixture.batch(rng, progress, self.size.language_tokens)
            with torch.autocast("cpu", torch.bfloat16):
                loss = answer_loss(language, rows)
                if progress < _NAMING:
                    features = torch.cat([row.visual for row in rows])
                    loss = loss + 0.3 * naming_loss(language, features, encoder.odds(features, len(KINDS)), names)
            return loss

        fit(
            language,
            loss_of,
            steps=steps,
            lr=lr,
            warm=min(100, steps),
            seed=self.seed + 1,
            run=self.runs[name],
            checkpoint=self.out / f"{name}.safetensors",
            on_step=self._log(name),
            muon=muon,  # reaches the same loss in six tenths of AdamW's steps
        )

    def _streams(self, reader: NanoReader, pools: dict[str, Pool]) -> TokenPolicy:
        """A scout, language stream on what it keeps, the policy, both in turns, budget head."""
        size, seed = self.size, self.seed
        examples = draw_examples(reader, pools["real"], size, seed, self.data, self.tell)
        scout = self._policy("scout", reader, examples)
        with self.seconds.of("looked"):
            mixture = self._mixture(reader, pools)
            mixture.looks = looks_of(scout, reader, _mixed(pools), size.looks, seed)
            self._fit_language(reader, mixture, "looked", size.looked_steps, first=_LATE, lr=1e-3, muon=0.01)
        policy = self._policy("policy", reader, examples)
        both = nn.ModuleDict({"policy": policy, "language": reader.language})
        with self.seconds.of("turns"), _once(self.out / "turns.safetensors", self.runs["turns"], both) as todo:
            if todo and size.turns:
                take_turns(
                    policy,
                    reader,
                    examples,
                    self._validation(reader, pools["val"]),
                    turns=size.turns,
                    steps=size.turn_steps,
                    batch=size.policy_batch,
                    seed=seed + 1,
                    on_phase=lambda phase: _LOG.info("turn %s", phase),
                )
        with self.seconds.of("budget"):
            self.budget = asdict(train_head(policy, reader, examples, PRICED * size.policy_steps, seed))
            _LOG.info("budget %s", self.budget)
        return policy

    def _policy(self, name: str, reader: NanoReader, examples: list[Example]) -> TokenPolicy:
        """A policy for the reader as it is, in a stage of its own."""
        policy, path = fresh_policy(reader), self.out / f"{name}.safetensors"
        with self.seconds.of(name), _once(path, self.runs[name], policy) as todo:
            if todo:
                trained = train_selector(
                    reader,
                    examples,
                    warm=self.size.warm_steps,
                    steps=self.size.policy_steps,
                    batch=self.size.policy_batch,
                    seed=self.seed,
                    checkpoint=path.with_stem(f"{name}-running"),
                    on_step=self._log_policy(name),
                )
                policy.load_state_dict(trained.state_dict())
        return policy

    def _validation(self, reader: NanoReader, pool: Pool) -> list[Example]:
        """Questions that decide whether a turn stays."""
        examples = examples_of(pool, reader.id)
        picked = np.random.default_rng([self.seed, 7]).permutation(len(examples))[:_VALIDATION]
        return [examples[i] for i in picked]

    def _test_pools(self, reader: NanoReader) -> dict[str, Pool]:
        n = self.size.test_scenes
        pools = {
            "simulated": sources.simulated("test", 0, n, _TEST_SEED, self.data, self.tell, scoring=True),
            "volumes": sources.volumes("test", 0, n // 10 + 1, _TEST_SEED, self.data, self.tell, scoring=True),
            "pairs": sources.pairs("test", 0, n // 5 + 1, _TEST_SEED, self.data, self.tell, scoring=True),
            "unseen anatomy": sources.simulated(
                "test_ood", 0, n // 3 + 1, _TEST_SEED, self.data, self.tell, scoring=True
            ),
            "real val": sources.real(self.data, "val", self.tell, scoring=True),
        }
        for pool in pools.values():
            pool.encode(reader.encoder)
        return pools

    def _log_policy(self, name: str) -> Callable[[Step], None]:
        log = self._log(name)

        def on_step(step: Step) -> None:
            log(step.step, step.steps, -step.reward)
            if step.step % 25 == 0:
                _LOG.info("entropy %.3f spread %.3f %s", step.entropy, step.spread, step.parts)

        return on_step

    def _log(self, stage: str) -> Callable[[int, int, float], None]:
        recent: list[float] = []

        def on_step(done: int, total: int, loss: float) -> None:
            recent.append(loss)
            if done % 25 == 0 or done == total:
                _LOG.info("%s %d/%d loss %.4f", stage, done, total, float(np.mean(recent[-25:])))
            self.tell(stage, done, total)

        return on_step


def _mixed(pools: dict[str, Pool]) -> list[tuple[Pool, float]]:
    """What the language stream learns on, and how often each is drawn."""
    rates = {"sim": 0.65, "volumes": 0.15, "pairs": 0.1, "real": 0.1}
    return [(pools[name], rate) for name, rate in rates.items() if pools[name].pixels]


@contextmanager
def _once(path: Path, run: str, module: nn.Module) -> Iterator[bool]:
    """Whether a stage is still to be done. Its result is kept at the end, and loaded into `module` the next time."""
    done = load_checkpoint(path, run, module, []) > 0
    yield not done
    if not done:
        save_checkpoint(path, run, module, [], 1)


class _Seconds:
    """What each stage took, over all calls that it was worked on in: kept in a file beside the checkpoints."""

    def __init__(self, path: Path, runs: dict[str, str]) -> None:
        self.path, self.runs = path, runs
        self.taken: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def by_stage(self) -> dict[str, float]:
        """Seconds by name, of the runs in hand."""
        return {name: self.taken[run] for name, run in self.runs.items() if run in self.taken}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the seconds of a block, also of one that breaks off."""
        run, started = self.runs[name], time.perf_counter()
        try:
            yield
        finally:
            self.taken[run] = round(self.taken.get(run, 0.0) + time.perf_counter() - started, 1)
            self.path.write_text(json.dumps(self.taken, indent=1), encoding="utf-8")
            _LOG.info("%s: %.1f s", name, self.taken[run])


def _batches_of(make: Callable[[], Pool], findings: Sequence[str], batch: int) -> Callable[[], WeakBatches]:
    """Batches of a pool that is made when they are first asked for."""
    return cache(lambda: WeakBatches(make(), findings, batch))


def _drawn_loss(
    encoder: LocalEncoder,
    heads: WeakHeads,
    batches: Mapping[str, Callable[[], WeakBatches]],
    mix: dict[str, float],
    *,
    blank_after: int | None,
) -> LossOf:
    """A batch from one pool at a time, pools at the rates of `mix`; from a step on some images are blanked."""
    names = [name for name in mix if name in batches]
    rates = np.array([mix[name] for name in names])

    def loss_of(step: int, rng: np.random.Generator) -> torch.Tensor:
        drawn = batches[names[int(rng.choice(len(names), p=rates / rates.sum()))]]()
        return drawn.loss(encoder, heads, rng, blank=0.0 if blank_after is None or step < blank_after else _BLANK)

    return loss_of
