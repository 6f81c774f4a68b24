"""The reader and the writer: what goes round comes round, and what cannot be read is refused on one line."""

import gzip
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from make_scans import make_affine, make_voxels, save_scan
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io import nifti
from thinslice.io.nifti import read, write
from thinslice.io.scratch import allocate
from thinslice.io.streams import slabs
from thinslice.volume import Volume

DATA = Path(os.environ.get("THINSLICE_DATA", Path(__file__).parents[2] / "shared/data"))
DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
SHAPE = (5, 4, 3)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

affines = st.builds(
    make_affine,
    spacing_mm=st.tuples(*[st.floats(0.2, 8)] * 3),
    angles_deg=st.tuples(*[st.one_of(st.sampled_from([0.0, 90.0, 180.0]), st.floats(-180, 180))] * 3),
    axes=st.permutations(range(3)),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    origin_mm=st.tuples(*[st.floats(-500, 500)] * 3),
)


def round_trip(volume: Volume, path: Path) -> Volume:
    write(volume, path)
    return read(path)


def assert_refused(path: Path, *words: str) -> None:
    before = sorted(path.parent.rglob("*")) if path.parent.is_dir() else []
    with pytest.raises(InputRefused) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert "; need " in message
    assert "; next: " in message
    for word in words:
        assert word in message
    assert (sorted(path.parent.rglob("*")) if path.parent.is_dir() else []) == before


# ---- round trips


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_goes_round_exactly(tmp_path, dtype, order, suffix):
    stored = make_voxels(SHAPE, dtype).astype(np.dtype(dtype).newbyteorder(order))
    volume = read(save_scan(tmp_path / f"a{suffix}", stored))
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.dtype.isnative
    np.testing.assert_array_equal(volume.voxels, stored)
    assert volume.notes == ()
    again = round_trip(volume, tmp_path / f"b{suffix}")
    assert again.voxels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(again.voxels, stored)
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(tmp_path / f"b{suffix}").dataobj), stored)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_are_rounded_and_clipped_to_the_type_of_the_source(tmp_path, dtype):
    source = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE, dtype)))
    voxels = np.full(SHAPE, 3.6, np.float32)
    voxels[0], voxels[1] = -3e29, 3e29
    again = round_trip(replace(source, voxels=voxels), tmp_path / "b.nii").voxels
    if dtype.startswith("f"):
        np.testing.assert_array_equal(again, voxels)
    else:
        limits = np.iinfo(dtype)
        assert (again[0] == limits.min).all()
        assert (again[2] == 4).all()
        top = {"i8": 2**63 - 1024, "u8": 2**64 - 2048}.get(dtype, limits.max)  # the largest that a float64 can say
        assert (again[1] == top).all()


def test_integers_of_another_type_are_clipped(tmp_path):
    source = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE, "u1")))
    again = round_trip(replace(source, voxels=np.full(SHAPE, -7, np.int64)), tmp_path / "b.nii").voxels
    assert again.dtype == np.uint8
    assert (again == 0).all()


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", "f8"])
@pytest.mark.parametrize(("slope", "inter"), [(0.5, -100.0), (2.0, 0.0), (1.0, -1024.0), (-0.25, 3.0)])
def test_rescale_is_applied_and_undone(tmp_path, dtype, slope, inter):
    stored = make_voxels(SHAPE, dtype)
    volume = read(save_scan(tmp_path / "a.nii.gz", stored, scl_slope=slope, scl_inter=inter))
    assert volume.voxels.dtype == (np.float64 if dtype == "f8" else np.float32)
    np.testing.assert_allclose(volume.voxels, stored * np.float64(slope) + inter, rtol=1e-6, atol=1e-6)
    write(volume, tmp_path / "b.nii.gz")
    header = nibabel.load(tmp_path / "b.nii.gz").dataobj
    assert (header.slope, header.inter) == (slope, inter)
    assert header.dtype == np.dtype(dtype)
    # a float32 holds some 7 digits of (stored * slope + inter)
    tolerance = 0 if dtype[0] in "iu" else 2e-7 * (np.abs(stored).max() + abs(inter / slope))
    np.testing.assert_allclose(header.get_unscaled(), stored, rtol=0, atol=tolerance)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_no_slope_means_no_rescale(tmp_path, slope):
    stored = make_voxels(SHAPE)
    volume = read(save_scan(tmp_path / "a.nii", stored, scl_slope=slope, scl_inter=5))
    np.testing.assert_array_equal(volume.voxels, stored)
    np.testing.assert_array_equal(round_trip(volume, tmp_path / "b.nii").voxels, stored)


@few
@given(
    affine=affines,
    codes=st.sampled_from([(1, 1), (0, 2), (1, 0), (2, 1), (4, 4)]),
    nifti_version=st.sampled_from([1, 2]),
)
def test_every_affine_goes_round(tmp_path, affine, codes, nifti_version):
    sform_code, qform_code = codes
    path = save_scan(
        tmp_path / "a.nii",
        make_voxels(SHAPE),
        affine,
        nifti=nifti_version,
        sform_code=sform_code,
        qform_code=qform_code,
    )
    first = read(path)
    # near half a turn a float32 quaternion is wrong by up to 2e-3 radians (nibabel takes a real part below 6e-4 as 0)
    np.testing.assert_allclose(first.affine, affine, rtol=1e-6, atol=1e-5 if sform_code else 2e-3 * 8)
    assert first.notes == ()
    finer = np.diag([1, 1, 0.25, 1])
    again = round_trip(replace(first, affine=first.affine @ finer), tmp_path / "b.nii")
    np.testing.assert_allclose(again.affine, first.affine @ finer, rtol=1e-7, atol=1e-5)
    assert again.notes == ()
    assert int(again.header["sform_code"]) in (sform_code, qform_code)
    assert int(again.header["qform_code"]) == qform_code
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii").affine, again.affine, rtol=1e-7, atol=1e-6)


@few
@given(shape=st.tuples(*[st.integers(1, 6)] * 3), volumes=st.integers(1, 3), data=st.data())
def test_shapes_and_memory_orders_go_round(tmp_path, shape, volumes, data):
    stored = make_voxels((*shape, volumes))
    volume = read(save_scan(tmp_path / "a.nii.gz", stored))
    wanted = stored if volumes > 1 else stored[..., 0]
    assert volume.voxels.shape == wanted.shape
    axes = data.draw(st.permutations(range(wanted.ndim)))
    scrambled = np.ascontiguousarray(wanted.transpose(axes)).transpose(np.argsort(axes))
    np.testing.assert_array_equal(round_trip(replace(volume, voxels=scrambled), tmp_path / "b.nii.gz").voxels, wanted)


def test_slabs_cover_every_voxel_once(monkeypatch):
    for slab_bytes in (1, 100, 10**6):
        monkeypatch.setattr("thinslice.io.streams.SLAB_BYTES", slab_bytes)
        for shape in [(3, 2, 5), (3, 2, 5, 4), (1, 1, 1)]:
            order = np.arange(np.prod(shape)).reshape(shape, order="F")
            walked = [order[at].ravel(order="F") for at in slabs(shape, 2)]
            np.testing.assert_array_equal(np.concatenate(walked), order.ravel(order="F"))


def test_what_the_header_says_survives_a_finer_grid(tmp_path):
    kept = {"descrip": b"a scan", "intent_code": 3, "intent_p1": 7.0, "cal_min": -5.0, "cal_max": 90.0, "dim_info": 57}
    timing = {"slice_code": 1, "slice_end": 2, "slice_duration": 0.5}
    pixdim = [1, 0.7, 0.8, 4.0, 2.5, 1, 1, 1]
    stored = make_voxels((*SHAPE, 2))
    path = save_scan(tmp_path / "a.nii", stored, pixdim=pixdim, sform_code=2, qform_code=1, toffset=3, **kept, **timing)
    source = read(path)
    write(source, tmp_path / "same.nii")
    write(replace(source, voxels=np.repeat(stored, 4, axis=2)), tmp_path / "finer.nii")
    for name, grid_changed in (("same.nii", False), ("finer.nii", True)):
        header = read(tmp_path / name).header
        for field, value in kept.items():
            assert header[field] == value, field
        assert float(header["pixdim"][4]) == 2.5
        assert int(header["xyzt_units"]) == 10
        assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 1)
        for field, value in timing.items():
            assert header[field] == (0 if grid_changed else value), field


def test_repetition_time_of_a_3d_scan_survives(tmp_path):
    pixdim = [1, 0.7, 0.8, 4.0, 2.5, 1, 1, 1]
    source = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), pixdim=pixdim))
    assert float(round_trip(source, tmp_path / "b.nii").header["pixdim"][4]) == 2.5


@pytest.mark.parametrize("order", "<>")
def test_comments_survive_and_other_extensions_do_not(tmp_path, order):
    stored = make_voxels(SHAPE).astype(order + "i2")
    volume = read(save_scan(tmp_path / "a.nii.gz", stored, extensions=[(4, b"<AFNI/>"), (6, b"hello")]))
    np.testing.assert_array_equal(volume.voxels, stored)
    assert "1 header extension" in volume.notes[0]
    write(volume, tmp_path / "b.nii.gz")
    image = nibabel.load(tmp_path / "b.nii.gz")
    assert [(e.get_code(), e.get_content()) for e in image.header.extensions] == [(6, b"hello")]
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), stored)


def test_like_lends_its_header(tmp_path):
    like = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE, "u1")))
    volume = Volume(np.full((5, 4, 9), 41.7), make_affine((1, 1, 1)))
    write(volume, tmp_path / "b.nii", like)
    again = read(tmp_path / "b.nii")
    assert again.voxels.dtype == np.uint8
    assert (again.voxels == 42).all()
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize(("dtype", "stored"), [("?", "u1"), ("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i2", "i2")])
def test_a_volume_without_nifti_header_gets_a_fresh_one(tmp_path, dtype, stored):
    volume = Volume(np.ones(SHAPE, dtype), make_affine(), header="not NIfTI's")
    again = round_trip(volume, tmp_path / "b.nii.gz")
    assert again.voxels.dtype == np.dtype(stored)
    assert (int(again.header["sform_code"]), int(again.header["xyzt_units"])) == (1, 10)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


# ---- geometry


@pytest.mark.parametrize(("unit", "mm", "word"), [(1, 1000.0, "metres"), (3, 0.001, "micrometres")])
def test_units_are_converted_and_restored(tmp_path, unit, mm, word):
    affine = np.diag([1 / mm] * 3 + [1]) @ make_affine()
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), affine, xyzt_units=unit))
    np.testing.assert_allclose(volume.affine, make_affine(), rtol=1e-6)
    assert len(volume.notes) == 1
    assert word in volume.notes[0]
    again = round_trip(volume, tmp_path / "b.nii")
    assert int(again.header["xyzt_units"]) == unit
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6)
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii").affine, affine, rtol=1e-6)


def test_an_unknown_unit_is_mm(tmp_path):
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), xyzt_units=0))
    assert volume.notes == ()
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 4.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (make_affine((1, 1, 1), flips=(-1, 1, 1), origin_mm=(0, 0, 0)), "left-right flip"),
        (make_affine((1, 1, 1), angles_deg=(0, 0, 12), origin_mm=(0, 0, 0)), "rotation of 12.0 degrees"),
        (make_affine((1, 1, 1), origin_mm=(9, 0, 0)), "up to 9.0 mm"),
        (make_affine((1, 1, 1), axes=(1, 0, 2), origin_mm=(0, 0, 0)), "mirror image"),
    ],
)
def test_forms_that_disagree_are_told_apart(tmp_path, turn, words):
    sform = turn @ make_affine()
    rows = {f"srow_{name}": row for name, row in zip("xyz", sform, strict=False)}
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), **rows))
    np.testing.assert_allclose(volume.affine, sform, rtol=1e-6, atol=1e-5)
    assert len(volume.notes) == 1
    assert words in volume.notes[0]
    assert "sform is used" in volume.notes[0]
    again = round_trip(volume, tmp_path / "b.nii")
    assert again.notes == volume.notes
    for form in ("get_sform", "get_qform"):
        was, found = (getattr(one.header, form)() for one in (volume, again))
        np.testing.assert_allclose(found, was, rtol=1e-6, atol=1e-4)


def test_no_form_at_all_works_with_pixdim(tmp_path):
    path = save_scan(tmp_path / "a.nii", make_voxels((6, 4, 8)), sform_code=0, qform_code=0)
    volume = read(path)
    np.testing.assert_allclose(volume.affine, nibabel.load(path).affine)
    assert "neither sform nor qform" in volume.notes[0]
    # thinner on the same field of view: pixdim still says it all
    halved = volume.affine @ np.diag([1, 1, 0.5, 1])
    halved[:3, 3] -= halved[:3, 2] / 2
    again = round_trip(replace(volume, voxels=make_voxels((6, 4, 16)), affine=halved), tmp_path / "b.nii")
    assert (int(again.header["sform_code"]), int(again.header["qform_code"])) == (0, 0)
    np.testing.assert_allclose(again.affine, halved, atol=1e-5)
    # elsewhere: only an sform can say it
    moved = halved + np.pad([[7.0]], ((0, 3), (3, 0)))
    again = round_trip(replace(volume, voxels=make_voxels((6, 4, 16)), affine=moved), tmp_path / "c.nii")
    assert (int(again.header["sform_code"]), int(again.header["qform_code"])) == (2, 0)
    np.testing.assert_allclose(again.affine, moved, atol=1e-5)


def test_a_sheared_affine_is_kept_and_never_put_into_a_qform(tmp_path):
    sheared = make_affine() @ (np.eye(4) + np.pad([[0.3]], ((1, 2), (2, 1))))
    rows = {f"srow_{name}": row for name, row in zip("xyz", sheared, strict=False)}
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), sheared, qform_code=0, **rows))
    assert any("sheared by" in note for note in volume.notes)
    np.testing.assert_allclose(volume.affine, sheared, rtol=1e-6)
    again = round_trip(volume, tmp_path / "b.nii")
    np.testing.assert_allclose(again.affine, sheared, rtol=1e-6)
    assert (int(again.header["sform_code"]), int(again.header["qform_code"])) == (1, 0)
    no_sform = read(save_scan(tmp_path / "c.nii", make_voxels(SHAPE), sform_code=0, qform_code=3))
    again = round_trip(replace(no_sform, affine=sheared), tmp_path / "d.nii")
    assert (int(again.header["sform_code"]), int(again.header["qform_code"])) == (3, 0)
    np.testing.assert_allclose(again.affine, sheared, rtol=1e-6)


def test_pixdim_that_contradicts_the_sform_is_noted(tmp_path):
    pixdim = [1, 0.7, 0.8, 1, 1, 1, 1, 1]
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), qform_code=0, pixdim=pixdim))
    assert "pixdim says 0.7 x 0.8 x 1 mm and the sform 0.7 x 0.8 x 4 mm" in volume.notes[0]
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.8, 4), rtol=1e-6)


def test_a_qfac_of_zero_means_one(tmp_path):
    pixdim = [0, 0.7, 0.8, 4, 1, 1, 1, 1]
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), sform_code=0, pixdim=pixdim))
    np.testing.assert_allclose(volume.affine, make_affine(), atol=1e-5)
    assert volume.notes == ()


def test_a_broken_qform_beside_a_good_sform_is_noted(tmp_path):
    volume = read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE), quatern_b=3.0))
    assert "qform is not a rotation" in volume.notes[0]


# ---- the facts beside the file


@pytest.mark.parametrize(
    ("text", "thickness_mm", "notes"),
    [
        ('{"SliceThickness": 3.5}', 3.5, 0),
        ('{"SliceThickness": 3}', 3.0, 0),
        ('{"Manufacturer": "X"}', None, 0),
        ('{"SliceThickness": "3.5"}', None, 1),
        ('{"SliceThickness": true}', None, 1),
        ('{"SliceThickness": -1}', None, 1),
        ('{"SliceThickness": NaN}', None, 1),
        ("[3.5]", None, 1),
        ("{", None, 1),
        ("\udcff", None, 1),
        ("[" * 100_000, None, 1),
    ],
    ids=range(11),
)
def test_sidecar(tmp_path, text, thickness_mm, notes):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    volume = read(save_scan(tmp_path / "a.nii.gz", make_voxels(SHAPE)))
    assert volume.thickness_mm == thickness_mm
    assert len(volume.notes) == notes
    assert all("\n" not in note and "a.json" in note for note in volume.notes)


def test_no_sidecar_no_thickness(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps({"SliceThickness": 3}))
    assert read(save_scan(tmp_path / "a.nii", make_voxels(SHAPE))).thickness_mm is None


# ---- voxels that are not finite


@pytest.mark.parametrize(("low", "fill"), [(-5.0, 0.0), (10.0, 10.0)])
@pytest.mark.parametrize("order", "<>")
def test_non_finite_voxels_are_replaced_and_counted(tmp_path, low, fill, order):
    stored = np.full(SHAPE, 20, order + "f4")
    stored[0, 0] = low
    stored[1, 0] = np.nan, np.inf, -np.inf
    volume = read(save_scan(tmp_path / "a.nii", stored))
    assert (volume.voxels[1, 0] == fill).all()
    assert np.isfinite(volume.voxels).all()
    assert volume.notes[0].startswith("3 of 60 voxels")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_finite_voxel_is_refused(tmp_path, value):
    assert_refused(save_scan(tmp_path / "a.nii.gz", np.full(SHAPE, value, "f4")), "no finite voxel")


# ---- what is refused

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD_HEADERS = {
    "pixdim zero": ({"sform_code": 0, "pixdim": [1, 0.7, 0.8, 0, 1, 1, 1, 1]}, "0.7 x 0.8 x 0"),
    "pixdim zero, no form": ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0.7, 0.8, 0, 1, 1, 1, 1]}, "0.8 x 0"),
    "pixdim NaN": ({"sform_code": 0, "pixdim": [1, 0.7, 0.8, np.nan, 1, 1, 1, 1]}, "nan"),
    "pixdim infinite": ({"sform_code": 0, "pixdim": [1, np.inf, 0.8, 4, 1, 1, 1, 1]}, "inf"),
    "sform column zero": (
        {"qform_code": 0, "srow_x": [0.7, 0, 0, 0], "srow_y": [0, 0.8, 0, 0], "srow_z": [0, 0, 0, 0]},
        "0.7 x 0.8 x 0",
    ),
    "sform zero": ({"qform_code": 0, "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}, "0 x 0 x 0"),
    "sform zero, qform no rotation": (
        {"quatern_b": 3.0, "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4},
        "0 x 0 x 0",
    ),
    "sform zero, pixdim zero": (
        {"pixdim": [1, 0.7, 0, 4, 1, 1, 1, 1], "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4},
        "0 x 0 x 0",
    ),
    "sform NaN": ({"qform_code": 0, "srow_x": [np.nan, 0, 0, 0]}, "nan"),
    "sform position infinite": ({"qform_code": 0, "srow_x": [0.7, 0, 0, np.inf]}, "affine"),
    "sform singular": ({"qform_code": 0, "srow_x": [0.7, 0, 4, 0], "srow_z": [0.7, 0, 4, 0]}, "one plane"),
    "qform no rotation": ({"sform_code": 0, "quatern_b": 3.0}, "rotation"),
    "qform NaN": ({"sform_code": 0, "quatern_b": np.nan}, "rotation"),
    "wrong magic": ({"magic": b"xyz"}, "Analyze 7.5 or damaged"),
    "analyze": ({"magic": b""}, "Analyze 7.5 or damaged"),
    "pair": ({"magic": b"ni1"}, ".hdr/.img"),
    "header too big for the file": ({"dim": [3, 50, 40, 30, 1, 1, 1, 1]}, "bytes"),
    "header far too big": ({"dim": [7, 32767, 32767, 32767, 1, 1, 1, 1]}, "bytes"),
    "dim[0] nonsense": ({"dim": [9, 5, 4, 3, 1, 1, 1, 1]}, "dim[0] is 9"),
    "dim zero": ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "5 x 0 x 3"),
    "dim negative": ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, "5 x -4 x 3"),
    "2-D": ({"dim": [2, 5, 4, 1, 1, 1, 1, 1]}, "2-D image"),
    "5-D": ({"dim": [5, 5, 4, 1, 1, 3, 1, 1]}, "5-D image"),
    "unknown type": ({"datatype": 99}, "datatype 99"),
    "binary": ({"datatype": 1}, "binary"),
    "vox_offset far": ({"vox_offset": 1e9}, "byte 1e+09"),
    "vox_offset NaN": ({"vox_offset": np.nan}, "byte nan"),
    "inter NaN": ({"scl_slope": 2, "scl_inter": np.nan}, "scl_inter"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("fault", BAD_HEADERS)
def test_bad_headers_are_refused(tmp_path, fault, suffix, capfd, caplog):
    fields, word = BAD_HEADERS[fault]
    with caplog.at_level(logging.DEBUG):
        assert_refused(save_scan(tmp_path / f"a{suffix}", make_voxels(SHAPE), **fields), word)
    of_others = [record for record in caplog.records if not record.name.startswith("thinslice.")]
    assert (*capfd.readouterr(), of_others) == ("", "", [])


@pytest.mark.parametrize(("dtype", "word"), [(RGB, "RGB"), ("c8", "complex"), ("c16", "complex")])
def test_types_that_are_not_one_number_are_refused(tmp_path, dtype, word):
    assert_refused(save_scan(tmp_path / "a.nii", np.zeros(SHAPE, dtype)), word)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.nii", b"", "empty"),
        ("empty.nii.gz", b"", "empty"),
        ("empty_inside.nii.gz", gzip.compress(b"", mtime=0), "no content"),
        ("text.nii", b"subject,age\n1,34\n", "text file"),
        ("text.nii.gz", b"subject,age\n1,34\n" * 99, "text file, not gzip"),
        ("noise.nii", bytes(range(256)) * 4, "unknown kind"),
        ("dicom.nii", bytes(128) + b"DICM" + bytes(900), "DICOM"),
        ("nrrd.nii", b"NRRD0005\n" + bytes(900), "NRRD"),
        ("short.nii", (348).to_bytes(4, "little") + bytes(50), "54 bytes of a 348-byte header"),
        ("short2.nii", (540).to_bytes(4, "big") + bytes(350), "354 bytes of a 540-byte header"),
        ("bad_gzip.nii.gz", b"\x1f\x8b" + bytes(900), "gzip"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, word)


@settings(few, max_examples=150)
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, edits):
    path = save_scan(tmp_path / "a.nii", make_voxels(SHAPE, "f4"), extensions=[(6, b"hello")])
    content = bytearray(path.read_bytes())
    for at, new in edits:
        content[at : at + len(new)] = new
    path.write_bytes(content)
    try:
        volume = read(path)
    except InputRefused:
        assert_refused(path)
        return
    assert np.isfinite(volume.voxels).all()
    assert np.isfinite(volume.affine).all()
    try:
        again = round_trip(volume, tmp_path / "b.nii")
    except OutputRefused:
        return
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-4, atol=1e-4 * np.abs(volume.affine).max())


def test_gzip_content_is_read_under_a_plain_name_but_not_the_reverse(tmp_path):
    stored = make_voxels(SHAPE)
    packed, plain = save_scan(tmp_path / "a.nii.gz", stored), save_scan(tmp_path / "b.nii", stored)
    np.testing.assert_array_equal(read(packed.rename(tmp_path / "c.nii")).voxels, stored)
    assert_refused(plain.rename(tmp_path / "d.nii.gz"), "plain NIfTI", "rename it to .nii")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_cut_off_files_are_refused(tmp_path, suffix, kept):
    path = save_scan(tmp_path / f"a{suffix}", make_voxels((20, 20, 20)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert_refused(path, "again")


def test_a_gzip_without_its_last_bytes_or_with_a_wrong_checksum_is_refused(tmp_path):
    path = save_scan(tmp_path / "a.nii.gz", make_voxels(SHAPE))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert_refused(path, "gzip")
    path.write_bytes(whole[:-8] + bytes(8))
    assert_refused(path, "gzip")


def test_what_is_no_file_is_refused(tmp_path):
    assert_refused(tmp_path, "folder")
    assert_refused(tmp_path / "missing.nii", "No such file")
    assert_refused(tmp_path / "missing" / "a.nii", "No such file")
    assert_refused(tmp_path / ("x" * 300 + ".nii"), "too long")
    assert_refused(tmp_path / "a\0.nii")
    assert_refused(tmp_path / "line\nbreak.nii".replace("\n", " "))
    with pytest.raises(InputRefused) as caught:
        read(tmp_path / "line\nbreak.nii")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    assert_refused(tmp_path / "a.nii")


def test_unreadable_files_are_refused(tmp_path, monkeypatch):
    path = save_scan(tmp_path / "a.nii", make_voxels(SHAPE))
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything

        def refuse(*_args):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("thinslice.io.streams.open", refuse, raising=False)
    assert_refused(path, "Permission denied")


def test_too_little_memory_is_refused(tmp_path, monkeypatch):
    def refuse(*_args):
        raise MemoryError

    path = save_scan(tmp_path / "a.nii", make_voxels(SHAPE))
    monkeypatch.setattr(nifti, "read_voxels", refuse)
    assert_refused(path, "memory")


# ---- what a scale must hold


def as_written(tmp_path, stored, voxels, slope, inter):
    """An answer to a scan of that kind, made ready, and as it comes back from the file."""
    scan = read(save_scan(tmp_path / "scan.nii", stored, scl_slope=slope, scl_inter=inter))
    ready = nifti.as_stored(replace(scan, voxels=voxels.astype(np.float32)))
    return ready, round_trip(ready, tmp_path / "thin.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16])
@pytest.mark.parametrize(("slope", "inter"), [(0.5, -100.0), (2.0, 0.0), (-0.01, 7.0)])
@pytest.mark.parametrize("beyond", [0.0, 0.2])
def test_an_answer_beyond_the_scale_is_not_clipped_and_what_is_ready_is_what_is_written(
    tmp_path, dtype, slope, inter, beyond
):
    stored = make_voxels((6, 5, 4), dtype)
    scan = stored.astype(np.float64) * slope + inter
    middle, half = (scan.max() + scan.min()) / 2, np.ptp(scan) / 2
    voxels = (middle + (scan - middle) * (1 + beyond)).astype(np.float32)
    ready, again = as_written(tmp_path, stored, voxels.copy(), slope, inter)
    np.testing.assert_allclose(again.voxels, ready.voxels, rtol=1e-6, atol=1e-6 * half)
    step = abs(slope) * (1 + 2 * beyond)
    np.testing.assert_allclose(again.voxels, voxels, atol=0.51 * step + 1e-6 * half)
    wide = again.header.get_data_dtype()
    assert wide.kind in "iu"
    assert wide.itemsize == (2 if np.dtype(dtype).itemsize == 1 and beyond else np.dtype(dtype).itemsize)
    assert bool(ready.notes) == (beyond > 0 and wide.itemsize == np.dtype(dtype).itemsize)


def test_what_needs_no_scale_is_left_as_it_is(tmp_path):
    for voxels in (make_voxels((4, 4, 4), np.int16), make_voxels((4, 4, 4), np.float32)):
        scan = read(save_scan(tmp_path / "scan.nii", voxels))
        assert nifti.as_stored(scan) is scan


@pytest.mark.parametrize("mark", [3.4e38, -1e31])
def test_marks_for_missing_voxels_are_refused(tmp_path, mark):
    voxels = make_voxels((4, 4, 4), np.float32)
    voxels[0, 0, 0] = mark
    assert_refused(save_scan(tmp_path / "marked.nii", voxels), "marks for missing voxels")


# ---- every bad NIfTI of the shared data

BAD_SCANS = {
    "not_nifti.nii": InputRefused,
    "syn_pixdim3_zero.nii.gz": "which is no spacing, and is ignored; the sform is used",
    "syn_truncated_gzip.nii.gz": InputRefused,
    "syn_empty.nii.gz": InputRefused,
    "syn_sform_qform_disagree.nii.gz": "sform and qform disagree by a left-right flip",
    "syn_shear_affine.nii.gz": "sheared by 3.3 degrees",
    "syn_nan_inf.nii.gz": "voxels were NaN or infinite",
    "syn_no_sform_no_qform.nii.gz": None,  # despite its name its sform code is 2: the real thing is tested above
    "syn_one_slice.nii.gz": None,  # the plan's business
    "syn_4d_3vol.nii.gz": None,
    "syn_scl_slope.nii.gz": None,
}


@pytest.mark.parametrize("name", BAD_SCANS)
def test_bad_scans_of_the_shared_data(tmp_path, name):
    if not (DATA / "bad" / name).exists():
        pytest.skip(f"no shared data at {DATA}; set THINSLICE_DATA")
    expected = BAD_SCANS[name]
    if expected is InputRefused:
        assert_refused(DATA / "bad" / name)
        return
    volume = read(DATA / "bad" / name)
    assert len(volume.notes) == (0 if expected is None else 1)
    assert expected is None or expected in volume.notes[0]
    image = nibabel.load(DATA / "bad" / name)
    np.testing.assert_allclose(volume.affine, image.affine)
    finite = np.isfinite(image.get_fdata())
    np.testing.assert_allclose(volume.voxels[finite], image.get_fdata()[finite], rtol=1e-6)
    again = round_trip(volume, tmp_path / name)
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6)


def test_no_bad_nifti_of_the_shared_data_is_left_out():
    if not (DATA / "bad").is_dir():
        pytest.skip(f"no shared data at {DATA}; set THINSLICE_DATA")
    assert {f.name for f in (DATA / "bad").glob("*.nii*")} == set(BAD_SCANS)


# ---- writing safely


@pytest.fixture
def volume(tmp_path_factory):
    return read(save_scan(tmp_path_factory.mktemp("source") / "a.nii", make_voxels(SHAPE)))


def test_the_same_scan_gives_the_same_bytes(tmp_path, volume):
    for name in ("a.nii.gz", "b.nii.gz"):
        write(volume, tmp_path / name)
    written = (tmp_path / "a.nii.gz").read_bytes()
    assert written == (tmp_path / "b.nii.gz").read_bytes()
    assert written[3:8] == bytes(5)  # neither name nor date


def test_missing_folders_are_made_and_permissions_are_usual(tmp_path, volume):
    write(volume, tmp_path / "new" / "newer" / "a.nii")
    (tmp_path / "usual").touch()
    assert (tmp_path / "new/newer/a.nii").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_nothing_is_left_behind(tmp_path, volume, monkeypatch, error):
    def fail(*_args):
        yield b"some bytes"
        raise error

    (tmp_path / "old.nii").write_bytes(b"old")
    monkeypatch.setattr(nifti, "_encoded", fail)
    for path in (tmp_path / "new" / "newer" / "a.nii.gz", tmp_path / "old.nii"):
        expected = OutputRefused if isinstance(error, OSError) else error
        with pytest.raises(expected) as caught:
            write(volume, path)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "old.nii"]
    assert (tmp_path / "old.nii").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"voxels": np.full(SHAPE, np.nan)}, "NaN"),
        ({"voxels": np.zeros((5, 4))}, "shape"),
        ({"voxels": np.zeros((5, 4, 0))}, "shape"),
        ({"voxels": np.zeros(SHAPE, complex)}, "complex"),
        ({"voxels": np.zeros((2, 1, 40000), np.int16)}, "32767"),
        ({"affine": np.zeros((4, 4))}, "inverse"),
        ({"affine": np.full((4, 4), np.nan)}, "inverse"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, volume, change, word):
    with pytest.raises(OutputRefused, match=word) as caught:
        write(replace(volume, **change), tmp_path / "new" / "a.nii")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_niftis_are_refused(tmp_path, volume):
    for name in ("a.mha", "a.gz", ".nii", "a"):
        with pytest.raises(OutputRefused, match=r"need \.nii"):
            write(volume, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputRefused, match="choose another output"):
        write(volume, tmp_path / "file" / "a.nii")


# ---- big results


def test_allocate_goes_to_disk_from_a_limit_on(tmp_path, monkeypatch):
    small = allocate((4, 5, 6), np.int16, tmp_path)
    assert not isinstance(small.base, np.memmap)
    monkeypatch.setattr("thinslice.io.scratch.ON_DISK_BYTES", 1000)
    big = allocate((10, 10, 10), np.float32, tmp_path / "not" / "there")
    assert isinstance(big.base, np.memmap)
    assert big.flags.f_contiguous
    big[:] = np.arange(1000).reshape(10, 10, 10)
    assert big.sum() == 499500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the disk space is not reserved here")
def test_allocate_refuses_when_the_disk_is_full(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutputRefused, match="need 4\\.0 GB"):
        allocate((1000, 1000, 1000), np.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_big_plain_files_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("thinslice.io.streams.ON_DISK_BYTES", 50)
    for order in "<>":
        stored = make_voxels(SHAPE, "f4").astype(order + "f4")
        stored[0] = np.nan
        path = save_scan(tmp_path / "a.nii", stored)
        before = path.read_bytes()
        np.testing.assert_array_equal(read(path).voxels[1:], stored[1:])
        assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_writing_takes_no_memory_for_a_copy(tmp_path):
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from thinslice.io.nifti import write
from thinslice.volume import Volume
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(Volume(np.broadcast_to(np.float32(1), (512, 512, 128)), np.eye(4)), Path(sys.argv[1]) / "a.nii")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 100 * 1024  # kB; the scan is 128 MB as float32
