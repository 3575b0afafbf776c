"""The same corrections learned alone, with workers that score, and in two processes: the same candidate."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from sparsight.cluster import scoring
from sparsight.cluster.pool import Pool
from sparsight.config import Config
from sparsight.errors import ConfigError
from sparsight.model.hf.tiny import save_tiny
from sparsight.rl.ranks import Ranks
from sparsight.service import Learned, Service
from sparsight.types import Feedback, ImageVolume, Question

LEARN = {"steps": 3, "passes": 0, "batch": 4, "group": 4, "held_out": 0.4}
LEARN |= {"tuning_steps": 2, "language_steps": 2, "language_rank": 4}  # of a model that has an adapter
GATE = {"sentinel": 20, "min_feedback": 2}
CONFIGS = Path(__file__).parents[3] / "configs" / "cluster"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Site:
    """A home with five corrected questions that nobody has learned from, and what one process learns from them."""

    reader: Path
    home: Path
    alone: Learned
    candidate: tuple[dict[str, Any], list[float]]

    def copy(self, home: Path) -> Path:
        shutil.copytree(self.home, home)
        return home


def site_of(reader: Path, folder: Path) -> Site:
    service = Service(config_of(folder / "home", reader))
    for n in range(5):
        voxels = np.random.default_rng(n).uniform(0, 200, (1, 96, 120)).astype(np.float32)
        volume = ImageVolume(voxels, np.diag([0.5, 0.5, 1, 1]), "DX", (127.5, 255.0))
        episode = service.ask(volume, Question("Is there a nodule?", "yes_no"), recheck=False).episode
        service.correct(Feedback(f"k{n}", episode.id, "dr-a", "amend", datetime.now(UTC), answer=("no", "yes")[n % 2]))
    service.correct(Feedback("bare", episode.id, "dr-b", "reject", datetime.now(UTC)))
    service.close()
    shutil.copytree(folder / "home", folder / "alone")
    config = config_of(folder / "alone", reader)
    service = Service(config)
    alone = service.learn()
    service.close()
    return Site(reader, folder / "home", alone, learned(config))


def config_of(home: Path, reader: Path, **more: Any) -> Config:
    return Config.load(home=home, serve={"reader": str(reader)}, learn=LEARN, gate=GATE, **more)


def learned(config: Config) -> tuple[dict[str, Any], list[float]]:
    """The weights of a home's candidate, and what the gate measured."""
    service = Service(config)
    (candidate,) = [policy for policy in service.registry.list() if policy.parent is not None]
    arrays = load_file(service.registry.weights_path(candidate.id))
    service.close()
    return arrays, [candidate.metrics[name] for name in sorted(candidate.metrics)]


@pytest.fixture(scope="module")
def nano(reader_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return site_of(reader_folder, tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With a tiny random model of one's own."""
    folder = tmp_path_factory.mktemp("own")
    model = {
        "weights": str(save_tiny("llava", folder / "weights")),
        "dtype": "float32",
        "device": "cpu",
        "tokens_per_image": 64,
        "reasoning_tokens": 8,
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(model))
    return site_of(folder / "own.yaml", folder)


def same(one: Any, other: Any) -> None:
    assert set(one[0]) == set(other[0])
    for name, weights in one[0].items():
        if name != "out.bias":  # added to all scores alike: rounding moves it, and Adam scales that
            assert np.abs(weights - other[0][name]).max() < 1e-4
    assert one[1] == pytest.approx(other[1], abs=1e-4)


@pytest.fixture
def working(pool_of_readers: Pool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lends the pool that is there; how many pieces of work it was given at a time."""
    given: list[int] = []
    told = Pool.map
    monkeypatch.setattr(scoring, "Pool", lambda settings, make: nullcontext(pool_of_readers))

    def count(self: Pool, work: Any, parts: Any) -> Any:
        given.append(len(parts))
        return told(self, work, parts)

    monkeypatch.setattr(Pool, "map", count)
    return given


def test_workers_that_score_change_nothing(nano: Site, tmp_path: Path, working: list[int]) -> None:
    config = config_of(nano.copy(tmp_path / "home"), nano.reader, pool={"workers": 2})
    service = Service(config)
    assert service.learn().corrections == nano.alone.corrections
    service.close()
    assert len(working) > 3
    assert max(working) == 2
    same(learned(config), nano.candidate)


@pytest.mark.parametrize(("launched", "of"), [("ddp.yaml", "nano"), ("fsdp.yaml", "own")])
def test_two_processes_learn_what_one_does(
    request: pytest.FixtureRequest, tmp_path: Path, launched: str, of: str
) -> None:
    """The command itself, with the shipped configuration: one JSON object, and one candidate in the store."""
    site: Site = request.getfixturevalue(of)
    config = config_of(site.copy(tmp_path / "home"), site.reader)
    (tmp_path / "learn.yaml").write_text(yaml.safe_dump(LEARN))
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(GATE))
    given = ["--home", str(config.home), "--configs", str(tmp_path), "--reader", str(site.reader), "learn", "--json"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / launched)),
            *("--main_process_port", "0", "-m", "sparsight.cli", *given),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-9000:]
    told = json.loads(done.stdout)
    assert told["corrections"] == site.alone.corrections
    verdicts = site.alone.gate["verdicts"]
    assert told["gate"]["verdicts"]["effective"] == pytest.approx(verdicts["effective"], abs=1e-4)
    same(learned(config), site.candidate)
    if of == "own":
        assert all(np.abs(array).max() > 0 for name, array in site.candidate[0].items() if ".lora_B" in name)


class Pair(Ranks):
    size = 2


def test_workers_and_processes_at_once_are_refused(reader_folder: Path, tmp_path: Path) -> None:
    service = Service(config_of(tmp_path / "home", reader_folder, pool={"workers": 2}))
    with pytest.raises(ConfigError, match="workers, and several processes"):
        service.learn(ranks=Pair())
    service.close()
