"""sparsight: answers about medical images from the few visual tokens that matter."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by the libraries when they are imported: none of them asks the Hub

__version__ = "0.1.0"
