"""NIfTI, NRRD, MetaImage and pictures: orientation, refusals, limits."""

import bz2
import gzip
import tracemalloc
import warnings
import zlib
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sparsight.errors import GeometryError, ImageError
from sparsight.imaging import files
from sparsight.imaging.files import image_stem, read_volume_file, to_display
from sparsight.imaging.load import load

RNG = np.random.default_rng(0)
# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")


def write_nifti(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("codes", ["".join(c) for c in (("RAS"), ("LPS"), ("PIR"), ("ASL"), ("SLP"), ("IRA"))])
def test_nifti_is_turned_to_lps_without_moving_a_voxel(codes: str, tmp_path: Path) -> None:
    data = RNG.integers(0, 1000, size=(5, 6, 7)).astype(np.int16)
    ornt = nibabel.orientations.axcodes2ornt(codes)
    affine = nibabel.orientations.inv_ornt_aff(ornt, data.shape) @ np.eye(4)
    affine[:3] *= np.array([[1.5], [1.0], [2.0]])
    volume = load(write_nifti(tmp_path / "a.nii.gz", data, affine))
    for index in ((0, 0, 0), (4, 2, 1), (3, 5, 6)):
        ras = affine @ [*index, 1]
        i, j, k = np.rint((np.linalg.inv(volume.ijk_to_lps) @ (ras * [-1, -1, 1, 1]))[:3]).astype(int)
        assert volume.voxels[k, j, i] == data[index]


affine_parts = st.tuples(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))


@given(affine_parts, st.integers(0, 2**32 - 1))
def test_display_order_is_the_one_of_dicom(parts: tuple[list[int], tuple[float, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    order, signs = parts
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[order] * np.array(signs) * rng.uniform(0.5, 3, size=3)
    affine[:3, :3] += rng.normal(0, 0.02, size=(3, 3))
    affine[:3, 3] = rng.normal(0, 50, size=3)
    voxels = rng.normal(size=(3, 4, 5)).astype(np.float32)
    turned, moved = to_display(voxels, affine)
    right, down = (int(np.abs(moved[:3, a]).argmax()) for a in (0, 1))
    assert moved[right, 0] > 0  # towards the left, or the back of a sagittal slice
    assert moved[down, 1] * (-1 if down == 2 else 1) > 0  # towards the back, or the feet
    assert right < down
    assert np.array_equal(moved[:3, 2], affine[:3, 2])  # the slice axis stays
    k, j, i = np.unravel_index(seed % voxels.size, voxels.shape)
    at = np.rint((np.linalg.inv(moved) @ affine @ [i, j, k, 1])[:3]).astype(int)
    assert turned[at[2], at[1], at[0]] == voxels[k, j, i]


def test_nifti_scaling_units_and_singleton_dimensions(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(RNG.normal(size=(4, 5, 6, 1)), np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    volume = load(tmp_path / "a.nii")
    assert volume.shape == (6, 5, 4)
    assert volume.spacing_mm == pytest.approx((1, 1, 2))


def test_nifti_refusals(tmp_path: Path) -> None:
    cube = RNG.normal(size=(4, 5, 6)).astype(np.float32)
    no_affine = nibabel.Nifti1Image(cube, None)
    no_affine.set_sform(None, code=0)
    no_affine.set_qform(None, code=0)
    nibabel.save(no_affine, tmp_path / "none.nii")
    with pytest.raises(GeometryError, match="without an affine"):
        load(tmp_path / "none.nii")
    with pytest.raises(ImageError, match=r"4 dimensions \(4 x 5 x 6 x 3\)"):
        load(write_nifti(tmp_path / "4d.nii.gz", np.stack([cube] * 3, axis=3)))
    cube[1, 1, 1] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        load(write_nifti(tmp_path / "nan.nii.gz", cube))
    with pytest.raises(ImageError, match="all the same"):
        load(write_nifti(tmp_path / "flat.nii.gz", np.full((4, 5, 6), 7, dtype=np.int16)))
    sound = write_nifti(tmp_path / "a.nii.gz", RNG.normal(size=(40, 40, 40))).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        load(tmp_path / "cut.nii.gz")
    (tmp_path / "text.nii").write_bytes(b"not nifti" * 100)
    with pytest.raises(ImageError):
        load(tmp_path / "text.nii")


def test_a_header_that_promises_a_terabyte_is_refused_before_reading(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), dtype=np.int16), np.eye(4))
    image.header["dim"][1:4] = 30_000, 30_000, 1000
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(image.header.binaryblock + bytes(1000)))
    with pytest.raises(ImageError, match="30000 x 30000 x 1000"):
        load(tmp_path / "bomb.nii.gz")


def peak(path: Path) -> int:
    """Bytes that were in use at a time while a file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_nifti_at_the_limit_is_read_and_one_beyond_it_is_not_unpacked(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsight.imaging.pixels.MAX_VOXELS", 2**21)
    ramp = np.arange(2**21 + 2**14, dtype=np.uint16)
    for depth, shape in ((128, (128, 128, 128)), (129, None)):
        nibabel.save(kind(ramp[: depth * 2**14].reshape(128, 128, depth), np.eye(4)), tmp_path / f"{depth}.nii.gz")
        if shape:
            assert load(tmp_path / f"{depth}.nii.gz").shape == shape
    with pytest.raises(ImageError, match=f"128 x 128 x 129 pixels; expected .*{2**21} in all"):
        load(tmp_path / "129.nii.gz")
    assert peak(tmp_path / "129.nii.gz") < 2**20


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_nifti_takes_little_more_memory_than_its_voxels(
    suffix: str, dtype: type, *, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as it is read, once as it is turned; what is stored, eight bytes a voxel here, never as a whole."""
    monkeypatch.setattr(files, "_AT_ONCE", 2**15 - 1)  # the last part is a short one
    array = RNG.integers(0, 200, (100, 90, 80)).astype(dtype)
    image = nibabel.Nifti1Image(array, np.eye(4))
    if scaled:
        image.header.set_slope_inter(0.1, -7)
    nibabel.save(image, tmp_path / f"a{suffix}")
    tracemalloc.start()
    try:
        voxels, _ = read_volume_file(tmp_path / f"a{suffix}")
        at_first = tracemalloc.get_traced_memory()[1]
        load(tmp_path / f"a{suffix}")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert at_first < 1.5 * voxels.nbytes
    assert most < 3.5 * voxels.nbytes  # the first is still held
    whole = np.asarray(nibabel.load(tmp_path / f"a{suffix}").dataobj, dtype=np.float32)
    np.testing.assert_array_equal(voxels, whole.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_what_stands_before_the_voxels_is_bounded_too(kind: type, tmp_path: Path) -> None:
    image = kind(RNG.integers(0, 99, (4, 5, 6), dtype=np.int16), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a" * 100))
    nibabel.save(image, tmp_path / "said.nii.gz")
    assert load(tmp_path / "said.nii.gz").shape == (6, 5, 4)
    for name, offset in (
        ("extension", 2**27 + 1024),
        ("gap", 1e12),
        ("none", np.nan if kind is nibabel.Nifti1Image else 2**62),
    ):
        image.header["vox_offset"] = offset
        start = image.header.binaryblock + b"\1\0\0\0" + np.array([2**27, 6], np.int32).tobytes()
        (tmp_path / f"{name}.nii.gz").write_bytes(gzip.compress(start + bytes(2**27), 1))
        assert peak(tmp_path / f"{name}.nii.gz") < 2**20


def write_itk(
    path: Path, array: NDArray[np.generic], direction: NDArray[np.float64] | None = None, *, compressed: bool = True
) -> Path:
    image = itk.image_from_array(array)
    image.SetSpacing([0.5, 0.7, 2.0][: image.GetImageDimension()])
    image.SetOrigin([-10.0, 20.0, 30.0][: image.GetImageDimension()])
    if direction is not None:
        image.SetDirection(direction)
    itk.imwrite(image, str(path), compression=compressed)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_are_lps_already(suffix: str, tmp_path: Path) -> None:
    data = RNG.integers(0, 1000, size=(3, 4, 5)).astype(np.int16)
    volume = load(write_itk(tmp_path / f"a{suffix}", data))
    assert np.array_equal(volume.voxels, data)
    assert volume.ijk_to_lps == pytest.approx(
        np.array([[0.5, 0, 0, -10], [0, 0.7, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]])
    )


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("compressed", [False, True])
def test_nrrd_and_metaimage_are_read_as_itk_wrote_them(
    suffix: str, dtype: type, compressed: bool, tmp_path: Path
) -> None:
    data = RNG.integers(0, 120, size=(3, 4, 5)).astype(dtype)
    turned, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    turned[:, 0] *= np.sign(np.linalg.det(turned))
    path = write_itk(tmp_path / f"a{suffix}", data, turned, compressed=compressed)
    voxels, affine = read_volume_file(path)
    assert np.array_equal(voxels, data)
    assert affine[:3, :3] == pytest.approx(turned * [0.5, 0.7, 2.0], abs=1e-5)
    assert affine[:3, 3] == pytest.approx([-10, 20, 30])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ImageError):
        load(path)


def test_other_spaces_and_ways_to_write_nrrd(tmp_path: Path) -> None:
    head = (
        "NRRD0004\n# by hand\ntype: ushort\ndimension: 3\nsizes: 2 3 2\nspace: {}\n"
        "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (4,5,6)\nendian: big\nencoding: {}\n\n"
    )
    values = np.arange(12, dtype=">u2")
    for encoding, data in (
        ("raw", values.tobytes()),
        ("bz2", bz2.compress(values.tobytes())),
        ("txt", b" ".join(b"%d" % n for n in values)),
    ):
        for space, signs in (("RAS", (-1, -1, 1)), ("left-anterior-superior", (1, -1, 1))):
            path = tmp_path / "a.nrrd"
            path.write_bytes(head.format(space, encoding).encode() + data)
            voxels, affine = read_volume_file(path)
            assert np.array_equal(voxels.ravel(), values)
            assert voxels.shape == (2, 3, 2)
            assert np.array_equal(
                affine, np.diag([*signs, 1.0]) @ [[1, 0, 0, 4], [0, 2, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1]]
            )
    path.write_bytes(head.format("scanner-xyz", "raw").encode() + values.tobytes())
    with pytest.raises(GeometryError, match="another space"):
        load(path)


@pytest.mark.parametrize(
    "line",
    [
        "sizes" * 10_000,  # of ITK's parser it ends the process
        "sizes: 4 5",
        "sizes: -4 5 12",
        "sizes: 9999999999999999999999 5 12",
        "dimension: 900",
        "space directions: (1,0,0) (0,1,0)",
        "space directions: (nan,0,0) (0,1,0) (0,0,1)",
        "space directions: (1,0) (0,1) (0,0)",
        "type: block",
        "encoding: hex",
        "byte skip: -1",
        "kinds: domain",
        "space origin: here",
    ],
)
def test_a_damaged_header_is_refused_and_ends_nothing(line: str, tmp_path: Path) -> None:
    fields = {
        "type": "uint8", "dimension": "3", "sizes": "4 5 12", "encoding": "raw", "space": "left-posterior-superior",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)", "space origin": "(0,0,0)",
    }  # fmt: skip
    path = tmp_path / "a.nrrd"

    def write() -> None:
        text = "".join(f"{key}: {value}\n" if value is not None else f"{key}\n" for key, value in fields.items())
        path.write_bytes(f"NRRD0005\n{text}\n".encode() + bytes(range(240)))

    write()
    assert load(path).shape == (12, 5, 4)
    name, _, value = line.partition(": ")
    fields[name] = value or None
    if not value:
        del fields["sizes"]
    write()
    with pytest.raises((ImageError, GeometryError)):
        load(path)


def test_no_more_is_unpacked_than_was_promised(tmp_path: Path) -> None:
    head = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nCompressedData = True\n"
    bomb = zlib.compress(bytes(range(64)) + bytes(2**28))
    (tmp_path / "a.mha").write_bytes(head.encode() + b"ElementDataFile = LOCAL\n" + bomb)
    tracemalloc.start()
    try:
        assert load(tmp_path / "a.mha").shape == (4, 4, 4)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_nrrd_refusals(tmp_path: Path) -> None:
    head = "NRRD0005\ntype: uint8\ndimension: {n}\nsizes: {sizes}\nencoding: raw\n{more}\n"
    data = bytes(range(240))

    def write(name: str, **fields: object) -> Path:
        path = tmp_path / name
        path.write_bytes(head.format(**fields).encode() + b"\n" * (not fields["more"]) + data)
        return path

    space = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1){}\nspace origin: (0,0,0)\n"
    kinds = "kinds: domain domain domain list\n"
    assert load(write("ok.nrrd", n=3, sizes="4 5 12", more=space.format(""))).shape == (12, 5, 4)
    assert load(write("one.nrrd", n=4, sizes="4 5 12 1", more=space.format(" none") + kinds)).shape == (12, 5, 4)
    with pytest.raises(GeometryError, match="without a space"):
        load(write("bare.nrrd", n=3, sizes="4 5 12", more="spacings: 1 1 1\n"))
    with pytest.raises(ImageError, match="4 dimensions"):
        load(write("4d.nrrd", n=4, sizes="4 5 4 3", more=space.format(" none")))
    with pytest.raises(ImageError, match="3 values per voxel"):
        load(write("list.nrrd", n=4, sizes="4 5 4 3", more=space.format(" none") + kinds))
    with pytest.raises(ImageError, match="in another file"):
        load(write("detached.nrrd", n=3, sizes="4 5 12", more=space.format("") + "data file: /etc/passwd\n"))
    with pytest.raises(ImageError, match="100000 x 100000"):
        load(write("big.nrrd", n=3, sizes="100000 100000 10", more=space.format("")))
    (tmp_path / "detached.mha").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementDataFile = /etc/passwd"
    )
    with pytest.raises(ImageError, match="in another file"):
        load(tmp_path / "detached.mha")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", ".png"), ("RGB", ".jpg"), ("RGBA", ".png"), ("P", ".png"), ("LA", ".png"), ("L", ".tif")]
)
def test_pictures_become_luminance_in_8_bit_range(mode: str, suffix: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (50, 1))).convert(mode)
    picture.save(tmp_path / f"a{suffix}")
    volume = load(tmp_path / f"a{suffix}")
    assert volume.shape == (1, 50, 200)
    assert volume.voxels[0, 25] == pytest.approx(np.arange(200), abs=4)
    assert volume.window == (127.5, 255)
    assert not volume.has_mm


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 255, dtype=np.uint8)
    pixels[:4, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").voxels[0, :, 0].tolist() == [0] * 4 + [255] * 4


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_pictures_keep_their_depth(suffix: str, tmp_path: Path) -> None:
    data = (np.arange(64 * 64).reshape(64, 64) * 10 + 1000).astype(np.uint16)
    Image.fromarray(data).save(tmp_path / f"a{suffix}")
    volume = load(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.voxels[0], data)
    low, high = volume.window[0] - volume.window[1] / 2, volume.window[0] + volume.window[1] / 2
    assert 1000 <= low < 1500
    assert 41_000 < high <= 41_950


def test_jpeg_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (32, 1))).save(tmp_path / "a.jpg", exif=exif)
    assert load(tmp_path / "a.jpg").shape == (1, 64, 32)


def test_picture_refusals(tmp_path: Path) -> None:
    for name, size in (("1.png", (1, 1)), ("flat.png", (30, 40))):
        Image.new("L", size, 7).save(tmp_path / name)
        with pytest.raises(ImageError, match="all the same"):
            load(tmp_path / name)
    pages = [Image.new("L", (8, 8), c) for c in (0, 255)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="2 pages"):
        load(tmp_path / "pages.tif")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="cannot be read"):
        load(tmp_path / "text.png")
    noise = Image.fromarray(RNG.integers(0, 255, size=(200, 200), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    with pytest.raises(ImageError, match="cannot be read"):
        load(tmp_path / "cut.jpg")


@pytest.mark.parametrize("action", ["error", "ignore"])  # Pillow warns of the smaller bombs only
def test_picture_bombs_are_refused(action: str, tmp_path: Path) -> None:
    for side in (10_000, 20_000):
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
            with pytest.raises(ImageError, match=r"decompression bombs|10000 x 10000"):
                load(tmp_path / "bomb.png")


def test_a_20000_pixel_strip_loads(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 255, size=(40, 20_000), dtype=np.uint8)).save(tmp_path / "strip.png")
    assert load(tmp_path / "strip.png").shape == (1, 40, 20_000)


def test_stems() -> None:
    assert [image_stem(Path(n)) for n in ("a.nii.gz", "b.c.PNG", "d.nii")] == ["a", "b.c", "d"]
