"""What several processes do in test_processes.py: `accelerate launch … together.py FOLDER`. In part run there, alone.

Trains a policy and an adapter of a tiny random model; each process writes what it ends with.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from sparsight.cluster import processes
from sparsight.cluster.processes import Processes, launched
from sparsight.config import LearnConfig
from sparsight.errors import DataError, SparsightError
from sparsight.model import PolicySelector, TokenPolicy
from sparsight.model.completions import Completion
from sparsight.model.hf.families import family_of
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.tiny import tiny
from sparsight.model.hf.vision import Pace
from sparsight.model.protocols import ScoreRequest
from sparsight.rl.language import LanguageConfig, train_language
from sparsight.rl.ranks import Ranks
from sparsight.rl.trainer import Example, train_policy
from sparsight.rl.tuning import TuningConfig, tune_language
from sparsight.service.lesson import read
from sparsight.types import Question

FAMILY = "llava"
QUESTIONS = (Question("Is there a mass?", "yes_no", ("yes", "no")), Question("Is it large, or not?", "yes_no"))
UNSEEN = Question("Where is it?", "free")
LEARN = LearnConfig(steps=11, batch=4, group=4, replay=0.0, budgets=(0.1, 0.2), kl=0.05, lr=1e-2)
TUNE = TuningConfig(steps=2, batch=4, lr=1e-3)
WRITE = LanguageConfig(steps=2, batch=4, subsets=2, completions=3, limit=6, lr=1e-2)


class Moved(HFReader):
    """To a random model all subsets are worth nearly nothing: their differences, made larger."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        return [30 * (scores - scores.mean()) - 1 for scores in super().score(requests)]


def reader_of() -> HFReader:
    torch.set_num_threads(1)
    model, processor = tiny(FAMILY)
    return Moved(model, processor, family_of(FAMILY), "0" * 64, name=FAMILY, pace=Pace(tokens=64), reasoning=12)


def examples_of(reader: HFReader) -> list[Example]:
    grids = [reader.encode(pattern(1, 60, 80, (0, 10 * i, 20), 20)) for i in range(5)]
    return [Example(grid, QUESTIONS[i % 2], ("yes", "no")[i % 2]) for i, grid in enumerate(grids)]


def judged(example: Example, text: Completion) -> float:
    """Any reward that differs."""
    return len(set(text.ids)) % 3 / 2


def both_streams(reader: HFReader, ranks: Ranks, folder: Path, steps: int = LEARN.steps) -> None:
    """Train policy and adapter together, and keep what this process ends with. A checkpoint that is there is used."""
    examples = examples_of(reader)
    torch.manual_seed(0)
    policy = TokenPolicy(examples[0].grid.features.shape[1], len(reader.embed(QUESTIONS[0])), normed=True)
    told: list[int] = []

    def on_step(step: Any) -> None:
        told.append(step.step)
        if step.step == steps < LEARN.steps:
            raise KeyboardInterrupt

    train_policy(
        policy,
        reader,
        examples,
        config=LEARN,
        anchor=TokenPolicy.from_arrays(policy.to_arrays()),
        seed=3,
        on_step=on_step,
        checkpoint=folder / "running.safetensors",
        ranks=ranks,
    )
    writer = reader.writer(4)
    with torch.no_grad():
        for matrix in writer.module.parameters():
            matrix.add_(ranks.rank)  # at numbers of its own in each process: those of the first one count
    selector = PolicySelector(policy, reader)
    tuned = tune_language(writer, selector, examples, config=TUNE, seed=4, ranks=ranks)
    report = train_language(writer, selector, examples, config=WRITE, judge=judged, seed=5, ranks=ranks)
    save_file(policy.to_arrays() | writer.to_arrays(), folder / f"ended-{ranks.rank}.safetensors")
    weights = sum(p._local_tensor.numel() if hasattr(p, "_local_tensor") else p.numel() for p in layers(reader))
    facts = {
        "told": told,
        "losses": [step.loss for step in tuned],
        "rewards": [step.reward for step in report.history],
        "weights": weights,
    }
    (folder / f"facts-{ranks.rank}.json").write_text(json.dumps(facts))


def layers(reader: HFReader) -> list[Any]:
    return [p for name, p in reader.model.get_decoder().layers.named_parameters() if ".lora_" not in name]


def one_fails(reader: HFReader, ranks: Ranks, fault: Exception) -> None:
    """An error in the last process alone."""

    def judge(example: Example, text: Completion) -> float:
        if ranks.rank == ranks.size - 1:
            raise fault
        return judged(example, text)

    writer = reader.writer(4)
    policy = TokenPolicy(examples_of(reader)[0].grid.features.shape[1], len(reader.embed(QUESTIONS[0])), normed=True)
    train_language(writer, PolicySelector(policy, reader), examples_of(reader), config=WRITE, judge=judge, ranks=ranks)


def nothing(reader: HFReader, ranks: Ranks, given: None) -> str:
    return "never said"


def refusals(reader: HFReader, ranks: Processes) -> dict[str, str]:
    """What each of the processes is told where one of them is not as the others."""
    said = {}
    reader.sha256 = str(ranks.rank)
    fault = DataError("a fault of one process", expected="none", todo="mend it")
    for name, attempt in (
        ("one fails", lambda: one_fails(reader, ranks, fault)),
        ("one is full", lambda: one_fails(reader, ranks, torch.OutOfMemoryError("no room"))),
        ("readers", lambda: ranks.lead(nothing, reader, None) if ranks.rank == 0 else ranks.follow(reader)),
        ("programs", Processes),
    ):
        if name == "programs":
            processes.package_sha256 = lambda: str(ranks.rank)  # type: ignore[assignment]
        try:
            attempt()  # type: ignore[no-untyped-call]
        except SparsightError as error:
            said[name] = f"{error.code}: {error.given}"
        except torch.OutOfMemoryError as error:
            said[name] = str(error)
        if name == "readers" and ranks.rank == 0:
            ranks.same(None)
    return said


def main() -> None:
    """First with the whole model in every process, then with its layers spread over them."""
    folder = Path(sys.argv[1])
    with launched() as spread:
        assert isinstance(spread, Processes)
        assert spread.in_step
        whole = Processes()
        for ranks, place in ((whole, folder / "whole"), (spread, folder / "spread")):
            if ranks.rank == 0:
                reader = reader_of()
                reader.writer(4)  # as the service has one before it leads
                ranks.lead(both_streams, reader, place)
                ranks.lead(read, reader, UNSEEN)
                save_file({"seen": reader.embed(UNSEEN).numpy()}, place / "seen.safetensors")  # by this one alone
                ranks.same(None)  # those that follow may go on
            else:
                ranks.follow(reader_of())
        said = refusals(reader_of(), whole)
        (folder / f"said-{whole.rank}.json").write_text(json.dumps(said))
        if spread.rank:
            spread.follow(reader_of())  # till the first one leaves


if __name__ == "__main__":
    main()
