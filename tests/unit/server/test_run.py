import pytest

from sparsight.config import Config
from sparsight.errors import ConfigError
from sparsight.server.run import serve


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "viewer.example"])
def test_only_this_machine_is_served_even_with_stock_authentication(tmp_path, monkeypatch, host):
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    with pytest.raises(ConfigError, match="loopback"):
        serve(Config.load(home=tmp_path / "home"), str(tmp_path), host=host)
    assert not (tmp_path / "home").exists()
