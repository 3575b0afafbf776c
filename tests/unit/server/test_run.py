import socket
import sys

import pytest

import sparsight.server
from sparsight.config import Config, SiteConfig
from sparsight.errors import BusyError, ConfigError, NotFoundError
from sparsight.server.run import APPS, app_source, check_exposure, check_started_key, environment, prepare_app, serve


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "viewer.example"])
def test_only_this_machine_is_served_even_with_stock_authentication(tmp_path, monkeypatch, host):
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    with pytest.raises(ConfigError, match="loopback"):
        serve(Config.load(home=tmp_path / "home"), str(tmp_path), host=host)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_every_name_of_the_loopback_is_one_to_listen_on(tmp_path, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other, pytest.raises(BusyError, match="taken"):
        serve(Config.load(home=tmp_path / "home"), str(tmp_path), host=host, port=other.getsockname()[1])


def test_a_home_that_the_server_makes_is_private(tmp_path):
    config = Config.load(home=tmp_path / "new" / "home")
    environment(config)
    prepare_app(config)
    made = [tmp_path / "new", config.home, config.home / "app", *(config.home / "configs").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir() and path.name != "app"} == {0o700}


def test_every_app_has_texts_and_settings_that_can_be_read(tmp_path):
    apps = app_source().parent
    assert {folder.name for folder in apps.iterdir() if (folder / "main.py").is_file()} == set(APPS)
    for app in APPS:
        config = Config.load(app_source(app), home=tmp_path / app)
        assert (prepare_app(config, app) / "lib/configs.py").is_file()
    assert "white blood cells" in Config.load(app_source("images")).serve.suggested_questions["default"]
    for app in ("pathology", "../radiology", ""):
        with pytest.raises(NotFoundError, match="radiology, images"):
            app_source(app)


ISSUER = "https://id.example"


@pytest.mark.parametrize(
    ("host", "site", "fault"),
    [
        ("127.0.0.1", {}, None),
        ("0.0.0.0", {"issuer": ISSUER}, "encryption"),
        ("0.0.0.0", {"issuer": ISSUER, "behind_proxy": True}, None),
        ("127.0.0.1", {"issuer": ISSUER}, None),
        ("0.0.0.0", {"issuer": ISSUER, "tls_certificate": "none.pem", "tls_key": "none.key"}, "tls_certificate"),
    ],
)
def test_what_others_can_reach_needs_a_login_and_encryption(host, site, fault):
    if fault is None:
        check_exposure(SiteConfig(**site), host)
    else:
        with pytest.raises(ConfigError, match=fault):
            check_exposure(SiteConfig(**site), host)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    for name, mode in (("c.pem", 0o644), ("k.pem", 0o640)):
        (tmp_path / name).touch(mode=mode)
        (tmp_path / name).chmod(mode)
    site = SiteConfig(issuer=ISSUER, tls_certificate=tmp_path / "c.pem", tls_key=tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="other users"):
        check_exposure(site, "0.0.0.0")
    (tmp_path / "k.pem").chmod(0o600)
    check_exposure(site, "0.0.0.0")


@pytest.mark.parametrize("option", ["--ssl_keyfile", "--ssl-keyfile"])
def test_so_is_one_that_a_command_line_names(tmp_path, monkeypatch, option):
    key = tmp_path / "k.pem"
    key.touch(mode=0o640)
    for given in ([option, str(key)], [f"{option}={key}"]):
        monkeypatch.setattr(sys, "argv", ["monailabel", "start_server", "--ssl_keyfile_password", "x", *given])
        with pytest.raises(ConfigError, match="other users"):
            sparsight.server.app  # noqa: B018  (what uvicorn asks for)
    key.chmod(0o600)
    check_started_key([option, str(key)])
    check_started_key([option, str(tmp_path / "none")])
    check_started_key(["--ssl_certfile", str(key)])


def test_another_process_gets_the_same_settings(tmp_path, monkeypatch):
    config = Config.load(home=tmp_path, site={"issuer": ISSUER, "hosts": ["a.example"], "log": "json"})
    for name, value in environment(config).items():
        monkeypatch.setenv(name, value)
    assert Config.load() == config
