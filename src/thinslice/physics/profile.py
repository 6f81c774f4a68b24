"""The slice profile: how sensitive a thick slice is to the anatomy at a distance from its centre.

What a scan says of its profile is its width; what counts for the answer is the standard deviation, and the shapes of
one width differ in it by half (`sd_over_fwhm`).
"""

from functools import cache

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.physics.rf_pulse import spin_echo_profile
from thinslice.settings import PROFILES, Profile

GAUSSIAN_REACH_FWHM = 2.0
"""The Gaussian is cut at this many FWHM from its centre, where it is 2e-5 of its peak."""

COMPACT_REACH_FWHM = {"box": 0.5, "trapezoid": 0.75, "triangle": 1.0, "spin-echo": 1.5}
"""Beyond so many FWHM from their centres the other profiles are zero."""

TABLE = 1001
"""Points at which the integrals of profiles without a closed form are tabulated: what is between them is 1e-6 off."""


def slice_profile(distance_vox: np.ndarray, fwhm_vox: float, profile: Profile) -> np.ndarray:
    """Returns how sensitive a slice is at some distances from its centre, not normalised.

    Args:
        distance_vox: thin-slice centre minus thick-slice centre, in thin-voxel units, any shape.
        fwhm_vox: full width at half maximum in thin-voxel units: the slice thickness over the thin spacing.
        profile: ``gaussian`` (the usual model of a selective 2-D pulse; SMORE, Zhao et al. 2020), ``box`` (an ideal
            slab), ``trapezoid`` (a box with ramps half as wide as the slice), ``triangle``, or ``spin-echo`` (simulated
            pulses, `thinslice.physics.rf_pulse`). All but the Gaussian are averaged over each thin voxel.

    Returns:
        Weights of the same shape as ``distance_vox``, non-negative.

    Raises:
        PlanRefused: the thickness is not positive, or the profile is unknown.

    Example:
        >>> slice_profile(np.array([0.0, 1.0, 2.0]), fwhm_vox=2.0, profile="gaussian")
        array([1.    , 0.5   , 0.0625])
        >>> slice_profile(np.array([0.0, 1.0, 2.0]), fwhm_vox=2.0, profile="box")
        array([1. , 0.5, 0. ])
    """
    if fwhm_vox <= 0:
        raise PlanRefused(
            got=f"a slice {fwhm_vox:g} thin voxels thick",
            need="a positive thickness",
            next="correct `thickness_mm`",
            code="not-a-positive-number",
        )
    if profile == "gaussian":
        weights = np.exp(-4.0 * np.log(2.0) * (distance_vox / fwhm_vox) ** 2)
        # Cut exactly where `Acquisition.seen_by` says, or rows of a window would differ from those of the whole matrix.
        return np.where(np.abs(distance_vox) <= GAUSSIAN_REACH_FWHM * fwhm_vox, weights, 0.0)
    if profile == "box":
        # What of the voxel, from -0.5 to 0.5 around its centre, lies within the slab.
        low = np.maximum(distance_vox - 0.5, -fwhm_vox / 2)
        high = np.minimum(distance_vox + 0.5, fwhm_vox / 2)
        share: np.ndarray = np.maximum(high - low, 0.0)
        return share
    if profile in COMPACT_REACH_FWHM:
        at, integral = _integral(profile)
        ends = [np.interp((distance_vox + side) / fwhm_vox, at, integral) for side in (0.5, -0.5)]
        inside: np.ndarray = ends[0] - ends[1]
        return inside
    raise PlanRefused(
        got=f"`profile={profile}`", need=" or ".join(PROFILES), next="choose one of them", code="unknown-choice"
    )


def reach_vox(fwhm_vox: float, profile: Profile) -> float:
    """Returns how far from its centre a slice sees thin ones, in thin-voxel units between centres."""
    if profile == "gaussian":
        return GAUSSIAN_REACH_FWHM * fwhm_vox
    # The Gaussian is taken at voxel centres; the others have a share in voxels whose centres lie outside them.
    return COMPACT_REACH_FWHM[profile] * fwhm_vox + 0.5


@cache
def sd_over_fwhm(profile: Profile) -> float:
    """Returns the standard deviation of a profile over its full width at half maximum.

    Example:
        >>> [round(sd_over_fwhm(profile), 3) for profile in ("gaussian", "box")]
        [0.425, 0.289]
    """
    if profile == "gaussian":
        return float(1 / np.sqrt(8 * np.log(2)))
    at, integral = _integral(profile)
    weights, middle = np.diff(integral), (at[1:] + at[:-1]) / 2
    return float(np.sqrt(np.sum(weights * middle**2) / weights.sum()))


@cache
def _integral(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances in FWHM and the integral of a compact profile from its start up to them."""
    reach = COMPACT_REACH_FWHM[profile]
    at = np.linspace(-reach, reach, TABLE)
    middle = (at[1:] + at[:-1]) / 2
    if profile == "box":
        height = np.ones_like(middle)
    elif profile == "spin-echo":
        height = spin_echo_profile(middle)
    else:
        # A box seen through another one, as wide as the ramps.
        ramp = 2 * reach - 1
        height = np.clip((reach - np.abs(middle)) / ramp, 0, 1)
    integral = np.concatenate([[0.0], np.cumsum(height)]) * (at[1] - at[0])
    return at, integral
