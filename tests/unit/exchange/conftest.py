"""Two sites with the same reader; at the first one a learned policy is live, and exported."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsight.config import Config
from sparsight.exchange import Exported, export_bundle
from sparsight.model import load_base_policy
from sparsight.service import Service

Rehashed = Callable[[dict[str, bytes | None]], Path]


@pytest.fixture
def first(tmp_path: Path, reader_folder: Path) -> Iterator[Service]:
    service = Service(Config.load(home=tmp_path / "first", serve={"reader": str(reader_folder)}))
    rng = np.random.default_rng(3)
    arrays = {
        name: array + rng.normal(0, 0.2, array.shape).astype(np.float32)
        for name, array in load_base_policy(reader_folder).items()
    }
    live = service.registry.live()
    learned = service.registry.add(
        arrays, parent=live.id, reader=service.reader.id, metrics={"held_out_gain": 0.21, "broken": float("nan")}
    )
    service.registry.promote(learned.id, reasons=["signed off before by Dr. Secret"], sign_off="Dr. Secret")
    yield service
    service.close()


@pytest.fixture
def second(tmp_path: Path, reader_folder: Path) -> Config:
    return Config.load(home=tmp_path / "second", serve={"reader": str(reader_folder)})


@pytest.fixture
def exported(first: Service, tmp_path: Path) -> Exported:
    """Written to tmp_path / "bundle"."""
    return export_bundle(first, tmp_path / "bundle", site="site-a")


@pytest.fixture
def rehashed(exported: Exported, tmp_path: Path) -> Rehashed:
    """Change files of the bundle (None: remove) and give it a manifest whose hashes fit again, as a forger would."""

    def change(files: dict[str, bytes | None]) -> Path:
        folder = tmp_path / "bundle"
        manifest = json.loads(files.pop("manifest.json", None) or (folder / "manifest.json").read_bytes())
        for name, data in files.items():
            if data is None:
                (folder / name).unlink()
                del manifest["sha256"][name]
            else:
                (folder / name).write_bytes(data)
                manifest["sha256"][name] = sha256(data).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return change


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 120), dtype=np.uint8)).save(path)
    return path
