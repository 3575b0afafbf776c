"""What MONAI Label 0.8.5 and pydicom-seg 0.4.1 expect of libraries that have moved on."""

import sys

import pydicom.uid


def allow_monailabel() -> None:
    """Make `import monailabel.*` work beside pydicom 3, which dropped the module pydicom-seg takes its UIDs from.

    Must run before anything imports monailabel.datastore, monailabel.interfaces.app or monailabel.app.
    """
    sys.modules.setdefault("pydicom._storage_sopclass_uids", pydicom.uid)
