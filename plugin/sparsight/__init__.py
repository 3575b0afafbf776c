"""sparsight: answers about medical images from the few visual tokens that matter."""

__version__ = "0.1.0"
