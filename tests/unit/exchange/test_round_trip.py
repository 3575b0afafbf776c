"""A policy of one site answers the same at another, and only after a person signed for it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparsight.config import Config
from sparsight.errors import BusyError, ConflictError, InputError, NotFoundError, WeightsError
from sparsight.exchange import Exported, export_bundle, import_bundle, read_bundle
from sparsight.model import PolicySelector, TokenPolicy, load_base_policy, load_reader
from sparsight.model.nano.weights import save_policy
from sparsight.reply import policy_json
from sparsight.rl import sentinel
from sparsight.service import Service, parse_question
from sparsight.service.promotion import registry_of
from sparsight.store import PolicyRegistry
from sparsight.store.blobs import pack

QUESTION = parse_question("Is there a nodule?")


def kinds(service: Service) -> list[str]:
    """What the audit log holds, oldest first; it is whole."""
    assert service.store.verify() == []
    with service.store._database.read() as connection:
        rows = connection.exec_driver_sql("SELECT entry FROM audit ORDER BY seq").scalars()
        return [json.loads(row)["kind"] for row in rows]


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_the_same_scores_and_answers_at_another_site(
    first: Service, second: Config, tmp_path: Path, picture: Path, name: str
) -> None:
    exported = export_bundle(first, tmp_path / name, site="site-a")
    imported = import_bundle(second, read_bundle(tmp_path / name, sha256=exported.sha256))
    assert imported.new
    assert imported.calibration_same
    live = first.registry.live()
    taken = imported.policy
    assert (taken.id, taken.sha256, taken.reader, taken.created) == (live.id, live.sha256, live.reader, live.created)
    assert (taken.state, taken.parent, taken.metrics) == ("candidate", None, {"held_out_gain": 0.21})
    assert taken.origin is not None
    assert (taken.origin.site, taken.origin.parent, taken.origin.state) == ("site-a", live.parent, "live")
    assert taken.origin.bundle_sha256 == exported.sha256
    service = Service(second)
    try:
        assert service.registry.live().id != taken.id
        assert service.registry.get(taken.id) == taken
        path = service.registry.weights_path(taken.id)
        assert path.read_bytes() == first.registry.weights_path(live.id).read_bytes()
        ours, theirs = first.live_selector(), PolicySelector(TokenPolicy.from_arrays(load_file(path)), service.reader)
        base = service.live_selector()
        for probe in sentinel.simulated(service.reader, "val", 3, 5, lambda *_: None):
            scores = ours.scores(probe.grid, probe.question)
            assert (scores == theirs.scores(probe.grid, probe.question)).all()
            assert not (scores == base.scores(probe.grid, probe.question)).all()
        service.promote(taken.id, sign_off="Dr. B")
        there, here = (site.ask(str(picture), QUESTION).episode for site in (first, service))
        np.testing.assert_array_equal(there.selection.keep, here.selection.keep)
        np.testing.assert_array_equal(there.selection.scores, here.selection.scores)
        assert replace(there.answer, timings_ms={}) == replace(here.answer, timings_ms={})
        assert (there.policy, there.policy_sha256) == (here.policy, here.policy_sha256)
    finally:
        service.close()


def test_it_waits_for_a_signature_and_is_taken_in_once(exported: Exported, second: Config, tmp_path: Path) -> None:
    bundle = read_bundle(tmp_path / "bundle")
    service = Service(second)
    try:
        for new in (True, False):
            imported = import_bundle(second, bundle)
            assert imported.new is new
            assert imported.policy.state == "candidate"
        assert kinds(service) == ["promote", "import"]
        with pytest.raises(ConflictError, match="sign-off"):
            service.promote(imported.policy.id)
        base = service.registry.live()
        promoted = service.promote(imported.policy.id, sign_off="Dr. B")
        assert promoted.reasons[0].startswith("imported from site-a, where it was live")
        assert promoted.reasons[-1] == f"chosen in place of policy {base.id}"
        again = import_bundle(second, bundle)
        assert (again.new, again.policy) == (False, promoted)
        assert kinds(service) == ["promote", "import", "promote"]
        assert service.registry.lineage() == (promoted.id,)  # nothing of this site's corrections is in it
        with pytest.raises(ConflictError, match="no parent"):
            service.rollback()
        assert service.promote(base.id).state == "live"
        assert policy_json(service.registry.get(promoted.id))["origin"]["site"] == "site-a"
    finally:
        service.close()


def test_a_bundle_comes_home_and_changes_nothing(first: Service, exported: Exported, tmp_path: Path) -> None:
    before = first.policies()
    assert not import_bundle(first.config, read_bundle(tmp_path / "bundle")).new
    assert first.policies() == before
    assert kinds(first)[-1] == "export"


def test_what_is_exported_names_nobody(exported: Exported, tmp_path: Path) -> None:
    for path in (tmp_path / "bundle").rglob("*"):
        assert path.is_dir() or b"Secret" not in path.read_bytes()


def test_a_named_version_and_the_same_bytes_again(first: Service, tmp_path: Path) -> None:
    base = first.registry.lineage()[-1]
    made = [export_bundle(first, tmp_path / f"{n}.zip", policy=base) for n in range(2)]
    assert made[0] == made[1]
    assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "1.zip").read_bytes()
    bundle = read_bundle(tmp_path / "0.zip")
    assert (bundle.manifest.policy.id, bundle.manifest.policy.state, bundle.manifest.site) == (base, "retired", None)
    with ZipFile(tmp_path / "0.zip") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {f"sparsight-{first.reader.id}-{base}"}


def test_what_export_refuses(first: Service, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / "there.zip").touch()
    for out, more, error in (
        ("there", {}, InputError),
        ("there.zip", {}, InputError),
        ("new", {"policy": "p0009-00000000"}, NotFoundError),
        ("new", {"site": "St. Mary's\n"}, InputError),
        ("new", {"site": ""}, InputError),
    ):
        with pytest.raises(error):
            export_bundle(first, tmp_path / out, **more)
    path = first.registry.weights_path(first.registry.live().id)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="altered"):
        export_bundle(first, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert "export" not in kinds(first)


def test_a_policy_of_another_reader_needs_that_reader(
    exported: Exported, tmp_path: Path, looking_folder: Path, picture: Path, first: Service
) -> None:
    config = Config.load(home=tmp_path / "third", serve={"reader": str(looking_folder)})
    bundle = read_bundle(tmp_path / "bundle")
    with pytest.raises(WeightsError, match="--reader-dir") as refused:
        import_bundle(config, bundle)
    assert bundle.manifest.reader.id in refused.value.given
    assert load_reader(looking_folder).id in refused.value.given
    assert not (tmp_path / "third").exists()
    for new in (True, False):
        imported = import_bundle(config, bundle, reader_folder=tmp_path / "reader")
        assert imported.new is new
    service = Service(Config.load(home=tmp_path / "third", serve={"reader": str(tmp_path / "reader")}))
    try:
        assert service.reader.sha256 == first.reader.sha256
        assert service.registry.live().id == first.registry.lineage()[-1]
        service.promote(imported.policy.id, sign_off="Dr. C")
        here, there = (site.ask(str(picture), QUESTION).episode for site in (service, first))
        assert replace(here.answer, timings_ms={}) == replace(there.answer, timings_ms={})
        assert service.store.verify() == []
    finally:
        service.close()
    with pytest.raises(ConflictError, match="something else"):
        import_bundle(config, bundle, reader_folder=looking_folder)


def test_another_calibration_of_the_same_reader_is_told(
    exported: Exported, second: Config, tmp_path: Path, reader_folder: Path
) -> None:
    reader = load_reader(reader_folder)
    calibration = replace(reader.spec.calibration, slope=2.0)
    folder = tmp_path / "calibrated"
    shutil.copytree(reader_folder, folder)
    reader.spec = replace(reader.spec, calibration=calibration)
    assert reader.save(folder) == reader.sha256
    save_policy(folder, (reader_folder / "policy.safetensors").read_bytes())
    config = second.model_copy(update={"serve": second.serve.model_copy(update={"reader": str(folder)})})
    imported = import_bundle(config, read_bundle(tmp_path / "bundle"))
    assert imported.new
    assert not imported.calibration_same
    assert "another calibration" in imported.policy.reasons[1]


def test_an_import_that_cannot_be_logged_takes_nothing_in(
    exported: Exported, second: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(tmp_path / "bundle")
    registry = registry_of(second, bundle.manifest.reader.id)

    def busy(*_: object, **__: object) -> None:
        raise BusyError("the store is locked", expected="x", todo="y")

    with monkeypatch.context() as patched:
        patched.setattr("sparsight.store.db.audit.append", busy)
        with pytest.raises(BusyError):
            import_bundle(second, bundle)
    assert exported.policy.id not in {policy.id for policy in registry.list()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    Service(second).close()  # which takes in the shipped policy
    with monkeypatch.context() as patched:  # after the entry and the decision, before the folder
        patched.setattr(PolicyRegistry, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            import_bundle(second, bundle)
    assert registry.list() == [registry.live()]
    imported = import_bundle(second, bundle)
    assert imported.new
    assert imported.policy.reasons


def with_another_policy(config: Config, reader_folder: Path, folder: Path) -> Config:
    """A site whose reader is the same and was shipped with another policy."""
    shutil.copytree(reader_folder, folder)
    save_policy(folder, pack({name: array + 1 for name, array in load_base_policy(reader_folder).items()}))
    return config.model_copy(update={"serve": config.serve.model_copy(update={"reader": str(folder)})})


def test_installing_a_reader_changes_no_live_policy(
    exported: Exported, second: Config, tmp_path: Path, reader_folder: Path
) -> None:
    """Not even where its shipped policy, elsewhere the base of all, was never seen here."""
    service = Service(with_another_policy(second, reader_folder, tmp_path / "newer"))
    live = service.registry.live()
    service.close()
    assert import_bundle(second, read_bundle(tmp_path / "bundle"), reader_folder=tmp_path / "installed").new
    assert service.registry.live() == live
    assert {policy.id for policy in service.registry.list()} == {live.id, exported.policy.id}


def test_a_newly_shipped_policy_waits_beside_an_imported_one(
    first: Service, second: Config, tmp_path: Path, reader_folder: Path
) -> None:
    """Even where the imported one was shipped at its own site: a person signed for it."""
    base = first.registry.lineage()[-1]
    export_bundle(first, tmp_path / "bundle", policy=base)
    config = with_another_policy(second, reader_folder, tmp_path / "newer")
    taken = import_bundle(config, read_bundle(tmp_path / "bundle")).policy
    registry = registry_of(config, first.reader.id)
    assert (taken.id, taken.state) == (base, "candidate")
    registry.promote(taken.id, sign_off="Dr. B")
    newest = pack({name: array + 2 for name, array in load_base_policy(reader_folder).items()})
    waiting = registry.install_base(newest, reader=first.reader.id)
    assert waiting.state == "candidate"
    assert f"policy {taken.id} was imported and stays live" in waiting.reasons[0]
    assert registry.live().id == taken.id
