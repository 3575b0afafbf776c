"""The YAML files repeat the defaults, every one of them, with a comment; nothing else is accepted."""

from pathlib import Path

import pytest
import yaml

from sparsight.config import Config, GateConfig, LearnConfig, PoolConfig, ServeConfig, SiteConfig
from sparsight.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
SECTIONS = {"serve": ServeConfig, "learn": LearnConfig, "gate": GateConfig, "site": SiteConfig, "pool": PoolConfig}


@pytest.mark.parametrize("name", SECTIONS)
def test_yaml_repeats_every_default_with_a_comment(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert yaml.safe_load(text) == SECTIONS[name]().model_dump(mode="json")
    assert all("#" in line for line in text.splitlines() if line and not line.startswith(" "))


def test_folder_and_overrides_win_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("budget: 0.3\nreader: other\n")
    config = Config.load(tmp_path, home=tmp_path, serve={"budget": 0.4})
    assert (config.serve.budget, config.serve.reader) == (0.4, "other")
    assert config.learn == LearnConfig()


@pytest.mark.parametrize(
    "text",
    [
        *("budget: 2", "budget: x", "bugdet: 0.1", "- a", "a: [", "budget: 0", "budget: .nan", b"\xff\xfe"),
        *("budget: " + "[" * 20_000, "budget: 2026-13-45", "budget: 1" + "0" * 5000),
    ],
)
def test_a_bad_file_is_a_config_error(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "serve.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError):
        Config.load(tmp_path)


def test_hash_follows_what_changes_answers_only(tmp_path: Path) -> None:
    base = Config.load()
    assert Config.load(home=tmp_path).sha256 == base.sha256
    assert Config.load(site={"log": "json"}).sha256 == base.sha256
    assert Config.load(pool={"workers": 4}).sha256 == base.sha256
    assert Config.load(learn={"every_hours": 24, "at_least": 5}).sha256 == base.sha256
    assert Config.load(learn={"seed": 1}).sha256 != base.sha256
    assert Config.load(serve={"budget": 0.2}).sha256 != base.sha256


@pytest.mark.parametrize("address", ["ray://here:1", "here", "here:", ":6379", "a b:1", "here:6379/x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"pool\.address"):
        Config.load(pool={"workers": 1, "address": address})


@pytest.mark.parametrize(("corrections", "steps"), [(1, 40), (40, 40), (41, 41), (82, 82), (1000, 1000)])
def test_many_corrections_are_drawn_as_often_as_a_few(corrections, steps):
    learn = LearnConfig(steps=40, passes=6, batch=12, replay=0.5)  # six corrections in a batch
    assert learn.for_corrections(corrections).steps == steps
    assert learn.for_corrections(corrections).lr == learn.lr
    assert learn.model_copy(update={"passes": 0}).for_corrections(corrections).steps == 40


@pytest.mark.parametrize(
    "learn", [{"passes": float("inf")}, {"passes": -1}, {"lr": float("nan")}, {"batch": 4, "replay": 0.9}]
)
def test_learning_that_could_not_be_is_refused(tmp_path, learn):
    with pytest.raises(ConfigError):
        Config.load(home=tmp_path, learn=learn)


@pytest.mark.parametrize(
    "site",
    [
        {"issuer": "http://id.example"},
        {"issuer": "id.example"},
        {"issuer": "https://id.example", "jwks_url": "ftp://id.example/keys"},
        {"issuer": "https://id.example", "algorithms": ["HS256"]},
        {"issuer": "https://id.example", "algorithms": ["none"]},
        {"issuer": "https://id.example", "algorithms": []},
        {"issuer": "https://id.example", "tls_key": "key.pem"},
        {"hosts": ["viewer.example"]},
        {"behind_proxy": True},
        {"isuer": "https://id.example"},
    ],
)
def test_an_unsafe_site_is_refused(tmp_path, site):
    with pytest.raises(ConfigError):
        Config.load(home=tmp_path, site=site)
