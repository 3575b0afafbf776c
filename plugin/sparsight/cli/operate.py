"""Commands of operation: serve, doctor, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from sparsight.cli.output import Json, console, emit_json, progress_bar
from sparsight.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (serve, doctor, demo):
        app.command()(command)


def serve(
    context: typer.Context,
    studies: Annotated[str, typer.Option(help="Folder with images or DICOM, or a DICOMweb URL.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; off this machine only with login and TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    app: Annotated[
        Literal["radiology", "images"],
        typer.Option(help="Folder of apps/: its texts, and its settings where --configs names none."),
    ] = "radiology",
    json: Json = False,
) -> None:
    """Serve studies through MONAI Label, with sparsight's tasks and routes, until Ctrl-C."""
    from sparsight.server.run import app_source
    from sparsight.server.run import serve as run

    session: Session = context.obj
    config = session.config(app_source(app))
    url = page_url(host, port, secure=config.site.tls_certificate is not None)
    url += "reader" if app == "images" else ""

    def started() -> None:
        if json:
            emit_json({"url": url})
        else:
            console.print(f"starting; then open {url}")

    raise typer.Exit(run(config, studies, host=host, port=port, app=app, on_start=started))


def page_url(host: str, port: int, *, secure: bool = False) -> str:
    """Where the page is; a URL has an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/sparsight/"


def doctor(
    context: typer.Context,
    studies: Annotated[str | None, typer.Option(help="Also check a folder or DICOMweb URL.")] = None,
    reader: Annotated[Path | None, typer.Option(help="Check a model instead: one of configs/model/*.yaml.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of that model; default: as its file says.")] = None,
    tiny: Annotated[bool, typer.Option(help="Check every family of models on tiny random weights instead.")] = False,
    json: Json = False,
) -> None:
    """Check installation, devices, weights, store and studies, or a vision-language model; say what to do."""
    session: Session = context.obj
    figures: dict[str, object] = {}
    with progress_bar("doctor", quiet=json) as advance:
        if tiny or reader is not None or weights is not None:
            from sparsight.config import ModelConfig
            from sparsight.doctor_models import examine_model, examine_tiny
            from sparsight.model import model_config

            if reader is not None and weights is not None:
                config = ModelConfig.read(reader)
            else:
                config = ModelConfig() if reader is None else model_config(reader)
            if weights is not None:
                config = config.model_copy(update={"weights": weights})
            report = examine_tiny(advance) if tiny else examine_model(config, advance)
            findings, figures = list(report.findings), report.figures
        else:
            from sparsight.doctor import examine

            findings = examine(session.config(), studies)
    healthy = all(f.ok for f in findings)
    if json:
        emit_json({"healthy": healthy, "checks": [vars(f) for f in findings], **figures})
    else:
        table = Table("check", "", "found", "to do")
        for f in findings:
            table.add_row(f.name, "[green]ok[/]" if f.ok else "[red]fault[/]", f.found, f.todo)
        console.print(table)
    raise typer.Exit(0 if healthy else 1)


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Where sample studies, store and pictures go.")] = Path(".demo"),
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    once: Annotated[bool, typer.Option(help="Do the whole loop once without a person, print JSON, exit.")] = False,
    json: Json = False,
) -> None:
    """Start the server on sample studies and go through the loop: ask, correct, learn, gate, ask again."""
    from sparsight.demo import run

    session: Session = context.obj
    config = session.config()
    if session.home is None:  # a demonstration leaves no trace in the user's own store
        config = config.model_copy(update={"home": folder.resolve() / "home"})
    summary = run(config, folder, port=port, once=once)
    if once or json:
        emit_json(summary)
