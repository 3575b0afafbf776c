"""The `sparsight` program: options common to all commands, and how errors leave it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import sparsight
from sparsight.cli import clinical, dicom, exchange, keep, operate, records, research, settings
from sparsight.cli.output import emit_json, refused, stderr
from sparsight.cli.session import Session
from sparsight.errors import SparsightError

app = typer.Typer(
    name="sparsight",
    help="Ask about a medical image; see the few regions the answer rests on; correct it; the policy learns.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(sparsight.__version__)
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    home: Annotated[
        Path | None, typer.Option(help="Folder of store, policies and cache.", envvar="SPARSIGHT_HOME")
    ] = None,
    configs: Annotated[
        Path | None, typer.Option(help="Folder with serve.yaml, learn.yaml, …", envvar="SPARSIGHT_CONFIGS")
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="nano, smol, one of configs/model/*.yaml, or a folder of weights.")
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    context.obj = Session(home=home, configs=configs, reader=reader)


for module in (clinical, records, keep, dicom, exchange, research, operate, settings):
    module.register(app)


def main() -> None:
    """Run a command. Our errors and the operating system's end it with exit code 1 and one clear message (or JSON)."""
    warnings.filterwarnings("ignore", module="pydicom")  # they quote what tags hold
    try:
        app()
    except SparsightError as error:
        _fail(error)
    except OSError as error:  # of files outside the store: pictures, label maps, reports
        _fail(refused(error))


def _fail(error: SparsightError) -> NoReturn:
    if "--json" in sys.argv:
        emit_json(error.as_dict())
    else:
        stderr.print(f"[bold red]{error.code}[/]: {error.given}", soft_wrap=True)
        stderr.print(f"  expected: {error.expected}\n  to do:    {error.todo}", soft_wrap=True)
    sys.exit(1)
