"""Laws of a stack whose slices moved by themselves: each is seen as it would be alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage

from faults import catches
from strategies import seeds
from test_stack_acquisition import SHAPE, placed, stacks, turned
from thinslice.physics.split_acquisition import SplitAcquisition
from thinslice.physics.stack_acquisition import StackAcquisition


def motions_of(count, seed):
    """Every second slice has moved, and one of the others by itself."""
    rng = np.random.default_rng(seed)
    motions = np.tile(np.eye(4), (count, 1, 1))
    motions[1::2] = turned(rng.uniform(-3, 3, 3), rng.uniform(-1, 1, 3))
    motions[2] = turned(rng.uniform(-3, 3, 3), rng.uniform(-1, 1, 3))
    return motions


@catches("physics/split_acquisition.py", "part.add_adjoint(stack[self._within(chosen)], volume)", "pass")
@catches(
    "physics/stack_acquisition.py",
    "[:, :, self._reached] += self._carry_back",
    "[:, :, self._reached] = self._carry_back",
)
@settings(max_examples=30)
@given(whole=stacks(), seed=seeds)
def test_the_adjoint_is_the_adjoint(whole, seed):
    split = SplitAcquisition(whole, motions_of(whole.stack_shape[whole.axis], seed))
    rng = np.random.default_rng(seed)
    volume, stack = rng.standard_normal(split.shape), rng.standard_normal(split.stack_shape)
    assert np.vdot(split.forward(volume), stack) == pytest.approx(np.vdot(volume, split.adjoint(stack)), abs=1e-8)


@catches("physics/stack_acquisition.py", "affine[:3, 3] += chosen.start * affine[:3, self.axis]", "pass")
@catches("physics/stack_acquisition.py", "affine[:3, self.axis] *= chosen.step", "pass")
@catches("physics/stack_acquisition.py", "reach = self._across(abs(matrix[2, 2]))[1] + 2", "reach = 0")
@settings(max_examples=30)
@given(whole=stacks(), seed=seeds)
def test_slices_that_stay_see_what_they_saw(whole, seed):
    count = whole.stack_shape[whole.axis]
    motions = np.tile(np.eye(4), (count, 1, 1))
    # Rounding alone makes packages of them.
    motions[1::2, 0, 3] = 1e-9
    split = SplitAcquisition(whole, motions)
    assert len(split.parts) == 2
    # Positions are rounded to 1/32 voxel, and rounding may tip them either way.
    volume = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(whole.shape), 1.5)
    # Of what hardly reaches into the volume, next to nothing is told from nothing.
    inside = whole.coverage > 0.1
    np.testing.assert_allclose(split.forward(volume)[inside], whole.forward(volume)[inside], atol=0.03)
    np.testing.assert_allclose(split.coverage, whole.coverage, atol=0.05)
    np.testing.assert_allclose(split.places_mm(), whole.places_mm(), atol=1e-6)


@catches(
    "physics/split_acquisition.py",
    "self.whole.take_slices(one, self.motions[one.start])",
    "self.whole.take_slices(one)",
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_that_moved_see_what_a_stack_there_would_see(axis):
    spacing = [1.0, 1.1, 1.2]
    spacing[axis] = 3.0
    there = placed(SHAPE, np.eye(4), spacing, (6, 6, 6), turned((2.0, 3.0, -2.0)))
    whole = StackAcquisition(SHAPE, np.eye(4), (6, 6, 6), there, axis, 3.0, "gaussian")
    motions = motions_of(6, axis)
    split = SplitAcquisition(whole, motions)
    # Positions are rounded to 1/32 voxel, which a smooth volume hardly shows.
    volume = ndimage.gaussian_filter(np.random.default_rng(axis).standard_normal(SHAPE), 1.5)
    for number in range(6):
        alone = whole.moved(motions[number]).forward(volume)
        np.testing.assert_allclose(
            split.forward(volume).take(number, axis), alone.take(number, axis), atol=0.01, err_msg=str(number)
        )
        places = (motions[number] @ there)[:3] @ [*np.where(np.arange(3) == axis, number, 2), 1]
        np.testing.assert_allclose(split.places_mm()[(slice(None), *np.where(np.arange(3) == axis, number, 2))], places)


def test_a_stack_that_moves_once_more_takes_its_slices_along():
    there = placed(SHAPE, np.eye(4), (1.0, 1.0, 3.0), (6, 6, 6), turned((2.0, 3.0, -2.0)))
    whole = StackAcquisition(SHAPE, np.eye(4), (6, 6, 6), there, 2, 3.0, "gaussian")
    split = SplitAcquisition(whole, motions_of(6, 0))
    motion = turned((0.0, 5.0, 1.0), (1.0, 2.0, 0.5))
    carried = motion[:3, :3] @ split.places_mm().reshape(3, -1) + motion[:3, 3:]
    np.testing.assert_allclose(split.moved(motion).places_mm().reshape(3, -1), carried, atol=1e-9)
