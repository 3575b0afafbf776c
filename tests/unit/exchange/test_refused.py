"""What no import takes: altered, missing, extra, running, hidden, oversized; and nothing is left behind."""

import json
import os
import pickle
import shutil
import stat
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pytest
from safetensors.numpy import load, save

from sparsight.config import Config
from sparsight.errors import BundleError, ConflictError, InputError, NotFoundError, SparsightError
from sparsight.exchange import Exported, import_bundle, read_bundle
from sparsight.exchange import files as containers
from sparsight.model.nano.weights import check_files, reader_id

Rehashed = Callable[[dict[str, bytes | None]], Path]
FILES = [
    "LICENSE",
    "configs/inference.json",
    "configs/metadata.json",
    "docs/README.md",
    "models/policy.safetensors",
    "models/reader/manifest.json",
    "models/reader/policy.safetensors",
    "models/reader/reader.safetensors",
    "models/reader/tokenizer.json",
]


def refusal(path: Path, kind: type[SparsightError] = BundleError, **more: Any) -> SparsightError:
    with pytest.raises(kind) as refused:
        read_bundle(path, **more)
    assert all((refused.value.given, refused.value.expected, refused.value.todo))
    return refused.value


def test_the_files_of_a_bundle(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == sorted([*FILES, "manifest.json"])
    assert read_bundle(folder).sha256 == exported.sha256


@pytest.mark.parametrize("name", FILES)
def test_altered_and_missing_files(exported: Exported, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bundle" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert refusal(tmp_path / "bundle").given == f"{name} is not the file that was exported (sha256)"
    path.unlink()
    assert refusal(tmp_path / "bundle").given == f"a bundle without {name}"


def test_another_bundle_than_its_sender_said(exported: Exported, tmp_path: Path, rehashed: Rehashed) -> None:
    folder = rehashed({"docs/README.md": b"# Better than it is\n"})
    read_bundle(folder)  # its own hashes fit: only the hash told by another way shows it
    assert "sha256" in refusal(folder, sha256=exported.sha256).given
    for short in ("", "abc", "g" * 64):
        refusal(folder, InputError, sha256=short)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("models/model.pt", "a .pt file"),
        ("models/model.ts", "a .ts file"),
        ("weights.PKL", "a .pkl file"),
        ("scripts/__init__.py", "a .py file"),
        ("configs/logging.conf", "a .conf file"),
        ("notes of Mrs. Doe.txt", "1 files"),
        (".hidden", "1 files"),
        ("models/reader/rivals.safetensors", "1 files"),
    ],
)
def test_files_that_do_not_belong_to_it(exported: Exported, tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "bundle" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    given = refusal(tmp_path / "bundle").given
    assert said in given
    assert "Doe" not in given


def test_links_and_pipes(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    outside = tmp_path / "outside"
    shutil.copytree(folder, outside)
    for name in ("models/policy.safetensors", "models"):
        shutil.copytree(outside, folder, dirs_exist_ok=True)
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(outside / name)  # the same content, by a link
        assert "link" in refusal(folder).given
        path.unlink()
    shutil.copytree(outside, folder, dirs_exist_ok=True)
    (folder / "LICENSE").unlink()
    os.mkfifo(folder / "LICENSE")
    assert "device" in refusal(folder).given


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format"),
        ({"format": 3}, "format 3"),
        ({"format": 0}, "format"),
        ({"format": "1"}, "format"),
        ({"made_by": "x" * 100}, "made_by"),
        ({"site": "Dr. Doe\n"}, "site"),
        ({"reader": {"id": "../../x", "sha256": "0" * 64}}, "reader"),
        ({"sha256": {"../outside": "0" * 64}}, "without"),
        ({"Doe": 1}, "a key"),
        ({"policy": None}, "policy"),
    ],
)
def test_manifests(exported: Exported, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "bundle" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    given = refusal(tmp_path / "bundle", ConflictError if change.get("format") == 3 else BundleError).given
    assert said in given
    assert "Doe" not in given


def test_a_manifest_that_lists_what_no_bundle_has(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("../outside", "/etc/hostname", "models/model.pt"):
        path.write_text(json.dumps(manifest | {"sha256": manifest["sha256"] | {name: "0" * 64}}))
        assert "lists" in refusal(tmp_path / "bundle").given


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "p0001-00000000"),
        ("id", "p0001/../x"),
        ("sha256", "0" * 64),
        ("created", "yesterday"),
        ("created", "2026-01-01T00:00:00"),
        ("state", "best"),
        ("parent", "root"),
        ("metrics", {"gain": float("inf")}),
        ("metrics", {"": 1.0}),
    ],
)
def test_a_policy_that_is_not_what_the_manifest_says(
    exported: Exported, tmp_path: Path, field: str, value: Any
) -> None:
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["policy"][field] = value
    path.write_text(json.dumps(manifest))
    assert "policy" in refusal(tmp_path / "bundle").given


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe"])
def test_a_manifest_that_is_none(exported: Exported, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "bundle" / "manifest.json").write_bytes(text)
    refusal(tmp_path / "bundle")


def forged_policy(rehashed: Rehashed, folder: Path, data: bytes) -> Path:
    """A bundle whose manifest vouches for another policy."""
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = sha256(data).hexdigest()
    manifest["policy"] |= {"sha256": digest, "id": f"p0001-{digest[:8]}"}
    return rehashed({"manifest.json": json.dumps(manifest).encode(), "models/policy.safetensors": data})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("none", None),
        ("pickle", "no safetensors"),
        ("nan", "finite"),
        ("integers", "finite"),
        ("sizes", "sizes"),
        ("names", "no token policy"),
        ("adapter", "adapter of another model"),
        ("scalar", "no token policy"),
        ("bomb", "sizes"),
    ],
)
def test_a_forged_policy(exported: Exported, tmp_path: Path, rehashed: Rehashed, harm: str, said: str | None) -> None:
    folder = tmp_path / "bundle"
    arrays = load((folder / "models" / "policy.safetensors").read_bytes())
    if harm == "nan":
        arrays["out.bias"] = arrays["out.bias"] * np.nan
    elif harm == "integers":
        arrays["out.bias"] = arrays["out.bias"].astype(np.int64)
    elif harm == "sizes":
        arrays["film.weight"] = arrays["film.weight"][:, 1:]
    elif harm == "names":
        arrays["more"] = np.zeros(1, np.float32)
    elif harm == "adapter":
        arrays["lora.more"] = np.zeros(1, np.float32)
    elif harm == "scalar":
        arrays["prior.bias"] = np.array(1.0, np.float32)
    elif harm == "bomb":  # its first layer would ask for hidden x hidden weights of the next
        arrays["look.weight"] = np.zeros((300_000, arrays["look.weight"].shape[1]), np.float16)
    data = pickle.dumps({"weights": [1.0]}) if harm == "pickle" else save(arrays)
    forged = forged_policy(rehashed, folder, data)
    if said is None:
        read_bundle(forged)  # the forger's hashes fit
    else:
        assert said in refusal(forged).given


def test_a_config_that_monai_would_run(exported: Exported, tmp_path: Path, rehashed: Rehashed) -> None:
    folder = tmp_path / "bundle"
    kept = {name: (folder / name).read_bytes() for name in ("configs/inference.json", "configs/metadata.json")}
    config = json.loads(kept["configs/inference.json"])
    for change in ({"run": "$print(1)"}, {"run": {"_target_": "os.system", "command": "id"}}, {"question": "Is it?"}):
        assert "inference" in refusal(rehashed({"configs/inference.json": json.dumps(config | change).encode()})).given
    meta = json.loads(kept["configs/metadata.json"])
    for harm in ("$__import__('os').getcwd()", " %/etc/hostname", ["@run"], {"x": [{"_target_": "os.getcwd"}]}):
        changed = {**kept, "configs/metadata.json": json.dumps(meta | {"task": harm}).encode()}
        assert "metadata" in refusal(rehashed(changed)).given
    refusal(rehashed({**kept, "configs/metadata.json": b"not JSON"}))


def forged_reader(rehashed: Rehashed, folder: Path, spec: dict[str, Any], weights: bytes | None = None) -> Path:
    """A bundle whose reader's and own manifest vouch for another spec, or other weights."""
    reader = folder / "models" / "reader"
    inner = json.loads((reader / "manifest.json").read_text())
    inner["spec"] |= spec
    weights = weights or (reader / "reader.safetensors").read_bytes()
    inner["sha256"]["reader.safetensors"] = sha256(weights).hexdigest()
    text = json.dumps(inner).encode()
    files = {path.name: path.read_bytes() for path in reader.iterdir()}
    _, digest = check_files(files | {"manifest.json": text, "reader.safetensors": weights})
    outer = json.loads((folder / "manifest.json").read_text())
    outer["reader"] = {"id": reader_id(digest), "sha256": digest}
    changed = {"models/reader/manifest.json": text, "models/reader/reader.safetensors": weights}
    return rehashed({"manifest.json": json.dumps(outer).encode(), **changed})


@pytest.mark.parametrize(
    "spec",
    [
        {"layers": 10**9},
        {"hidden": 10**6},
        {"channels": "32"},
        {"heads": 0},
        {"heads": 3},
        {"logits": True},
        {"glance": -1},
        {"words": [1]},
        {"findings": ["x"] * 100},
        {"calibration": {"slope": "1"}},
        {"calibration": {"offset": float("nan")}},
    ],
)
def test_a_reader_of_impossible_sizes(
    exported: Exported, tmp_path: Path, rehashed: Rehashed, spec: dict[str, Any]
) -> None:
    assert "out of range" in refusal(forged_reader(rehashed, tmp_path / "bundle", spec)).given


@pytest.mark.parametrize(
    ("harm", "said"),
    [("layers", "sizes it says"), ("pickle", "no safetensors"), ("nan", "finite"), ("fewer", "sizes it says")],
)
def test_a_reader_that_is_not_installed(
    exported: Exported, second: Config, tmp_path: Path, rehashed: Rehashed, harm: str, said: str
) -> None:
    folder = tmp_path / "bundle"
    arrays = load((folder / "models" / "reader" / "reader.safetensors").read_bytes())
    spec: dict[str, Any] = {"layers": 64} if harm == "layers" else {}
    if harm == "nan":
        arrays["encoder.stem.bias"] = arrays["encoder.stem.bias"] * np.nan
    elif harm == "fewer":
        arrays.pop("encoder.stem.bias")
    weights = pickle.dumps([1.0]) if harm == "pickle" else save(arrays)
    bundle = read_bundle(forged_reader(rehashed, folder, spec, weights))
    with pytest.raises(BundleError, match=said):
        import_bundle(second, bundle, reader_folder=tmp_path / "reader")
    assert not (tmp_path / "reader").exists()
    assert not second.home.exists()


def test_what_is_no_bundle_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Exported) -> None:
    refusal(tmp_path / "nowhere", NotFoundError)
    (tmp_path / "empty").mkdir()
    assert "manifest.json" in refusal(tmp_path / "empty").given
    for n in range(70):
        (tmp_path / "empty" / f"{n}.dcm").touch()
    assert "64" in refusal(tmp_path / "empty").given
    monkeypatch.setattr(containers, "MAX_BYTES", 100_000)
    assert "MiB" in refusal(tmp_path / "bundle").given


# --- zip files ---


@pytest.fixture
def files(exported: Exported, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "bundle"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def zipped(path: Path, files: dict[str, bytes], more: list[tuple[ZipInfo, bytes]] = (), **how: Any) -> Path:  # type: ignore[assignment]
    with ZipFile(path, "w", how.get("compression", ZIP_DEFLATED)) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for info, data in more:
            archive.writestr(info, data)
        archive.comment = how.get("comment", b"")
    return path


def test_a_zip_file_made_by_hand_is_read(files: dict[str, bytes], tmp_path: Path, exported: Exported) -> None:
    for root in ("", "any folder/"):
        path = zipped(tmp_path / "b.zip", {f"{root}{name}": data for name, data in files.items()})
        assert read_bundle(path).sha256 == exported.sha256


@pytest.mark.parametrize(
    "name", ["../x", "b/../../x", "/etc/x", "b//x", "C:/x", "..\\x", "b/./x", "b/models/model.pt", "c/manifest.json"]
)
def test_zip_paths_that_lead_outside_or_do_not_belong(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    for root in ("", "b/"):
        inside = {f"{root}{known}": data for known, data in files.items()}
        refusal(zipped(tmp_path / "b.zip", inside, [(ZipInfo(name), b"x")]))
    assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_zip_entries_that_are_not_plain(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    licence = files["LICENSE"]
    rest = {name: data for name, data in files.items() if name != "LICENSE"}
    assert "twice" in refusal(zipped(path, files, [(ZipInfo("LICENSE"), licence)])).given
    link = ZipInfo("LICENSE")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "link" in refusal(zipped(path, rest, [(link, b"/etc/hostname")])).given
    assert "otherwise" in refusal(zipped(path, files, compression=ZIP_BZIP2)).given
    refusal(zipped(path, files, comment=b"a comment"))
    refusal(zipped(path, {f"{n}": b"" for n in range(70)}))
    data = bytearray(zipped(path, files).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the first entry says that it is encrypted
    path.write_bytes(data)
    assert "encrypted" in refusal(path).given


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -22])
def test_zip_files_that_are_cut(files: dict[str, bytes], tmp_path: Path, cut: int) -> None:
    data = zipped(tmp_path / "b.zip", files).read_bytes()
    (tmp_path / "b.zip").write_bytes(data[:cut])
    refusal(tmp_path / "b.zip")


@pytest.mark.parametrize("honest", [True, False])
def test_a_zip_bomb(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool) -> None:
    monkeypatch.setattr(containers, "MAX_BYTES", 8 * 2**20)
    path = zipped(tmp_path / "b.zip", files | {"docs/README.md": bytes(64 * 2**20)})
    assert path.stat().st_size < 2 * 2**20
    if not honest:  # both of its headers say that it is short: size at 22 or 24, CRC at 14 or 16
        data = bytearray(path.read_bytes())
        at = data.rindex(b"docs/README.md") - 46  # PKZIP APPNOTE 4.3.12
        (local,) = struct.unpack_from("<L", data, at + 42)
        for start, crc, size in ((local, 14, 22), (at, 16, 24)):
            struct.pack_into("<L", data, start + crc, zlib.crc32(bytes(10)))
            struct.pack_into("<L", data, start + size, 10)
        path.write_bytes(data)
    tracemalloc.start()
    given = refusal(path).given
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ("MiB" if honest else "docs/README.md is not the file") in given
    assert peak < 16 * 2**20
