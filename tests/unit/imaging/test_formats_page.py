"""docs/formats.md says what the loader does."""

from pathlib import Path

from sparsight.errors import BusyError, GeometryError, ImageError, NotFoundError
from sparsight.imaging.files import ITK, NIFTI, PICTURES
from sparsight.imaging.pixels import CT_WINDOW, MAX_PLANE, MAX_VOXELS

PAGE = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()


def test_formats_and_limits_are_those_of_the_code() -> None:
    for suffix in (*NIFTI, *ITK):
        assert f"`{suffix}`" in PAGE
    names = {"jpg": "jpeg", "tif": "tiff"}
    for suffix in PICTURES:
        name = suffix.removeprefix(".")
        assert names.get(name, name).upper() in PAGE
    assert f"{MAX_PLANE:,} pixels" in PAGE
    assert MAX_VOXELS == 2**29
    assert f"{CT_WINDOW[0]:g}/{CT_WINDOW[1]:g} for CT" in PAGE


def test_codes_are_those_of_the_errors() -> None:
    table = PAGE.split("## Refused")[1].split("## Marks")[0]
    codes = {row.split("|")[2].strip() for row in table.splitlines() if row.startswith("|")} - {"code", "---"}
    assert codes == {f"`{e.code}`" for e in (ImageError, GeometryError, NotFoundError, BusyError)}
