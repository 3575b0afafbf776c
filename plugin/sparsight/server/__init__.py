"""The web edge: MONAI Label's server made safe to stand beside a clinician, plus our own routes.

`monailabel start_server --uvicorn_app sparsight.server:app` is the seam; importing this package does no work.
"""

import sys
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "app":  # uvicorn asks for it by this name; building it imports all of MONAI Label
        from sparsight.server.run import check_started_key

        check_started_key(sys.argv[1:])
        from sparsight.server.seam import stock_app

        return stock_app()
    raise AttributeError(name)
