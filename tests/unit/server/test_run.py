import socket

import pytest

from sparsight.config import Config
from sparsight.errors import BusyError, ConfigError
from sparsight.server.run import environment, prepare_app, serve


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
