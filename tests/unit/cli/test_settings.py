"""Every setting can be explained: its value, where it comes from, what it means."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsight.cli import output
from sparsight.cli.main import app
from sparsight.cli.session import Session
from sparsight.cli.settings import settings
from sparsight.config import SECTIONS, Config
from sparsight.errors import ConfigError


def test_every_setting_is_there_and_says_what_it_is(tmp_path: Path) -> None:
    found = {one.name: one for one in settings(Session(tmp_path, None, None))}
    config = Config(home=tmp_path)
    fields = {f"{section}.{name}" for section in SECTIONS for name in type(getattr(config, section)).model_fields}
    assert set(found) == fields | {"home", "database"}
    assert [one.name for one in found.values() if not one.about] == []
    assert {one.name for one in found.values() if one.value != one.default} == {"home"}
    assert found["site.leeway_s"].unit == "seconds"
    assert found["serve.cache_bytes"].unit == "bytes"
    assert found["learn.every_hours"].unit == "hours"


def test_where_each_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "serve.yaml").write_text("budget: 0.3\n")
    monkeypatch.setenv("SPARSIGHT_DATABASE", "postgresql+psycopg://u:qqpasswordqq@h/d")
    monkeypatch.delenv("SPARSIGHT_CONFIGS", raising=False)
    found = {one.name: one for one in settings(Session(tmp_path, tmp_path, "mine"))}
    sources = {name: one.source for name, one in found.items() if one.source != "default"}
    assert sources == {
        "home": "--home or SPARSIGHT_HOME",
        "database": "SPARSIGHT_DATABASE",
        "serve.budget": "serve.yaml",
        "serve.reader": "--reader",
    }
    assert (found["serve.budget"].value, found["serve.budget"].default) == (0.3, 0.1)
    monkeypatch.setenv("SPARSIGHT_CONFIGS", str(tmp_path))
    printed = CliRunner().invoke(app, ["--home", str(tmp_path), "config", "explain", "--json"])
    assert printed.exit_code == 0
    assert "qqpasswordqq" not in printed.output
    assert json.loads(printed.output)["sha256"] == Config.load(home=tmp_path).sha256
    monkeypatch.setattr(output.console, "width", 300)
    table = CliRunner().invoke(app, ["config", "explain"]).output
    [line] = [line for line in table.splitlines() if "learn.every_hours" in line]
    assert [cell.strip() for cell in line.split("│")[1:5]] == ["learn.every_hours", "0.0", "hours", "default"]
    assert "site.issuer" in table


def test_a_fault_is_said(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("isuer: x\n")
    with pytest.raises(ConfigError, match="isuer"):
        list(settings(Session(tmp_path, tmp_path, None)))
