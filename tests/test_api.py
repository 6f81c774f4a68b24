"""`thinslice.enhance`: the same as the command line, whatever goes in; nothing changed, printed, or half written."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

import thinslice
from dicom_files import stack
from faults import catches
from make_scans import make_affine, save_scan
from thick_scans import texture
from thinslice import api, cli, pipeline
from thinslice.cli.options import settings_from
from thinslice.errors import InputRefused, ModelRefused, OutputRefused, PlanRefused, ThinsliceError
from thinslice.io import formats, nifti
from thinslice.io.formats import stem_of
from thinslice.models import files
from thinslice.models.protocol import WORKERS
from thinslice.models.registry import find_model
from thinslice.settings import Settings
from thinslice.volume import Volume

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
SHAPE = (26, 22, 6)


def picture(shape=SHAPE, seed=0):
    return np.asfortranarray(texture(shape, (3, 3, 1)[: len(shape)] + (1,) * (len(shape) - 3), seed))


def kinds():
    """Name of a file -> what writes it."""
    small = np.rint(picture()).clip(0, 255)
    with_holes = picture().astype(np.float32)
    with_holes[3:5, 2, 1] = np.nan
    oblique = make_affine((1.0, 1.1, 4.0), (10, 5, 3), (2, 0, 1), (1, -1, 1))
    return {
        "int16.nii.gz": lambda path: save_scan(path, small.astype(np.int16), oblique),
        "uint8.nii": lambda path: save_scan(path, small.astype(np.uint8), AFFINE),
        "scaled.nii.gz": lambda path: save_scan(path, small.astype(np.int16), AFFINE, scl_slope=0.3, scl_inter=-7),
        "scaled8.nii": lambda path: save_scan(path, small.astype(np.uint8), AFFINE, scl_slope=0.5, scl_inter=3),
        "holes.nii.gz": lambda path: save_scan(path, with_holes, AFFINE),
        "double.nii.gz": lambda path: save_scan(path, picture(), AFFINE),
        "other-order.nii": lambda path: save_scan(path, small.astype(">i2"), AFFINE),
        "nifti2.nii": lambda path: save_scan(path, small.astype(np.int16), AFFINE, nifti=2),
        "metres.nii": lambda path: save_scan(
            path, small.astype(np.int16), np.diag([1e-3, 1e-3, 4e-3, 1]), xyzt_units=1
        ),
        "qform.nii": lambda path: save_scan(path, small.astype(np.int16), oblique, sform_code=0),
        "no-form.nii": lambda path: save_scan(path, small.astype(np.int16), AFFINE, sform_code=0, qform_code=0),
        "notes.nii": lambda path: save_scan(path, small.astype(np.int16), AFFINE, extensions=[(6, b"hi"), (4, b"x")]),
        "series.nii": lambda path: save_scan(path, np.rint(picture((*SHAPE, 2))).astype(np.int16), AFFINE),
        "int16.mgz": lambda path: formats.write(Volume(small.astype(np.int16), oblique), path),
        "uint8.mgh": lambda path: formats.write(Volume(small.astype(np.uint8), AFFINE), path),
        "int16.nrrd": lambda path: formats.write(Volume(small.astype(np.int16), oblique), path),
        "float.nrrd": lambda path: formats.write(Volume(picture().astype(np.float32), AFFINE), path),
    }


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "in" / "scan.nii.gz"
    path.parent.mkdir()
    return save_scan(path, np.rint(picture()).astype(np.int16), AFFINE)


def by_command_line(source, target, *words):
    assert cli.main(["enhance", "-q", "-i", str(source), "-o", str(target), *map(str, words)]) == 0
    return target


def facts(path):
    """The report beside an answer, but for the time."""
    content = json.loads(path.with_name(f"{stem_of(path)}.json").read_text())
    return {name: value for name, value in content.items() if name != "seconds"}


def unpacked(path):
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


# ---- the same as the command line


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("model", ["default", "linear"])
def test_a_file_gives_what_the_command_line_writes(tmp_path, name, model):
    kinds()[name](tmp_path / name)
    (tmp_path / "in").mkdir()
    scan = shutil.copy(tmp_path / name, tmp_path / "in" / name)
    expected = by_command_line(scan, tmp_path / "cli" / name, "--model", model)
    done = thinslice.enhance(scan, model=model)
    held = formats.read(expected)
    assert done.array.dtype == held.voxels.dtype
    np.testing.assert_array_equal(done.array, held.voxels)
    np.testing.assert_allclose(done.affine, held.affine, rtol=1e-6, atol=1e-5)
    done.save(tmp_path / "api" / name)
    assert unpacked(tmp_path / "api" / name) == unpacked(expected)
    assert facts(tmp_path / "api" / name) == facts(expected)
    assert sorted(os.listdir(tmp_path / "api")) == sorted(os.listdir(tmp_path / "cli"))


@catches(
    "io/nifti.py",
    'header["scl_slope"], header["scl_inter"] = proxy.slope, proxy.inter',
    'header["scl_slope"], header["scl_inter"] = 1, 0',
)
@pytest.mark.parametrize("name", [name for name in kinds() if "nrrd" not in name])
@pytest.mark.parametrize("memory", [False, True])
def test_an_image_of_nibabel_gives_what_its_file_gives(tmp_path, name, memory):
    kinds()[name](tmp_path / name)
    (tmp_path / f"{stem_of(Path(name))}.json").write_text('{"SliceThickness": 3.5}')
    expected = thinslice.enhance(tmp_path / name)
    image = nibabel.load(tmp_path / name)
    if memory and "scaled" not in name:  # with a rescale the array is of other numbers than the file
        image = type(image)(np.asanyarray(image.dataobj), image.affine, image.header)
        done = thinslice.enhance(image, thickness_mm=3.5)
    else:
        done = thinslice.enhance(image)
        assert done.report.notes == expected.report.notes
    np.testing.assert_array_equal(done.array, expected.array)
    np.testing.assert_allclose(done.affine, expected.affine, rtol=1e-7, atol=1e-5 if "mg" in name else 0)
    assert done.plan.thickness_mm == 3.5
    done.save(tmp_path / "out" / name)
    expected.save(tmp_path / "file" / name)
    kept = [nibabel.load(tmp_path / where / name).header for where in ("out", "file")]
    for field in set(kept[0].keys()) - {"scl_slope", "scl_inter", "Mdc", "Pxyz_c"}:
        assert kept[0][field].tolist() == kept[1][field].tolist(), field
    if not memory and "mg" not in name:  # whose affine nibabel computes in 32 bits
        before, after = (unpacked(tmp_path / where / name) for where in ("file", "out"))
        assert before == after


def test_what_was_changed_in_an_image_rules_over_its_file(scan):
    (scan.parent / "scan.json").write_text('{"SliceThickness": 3.5}')
    image = nibabel.load(scan)
    image.affine[:3, 3] += 10
    image.affine[:3, 2] *= 2
    done = thinslice.enhance(image, model="cubic")
    assert done.plan.spacing_thick_mm == (1, 1, 8)
    assert done.plan.profile_source == "estimated"  # the JSON speaks of slices that lay elsewhere
    np.testing.assert_allclose(done.plan.affine_thick, image.affine)


@catches("io/nifti.py", "        header.set_data_dtype(stored.dtype)\n", "")
def test_floats_in_a_header_for_whole_numbers_are_not_rounded(scan):
    """As nibabel users write them: nibabel.Nifti1Image(computed, image.affine, image.header)."""
    image = nibabel.load(scan)
    share = np.asarray(image.dataobj) / np.float32(1000)
    done = thinslice.enhance(nibabel.Nifti1Image(share, image.affine, image.header), model="linear")
    direct = thinslice.enhance(share, affine=image.affine, model="linear")
    np.testing.assert_array_equal(done.array, direct.array)
    assert len(np.unique(done.array)) > 1000
    back = done.to_nibabel()
    again = nibabel.Nifti1Image.from_bytes(back.to_bytes())
    np.testing.assert_array_equal(np.asarray(again.dataobj, np.float32), done.array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_with_its_affine(scan, order):
    image = nibabel.load(scan)
    voxels = np.asarray(image.dataobj, order=order)
    done = thinslice.enhance(voxels, affine=image.affine.tolist())
    expected = thinslice.enhance(scan)
    np.testing.assert_array_equal(done.array, expected.array)
    np.testing.assert_array_equal(done.affine, expected.affine)
    assert done.array.dtype == np.int16
    assert done.report.source == ""
    assert "24 slices x 1 mm with default" in repr(done)
    again = thinslice.enhance(formats.read(scan))
    np.testing.assert_array_equal(again.array, expected.array)
    assert again.report.source == "scan.nii.gz"


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        ("uint8", "int16"),
        ("int8", "int16"),
        ("uint16", "uint16"),
        (">i4", "int32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        (np.longdouble, "float64"),
    ],
)
def test_kinds_of_numbers(dtype, found):
    voxels = np.rint(picture()).clip(0, 120).astype(dtype)
    done = thinslice.enhance(voxels, affine=AFFINE, model="cubic")
    assert done.array.dtype == found
    assert done.report.consistency.rms_percent < 2


def test_the_options_are_those_of_the_command_line():
    verb = cli.make_parser().parse_args(["enhance", "-i", "a", "-o", "b"])
    assert settings_from(verb) == Settings()
    without = {field.name for field in fields(Settings)} - vars(verb).keys()
    assert without == {"noise"}, "for experiments"
    with pytest.raises(TypeError, match="'spacing'; it takes model, spacing_mm, factor"):
        thinslice.enhance(np.zeros(SHAPE), affine=AFFINE, spacing=2)


@catches("settings.py", " or isinstance(self.in_plane, bool)", "")
@catches("settings.py", "            _check_flag(name, getattr(self, name))", "            pass")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fuse": "no"}, r"got `fuse='no'`; need True or False"),
        ({"projection": 0}, r"got `projection=0`; need True or False"),
        ({"in_plane": True}, r"got `in_plane=True`; need a whole number"),
        ({"model": None}, r"got `model=None`; need the name of a model"),
        ({"model": ""}, r"got `model=''`; need the name of a model"),
    ],
)
def test_values_of_another_kind_are_refused(change, said):
    with pytest.raises(PlanRefused, match=said):
        Settings(**change)
    assert Settings(fuse=np.True_).fuse


def test_what_is_no_settings_and_no_count_is_refused():
    with pytest.raises(PlanRefused, match=r"got ndarray as `settings`; need thinslice\.Settings"):
        thinslice.enhance(np.zeros(SHAPE), AFFINE)
    with pytest.raises(PlanRefused, match="threads=True"):
        thinslice.enhance(np.zeros(SHAPE), affine=AFFINE, threads=True)


def test_the_options_reach_the_plan(scan, tmp_path):
    wish = {"spacing_mm": 2.0, "thickness_mm": 3.0, "profile": "box", "grid": "centres", "projection": False}
    words = ["--spacing", 2, "--thickness", 3, "--profile", "box", "--grid", "centres", "--no-projection"]
    expected = by_command_line(scan, tmp_path / "thin.nii.gz", "--model", "linear", "--in-plane", 2, *words)
    done = thinslice.enhance(scan, model="linear", in_plane=2, **wish)
    np.testing.assert_array_equal(done.array, nifti.read(expected).voxels)
    assert done.plan.to_json() == json.dumps(facts(expected)["plan"], indent=2)
    fused = thinslice.enhance(scan, fuse=True, factor=2)
    np.testing.assert_array_equal(
        fused.array,
        nifti.read(by_command_line(scan, tmp_path / "fused.nii.gz", "--fuse", "--factor", 2)).voxels,
    )


@catches("api.py", "        if not os.fspath(image):", "        if False:")
@pytest.mark.parametrize("words", [{"image": ""}, {"image": np.zeros(SHAPE), "affine": AFFINE, "labels": ""}])
def test_an_empty_name_is_not_the_scan_in_the_current_folder(tmp_path, monkeypatch, words):
    stack(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputRefused, match="got an empty name for") as caught:
        thinslice.enhance(**words, model="linear")
    assert caught.value.code == "input-empty-name"


# ---- DICOM


def test_a_series_gives_what_the_command_line_writes(tmp_path):
    stack(tmp_path / "in")
    expected = by_command_line(tmp_path / "in", tmp_path / "cli.nii.gz", "--model", "cubic")
    done = thinslice.enhance(tmp_path / "in", model="cubic")
    np.testing.assert_array_equal(done.array, nifti.read(expected).voxels)
    done.save(tmp_path / "api.nii.gz")
    assert facts(tmp_path / "api.nii.gz") == facts(expected)
    by_command_line(tmp_path / "in", tmp_path / "cli", "--model", "cubic")
    done.save(tmp_path / "api")
    assert sorted(os.listdir(tmp_path / "api")) == sorted(os.listdir(tmp_path / "cli"))
    from pydicom import dcmread

    moments = ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime")
    for name in os.listdir(tmp_path / "cli"):
        if name.endswith(".dcm"):
            one, other = (dcmread(tmp_path / where / name) for where in ("cli", "api"))
            for moment in moments:
                for image in (one, other):
                    image.pop(moment, None)
            assert one.SOPInstanceUID == other.SOPInstanceUID
            assert one.PixelData == other.PixelData
    with pytest.raises(InputRefused, match="computed by thinslice"):
        thinslice.enhance(tmp_path / "api")
    with pytest.raises(OutputRefused, match="not empty"):
        done.save(tmp_path / "api")
    done.save(tmp_path / "api", overwrite=True)
    shutil.rmtree(tmp_path / "api")
    shutil.rmtree(tmp_path / "cli")
    stack(tmp_path / "in" / "other", series=2, description="another")
    with pytest.raises(InputRefused, match=r"2 series.*; need one; next: "):
        thinslice.enhance(tmp_path / "in")


@catches("pipeline.py", "shown = self.without_identity() if anonymise else self", "shown = self")
@catches("pipeline.py", "        check_can_hide(series)\n", "")
def test_anonymised_nothing_beside_the_images_names_the_patient(tmp_path):
    stack(tmp_path / "Muster", description="Muster knee")
    thick = thinslice.enhance(tmp_path / "Muster", model="linear").acquired
    drawn = nibabel.Nifti1Image((thick.voxels > 500).astype(np.uint8), thick.affine)
    drawn.header["descrip"] = b"Muster"
    done = thinslice.enhance(tmp_path / "Muster", model="linear", labels=drawn)
    done.save(tmp_path / "out", report=tmp_path / "page.html", anonymise=True)
    written = [*(tmp_path / "out").iterdir(), tmp_path / "page.html"]
    assert len([file for file in written if file.suffix != ".dcm"]) == 3
    for file in written:
        content = file.read_bytes()
        assert b"Muster" not in (gzip.decompress(content) if file.suffix == ".gz" else content), file
    stack(tmp_path / "burned", BurnedInAnnotation="YES")
    for folder, said in ((tmp_path / "burned", "text burned into them"), (None, "no DICOM")):
        image, where = (folder, None) if folder else (np.zeros(SHAPE), AFFINE)
        with pytest.raises(InputRefused, match=said):
            thinslice.enhance(image, affine=where, model="linear").save(tmp_path / "other", anonymise=True)
        assert not (tmp_path / "other").exists()


# ---- images of other libraries


class Tensor:
    """As much of a torch tensor as is asked for; on a graphics card, and with gradients."""

    def __init__(self, values, ready=False):
        self.values, self.ready = values, ready
        self.affine = None

    def detach(self):
        return Tensor(self.values, ready=True)

    def cpu(self):
        return self

    def numpy(self):
        if not self.ready:
            raise RuntimeError("call detach first")
        return self.values


@catches("api.py", "if voxels.ndim == 4 and voxels.shape[0] == 1:", "if voxels.ndim == 4:")
@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("path", ["scan.nii.gz", None])
def test_an_image_that_has_data_and_an_affine(channel, path):
    voxels = picture().astype(np.float32)
    values = voxels[None] if channel else voxels
    image = SimpleNamespace(data=Tensor(values), affine=Tensor(AFFINE), path=path)
    image.affine.numpy = lambda: AFFINE
    done = thinslice.enhance(image, model="linear")
    np.testing.assert_array_equal(done.array, thinslice.enhance(voxels, affine=AFFINE, model="linear").array)
    assert done.report.source == (path or "")
    image = SimpleNamespace(data=np.concatenate([voxels[None]] * 3), affine=AFFINE)
    with pytest.raises(InputRefused, match=r"\(3, 26, 22, 6\); need one channel"):
        thinslice.enhance(image)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    voxels = picture().astype(np.float32)
    expected = thinslice.enhance(voxels, affine=AFFINE, model="linear").array
    tensor = torch.from_numpy(voxels).clone().requires_grad_()
    done = thinslice.enhance(tensor, affine=torch.from_numpy(AFFINE), model="linear")
    np.testing.assert_array_equal(done.array, expected)
    with pytest.raises(InputRefused, match=r"got Tensor.*next: convert"):
        thinslice.enhance(tensor.bfloat16(), affine=AFFINE)


def test_torchio():
    tio = pytest.importorskip("torchio")
    voxels = picture().astype(np.float32)
    image = tio.ScalarImage(tensor=voxels[None], affine=AFFINE)
    expected = thinslice.enhance(voxels, affine=AFFINE, model="linear")
    done = thinslice.enhance(image, model="linear")
    np.testing.assert_array_equal(done.array, expected.array)
    np.testing.assert_array_equal(done.affine, expected.affine)
    with pytest.raises(InputRefused, match="label map"):
        thinslice.enhance(tio.LabelMap(tensor=voxels[None] > 100, affine=AFFINE))


def test_monai():
    monai = pytest.importorskip("monai")
    import torch

    voxels = picture().astype(np.float32)
    expected = thinslice.enhance(voxels, affine=AFFINE, model="linear")
    for shape in (voxels[None], voxels):
        image = monai.data.MetaTensor(torch.from_numpy(shape.copy()), affine=torch.from_numpy(AFFINE))
        done = thinslice.enhance(image, model="linear")
        np.testing.assert_array_equal(done.array, expected.array)
        np.testing.assert_array_equal(done.affine, expected.affine)
        np.testing.assert_array_equal(image.numpy(), shape)


# ---- what is refused


@pytest.mark.parametrize(
    ("image", "wish", "error", "words"),
    [
        (np.zeros(SHAPE), {}, InputRefused, "ndarray without an affine"),
        (None, {}, InputRefused, "NoneType without an affine"),
        ("nowhere.nii", {}, InputRefused, "nowhere.nii: got no access"),
        ("nowhere.nii", {"affine": AFFINE}, InputRefused, "leave `affine` out"),
        (np.zeros(SHAPE), {"affine": np.eye(3)}, InputRefused, r"affine of shape \(3, 3\)"),
        (np.zeros(SHAPE), {"affine": np.diag([1, 1, 0, 1])}, InputRefused, "affine with columns"),
        (np.zeros(SHAPE), {"affine": np.diag([1, 1, np.nan, 1])}, InputRefused, "affine with columns"),
        (np.zeros(SHAPE, bool), {"affine": AFFINE}, InputRefused, "bool voxels"),
        (np.zeros(SHAPE, complex), {"affine": AFFINE}, InputRefused, "complex128 voxels"),
        ([[1, 2], [3]], {"affine": AFFINE}, InputRefused, "list, which is no array"),
        (np.ma.zeros(SHAPE), {"affine": AFFINE}, InputRefused, "masked array"),
        (np.zeros(SHAPE), {"affine": AFFINE, "factor": "2"}, PlanRefused, "`factor='2'`"),
        (np.zeros(SHAPE), {"affine": AFFINE, "spacing_mm": [1]}, PlanRefused, "spacing_mm"),
        (np.zeros(SHAPE), {"affine": AFFINE, "threads": 1.5}, PlanRefused, "`threads=1.5`"),
        (np.zeros((4, 5)), {"affine": AFFINE}, InputRefused, r"shape \(4, 5\)"),
        (np.zeros((4, 5, 6, 2, 2)), {"affine": AFFINE}, InputRefused, "need .x, y, z"),
        (np.zeros((4, 5, 0)), {"affine": AFFINE}, InputRefused, r"shape \(4, 5, 0\)"),
        (np.full(SHAPE, np.nan), {"affine": AFFINE}, InputRefused, "no finite voxel"),
        (np.zeros(SHAPE), {"affine": np.eye(4)}, PlanRefused, "isotropic"),
        (np.zeros((5, 5, 1)), {"affine": AFFINE}, PlanRefused, "got 1 slice"),
        (np.zeros(SHAPE), {"affine": AFFINE, "profile": "round", "model": "cubic"}, PlanRefused, "`profile=round`"),
        (np.zeros(SHAPE), {"affine": AFFINE, "grid": "round"}, PlanRefused, "round"),
        (np.zeros(SHAPE), {"affine": AFFINE, "factor": 2, "spacing_mm": 1}, PlanRefused, "leave one out"),
        (np.zeros(SHAPE), {"affine": AFFINE, "factor": 30}, PlanRefused, "factor of 30"),
        (np.zeros(SHAPE), {"affine": AFFINE, "threads": 0}, PlanRefused, "`threads=0`"),
        (np.zeros(SHAPE), {"affine": AFFINE, "model": "magic"}, ModelRefused, "'magic'"),
        (np.zeros(SHAPE), {"affine": AFFINE, "model": Path("no.onnx")}, ModelRefused, "no.onnx"),
        (nibabel.Nifti1Image(np.zeros((4, 5, 6), np.complex64), AFFINE), {}, InputRefused, "complex64 voxels"),
    ],
)
def test_refusals_say_what_was_got_and_needed_and_what_next(image, wish, error, words, capfd):
    with pytest.raises(error, match=words) as refusal:
        thinslice.enhance(image, **wish)
    assert re.search(r"got .*; need .*; next: \S", str(refusal.value)), refusal.value
    assert isinstance(refusal.value, ThinsliceError)
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_scans_is_refused(scan):
    with pytest.raises(InputRefused, match=r"folder without DICOM.*next: name a file"):
        thinslice.enhance(scan.parent)


@catches("io/encoding.py", 'voxels.copy(order="K") if ours else voxels', "voxels")
def test_nothing_is_printed_and_nothing_that_went_in_is_changed(tmp_path, capfd):
    voxels = picture().astype(np.float32)
    voxels[2, 3, 4] = np.nan
    affine, before = AFFINE.copy(), voxels.copy()
    image = nibabel.Nifti1Image(voxels, affine)
    header = image.header.binaryblock
    volume = Volume(voxels, affine)
    for given, wish in ((voxels, {"affine": affine}), (image, {}), (volume, {})):
        done = thinslice.enhance(given, **wish)
        assert any("NaN" in note for note in done.report.notes)
        done.array[...] = 0
        done.affine[...] = 0
        np.testing.assert_array_equal(voxels, before)
        np.testing.assert_array_equal(affine, AFFINE)
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert image.header.binaryblock == header
        assert done.acquired.voxels is not voxels
    assert volume.notes == ()
    fixed = np.nan_to_num(before)
    fixed.flags.writeable = False
    assert thinslice.enhance(fixed, affine=affine).array.dtype == np.float32
    assert capfd.readouterr() == ("", "")


def test_progress_and_how_to_stop(scan):
    shares = []
    thinslice.enhance(scan, model="cubic", progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thinslice.enhance(scan, model="cubic", progress=stop)


# ---- saving


@pytest.mark.parametrize("name", ["thin.mgz", "thin.nrrd", "thin.nii"])
def test_another_format_holds_what_the_command_line_writes_there(scan, tmp_path, name):
    expected = by_command_line(scan, tmp_path / "cli" / name)
    thinslice.enhance(scan).save(str(tmp_path / "api" / name))
    assert unpacked(tmp_path / "api" / name) == unpacked(expected)
    assert facts(tmp_path / "api" / name) == facts(expected)


@catches(
    "pipeline.py",
    'if formats.is_same_format(ending(target) or "", formats.own_ending(self.acquired)):',
    "if ending(target):",
)
def test_a_format_that_rounds_gets_a_report_on_what_it_holds(tmp_path):
    voxels = picture() / 1e3 + 1e7  # whose digits 32 bits do not hold
    done = thinslice.enhance(voxels, affine=AFFINE, model="cubic")
    before = done.array.copy()
    done.save(tmp_path / "thin.mgz")
    done.save(tmp_path / "other.nii.gz")
    np.testing.assert_array_equal(done.array, before)
    np.testing.assert_array_equal(nifti.read(tmp_path / "other.nii.gz").voxels, before)
    assert facts(tmp_path / "other.nii.gz")["consistency"]["rms"] == done.report.consistency.rms
    assert facts(tmp_path / "thin.mgz")["consistency"]["rms"] > 2 * done.report.consistency.rms


def test_nothing_is_replaced_unasked_and_the_input_never(scan, tmp_path):
    (scan.parent / "scan.json").write_text('{"SliceThickness": 4}')
    taken = {path: path.read_bytes() for path in scan.parent.iterdir()}
    for image in (scan, nibabel.load(scan)):
        done = thinslice.enhance(image, model="cubic")
        for name in ("scan.nii.gz", "scan.nii", "scan.nrrd"):  # whose JSON is the scan's
            with pytest.raises(OutputRefused, match="input"):
                done.save(scan.parent / name, overwrite=True)
    assert {path: path.read_bytes() for path in scan.parent.iterdir()} == taken
    (tmp_path / "thin.json").write_text("mine")
    with pytest.raises(OutputRefused, match="exists already"):
        done.save(tmp_path / "thin.nii.gz")
    assert (tmp_path / "thin.json").read_text() == "mine"
    done.save(tmp_path / "thin.nii.gz", overwrite=True)
    assert facts(tmp_path / "thin.nii.gz")["source"] == "scan.nii.gz"
    for name, words in {
        "thin.png": "ends in",
        "in": "add a name",
        "new/": "add a name",
        "thin.nhdr": "ends in",
    }.items():
        with pytest.raises(OutputRefused, match=words):
            done.save(f"{tmp_path}/{name}")


@pytest.mark.parametrize("place", ["thinslice.io.nifti.write", "thinslice.compute.consistency.Report.save"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_scan_and_its_report_or_neither(scan, tmp_path, monkeypatch, place, error):
    done = thinslice.enhance(scan, model="cubic")

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(OutputRefused if isinstance(error, OSError) else KeyboardInterrupt) as refusal:
            done.save(tmp_path / "new" / "thin.nii.gz")
    assert isinstance(error, KeyboardInterrupt) or "thin.nii.gz: got 'No space" in str(refusal.value)
    assert os.listdir(tmp_path) == ["in"]
    done.save(tmp_path / "new" / "thin.nii.gz")
    assert sorted(os.listdir(tmp_path / "new")) == ["thin.json", "thin.nii.gz"]


def test_an_image_for_nibabel(scan, tmp_path):
    header = nibabel.load(scan).header
    done = thinslice.enhance(scan, model="cubic")
    image = done.to_nibabel()
    assert np.asarray(image.dataobj) is done.array
    assert image.get_data_dtype() == np.int16
    assert int(image.header["sform_code"]) == int(header["sform_code"])
    nibabel.save(image, tmp_path / "theirs.nii.gz")
    done.save(tmp_path / "ours.nii.gz")
    theirs, ours = nibabel.load(tmp_path / "theirs.nii.gz"), nibabel.load(tmp_path / "ours.nii.gz")
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    np.testing.assert_array_equal(theirs.affine, ours.affine)
    assert theirs.header["descrip"] == ours.header["descrip"]


def test_an_image_for_nibabel_of_a_file_with_a_rescale(tmp_path):
    for name in ("scaled.nii.gz", "nifti2.nii", "int16.mgz"):
        kinds()[name](tmp_path / name)
        done = thinslice.enhance(tmp_path / name, model="cubic")
        image = done.to_nibabel()
        np.testing.assert_array_equal(image.get_fdata(), done.array)
        nibabel.save(image, tmp_path / "theirs.nii")
        np.testing.assert_array_equal(nibabel.load(tmp_path / "theirs.nii").get_fdata(), done.array)


# ---- models


@pytest.fixture
def opened(monkeypatch):
    """What sessions are made of, from an empty store of models on."""
    monkeypatch.setattr(files, "_kept", files._Kept())
    real, found = files.make_engine, []

    def count(settings):
        found.append(settings.threads_per_call)
        return real(settings)

    monkeypatch.setattr(files, "make_engine", count)
    return found


@catches("models/files.py", "if key not in _kept.models:", "if key:")
def test_a_model_is_loaded_once(scan, opened):
    volume = formats.read(scan)
    expected = thinslice.enhance(volume).array
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: thinslice.enhance(volume).array, range(6)))
    assert len(opened) == 1
    for array in found:
        np.testing.assert_array_equal(array, expected)


def test_a_model_is_loaded_once_even_if_all_ask_at_once(scan, opened):
    volume = formats.read(scan)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: thinslice.enhance(volume), range(4)))
    assert len(opened) == 1


def test_threads_are_shared_by_the_workers(scan, opened):
    first = thinslice.enhance(scan, threads=1).array
    np.testing.assert_array_equal(thinslice.enhance(scan, threads=2 * WORKERS).array, first)
    assert opened == [1, 2]


@catches("api.py", "if scratch is not None else None", "if scratch is None else None")
def test_a_large_answer_lives_where_it_was_told_to(scan, tmp_path, monkeypatch):
    places, real = [], pipeline.allocate
    monkeypatch.setattr(
        pipeline, "allocate", lambda shape, kind, folder: places.append(folder) or real(shape, kind, folder)
    )
    thinslice.enhance(scan, model="cubic")
    thinslice.enhance(scan, model="cubic", scratch=tmp_path / "large")
    assert places == [Path(tempfile.gettempdir()), tmp_path / "large"]


@catches("api.py", "model if threads is None else model.with_threads(threads)", "model")
def test_the_threads_of_a_model_that_is_loaded(scan, monkeypatch):
    asked, real = [], api.enhance_volume
    monkeypatch.setattr(
        api, "enhance_volume", lambda *words, **more: asked.append(words[2].workers) or real(*words, **more)
    )
    model = find_model("cubic")
    for threads in (None, 1, 8):
        thinslice.enhance(scan, model=model, threads=threads)
    assert asked == [2, 1, 2]


def test_a_model_file_that_was_replaced_is_another_model(scan, tmp_path, opened):
    embedded = Path(thinslice.__file__).parent / "models" / "embedded"
    thinslice.enhance(scan, model=shutil.copy(embedded / "planes-mr.depth-x4.onnx", tmp_path / "m.onnx"))
    shutil.copy(embedded / "default.onnx", tmp_path / "m.onnx")
    done = thinslice.enhance(scan, model=tmp_path / "m.onnx")
    assert done.plan.model_sha256 == thinslice.enhance(scan).plan.model_sha256
    assert len(opened) == 3  # the same file under another name is not the same model


def test_only_some_models_are_kept(scan, opened, monkeypatch):
    monkeypatch.setattr(files, "MOST_KEPT", 1)
    for threads in (2, 4, 4, 2):
        thinslice.enhance(scan, threads=threads)
    assert opened == [1, 2, 1]


@catches("models/files.py", "os.register_at_fork(after_in_child=_kept.forked)", "pass")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_loads_its_own(scan):
    """As in a data loader: the threads of the parent's session are not there, nor is the one that holds its lock."""
    code = f"""
import os, signal, thinslice
from thinslice.models import files
first = thinslice.enhance({str(scan)!r}, threads=8).array
with files._kept.lock:
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # it would wait for ever
        assert not files._kept.models
        same = (thinslice.enhance({str(scan)!r}, threads=8).array == first).all()
        os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


# ---- the package


def test_importing_it_is_light():
    code = (
        "import sys, thinslice; dir(thinslice)\n"
        "slow = {'numpy', 'nibabel', 'onnxruntime'} & set(sys.modules); assert not slow, slow\n"
        "thinslice.enhance; slow = {'onnxruntime', 'torch', 'torchio', 'monai'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    assert thinslice.__all__ == [
        "Combined",
        "Enhanced",
        "InputRefused",
        "ModelRefused",
        "OutputRefused",
        "PlanRefused",
        "Settings",
        "ThinsliceError",
        "Volume",
        "combine",
        "enhance",
    ]
    for name in thinslice.__all__:
        assert getattr(thinslice, name).__name__ == name
        assert name in dir(thinslice)
    assert thinslice.enhance is api.enhance
    with pytest.raises(AttributeError, match="no attribute 'enlarger'"):
        _ = thinslice.enlarger
    assert (Path(thinslice.__file__).parent / "py.typed").exists()


SNIPPETS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if DOCS.exists() else []


@pytest.mark.skipif(not SNIPPETS, reason="the documentation is not here")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_examples_of_the_documentation_run(number, scan, monkeypatch, capsys):
    for package in ("torchio", "monai"):
        if package in SNIPPETS[number]:
            pytest.importorskip(package)
    monkeypatch.chdir(scan.parent)
    labels = (np.arange(26 * 22 * 6).reshape(26, 22, 6) % 7 == 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, nibabel.load(scan).affine), "seg.nii.gz")
    found = {}
    exec(SNIPPETS[number], found)
    assert found["done"].array.shape == (26, 22, 18 if "settings" in found else 24)
    if "thin" in found:
        assert found["thin"].shape == (1, 26, 22, 24)
        np.testing.assert_array_equal(np.asarray(found["thin"].affine), found["done"].affine)
        np.testing.assert_array_equal(np.asarray(found["thin"].data)[0], found["done"].array)
    elif "settings" in found:
        names = ("thin.nii.gz", "thin.json", "thin_labels.nii.gz", "thin.html", "thin.png")
        assert all(Path(name).exists() for name in names)
    else:
        assert len(SNIPPETS) == 4
        assert found["image"].shape == (26, 22, 24)
        assert Path("thin.json").exists()
