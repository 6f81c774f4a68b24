"""Laws of the acquisition operator: of slices at any places, along any axis."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from faults import catches
from strategies import acquisitions, axes, profiles, seeds
from test_profile import half_maximum_width
from thinslice.errors import PlanRefused
from thinslice.physics.acquisition import Acquisition
from thinslice.settings import PROFILES


@catches(
    "physics/acquisition.py",
    "_along_axis(self._matrix.T, thick)",
    "_along_axis(self._matrix.T / self._matrix.sum(axis=0)[:, None].clip(1e-9), thick)",
)
@catches(
    "physics/acquisition.py",
    "np.moveaxis(array, self.axis, 0)), 0, self.axis)",
    "np.moveaxis(array, self.axis, 0)), 0, -1)",
)
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


@catches("physics/acquisition.py", "centres_vox.min() - reach", "centres_vox[0] - reach")
@catches("physics/acquisition.py", "self.centres_vox[start:stop] - thin.start", "self.centres_vox[start:stop]")
@given(acquisition=acquisitions())
def test_rows_of_a_window_are_those_of_the_whole_matrix(acquisition):
    for start, stop in combinations(range(acquisition.n_thick + 1), 2):
        seen, rows = acquisition.rows(start, stop)
        whole = acquisition.matrix()[start:stop]
        # Where a window begins is subtracted from the centres first, which rounds otherwise: by 1e-15 of 40 voxels.
        np.testing.assert_allclose(rows, whole[:, seen], atol=1e-12)
        assert np.delete(whole, np.arange(acquisition.n_thin)[seen], axis=1).sum() == 0
        assert seen == acquisition.seen_by(start, stop)


@catches("physics/acquisition.py", "= weights / total", "= weights")
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


@catches("physics/acquisition.py", "[None, :] - centres_vox[:, None]", "[None, :] - centres_vox[:, None] - 0.5")
@catches("physics/profile.py", "GAUSSIAN_REACH_FWHM = 2.0", "GAUSSIAN_REACH_FWHM = 0.6")
@given(places=st.lists(st.floats(20.0, 40.0), min_size=1, max_size=6), fwhm=st.floats(2.0, 9.0), profile=profiles)
def test_every_slice_is_centred_where_it_lies(places, fwhm, profile):
    seen = Acquisition(np.array(places), 62, fwhm, profile).forward(np.arange(62.0))
    # A Gaussian of FWHM 2 sampled at whole voxels is centred to 4e-6 and its cut-off to 2e-4; a box that covers
    # whole voxels by their share is centred to (1/8)/fwhm at worst (two part-covered voxels at its ends).
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


@given(fwhm=st.floats(20.0, 60.0), profile=profiles, phase=st.floats(-0.5, 0.5))
def test_the_half_maximum_width_of_a_matrix_row_is_the_thickness(fwhm, profile, phase):
    row = Acquisition(np.array([150 + phase]), 300, fwhm, profile).matrix()[0]
    # The row is sampled at whole voxels. The largest sample of a Gaussian of 20 voxels lies up to half a voxel off its
    # top and is 0.17 % lower, which widens the half by 0.025, and a chord replaces the curve (0.01). The box has its
    # ramp, one voxel wide, between two samples at each end, which linear interpolation places to 0.1 voxel.
    assert half_maximum_width(np.arange(300.0), row) == pytest.approx(fwhm, abs=0.04 if profile == "gaussian" else 0.2)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_a_slice_on_the_field_of_view_grid_is_exactly_symmetric(profile, factor):
    first = (factor - 1) / 2
    row = Acquisition(np.array([first + 10 * factor]), 21 * factor, 1.1 * factor, profile).matrix()[0]
    np.testing.assert_allclose(row, row[::-1], atol=1e-15)


@pytest.mark.parametrize("fwhm", [2.0, 3.0, 4.5])
def test_the_profiles_have_their_known_variance(fwhm):
    position = np.arange(101.0)
    gauss = Acquisition(np.array([50.0]), 101, fwhm, "gaussian").matrix()[0] @ (position - 50) ** 2
    box = Acquisition(np.array([50.0]), 101, fwhm, "box").matrix()[0] @ (position - 50) ** 2
    # Gaussian: (fwhm / 2.3548)^2, less 0.1 % for the cut-off. Box: width^2 / 12, give or take 1/6 for whole voxels.
    assert gauss == pytest.approx((fwhm / np.sqrt(8 * np.log(2))) ** 2, rel=2e-3)
    assert box == pytest.approx(fwhm**2 / 12, abs=1 / 6 + 1e-9)


def test_a_gap_narrows_and_an_overlap_widens_the_rows():
    centres, position = np.array([50.0]), np.arange(101.0)
    width = [
        Acquisition(centres, 101, 4 * ratio, "gaussian").matrix()[0] @ (position - 50) ** 2 for ratio in (0.7, 1.0, 1.3)
    ]
    np.testing.assert_allclose(np.array(width) / width[1], [0.49, 1.0, 1.69], rtol=5e-3)  # as thickness squared


def test_the_box_covers_whole_thin_voxels_evenly():
    row = Acquisition(np.array([1.5, 5.5]), 8, 4.0, "box").matrix()
    np.testing.assert_array_equal(row, np.repeat([[0.25, 0.0], [0.0, 0.25]], 4, axis=1))


@given(centre=st.floats(20.0, 50.0), fwhm=st.floats(0.5, 4.0), profile=profiles)
def test_a_slice_outside_the_field_of_view_is_refused(centre, fwhm, profile):
    assume(centre - 2 * fwhm > 10)
    with pytest.raises(PlanRefused, match="sees none of the 10 thin slices"):
        Acquisition(np.array([2.0, centre]), 10, fwhm, profile).matrix()
