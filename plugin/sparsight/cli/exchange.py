"""Commands between sites: export-bundle, import-bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli.output import Json, console, emit_json
from sparsight.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(export_bundle)
    app.command()(import_bundle)


def export_bundle(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="A new folder, or a new .zip file.")],
    policy: Annotated[str | None, typer.Option(help="Id of a policy that `policies` lists; default: live.")] = None,
    site: Annotated[str | None, typer.Option(help="Pseudonym of this site, written into the bundle.")] = None,
    json: Json = False,
) -> None:
    """Write a policy as a MONAI bundle for another site, with its reader where that is nano."""
    from sparsight.exchange import export_bundle as export

    session: Session = context.obj
    with session.service() as service:
        exported = export(service, out, policy=policy, site=site)
    if json:
        emit_json(
            {
                "bundle": str(out),
                "sha256": exported.sha256,
                "policy": exported.policy.id,
                "reader": exported.policy.reader,
                "files": exported.files,
                "bytes": exported.bytes,
            }
        )
        return
    console.print(f"{exported.policy.id} of {exported.policy.reader}: {exported.files} files, {exported.bytes} bytes")
    console.print(f"sha256 {exported.sha256}", soft_wrap=True)
    console.print("tell the other site this hash by another way than the bundle goes")


def import_bundle(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder or .zip file.")],
    sha256: Annotated[str | None, typer.Option(help="What the export printed; another bundle is refused.")] = None,
    reader_dir: Annotated[
        Path | None, typer.Option(help="Put the bundle's reader into this new folder, and take the policy in for it.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a bundle of another site and take its policy as a candidate; a person promotes it."""
    from sparsight.exchange import import_bundle as take
    from sparsight.exchange import read_bundle
    from sparsight.reply import policy_json

    session: Session = context.obj
    config = session.config()
    reader_dir = reader_dir.absolute() if reader_dir is not None else None
    imported = take(config, read_bundle(bundle, sha256=sha256), reader_folder=reader_dir)
    if json:
        emit_json(
            {
                "policy": policy_json(imported.policy),
                "new": imported.new,
                "sha256": imported.sha256,
                "reader": {"id": imported.reader, "sha256": imported.reader_sha256},
                "reader_dir": None if reader_dir is None else str(reader_dir),
                "calibration_same": imported.calibration_same,
            }
        )
        return
    state = "is a candidate" if imported.new else f"was here already and is {imported.policy.state}"
    console.print(f"{imported.policy.id} of {imported.reader} {state}")
    for reason in imported.policy.reasons if imported.new else ():
        console.print(f"  - {reason}", markup=False)
    reader = f"--reader {reader_dir} " if reader_dir is not None else ""
    if imported.new:
        console.print(f"  sparsight {reader}promote {imported.policy.id} --sign-off NAME", soft_wrap=True, markup=False)
