"""The doctor names what is missing and how to get it; the metadata names all that is imported."""

import ast
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.numpy import save

from sparsight import doctor
from sparsight.config import Config
from sparsight.model.nano.weights import save_policy
from sparsight.service import Service

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COME_WITH_FASTAPI = {"anyio", "starlette"}
NOT_IMPORTED = ("sam2", "scribbles")  # rooms of MONAI Label that the server leaves alone


def declared() -> list[Requirement]:
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    lines = [*project["dependencies"], *groups["monailabel"]]
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


def imported(package: str) -> set[str]:
    """Every module that a file of the package imports, at its top or inside a function, by its first name."""
    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    names: set[str] = set()
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] in NOT_IMPORTED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module or "")
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {package, "monailabel"}


@pytest.mark.parametrize("package", ["sparsight", "monailabel", "pydicom_seg"])
def test_what_is_imported_is_declared(package: str) -> None:
    provided = packages_distributions()
    known = {canonicalize_name(r.name) for r in declared()} | COME_WITH_FASTAPI
    known |= {"itk-core"} if "itk" in known else set()  # itk itself holds no module
    by = {name: {canonicalize_name(d) for d in provided.get(name, [])} for name in imported(package)}
    assert {name: sorted(d) for name, d in by.items() if not d & known} == {}


def test_the_lock_holds_what_is_declared() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    wrong = [str(r) for r in declared() if locked.get(canonicalize_name(r.name), "0") not in r.specifier]
    assert wrong == []


def test_the_doctor_knows_what_is_installed_without_dependencies() -> None:
    assert list(doctor._NO_DEPS) == PYPROJECT["dependency-groups"]["monailabel"]


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the installed sparsight declares these."""
    return lambda *lines: monkeypatch.setattr(doctor, "requires", lambda name: list(lines))


def test_all_is_well(needs) -> None:
    needs("numpy>=2.0", 'pillow>=11; extra == "server"')
    assert [(f.name, f.ok) for f in doctor.packages()] == [("packages", True)]
    assert doctor.packages()[0].found.startswith("4 of 4 as needed: torch ")


def test_what_is_missing_or_too_old_is_named_with_the_command(needs) -> None:
    needs(
        "no-such-package>=3.2",
        'numpy>=99; extra == "server"',
        'no-sample>=1; extra == "demo"',
        'no-workers>=1; extra == "cluster"',
    )
    count, missing, old, sample, workers = doctor.packages()
    assert count.found.startswith("2 of 6")
    assert (missing.ok, missing.found) == (False, "not installed; needed: >=3.2")
    assert missing.todo == 'pip install "no-such-package>=3.2"'
    assert not old.ok
    assert old.found.endswith("; needed: >=99")
    assert old.todo == 'pip install "numpy>=99"'
    assert sample.ok  # only the demo needs it
    assert sample.todo == 'only `sparsight demo` and training need it: pip install "no-sample>=1"'
    assert workers.ok
    assert workers.todo == 'only workers and replicas of pool.yaml need it: pip install "no-workers>=1"'


def test_every_extra_that_no_server_needs_is_told_with_its_use() -> None:
    assert set(doctor._USES) == set(PYPROJECT["project"]["optional-dependencies"]) - {"server"}


def test_monai_label_is_installed_without_its_dependencies(needs, monkeypatch) -> None:
    needs()

    def version(name: str) -> str:
        if name == "monailabel":
            raise PackageNotFoundError(name)
        return "0.4.1"

    monkeypatch.setattr(doctor, "version", version)
    assert doctor.packages()[1].todo == 'pip install --no-deps "monailabel==0.8.5"'


def test_a_package_whose_files_are_gone(needs, monkeypatch) -> None:
    needs("numpy>=2.0")
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "numpy" else find_spec(module))
    assert doctor.packages()[1].todo == 'pip install --force-reinstall "numpy>=2.0"'


def test_a_module_that_monai_label_lacks_is_named(monkeypatch) -> None:
    def broken(module: str) -> None:
        raise ModuleNotFoundError("no", name="jsonschema")

    monkeypatch.setattr(doctor, "import_module", broken)
    assert not doctor._server().ok
    assert doctor._server().found == "MONAI Label lacks the module jsonschema"


def test_the_converter_is_found_beside_the_interpreter(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")  # as where the environment was not activated
    assert doctor._converter().ok


def test_a_policy_that_was_altered_or_waits_is_told(reader_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(reader_folder, folder)
    config = Config.load(home=tmp_path / "home", serve={"reader": str(folder)})
    assert "as soon as the store is used" in doctor._policy(config).found
    service = Service(config)
    live = service.registry.live()
    arrays = {name: value * 2 for name, value in service.live_selector().policy.to_arrays().items()}
    learned = service.registry.promote(service.registry.add(arrays, parent=live.id, reader=service.reader.id).id)
    save_policy(folder, save({name: value * 3 for name, value in arrays.items()}))
    Service(config).close()
    told = doctor._policy(config)
    assert told.ok
    assert told.found.startswith(f"{learned.id} is live, p0000-")
    assert "waits: shipped with the reader" in told.found
    (folder / "policy.safetensors").write_bytes(b"x")
    [altered] = [one for one in doctor.examine(config) if one.name == "policy"]
    assert (altered.ok, altered.found) == (False, "policy.safetensors is not the file that was released")
    service.close()


def test_a_list_of_packages_that_cannot_be_read_is_a_finding(monkeypatch, tmp_path):
    def broken():
        raise ValueError("METADATA without a name")

    monkeypatch.setattr(doctor, "packages_distributions", broken)
    first = doctor.examine(Config(home=tmp_path))[0]
    assert (first.name, first.ok) == ("packages", False)
    assert "METADATA" in first.found
