"""A model of one's own goes the whole way: ask, correct, learn (visual stream and LoRA), promote, ask again, roll back.

The models are tiny and random, under NF4: what they say means nothing, but all they are taught must arrive.
"""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from sparsight.config import Config
from sparsight.exchange import export_bundle, import_bundle, read_bundle
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.tiny import save_tiny
from sparsight.service import Service
from sparsight.service.turn import Priority
from sparsight.types import Feedback, ImageVolume, Question

pytestmark = [pytest.mark.slow, pytest.mark.learning]

ASKED = Question("Is there a bright spot?", "yes_no", ("yes", "no"))


@pytest.fixture(params=["qwen3_vl", "gemma3"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    weights = save_tiny(request.param, tmp_path / "weights")
    model = {
        "name": "own",
        "weights": str(weights),
        "family": request.param,
        "quantization": "nf4",
        "device": "cpu",
        "tokens_per_image": 64,
        "reasoning_tokens": 8,
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    config = Config.load(
        home=tmp_path / "home",
        serve={"reader": str(tmp_path / "own.yaml"), "recheck_budget": 0.0},
        learn={
            "steps": 2,
            "passes": 0,
            "batch": 4,
            "group": 2,
            "tuning_steps": 40,
            "tuning_lr": 0.02,
            "language_steps": 1,
            "language_rank": 4,
        },
        gate={"sentinel": 20, "margin": 1.0, "min_feedback": 2, "exact": False},
    )
    with closing(Service(config)) as made:
        yield made


def _study(i: int) -> ImageVolume:
    return pattern(1, 64, 64, (0, 6 * i % 40, 10 * i % 40), 16 + i)


def test_ask_correct_learn_promote(service: Service, tmp_path: Path) -> None:
    first = service.ask(_study(0), ASKED)
    assert first.episode.selection.fraction == 1.0  # nothing was learned yet: all tokens, as the model was published
    assert first.episode.reader.startswith("own-")
    wrong = "no" if first.episode.answer.text == "yes" else "yes"
    confidence = first.episode.answer.confidence
    for i in range(8):
        asked = service.ask(_study(i), ASKED, budget=0.2)
        given = Feedback(f"k{i}", asked.episode.id, "r1", "amend", answer=wrong, created=datetime.now(UTC))
        assert service.correct(given).total <= 1
    learned = service.learn()
    assert learned.candidate is not None
    assert learned.promoted, learned.reasons
    arrays = load_file(service.registry.weights_path(learned.candidate.id))
    adapter = [array for name, array in arrays.items() if name.startswith("lora.")]
    assert len(adapter) == 2 * 7 * 2
    assert all(np.abs(array).max() > 0 for array in adapter)
    again = service.ask(_study(0), ASKED)
    assert again.episode.policy == learned.candidate.id
    assert again.episode.selection.fraction == pytest.approx(0.1, abs=0.05)
    assert again.episode.answer.text == wrong or again.episode.answer.confidence < confidence
    assert _elsewhere(service, tmp_path) == (again.episode.answer.text, again.episode.answer.confidence)
    service.rollback()
    back = service.ask(_study(0), ASKED)
    assert back.episode.answer.text == first.episode.answer.text
    assert back.episode.answer.confidence == pytest.approx(confidence, abs=1e-4)  # as published, the adapter is off


def _elsewhere(service: Service, folder: Path) -> tuple[str, float]:
    """What another site with the same model answers, once it has taken in what was learned here and signed for it."""
    config = service.config.model_copy(update={"home": folder / "elsewhere"})
    export_bundle(service, folder / "bundle")
    with closing(Service(config)) as there:
        taken = import_bundle(config, read_bundle(folder / "bundle")).policy
        there.promote(taken.id, sign_off="Dr. B")
        episode = there.ask(_study(0), ASKED).episode
    assert (episode.policy, episode.policy_sha256) == (taken.id, service.registry.live().sha256)
    return episode.answer.text, episode.answer.confidence


def test_who_asks_while_it_learns_is_answered_as_before(service: Service) -> None:
    before = service.ask(_study(3), ASKED).episode.answer
    for i in range(8):
        asked = service.ask(_study(i), ASKED, budget=0.2)
        service.correct(Feedback(f"k{i}", asked.episode.id, "r1", "amend", answer="yes", created=datetime.now(UTC)))
    seen: list[float] = []

    def step(progress: object) -> None:
        if getattr(progress, "stage", "") in {"tuning", "language"}:
            seen.append(1.0)  # the reader is learning now

    held: list[float] = []
    give_way = service._turnstile.give_way

    def asked_between(priority: Priority) -> None:
        if seen and not held:  # between two steps of the language stream
            policy, selector = service._streams.live()
            service._streams.take_on(policy.id)
            grid = service.reader.encode(_study(3))
            answer = service.reader.read(ASKED, grid, selector.select(grid, ASKED, grid.n))
            held.append(answer.confidence)
            assert answer.text == before.text
        give_way(priority)

    service._turnstile.give_way = asked_between  # type: ignore[method-assign]  # to be there between two steps
    service.learn(on_progress=step)
    assert held == [pytest.approx(before.confidence, abs=1e-4)]
