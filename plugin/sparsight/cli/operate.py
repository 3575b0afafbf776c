"""Commands of operation: serve, doctor, calibrate, demo."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from sparsight.cli.output import Json, console, emit_json, progress_bar
from sparsight.cli.rows import drawn, fitting
from sparsight.cli.session import Session
from sparsight.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (serve, doctor, calibrate, demo):
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


def calibrate(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder of questions with known answers (docs/data.md).")],
    split: Annotated[str, typer.Option(help="Split of that folder; nothing was trained on it.")] = "val",
    limit: Annotated[int, typer.Option(help="The most questions, drawn with the seed.", min=4)] = 400,
    write: Annotated[bool, typer.Option("--write", help="Write both numbers into the reader's YAML file.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draw, of the halves and the interval.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Fit how sure a model of one's own may say it is: on half of the groups, measured on the others."""
    from sparsight.datasets import load_folder
    from sparsight.model.hf.reader import HFReader
    from sparsight.recipe.calibrate import calibrate_model

    session: Session = context.obj
    file = Path(session.config().serve.reader)
    if write and not (file.suffix in (".yaml", ".yml") and file.is_file()):
        raise ConfigError(
            "a reader without a file to write into",
            expected="--reader FILE.yaml",
            todo="see configs/model/, or leave --write out",
        )
    cases = load_folder(data, split)
    with session.service() as service, progress_bar("calibrate", quiet=json) as tell:
        if not isinstance(service.reader, HFReader):
            raise ConfigError(
                "a reader that its training calibrates", expected="a model of one's own", todo="name one: --reader"
            )
        chosen = drawn(fitting(cases, service.reader), limit, seed)
        share = service.config.serve.share
        found = calibrate_model(service.reader, service.live_selector(), chosen, share, seed=seed, tell=tell)
    settings = {"confidence_slope": round(found.slope, 4), "confidence_offset": round(found.offset, 4)}
    if write:
        _set(file, settings)
    if json:
        emit_json({"settings": settings, "written": write, "seed": seed, **vars(found)})
        return
    for name, value in settings.items():
        console.print(f"{name}: {value}")
    low, high = found.brier_gain_ci
    console.print(
        f"On {found.measured_on} other questions (accuracy {found.accuracy:.3f}) the calibration error is "
        f"{found.ece_after:.3f}, before {found.ece_before:.3f}; Brier's score improves by {found.brier_gain:.3f} "
        f"[{low:.3f}, {high:.3f}]."
    )
    console.print("Written." if write else "Put them into the reader's YAML file, or use --write.")


def _set(file: Path, settings: dict[str, float]) -> None:
    """Replace these lines of a YAML file, or add them at its end; everything else stays as it is."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for name, value in settings.items():
        lines = [line for line in lines if not line.startswith(f"{name}:")]
        lines.append(f"{name}: {value}  # fitted by sparsight calibrate")
    beside = file.with_name(f".{file.name}.new")
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copymode(file, beside)
    beside.replace(file)


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
