"""The files of deploy/ name only what is there: commands, variables, routes, limits."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
import yaml

from sparsight.cli.main import app
from sparsight.config import ServeConfig, SiteConfig
from sparsight.server.rules import Role, rule_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_commands_are_those_of_the_program(compose: dict[str, Any]) -> None:
    dockerfile, unit = (DEPLOY / "Dockerfile").read_text(), (DEPLOY / "sparsight.service").read_text()
    [started] = re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)
    [run] = re.findall(r"^ExecStart=\S+/sparsight (.*)$", unit, re.MULTILINE)
    group = typer.main.get_command(app)
    for command in (json.loads(started), compose["services"]["sparsight"]["command"], shlex.split(run)):
        name, *arguments = command
        parsed = group.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]
        assert name == "serve"
        assert parsed.params["port"] == 8000


def test_variables_are_those_that_are_read(compose: dict[str, Any]) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "plugin" / "sparsight").rglob("*.py"))
    named = set(
        re.findall(r"SPARSIGHT_[A-Z]+", "".join((DEPLOY / f).read_text() for f in ("Dockerfile", "compose.yaml")))
    )
    named |= set(
        re.findall(r"^Environment=(SPARSIGHT_[A-Z]+)", (DEPLOY / "sparsight.service").read_text(), re.MULTILINE)
    )
    assert named >= {"SPARSIGHT_HOME", "SPARSIGHT_CONFIGS", "SPARSIGHT_DATABASE"}
    assert {name for name in named if name not in sources} == set()


def test_the_database_has_one_name_and_its_password_is_in_a_file(compose: dict[str, Any]) -> None:
    ours, theirs = (compose["services"][name] for name in ("sparsight", "postgres"))
    user, database = theirs["environment"]["POSTGRES_USER"], theirs["environment"]["POSTGRES_DB"]
    assert ours["environment"]["SPARSIGHT_DATABASE"] == f"postgresql+psycopg://{user}@postgres/{database}"
    assert ours["environment"]["PGPASSFILE"] == "/run/secrets/pgpass"
    assert {s if isinstance(s, str) else s["source"] for one in (ours, theirs) for s in one["secrets"]} == set(
        compose["secrets"]
    )
    assert "password" not in str(ours["environment"]).lower()


def test_compose_takes_it(absent: Callable[[str], NoReturn]) -> None:
    """By a parser that knows every key and value of the specification."""
    try:
        from compose_spec import PyCompose
    except ImportError:
        absent("no compose-spec: make setup")
    text = (DEPLOY / "compose.yaml").read_text()
    assert PyCompose.from_yaml(text).service_names() == ["proxy", "login", "sparsight", "postgres", "orthanc"]
    for there, wrong in (("cap_drop:", "cap_dropped:"), ("interval: 5s", "interval: soon")):
        with pytest.raises(ValueError):
            PyCompose.from_yaml(text.replace(there, wrong))


def test_docker_takes_the_image_s_recipe(absent: Callable[[str], NoReturn], tmp_path: Path) -> None:
    """By docker's own parser, and the shell's of what is run."""
    try:
        import dockerfile
    except ImportError:
        absent("no dockerfile: make setup")
    commands = dockerfile.parse_file(str(DEPLOY / "Dockerfile"))
    flags = {"COPY": {"from"}, "HEALTHCHECK": {"start-period", "interval", "timeout"}}
    known = {"FROM", "WORKDIR", "RUN", "ARG", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    for command in commands:
        assert command.cmd in known | set(flags), command.original
        assert {flag[2:].partition("=")[0] for flag in command.flags} <= flags.get(command.cmd, set())
        assert all(command.value), command.original
    stages = [command.value for command in commands if command.cmd == "FROM"]
    named = {name for _, *rest in stages for name in rest if name != "AS"}
    assert {flag.partition("=")[2] for command in commands for flag in command.flags if "from=" in flag} <= named
    assert all(":" in image for image, *_ in stages), "of one version each"
    for command in commands:
        if command.cmd == "RUN":
            subprocess.run(["sh", "-n"], input=command.value[0], text=True, check=True, timeout=10)


def test_networks_volumes_and_files_of_the_composition_are_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            made_by_hand = source.startswith(("./secrets", "./etc"))
            assert made_by_hand or source in compose["volumes"] or (DEPLOY / source).exists(), volume
        assert set(service.get("depends_on", ())) <= set(compose["services"])
    assert [n for n, s in compose["services"].items() if "ports" in s] == ["proxy"], "nothing else is reachable"
    assert compose["networks"]["back"]["internal"]


def test_the_image_is_built_from_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    [dropped] = re.findall(r"grep -Ev '(.*)' requirements.lock", text)
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    left_out = [line for line in lock if re.search(dropped, line)]
    assert left_out
    assert all(line.startswith(("nvidia-", "cuda-", "triton==")) for line in left_out)
    assert "docs/openapi.json" in (ROOT / ".dockerignore").read_text(), "OHIF's types are made of it"


def test_probes_need_no_token() -> None:
    for name in ("Dockerfile", "../docs/deployment.md"):
        paths = re.findall(r"(?:localhost|127\.0\.0\.1):8000(/\S+?)['\s]", (DEPLOY / name).read_text())
        assert paths
        assert {rule_of("GET", path).role for path in paths} == {Role.NOBODY}


def test_the_proxy_lets_through_what_the_server_takes() -> None:
    text = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    assert text.count("{") == text.count("}")
    [most] = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(most) * 2**20 >= ServeConfig().max_upload_bytes + 2**20
    passed = re.findall(r"proxy_set_header (\S+)", text.split("location / {")[1].split("}")[0])
    assert {"Host", "Authorization", "X-Request-ID"} <= set(passed)
    assert "proxy_buffering off;" in text


@pytest.mark.parametrize("page", ["deployment.md", "security.md"])
def test_the_settings_that_the_pages_show_are_safe_ones(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    [shown] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "issuer" in block]
    site = SiteConfig.model_validate(yaml.safe_load(shown))
    assert site.behind_proxy
    assert "vqa.hospital.example" in site.hosts


def test_the_page_names_every_setting_of_who_may_reach_the_server() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    assert [name for name in SiteConfig.model_fields if not re.search(rf"\b{name}\b", text)] == []


def test_systemd_takes_the_unit(tmp_path: Path, absent: Callable[[str], NoReturn]) -> None:
    program = shutil.which("systemd-analyze") or absent("no systemd-analyze")
    unit = (DEPLOY / "sparsight.service").read_text()
    unit = unit.replace("/opt/sparsight/bin/sparsight", "/bin/true")  # the one thing that it looks for on this machine
    (tmp_path / "sparsight.service").write_text(unit)
    done = subprocess.run(
        [program, "verify", str(tmp_path / "sparsight.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_wheelhouse_is_of_the_lock() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "pip wheel --quiet --no-deps --wheel-dir $(WHEELHOUSE) -r requirements.lock" in text
    assert "$(if $(OFFLINE),--no-index --find-links $(WHEELHOUSE))" in text
