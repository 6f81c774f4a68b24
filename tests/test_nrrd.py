"""NRRD against headers written by hand: what they mean, what survives, and what is refused on one line."""

import bz2
import gzip
import math
import struct
from dataclasses import replace
from pathlib import Path

import nrrd as pynrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strategies
from faults import catches
from make_scans import make_affine, make_voxels
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io import nrrd
from thinslice.io.nrrd import read, write
from thinslice.volume import Volume

SHAPE = (5, 4, 3)
VOXELS = make_voxels(SHAPE, "i2")
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

HEAD = {
    "type": "short",
    "dimension": "3",
    "sizes": "5 4 3",
    "space": "left-posterior-superior",
    "space directions": "(0.7,0,0) (0,0.8,0) (0,0,4)",
    "space origin": "(-30,20,-10)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
}


def header(lines: tuple[str, ...] = (), **changes: str | None) -> bytes:
    """A header by hand; `changes` have _ for blanks, None leaves a field out; `lines` come last."""
    fields = HEAD | {name.replace("_", " "): value for name, value in changes.items()}
    texts = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\n".join(["NRRD0004", "# by hand", *texts, *lines, "", ""]).encode()


def save(path: Path, content: bytes | None = None, lines: tuple[str, ...] = (), **changes: str | None) -> Path:
    path.write_bytes(header(lines, **changes) + (VOXELS.tobytes(order="F") if content is None else content))
    return path


def assert_refused(path: Path, *words: str) -> None:
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputRefused) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: got ")
    assert "; need " in message
    assert "; next: " in message
    for word in words:
        assert word in message
    assert sorted(path.parent.iterdir()) == before


# ---- where it is


@catches("io/nrrd.py", "LPS: (-1.0, -1.0, 1.0),", "LPS: (1.0, 1.0, 1.0),")
@catches(
    "io/nrrd.py",
    "    affine = np.diag([*_TO_RAS.get(space, _TO_RAS[LPS]), 1.0]) @ affine + 0.0",
    "    affine[:3, :3] = np.diag(_TO_RAS.get(space, _TO_RAS[LPS])) @ affine[:3, :3]",
)
@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("Left-Anterior-Superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
    ],
)
def test_every_space_of_the_patient_becomes_ras_and_stays_in_the_file(tmp_path, space, signs):
    path = save(tmp_path / "a.nrrd", space=space, space_directions="(0.7,0.1,0) (0,0.8,0.3) (0.2,0,4)")
    volume = read(path)
    x, y, z = signs
    by_hand = np.array([[0.7 * x, 0, 0.2 * x, -30 * x], [0.1 * y, 0.8 * y, 0, 20 * y], [0, 0.3 * z, 4 * z, -10 * z]])
    np.testing.assert_array_equal(volume.affine[:3], by_hand + 0.0)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.thickness_mm is None
    write(volume, tmp_path / "b.nrrd")
    _, said = pynrrd.read(str(tmp_path / "b.nrrd"))
    assert said["space"] == space
    np.testing.assert_array_equal(said["space directions"], [[0.7, 0.1, 0], [0, 0.8, 0.3], [0.2, 0, 4]])
    np.testing.assert_array_equal(said["space origin"], [-30, 20, -10])


@few
@given(data=st.data(), spacing=st.tuples(*[strategies.millimetres(0.2, 9)] * 3))
def test_every_affine_goes_round_exactly_and_as_pynrrd_reads_it(tmp_path, data, spacing):
    affine = data.draw(strategies.affines(spacing))
    write(Volume(VOXELS, affine), tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").affine, affine)
    voxels, said = pynrrd.read(str(tmp_path / "a.nrrd"))
    assert said["space"] == "left-posterior-superior"
    to_lps = np.diag([-1.0, -1, 1])
    np.testing.assert_array_equal(np.transpose(said["space directions"]), to_lps @ affine[:3, :3])
    np.testing.assert_array_equal(said["space origin"], to_lps @ affine[:3, 3])
    np.testing.assert_array_equal(voxels, VOXELS)


def test_a_sheared_affine_is_kept_and_noted(tmp_path):
    volume = read(save(tmp_path / "a.nrrd", space_directions="(0.7,0,0) (0,0.8,0) (0,1,4)"))
    assert any("sheared by 14.0 degrees" in note for note in volume.notes)
    write(volume, tmp_path / "b.nrrd")
    np.testing.assert_array_equal(read(tmp_path / "b.nrrd").affine, volume.affine)


@pytest.mark.parametrize("text", ["( 0.7, 0, 0 )  (0, 0.8 ,0) (0,0,4)", "(0.7,0,0)(0,0.8,0)(0,0,4)"])
def test_blanks_in_vectors_do_not_matter(tmp_path, text):
    plain = read(save(tmp_path / "a.nrrd")).affine
    np.testing.assert_array_equal(read(save(tmp_path / "b.nrrd", space_directions=text)).affine, plain)


@catches(
    "io/nrrd.py",
    "affine[:3, :3], affine[:3, 3] = columns * mm, origin * mm",
    "affine[:3, :3], affine[:3, 3] = columns * mm, origin",
)
@pytest.mark.parametrize(
    ("unit", "mm"), [("mm", 1), ("millimeter", 1), ("", 1), ("cm", 10), ("m", 1000), ("um", 1e-3), ("µm", 1e-3)]
)
def test_units_of_length_become_mm(tmp_path, unit, mm):
    plain = read(save(tmp_path / "a.nrrd"))
    volume = read(save(tmp_path / "b.nrrd", space_units=f'"{unit}" "{unit}" "{unit}"', thicknesses="nan nan 5"))
    np.testing.assert_allclose(volume.affine[:3], plain.affine[:3] * mm, rtol=1e-15)
    assert volume.thickness_mm == pytest.approx(5 * mm) if mm < 200 else volume.thickness_mm is None
    assert any("lengths are in" in note for note in volume.notes) == (mm != 1)
    write(volume, tmp_path / "c.nrrd")
    assert read(tmp_path / "c.nrrd").notes == ()
    np.testing.assert_array_equal(read(tmp_path / "c.nrrd").affine, volume.affine)


def test_spacings_alone_are_read_as_niftis_without_forms_are(tmp_path):
    fields = {"space": None, "space_directions": None, "space_origin": None}
    volume = read(save(tmp_path / "a.nrrd", spacings="0.7 0.8 4", units='"mm" "mm" "mm"', **fields))
    by_hand = [[-0.7, 0, 0, 1.4], [0, 0.8, 0, -1.2], [0, 0, 4, -4], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, by_hand, rtol=1e-12)
    assert "position and orientation unknown" in volume.notes[0]
    halved = volume.affine @ np.diag([1, 1, 0.5, 1])
    halved[:3, 3] -= halved[:3, 2] / 2
    write(replace(volume, voxels=np.repeat(VOXELS, 2, axis=2), affine=halved), tmp_path / "b.nrrd")
    again = read(tmp_path / "b.nrrd")
    assert again.notes == volume.notes
    np.testing.assert_allclose(again.affine, halved, atol=1e-12)
    write(replace(volume, affine=make_affine()), tmp_path / "c.nrrd")  # elsewhere: only directions can say it
    assert read(tmp_path / "c.nrrd").notes == ()
    np.testing.assert_array_equal(read(tmp_path / "c.nrrd").affine, make_affine())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"space": None, "space_dimension": "3"}, "no space of the patient (none)"),
        ({"space": "scanner-xyz"}, "no space of the patient (scanner-xyz)"),
        ({"space": "3D-right-handed"}, "3d-right-handed"),
        ({"space_origin": None}, "no space origin"),
        ({"space_origin": "(nan,nan,nan)"}, "no space origin"),
    ],
)
def test_what_the_header_does_not_say_is_noted_and_nothing_is_made_up_on_writing(tmp_path, changes, word):
    volume = read(save(tmp_path / "a.nrrd", **changes))
    assert len(volume.notes) == 1
    assert word in volume.notes[0]
    np.testing.assert_array_equal(volume.affine[:3, :3], np.diag([-0.7, -0.8, 4]))
    write(volume, tmp_path / "b.nrrd")
    again = read(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(again.affine, volume.affine)
    assert again.notes == (volume.notes if "origin" not in word else ())


# ---- thickness


@pytest.mark.parametrize(
    ("thicknesses", "wanted"),
    [
        ("nan nan 3.5", 3.5),
        ("0.7 0.8 3.5", 3.5),
        ("0.7 0.8 NaN", None),
        ("nan nan -1", None),
        ("nan nan inf", None),
        ("3.5", None),
        (None, None),
    ],
)
def test_thickness_is_that_of_the_slice_axis(tmp_path, thicknesses, wanted):
    assert read(save(tmp_path / "a.nrrd", thicknesses=thicknesses)).thickness_mm == wanted


def test_thickness_of_the_sidecar_where_the_header_is_silent_and_a_note_where_they_differ(tmp_path):
    (tmp_path / "a.json").write_text('{"SliceThickness": 3}')
    silent = read(save(tmp_path / "a.nrrd"))
    assert (silent.thickness_mm, silent.notes) == (3, ())
    both = read(save(tmp_path / "a.nrrd", thicknesses="nan nan 3.5"))
    assert both.thickness_mm == 3.5
    assert "the header is believed" in both.notes[0]


def test_thickness_follows_the_slice_axis_and_is_not_kept_for_thin_slices(tmp_path):
    volume = read(save(tmp_path / "a.nrrd", thicknesses="nan nan 3.5"))
    write(replace(volume, thickness_mm=None), tmp_path / "thin.nrrd")
    assert b"thickness" not in (tmp_path / "thin.nrrd").read_bytes()
    across = save(tmp_path / "b.nrrd", space_directions="(4,0,0) (0,0.8,0) (0,0,1)", thicknesses="3 nan nan")
    write(read(across), tmp_path / "c.nrrd")
    np.testing.assert_array_equal(pynrrd.read_header(str(tmp_path / "c.nrrd"))["thicknesses"], [3, np.nan, np.nan])


# ---- axes


@catches("io/nrrd.py", "return 3 if source is None or source.place is None else source.place", "return 3")
@pytest.mark.parametrize("kind", ["list", "time"])
@pytest.mark.parametrize("place", range(4))
def test_an_axis_beside_space_becomes_the_last_and_goes_back_to_its_place(tmp_path, place, kind):
    series = make_voxels((*SHAPE, 6), "i2")
    stored = np.moveaxis(series, -1, place)

    def inserted(words: str, word: str) -> str:
        parts = words.split(" ")
        return " ".join([*parts[:place], word, *parts[place:]])

    changes = {
        "dimension": "4",
        "sizes": inserted("5 4 3", "6"),
        "space_directions": inserted(HEAD["space directions"], "none"),
        "kinds": inserted("space domain domain", kind),
        "labels": inserted('"x" "y" "z"', '"t"'),
        "thicknesses": inserted("nan nan 3.5", "nan"),
        "spacings": inserted("nan nan nan", "2.5"),
        "units": inserted('"" "" ""', '"s"'),
    }
    volume = read(save(tmp_path / "a.nrrd", stored.tobytes(order="F"), **changes))
    np.testing.assert_array_equal(volume.voxels, series)
    assert volume.thickness_mm == 3.5
    np.testing.assert_array_equal(volume.affine, read(save(tmp_path / "plain.nrrd")).affine)
    write(volume, tmp_path / "b.nrrd")
    voxels, said = pynrrd.read(str(tmp_path / "b.nrrd"))
    np.testing.assert_array_equal(voxels, stored)
    assert said["kinds"] == changes["kinds"].split()
    assert said["labels"] == changes["labels"].replace('"', "").split()
    assert said["spacings"][place] == 2.5
    assert said["units"][place] == "s"
    np.testing.assert_array_equal(said["thicknesses"], [float(word) for word in changes["thicknesses"].split()])
    write(replace(volume, voxels=series[..., 0]), tmp_path / "c.nrrd")
    assert pynrrd.read_header(str(tmp_path / "c.nrrd"))["kinds"] == ["space", "domain", "domain"]


def test_a_series_of_another_format_has_its_last_axis_last(tmp_path):
    series = make_voxels((*SHAPE, 2), "i2")
    write(Volume(series, make_affine()), tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").voxels, series)
    assert pynrrd.read_header(str(tmp_path / "a.nrrd"))["kinds"] == ["domain", "domain", "domain", "list"]


def test_spacings_tell_the_axis_beside_space_where_kinds_do_not(tmp_path):
    fields = {"space": None, "space_directions": None, "space_origin": None, "kinds": None, "dimension": "4"}
    series = make_voxels((*SHAPE, 2), "i2")
    stored = np.moveaxis(series, -1, 0).tobytes(order="F")
    volume = read(save(tmp_path / "a.nrrd", stored, sizes="2 5 4 3", spacings="nan 0.7 0.8 4", **fields))
    np.testing.assert_array_equal(volume.voxels, series)
    write(volume, tmp_path / "b.nrrd")
    np.testing.assert_array_equal(read(tmp_path / "b.nrrd").voxels, series)


def test_axes_of_one_sample_beside_space_are_left_out(tmp_path):
    sizes, rows = "1 5 4 3", f"none {HEAD['space directions']}"
    volume = read(
        save(tmp_path / "a.nrrd", dimension="4", sizes=sizes, space_directions=rows, kinds="list space space space")
    )
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    write(volume, tmp_path / "b.nrrd")
    assert pynrrd.read_header(str(tmp_path / "b.nrrd"))["kinds"] == ["space"] * 3


@pytest.mark.parametrize(
    "kind", ["RGB-color", "RGBA-color", "vector", "3-vector", "2D-symmetric-matrix", "complex", "3D-masked-matrix"]
)
def test_several_numbers_per_voxel_are_refused(tmp_path, kind):
    changes = {
        "dimension": "4",
        "sizes": "3 5 4 3",
        "space_directions": f"none {HEAD['space directions']}",
        "kinds": f"{kind} domain domain domain",
    }
    assert_refused(save(tmp_path / "a.nrrd", VOXELS.tobytes() * 3, **changes), "several numbers per voxel")


# ---- voxels


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_every_type_encoding_and_byte_order(tmp_path, dtype, endian, encoding):
    stored = make_voxels(SHAPE, dtype)
    content = stored.astype(np.dtype(dtype).newbyteorder("<" if endian == "little" else ">")).tobytes(order="F")
    if encoding == "ascii":
        content = "\n".join(repr(value.item()) for value in stored.ravel(order="F")).encode()
    packed = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(content)
    names = {"u1": "uchar", "i1": "signed char", "u2": "unsigned short", "i8": "long long int", "f4": "float"}
    names |= {"i2": "Short", "i4": "int", "u4": "uint32_t", "u8": "uint64", "f8": "double"}
    volume = read(save(tmp_path / "a.nrrd", packed, type=names[dtype], endian=endian, encoding=encoding))
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.dtype.isnative
    np.testing.assert_array_equal(volume.voxels, stored)
    write(volume, tmp_path / "b.nrrd")
    again, said = pynrrd.read(str(tmp_path / "b.nrrd"))
    assert said["encoding"] == "gzip"
    assert again.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(again, stored)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_bytes_and_lines_before_the_voxels_are_skipped(tmp_path, encoding):
    inside = b"\n\n12345" + VOXELS.tobytes(order="F") if encoding == "raw" else b"12345" + VOXELS.tobytes(order="F")
    content = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding](inside)
    if encoding != "raw":
        content = b"one line\nanother\n" + content
    volume = read(save(tmp_path / "a.nrrd", content, encoding=encoding, line_skip="2", byte_skip="5"))
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_a_byte_skip_of_minus_one_counts_from_the_end(tmp_path):
    volume = read(save(tmp_path / "a.nrrd", b"whatever" + VOXELS.tobytes(order="F"), byteskip="-1"))
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_big_plain_files_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.io.streams.ON_DISK_BYTES", 50)
    path = save(tmp_path / "a.nrrd", VOXELS.astype(">i2").tobytes(order="F"), endian="big")
    before = path.read_bytes()
    np.testing.assert_array_equal(read(path).voxels, VOXELS)
    assert path.read_bytes() == before


def test_non_finite_voxels_are_replaced_as_elsewhere(tmp_path):
    stored = np.full(SHAPE, 20, "<f4")
    stored[0, 0] = -5
    stored[1, 0] = np.nan, np.inf, -np.inf
    volume = read(save(tmp_path / "a.nrrd", stored.tobytes(order="F"), type="float"))
    assert (volume.voxels[1, 0] == 0).all()
    assert volume.notes[0].startswith("3 of 60 voxels")
    stored[:] = np.nan
    assert_refused(save(tmp_path / "b.nrrd", stored.tobytes(), type="float"), "no finite voxel")


# ---- what is kept


@catches("io/nrrd.py", "if same_grid or not OF_THE_GRID.match(key)", "if True or not OF_THE_GRID.match(key)")
def test_what_still_holds_is_kept(tmp_path):
    lines = (
        "measurement frame: (1,0,0) (0,0,1) (0,1,0)",
        "content: a scan",
        "old min: 0",
        "Segment0_Extent:=0 4 0 3 0 2",
        "Segment0_Name:=Größe: 1",
        "modality:=DWMRI\\nb",
    )
    volume = read(save(tmp_path / "a.nrrd", lines=lines))
    write(volume, tmp_path / "same.nrrd")
    write(replace(volume, voxels=np.repeat(VOXELS, 2, axis=2)), tmp_path / "thin.nrrd")
    same, thin = (
        (tmp_path / name).read_bytes().partition(b"\n\n")[0].decode().split("\n") for name in ("same.nrrd", "thin.nrrd")
    )
    assert set(lines) <= set(same)
    assert set(lines) - set(thin) == {"Segment0_Extent:=0 4 0 3 0 2"}


def test_numbers_take_the_type_of_the_source_and_what_is_ready_is_what_is_written(tmp_path):
    volume = read(save(tmp_path / "a.nrrd"))
    voxels = np.full(SHAPE, 3.6, np.float32)
    voxels[0], voxels[1] = -1e9, 1e9
    ready = nrrd.as_stored(replace(volume, voxels=voxels))
    write(ready, tmp_path / "b.nrrd")
    again = read(tmp_path / "b.nrrd").voxels
    assert again.dtype == np.int16
    np.testing.assert_array_equal(again, ready.voxels)
    assert [again[0, 0, 0], again[1, 0, 0], again[2, 0, 0]] == [-32768, 32767, 4]


def test_answers_to_eight_bits_have_sixteen(tmp_path):
    volume = read(save(tmp_path / "a.nrrd", VOXELS.astype("u1").tobytes(order="F"), type="uchar"))
    write(replace(volume, voxels=np.full(SHAPE, -7, np.int16)), tmp_path / "b.nrrd")
    assert (read(tmp_path / "b.nrrd").voxels == -7).all()


@pytest.mark.parametrize(("dtype", "stored"), [("?", "u1"), ("f2", "f4"), ("f8", "f8")])
def test_other_types_are_stored_as_the_nearest(tmp_path, dtype, stored):
    write(Volume(np.ones(SHAPE, dtype), make_affine()), tmp_path / "a.nrrd")
    assert read(tmp_path / "a.nrrd").voxels.dtype == np.dtype(stored)


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    volume = read(save(tmp_path / "a.nrrd"))
    write(volume, tmp_path / "b.nrrd")
    write(read(tmp_path / "b.nrrd"), tmp_path / "c.nrrd")
    assert (tmp_path / "b.nrrd").read_bytes() == (tmp_path / "c.nrrd").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_nothing_is_left_behind(tmp_path, monkeypatch, error):
    def fail(*_args):
        yield VOXELS
        raise error

    monkeypatch.setattr(nrrd, "encoded", fail)
    with pytest.raises(OutputRefused if isinstance(error, OSError) else error):
        write(Volume(VOXELS, make_affine()), tmp_path / "new" / "a.nrrd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("a.nhdr", {}, "need .nrrd"),
        ("a.nii", {}, "need .nrrd"),
        ("a.nrrd", {"voxels": np.full(SHAPE, np.nan)}, "NaN"),
        ("a.nrrd", {"voxels": np.zeros((5, 4))}, "shape"),
        ("a.nrrd", {"voxels": np.zeros(SHAPE, complex)}, "complex"),
        ("a.nrrd", {"affine": np.zeros((4, 4))}, "inverse"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, change, word):
    with pytest.raises(OutputRefused, match=word):
        write(replace(Volume(VOXELS, make_affine()), **change), tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


# ---- detached headers


@pytest.mark.parametrize("data_file", ["a b.raw", "./a b.raw", "sub/a b.raw"])
def test_voxels_in_the_headers_folder_are_read(tmp_path, data_file):
    (tmp_path / "sub").mkdir()
    (tmp_path / data_file).write_bytes(VOXELS.tobytes(order="F"))
    path = tmp_path / "a.nhdr"
    path.write_bytes(header(data_file=data_file).rstrip())  # nothing has to follow
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    write(volume, tmp_path / "b.nrrd")
    np.testing.assert_array_equal(read(tmp_path / "b.nrrd").voxels, VOXELS)


@catches("io/streams.py", ' or ".." in way.parts for way in ways)', " for way in ways)")
@pytest.mark.parametrize(
    "data_file",
    [
        "{folder}/out.raw",
        "../out.raw",
        "sub/../../out.raw",
        "..\\out.raw",
        "C:\\out.raw",
        "C:out.raw",
        "\\\\host\\out.raw",
        "http://host/out.raw",
        "file:///out.raw",
        "",
    ],
)
def test_voxels_elsewhere_are_refused(tmp_path, data_file):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.raw").write_bytes(VOXELS.tobytes(order="F"))
    text = data_file.format(folder=tmp_path)
    path = save(tmp_path / "in" / "a.nhdr", b"", data_file=text)
    assert_refused(path, "outside the header's folder")


@pytest.mark.parametrize(
    ("data_file", "word"),
    [("LIST", "list of data files"), ("a%03d.raw 1 3 1 2", "series of data files"), ("none.raw", "No such file")],
)
def test_voxels_in_several_files_or_none_are_refused(tmp_path, data_file, word):
    assert_refused(
        save(tmp_path / "a.nhdr", b"", lines=("a.raw",) if data_file == "LIST" else (), data_file=data_file), word
    )


def test_a_data_file_that_is_a_folder_or_short_is_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    assert_refused(save(tmp_path / "a.nhdr", b"", data_file="sub"), "a folder")
    (tmp_path / "short.raw").write_bytes(VOXELS.tobytes()[:-1])
    assert_refused(save(tmp_path / "a.nhdr", b"", data_file="short.raw"), "bytes")


# ---- what is refused

BAD = {
    "no type": ({"type": None}, "without 'type'"),
    "no sizes": ({"sizes": None}, "without 'sizes'"),
    "no encoding": ({"encoding": None}, "without 'encoding'"),
    "block": ({"type": "block"}, "type 'block'"),
    "endian missing": ({"endian": None}, "byte order"),
    "endian nonsense": ({"endian": "middle"}, "byte order"),
    "hex": ({"encoding": "hex"}, "the encoding 'hex'"),
    "size zero": ({"sizes": "5 0 3"}, "5 x 0 x 3"),
    "size negative": ({"sizes": "5 -4 3"}, "sizes"),
    "size fraction": ({"sizes": "5 4.5 3"}, "sizes"),
    "size absurd": ({"sizes": "5 4 999999999999999"}, "bytes"),
    "size beyond": ({"sizes": "5 4 " + "9" * 400}, "sizes"),
    "one voxel more": ({"sizes": "5 4 4"}, "bytes"),
    "gzip absurd": ({"sizes": "5 4 999999999999", "encoding": "gzip"}, "bytes"),
    "bzip2 absurd": ({"sizes": "5 4 999999999999", "encoding": "bzip2"}, "bzip2"),
    "ascii absurd": ({"sizes": "5 4 999999999999", "encoding": "ascii"}, "numbers"),
    "skip beyond": ({"byte_skip": "999999999999"}, "bytes"),
    "skip negative": ({"byte_skip": "-2"}, "byte skip"),
    "line skip negative": ({"line_skip": "-1"}, "line skip"),
    "dimension": ({"dimension": "4"}, "dimension"),
    "2-D": ({"dimension": "2", "sizes": "5 12", "space_directions": None, "kinds": None, "spacings": "1 1"}, "2 axes"),
    "5-D": (
        {"dimension": "5", "sizes": "5 2 1 3 2", "space_directions": HEAD["space directions"] + " none none"}
        | {"kinds": None, "sizes": "5 1 3 2 2"},
        "2 others",
    ),
    "no spacing": ({"space_directions": None}, "without space directions and spacings"),
    "spacing zero": ({"space_directions": None, "spacings": "1 1 0"}, "1 x 1 x 0"),
    "spacing NaN": ({"space_directions": None, "spacings": "1 nan 1"}, "spacings"),
    "spacing negative": ({"space_directions": None, "spacings": "1 1 -2"}, "-2"),
    "too few directions": ({"space_directions": "(1,0,0) (0,1,0)"}, "for 3 axes"),
    "direction zero": ({"space_directions": "(1,0,0) (0,1,0) (0,0,0)"}, "1 x 1 x 0 mm"),
    "direction singular": ({"space_directions": "(1,0,0) (0,1,0) (1,1,0)"}, "one plane"),
    "direction infinite": ({"space_directions": "(1,0,0) (0,1,0) (0,0,inf)"}, "space directions"),
    "direction huge": ({"space_directions": "(1,0,0) (0,1,0) (0,0,1e300)"}, "that a scanner may have"),
    "direction nonsense": ({"space_directions": "(1,0,0) (0,1,0) (0,0,x)"}, "space directions"),
    "direction short": ({"space_directions": "(1,0) (0,1) (0,0)"}, "space directions"),
    "origin huge": ({"space_origin": "(0,0,1e308)"}, "that a scanner may have"),
    "origin short": ({"space_origin": "(0,0)"}, "space origin"),
    "space unknown": ({"space": "upside-down"}, "unknown space"),
    "space with time": ({"space": "left-posterior-superior-time"}, "space with time"),
    "space with time, short": ({"space": "LPST"}, "space with time"),
    "space dimension": ({"space": None, "space_dimension": "4"}, "dimension"),
    "unit unknown": ({"space_units": '"furlong" "furlong" "furlong"'}, "furlong"),
    "units mixed": ({"space_units": '"mm" "mm" "cm"'}, "mm mm cm"),
    "units few": ({"space_units": '"mm"'}, "space units"),
    "units unbalanced": ({"space_units": '"mm "mm" "mm"'}, "space units"),
    "units endless": ({"space_units": '"mm"' * 9999}, "letters"),
    "skip beyond, gzip": ({"byte_skip": "999999999999", "encoding": "gzip"}, "byte skip"),
    "line skip beyond": ({"line_skip": "999999999999"}, "bytes"),
    "kinds few": ({"kinds": "domain domain"}, "kinds"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_bad_headers_are_refused(tmp_path, fault, capfd):
    changes, word = BAD[fault]
    assert_refused(save(tmp_path / "a.nrrd", **changes), word)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "an empty file"),
        (b"NRRD0009\n", "another version"),
        (b"NRRD", "another version"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"hello, world", "a text file"),
        (b"NRRD0004\nno colon here\n\n", "without a colon"),
        (header(("type: short",)), "two fields 'type'"),
        (header(("Sizes: 5 4 3",)), "two fields 'sizes'"),
        (header(), "bytes"),
        (header(encoding="gzip"), "got 0 bytes"),
        (header(encoding="gzip") + gzip.compress(VOXELS.tobytes())[:-9], "compressed stream"),
        (header(encoding="gzip") + gzip.compress(VOXELS.tobytes()[:-1]), "bytes"),
        (header(encoding="bzip2") + bz2.compress(VOXELS.tobytes())[:-9], "compressed stream"),
        (header(encoding="bzip2") + bz2.compress(VOXELS.tobytes()[:-1]), "bytes"),
        (header(encoding="ascii") + b"1 " * 59, "59 numbers"),
        (header(encoding="ascii") + b"x " * 60, "cannot be understood"),
        (header(encoding="ascii") + b"99999 " * 60, "numbers beyond int16"),
    ],
    ids=range(17),
)
def test_bad_files_are_refused(tmp_path, content, word):
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    assert_refused(path, word)


def test_a_header_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nrrd, "MOST_HEADER_BYTES", 1000)
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0004\n# " + b"x" * 2000)
    assert_refused(path, "without an end")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "a.nrrd").mkdir()
    assert_refused(tmp_path / "a.nrrd", "a folder")
    assert_refused(tmp_path / "b.nrrd", "No such file")


numbers = st.sampled_from(
    [b"0", b"-1", b"1e300", b"nan", b"inf", b"999999999999", b"(", b")", b'"', b"none", b"\0", b"9"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), encoding=st.sampled_from(["raw", "gzip", "bzip2", "ascii"]))
def test_a_mutated_header_is_read_or_refused_and_nothing_else(tmp_path, data, encoding):
    lines = ("thicknesses: nan nan 3", 'space units: "mm" "mm" "mm"', "key:=value", "byte skip: 0")
    start = bytearray(header(lines, encoding=encoding))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(start) - 1))
        end = data.draw(st.integers(at, min(at + 6, len(start))))
        start[at:end] = data.draw(st.one_of(numbers, st.binary(max_size=3)))
    content = VOXELS.tobytes(order="F") if encoding != "ascii" else b" ".join(b"%d" % n for n in VOXELS.ravel("F"))
    packed = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(content)
    path = tmp_path / "a.nrrd"
    path.write_bytes(bytes(start) + packed)
    try:
        volume = read(path)
    except InputRefused as refusal:
        assert "\n" not in str(refusal)  # noqa: PT017  both ends are allowed
        return
    assert np.isfinite(volume.affine).all()
    assert volume.thickness_mm is None or 0 < volume.thickness_mm < math.inf
    write(volume, tmp_path / "b.nrrd")
    again = read(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-12, atol=1e-9)


def test_the_struct_of_a_gzip_header_holds_no_date(tmp_path):
    write(Volume(VOXELS, make_affine()), tmp_path / "a.nrrd")
    packed = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")[2]
    assert struct.unpack("<I", packed[4:8]) == (0,)
