"""The MONAI Label app: its texts are in lib/configs.py, what it does is in the package (sparsight/label/app.py)."""

from lib import configs

from sparsight.compat import allow_monailabel

allow_monailabel()

# E402: what follows needs the shim above
from sparsight.label.app import make_app  # noqa: E402
from sparsight.server.state import service  # noqa: E402

Radiology = make_app(configs, service)
