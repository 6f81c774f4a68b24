"""Laws of the slice profile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import catches
from strategies import profiles
from thinslice.errors import PlanRefused
from thinslice.physics.profile import slice_profile


def half_maximum_width(position: np.ndarray, weight: np.ndarray) -> float:
    """Full width at half maximum, crossings by linear interpolation."""
    half = weight.max() / 2
    above = np.flatnonzero(weight >= half)
    first, last = above[0], above[-1]
    left = np.interp(half, [weight[first - 1], weight[first]], [position[first - 1], position[first]])
    right = np.interp(half, [weight[last + 1], weight[last]], [position[last + 1], position[last]])
    return float(right - left)


@catches("physics/profile.py", "-4.0 * np.log(2.0) * (distance_vox", "-0.5 * (distance_vox")
@catches("physics/profile.py", "distance_vox + 0.5, fwhm_vox / 2)", "distance_vox + 0.5, fwhm_vox)")
@given(fwhm=st.floats(1.0, 9.0), profile=profiles)
def test_the_half_maximum_width_of_the_profile_is_the_thickness(fwhm, profile):
    position = np.linspace(-20, 20, 40001)
    weight = slice_profile(position, fwhm, profile)
    # Sampled every 0.001 voxel: linear interpolation between the samples is good to 1e-6, a box edge to one sample.
    assert half_maximum_width(position, weight) == pytest.approx(fwhm, abs=2e-3)


@given(fwhm=st.floats(-5, 0) | st.just(0.0))
def test_a_slice_without_thickness_is_refused(fwhm):
    with pytest.raises(PlanRefused, match="need a positive thickness"):
        slice_profile(np.zeros(3), fwhm, "gaussian")


def test_an_unknown_profile_is_refused_by_name():
    with pytest.raises(PlanRefused, match=r"sinc.*gaussian or box"):
        slice_profile(np.zeros(3), 1.0, "sinc")
