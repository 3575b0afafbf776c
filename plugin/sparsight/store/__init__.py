"""What must not be lost: episodes, corrections, their arrays, the policies learned from them, and a log of it all."""

from sparsight.store.blobs import BlobStore
from sparsight.store.db import Store
from sparsight.store.features import Features
from sparsight.store.lock import StoreLock
from sparsight.store.policies import PolicyRegistry

__all__ = ["BlobStore", "Features", "PolicyRegistry", "Store", "StoreLock"]
