"""Bundles from the command line: exported at one site, imported and promoted at another; every refusal has its code."""

import json
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from sparsight.cli.main import app
from sparsight.model import load_base_policy
from sparsight.store import PolicyRegistry


def test_from_one_site_to_another(
    run_at: Any, tmp_path: Path, reader_folder: Path, looking_folder: Path, picture: Path
) -> None:
    bundle, folder = str(tmp_path / "b.zip"), tmp_path / "reader"
    (base,) = run_at("a", "policies")[1]["policies"]
    arrays = {name: array + 0.5 for name, array in load_base_policy(reader_folder).items()}
    registry = PolicyRegistry(tmp_path / "a" / "readers" / base["reader"])
    learned = registry.add(arrays, parent=base["id"], reader=base["reader"])
    code, exported = run_at("a", "export-bundle", bundle, "--policy", learned.id, "--site", "site-a")
    assert (code, exported["bundle"], exported["files"]) == (0, bundle, 10)
    args = ("import-bundle", bundle, "--sha256", exported["sha256"])
    code, refused = run_at("b", *args, reader=looking_folder)
    assert (code, refused["error"]["code"]) == (1, "bad_weights")
    assert "--reader-dir" in refused["error"]["todo"]
    code, imported = run_at("b", *args, "--reader-dir", str(folder), reader=looking_folder)
    assert (code, imported["new"], imported["reader_dir"]) == (0, True, str(folder))
    policy = imported["policy"]
    assert (policy["id"], policy["state"]) == (exported["policy"], "candidate")
    assert (policy["origin"]["site"], policy["origin"]["bundle_sha256"]) == ("site-a", exported["sha256"])
    assert not run_at("b", *args, "--reader-dir", str(folder), reader=looking_folder)[1]["new"]
    code, asked = run_at("b", "ask", str(picture), "Is there a nodule?", reader=folder)
    assert (code, asked["reader"]) == (0, exported["reader"])
    states = {p["id"]: p["state"] for p in run_at("b", "policies", reader=folder)[1]["policies"]}
    assert states == {base["id"]: "live", learned.id: "candidate"}
    code, promoted = run_at("b", "promote", learned.id, "--sign-off", "Dr. B", reader=folder)
    assert (code, promoted["state"], promoted["sha256"]) == (0, "live", learned.sha256)


def test_every_refusal_has_a_code(run_at: Any, tmp_path: Path) -> None:
    there = tmp_path / "bundle"
    assert run_at("a", "export-bundle", str(there))[0] == 0
    cut = tmp_path / "cut.zip"
    cut.write_bytes(b"PK")
    pickled = shutil.copytree(there, tmp_path / "pickled")
    (pickled / "models" / "model.pt").touch()
    newer = shutil.copytree(there, tmp_path / "newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"format": 3}))
    for args, code in (
        (("export-bundle", str(there)), "bad_input"),
        (("export-bundle", str(tmp_path / "none" / "x")), "bad_input"),
        (("export-bundle", "/proc/x.zip"), "bad_input"),
        (("export-bundle", str(tmp_path / "x"), "--policy", "p404"), "not_found"),
        (("export-bundle", str(tmp_path / "x"), "--site", "a b"), "bad_input"),
        (("import-bundle", str(tmp_path / "none")), "not_found"),
        (("import-bundle", str(cut)), "bad_bundle"),
        (("import-bundle", str(pickled)), "bad_bundle"),
        (("import-bundle", str(newer)), "conflict"),
        (("import-bundle", str(there), "--sha256", "x"), "bad_input"),
        (("import-bundle", str(there), "--sha256", "0" * 64), "bad_bundle"),
        (("import-bundle", str(there), "--reader-dir", str(tmp_path)), "conflict"),
        (("import-bundle", str(there), "--reader-dir", str(cut)), "bad_input"),
    ):
        exit_code, reply = run_at("b" if args[0] == "import-bundle" else "a", *args)
        assert (exit_code, reply["error"]["code"]) == (1, code), args
        assert all(reply["error"][part] for part in ("given", "expected", "todo"))
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "x").exists()


def test_a_person_is_told_what_to_do_next(tmp_path: Path, reader_folder: Path) -> None:
    def said(site: str, *args: str) -> str:
        done = CliRunner().invoke(app, ["--home", str(tmp_path / site), "--reader", str(reader_folder), *args])
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())

    bundle = str(tmp_path / "bundle")
    assert "by another way" in said("a", "export-bundle", bundle)
    first = said("b", "import-bundle", bundle)
    assert "was here already and is live" in first  # the shipped one of both sites
    assert "--sign-off" not in first
