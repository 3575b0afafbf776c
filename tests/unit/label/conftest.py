"""MONAI Label's modules import what newer libraries and Python deprecate: import them once, quietly."""

import warnings

import pytest

from sparsight.compat import allow_monailabel

allow_monailabel()

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import monailabel.datastore.dicom


@pytest.fixture(autouse=True)
def _monailabel():
    assert monailabel.datastore.dicom
