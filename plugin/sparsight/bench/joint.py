"""What it saves to write the texts of questions that are asked at the same time in the same passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.config import Config
from sparsight.imaging.load import load
from sparsight.model.selectors import tokens_at
from sparsight.model.together import Together, Write
from sparsight.rl.statistics import bootstrap_ratio
from sparsight.service import Service, parse_question

ASKING = 8
_ROUNDS = 12
_TOKENS = 64
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
        texts = _texts(services[1], pictures)
    finally:
        for service in services.values():
            service.close()
    return {"asking": ASKING, "rounds": _ROUNDS, "answers": _compared(times[1], times[ASKING]), "texts": texts}


def said_of_joint(report: dict[str, Any]) -> str:
    """A sentence for a page."""
    answers, texts, n = report["answers"], report["texts"], report["asking"]
    return (
        f"{n} questions at the same time take {answers['together_s']:.2f} s together and "
        f"{answers['one_by_one_s']:.2f} s one after the other: {_times(answers)} as fast. Of their texts alone, were "
        f"they {texts['tokens']} tokens long, {_times(texts)} ({report['rounds']} rounds in turn)."
    )


def _times(compared: dict[str, Any]) -> str:
    low, high = compared["ratio_ci"]
    return f"{compared['ratio']:.2f} [{low:.2f}, {high:.2f}] times"


def _compared(alone: Sequence[float], joint: Sequence[float]) -> dict[str, Any]:
    ratio = bootstrap_ratio(np.array(alone), np.array(joint))
    return {
        "one_by_one_s": float(np.mean(alone)),
        "together_s": float(np.mean(joint)),
        "ratio": ratio.mean,
        "ratio_ci": [ratio.low, ratio.high],
    }


def _texts(service: Service, pictures: Sequence[Path]) -> dict[str, Any]:
    """Texts that no end cuts short, after the prompts of as many questions."""
    reader, selector = service.reader, service.live_selector()
    question, prompts = parse_question(_QUESTIONS[0]), list[Any]()
    for picture in pictures[:ASKING]:
        grid = reader.encode(load(picture))
        kept = selector.select(grid, question, tokens_at(service.config.serve.share, grid, reader))
        wanted = next(reader.reading(question, grid, kept))
        assert isinstance(wanted, Write)  # a reading begins with a text
        prompts.append(wanted.prompt)

    def took(most: int) -> float:
        together, left = Together(reader.begin, most), [Write(one, frozenset(), _TOKENS) for one in prompts]
        begun = time.perf_counter()
        while left or len(together):
            if left and together.room:
                together.join(left.pop(0))
            together.step()
        return time.perf_counter() - begun

    rounds = [(took(1), took(ASKING)) for _ in range(_ROUNDS)]
    return {"tokens": _TOKENS, **_compared([a for a, _ in rounds], [b for _, b in rounds])}


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
