"""Laws of the operator by which a stack in any position sees a volume, against integrals that are not ours."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from faults import catches
from strategies import axes, profiles, seeds
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.interpolation import cardinal_spline, cubic_matrix
from thinslice.physics.stack_acquisition import StackAcquisition

SHAPE = (15, 18, 21)
"""The volume that stacks see, in voxels of 1 mm."""


def turned(degrees, shift_mm=(0.0, 0.0, 0.0)):
    """A motion: a rotation by a vector of degrees, then a shift."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees)).as_matrix()
    motion[:3, 3] = shift_mm
    return motion


def placed(shape, affine, spacing, stack_shape, motion):
    """The affine of a stack of which the middle lies in that of a volume, and is then moved about it."""
    middle = (affine @ [*(np.array(shape) - 1) / 2, 1])[:3]
    stack = np.diag([*spacing, 1.0])
    stack[:3, 3] = -stack[:3, :3] @ (np.array(stack_shape) - 1) / 2
    there = np.eye(4)
    there[:3, 3] = middle
    return there @ motion @ stack


@st.composite
def stacks(draw, most_degrees=60.0, shape=SHAPE, most_shift_mm=4.0):
    """A stack at any angle, of any spacing, perhaps partly beside the volume, which may be turned itself."""
    axis = draw(axes)
    rng = np.random.default_rng(draw(seeds))
    spacing = rng.uniform(0.7, 2.2, 3)
    spacing[axis] = draw(st.floats(2.0, 6.0))
    stack_shape = tuple(int(n) for n in rng.integers(4, 16, 3))
    degrees = rng.standard_normal(3)
    degrees *= draw(st.sampled_from([0.0, 2.0, most_degrees])) / np.linalg.norm(degrees)
    affine = turned(rng.uniform(-90, 90, 3), rng.uniform(-50, 50, 3))
    if draw(st.booleans()):
        affine = np.diag([1.0, 1.0, 1.0, 1.0])[[*rng.permutation(3), 3]]
    there = placed(shape, affine, spacing, stack_shape, turned(degrees, rng.uniform(-1, 1, 3) * most_shift_mm))
    return StackAcquisition(shape, affine, stack_shape, there, axis, float(spacing[axis]), draw(profiles))


@catches(
    "physics/stack_acquisition.py",
    "self._stack_axes) * self._inverse_inside.astype(",
    "self._stack_axes) * np.ones_like(self._inverse_inside).astype(",
)
@catches("physics/line_passes.py", "inside[:, 0] += padded[:, :before].sum(axis=1)", "inside[:, 0] += 0")
@settings(max_examples=60)
@given(acquisition=stacks(), seed=seeds)
def test_the_adjoint_is_the_adjoint_at_any_angle(acquisition, seed):
    rng = np.random.default_rng(seed)
    volume, stack = rng.standard_normal(acquisition.shape), rng.standard_normal(acquisition.stack_shape)
    forward, adjoint = acquisition.forward(volume), acquisition.adjoint(stack)
    assert (forward.shape, adjoint.shape) == (stack.shape, volume.shape)
    # Weights are the same float32 numbers both ways; the sums, of some 10,000 products of order one, are float64.
    assert np.vdot(forward, stack) == pytest.approx(np.vdot(volume, adjoint), abs=1e-8)


@catches("physics/line_passes.py", "carried[:, source] += ", "carried[:, source] = ")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_adjoint_is_the_adjoint_of_long_lines(axis):
    """They are computed in several blocks, which see some of the same voxels."""
    shape, stack_shape = [9, 9, 9], [8, 8, 8]
    shape[axis], stack_shape[axis] = 200, 150
    there = placed(shape, np.eye(4), (1.1, 1.2, 1.3), stack_shape, turned((5.0, -4.0, 3.0)))
    acquisition = StackAcquisition(tuple(shape), np.eye(4), tuple(stack_shape), there, axis, 2.0, "gaussian")
    rng = np.random.default_rng(axis)
    volume, stack = rng.standard_normal(shape), rng.standard_normal(stack_shape)
    left, right = np.vdot(acquisition.forward(volume), stack), np.vdot(volume, acquisition.adjoint(stack))
    assert left == pytest.approx(right, abs=1e-8)


@catches("physics/line_passes.py", "if self.is_extended:\n            padded", "if False:\n            padded")
@given(acquisition=stacks(), value=st.floats(-1000, 1000))
def test_a_flat_volume_is_seen_flat(acquisition, value):
    seen = acquisition.forward(np.full(acquisition.shape, value))
    # The weights are float32 numbers, some hundred of which sum to one in three passes.
    np.testing.assert_allclose(seen[acquisition.coverage > 0.01], value, rtol=1e-4, atol=1e-9)


@catches(
    "physics/stack_acquisition.py",
    "self._spacing_mm(self.axis) * step_vox",
    "self._spacing_mm(self.axis) * step_vox * 1.01",
)
@catches("physics/stack_acquisition.py", "* self._inverse_inside.astype(volume.dtype, copy=False)", "* 1")
@given(
    axis=axes,
    order=st.permutations(range(3)),
    profile=profiles,
    first=st.floats(-0.4, 2.0),
    ratio=st.floats(0.7, 1.3),
    seed=seeds,
)
def test_parallel_slices_are_those_of_the_simpler_operator(axis, order, profile, first, ratio, seed):
    """Whatever the axes of the volume are called."""
    volume = np.random.default_rng(seed).standard_normal(SHAPE)
    factor, spacing = 4.0, [0.8, 1.1, 0.9]
    n_thick = SHAPE[axis] // 4
    simple = Acquisition(first + factor * np.arange(n_thick), SHAPE[axis], ratio * factor, profile, axis)
    affine = np.diag([*spacing, 1.0])
    stack_affine = affine.copy()
    stack_affine[axis, axis] *= factor
    stack_affine[axis, 3] = first * spacing[axis]
    # The axes of the volume in another order, and one of them the other way round.
    mixed = affine[:, [*order, 3]].copy()
    count = SHAPE[order[0]]
    mixed[:, 3] += (count - 1) * mixed[:, 0]
    mixed[:, 0] *= -1
    shape = tuple(SHAPE[axis] for axis in order)
    stack_shape = tuple(n_thick if one == axis else n for one, n in enumerate(SHAPE))
    thickness_mm = ratio * factor * spacing[axis]
    acquisition = StackAcquisition(shape, mixed, stack_shape, stack_affine, axis, thickness_mm, profile)
    np.testing.assert_allclose(acquisition.forward(volume.transpose(order)[::-1]), simple.forward(volume), atol=1e-9)


def acquired_finely(volume, acquisition):
    """The stack by interpolation of order 5, at many places across each slice."""
    between = np.linalg.solve(acquisition.affine, acquisition.stack_affine)
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in acquisition.stack_shape], indexing="ij"))
    spacing = np.linalg.norm(acquisition.stack_affine[:3, acquisition.axis])
    fwhm = acquisition.thickness_mm / spacing
    if acquisition.profile == "gaussian":
        places = np.linspace(-2, 2, 65) * fwhm
        weights = np.exp(-4 * np.log(2) * (places / fwhm) ** 2)
    else:
        places = (np.arange(64) + 0.5) / 64 * fwhm - fwhm / 2
        weights = np.ones(64)
    coefficients = ndimage.spline_filter(volume, order=5, mode="nearest")
    stack = np.zeros(acquisition.stack_shape)
    for place, weight in zip(places, weights / weights.sum(), strict=True):
        moved = index.copy()
        moved[acquisition.axis] += place
        at = np.einsum("ij,j...->i...", between[:3, :3], moved) + between[:3, 3, None, None, None]
        stack += weight * ndimage.map_coordinates(coefficients, at, order=5, mode="nearest", prefilter=False)
    return stack


@catches("physics/stack_acquisition.py", "matrix[1, 1] - turn * matrix[2, 1]", "matrix[1, 1]")
@catches("physics/stack_acquisition.py", "offset[1] - turn * offset[2]", "offset[1]")
@catches("physics/line_passes.py", "+ fraction / FRACTIONS - self._lowest", "- self._lowest")
@pytest.mark.parametrize("profile", ["gaussian", "box"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [(0.0, 0.0, 0.0), (3.0, -2.0, 4.0), (20.0, 15.0, -25.0)])
def test_slices_at_any_angle_are_those_of_fine_integration(degrees, axis, profile):
    shape = (40, 44, 42)
    volume = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(shape), 1.6)
    spacing, stack_shape = [1.0, 1.0, 1.0], [20, 20, 20]
    spacing[axis], stack_shape[axis] = 4.0, 5
    there = placed(shape, np.eye(4), spacing, stack_shape, turned(degrees, (0.3, -0.2, 0.6)))
    acquisition = StackAcquisition(shape, np.eye(4), tuple(stack_shape), there, axis, 4.0, profile)
    seen, wanted = acquisition.forward(volume), acquired_finely(volume, acquisition)
    whole = acquisition.coverage > 0.999
    assert whole.mean() > 0.9
    # The box is averaged over whole voxels, which makes it a little wider, and positions are up to 1/64 voxel off.
    assert np.sqrt(np.mean((seen - wanted)[whole] ** 2)) < (0.03 if profile == "box" else 0.012) * wanted.std()


@catches("physics/stack_acquisition.py", "max(scale**2 - 1, 0.0)", "0.0")
def test_large_pixels_see_the_mean_of_what_they_cover():
    """In pixels of 3 mm fine stripes are gone; only interpolated, they would come back as coarse ones."""
    stripes = np.cos(2 * np.pi * np.arange(60) / 2.6)[:, None, None] * np.ones((60, 8, 8))
    there = np.diag([3.0, 1.0, 4.0, 1.0])
    acquisition = StackAcquisition((60, 8, 8), np.eye(4), (20, 8, 2), there, 2, 4.0, "box")
    assert np.abs(acquisition.forward(stripes)[3:-3]).max() < 0.15


@catches("physics/stack_acquisition.py", "offset[0] - along_0 * offset[1]", "offset[0] + along_0 * offset[1]")
@given(seed=seeds, axis=axes)
def test_a_bright_ball_keeps_its_centre_of_mass_in_millimetres(seed, axis):
    rng = np.random.default_rng(seed)
    shape, place = (48, 48, 48), rng.uniform(20, 27, 3)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    ball = 1 / (1 + np.exp(2 * (np.linalg.norm(at - place, axis=-1) - 6)))
    affine = turned(rng.uniform(-90, 90, 3), rng.uniform(-50, 50, 3))
    spacing, stack_shape = [1.2, 0.9, 1.1], [34, 42, 36]
    spacing[axis], stack_shape[axis] = 3.0, 14
    there = placed(shape, affine, spacing, stack_shape, turned(rng.uniform(-20, 20, 3)))
    acquisition = StackAcquisition(shape, affine, tuple(stack_shape), there, axis, 3.0, "gaussian")
    seen = acquisition.forward(ball)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in stack_shape], indexing="ij"), axis=-1)
    centre = (index * seen[..., None]).sum(axis=(0, 1, 2)) / seen.sum()
    # Positions are rounded to 1/32 voxel, by turns up and down; slices of 3 mm sample a ball of 12 mm.
    np.testing.assert_allclose((there @ [*centre, 1])[:3], (affine @ [*place, 1])[:3], atol=0.02)


@catches("physics/line_passes.py", "weights / np.where(total > 0, total, 1.0)", "weights")
@catches(
    "physics/stack_acquisition.py",
    "if find_inside(*(np.array([0, count - 1])",
    "if True or find_inside(*(np.array([0, count - 1])",
)
def test_coverage_says_what_lies_inside():
    there = np.diag([1.0, 1.0, 4.0, 1.0])
    there[:3, 3] = [-3.0, 0.0, -2.5]
    acquisition = StackAcquisition((10, 10, 10), np.eye(4), (10, 10, 4), there, 2, 4.0, "box")
    coverage = acquisition.coverage
    # Slices of 4 mm centred at -2.5, 1.5, 5.5 and 9.5; the volume reaches from -0.5 to 9.5.
    np.testing.assert_allclose(coverage[5, 5], [0.0, 1.0, 1.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(coverage[:, 5, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1], atol=1e-6)
    beside = np.copy(there)
    beside[0, 3] = 400.0
    far = StackAcquisition((10, 10, 10), np.eye(4), (10, 10, 4), turned((2, 3, 4)) @ beside, 2, 4.0, "box")
    assert far.coverage.max() == 0
    assert np.isfinite(far.forward(np.ones((10, 10, 10)))).all()


@given(axis=axes, order=st.permutations(range(3)), seed=seeds)
def test_axes_are_only_names(axis, order, seed):
    """Of a turned stack and its volume: what is seen differs by the rounding of positions and the order of passes."""
    rng = np.random.default_rng(seed)
    shape, stack_shape, spacing = (30, 32, 34), [16, 15, 14], [1.0, 1.1, 0.9]
    spacing[axis], stack_shape[axis] = 4.0, 4
    volume = ndimage.gaussian_filter(rng.standard_normal(shape), 2.0)
    there = placed(shape, np.eye(4), spacing, stack_shape, turned(rng.uniform(-6, 6, 3)))
    acquisition = StackAcquisition(shape, np.eye(4), tuple(stack_shape), there, axis, 4.0, "gaussian")
    columns = [*order, 3]
    mixed = StackAcquisition(
        tuple(shape[one] for one in order),
        np.eye(4)[:, columns],
        tuple(stack_shape[one] for one in order),
        there[:, columns],
        order.index(axis),
        4.0,
        "gaussian",
    )
    seen = acquisition.forward(volume)
    again = mixed.forward(volume.transpose(order))
    inside = acquisition.coverage > 0.999
    assert np.abs(again - seen.transpose(order))[inside.transpose(order)].max() < 0.05 * volume.std()


@given(n=st.integers(20, 30), seed=seeds)
def test_the_cardinal_spline_is_cubic_interpolation(n, seed):
    values = np.random.default_rng(seed).random(n)
    position = np.random.default_rng(seed).uniform(9, n - 10, 7)
    weights = cardinal_spline(position[:, None] - np.arange(n))
    # What is cut off at `CARDINAL_REACH`, and what the mirrors at the ends add, is below 1e-4 of the values.
    np.testing.assert_allclose(weights @ values, cubic_matrix(position, n) @ values, atol=1e-4)


def test_whole_numbers_are_computed_in_float32():
    acquisition = StackAcquisition((4, 4, 8), np.eye(4), (4, 4, 2), np.diag([1.0, 1.0, 4.0, 1.0]), 2, 4.0, "box")
    assert acquisition.forward(np.ones((4, 4, 8), np.int16)).dtype == np.float32
    assert acquisition.adjoint(np.ones((4, 4, 2), np.int16)).dtype == np.float32


def test_a_large_stack_needs_little_memory():
    """A sparse matrix of this stack would hold two million rows of a hundred weights, 2 GB."""
    shape = (128, 128, 96)
    there = placed(shape, np.eye(4), (1.0, 1.0, 5.0), (128, 128, 19), turned((3.0, -2.0, 2.0)))
    acquisition = StackAcquisition(shape, np.eye(4), (128, 128, 19), there, 2, 5.0, "gaussian")
    volume = np.ones(shape, np.float32)
    tracemalloc.start()
    acquisition.adjoint(acquisition.forward(volume))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * volume.nbytes + 70e6
