"""Where one stack lies in another, and whether both show one body in one contrast."""

import sys

import numpy as np
import pytest

from faults import catches
from thinslice.compute.likeness import (
    LEAST_LIKENESS,
    blur_to_spacing,
    measure_likeness,
    normalise_locally,
    resample,
)
from thinslice.compute.registration import register
from thinslice.errors import InputRefused
from thinslice.volume import Volume

SITK = pytest.importorskip("SimpleITK")

UNMOVED = np.eye(4)


def make_body(seed=0, blobs=260):
    """A function from millimetres [3, n] to intensities: smooth blobs in a lump of about 34 mm around 0."""
    random = np.random.default_rng(seed)
    middles = random.uniform(-34, 34, (blobs, 3))
    heights, widths = random.choice([-1.5, 1.5], blobs), random.uniform(2.5, 4.0, blobs)
    waves, phases = random.normal(size=(6, 3)) / 10, random.uniform(0, 6, 6)

    def look_at(points):
        total = np.zeros(points.shape[1])
        for middle, height, width in zip(middles, heights, widths, strict=True):
            total += height * np.exp(-((points - middle[:, None]) ** 2).sum(axis=0) / (2 * width**2))
        edge = 32 + 3 * np.cos(waves @ points + phases[:, None]).sum(axis=0)
        inside = 1 / (1 + np.exp((np.linalg.norm(points, axis=0) - edge) / 1.5))
        return (4 + 2 * np.tanh(total)) * inside

    return look_at


def see(body, affine, shape, motion=UNMOVED, scale=100.0, bias=0.0, noise=0.0):
    """A volume of a body that lies elsewhere than its header, the affine, says."""
    place = motion @ affine
    points = place[:3, :3] @ np.indices(shape).reshape(3, -1) + place[:3, 3:]
    voxels = body(points).reshape(shape)
    slope = np.linspace(1 - bias, 1 + bias, shape[0])[:, None, None]
    random = np.random.default_rng(1).normal(size=shape)
    return Volume((scale * (voxels * slope + noise * random)).astype(np.float32), affine)


def centred(shape, axes, spacing_mm, middle=(0, 0, 0)):
    """An affine whose array axes run along patient axes: ``axes`` holds 1, 2, 3 with their signs."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for array, axis in enumerate(axes):
        affine[abs(axis) - 1, array] = np.sign(axis) * spacing_mm[array]
    affine[:3, 3] = np.asarray(middle) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def turn(degrees, axis, shift_mm=(0, 0, 0)):
    radians = np.radians(degrees)
    first, second = (i for i in range(3) if i != axis)
    motion = np.eye(4)
    motion[first, first] = motion[second, second] = np.cos(radians)
    motion[first, second], motion[second, first] = -np.sin(radians), np.sin(radians)
    motion[:3, 3] = shift_mm
    return motion


def error_mm(motion, true, radius=25.0):
    """The mean distance over a ball around the middle, by its six poles."""
    poles = radius * np.column_stack([np.eye(3), -np.eye(3)])
    apart = (motion - true)[:3, :3] @ poles + (motion - true)[:3, 3:]
    return np.linalg.norm(apart, axis=0).mean()


SHAPE = (44, 44, 44)
FIXED = centred(SHAPE, (1, 2, 3), (1.6, 1.6, 1.6))
SAGITTAL = (48, 40, 22)
TURNED = centred(SAGITTAL, (-2, 3, 1), (1.5, 1.7, 3.0), (3, -2, 1))


@pytest.fixture(scope="module")
def body():
    return make_body()


@pytest.fixture(scope="module")
def fixed(body):
    return see(body, FIXED, SHAPE)


@catches("compute/registration.py", "TO_LPS @ np.linalg.inv(inverse) @ TO_LPS", "TO_LPS @ inverse @ TO_LPS")
@pytest.mark.parametrize(
    "true",
    [
        turn(3, 2, (2.5, 0, 0)),
        turn(-8, 0, (-4, 6, 7)),
        turn(15, 1, (12, -12, 10)),
    ],
    ids=["small", "usual", "large"],
)
def test_the_motion_is_found(body, fixed, true):
    moving = see(body, TURNED, SAGITTAL, true, scale=7.0, bias=0.2, noise=0.05)
    found = register(moving, fixed)
    assert error_mm(found.motion, true) < 0.3
    assert found.is_moved
    assert found.likeness.value > 0.9 > found.stated.value
    assert 0.5 < found.overlap <= 1
    middle = TURNED[:3, :3] @ ((np.asarray(SAGITTAL) - 1) / 2) + TURNED[:3, 3]
    assert found.shift_mm == pytest.approx(np.linalg.norm((true @ [*middle, 1])[:3] - middle), abs=0.3)
    assert found.degrees == pytest.approx(abs(np.degrees(np.arccos((np.trace(true[:3, :3]) - 1) / 2))), abs=0.5)
    assert "moved by" in str(found)


@catches("compute/registration.py", "and is_better\n", "and True\n")
def test_headers_that_are_right_are_kept(body, fixed):
    found = register(see(body, TURNED, SAGITTAL, bias=0.2, noise=0.05), fixed)
    np.testing.assert_array_equal(found.motion, UNMOVED)
    assert (found.shift_mm, found.degrees) == (0, 0)
    assert found.likeness == found.stated
    assert found.likeness.is_same_body
    assert "not moved" in str(found)


def test_the_answer_is_always_the_same(body, fixed):
    moving = see(body, TURNED, SAGITTAL, turn(3, 2, (2.5, 0, 0)), noise=0.05)
    first = register(moving, fixed)
    before = SITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SITK.ProcessObject.SetGlobalDefaultNumberOfThreads(3 if before != 3 else 2)
    try:
        second = register(moving, fixed)
    finally:
        SITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(first.motion, second.motion)
    assert first.likeness == second.likeness


def test_another_body_is_not_moved_and_is_unlike(fixed):
    other = see(make_body(seed=5), TURNED, SAGITTAL)
    found = register(other, fixed)
    assert not found.is_moved
    assert not found.likeness.is_same_body


@catches("compute/registration.py", "found.likeness.is_same_body and ", "")
@catches("compute/likeness.py", "& (tissue > 0.99)", "| True")
def test_another_contrast_is_unlike(body, fixed):
    inverted = see(lambda points: 8 * (body(points) > 1.5) - body(points), TURNED, SAGITTAL)
    found = register(inverted, fixed)
    assert not found.is_moved
    assert found.likeness.value < 0


def test_stacks_of_two_places_are_not_moved(body, fixed):
    far = centred(SAGITTAL, (-2, 3, 1), (1.5, 1.7, 3.0), (300, 0, 0))
    found = register(see(body, far, SAGITTAL), fixed)
    assert not found.is_moved
    assert (found.overlap, found.likeness.value) == (0, 0)


@catches("compute/registration.py", "process.SetGlobalWarningDisplay(False)", "pass")
def test_stacks_that_hardly_meet_are_not_moved_and_nothing_is_printed(body, fixed, capfd):
    beside = centred(SAGITTAL, (-2, 3, 1), (1.5, 1.7, 3.0), (66, 0, 0))
    found = register(see(body, beside, SAGITTAL), fixed)
    assert not found.is_moved
    assert 0 < found.overlap < 0.1
    assert capfd.readouterr() == ("", "")


@catches("compute/likeness.py", "if spread > FLAT * largest else", "if spread > 0 else")
def test_a_flat_volume_is_not_moved(fixed):
    found = register(Volume(np.full(SHAPE, 7.3, np.float32), FIXED), fixed)
    assert not found.is_moved
    assert found.likeness.value == 0


def test_shares_of_the_work_only_grow(body, fixed):
    shares = []
    register(see(body, TURNED, SAGITTAL), fixed, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_what_is_missing_is_named(fixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputRefused) as refusal:
        register(fixed, fixed)
    assert refusal.value.code == "combine-not-installed"
    assert "thinslice[combine]" in refusal.value.next


# Likeness


def test_likeness_does_not_mind_scale_offset_and_bias_field(body, fixed):
    for other in (
        see(body, TURNED, SAGITTAL, scale=0.01),
        see(body, TURNED, SAGITTAL, bias=0.4),
        Volume(see(body, TURNED, SAGITTAL).voxels - 1000, TURNED),
    ):
        assert measure_likeness(other, fixed).value > 0.95


def test_likeness_does_not_depend_on_how_axes_are_stored(body, fixed):
    first = measure_likeness(see(body, TURNED, SAGITTAL, turn(2, 1)), fixed)
    shape = (SAGITTAL[2], SAGITTAL[0], SAGITTAL[1])
    stored = centred(shape, (-1, 2, -3), (3.0, 1.5, 1.7), (3, -2, 1))
    second = measure_likeness(see(body, stored, shape, turn(2, 1)), fixed)
    assert first.value == pytest.approx(second.value, abs=1e-3)
    assert first.overlap == pytest.approx(second.overlap, abs=1e-3)


@catches("compute/likeness.py", "np.linalg.inv(motion @ moving.affine)", "np.linalg.inv(moving.affine)")
def test_likeness_is_largest_in_the_true_place(body, fixed):
    true = turn(4, 2, (0, 3, 0))
    moving = see(body, TURNED, SAGITTAL, true)
    there = measure_likeness(moving, fixed, true).value
    assert there > 0.95
    for beside in (UNMOVED, turn(8, 2, (0, 3, 0)), turn(4, 2, (0, 5, 0))):
        assert measure_likeness(moving, fixed, beside).value < there - 0.02


def test_outlines_do_not_make_two_bodies_one(fixed):
    """Both are balls of the same size: with the air around them they would be alike."""
    assert measure_likeness(see(make_body(seed=9), FIXED, SHAPE), fixed).value < LEAST_LIKENESS - 0.2


@catches("compute/likeness.py", "common.sum() * SPACING_MM**3 < LEAST_COMMON_MM3", "common.sum() == 0")
def test_a_sliver_of_common_tissue_says_nothing(body, fixed):
    affine = centred((6, 6, 6), (1, 2, 3), (1.6, 1.6, 1.6))
    assert measure_likeness(see(body, affine, (6, 6, 6)), fixed).value == 0


@catches("compute/likeness.py", "if not finite.all():", "if finite.all():")
def test_voxels_that_are_no_numbers_do_not_spread(body, fixed):
    holed = see(body, TURNED, SAGITTAL)
    holed.voxels[0, 0, :] = np.nan
    assert measure_likeness(holed, fixed).value > 0.95


def test_a_blurred_volume_stays_in_its_place():
    """The bright voxel's centre of mass, in millimetres."""
    shape = (40, 36, 12)
    affine = centred(shape, (-2, 3, 1), (0.7, 0.8, 3.0), (5, 6, 7))
    voxels = np.zeros(shape, np.float32)
    voxels[18, 20, 6] = 1
    blurred = blur_to_spacing(Volume(voxels, affine), 1.5, 2.0)
    weights = np.clip(blurred.voxels - np.median(blurred.voxels), 0.05 * blurred.voxels.max(), None)
    weights = (weights - weights.min()).ravel()
    points = blurred.affine[:3, :3] @ np.indices(blurred.shape).reshape(3, -1) + blurred.affine[:3, 3:]
    np.testing.assert_allclose(points @ weights / weights.sum(), (affine @ [18, 20, 6, 1])[:3], atol=0.15)


def test_straight_lines_stay_straight_when_resampled():
    ramp = np.indices((5, 6, 7)).astype(np.float32)
    to_index = np.diag([0.5, 0.5, 0.5, 1.0])
    to_index[:3, 3] = 0.25
    for axis in range(3):
        seen, inside = resample(ramp[axis], to_index, (12, 12, 12))
        where = np.indices((12, 12, 12))[axis] * 0.5 + 0.25
        np.testing.assert_allclose(seen[inside], where[inside], atol=1e-5)
    assert inside.sum() == 8 * 10 * 12


def test_what_is_not_counted_does_not_change_what_is():
    random = np.random.default_rng(0)
    voxels = random.normal(size=(20, 20, 20)).astype(np.float32)
    counted = np.zeros(voxels.shape, bool)
    counted[4:15, 4:15, 4:15] = True
    bright = np.where(counted, voxels, np.float32(50))
    one, other = (normalise_locally(each, 3.0, counted) for each in (voxels, bright))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert not one[~counted].any()
