"""The doctor for models: proofs on the weights, what they cost, whether they fit; and the files of configs/model."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sparsight import doctor_models
from sparsight.cli.main import app, main
from sparsight.config import ModelConfig
from sparsight.doctor_models import examine_model, examine_tiny
from sparsight.errors import MemoryFullError, WeightsError
from sparsight.model.hf import costs, proofs, tiny
from sparsight.model.hf.families import FAMILIES
from sparsight.model.hf.load import pace_of
from sparsight.model.hf.proofs import Proof, pattern
from sparsight.model.hf.published import published
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.tiny import save_tiny
from sparsight.model.hf.vision import Pace
from sparsight.types import Question

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("smolvlm", tmp_path_factory.mktemp("model"))


def test_a_model_is_examined(weights: Path) -> None:
    report = examine_model(ModelConfig(weights=weights, family="smolvlm", device="cpu"))
    assert report.healthy, [finding for finding in report.findings if not finding.ok]
    names = [finding.name for finding in report.findings]
    assert {"model", "memory", "100% of the tokens", "10% of the tokens"} <= set(names)
    measured = report.figures["measured"]
    assert [row["share"] for row in measured] == [1.0, 0.25, 0.1]
    assert [row["kept"] for row in measured] == [16, 4, 2]
    assert all(row["first_token_ms"] > row["prefill"]["ms"] > 0 for row in measured)
    told = next(finding.found for finding in report.findings if finding.name == "10% of the tokens")
    for name, said in (("encode", "encode"), ("prefill", "prefill"), ("decode", "then")):
        stage = measured[2][name]
        assert f"{said} {stage['ms']:.0f} ms at {stage['peak_bytes'] / 2**30:.2f} GiB" in told
        assert report.figures["peak_bytes"] >= stage["peak_bytes"] > 0
    computed = report.figures["computed"]
    assert computed["memory_bytes"]["nf4"] < computed["memory_bytes"]["int8"] < computed["memory_bytes"]["none"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it holds memory of the CPU")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no stage by itself can be seen elsewhere")
def test_memory_is_that_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one stage holds for a while is not in the next one's peak."""
    model, processor = tiny.tiny("llava")
    reader = HFReader(model, processor, FAMILIES["llava"], "0" * 64, name="llava", pace=Pace(tokens=64))
    encode, ids = reader.encode, reader.language.inputs

    def held(bytes_: int) -> None:
        torch.ones(bytes_ // 4)

    monkeypatch.setattr(reader, "encode", lambda study: (held(2**28), encode(study))[1])
    (row,) = costs.measure(reader, repeats=1, shares=(0.25,))
    assert row.encode.peak_bytes - row.prefill.peak_bytes > 2**27
    monkeypatch.setattr(reader, "encode", encode)
    monkeypatch.setattr(reader.language, "inputs", lambda prompts: (held(2**28), ids(prompts))[1])
    (row,) = costs.measure(reader, repeats=1, shares=(0.25,))
    assert row.prefill.peak_bytes - max(row.encode.peak_bytes, row.decode.peak_bytes) > 2**27


def test_a_model_that_does_not_fit_is_not_loaded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = costs.compute(tiny.tiny("smolvlm")[0].config)
    monkeypatch.setattr(doctor_models, "free_bytes", lambda device: computed.memory_bytes("int8"))
    report = examine_model(ModelConfig(weights=weights, device="cpu"))
    (finding,) = report.findings
    assert not report.healthy
    assert finding.todo == "quantization: int8"
    monkeypatch.setattr(doctor_models, "free_bytes", lambda device: 1)
    assert "smaller model" in examine_model(ModelConfig(weights=weights, device="cpu")).findings[0].todo


@pytest.mark.parametrize(("limit", "todo"), [(0.1, "do not serve it: its tokens"), (proofs.MOST, "passes in float32")])
def test_a_failed_proof_is_a_fault(weights: Path, monkeypatch: pytest.MonkeyPatch, limit: float, todo: str) -> None:
    monkeypatch.setattr(proofs, "prove", lambda *_: [Proof("a cache changes nothing", 1.0, limit, "logits")])
    report = examine_model(ModelConfig(weights=weights, device="cpu"))
    assert not report.healthy
    assert todo in next(f.todo for f in report.findings if not f.ok)


def test_a_memory_that_does_not_hold_the_proofs_is_said_so(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "prove", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(MemoryFullError, match="quantize"):
        examine_model(ModelConfig(weights=weights, device="cpu"))


def test_a_missing_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError, match="no such folder"):
        examine_model(ModelConfig(weights=tmp_path / "none"))
    monkeypatch.setattr("sys.argv", ["sparsight", "doctor", "--weights", str(tmp_path / "none"), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_weights"


def test_the_command_examines_a_model(weights: Path) -> None:
    run = CliRunner().invoke(app, ["doctor", "--weights", str(weights), "--json"])
    told = json.loads(run.stdout)
    assert run.exit_code == 0
    assert told["healthy"]
    assert len(told["proofs"]) == 13


def test_the_command_examines_a_folder_as_a_file_says(weights: Path, tmp_path: Path) -> None:
    """`--reader` says how, `--weights` which: that file's own folder need not be there."""
    own = tmp_path / "own.yaml"
    own.write_text("weights:\nfamily: smolvlm\nquantization: int8\ntiles: 2\ndevice: cpu\n", encoding="utf-8")
    run = CliRunner().invoke(app, ["doctor", "--reader", str(own), "--weights", str(weights), "--json"])
    told = json.loads(run.stdout)
    assert run.exit_code == 0
    assert told["healthy"]
    assert [row["kept"] for row in told["measured"]] == [64, 16, 6]  # two tiles along a side: the file's, not one
    assert "as int8" in next(check["found"] for check in told["checks"] if check["name"] == "memory")
    own.write_text("weights:\nfamily: llava\n", encoding="utf-8")
    assert CliRunner().invoke(app, ["doctor", "--reader", str(own), "--weights", str(weights)]).exit_code == 1


def test_every_setting_is_described() -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {field.description} | " for name, field in ModelConfig.model_fields.items()]
    assert not [row for row in rows if row not in page]


def test_the_doctor_tells_each_proof_as_it_is_made(weights: Path) -> None:
    told = list[str]()
    report = examine_model(ModelConfig(weights=weights, device="cpu"), lambda stage, done, total: told.append(stage))
    proven = [stage.removeprefix("proven: ") for stage in told if stage.startswith("proven: ")]
    assert proven == [proof["name"] for proof in report.figures["proofs"]]


def test_every_family_is_proven_from_its_folder() -> None:
    report = examine_tiny()
    assert report.healthy, [finding.found for finding in report.findings if not finding.ok]
    assert [finding.name for finding in report.findings] == list(tiny.families())
    assert set(tiny.families()) == set(FAMILIES)


def test_there_is_a_configuration_for_every_family() -> None:
    assert {ModelConfig.read(file).family for file in FILES} == set(FAMILIES)
    assert all(file.stem == ModelConfig.read(file).family for file in FILES)


def test_every_line_of_a_model_configuration_is_its_setting() -> None:
    fields = {name: field.description for name, field in ModelConfig.model_fields.items()}
    for file in FILES:
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                name, comment = line.split(":")[0], line.split("# ", 1)[1]
                assert comment.startswith((fields[name] or "").split(";")[0].split(",")[0]) or name == "quantization"


def _pages(family: str) -> tuple[str, str]:
    """The line of docs/models.md's table and the one of memory in configs/model, as they are computed here and now."""
    name, config = published()[family]
    settings = ModelConfig.read(ROOT / "configs" / "model" / f"{family}.yaml")
    computed = costs.compute(config, pace_of(settings), settings.max_tokens)
    along = settings.tiles if FAMILIES[family].tiles > 1 else 1
    how = ", chosen" if FAMILIES[family].side(config) is None else f", {along} x {along} tiles" if along > 1 else ""
    gib = [f"{computed.memory_bytes(q) / 2**30:.1f}" for q in ("nf4", "int8", "none")]
    longest = f"{computed.longest_kv_bytes / 2**20:.0f}"
    cells = [
        family,
        name,
        f"{computed.parameters / 1e9:.2f} B",
        f"{computed.tokens}{how}",
        " / ".join(gib),
        " / ".join(f"{c.kv_bytes / 2**20:.1f}" for c in computed.costs),
        longest,
        " / ".join(f"{c.prefill_flops / 1e12:.1f}" for c in computed.costs),
    ]
    memory = f"nf4 {gib[0]} GiB, int8 {gib[1]}, none (bfloat16) {gib[2]}"
    return (
        f"| {' | '.join(cells)} |",
        f"# Memory that must be free, computed for {name}: {memory}; {longest} MiB of it for the longest prompt.",
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_costs_are_those_of_the_pages(family: str) -> None:
    row, head = _pages(family)
    assert row in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    assert (ROOT / "configs" / "model" / f"{family}.yaml").read_text(encoding="utf-8").splitlines()[1] == head


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_costs_count_what_a_picture_becomes(family: str) -> None:
    """Tokens, and all that stands in a prompt for it: of several tiles, where the family knows them."""
    model, processor = tiny.tiny(family)
    reader = HFReader(model, processor, FAMILIES[family], "0" * 64, name=family, pace=Pace(tokens=64, tiles=2))
    computed = costs.compute(model.config, reader.vision.pace)
    grid = reader.encode(pattern(1, 96, 96))
    whole = reader.prompt(grid, Question("Is it?"), False)
    assert computed.tokens == grid.n
    for cost in computed.costs:
        kept = whole.keep(torch.arange(cost.kept), reader.language.image)
        visual = int((kept.ids == reader.language.image).sum())
        assert cost.kv_bytes == 2 * 2 * 2 * 2 * 16 * (visual + costs.TEXT)


def test_the_longest_prompt_is_a_volumes_or_a_pictures() -> None:
    model, _ = tiny.tiny("llava")  # 64 tokens a slice
    a_token = 2 * 2 * 2 * 2 * 16
    for slices, most, longest in ((6, 200, 200), (2, 200, 128), (1, 16, 64)):
        computed = costs.compute(model.config, Pace(slices=slices), most)
        assert computed.longest_kv_bytes == a_token * (longest + costs.TEXT)
        assert computed.memory_bytes("none") == int(1.1 * (computed.weights_bytes["none"] + computed.longest_kv_bytes))


def test_costs_of_a_layer_by_hand() -> None:
    """Two layers of two key-value heads of 16: 2 x 2 x 2 x 2 x 16 bytes a token; and every weight is used once."""
    model, _ = tiny.tiny("llava")
    computed = costs.compute(model.config, Pace())
    assert computed.tokens == 64
    assert computed.costs[0].kv_bytes == 2 * 2 * 2 * 2 * 16 * (64 + costs.TEXT)
    linear = sum(p.numel() for n, p in model.get_decoder().named_parameters() if p.ndim == 2 and "embed" not in n)
    length = 64 + costs.TEXT
    assert computed.costs[0].prefill_flops == pytest.approx(2 * linear * length + 2 * 2 * 4 * 16 * length**2)
    assert computed.parameters == sum(p.numel() for p in model.parameters())
