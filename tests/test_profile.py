"""Laws of the slice profile and of the matrix made from it."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from faults import catches
from strategies import profiles, seeds
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.profile import downscaling_matrix, slice_profile
from thinslice.settings import PROFILES


def half_maximum_width(position: np.ndarray, weight: np.ndarray) -> float:
    """Full width at half maximum, crossings by linear interpolation."""
    half = weight.max() / 2
    above = np.flatnonzero(weight >= half)
    first, last = above[0], above[-1]
    left = np.interp(half, [weight[first - 1], weight[first]], [position[first - 1], position[first]])
    right = np.interp(half, [weight[last + 1], weight[last]], [position[last + 1], position[last]])
    return float(right - left)


@catches("physics/profile.py", "-4.0 * np.log(2.0) * (distance / fwhm) ** 2", "-0.5 * (distance / fwhm) ** 2")
@catches("physics/profile.py", "np.minimum(distance + 0.5, fwhm / 2)", "np.minimum(distance + 0.5, fwhm)")
@given(fwhm=st.floats(1.0, 9.0), profile=profiles)
def test_the_half_maximum_width_of_the_profile_is_the_thickness(fwhm, profile):
    position = np.linspace(-20, 20, 40001)
    weight = slice_profile(position, fwhm, profile)
    # Sampled every 0.001 voxel: linear interpolation between the samples is good to 1e-6, a box edge to one sample.
    assert half_maximum_width(position, weight) == pytest.approx(fwhm, abs=2e-3)


@given(fwhm=st.floats(20.0, 60.0), profile=profiles, phase=st.floats(-0.5, 0.5))
def test_the_half_maximum_width_of_a_matrix_row_is_the_thickness(fwhm, profile, phase):
    row = Acquisition(np.array([150 + phase]), 300, fwhm, profile).matrix()[0]
    # The row is sampled at whole voxels. The largest sample of a Gaussian of 20 voxels lies up to half a voxel off its
    # top and is 0.17 % lower, which widens the half by 0.025, and a chord replaces the curve (0.01). The box has its
    # ramp, one voxel wide, between two samples at each end, which linear interpolation places to 0.1 voxel.
    assert half_maximum_width(np.arange(300.0), row) == pytest.approx(fwhm, abs=0.04 if profile == "gaussian" else 0.2)


@catches("physics/acquisition.py", "[None, :] - centres_vox[:, None]", "[None, :] - centres_vox[:, None] - 0.5")
@catches("physics/acquisition.py", "= weights / total", "= weights")
@catches("physics/profile.py", "GAUSSIAN_REACH_FWHM = 2.0", "GAUSSIAN_REACH_FWHM = 0.6")
@given(fwhm=st.floats(2.0, 9.0), profile=profiles, centre=st.floats(30.0, 31.0))
def test_the_profile_is_centred(fwhm, profile, centre):
    row = Acquisition(np.array([centre]), 62, fwhm, profile).matrix()[0]
    # A Gaussian of FWHM 2 sampled at whole voxels is centred to 4e-6 and its cut-off to 2e-4; a box that covers
    # whole voxels by their share is centred to (1/8)/fwhm at worst (two part-covered voxels at its ends).
    tolerance = 1e-3 if profile == "gaussian" else 0.125 / fwhm + 1e-9
    assert row @ np.arange(62) == pytest.approx(centre, abs=tolerance)


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


@given(
    fwhm=st.floats(0.6, 9.0),
    profile=profiles,
    factor=st.floats(1.1, 8.0),
    first=st.floats(0.0, 4.0),
    n=st.integers(1, 12),
)
def test_rows_sum_to_one_and_are_not_negative(fwhm, profile, factor, first, n):
    matrix = Acquisition(first + factor * np.arange(n), int(np.ceil(first + factor * n)) + 1, fwhm, profile).matrix()
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    assert (matrix >= 0).all()


@catches(
    "physics/acquisition.py",
    "_along_axis(self._matrix.T, thick)",
    "_along_axis(self._matrix.T / self._matrix.sum(axis=0)[:, None].clip(1e-9), thick)",
)
@given(seed=seeds, profile=profiles, factor=st.floats(1.1, 6.0), ratio=st.floats(0.6, 1.4), n=st.integers(2, 9))
def test_the_adjoint_of_even_slices_is_the_adjoint(seed, profile, factor, ratio, n):
    rng = np.random.default_rng(seed)
    operator = Acquisition((factor - 1) / 2 + factor * np.arange(n), round(n * factor), factor * ratio, profile)
    thin = rng.standard_normal((operator.n_thin, 3, 4))
    thick = rng.standard_normal((n, 3, 4))
    # Both sides are sums of at most 650 float64 products of order one.
    assert np.vdot(operator.forward(thin), thick) == pytest.approx(np.vdot(thin, operator.adjoint(thick)), abs=1e-11)


def test_a_gap_narrows_and_an_overlap_widens_the_rows():
    centres, position = np.array([50.0]), np.arange(101.0)
    width = [
        Acquisition(centres, 101, 4 * ratio, "gaussian").matrix()[0] @ (position - 50) ** 2 for ratio in (0.7, 1.0, 1.3)
    ]
    np.testing.assert_allclose(np.array(width) / width[1], [0.49, 1.0, 1.69], rtol=5e-3)  # as thickness squared


def test_the_box_covers_whole_thin_voxels_evenly():
    row = Acquisition(np.array([1.5, 5.5]), 8, 4.0, "box").matrix()
    np.testing.assert_array_equal(row, np.repeat([[0.25, 0.0], [0.0, 0.25]], 4, axis=1))


@given(fwhm=st.floats(-5, 0) | st.just(0.0))
def test_a_slice_without_thickness_is_refused(fwhm):
    with pytest.raises(ValueError, match="positive thickness"):
        slice_profile(np.zeros(3), fwhm, "gaussian")


def test_an_unknown_profile_is_refused_by_name():
    with pytest.raises(ValueError, match=r"sinc.*gaussian, box"):
        slice_profile(np.zeros(3), 1.0, "sinc")


@given(centre=st.floats(20.0, 50.0), fwhm=st.floats(0.5, 4.0), profile=profiles)
def test_a_slice_outside_the_field_of_view_is_refused(centre, fwhm, profile):
    assume(centre - 2 * fwhm > 10)
    with pytest.raises(ValueError, match="touches none"):
        Acquisition(np.array([2.0, centre]), 10, fwhm, profile).matrix()


# How papers shrink pictures.


@given(n=st.integers(3, 40), factor=st.sampled_from([2, 4]), sigma=st.floats(0, 2))
def test_downscaling_keeps_flat_flat_and_is_the_same_backwards(n, factor, sigma):
    matrix = downscaling_matrix(n, factor, sigma)
    assert matrix.shape == (n, factor * n)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)


@given(n=st.integers(9, 30), factor=st.sampled_from([2, 4]), sigma=st.floats(0, 1))
def test_downscaling_says_the_centre_of_its_pixels_on_a_ramp(n, factor, sigma):
    said = downscaling_matrix(n, factor, sigma) @ np.arange(factor * n)
    centres = (np.arange(n) + 0.5) * factor - 0.5
    np.testing.assert_allclose(said[3:-3], centres[3:-3], atol=1e-9)


@catches("physics/profile.py", "- centres[:, None]) / factor\n    near", "- centres[:, None])\n    near")
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downscaling_is_that_of_a_picture_library(factor):
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the test extra")
    line = np.random.default_rng(0).random(24 * factor).astype(np.float32)
    picture = image.fromarray(np.repeat(line[:, None], 3, axis=1), mode="F")
    wanted = np.asarray(picture.resize((3, 24), image.Resampling.BICUBIC))[:, 1]
    np.testing.assert_allclose(downscaling_matrix(24, factor) @ line, wanted, atol=1e-5)


def test_a_gaussian_before_downscaling_blurs_by_its_sigma():
    thin = np.zeros(80)
    thin[40] = 1
    blurred = np.linalg.pinv(downscaling_matrix(40, 2)) @ (downscaling_matrix(40, 2, 0.5) @ thin)
    index = np.arange(80) - 40
    # Three taps of a Gaussian of 0.5: the variance is 2 e / (1 + 2 e) with e = exp(-2).
    wanted = 2 * np.exp(-2) / (1 + 2 * np.exp(-2))
    narrow = np.linalg.pinv(downscaling_matrix(40, 2)) @ (downscaling_matrix(40, 2) @ thin)
    assert (index**2 @ blurred) - (index**2 @ narrow) == pytest.approx(wanted, rel=0.2)
