"""kill -9 at random moments of correct, learn, gate and promote: is anything lost, doubled, or left half done?

Each session is a process of its own over one store: it corrects answers, learns, and the gate promotes or holds; the
parent kills it (SIGKILL) at a random moment of a random stage, then looks. The next session sends again what nobody
confirmed, as a client does. The reader is a tiny one of random weights, so that most of a session is writing. What the
sentinel set and the replay are drawn from is drawn once, before the sessions begin: they draw the same every time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.numpy import load_file, save

from sparsight.bench.feedback.clinic import clinic
from sparsight.bench.feedback.shifts import Tell
from sparsight.config import Config
from sparsight.errors import NotFoundError, SparsightError
from sparsight.model import TokenPolicy, load_policy
from sparsight.model.nano.reader import NanoReader, build
from sparsight.model.nano.tokenizer import known_words, train_tokenizer
from sparsight.model.nano.weights import NanoSpec, save_policy
from sparsight.rl import sentinel
from sparsight.service import Progress, Service
from sparsight.service.promotion import registry_of
from sparsight.sim import texts
from sparsight.store import Store
from sparsight.types import Feedback, ImageVolume, Question

STAGES = ("correct", "learn", "gate", "promote")
_CORRECTIONS = 5  # of one session
_SITE = 40  # kills of one store, then a new one: its checks read all of it
_QUESTION = Question("Is there a nodule?", "yes_no", ("yes", "no"))
_START = multiprocessing.get_context("fork")  # with what is loaded already: a thousand starts of Python take an hour


@dataclass
class Found:
    """What was seen after the kills. lost, doubled: corrections that are gone, and learned twice in one line.

    broken: in words, what else was not as it must be.
    """

    kills: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    finished: int = 0  # sessions that came through before they could be killed
    confirmed: int = 0
    learned: int = 0  # policies
    promoted: int = 0
    lost: int = 0
    doubled: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "kills": sum(self.kills.values()), "by_stage": {s: self.kills[s] for s in STAGES}}


def kill_often(folder: Path, *, kills: int, seed: int, tell: Tell) -> Found:
    """Kill until `kills` processes died so. folder: for the stores."""
    started, found = time.perf_counter(), Found()
    reader = tiny_reader(folder / "reader")
    rng = np.random.default_rng(seed)
    with _drawn_once():
        _session(_config(folder / "first", reader, promotes=True), 0, None)  # here, so that all others find it drawn
        usual = _durations(_config(folder / "dry", reader, promotes=True))
        site = 0
        while (left := kills - sum(found.kills.values())) > 0:
            _Site(_config(folder / f"site-{site}", reader, promotes=site % 4 != 3), found).kill(
                min(left, _SITE), rng, usual
            )
            site += 1
            tell("kill -9", sum(found.kills.values()), kills)
    found.seconds = time.perf_counter() - started
    return found


def tiny_reader(folder: Path) -> Path:
    """A reader of random weights and real architecture, with its policy."""
    words = list(texts())
    tokenizer = train_tokenizer(words, size=600)
    spec = NanoSpec(channels=32, hidden=64, layers=1, heads=2, findings=("nodule", "ring"), words=known_words(words))
    torch.manual_seed(0)
    reader = NanoReader(*build(spec, tokenizer.get_vocab_size()), tokenizer, spec, "0" * 64)
    reader.save(folder)
    policy = TokenPolicy(reader.encoder.width, reader.embed(_QUESTION).shape[0])
    torch.nn.init.normal_(policy.out.weight)
    save_policy(folder, save(policy.to_arrays()))
    return folder


class _Site:
    """One store, and what its clients know."""

    def __init__(self, config: Config, found: Found) -> None:
        self.config, self.found = config, found
        self.confirmed: set[int] = set()  # numbers of the corrections that a client was told are kept
        with clinic(config) as service:
            self.registry = registry_of(config, service.reader.id)

    def kill(self, kills: int, rng: np.random.Generator, usual: dict[str, float]) -> None:
        """Kill that many sessions, look after each, and let one come through at the end."""
        done = 0
        while done < kills:
            stage = STAGES[int(rng.integers(len(STAGES)))]
            died = self._session(stage, float(rng.uniform(0, usual[stage])))
            self._look()
            done += died
        self._session(None, 0.0)
        self._look()
        self.found.learned += len(self.registry.list()) - 1
        self.found.promoted += len(self.registry.lineage()) - 1
        missing = [n for n in range(max(self.confirmed, default=0) + 1) if n not in self.confirmed]
        if missing:
            self.found.broken.append(f"corrections that never came through: {missing}")

    def _session(self, stage: str | None, delay: float) -> bool:
        """One session, killed `delay` seconds after `stage` began; whether it was."""
        first = max(self.confirmed, default=-1) + 1
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = _START.Process(target=_session, args=(self.config, first, theirs))
        process.start()
        theirs.close()
        at = self._listen(ours, stage)
        if stage is not None:
            time.sleep(delay)
            os.kill(process.pid or 0, signal.SIGKILL)
        at = self._listen(ours, None) or at
        process.join()
        ours.close()
        self.found.sessions += 1
        died = bool(process.exitcode == -signal.SIGKILL)
        if died:
            self.found.kills[at or "correct"] += 1
        elif process.exitcode == 0:
            self.found.finished += 1
        else:
            self.found.broken.append(f"a session ended with {process.exitcode}")
        return died

    def _listen(self, pipe: Connection, until: str | None) -> str | None:
        """Hear what a session says until a stage begins, or to its end; the last stage that it told."""
        last = None
        for told in _said(pipe):
            if isinstance(told, int):
                self.confirmed.add(told)
                self.found.confirmed += 1
            else:
                last = told
                if told == until:
                    break
        return last

    def _look(self) -> None:
        """What must hold at any moment."""
        found, broken = self.found, self.found.broken
        registry = self.registry
        try:
            policies = registry.list()
            live = registry.live()
            for policy in policies:
                registry.weights_path(policy.id)  # checks their hash
            load_policy(load_file(registry.weights_path(live.id)))
        except SparsightError as error:
            broken.append(f"a registry that cannot be read: {error.given}")
            return
        if [p.state for p in policies].count("live") != 1:
            broken.append("not one live policy")
        with closing(Store(self.config.home / "store.db", self.config.home)) as store:
            kept = store.all_feedback(submitted=False)
            numbers = [int(one.key.removeprefix("k")) for one in kept]
            gone = self.confirmed - set(numbers)
            found.lost += len(gone)
            self.confirmed -= gone  # counted once
            broken += [f"correction {one.key} says {one.answer}" for one in kept if one.answer != _answer(one.key)]
            lineage = [store.learned_keys([policy]) for policy in registry.lineage()]
            found.doubled += sum(map(len, lineage)) - len(set().union(*lineage))
            broken += [
                f"policy {p.id} without its list" for p in policies if p.parent and not store.learned_keys([p.id])
            ]
            broken += [f"audit: {problem}" for problem in store.verify()]


def _said(pipe: Connection) -> Iterator[str | int]:
    """What a session says, until it ends."""
    with suppress(EOFError, OSError):  # OSError: it died in the middle of a word
        while True:
            yield pipe.recv()


def _session(config: Config, first: int, pipe: Connection | None) -> None:
    """What a session does: a few corrections, one learning. Tells stages as they begin, and what was confirmed."""
    tell = pipe.send if pipe else lambda told: None
    with clinic(config) as service:
        tell("correct")
        for n in range(first, first + _CORRECTIONS):
            _correct(service, n)
            tell(n)
        tell("learn")
        service.learn(on_progress=_Stages(tell))


def _correct(service: Service, n: int) -> None:
    """Ask about the n-th picture and correct the answer. Whoever was not told that it worked sends the same again."""
    try:
        episode = service.episode(f"e{n}")
    except NotFoundError:
        episode = service.ask(_picture(n), _QUESTION, episode_id=f"e{n}", recheck=False).episode
    key = f"k{n}"
    service.correct(Feedback(key, episode.id, f"r{n % 3}", "amend", datetime.now(UTC), _answer(key)))


class _Stages:
    """Tells when the gate begins to measure (training has ended), and when it decides (both policies are measured)."""

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell, self._measured = tell, 0

    def __call__(self, progress: Progress) -> None:
        if progress.done < progress.total:
            return
        if progress.stage == "step":
            self._tell("gate")
        if progress.stage == "sentinel":
            self._measured += 1
            if self._measured == 2:
                self._tell("promote")


def _durations(config: Config) -> dict[str, float]:
    """How long each stage of a session takes, seconds."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = _START.Process(target=_session, args=(config, 0, theirs))
    process.start()
    theirs.close()
    began: dict[str, float] = {}
    for told in _said(ours):
        if isinstance(told, str):
            began[told] = time.perf_counter()
    process.join()
    ours.close()
    ends = [*(began[stage] for stage in STAGES[1:]), time.perf_counter()]
    return {stage: end - began[stage] for stage, end in zip(STAGES, ends, strict=True)}


@contextmanager
def _drawn_once() -> Iterator[None]:
    """Simulated questions are drawn and encoded once for all sessions."""
    drawn = cache(lambda reader, split, n, seed: _simulated(reader, split, n, seed, lambda *_: None))
    readers: dict[str, Any] = {}

    def simulated(reader: Any, split: Any, n: int, seed: int, _: Any) -> Any:
        return drawn(readers.setdefault(reader.id, reader), split, n, seed)

    _simulated = sentinel.simulated
    with patch.object(sentinel, "simulated", simulated):
        yield


def _config(home: Path, reader: Path, *, promotes: bool) -> Config:
    """Few steps, and a gate that lets all candidates through, or none."""
    return Config.load(
        home=home,
        serve={"reader": str(reader)},
        learn={"steps": 2, "passes": 0, "batch": 4, "group": 2, "held_out": 0.4},
        gate={"sentinel": 20, "min_feedback": 1, "margin": 2.0, "exact": False}
        | {"min_gain": -2.0 if promotes else 2.0},
    )


def _picture(n: int) -> ImageVolume:
    """64 x 64 pixels: 64 tokens."""
    voxels = np.random.default_rng(n).uniform(0, 200, (1, 64, 64)).astype(np.float32)
    return ImageVolume(voxels, np.eye(4), "DX", (127.5, 255.0))


def _answer(key: str) -> str:
    return "yes" if int(key.removeprefix("k")) % 2 else "no"
