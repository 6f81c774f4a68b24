"""Laws of the acquisition operator: of slices at any places, along any axis, and of several stacks of one volume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import acquisitions, axes, profiles, seeds
from thinslice.physics.acquisition import Acquisition, StackedAcquisition

SHAPE = (9, 7, 8)
"""Of the thin volume that is seen along each of its axes."""


@given(acquisition=acquisitions(), axis=axes, seed=seeds)
def test_the_adjoint_is_the_adjoint_along_every_axis(acquisition, axis, seed):
    acquisition = Acquisition(
        acquisition.centres_vox, acquisition.n_thin, acquisition.fwhm_vox, acquisition.profile, axis
    )
    rng = np.random.default_rng(seed)
    shapes = [[3, 4], [3, 4]]
    shapes[0].insert(axis, acquisition.n_thin)
    shapes[1].insert(axis, acquisition.n_thick)
    thin, thick = (rng.standard_normal(shape) for shape in shapes)
    forward, adjoint = acquisition.forward(thin), acquisition.adjoint(thick)
    assert (forward.shape, adjoint.shape) == (thick.shape, thin.shape)
    # Both sides are sums of at most 6,000 float64 products of order one.
    assert np.vdot(forward, thick) == pytest.approx(np.vdot(thin, adjoint), abs=1e-10)


@given(
    acquired=st.tuples(*(acquisitions((size, size), axis) for axis, size in enumerate(SHAPE))),
    order=st.permutations(range(3)),
    count=st.integers(1, 3),
    seed=seeds,
)
def test_the_adjoint_of_several_stacks_is_the_adjoint(acquired, order, count, seed):
    stacked = StackedAcquisition(tuple(acquired[axis] for axis in order[:count]))
    rng = np.random.default_rng(seed)
    thin = rng.standard_normal(SHAPE)
    seen = stacked.forward(thin)
    thick = tuple(rng.standard_normal(one.shape) for one in seen)
    for part, one in zip(stacked.parts, seen, strict=True):
        np.testing.assert_array_equal(one, part.forward(thin))
    left = sum(np.vdot(one, other) for one, other in zip(seen, thick, strict=True))
    assert left == pytest.approx(np.vdot(thin, stacked.adjoint(thick)), abs=1e-10)


def test_several_stacks_need_as_many_thick_arrays():
    part = Acquisition(np.array([0.5]), 2, 2.0, "box")
    with pytest.raises(ValueError, match="argument"):
        StackedAcquisition((part, part)).adjoint((np.ones((1, 2)),))


@given(acquisition=acquisitions(), data=st.data())
def test_rows_of_a_window_are_those_of_the_whole_matrix(acquisition, data):
    start = data.draw(st.integers(0, acquisition.n_thick - 1))
    stop = data.draw(st.integers(start + 1, acquisition.n_thick))
    seen, rows = acquisition.rows(start, stop)
    whole = acquisition.matrix()[start:stop]
    # Where a window begins is subtracted from the centres first, which rounds otherwise: by 1e-15 of 40 voxels.
    np.testing.assert_allclose(rows, whole[:, seen], atol=1e-12)
    assert np.delete(whole, np.arange(acquisition.n_thin)[seen], axis=1).sum() == 0
    assert seen == acquisition.seen_by(start, stop)


@given(acquisition=acquisitions())
def test_every_row_sums_to_one_and_has_no_negative_weight(acquisition):
    matrix = acquisition.matrix()
    assert matrix.shape == (acquisition.n_thick, acquisition.n_thin)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    assert (matrix >= 0).all()


@given(acquisition=acquisitions(), value=st.floats(-1000, 1000))
def test_a_flat_volume_is_seen_flat(acquisition, value):
    thick = acquisition.forward(np.full((acquisition.n_thin, 2, 3), value))
    np.testing.assert_allclose(thick, value, rtol=1e-12, atol=1e-12)


@given(places=st.lists(st.floats(20.0, 40.0), min_size=1, max_size=6), fwhm=st.floats(2.0, 9.0), profile=profiles)
def test_every_slice_is_centred_where_it_lies(places, fwhm, profile):
    seen = Acquisition(np.array(places), 62, fwhm, profile).forward(np.arange(62.0))
    # As in test_profile: the Gaussian's cut-off moves it by 2e-4 at most, a box that covers whole voxels by their share
    # by (1/8)/fwhm.
    np.testing.assert_allclose(seen, places, atol=1e-3 if profile == "gaussian" else 0.125 / fwhm + 1e-9)


@given(acquisition=acquisitions(), data=st.data())
def test_slices_do_not_depend_on_each_other(acquisition, data):
    order = data.draw(st.permutations(range(acquisition.n_thick)))
    centres_vox = acquisition.centres_vox[order]
    other = Acquisition(centres_vox, acquisition.n_thin, acquisition.fwhm_vox, acquisition.profile)
    np.testing.assert_array_equal(other.matrix(), acquisition.matrix()[order])


def test_nothing_of_it_can_be_changed():
    centres_vox = np.array([0.5, 2.5])
    acquisition = Acquisition(centres_vox, 4, 2.0, "box")
    centres_vox += 1
    np.testing.assert_array_equal(acquisition.centres_vox, [0.5, 2.5])
    for array in (acquisition.centres_vox, acquisition.matrix()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
