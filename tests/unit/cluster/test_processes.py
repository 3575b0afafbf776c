"""Several processes train as one would have: started by accelerate, over gloo, on a tiny random model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from sparsight.cluster.processes import Processes
from sparsight.cluster.sharded import spread
from sparsight.errors import ConfigError
from sparsight.model import load_reader
from sparsight.rl.ranks import ALONE, Ranks

HERE = Path(__file__).parent
CONFIGS = HERE.parents[2] / "configs" / "cluster"


@pytest.fixture(scope="session")
def together() -> ModuleType:
    """together.py, in this process."""
    spec = importlib.util.spec_from_file_location("together", HERE / "together.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["together"] = module
    spec.loader.exec_module(module)
    return module


def launch(config: str, *command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with a shipped configuration, on a free port."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    given = ["--config_file", str(CONFIGS / config), "--num_processes", str(processes), "--main_process_port", "0"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *given, *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def difference(ours: Path, theirs: Path) -> float:
    """The largest of any weight, but for what is added to all scores alike: rounding moves it, and Adam scales that."""
    one, other = load_file(ours), load_file(theirs)
    assert set(one) == set(other)
    return max(float(np.abs(one[name] - other[name]).max()) for name in one if name != "out.bias")


@pytest.fixture(scope="session")
def alone(together: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process ends with."""
    folder = tmp_path_factory.mktemp("alone")
    together.both_streams(together.reader_of(), ALONE, folder)
    return folder


@pytest.fixture(scope="session")
def pair(together: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes end with; in `whole` they go on from where one was killed."""
    folder = tmp_path_factory.mktemp("pair")
    for name in ("whole", "spread"):
        (folder / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        together.both_streams(together.reader_of(), ALONE, folder / "whole", steps=10)
    assert (folder / "whole" / "running.safetensors").is_file()
    done = launch("fsdp.yaml", str(HERE / "together.py"), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("held", ["whole", "spread"])
def test_two_processes_end_where_one_does(alone: Path, pair: Path, held: str) -> None:
    """Gradients of two halves are summed in another order than those of the whole: rounding, and no more."""
    assert difference(alone / "ended-0.safetensors", pair / held / "ended-0.safetensors") < 1e-4
    assert difference(pair / held / "ended-0.safetensors", pair / held / "ended-1.safetensors") == 0
    one, two = (json.loads((folder / "facts-0.json").read_text()) for folder in (alone, pair / held))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-6)
    assert two["weights"] == pytest.approx(one["weights"] / (2 if held == "spread" else 1), rel=0.02)


@pytest.mark.slow
def test_what_all_have_read_the_first_one_knows_alone(together: ModuleType, pair: Path) -> None:
    alone = together.reader_of().embed(together.UNSEEN).numpy()
    for held in ("whole", "spread"):
        assert np.abs(load_file(pair / held / "seen.safetensors")["seen"] - alone).max() < 1e-5


@pytest.mark.slow
def test_all_go_on_from_the_first_one_s_checkpoint_and_only_it_reports(pair: Path) -> None:
    first, second = (json.loads((pair / "whole" / f"facts-{rank}.json").read_text()) for rank in range(2))
    assert first["told"] == [11]
    assert second["told"] == []
    assert not (pair / "whole" / "running.safetensors").exists()


@pytest.mark.slow
def test_what_is_wrong_in_one_process_is_said_in_all(pair: Path) -> None:
    first, second = (json.loads((pair / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first["one fails"] == second["one fails"] == "bad_data: a fault of one process"
    assert first["one is full"] == second["one is full"] == "no room"
    assert first["readers"] == "bad_weights: 2 different readers among 2 processes"
    assert "readers" not in second  # who follows waits for what comes next
    assert first["programs"] == second["programs"] == "bad_config: 2 different versions of sparsight among 2 processes"


@pytest.mark.parametrize("fault", ["nano", "quantized", "version 1"])
def test_what_cannot_be_spread_is_refused(
    together: ModuleType, reader_folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("FSDP_VERSION", "1" if fault == "version 1" else "2")
    reader = load_reader(reader_folder) if fault == "nano" else together.reader_of()
    if fault == "quantized":
        reader.model.hf_quantizer = object()
    expected = {"nano": "a model of transformers", "quantized": "quantization: none", "version 1": "fsdp_version: 2"}
    with pytest.raises(ConfigError, match=f"expected {expected[fault]}"):
        spread(reader, lambda n: n)


def test_a_full_memory_in_step_ends_the_process_without_a_word() -> None:
    """The others could not hear it: they wait in a pass."""
    ranks = object.__new__(Processes)
    ranks.in_step = True

    def full() -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(MemoryError, match="wait in a pass"):
        ranks.everyone(full)


class Many(Ranks):
    size = 5


def test_more_processes_than_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 processes for 4 questions"):
        Many().check(4)
    Many().check(5)
    Many().check(8)  # shares of one and of two
    in_parts = Many()
    in_parts.in_step = True
    with pytest.raises(ConfigError, match="spread over them"):
        in_parts.check(8)
    in_parts.check(10)


def test_every_question_is_one_process_s() -> None:
    shares = []
    for rank in range(5):
        ranks = Many()
        ranks.rank = rank
        shares += ranks.share(range(12))
    assert sorted(shares) == list(range(12))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsight.cluster import processes

    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 processes on a machine of 2 GPUs"), processes.launched():
        pass


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp.yaml"])
def test_every_line_of_a_configuration_is_explained(name: str) -> None:
    lines = (CONFIGS / name).read_text().splitlines()
    assert set(yaml.safe_load("\n".join(lines))) >= {"distributed_type", "num_machines", "num_processes"}
    plain = {"compute_environment", "distributed_type", "fsdp_config", "fsdp_version"}
    assert all("#" in line or line.split(":")[0].strip() in plain for line in lines if line.strip())
