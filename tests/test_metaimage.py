"""MetaImage against SimpleITK and against headers written by hand: what they mean, what survives, what is refused."""

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from faults import catches
from make_scans import make_affine, make_voxels
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io import metaimage
from thinslice.io.metaimage import read, write
from thinslice.volume import Volume

SHAPE = (5, 4, 3)
VOXELS = make_voxels(SHAPE, "i2")
RAW = VOXELS.tobytes(order="F")
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]

HEAD = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-30 20 -10",
    "CenterOfRotation": "0 0 0",
    "ElementSpacing": "0.7 0.8 4",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
}


def header(data: str | None = "LOCAL", **changes: str | None) -> bytes:
    """A header by hand; None leaves a field out."""
    fields = HEAD | changes | {"ElementDataFile": data}
    return "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None).encode()


def save(path: Path, content: bytes = RAW, data: str | None = "LOCAL", **changes: str | None) -> Path:
    path.write_bytes(header(data, **changes) + content)
    return path


def affine_of(image: SimpleITK.Image) -> np.ndarray:
    """Where SimpleITK sees the voxels of a 3-D image, in RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return TO_RAS @ affine


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [x, y, z] and affine as SimpleITK reads them."""
    image = SimpleITK.ReadImage(str(path))
    return SimpleITK.GetArrayFromImage(image).T, affine_of(image)


def to_itk(volume: Volume) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.T))
    affine = TO_RAS @ volume.affine
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((affine[:3, :3] / volume.spacing_mm).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def assert_refused(path: Path, *words: str) -> InputRefused:
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputRefused) as caught:
        read(path)
    error, message = caught.value, str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: got ")
    assert error.need
    assert error.next
    assert error.code
    for word in words:
        assert word in message
    assert sorted(path.parent.iterdir()) == before
    return error


# ---- SimpleITK and we see the same


@catches("io/metaimage.py", ".reshape(count, count).T", ".reshape(count, count)")
@catches("io/metaimage.py", "_words(matrix.T.ravel())", "_words(matrix.ravel())")
@catches("io/metaimage.py", "_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])", "_TO_RAS = np.eye(4)")
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@given(data=st.data(), spacing=st.tuples(*[strategies.millimetres(0.2, 9)] * 3), dtype=st.sampled_from(TYPES))
def test_what_we_write_lies_where_itk_reads_it_and_the_other_way_round(tmp_path, name, data, spacing, dtype):
    volume = Volume(make_voxels(SHAPE, dtype), data.draw(strategies.affines(spacing)))
    write(volume, tmp_path / name)
    voxels, affine = by_itk(tmp_path / name)
    assert voxels.dtype == volume.voxels.dtype
    np.testing.assert_array_equal(voxels, volume.voxels)
    np.testing.assert_allclose(affine, volume.affine, rtol=0, atol=1e-10)
    is_packed = data.draw(st.booleans())
    SimpleITK.WriteImage(to_itk(volume), str(tmp_path / name), useCompression=is_packed)
    again = read(tmp_path / name)
    assert again.voxels.dtype == volume.voxels.dtype
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(again.affine, affine_of(SimpleITK.ReadImage(str(tmp_path / name))))
    assert again.header.is_packed == is_packed


@given(data=st.data(), spacing=st.tuples(*[strategies.millimetres(0.2, 9)] * 3))
def test_every_affine_goes_round_within_a_few_ulps(tmp_path, data, spacing):
    affine = data.draw(strategies.affines(spacing))
    write(Volume(VOXELS, affine), tmp_path / "a.mha")
    once = read(tmp_path / "a.mha")
    np.testing.assert_allclose(once.affine, affine, rtol=4 * np.finfo(float).eps, atol=1e-15)
    np.testing.assert_array_equal(once.affine[:3, 3], affine[:3, 3])


M, N = "0 1 0 0 0 1 1 0 0", "0 0 1 1 0 0 0 1 0"


@catches(
    "io/metaimage.py", '_POSITION = ("Origin", "Offset", "Position")', '_POSITION = ("Offset", "Origin", "Position")'
)
@catches(
    "io/metaimage.py",
    '_MATRIX = ("TransformMatrix", "Rotation", "Orientation")',
    '_MATRIX = ("TransformMatrix", "Orientation", "Rotation")',
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"TransformMatrix": M},
        {"TransformMatrix": None, "Rotation": M},
        {"TransformMatrix": None, "Orientation": M},
        {"TransformMatrix": None, "Orientation": M, "Rotation": N},
        {"TransformMatrix": M, "Orientation": N, "Rotation": N},
        {"TransformMatrix": M, "CenterOfRotation": "10 20 30"},
        {"TransformMatrix": None, "AnatomicalOrientation": "LPS"},
        {"TransformMatrix": "1 0 0 0.5 1 0 0 0 1"},
        {"TransformMatrix": "2 0 0 0 1 0 0 0 1"},
        {"Offset": None},
        {"Offset": None, "Position": "7 8 9"},
        {"Offset": None, "Origin": "7 8 9"},
        {"Position": "7 8 9"},
        {"Origin": "7 8 9"},
        {"Offset": None, "Origin": "7 8 9", "Position": "4 5 6"},
        {"ElementSpacing": None, "ElementSize": "3 2 1"},
        {"ElementSize": "3 2 1"},
        {"ElementSpacing": "1 2 -3"},
        {"BinaryDataByteOrderMSB": "True"},
        {"BinaryDataByteOrderMSB": None},
        {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
        {"ElementByteOrderMSB": "True"},
        {"BinaryDataByteOrderMSB": "1", "ElementByteOrderMSB": "False"},
        {"BinaryDataByteOrderMSB": "true"},
        {"BinaryData": None},
        {"HeaderSize": "-1"},
        {"HeaderSize": "0"},
        {"ObjectType": None},
        {"ElementType": "MET_USHORT"},
        {"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "5"},
        {"Comment": "a = b: c", "my key": "of mine"},
    ],
    ids=str,
)
def test_headers_mean_what_they_mean_to_itk(tmp_path, changes):
    volume = read(save(tmp_path / "a.mha", **changes))
    voxels, affine = by_itk(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(metaimage._TYPES))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_in_both_byte_orders_is_read_as_by_itk(tmp_path, kind, order):
    stored = make_voxels(SHAPE, metaimage._TYPES[kind])
    content = stored.astype(stored.dtype.newbyteorder(order)).tobytes(order="F")
    path = save(tmp_path / "a.mha", content, ElementType=kind, BinaryDataByteOrderMSB=str(order == ">"))
    volume = read(path)
    assert volume.voxels.dtype == stored.dtype
    np.testing.assert_array_equal(volume.voxels, stored)
    np.testing.assert_array_equal(by_itk(path)[0], stored)


@pytest.mark.parametrize("text", [header().replace(b" = ", b": "), header().replace(b" = ", b"="), header()])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_colons_blanks_and_ends_of_lines_do_not_matter(tmp_path, text, end):
    path = tmp_path / "a.mha"
    path.write_bytes(text.replace(b"\n", end) + RAW)
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_array_equal(by_itk(path)[0], VOXELS)
    np.testing.assert_allclose(volume.affine, by_itk(path)[1], atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4, 3, 1), (5, 4, 1)])
def test_series_and_single_slices(tmp_path, shape):
    voxels = make_voxels(shape, "i2")
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T), isVector=False)
    image.SetSpacing([0.7, 0.8, 4.0, 2.5][: len(shape)])
    image.SetOrigin([1.0, 2.0, 3.0, 4.0][: len(shape)])
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.voxels, voxels if shape[-1] > 1 or len(shape) == 3 else voxels[..., 0])
    np.testing.assert_allclose(volume.affine[:3, 3], [-1, -2, 3])
    write(volume, tmp_path / "b.mha")
    again = SimpleITK.ReadImage(str(tmp_path / "b.mha"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(again).T, volume.voxels)
    if volume.voxels.ndim == 4:
        assert again.GetSpacing() == image.GetSpacing()
        assert again.GetOrigin() == image.GetOrigin()


# ---- the voxels


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u8"])
@pytest.mark.parametrize("name", ["seg.mha", "seg.mhd"])
def test_labels_survive_exactly(tmp_path, dtype, name):
    drawn = np.zeros(SHAPE, dtype)
    drawn[1:3, 1:3, :2] = np.iinfo(dtype).max
    write(Volume(drawn, make_affine()), tmp_path / name)
    for voxels in (read(tmp_path / name).voxels, by_itk(tmp_path / name)[0]):
        assert voxels.dtype == drawn.dtype
        np.testing.assert_array_equal(voxels, drawn)


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("size", [None, "right", "0"])
def test_packed_voxels_are_read_with_and_without_their_size(tmp_path, pack, size):
    content = pack(RAW)
    told = str(len(content)) if size == "right" else size
    path = save(tmp_path / "a.mha", content, CompressedData="True", CompressedDataSize=told)
    np.testing.assert_array_equal(read(path).voxels, VOXELS)
    path = save(tmp_path / "b.mhd", b"", "b.zraw", CompressedData="True", CompressedDataSize=told)
    path.with_suffix(".zraw").write_bytes(content)
    np.testing.assert_array_equal(read(path).voxels, VOXELS)


def test_voxels_as_text(tmp_path):
    words = b" ".join(b"%d" % n for n in VOXELS.ravel("F")) + b"\n"
    path = save(tmp_path / "a.mha", words, BinaryData="False")
    np.testing.assert_array_equal(read(path).voxels, VOXELS)
    np.testing.assert_array_equal(by_itk(path)[0], VOXELS)


@catches("io/metaimage.py", "return None if int(text) == -1 else", "return 0 if int(text) == -1 else")
@pytest.mark.parametrize(
    ("before", "behind", "size"), [(b"1234567", b"89", "7"), (b"1234567", b"", "-1"), (b"", b"9", "0")]
)
def test_bytes_before_and_behind_the_voxels_of_a_data_file(tmp_path, before, behind, size):
    path = save(tmp_path / "a.mhd", b"", "a.raw", HeaderSize=size)
    (tmp_path / "a.raw").write_bytes(before + RAW + behind)
    np.testing.assert_array_equal(read(path).voxels, VOXELS)
    np.testing.assert_array_equal(by_itk(path)[0], VOXELS)


def test_big_plain_files_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.io.streams.ON_DISK_BYTES", 50)
    path = save(tmp_path / "a.mha", VOXELS.astype(">i2").tobytes(order="F"), BinaryDataByteOrderMSB="True")
    before = path.read_bytes()
    np.testing.assert_array_equal(read(path).voxels, VOXELS)
    assert path.read_bytes() == before


def test_non_finite_voxels_are_replaced_as_elsewhere(tmp_path):
    stored = np.full(SHAPE, 20, "<f4")
    stored[1, 0] = np.nan, np.inf, -np.inf
    volume = read(save(tmp_path / "a.mha", stored.tobytes(order="F"), ElementType="MET_FLOAT"))
    assert volume.notes[0].startswith("3 of 60 voxels")


@given(pieces=st.lists(st.integers(1, 70), min_size=1, max_size=9), chunk=st.integers(1, 40))
def test_an_inflated_stream_gives_what_was_packed_whatever_is_asked_for(pieces, chunk):
    import io

    from thinslice.io.streams import Inflated

    class Small(Inflated):
        CHUNK_BYTES = chunk

    content = np.random.default_rng(0).integers(0, 3, sum(pieces), dtype=np.uint8).tobytes()
    stream = Small(io.BytesIO(zlib.compress(content) + b"behind"))
    got = b""
    for piece in [*pieces, *pieces]:
        got += stream.read(piece)
    while part := stream.read(7):
        got += part
    assert got == content


# ---- what is kept, and what is told


def test_what_still_holds_is_kept(tmp_path):
    told = {"Comment": "by hand: Größe", "Modality": "MET_MOD_MR", "Segment0_Extent": "0 4 0 3 0 2", "0010|0010": "N N"}
    volume = read(save(tmp_path / "a.mha", ElementMin="0", **told))
    write(volume, tmp_path / "same.mha")
    write(replace(volume, voxels=np.repeat(VOXELS, 2, axis=2)), tmp_path / "thin.mha")
    lines = {f"{name} = {value}" for name, value in told.items()}
    same, thin = (
        (tmp_path / name).read_bytes().partition(b"LOCAL\n")[0].decode().split("\n")
        for name in ("same.mha", "thin.mha")
    )
    assert lines <= set(same)
    assert lines - set(thin) == {"Segment0_Extent = 0 4 0 3 0 2"}
    assert not any(line.startswith("ElementMin") for line in same)
    image = SimpleITK.ReadImage(str(tmp_path / "thin.mha"))
    assert image.GetMetaData("0010|0010") == "N N"
    assert image.GetMetaData("Modality") == "MET_MOD_MR"


def test_the_extent_of_a_voxel_beside_its_spacing_is_the_slice_thickness(tmp_path):
    volume = read(save(tmp_path / "a.mha", ElementSize="0.7 0.8 3"))
    assert volume.thickness_mm == 3
    write(volume, tmp_path / "b.mha")
    assert read(tmp_path / "b.mha").thickness_mm == 3
    np.testing.assert_allclose(by_itk(tmp_path / "b.mha")[1], volume.affine, atol=1e-12)
    (tmp_path / "a.json").write_text('{"SliceThickness": 2.5}')
    volume = read(tmp_path / "a.mha")
    assert volume.thickness_mm == 3
    assert "the header is believed" in volume.notes[-1]
    assert read(save(tmp_path / "a.mha", ElementSize="0.7 0.8 -3")).thickness_mm == 2.5
    assert read(save(tmp_path / "a.mha")).thickness_mm == 2.5
    assert read(save(tmp_path / "c.mha")).thickness_mm is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"Offset": None}, "no Offset"),
        ({"TransformMatrix": None}, "no TransformMatrix"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0.5 1"}, "sheared"),
        ({"DistanceUnits": "cm"}, "lengths are in cm"),
        ({"ElementToIntensityFunctionSlope": "2"}, "not applied"),
    ],
)
def test_what_had_to_be_decided_is_told(tmp_path, changes, word):
    [note] = read(save(tmp_path / "a.mha", **changes)).notes
    assert word in note


def test_what_is_plain_needs_no_note(tmp_path):
    changes = {"ElementToIntensityFunctionSlope": "1", "ElementToIntensityFunctionOffset": "0", "DistanceUnits": "mm"}
    assert read(save(tmp_path / "a.mha", **changes)).notes == ()


def test_other_units_become_millimetres(tmp_path):
    volume = read(save(tmp_path / "a.mha", DistanceUnits="um", ElementSize="0.7 0.8 3"))
    np.testing.assert_allclose(volume.spacing_mm, [0.7e-3, 0.8e-3, 4e-3])
    assert volume.thickness_mm == pytest.approx(3e-3)
    write(volume, tmp_path / "b.mha")
    np.testing.assert_allclose(read(tmp_path / "b.mha").affine, volume.affine, rtol=1e-12)


@given(data=st.data())
def test_the_anatomical_orientation_is_that_of_itk(tmp_path, data):
    rng = np.random.default_rng(data.draw(strategies.seeds))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    volume = Volume(VOXELS, affine)
    write(volume, tmp_path / "a.mha")
    SimpleITK.WriteImage(to_itk(volume), str(tmp_path / "b.mha"))
    ours, theirs = (
        [line for line in (tmp_path / name).read_bytes().split(b"\n") if line.startswith(b"AnatomicalOrientation")]
        for name in ("a.mha", "b.mha")
    )
    assert ours == theirs


# ---- two files


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_pair_keeps_how_its_voxels_lie(tmp_path, is_packed):
    SimpleITK.WriteImage(to_itk(Volume(VOXELS, make_affine())), str(tmp_path / "a.mhd"), useCompression=is_packed)
    write(read(tmp_path / "a.mhd"), tmp_path / "b.mhd")
    names = {"a.mhd", "b.mhd"} | ({"a.zraw", "b.zraw"} if is_packed else {"a.raw", "b.raw"})
    assert {path.name for path in tmp_path.iterdir()} == names
    np.testing.assert_array_equal(by_itk(tmp_path / "b.mhd")[0], VOXELS)
    if not is_packed:
        assert (tmp_path / "b.raw").read_bytes() == RAW


@pytest.mark.parametrize("name", ["a%03d.mhd", "LIST.mhd", " a.mhd", "a:b.mhd", "a\\b.mhd"])
def test_a_name_that_metaio_would_not_find_again_is_that_of_one_file(tmp_path, name):
    write(Volume(VOXELS, make_affine()), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(read(tmp_path / name).voxels, VOXELS)
    np.testing.assert_array_equal(by_itk(tmp_path / name)[0], VOXELS)


@pytest.mark.parametrize("name", ["a b.mhd", "ä.mhd", "LOCAL.mhd", "a=b.mhd"])
def test_a_pair_may_have_any_other_name(tmp_path, name):
    write(Volume(VOXELS, make_affine()), tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2
    np.testing.assert_array_equal(read(tmp_path / name).voxels, VOXELS)
    np.testing.assert_array_equal(by_itk(tmp_path / name)[0], VOXELS)


@pytest.mark.parametrize(
    "data_file", ["{folder}/out.raw", "../out.raw", "sub/../../out.raw", "..\\out.raw", "C:\\o.raw", ""]
)
def test_voxels_elsewhere_are_refused(tmp_path, data_file):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.raw").write_bytes(RAW)
    path = save(tmp_path / "in" / "a.mhd", b"", data_file.format(folder=tmp_path))
    assert assert_refused(path, "outside the header's folder").code == "data-file-elsewhere"


@pytest.mark.parametrize("data_file", ["LIST", "LIST 2D", "a%03d.raw 1 3 1"])
def test_voxels_in_several_files_are_refused(tmp_path, data_file):
    assert_refused(save(tmp_path / "a.mhd", b"a.raw\nb.raw\nc.raw\n", data_file), "several files", "write it again")


def test_a_data_file_that_is_missing_a_folder_or_short_is_refused(tmp_path):
    assert_refused(save(tmp_path / "a.mhd", b"", "none.raw"), "No such file")
    (tmp_path / "sub").mkdir()
    assert_refused(save(tmp_path / "a.mhd", b"", "sub"), "a folder")
    (tmp_path / "short.raw").write_bytes(RAW[:-1])
    assert_refused(save(tmp_path / "a.mhd", b"", "short.raw"), "bytes")


@catches(
    "io/metaimage.py",
    "with all_or_none([path, voxels], overwrite=True) as (header_part, voxels_part):",
    "if [header_part := path, voxels_part := voxels]:",
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("where", ["encoded", "_encode"])
def test_both_files_are_there_or_none(tmp_path, monkeypatch, error, name, where):
    def fail(*_args):
        raise error

    write(Volume(VOXELS, make_affine()), tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(metaimage, where, fail)
    with pytest.raises(OutputRefused if isinstance(error, OSError) else error):
        write(Volume(VOXELS + 1, make_affine()), tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(OutputRefused if isinstance(error, OSError) else error):
        write(Volume(VOXELS, make_affine()), tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()


# ---- what is refused

BAD = {
    "no axes": ({"NDims": None}, "without 'NDims'"),
    "no sizes": ({"DimSize": None}, "without 'DimSize'"),
    "no type": ({"ElementType": None}, "without 'ElementType'"),
    "no spacing": ({"ElementSpacing": None}, "without 'ElementSpacing'"),
    "axes nonsense": ({"NDims": "three"}, "'NDims'"),
    "axes absurd": ({"NDims": "99"}, "'NDims'"),
    "axes endless": ({"NDims": "9" * 5000}, "'NDims'"),
    "2-D": (
        {"NDims": "2", "DimSize": "5 12", "Offset": "1 2", "ElementSpacing": "1 2", "TransformMatrix": "1 0 0 1"},
        "a 2-D image (5 x 12)",
    ),
    "5-D": ({"NDims": "5", "DimSize": "5 2 3 2 2"}, "a 5-D image"),
    "size zero": ({"DimSize": "5 0 3"}, "5 x 0 x 3"),
    "size negative": ({"DimSize": "5 -4 3"}, "'DimSize'"),
    "size fraction": ({"DimSize": "5 4.5 3"}, "'DimSize'"),
    "size absurd": ({"DimSize": "5 4 999999999999999"}, "bytes"),
    "size absurd, packed": ({"DimSize": "5 4 999999999999999", "CompressedData": "True"}, "bytes"),
    "size absurd, text": ({"DimSize": "5 4 999999999999999", "BinaryData": "False"}, "numbers"),
    "size beyond": ({"DimSize": "5 4 " + "9" * 400}, "'DimSize'"),
    "sizes few": ({"DimSize": "5 4"}, "'DimSize'"),
    "one voxel more": ({"DimSize": "5 4 4"}, "bytes"),
    "channels": ({"ElementNumberOfChannels": "3"}, "several numbers per voxel"),
    "array": ({"ElementType": "MET_FLOAT_ARRAY"}, "several numbers per voxel"),
    "type": ({"ElementType": "MET_OTHER"}, "MET_OTHER"),
    "spacing zero": ({"ElementSpacing": "1 1 0"}, "1 x 1 x 0"),
    "spacing NaN": ({"ElementSpacing": "1 nan 1"}, "'ElementSpacing'"),
    "spacing few": ({"ElementSpacing": "1 1"}, "2 numbers"),
    "spacing huge": ({"ElementSpacing": "1 1 1e300"}, "that a scanner may have"),
    "spacing nonsense": ({"ElementSpacing": "1 1 x"}, "'ElementSpacing'"),
    "matrix singular": ({"TransformMatrix": "1 0 0 0 1 0 1 1 0"}, "one plane"),
    "matrix zero": ({"TransformMatrix": "1 0 0 0 1 0 0 0 0"}, "mm"),
    "matrix few": ({"TransformMatrix": "1 0 0 1"}, "4 numbers"),
    "matrix infinite": ({"TransformMatrix": "1 0 0 0 inf 0 0 0 1"}, "finite"),
    "offset few": ({"Offset": "1 2"}, "2 numbers"),
    "offset huge": ({"Offset": "0 0 1e308"}, "that a scanner may have"),
    "unit unknown": ({"DistanceUnits": "furlong"}, "furlong"),
    "header size nonsense": ({"HeaderSize": "many"}, "'HeaderSize'"),
    "header size negative": ({"HeaderSize": "-2"}, "'HeaderSize'"),
    "header size in the header": ({"HeaderSize": "7"}, "'HeaderSize'"),
    "header size beyond": ({"HeaderSize": "999999999999"}, "bytes"),
    "header size -1, packed": ({"HeaderSize": "-1", "CompressedData": "True"}, "not raw"),
    "order nonsense": ({"BinaryDataByteOrderMSB": "maybe"}, "'BinaryDataByteOrderMSB'"),
    "packed nonsense": ({"CompressedData": ""}, "'CompressedData'"),
    "not packed at all": ({"CompressedData": "True"}, "compressed stream"),
    "a mesh": ({"ObjectType": "Mesh"}, "of type 'Mesh'"),
    "time in space": (
        {"NDims": "4", "DimSize": "5 4 3 1", "Offset": "0 0 0 0", "ElementSpacing": "1 1 1 1"}
        | {"TransformMatrix": "1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1"},
        "mix space with time",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_headers_are_refused(tmp_path, fault, capfd):
    changes, word = BAD[fault]
    assert_refused(save(tmp_path / "a.mha", **changes), word)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "an empty file"),
        (b"NRRD0004\n", "an NRRD file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"hello, world", "a text file"),
        (b"NDims = 3\n", "without 'ElementDataFile'"),
        (b"NDims = 3\nno sign here\n", "without '='"),
        (b"NDims = 3\nNDims = 3\n", "two fields 'NDims'"),
        (header(), "bytes"),
        (header() + RAW[:-1], "bytes"),
        (header(CompressedData="True") + zlib.compress(RAW)[:-5], "compressed stream"),
        (header(CompressedData="True") + zlib.compress(RAW)[:-1] + b"x", "compressed stream"),
        (header(CompressedData="True") + zlib.compress(RAW[:-1]), "bytes"),
        (header(BinaryData="False") + b"1 " * 59, "59 numbers"),
        (header(BinaryData="False") + b"x " * 60, "cannot be understood"),
        (header(BinaryData="False") + b"99999 " * 60, "numbers beyond int16"),
    ],
    ids=range(15),
)
def test_bad_files_are_refused(tmp_path, content, word):
    path = tmp_path / "a.mha"
    path.write_bytes(content)
    assert_refused(path, word)


def test_a_header_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(metaimage, "MOST_HEADER_BYTES", 1000)
    path = tmp_path / "a.mha"
    path.write_bytes(b"NDims = 3\nComment = " + b"x" * 2000)
    assert_refused(path, "without an end")


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("a.nii", {}, "need .mha or .mhd"),
        ("a.mha", {"voxels": np.full(SHAPE, np.nan)}, "NaN"),
        ("a.mhd", {"voxels": np.full(SHAPE, np.nan)}, "NaN"),
        ("a.mha", {"voxels": np.zeros((5, 4))}, "shape"),
        ("a.mha", {"voxels": np.zeros(SHAPE, complex)}, "complex"),
        ("a.mhd", {"affine": np.zeros((4, 4))}, "inverse"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, change, word):
    with pytest.raises(OutputRefused, match=word):
        write(replace(Volume(VOXELS, make_affine()), **change), tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "stored"), [("?", "u1"), ("f2", "f4"), ("f8", "f8")])
def test_other_types_are_stored_as_the_nearest(tmp_path, dtype, stored):
    write(Volume(np.ones(SHAPE, dtype), make_affine()), tmp_path / "a.mha")
    assert read(tmp_path / "a.mha").voxels.dtype == np.dtype(stored)


def test_numbers_take_the_type_of_the_source_and_what_is_ready_is_what_is_written(tmp_path):
    volume = read(save(tmp_path / "a.mha"))
    voxels = np.full(SHAPE, 3.6, np.float32)
    voxels[0], voxels[1] = -1e9, 1e9
    ready = metaimage.as_stored(replace(volume, voxels=voxels))
    write(ready, tmp_path / "b.mha")
    again = read(tmp_path / "b.mha").voxels
    assert again.dtype == np.int16
    np.testing.assert_array_equal(again, ready.voxels)
    assert [again[0, 0, 0], again[1, 0, 0], again[2, 0, 0]] == [-32768, 32767, 4]


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    write(read(save(tmp_path / "a.mha")), tmp_path / "b.mha")
    write(read(tmp_path / "b.mha"), tmp_path / "c.mha")
    assert (tmp_path / "b.mha").read_bytes() == (tmp_path / "c.mha").read_bytes()


numbers = st.sampled_from(
    [b"0", b"-1", b"1e300", b"nan", b"inf", b"999999999999", b"True", b"=", b":", b"\0", b"\n", b"9"]
)


@settings(max_examples=300)
@given(data=st.data(), encoding=st.sampled_from(["raw", "packed", "text"]))
def test_a_mutated_header_is_read_or_refused_and_nothing_else(tmp_path, data, encoding):
    changes = {"raw": {}, "packed": {"CompressedData": "True"}, "text": {"BinaryData": "False"}}[encoding]
    start = bytearray(header(ElementSize="1 1 3", DistanceUnits="mm", HeaderSize="0", Comment="a", **changes))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(start) - 1))
        end = data.draw(st.integers(at, min(at + 6, len(start))))
        start[at:end] = data.draw(st.one_of(numbers, st.binary(max_size=3)))
    text = b" ".join(b"%d" % n for n in VOXELS.ravel("F"))
    path = tmp_path / "a.mha"
    path.write_bytes(bytes(start) + {"raw": RAW, "packed": zlib.compress(RAW), "text": text}[encoding])
    try:
        volume = read(path)
    except InputRefused as error:
        message = str(error)
        assert "\n" not in message
        assert message.startswith(f"{path}: got ")
        return
    assert volume.voxels.ndim in (3, 4)
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine[:3, :3])) > 0
    write(volume, tmp_path / "b.mha")
    again = read(tmp_path / "b.mha")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-12, atol=1e-9)
