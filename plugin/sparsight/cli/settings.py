"""Command about settings: config explain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from sparsight.cli.output import Json, console, emit_json
from sparsight.cli.session import Session
from sparsight.config import SECTIONS, Config

config = typer.Typer(help="Settings, and where they come from.", no_args_is_help=True)
_UNITS = {
    "_s": "seconds",
    "_hours": "hours",
    "_bytes": "bytes",
    "_nats": "nats",
    "_chars": "characters",
    "_per_minute": "per minute",
}  # by the end of a name; others are numbers, shares and texts


@dataclass(frozen=True)
class Setting:
    """One setting. source: `default`, a file's name, a variable or an option."""

    name: str
    value: Any
    default: Any
    unit: str
    source: str
    about: str


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    config.command()(explain)
    app.add_typer(config, name="config")


def explain(context: typer.Context, json: Json = False) -> None:
    """Print every setting with value, unit (if any), source, default and meaning; a fault in a file is an error."""
    session: Session = context.obj
    found = list(settings(session))
    if json:
        emit_json({"settings": [vars(setting) for setting in found], "sha256": session.config().sha256})
        return
    table = Table("setting", "value", "unit", "source", "default", "meaning")
    for one in found:
        shown = [str(value) for value in (one.value, one.unit, one.source, one.default)]
        table.add_row(one.name, *map(escape, shown), escape(one.about))
    console.print(table)


def settings(session: Session) -> Iterator[Setting]:
    """Every setting there is, in the order of the files. Raises ConfigError."""
    now = session.config()
    folder = session.configs or (Path(os.environ["SPARSIGHT_CONFIGS"]) if os.environ.get("SPARSIGHT_CONFIGS") else None)
    fields = Config.model_fields
    home = "--home or SPARSIGHT_HOME" if session.home or os.environ.get("SPARSIGHT_HOME") else "default"
    yield Setting("home", str(now.home), "the user's data folder", "", home, fields["home"].description or "")
    database = "SPARSIGHT_DATABASE" if os.environ.get("SPARSIGHT_DATABASE") else "default"
    yield Setting("database", _without_password(now.database), None, "", database, fields["database"].description or "")
    for section in SECTIONS:
        given = set(_keys(folder / f"{section}.yaml")) if folder else set()
        values, usual = (getattr(c, section).model_dump(mode="json") for c in (now, Config(home=now.home)))
        for name, field in type(getattr(now, section)).model_fields.items():
            source = f"{section}.yaml" if name in given else "default"
            source = "--reader" if (section, name) == ("serve", "reader") and session.reader else source
            unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")
            yield Setting(f"{section}.{name}", values[name], usual[name], unit, source, field.description or "")


def _keys(path: Path) -> list[str]:
    return list(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else []


def _without_password(url: str | None) -> str | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return None if url is None else make_url(url).render_as_string(hide_password=True)
    except ArgumentError:  # its text repeats the URL
        return "a URL that cannot be read"
