"""Which visual stream finds the evidence: all of them in one run, at equal budgets, on cases never trained on.

run() measures and gives a report of plain values; write() makes results.md, and in results/
evidence.json and the pictures.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

import sparsight
from sparsight.bench.examples import draw_examples
from sparsight.bench.figures import figures_of
from sparsight.bench.first_look import summarise_looked
from sparsight.bench.kept import Kept
from sparsight.bench.looks import measure as time_looks
from sparsight.bench.looks import sees_first
from sparsight.bench.page import page
from sparsight.bench.parts import Other, Part, Setup, Task, loaded, measure_part
from sparsight.bench.plots import draw_plots
from sparsight.bench.suites import CASE_SEEDS, LONG_BUDGETS, TEST_BUDGET, Suite, check_data
from sparsight.bench.targets import targets
from sparsight.cluster.pool import Pool
from sparsight.cluster.scoring import other_reader
from sparsight.config import PoolConfig
from sparsight.errors import BudgetError, InputError, SparsightError, WeightsError, finite
from sparsight.model import PolicySelector, Reader, TokenPolicy
from sparsight.model.nano.reader import NanoReader
from sparsight.rl.evaluate import SELECTORS, selectors_by_name

PARTS = "parts"  # in the folder of a report that is not written yet
_PART = TypeAdapter(Part)
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Size:
    """Questions: per suite, tested by changing the image or the tokens, traced as curves, read in full, and more."""

    sim_2d: int
    sim_ood: int
    sim_long: int
    sim_pair: int
    sim_deep: int  # asked about long volumes as the product asks; 0 for a reader without a first look
    real: int  # of each set at most
    tested: int  # of sim_2d; a quarter of it of the others, a twelfth of sim_long
    curves: int  # of sim_2d
    read: int  # of each suite
    whole: int  # of sim_long, from every token in one prompt
    served: int  # of sim_2d at most, asked as the product asks; an eighth of it of the others
    looked: tuple[int, int]  # slices of a long volume, and rounds in which its first answer is timed


SIZES = {
    "small": Size(
        sim_2d=24,
        sim_ood=8,
        sim_long=8,
        sim_pair=8,
        sim_deep=4,
        real=8,
        tested=8,
        curves=4,
        read=4,
        whole=8,
        served=8,
        looked=(128, 2),
    ),
    "full": Size(
        sim_2d=1_020,
        sim_ood=300,
        sim_long=300,
        sim_pair=300,
        sim_deep=160,
        real=300,
        tested=300,
        curves=120,
        read=120,
        whole=300,
        served=400,
        looked=(256, 5),
    ),
}


def run(
    setup: Setup,
    *,
    size: Size,
    budgets: Sequence[float],
    workers: int,
    tell: Tell,
    kept: Path | None = None,
    pool: PoolConfig = PoolConfig(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Measure every suite, in this process or in several; the figures do not depend on how many.

    kept: a folder for parts that are measured, so that a run that ended early goes on there. pool: with workers, those
    of Ray, in place of processes of this machine; each needs data and weights at the same place.
    Raises DataError for a data folder that is missing or broken, before anything is measured.
    """
    real = check_data(setup.data)
    reader, ours = loaded(setup)
    asked = size if sees_first(reader, ours) else replace(size, sim_deep=0)
    tasks = plan(asked, tuple(budgets), real)
    parts: dict[str, list[Part]] = {task.suite.name: [] for task in tasks}
    for done, part in enumerate(_all_parts(setup, tasks, workers, pool, kept), start=1):
        parts[part.suite].append(part)
        tell(part.suite, done, len(tasks))
    looked = [one for part in parts.pop("sim_deep", ()) for one in part.looked]
    units = {task.suite.name: task.suite.unit for task in tasks}
    suites = {
        name: figures_of(name, own, setup.seed, setup.reinforced) | {"unit": units[name]} for name, own in parts.items()
    }
    slices, rounds = size.looked
    report: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(),
        "version": sparsight.__version__,
        "reader": reader.id,
        "reader_sha256": reader.sha256,
        "policy": setup.policy_id,
        "seed": setup.seed,
        "case_seeds": CASE_SEEDS,
        "test_budget": TEST_BUDGET,
        "confidence_apart": isinstance(reader, NanoReader) and reader.spec.calibration.apart,
        "max_tokens": reader.max_tokens,
        "selectors": list(setup.selectors),
        "left_out": {name: why for name in SELECTORS if (why := _left_out(name, setup.selectors, reader, ours))},
        "policies": [{"name": o.name, "stage": o.stage, "seed": o.seed} for o in setup.others],  # beside ours
        "size": asdict(size),
        "size_name": next((name for name, known in SIZES.items() if known == size), ""),
        "budgets": list(budgets),
        "sets": list(real),
        "workers": pool.workers or workers,
        "rows": [{"suite": name, **row} for name, suite in suites.items() for row in suite.pop("rows")],
        "paired": [{"suite": name, **row} for name, suite in suites.items() for row in suite.pop("paired")],
        "suites": suites,
        "first_look": summarise_looked(sorted(looked, key=lambda one: one.case), setup.seed),
        "first_token": time_looks(reader, ours, slices=slices, rounds=rounds, seed=setup.seed),
        "seconds": round(sum(sum(part.seconds.values()) for own in parts.values() for part in own), 1),
    }
    checked: dict[str, Any] = finite(report)
    return checked | {"targets": targets(checked)}


def write(report: dict[str, Any], setup: Setup, out: Path) -> None:
    """results.md; in results/ evidence.json, plots, and example overlays of simulated images on synthetic anatomy.

    The parts that the report was made of go.
    """
    beside = out / "results"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "evidence.json").write_text(dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for earlier in beside.glob("*.png"):  # of a run that had more of them
        earlier.unlink()
    pictures = draw_plots(report, beside)
    reader, ours = loaded(setup)
    examples = draw_examples(reader, ours, beside, seed=setup.seed, budget=TEST_BUDGET)
    (out / "results.md").write_text(page(report, pictures, examples), encoding="utf-8")
    shutil.rmtree(out / PARTS, ignore_errors=True)


def policies_of(files: Sequence[Path], reader_sha256: str) -> tuple[Other, ...]:
    """Policies of a reader from their files (`sparsight train policy`). Raises WeightsError, InputError."""
    named: dict[str, Other] = {}
    for file in files:
        name = f"ours {file.stem}"
        if name in named:
            raise InputError(f"two policies named {file.stem[:40]}", expected="a name each", todo="rename one file")
        try:
            with safe_open(file, "np") as opened:
                made = opened.metadata() or {}
                arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"the policy {file.name[:60]} cannot be read", expected="a safetensors file", todo="check --policy"
            ) from error
        if made.get("reader") != reader_sha256:
            raise WeightsError(
                f"the policy {file.name[:60]} of {made.get('reader', 'no reader that it names')[:8]}",
                expected=f"one of reader {reader_sha256[:8]}",
                todo="train it for this reader: sparsight train policy",
            )
        TokenPolicy.from_arrays(arrays)
        named[name] = Other(name, made.get("stage", ""), made.get("seed", ""), arrays)
    return tuple(named.values())


def usable(setup: Setup, wanted: Sequence[str]) -> tuple[str, ...]:
    """The streams to compare: those named (raises InputError for an unknown one), or all that this reader can have.

    `all` and `ours` are always measured.
    """
    reader, ours = loaded(setup)
    if wanted:
        names = tuple(dict.fromkeys(("all", "ours", *wanted)))
        selectors_by_name(names, reader, ours)
        return names
    return tuple(name for name in SELECTORS if not _lacking(name, reader, ours))


def _lacking(name: str, reader: Reader, ours: PolicySelector) -> str:
    """Why this reader cannot have a stream, and what to do; empty where it can."""
    try:
        selectors_by_name([name], reader, ours)
    except SparsightError as error:
        return f"{error.given}; {error.todo}"
    return ""


def _left_out(name: str, measured: Sequence[str], reader: Reader, ours: PolicySelector) -> str:
    """Why a stream was not measured: a table without it must not look complete. Empty where it was."""
    return "" if name in measured else _lacking(name, reader, ours) or "not asked for"


def plan(size: Size, budgets: tuple[float, ...], real: Sequence[str]) -> list[Task]:
    """All parts of all suites, the longest first, so that no process waits for another at the end."""
    for budget in budgets:
        if not 0 < budget < 1:
            raise BudgetError(f"a budget of {budget:g}", expected="shares in (0, 1)", todo="`all` is measured anyway")
    suites = [
        Suite("sim_long", size.sim_long, LONG_BUDGETS),
        Suite("sim_2d", size.sim_2d, budgets),
        Suite("sim_pair", size.sim_pair, budgets),
        Suite("sim_ood", size.sim_ood, budgets),
        *(Suite(name, size.real, budgets) for name in real),
    ]
    deep = Suite("sim_deep", size.sim_deep, ())
    tasks = [Task(deep, part, 0, 0, 0) for part in range(deep.parts if deep.n else 0)]
    for suite in suites:
        # What re-encodes the image for every question is done to few volumes: one takes seconds.
        changed = {"sim_2d": size.tested, "sim_long": -(-size.tested // 12)}.get(suite.name, size.tested // 4)
        tested = min(changed, suite.n)
        curves = min(size.curves, tested) if suite.name == "sim_2d" else 0
        whole = min(size.whole, suite.n) if suite.name == "sim_long" else 0
        served = size.served if suite.name == "sim_2d" else size.served // 8
        wanted = (tested, curves, min(size.read, suite.n), whole, served)
        shares = [_split(n, suite.parts) for n in wanted]
        tasks += [Task(suite, part, *(share[part] for share in shares)) for part in range(suite.parts)]
    return tasks


def _split(n: int, parts: int) -> list[int]:
    return [n // parts + (part < n % parts) for part in range(parts)]


def _all_parts(
    setup: Setup, tasks: Sequence[Task], workers: int, pool: PoolConfig, folder: Path | None
) -> Iterator[Part]:
    """Those kept by an earlier run, then the others, which are kept."""
    if folder is None:
        yield from (part for _, part in _measured(setup, tasks, workers, pool))
        return
    kept, left = kept_of(setup, folder), list[Task]()
    for task in tasks:
        if (data := kept.load(task)) is not None:
            yield _PART.validate_json(data)
        else:
            left.append(task)
    for n, part in _measured(setup, left, workers, pool):
        kept.save(left[n], _PART.dump_json(part))
        yield part


def kept_of(setup: Setup, folder: Path) -> Kept:
    """Parts of these weights, streams, seed and data folder; what is in that folder must stay as it is."""
    named = [("ours", setup.policy), *((other.name, other.weights) for other in setup.others)]
    weights = [
        (name, key, hashlib.sha256(array.tobytes()).hexdigest())
        for name, arrays in named
        for key, array in sorted(arrays.items())
    ]
    data = setup.data.resolve() if setup.data else None
    return Kept(folder, loaded(setup)[0].sha256, weights, setup.selectors, setup.seed, data)


def _measured(setup: Setup, tasks: Sequence[Task], workers: int, pool: PoolConfig) -> Iterator[tuple[int, Part]]:
    """Each part with the number of its task, as they come."""
    if pool.workers:
        with Pool(pool, partial(_prepared, setup, loaded(setup)[0].sha256)) as others:
            yield from others.map(measure_part, tasks)
    elif workers <= 1:
        yield from enumerate(measure_part(setup, task) for task in tasks)
    else:
        yield from _in_processes(setup, tasks, workers)


def _prepared(setup: Setup, sha256: str) -> Setup:
    """In a worker: the reader is there, and the one that is measured. Raises WeightsError."""
    if (reader := loaded(setup)[0]).sha256 != sha256:
        raise other_reader(reader, sha256)
    return setup


def _in_processes(setup: Setup, tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Part]]:
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_one_thread, initargs=(setup,)) as pool:
        waiting = {pool.submit(_measure_here, task): n for n, task in enumerate(tasks)}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_here: list[Setup] = []  # of a worker process


def _one_thread(setup: Setup) -> None:
    import torch

    torch.set_num_threads(1)
    _here[:] = [setup]


def _measure_here(task: Task) -> Part:
    return measure_part(_here[0], task)
