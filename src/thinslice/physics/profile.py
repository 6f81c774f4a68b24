"""The slice profile: how sensitive a thick slice is to the anatomy at a distance from its centre."""

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.settings import PROFILES, Profile

GAUSSIAN_REACH_FWHM = 2.0
"""The Gaussian is cut at this many FWHM from its centre, where it is 2e-5 of its peak."""


def slice_profile(distance_vox: np.ndarray, fwhm_vox: float, profile: Profile) -> np.ndarray:
    """Returns how sensitive a slice is at some distances from its centre, not normalised.

    Args:
        distance_vox: thin-slice centre minus thick-slice centre, in thin-voxel units, any shape.
        fwhm_vox: full width at half maximum in thin-voxel units: the slice thickness over the thin spacing.
        profile: ``gaussian`` (the usual model of a selective 2-D pulse; SMORE, Zhao et al. 2020) or ``box``
            (an ideal slab; the share of each thin voxel that lies inside it).

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
    raise PlanRefused(
        got=f"`profile={profile}`", need=" or ".join(PROFILES), next="choose one of them", code="unknown-choice"
    )
