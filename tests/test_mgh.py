"""MGH and MGZ against nibabel: what it reads is what we write, what it writes is what we read, damage is refused."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strategies
from faults import catches
from make_scans import make_affine, make_voxels
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io import mgh
from thinslice.io.mgh import read, write
from thinslice.volume import Volume

SHAPE = (5, 4, 3)
VOXELS = make_voxels(SHAPE, "i2")
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = None, **fields: object) -> Path:
    """A file as nibabel writes it; `fields` overwrite its header's."""
    image = nibabel.MGHImage(voxels, make_affine() if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path: Path, at: int, content: bytes) -> Path:
    """A plain file with some of its bytes replaced."""
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    return path


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(InputRefused) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: got ")
    assert "; need " in message
    assert "; next: " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("suffix", [".mgh", ".mgz", ".MGZ"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("frames", [(), (2,)])
def test_every_type_goes_round_exactly(tmp_path, dtype, suffix, frames):
    stored = make_voxels((*SHAPE, *frames), dtype)
    volume = read(save(tmp_path / f"a{suffix}", stored))
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.dtype.isnative
    np.testing.assert_array_equal(volume.voxels, stored)
    assert volume.notes == ()
    write(volume, tmp_path / f"b{suffix}")
    image = nibabel.load(tmp_path / f"b{suffix}")
    assert image.get_data_dtype() == np.dtype(dtype).newbyteorder(">")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), stored)
    np.testing.assert_array_equal(read(tmp_path / f"b{suffix}").voxels, stored)


@catches("io/mgh.py", 'columns @ (start["dims"][:3] / 2)', 'columns @ ((start["dims"][:3] - 1) / 2)')
@catches("io/mgh.py", "columns = turn.T * delta", "columns = turn * delta")
@few
@given(data=st.data(), spacing=st.tuples(*[strategies.millimetres(0.2, 9)] * 3))
def test_every_affine_is_nibabels_vox2ras_and_goes_round(tmp_path, data, spacing):
    affine = data.draw(strategies.affines(spacing))
    first = read(save(tmp_path / "a.mgh", affine=affine))
    np.testing.assert_allclose(first.affine, nibabel.load(tmp_path / "a.mgh").header.get_vox2ras(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(first.affine, affine, rtol=0, atol=5e-5)
    write(replace(first, affine=affine), tmp_path / "b.mgz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.mgz").affine, affine, rtol=0, atol=5e-5)
    np.testing.assert_allclose(read(tmp_path / "b.mgz").affine, affine, rtol=0, atol=5e-5)


def test_the_times_of_the_sequence_survive_a_finer_grid(tmp_path):
    times = {"tr": 2300.0, "flip_angle": 0.157, "te": 2.98, "ti": 900.0}
    source = read(save(tmp_path / "a.mgz", dof=7, **times))
    write(replace(source, voxels=np.repeat(VOXELS, 4, axis=2)), tmp_path / "b.mgz")
    kept = nibabel.load(tmp_path / "b.mgz").header
    assert {name: float(kept[name]) for name in times} == pytest.approx(times)
    assert int(kept["dof"]) == 7
    assert tuple(kept["dims"]) == (5, 4, 12, 1)


def test_a_header_without_geometry_is_noted_and_read_as_freesurfer_does(tmp_path):
    volume = read(patched(save(tmp_path / "a.mgh"), 28, b"\0\0"))
    assert "knows no geometry (goodRASFlag 0)" in volume.notes[0]
    # as in the vox2ras-tkr of every conformed volume
    np.testing.assert_allclose(volume.affine, [[-1, 0, 0, 2.5], [0, 0, 1, -1.5], [0, -1, 0, 2], [0, 0, 0, 1]])
    write(volume, tmp_path / "b.mgh")
    np.testing.assert_array_equal(read(tmp_path / "b.mgh").affine, volume.affine)


def test_a_sheared_affine_is_kept_and_noted(tmp_path):
    sheared = make_affine() @ (np.eye(4) + np.pad([[0.3]], ((1, 2), (2, 1))))
    volume = read(save(tmp_path / "a.mgh", affine=sheared))
    assert "sheared by" in volume.notes[0]
    np.testing.assert_allclose(volume.affine, sheared, atol=1e-5)


def test_thickness_is_that_of_the_sidecar(tmp_path):
    (tmp_path / "a.json").write_text('{"SliceThickness": 3.5}')
    assert read(save(tmp_path / "a.mgz")).thickness_mm == 3.5


def test_what_comes_behind_the_voxels_may_be_missing_or_more(tmp_path):
    whole = save(tmp_path / "a.mgh", tr=2300.0).read_bytes()
    (tmp_path / "short.mgh").write_bytes(whole[: 284 + VOXELS.nbytes])
    short = read(tmp_path / "short.mgh")
    assert (short.notes, float(short.header["tr"])) == ((), 0.0)
    for suffix, pack in ((".mgh", bytes), (".mgz", gzip.compress)):
        (tmp_path / f"long{suffix}").write_bytes(pack(whole + b"\0\0\0\x03history"))
        long = read(tmp_path / f"long{suffix}")
        assert "tags" in long.notes[0]
        assert float(long.header["tr"]) == 2300
        np.testing.assert_array_equal(long.voxels, VOXELS)


def test_labels_of_newer_freesurfers_are_read_and_warps_are_not(tmp_path):
    np.testing.assert_array_equal(read(patched(save(tmp_path / "a.mgh"), 2, b"\x01")).voxels, VOXELS)
    write(read(tmp_path / "a.mgh"), tmp_path / "b.mgh")
    assert int(nibabel.load(tmp_path / "b.mgh").header["version"]) == 1
    assert_refused(patched(save(tmp_path / "c.mgh"), 2, b"\x06"), "a warp")


def test_non_finite_voxels_are_replaced(tmp_path):
    stored = np.full(SHAPE, 20, "f4")
    stored[1, 0] = np.nan, np.inf, -np.inf
    volume = read(save(tmp_path / "a.mgz", stored))
    assert (volume.voxels == 20).all()
    assert volume.notes[0].startswith("3 of 60 voxels")


def test_big_plain_files_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.io.streams.ON_DISK_BYTES", 50)
    path = save(tmp_path / "a.mgh", tr=2300.0)
    before = path.read_bytes()
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert float(volume.header["tr"]) == 2300
    assert path.read_bytes() == before


# ---- types that the format does not have


@catches("io/mgh.py", '"uint16": np.int32', '"uint16": np.int16')
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("?", "u1"), ("i1", "i2"), ("u2", "i4"), ("u4", "i4"), ("i8", "i4"), ("u8", "i4"), ("f2", "f4"), ("f8", "f4")],
)
def test_other_types_become_wider_ones(tmp_path, dtype, stored):
    voxels = np.arange(60).reshape(SHAPE).astype(dtype)
    if dtype == "u2":
        voxels[0] = 65535
    write(Volume(voxels, make_affine()), tmp_path / "a.mgz")
    again = read(tmp_path / "a.mgz").voxels
    assert again.dtype == np.dtype(stored)
    np.testing.assert_array_equal(again, voxels)


@catches("io/mgh.py", '    if dtype == np.int32 and volume.voxels.dtype.kind in "iu":\n', "    if False:\n")
@pytest.mark.parametrize(("dtype", "value"), [("u4", 2**31), ("i8", -(2**31) - 1), ("u8", 2**64 - 1)])
def test_whole_numbers_beyond_32_bits_are_refused(tmp_path, dtype, value):
    volume = Volume(np.full(SHAPE, value, dtype), make_affine())
    for act in (lambda: write(volume, tmp_path / "new" / "a.mgz"), lambda: mgh.as_stored(volume)):
        with pytest.raises(OutputRefused, match="32 bits"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_what_is_ready_is_what_is_written(tmp_path):
    numbers = np.random.default_rng(0).normal(size=SHAPE)
    ready = mgh.as_stored(Volume(numbers.copy(), make_affine()))
    write(ready, tmp_path / "a.mgz")
    np.testing.assert_array_equal(read(tmp_path / "a.mgz").voxels, ready.voxels)
    assert (ready.voxels != numbers).any()
    whole = read(save(tmp_path / "b.mgz"))
    ready = mgh.as_stored(replace(whole, voxels=np.full(SHAPE, 3.6, np.float32)))
    assert (ready.voxels == 4).all()


def test_answers_to_eight_bits_have_sixteen(tmp_path):
    volume = read(save(tmp_path / "a.mgz", VOXELS.astype("u1")))
    write(replace(volume, voxels=np.full(SHAPE, -7, np.int16)), tmp_path / "b.mgz")
    assert (read(tmp_path / "b.mgz").voxels == -7).all()


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    volume = read(save(tmp_path / "a.mgz"))
    write(volume, tmp_path / "b.mgz")
    write(read(tmp_path / "b.mgz"), tmp_path / "c.mgz")
    content = (tmp_path / "b.mgz").read_bytes()
    assert content == (tmp_path / "c.mgz").read_bytes()
    assert struct.unpack("<I", content[4:8]) == (0,)  # the date of a gzip stream


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_nothing_is_left_behind(tmp_path, monkeypatch, error):
    def fail(*_args):
        yield VOXELS
        raise error

    monkeypatch.setattr(mgh, "encoded", fail)
    with pytest.raises(OutputRefused if isinstance(error, OSError) else error):
        write(Volume(VOXELS, make_affine()), tmp_path / "new" / "a.mgz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("a.nii", {}, "need .mgh or .mgz"),
        ("a.mgz", {"voxels": np.full(SHAPE, np.nan)}, "NaN"),
        ("a.mgz", {"voxels": np.zeros((5, 4))}, "shape"),
        ("a.mgz", {"voxels": np.zeros(SHAPE, complex)}, "complex"),
        ("a.mgz", {"affine": np.zeros((4, 4))}, "inverse"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, change, word):
    with pytest.raises(OutputRefused, match=word):
        write(replace(Volume(VOXELS, make_affine()), **change), tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


# ---- damage


@pytest.mark.parametrize(
    ("at", "content", "word"),
    [
        (0, b"\0\0\0\x02", "an unknown kind of file"),
        (0, b"NRRD", "an NRRD file"),
        (4, struct.pack(">i", 0), "0 x 4 x 3"),
        (4, struct.pack(">i", -5), "-5 x 4 x 3"),
        (4, struct.pack(">i", 2**31 - 1), "bytes"),
        (16, struct.pack(">i", 2**31 - 1), "bytes"),
        (20, struct.pack(">i", 7), "unknown type (7)"),
        (30, struct.pack(">f", 0), "a spacing of 0"),
        (30, struct.pack(">f", -1), "a spacing of -1"),
        (30, struct.pack(">f", np.nan), "a spacing of nan"),
        (30, struct.pack(">f", 1e30), "that a scanner may have"),
        (30, struct.pack(">f", 1e-30), "that a scanner may have"),
        (42, struct.pack(">9f", *[0.5] * 9), "one plane"),
        (42, struct.pack(">f", np.inf), "affine"),
        (78, struct.pack(">f", np.nan), "affine"),
    ],
)
def test_bad_headers_are_refused(tmp_path, at, content, word):
    path = patched(save(tmp_path / "a.mgh"), at, content)
    assert_refused(path, word)
    packed = tmp_path / "a.mgz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert_refused(packed, word)


@pytest.mark.parametrize("size", [0, 50, 200, 284, 300])
def test_cut_files_are_refused(tmp_path, size):
    path = save(tmp_path / "a.mgh")
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert_refused(path)
    packed = tmp_path / "a.mgz"
    packed.write_bytes(gzip.compress(whole[:size]))
    assert_refused(packed)
    packed.write_bytes(gzip.compress(whole)[: 50 + size // 10])
    assert_refused(packed)
    packed.write_bytes(whole)
    assert_refused(packed, "not gzip", "rename it to .mgh")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_header_is_read_or_refused_and_nothing_else(tmp_path, data):
    whole = bytearray(save(tmp_path / "a.mgh").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 89))
        content = data.draw(st.binary(min_size=1, max_size=4))
        whole[at : at + len(content)] = content
    (tmp_path / "b.mgh").write_bytes(whole)
    try:
        volume = read(tmp_path / "b.mgh")
    except InputRefused as refusal:
        assert "\n" not in str(refusal)  # noqa: PT017  both ends are allowed
        return
    assert np.isfinite(volume.affine).all()
    write(volume, tmp_path / "c.mgz")
    again = read(tmp_path / "c.mgz")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
