"""Exchange with other sites: a reader with one of its policies leaves or arrives as a MONAI bundle (docs/exchange.md).

`configs/inference.json` of every bundle names `Answerer` and `answer`: they keep their names and parameters.
"""

from sparsight.exchange.answer import Answerer, answer
from sparsight.exchange.bundle import Bundle, read_bundle
from sparsight.exchange.transfer import Exported, Imported, export_bundle, import_bundle

__all__ = ["Answerer", "Bundle", "Exported", "Imported", "answer", "export_bundle", "import_bundle", "read_bundle"]
