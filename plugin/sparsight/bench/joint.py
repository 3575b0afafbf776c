"""What it saves to write the texts of questions that are asked at the same time in the same passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.config import Config
from sparsight.rl.statistics import bootstrap_ratio
from sparsight.service import Service, parse_question

ASKING = 8
_ROUNDS = 12
_QUESTIONS = (
    "Is there a nodule in the left half?",
    "What is the finding in the upper right?",
    "How many rings are there?",
)


def measure_joint(config: Config, folder: Path, pictures: Sequence[Path]) -> dict[str, Any]:
    """Seconds until eight questions about as many encoded studies are answered, one after the other and together.

    {asking, rounds, one_by_one_s, together_s, ratio, ratio_ci}: means over rounds that time both in turn, and how many
    times as fast it is together. In this process, without a server.
    """
    services = {most: _service(config, folder / f"joint-{most}", most) for most in (1, ASKING)}
    times: dict[int, list[float]] = {most: [] for most in services}
    try:
        for n in range(_ROUNDS + 1):  # the first encodes the studies and is not counted
            for most, service in services.items():
                took = _asked(service, pictures, _QUESTIONS[n % len(_QUESTIONS)])
                if n:
                    times[most].append(took)
    finally:
        for service in services.values():
            service.close()
    alone, joint = np.array(times[1]), np.array(times[ASKING])
    ratio = bootstrap_ratio(alone, joint)
    return {
        "asking": ASKING,
        "rounds": _ROUNDS,
        "one_by_one_s": float(alone.mean()),
        "together_s": float(joint.mean()),
        "ratio": ratio.mean,
        "ratio_ci": [ratio.low, ratio.high],
    }


def said_of_joint(report: dict[str, Any]) -> str:
    """A sentence for a page."""
    low, high = report["ratio_ci"]
    return (
        f"{report['asking']} questions at the same time take {report['together_s']:.2f} s together and "
        f"{report['one_by_one_s']:.2f} s one after the other: {report['ratio']:.2f} [{low:.2f}, {high:.2f}] times as "
        f"fast ({report['rounds']} rounds in turn)."
    )


def _service(config: Config, home: Path, most: int) -> Service:
    serve = config.serve.model_copy(update={"together": most})
    return Service(config.model_copy(update={"home": home, "serve": serve, "database": None}))


def _asked(service: Service, pictures: Sequence[Path], text: str) -> float:
    """Seconds until all are answered."""
    question = parse_question(text)
    chosen = [pictures[n % len(pictures)] for n in range(ASKING)]
    with ThreadPoolExecutor(ASKING) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda path: service.ask(str(path), question), chosen))
        return time.perf_counter() - begun
