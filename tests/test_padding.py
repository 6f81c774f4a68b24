"""Padding: what the scanner did not see comes out as it went in, and nothing of it leaks into what was seen."""

import numpy as np
import pydicom
import pytest

import thinslice
from dicom_files import PLAIN, stack
from faults import catches
from thinslice.models.hounsfield import find_padding
from thinslice.physics.padding import fill_padding
from thinslice.volume import Volume

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])
SIZE, SLICES = 48, 10


def head(seed=0):
    """[x, y, z] Hounsfield units: air with noise, and a head that narrows from slice to slice."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (SIZE, SIZE, SLICES)), indexing="ij")
    radius = np.hypot(x, y) / (0.8 - 0.15 * z)
    values = np.where(radius < 0.9, 40.0, -1000.0) + 60 * (radius < 0.5) - 130 * ((radius > 0.8) & (radius < 0.9))
    values = values + np.random.default_rng(seed).normal(0, 8, values.shape)
    return np.rint(np.clip(values, -1023, None)).astype(np.int16)


def outside():
    """[x, y] what lies beyond a round field of view."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    return np.hypot(x, y) > 0.98


def padded(value, scan=None):
    scan = head() if scan is None else scan
    return np.where(outside()[..., None], value, scan).astype(scan.dtype)


@pytest.mark.parametrize("model", ["default", "cubic", "planes-ct", "planes-mr", "linear"])
@pytest.mark.parametrize("value", [-1024, -2000, -3024, -32768])
@catches("plan.py", "seen = replace(volume, voxels=fill_padding(volume.voxels, padding))", "seen = volume")
@catches("models/hounsfield.py", "if below_air is not None and (of_ct", "if below_air is not None and False and (of_ct")
def test_padding_of_any_model_comes_out_as_it_went_in(model, value):
    done = thinslice.enhance(padded(value), affine=AFFINE, model=model, factor=4)
    plain = thinslice.enhance(
        fill_padding(padded(value), value), affine=AFFINE, model=model, factor=4, interleaving=True
    )
    assert done.plan.padding == value
    assert (done.array[outside()] == value).all()
    # Inside it is as if the padding had been air: not a unit of it leaks over the rim, and nothing saw it before.
    np.testing.assert_array_equal(done.array[~outside()], plain.array[~outside()])
    changed = {"padding", "notes"}
    one, other = (
        {name: item for name, item in vars(found.plan).items() if name not in changed} for found in (done, plain)
    )
    one["slice_noise"] = other["slice_noise"] = None  # of fewer pixels
    one["noise"] = other["noise"] = None
    assert one == other
    assert sum(f"voxels of {value} are padding" in note for note in done.report.notes) == 1
    assert done.report.consistency.worst_percent < 5


def test_padding_that_shifts_from_slice_to_slice_goes_to_the_nearest():
    """As of a scan that was resampled: below air it is padding wherever it lies."""
    scan = head()
    for index in range(SLICES):
        scan[: 4 + index, :, index] = -2000
    done = thinslice.enhance(scan, affine=AFFINE, model="cubic", factor=5)
    for index in range(done.array.shape[2]):
        np.testing.assert_array_equal(done.array[..., index] == -2000, scan[..., index // 5] == -2000)
    assert done.array[done.array != -2000].min() > -1200


@pytest.mark.parametrize(
    "scan",
    [
        pytest.param(np.maximum(head() + 1024, 0).astype(np.uint16), id="without a rescale"),
        pytest.param(np.where(head() > -500, head() + 1100, 0).astype(np.int16), id="MR, nothing outside a mask"),
        pytest.param(padded(0, np.abs(head() + 1000).astype(np.int16)), id="MR, 0 outside a circle"),
        pytest.param(np.clip(head(), -1000, None), id="CT, air cut off at -1000"),
        pytest.param(np.where(head() < -900, -1024, head()).astype(np.int16), id="CT, all air is -1024"),
        pytest.param((head() - 1020).astype(np.int16), id="MR, values below zero"),
        pytest.param(np.float32(head()) * 3, id="phase image"),
        pytest.param(np.full((SIZE, SIZE, SLICES), -1024, np.int16), id="nothing else"),
        pytest.param(np.full((SIZE, SIZE, SLICES), np.nan, np.float32), id="nothing at all"),
    ],
)
def test_what_is_no_padding(scan):
    assert find_padding(Volume(scan, AFFINE)) is None


def test_a_stated_value_is_padding_where_it_fills_the_same_pixels():
    """Of an MR scan that a scanner corrected for its gradients, and no more than the circle."""
    scan = padded(0, np.abs(head() + 1000).astype(np.int16) + 1)
    assert find_padding(Volume(scan, AFFINE, padding=0.0)) == 0
    assert find_padding(Volume(scan, AFFINE, padding=7.0)) is None
    noise = np.random.default_rng(0).integers(0, 3, scan.shape).astype(np.int16)
    assert find_padding(Volume(noise, AFFINE, padding=0.0)) is None
    assert find_padding(Volume(scan[..., None].repeat(2, axis=3), AFFINE, padding=0.0)) == 0


# ---- DICOM


def save_ct(folder, hounsfield, padding, limit=None, signed=True, intercept=-1024, syntax="explicit", **more):
    """A CT series of [x, y, z] Hounsfield units."""
    stored = np.moveaxis(hounsfield.astype(int) - intercept, (0, 1, 2), (2, 1, 0))
    kind = "SS" if signed else "US"

    def change(image, index):
        for name, value in (("PixelPaddingValue", padding), ("PixelPaddingRangeLimit", limit)):
            if value is not None:
                # Written down the other way, as many do, where it does not fit.
                wrong = not (-(2**15) <= value < 2**15 if signed else 0 <= value < 2**16)
                image.add_new(name, {"SS": "US", "US": "SS"}[kind] if wrong else kind, value)

    stack(
        folder, modality="CT", values=stored, bits=16, signed=signed, step_mm=5.0, thickness_mm=5.0,
        spacing=(1.0, 1.0), RescaleIntercept=intercept, change=change, syntax=PLAIN[syntax], **more,
    )  # fmt: skip
    return folder


def read_back(folder):
    images = [pydicom.dcmread(file) for file in folder.glob("IM*.dcm")]
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    return images, np.stack([image.pixel_array.astype(int).T for image in images], axis=-1)


@pytest.mark.parametrize(
    ("signed", "intercept", "stated"),
    [(True, -1024, -2000 + 1024), (True, 0, -2000), (True, 0, 65536 - 2000), (True, -1024, 65536 - 976)],
)
@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_the_padding_of_a_series_is_kept(tmp_path, signed, intercept, stated, syntax):
    scan = padded(-2000)
    save_ct(tmp_path / "in", scan, stated, signed=signed, intercept=intercept, syntax=syntax)
    thinslice.enhance(tmp_path / "in", model="cubic", factor=4).save(tmp_path / "out")
    images, stored = read_back(tmp_path / "out")
    assert {image.PixelPaddingValue for image in images} == {-2000 - intercept}
    assert {image["PixelPaddingValue"].VR for image in images} == {"SS"}
    found = stored == -2000 - intercept
    np.testing.assert_array_equal(found.all(axis=2), outside())
    np.testing.assert_array_equal(found.any(axis=2), outside())


def test_an_unsigned_value_above_all_others_is_padding_too(tmp_path):
    """-2000 in 16 bits without a sign, as it is stored by mistake: 63536."""
    scan = np.where(outside()[..., None], 63536 - 1024, head().astype(int))
    save_ct(tmp_path / "in", scan, -2000, signed=False)
    done = thinslice.enhance(tmp_path / "in", model="cubic", factor=4)
    assert done.plan.padding == 63536 - 1024
    assert done.array[~outside()].max() < 500
    done.save(tmp_path / "out")
    images, stored = read_back(tmp_path / "out")
    # The answer goes a little below what the acquired slices' rescale holds, and has one of its own.
    assert images[0]["PixelPaddingValue"].VR == "US"
    np.testing.assert_array_equal((stored == images[0].PixelPaddingValue).all(axis=2), outside())


@pytest.mark.parametrize(("value", "limit"), [(-3024, -2000), (-2000, -3024)])
@catches("io/dicom/pixels.py", "= first\n", "= within.min()\n")
def test_a_range_of_padding_becomes_its_value(tmp_path, value, limit):
    scan = padded(-2000)
    scan[: SIZE // 2][outside()[: SIZE // 2]] = -3024
    save_ct(tmp_path / "in", scan, value, limit, intercept=0)
    done = thinslice.enhance(tmp_path / "in", model="cubic", factor=4)
    assert done.plan.padding == value
    done.save(tmp_path / "out")
    images, stored = read_back(tmp_path / "out")
    assert {image.PixelPaddingValue for image in images} == {value}
    assert not any("PixelPaddingRangeLimit" in image for image in images)
    np.testing.assert_array_equal((stored == value).all(axis=2), outside())
    assert stored[~outside()].min() > -1200


def test_padding_that_no_header_states_is_stated_by_the_answer(tmp_path):
    save_ct(tmp_path / "in", padded(-3024), None, intercept=0)
    thinslice.enhance(tmp_path / "in", model="cubic", factor=4).save(tmp_path / "out")
    assert {image.PixelPaddingValue for image in read_back(tmp_path / "out")[0]} == {-3024}
    save_ct(tmp_path / "plain", head(), None, intercept=0, series=2)
    thinslice.enhance(tmp_path / "plain", model="cubic", factor=4).save(tmp_path / "thin")
    assert not any("PixelPaddingValue" in image for image in read_back(tmp_path / "thin")[0])


def test_what_was_made_thick_again_has_its_padding(tmp_path):
    """By the report beside the answer."""
    from thinslice.cli import main

    save_ct(tmp_path / "in", padded(-2000), -2000, intercept=0)
    thinslice.enhance(tmp_path / "in", model="cubic", factor=4).save(tmp_path / "thin.nii.gz")
    words = ["reslice", "-i", tmp_path / "thin.nii.gz", "--like", tmp_path / "in", "-o", tmp_path / "thick.nii.gz"]
    assert main([str(word) for word in words]) == 0
    again = thinslice.io.formats.read(tmp_path / "thick.nii.gz").voxels
    np.testing.assert_array_equal((again == -2000).all(axis=2)[:, ::-1], outside())
