"""What corrections teach, and what can go wrong on the way: the whole loop with simulated clinicians.

run() measures and gives a report of plain values; write() makes feedback.md, and in feedback/ feedback.json and plots.
Everything that a server would do goes through Service, its learning and its gate as they are.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from json import dumps, loads
from pathlib import Path
from typing import Any

import sparsight
from sparsight.bench.feedback import curves, flips, order, rounds
from sparsight.bench.feedback.curves import NOT_SERVED, OTHERS, OURS, Point, Start
from sparsight.bench.feedback.kills import kill_often
from sparsight.bench.feedback.page import page
from sparsight.bench.feedback.plots import draw_plots
from sparsight.bench.feedback.shifts import Shift, Tell, reader_with, shifts_of, unaware_policy
from sparsight.bench.feedback.targets import targets
from sparsight.bench.kept import Kept
from sparsight.config import Config
from sparsight.errors import finite
from sparsight.model import Reader, TokenPolicy, load_nano, load_policy
from sparsight.model.nano.reader import NanoReader

PARTS = "parts"  # in the folder of a report that is not written yet
_MAIN = "finding"  # the shift that most is measured with


@dataclass(frozen=True)
class Size:
    """How much of everything. learn, gate: what is changed of learn.yaml and gate.yaml."""

    scenes: int  # without the finding, that a policy learns on which is never to have seen it
    steps: int  # of its warm start
    new: int  # questions about what is new
    old: int  # questions of before
    numbers: tuple[int, ...]  # corrections of a learning, by the product's way
    compared: int  # corrections at which the language stream is tuned, too, and after which the gate is tried
    others: tuple[int, ...]  # corrections by the other ways
    shifted: tuple[int, ...]  # corrections under the other shifts
    seeds: int  # of cases and learning
    way_seeds: int  # the same, of the other ways
    shift_seeds: int  # the same, of the other shifts
    pool: int  # studies to choose the next case from
    ordered: tuple[int, ...]  # corrections in active and in random order
    order_seeds: int
    shared: int  # cases that all four readers read
    single: int  # cases that one of them reads
    rounds: int  # of the gate
    bank: int  # corrections that candidates are judged by, of which each round draws `held_out`
    held_out: int
    kills: int
    learn: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)


SIZES = {
    "small": Size(
        scenes=8,
        steps=4,
        new=12,
        old=12,
        numbers=(4, 8),
        compared=8,
        others=(8,),
        shifted=(4,),
        seeds=1,
        way_seeds=1,
        shift_seeds=1,
        pool=12,
        ordered=(2, 4),
        order_seeds=1,
        shared=4,
        single=2,
        rounds=20,
        bank=12,
        held_out=8,
        kills=6,
        learn={"steps": 3, "passes": 0, "batch": 4, "group": 4, "lr": 1e-3},
        gate={"sentinel": 20, "bootstrap": 200},
    ),
    "full": Size(
        scenes=200,
        steps=200,
        new=240,
        old=300,
        numbers=(10, 50, 100, 200, 400),
        compared=200,
        others=(50, 200),
        shifted=(50, 200),
        seeds=3,
        way_seeds=2,  # a third would take half an hour more
        shift_seeds=1,
        pool=250,
        ordered=(25, 50, 100),
        order_seeds=3,  # two more would take a tenth of the whole run
        shared=40,
        single=40,
        rounds=200,
        bank=200,
        held_out=60,
        kills=1_000,
    ),
}


def run(
    config: Config, data: Path | None = None, *, size: Size, seed: int, tell: Tell, kept: Path | None = None
) -> dict[str, Any]:
    """Measure everything, in this process and on one thread; only the sessions that are killed are processes.

    kept: a folder for parts that are measured, so that a run that ended early goes on there. data: folder of data
    folders, of which bccd adds a shift. seed: added to those of cases and learning. Raises ConfigError for another
    reader than nano.
    """
    bench = _Bench(config, shifts_of(data), size, seed, tell)
    with tempfile.TemporaryDirectory(prefix="sparsight-bench-") as name:
        report = bench.measure(Path(name), kept)
    checked: dict[str, Any] = finite(report)
    return checked | {"targets": targets(checked)}


def write(report: dict[str, Any], out: Path) -> None:
    """feedback.md; in feedback/ feedback.json and plots. The parts that the report was made of go."""
    beside = out / "feedback"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "feedback.json").write_text(dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    pictures = draw_plots(report, beside)
    (out / "feedback.md").write_text(page(report, pictures), encoding="utf-8")
    shutil.rmtree(out / PARTS, ignore_errors=True)


class _Bench:
    """One run: its parts share readers, exams and what was learned."""

    def __init__(self, config: Config, shifts: dict[str, Shift], size: Size, seed: int, tell: Tell) -> None:
        learn, gate = (getattr(config, name).model_copy(update=dict(getattr(size, name))) for name in ("learn", "gate"))
        self.config = config.model_copy(update={"learn": learn, "gate": gate, "database": None})
        self.shifts, self.size, self.seed, self.tell = shifts, size, seed, tell
        self.reader: NanoReader = load_nano(config.serve.reader)
        self._starts: dict[str, tuple[Config, Start]] = {}

    def measure(self, folder: Path, kept: Path | None) -> dict[str, Any]:
        """Every part, or what an earlier run kept of it, and all together."""
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            name: partial(self._teach, name, folder / name) for name in self.shifts
        }
        parts |= {
            "order": lambda: {"order": self._order(folder / "order")},
            "a careless reader": lambda: {"flips": self._flips(folder / "flips")},
            "kill -9": lambda: {"kills": self._kills(folder / "kills")},
        }
        done = {name: self._part(name, make, kept) for name, make in parts.items()}
        taught = [done[name] for name in self.shifts]
        report = self._head() | {
            "shifts": [part["shift"] for part in taught],
            "rows": [row for part in taught for row in part["rows"]],
        }
        for part in done.values():
            report |= {name: part[name] for name in ("rounds", "order", "flips", "kills") if name in part}
        seconds = {name: part["seconds"] for name, part in done.items()}
        return report | {"seconds": seconds | {"all": round(sum(seconds.values()), 1)}}

    def _part(self, name: str, make: Callable[[], dict[str, Any]], folder: Path | None) -> dict[str, Any]:
        own = self.config.learn, self.config.gate, self.config.serve.share
        kept = Kept(folder, self.reader.sha256, own, self.size, self.seed) if folder else None
        data = kept.load(name) if kept else None
        if data is None:
            began = time.perf_counter()
            part = finite(make()) | {"seconds": round(time.perf_counter() - began, 1)}
            data = dumps(part, allow_nan=False).encode()
            if kept:
                kept.save(name, data)
        found: dict[str, Any] = loads(data)
        return found

    def _head(self) -> dict[str, Any]:
        reader: Reader = self.reader
        return {
            "created": datetime.now(UTC).isoformat(),
            "version": sparsight.__version__,
            "reader": reader.id,
            "reader_sha256": reader.sha256,
            "language_learns": reader.writer(1) is not None,
            "share": self.config.serve.share,
            "seed": self.seed,
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "threads": 1},
            "size": asdict(self.size),
            "learn": self.config.learn.model_dump(mode="json"),
            "gate": self.config.gate.model_dump(mode="json"),
        }

    def _teach(self, name: str, folder: Path) -> dict[str, Any]:
        """What corrections teach under one shift; with the new finding, what the gate makes of it, too."""
        shift, (config, start) = self.shifts[name], self._start(name, folder.parent)
        points = self._learn(shift, config, start, folder)
        part = {
            "shift": {"name": name, "title": shift.title, **start.as_dict(self.seed)},
            "rows": curves.rows_of(shift, start, points, self.seed),
        }
        return part | ({"rounds": self._rounds(shift, config, start, points)} if name == _MAIN else {})

    def _order(self, folder: Path) -> dict[str, Any]:
        size, (config, start) = self.size, self._start(_MAIN, folder.parent)
        return order.run(
            self.shifts[_MAIN],
            config,
            start,
            pool=size.pool,
            numbers=size.ordered,
            seeds=self._seeds(size.order_seeds),
            folder=folder,
            tell=self.tell,
        )

    def _flips(self, folder: Path) -> dict[str, Any]:
        size, (config, start) = self.size, self._start(_MAIN, folder.parent)
        return flips.run(
            self.shifts[_MAIN],
            config,
            start,
            shared=size.shared,
            single=size.single,
            seeds=self._seeds(size.seeds),
            folder=folder,
            tell=self.tell,
        )

    def _kills(self, folder: Path) -> dict[str, Any]:
        return kill_often(folder, kills=self.size.kills, seed=self.seed, tell=self.tell).as_dict()

    def _start(self, name: str, folder: Path) -> tuple[Config, Start]:
        """The policy that meets what is new, served by a configuration, and how it answers before it learns."""
        if name not in self._starts:
            shift, n = self.shifts[name], (self.size.new, self.size.old)
            config, policy = self._begin(shift, folder)
            start = Start.of(shift, self.reader, policy, config.serve.share, n, self.tell)
            self._starts[name] = config, start
        return self._starts[name]

    def _begin(self, shift: Shift, folder: Path) -> tuple[Config, TokenPolicy]:
        """The policy that meets what is new, and a configuration that serves it."""
        if shift.name in ("anatomy", "site"):
            return self.config, load_policy(self.config.serve.reader)
        place, size = folder / "unaware", self.size
        if not place.exists():
            policy = unaware_policy(self.reader, scenes=size.scenes, steps=size.steps, seed=self.seed, tell=self.tell)
            reader_with(self.reader, policy, place)
        serve = self.config.serve.model_copy(update={"reader": str(place)})
        return self.config.model_copy(update={"serve": serve}), load_policy(place)

    def _learn(self, shift: Shift, config: Config, start: Start, folder: Path) -> list[Point]:
        """Ours at every number of corrections and seed; the other ways, and the other shifts, on fewer."""
        size, points, main = self.size, list[Point](), shift.name == _MAIN
        for seed in self._seeds(size.seeds if main else size.shift_seeds):
            others = OTHERS if main and seed < self.seed + size.way_seeds else ()
            numbers = size.numbers if main else size.shifted
            points += curves.learn_all(
                shift,
                config,
                start,
                reader=self.reader,
                ways=[(OURS, numbers), *((way, size.others) for way in others)],
                compared=size.compared if main else max(size.shifted),
                seed=seed,
                folder=folder,
                tell=self.tell,
            )
        return points

    def _rounds(self, shift: Shift, config: Config, start: Start, points: list[Point]) -> dict[str, Any]:
        """The gate's candidates: the start, what the ways learned, what lies between, and noisy ones of these."""
        size = self.size
        gauge = rounds.Gauge(shift, self.reader, config, start, size.bank, self.tell)
        first = load_policy(config.serve.reader)
        measured = [gauge.of("before", first, (start.before_new, start.before_old))]
        served = [p for p in points if p.corrections == size.compared and p.way not in NOT_SERVED]
        learned = {f"{p.way}, seed {p.seed}": p for p in served}
        measured += [gauge.of(name, p.policy, (p.new, p.old)) for name, p in learned.items()]
        ours = {p.seed: p.policy for p in served if p.way == OURS.name}
        for seed in self._seeds(size.way_seeds):
            for share in rounds.BETWEEN:
                name = f"{share:g} of the way to ours, seed {seed}"
                measured.append(gauge.of(name, rounds.between(first, ours[seed], share)))
        for scale in rounds.NOISE:
            for name, policy in (("before", first), ("ours", ours[self.seed])):
                measured.append(gauge.of(f"{name}, noise {scale:g}", rounds.noisy(policy, scale, self.seed)))
        return rounds.run(
            measured, gauge.decide, bank=size.bank, rounds=size.rounds, held_out=size.held_out, seed=self.seed
        )

    def _seeds(self, n: int) -> range:
        return range(self.seed, self.seed + n)
