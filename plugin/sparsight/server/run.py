"""Start and stop the server: one per store, in this process, so that Ctrl-C leaves nothing behind."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from sparsight.compat import allow_monailabel
from sparsight.config import LOOPBACK, SECTIONS, Config, SiteConfig
from sparsight.errors import BusyError, ConfigError, NotFoundError, WeightsError
from sparsight.server import state
from sparsight.store.files import make_folder

APPS = ("radiology", "images")  # the folders of apps/


def serve(
    config: Config,
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    app: str = "radiology",
    on_start: Callable[[], None] | None = None,
) -> int:
    """Serve `studies` (folder or DICOMweb URL) until Ctrl-C or SIGTERM; returns the exit code.

    app: a folder of apps/, one of APPS; its texts are what MONAI Label's clients show.
    on_start: called when all checks have passed. host: a loopback address, unless site.yaml says who may log in.
    Raises NotFoundError (no such folder), BusyError (port taken), ConflictError (a server on this store), ConfigError.
    """
    studies = _checked_studies(studies)
    check_exposure(config.site, host)
    _check_port(host, port)
    with state.locked(config.home):  # the application would refuse it too, but later and less clearly
        folder = prepare_app(config, app)
        _set_environment(config, folder, studies, port)
        allow_monailabel()
        from monailabel.main import Main

        main = Main()
        if on_start:
            on_start()
        arguments = ["start_server", "--app", str(folder), "--studies", studies, "--host", host, "--port", str(port)]
        arguments += ["--uvicorn_app", "sparsight.server:app"]
        if config.site.tls_certificate:
            arguments += ["--ssl_certfile", str(config.site.tls_certificate), "--ssl_keyfile", str(config.site.tls_key)]
        try:
            main.action_start_server(main.args_parser().parse_args(arguments))
        except SystemExit as stopped:  # uvicorn says so when the application does not start
            return stopped.code if isinstance(stopped.code, int) else 1
        except KeyboardInterrupt:
            return 0
    return 0


def start(
    config: Config,
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    app: str = "radiology",
    log: Path | None = None,
) -> subprocess.Popen[bytes]:
    """The same in a process of its own, for the demo and for tests. End it with terminate() and wait().

    Raises BusyError where the port is taken: whoever waits for this server would else find the other one.
    """
    _check_port(host, port)
    code = (
        "import sys; from sparsight.config import Config; from sparsight.server.run import serve; "
        "sys.exit(serve(Config.load(), sys.argv[1], host=sys.argv[2], port=int(sys.argv[3]), app=sys.argv[4]))"
    )
    command = [sys.executable, "-c", code, studies, host, str(port), app]
    variables = os.environ | environment(config)
    with (log or Path(os.devnull)).open("wb") as output:  # the process keeps its own handle
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)  # noqa: S603


def wait_until_ready(url: str, *, timeout_s: float = 120.0, process: subprocess.Popen[bytes] | None = None) -> float:
    """Wait until questions are answered without loading anything first; returns the seconds it took.

    url: of the server. process: stop waiting when it has ended. Raises BusyError; WeightsError if they do not load.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    start_s = time.monotonic()
    while time.monotonic() - start_s < timeout_s:
        if process is not None and process.poll() is not None:
            raise BusyError(
                f"a server that ended with code {process.returncode}", expected="a running one", todo="read its log"
            )
        try:
            with direct.open(f"{url.rstrip('/')}/sparsight/health/ready", timeout=5):
                return time.monotonic() - start_s
        except urllib.error.HTTPError as reply:
            _raise_if_failed(reply)
        except OSError:
            pass
        time.sleep(0.2)
    raise BusyError(f"no server after {timeout_s:.0f} s", expected="a ready one", todo="read its log")


def _raise_if_failed(reply: urllib.error.HTTPError) -> None:
    """Pass on why the server cannot become ready."""
    with reply:
        body = reply.read()
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return  # it loads, or it is another server
    raise WeightsError(error["given"], expected=error["expected"], todo=error["todo"])


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def prepare_app(config: Config, app: str = "radiology") -> Path:
    """Copy an app to config.home/app: MONAI Label writes into the app folder. Returns that folder."""
    target = config.home / "app"
    make_folder(target)
    shutil.copytree(app_source(app), target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "logs"))
    return target


def environment(config: Config) -> dict[str, str]:
    """Variables with which another process loads the same Config; its settings are written out under config.home."""
    texts = {name: yaml.safe_dump(getattr(config, name).model_dump(mode="json"), sort_keys=False) for name in SECTIONS}
    name = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:16]
    folder = config.home / "configs" / name  # never changed under a server that runs
    make_folder(folder)
    for section, text in texts.items():
        (folder / f"{section}.yaml").write_text(text, encoding="utf-8")
    variables = {"SPARSIGHT_HOME": str(config.home), "SPARSIGHT_CONFIGS": str(folder)}
    return variables | ({"SPARSIGHT_DATABASE": config.database} if config.database else {})


def app_source(app: str = "radiology") -> Path:
    """The folder of an app (one of APPS) as installed with the package, or in the checkout. Raises NotFoundError."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "apps" / app, package.parents[1] / "apps" / app):
        if app in APPS and (folder / "main.py").is_file():
            return folder
    expected = f"one of {', '.join(APPS)}"
    raise NotFoundError("an app that is not there", expected=expected, todo="check its name, or install again")


def check_exposure(site: SiteConfig, host: str) -> None:
    """Refuse to listen where others could reach the server without login or encryption. Raises ConfigError."""
    if host not in LOOPBACK and site.issuer is None:  # MONAI Label's authentication does not cover our routes
        raise ConfigError(
            f"host {host} without authentication",
            expected="a loopback address, or `issuer` in site.yaml",
            todo="use 127.0.0.1 and a tunnel, or see docs/security.md",
        )
    if host not in LOOPBACK and not (site.tls_certificate or site.behind_proxy):
        raise ConfigError(
            f"host {host} without encryption",
            expected="tls_certificate and tls_key, or behind_proxy in site.yaml",
            todo="see docs/deployment.md",
        )
    for name in ("tls_certificate", "tls_key"):
        path = getattr(site, name)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"setting site.{name}", expected="a file this user may read", todo="check its path")
    if site.tls_key is not None:
        _check_key(site.tls_key, "setting site.tls_key")


def check_started_key(arguments: Sequence[str]) -> None:
    """The same of a key that a command line names: MONAI Label's own, or uvicorn's. Raises ConfigError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ssl_keyfile", "--ssl-keyfile", type=Path)
    key = parser.parse_known_args(arguments)[0].ssl_keyfile
    if key is not None and key.exists():  # what is not there, uvicorn says itself
        _check_key(key, "--ssl_keyfile")


def _check_key(key: Path, named: str) -> None:
    if key.stat().st_mode & 0o077:
        raise ConfigError(f"{named}: a key that other users may read", expected="mode 600", todo="chmod 600 the file")


def _checked_studies(studies: str) -> str:
    if studies.startswith(("http://", "https://")):
        return studies.rstrip("/")
    if not Path(studies).is_dir():
        raise NotFoundError("a studies folder that is not there", expected="a folder or a URL", todo="check --studies")
    return str(Path(studies).resolve())


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BusyError(
                f"port {port} of {host} is taken",
                expected="a free port",
                todo="stop the other server, or use --port (with make: PORT=8001)",
            ) from error


def _set_environment(config: Config, app: Path, studies: str, port: int) -> None:
    """MONAI Label reads its settings from here, and hands them on to its background jobs."""
    os.environ.update(
        {
            **environment(config),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # background jobs fail where it is not set at all
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # dcmqi
            "MONAI_LABEL_AUTH_ENABLE": "false",  # it rejects every token and covers few routes; ours is access.py
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # else a second model is loaded at start
            "MONAI_LABEL_SESSION_PATH": str(config.home / "sessions"),
            "MONAI_LABEL_APP_DIR": str(app),
            "MONAI_LABEL_STUDIES": studies,
            "MONAI_LABEL_SERVER_PORT": str(port),
            "OMP_NUM_THREADS": "1",  # threads that contend for a core are slower than one
        }
    )
