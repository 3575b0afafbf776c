"""A policy of a model of one's own: it leaves without the model, and is taken where the same model is."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from monai.bundle import run
from safetensors.numpy import load, load_file, save

from sparsight.config import Config
from sparsight.errors import BundleError, ConfigError, ConflictError, InputError, SparsightError, WeightsError
from sparsight.exchange import Answerer, Exported, answer, export_bundle, import_bundle, read_bundle
from sparsight.exchange import transfer as transfers
from sparsight.model import load_reader
from sparsight.model.completions import adapter_of
from sparsight.model.hf.tiny import save_tiny
from sparsight.service import Service, parse_question
from tiny_smol import save_base, save_trained

# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
QUESTION = parse_question("Is there a nodule?")
POLICY, MANIFEST = "models/policy.safetensors", "manifest.json"
FILES = ["LICENSE", "configs/inference.json", "configs/metadata.json", "configs/reader.yaml", "docs/README.md", POLICY]
MODEL = {"name": "own", "dtype": "float32", "device": "cpu", "tokens_per_image": 64, "reasoning_tokens": 8}

Site = Callable[..., Config]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("weights") / "llava")


@pytest.fixture
def site(tmp_path: Path, weights: Path) -> Site:
    """site(where, **settings): a site with a copy of the model, and a file that says how it is read."""

    def make(where: str, **settings: Any) -> Config:
        home = tmp_path / where
        home.mkdir()
        shutil.copytree(settings.pop("weights", weights), home / "model")
        text = yaml.safe_dump(MODEL | {"weights": "model"} | settings)
        (home / "own.yaml").write_text(text, encoding="utf-8")
        return Config.load(home=home / "store", serve={"reader": str(home / "own.yaml"), "recheck_budget": 0.0})

    return make


def teach(service: Service, rank: int = 4) -> None:
    """A policy goes live whose visual stream and adapter hold numbers that do something."""
    base = service.registry.live()
    rng = np.random.default_rng(5)
    arrays = load_file(service.registry.weights_path(base.id))
    writer = service.reader.writer(rank)
    assert writer is not None
    arrays = {n: a + rng.normal(0, 0.3, a.shape).astype(np.float32) for n, a in (arrays | writer.to_arrays()).items()}
    learned = service.registry.add(arrays, parent=base.id, reader=service.reader.id, metrics={"held_out_gain": 0.3})
    service.registry.promote(learned.id, sign_off="Dr. Secret")


@pytest.fixture
def first(site: Site) -> Iterator[Service]:
    with closing(Service(site("first"))) as service:
        teach(service)
        yield service


@pytest.fixture
def exported(first: Service, tmp_path: Path) -> Exported:
    """Written to tmp_path / "bundle"."""
    return export_bundle(first, tmp_path / "bundle", site="site-a")


def moved(service: Service, config: Config, bundle: Path, picture: Path) -> None:
    """What a site's live policy answers, another site answers with it, and before and after it as published."""
    there = service.ask(str(picture), QUESTION).episode
    with closing(Service(config)) as here:
        published = here.ask(str(picture), QUESTION).episode
        assert published.answer.confidence != there.answer.confidence  # what was taught is no nothing
        imported = import_bundle(config, read_bundle(bundle))
        assert (imported.new, imported.policy.state, imported.reader) == (True, "candidate", here.reader.id)
        assert here.ask(str(picture), QUESTION).episode.policy == published.policy
        with pytest.raises(ConflictError, match="sign-off"):
            here.promote(imported.policy.id)
        here.promote(imported.policy.id, sign_off="Dr. B")
        episode = here.ask(str(picture), QUESTION).episode
        assert (episode.policy, episode.policy_sha256) == (there.policy, there.policy_sha256)
        assert here.reader.sha256 == service.reader.sha256
        np.testing.assert_array_equal(episode.selection.keep, there.selection.keep)
        np.testing.assert_array_equal(episode.selection.scores, there.selection.scores)
        assert replace(episode.answer, timings_ms={}) == replace(there.answer, timings_ms={})
        here.promote(published.policy)
        again = here.ask(str(picture), QUESTION).episode
        assert replace(again.answer, timings_ms={}) == replace(published.answer, timings_ms={})
        assert here.store.verify() == []


@pytest.mark.parametrize(
    ("family", "quantization", "name"), [("qwen3_vl", "nf4", "bundle"), ("gemma3", "int8", "b.zip")]
)
def test_the_same_answers_at_another_site(
    site: Site, tmp_path: Path, picture: Path, family: str, quantization: str, name: str
) -> None:
    own = {"weights": save_tiny(family, tmp_path / "w"), "quantization": quantization, "dtype": "bfloat16"}
    with closing(Service(site("first", **own))) as first:
        teach(first)
        export_bundle(first, tmp_path / name)
        metadata = json.loads(read_bundle(tmp_path / name).files["configs/metadata.json"])
        assert {"transformers", "peft", "bitsandbytes"} < metadata["required_packages_version"].keys()
        moved(first, site("second", **own, name="ours"), tmp_path / name, picture)  # its own name for the same model


def test_smol_goes_the_same_way(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "cache" / "sparsight" / "smol")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trained = save_trained(tmp_path / "trained", base)
    first, second = (Config.load(home=tmp_path / name, serve={"reader": str(trained)}) for name in "ab")
    with closing(Service(first)) as service:
        teach(service, rank=2)
        export_bundle(service, tmp_path / "bundle")
        moved(service, second, tmp_path / "bundle", picture)
    (base / "model.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError):
        import_bundle(second, read_bundle(tmp_path / "bundle"))


def test_what_is_in_it(exported: Exported, first: Service, tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "bundle"
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert sorted(found) == sorted([*FILES, MANIFEST])
    assert b"device" not in found["configs/reader.yaml"]
    for secret in ("Secret", str(tmp_path), str(weights)):
        assert not any(secret.encode() in data for data in found.values())
    assert exported.bytes < (weights / "model.safetensors").stat().st_size
    assert adapter_of(load(found[POLICY]))
    card = found["docs/README.md"].decode()
    for said in (
        "not in the bundle",
        "LoRA of rank 4",
        "| quantization | none |",
        "held_out_gain",
        first.reader.sha256,
    ):
        assert said in card
    again = export_bundle(first, tmp_path / "again.zip", site="site-a")
    assert again.sha256 == exported.sha256


def test_its_configuration_makes_the_same_reader(exported: Exported, first: Service, tmp_path: Path) -> None:
    text = (tmp_path / "bundle" / "configs" / "reader.yaml").read_text(encoding="utf-8")
    (tmp_path / "copied.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="without weights"):
        load_reader(tmp_path / "copied.yaml")
    (tmp_path / "copied.yaml").write_text(text.replace("weights:", "weights: first/model"), encoding="utf-8")
    assert load_reader(tmp_path / "copied.yaml").id == first.reader.id


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"quantization": "int8"}, "quantization int8", "quantization none"),
        ({"quantization": "nf4", "dtype": "bfloat16"}, "quantization nf4, dtype bfloat16", "dtype float32"),
        ({"tokens_per_image": 32}, "tokens_per_image 32", "tokens_per_image 64"),
        ({"slices": 3}, "slices 3", "slices 24"),
    ],
)
def test_the_same_model_set_up_otherwise(
    exported: Exported, site: Site, tmp_path: Path, settings: dict[str, Any], given: str, expected: str
) -> None:
    config = site("second", **settings)
    with pytest.raises(WeightsError) as refused:
        import_bundle(config, read_bundle(tmp_path / "bundle"))
    assert given in refused.value.given
    assert expected in refused.value.expected
    assert "configs/reader.yaml" in refused.value.todo
    assert not config.home.exists()


def test_another_model_or_none(exported: Exported, site: Site, tmp_path: Path, reader_folder: Path) -> None:
    bundle = read_bundle(tmp_path / "bundle")
    other = site("other", weights=save_tiny("llava", tmp_path / "seed1", seed=1))
    qwen = site("qwen", weights=save_tiny("qwen3_vl", tmp_path / "qwen3"))
    nano = Config.load(home=tmp_path / "nano", serve={"reader": str(reader_folder)})
    gone = site("gone")
    shutil.rmtree(tmp_path / "gone" / "model")
    for config, kind, said in (
        (other, WeightsError, "files are others"),
        (qwen, WeightsError, "family qwen3_vl"),
        (nano, WeightsError, "of family llava"),
        (gone, WeightsError, "no such folder of weights"),
        (nano.model_copy(update={"serve": nano.serve.model_copy(update={"reader": "own"})}), ConfigError, "unknown"),
    ):
        with pytest.raises(kind) as refused:
            import_bundle(config, bundle)
        assert said in str(refused.value)
        assert all((refused.value.given, refused.value.expected, refused.value.todo))
        assert not config.home.exists()


def test_no_reader_is_put_anywhere(exported: Exported, site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--reader-dir"):
        import_bundle(site("second"), read_bundle(tmp_path / "bundle"), reader_folder=tmp_path / "reader")
    assert not (tmp_path / "reader").exists()


def test_a_bundle_of_nano_where_a_model_answers(site: Site, tmp_path: Path, reader_folder: Path) -> None:
    with closing(Service(Config.load(home=tmp_path / "n", serve={"reader": str(reader_folder)}))) as nano:
        export_bundle(nano, tmp_path / "nano")
    bundle = read_bundle(tmp_path / "nano")
    config = site("second")
    with pytest.raises(WeightsError, match="--reader-dir"):
        import_bundle(config, bundle)
    assert import_bundle(config, bundle, reader_folder=tmp_path / "reader").policy.reader == bundle.manifest.reader.id


def test_settings_that_are_no_part_of_the_reader_are_told(exported: Exported, site: Site, tmp_path: Path) -> None:
    config = site("second", reasoning_tokens=16, abstain_below=0.7)
    imported = import_bundle(config, read_bundle(tmp_path / "bundle"))
    assert imported.new
    assert imported.policy.reasons[1].endswith("reasoning_tokens 16, abstain_below 0.7")


def forged(folder: Path, manifest: dict[str, Any], **files: bytes) -> Path:
    """A bundle whose manifest vouches for what it holds, as a forger would write it."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
        manifest["sha256"][name] = sha256(data).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def forged_policy(folder: Path, data: bytes) -> Path:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    digest = sha256(data).hexdigest()
    manifest["policy"] |= {"sha256": digest, "id": f"p0001-{digest[:8]}"}
    return forged(folder, manifest, **{POLICY: data})


def harmed(arrays: dict[str, np.ndarray[Any, Any]], harm: str) -> bytes:
    """A policy's file, with one thing wrong with it."""
    a, b = (next(name for name in arrays if f".lora_{side}." in name) for side in "AB")
    match harm:
        case "nan":
            arrays[a] = arrays[a] * np.nan
        case "integers":
            arrays[a] = arrays[a].astype(np.int64)
        case "ranks":
            arrays[a], arrays[b] = arrays[a][:2], np.ascontiguousarray(arrays[b][:, :2])
        case "wide":
            arrays[a] = np.zeros((4, arrays[a].shape[1] + 1), np.float32)
        case "fewer":
            del arrays[b]
        case "names":
            arrays[f"{a}.more"] = arrays[a]
        case "rank 0":
            arrays[a] = arrays[a][:0]
        case "scalar":
            arrays[a] = np.array(1.0, np.float32)
        case "rank 300":
            arrays |= {n: np.resize(x, (300, x.shape[1])) for n, x in arrays.items() if ".lora_A." in n}
        case "sizes":
            arrays["film.weight"] = np.ascontiguousarray(arrays["film.weight"][:, 1:])
        case "bomb":
            arrays["look.weight"] = np.zeros((300_000, arrays["look.weight"].shape[1]), np.float16)
    return save(arrays)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("none", None),
        ("pickle", "no safetensors"),
        ("nan", "finite"),
        ("integers", "finite"),
        ("ranks", "more than one rank"),
        ("wide", "another model"),
        ("fewer", "another model"),
        ("names", "another model"),
        ("rank 0", "rank 0"),
        ("scalar", "rank 0"),
        ("rank 300", "rank 300"),
        ("sizes", "other sizes"),
        ("bomb", "other sizes"),
    ],
)
def test_a_policy_that_does_not_fit(
    exported: Exported, site: Site, tmp_path: Path, harm: str, said: str | None
) -> None:
    folder, config = tmp_path / "bundle", site("second")
    arrays = load((folder / POLICY).read_bytes())
    data = pickle.dumps({"weights": [1.0]}) if harm == "pickle" else harmed(arrays, harm)
    forged_policy(folder, data)
    if said is None:
        assert import_bundle(config, read_bundle(folder)).new  # the forger's hashes fit
        return
    with pytest.raises(BundleError) as refused:
        import_bundle(config, read_bundle(folder))
    assert said in refused.value.given
    assert all((refused.value.expected, refused.value.todo))
    assert not config.home.exists()


def test_an_adapter_of_another_family(exported: Exported, site: Site, tmp_path: Path) -> None:
    """Of the same sizes, for another model: its matrices have other names."""
    config = site("qwen", weights=save_tiny("idefics3", tmp_path / "idefics3"))
    with closing(Service(config)) as other:
        teach(other)
        policy = other.registry.weights_path(other.registry.live().id).read_bytes()
    with pytest.raises(BundleError, match="another model"):
        import_bundle(site("second"), read_bundle(forged_policy(tmp_path / "bundle", policy)))


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        ({"settings": {"weights": "/etc"}}, "reader"),
        ({"settings": {"device": "cpu"}}, "reader"),
        ({"settings": {"quantization": "int2"}}, "reader"),
        ({"settings": {"name": "../x"}}, "reader"),
        ({"settings": {"name": "another"}}, "reader"),
        ({"settings": {"family": "$import os"}}, "reader"),
        ({"settings": {"slices": 10**9}}, "reader"),
        ({"settings": {"slices": 3}}, "another configs/reader.yaml"),
        ({"id": "own-00000000"}, "reader"),
        ({"id": "own/../../x-00000000"}, "reader"),
        ({"sha256": "0" * 64}, "reader"),
    ],
)
def test_manifests_of_a_model(exported: Exported, tmp_path: Path, reader: dict[str, Any], said: str) -> None:
    manifest = json.loads((tmp_path / "bundle" / MANIFEST).read_bytes())
    settings = manifest["reader"]["settings"] | reader.pop("settings", {})
    manifest["reader"] |= {**reader, "settings": settings}
    with pytest.raises(BundleError) as refused:
        read_bundle(forged(tmp_path / "bundle", manifest))
    assert said in refused.value.given
    assert "import os" not in str(refused.value)


def test_a_format_says_which_reader_and_which_files(exported: Exported, tmp_path: Path, reader_folder: Path) -> None:
    folder = tmp_path / "bundle"
    manifest = json.loads((folder / MANIFEST).read_bytes())

    def refusal(of: dict[str, Any], kind: type[SparsightError] = BundleError, **files: bytes) -> str:
        with pytest.raises(kind) as refused:
            read_bundle(forged(folder, json.loads(json.dumps(of)), **files))
        return refused.value.given

    nano = {"id": "nano-00000000", "sha256": "0" * 64}
    assert "format" in refusal(manifest | {"format": 1})
    assert "format" in refusal(manifest | {"reader": nano})
    assert "without" in refusal(manifest | {"format": 1, "reader": nano})
    assert "format 3" in refusal(manifest | {"format": 3}, ConflictError)
    (folder / "models" / "reader").mkdir()
    assert "lists" in refusal(manifest, **{"models/reader/manifest.json": b"{}"})


@pytest.mark.parametrize("name", FILES)
def test_altered_and_missing_files(exported: Exported, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bundle" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match="is not the file that was exported"):
        read_bundle(tmp_path / "bundle")
    path.unlink()
    with pytest.raises(BundleError, match=f"without {name}"):
        read_bundle(tmp_path / "bundle")


def test_configurations_that_sparsight_did_not_write(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    for name in ("configs/inference.json", "configs/reader.yaml"):
        manifest, data = json.loads((folder / MANIFEST).read_bytes()), (folder / name).read_bytes()
        with pytest.raises(BundleError, match=f"another {name}"):
            read_bundle(forged(folder, manifest, **{name: data + b"# \n"}))
        forged(folder, manifest, **{name: data})
    read_bundle(folder)


def test_what_export_refuses(first: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(transfers, "MAX_BYTES", 2**16)
        with pytest.raises(InputError, match="language_rank"):
            export_bundle(first, tmp_path / "new")
    own = tmp_path / "first" / "own.yaml"
    own.write_text(own.read_text(encoding="utf-8") + "tiles: 2\n", encoding="utf-8")  # since it was loaded
    with pytest.raises(WeightsError, match="own reader"):
        export_bundle(first, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_monai_runs_it_with_the_reader_of_the_site(
    exported: Exported, first: Service, site: Site, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "bundle"
    with pytest.warns(UserWarning, match="source you trust"):
        run(
            config_file=str(root / "configs" / "inference.json"),
            bundle_root=str(root),
            reader=site("second").serve.reader,
            image=str(picture),
            question=QUESTION.text,
        )
    printed = json.loads(capsys.readouterr().out)
    # As the defaults of serve.yaml answer: a negative answer is read again from all tokens.
    first.config = first.config.model_copy(update={"serve": Config().serve})
    episode = first.ask(str(picture), QUESTION).episode
    assert printed["answer"] == episode.answer.text
    assert printed["confidence"] == round(episode.answer.confidence, 4)
    assert printed["policy"] == {"id": exported.policy.id, "sha256": exported.policy.sha256}
    assert printed["reader"] == first.reader.id
    assert printed["budget"]["kept"] == (episode.recheck.kept if episode.recheck else len(episode.selection.keep))


def test_who_answers_with_it_names_the_same_reader(exported: Exported, site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--reader FILE"):
        Answerer(tmp_path / "bundle")
    with pytest.raises(WeightsError, match="quantization int8"):
        Answerer(tmp_path / "bundle", site("second", quantization="int8").serve.reader)


def test_a_policy_that_learned_nothing_reads_all_tokens(first: Service, tmp_path: Path, picture: Path) -> None:
    base = first.registry.lineage()[-1]
    export_bundle(first, tmp_path / "base", policy=base)
    answerer = Answerer(tmp_path / "base", first.config.serve.reader)
    told = answer(answerer, str(picture), QUESTION.text)
    assert told["budget"]["kept"] == told["budget"]["total"]
