"""The slice profile: how thick slices see thin ones, as one matrix.

A 2-D acquisition excites a slab. The signal of a thick slice is the thin anatomy weighted by the slice-selection
profile along the slab normal. Everything that blurs, spreads or projects in this project goes through the matrix
made here; there is no second blur.

Positions are in thin-voxel units: thin slice ``j`` has its centre at ``j``, thick slice ``i`` at
``first_centre + i * factor``.
"""

from typing import Literal, get_args

import numpy as np

Profile = Literal["gaussian", "box"]
PROFILES: tuple[str, ...] = get_args(Profile)

GAUSSIAN_REACH_FWHM = 2.0
"""The Gaussian is cut at this many FWHM from its centre, where it is 2e-5 of its peak."""


def slice_profile(distance: np.ndarray, fwhm: float, profile: Profile) -> np.ndarray:
    """Sensitivity of a slice at ``distance`` from its centre, not normalised.

    Args:
        distance: thin-slice centre minus thick-slice centre, in thin-voxel units, any shape.
        fwhm: full width at half maximum in thin-voxel units: the slice thickness over the thin spacing.
        profile: ``gaussian`` (the usual model of a selective 2-D pulse; SMORE, Zhao et al. 2020) or ``box``
            (an ideal slab; the share of each thin voxel that lies inside it).

    Returns:
        Weights of the same shape as ``distance``, non-negative.
    """
    if fwhm <= 0:
        raise ValueError(f"fwhm is {fwhm:g}; a slice needs a positive thickness")
    if profile == "gaussian":
        weights = np.exp(-4.0 * np.log(2.0) * (distance / fwhm) ** 2)
        return np.where(np.abs(distance) <= GAUSSIAN_REACH_FWHM * fwhm, weights, 0.0)
    if profile == "box":
        low = np.maximum(distance - 0.5, -fwhm / 2)
        high = np.minimum(distance + 0.5, fwhm / 2)
        share: np.ndarray = np.maximum(high - low, 0.0)
        return share
    raise ValueError(f"profile is {profile!r}; choose one of {', '.join(PROFILES)}")


def profile_matrix(thick_centres: np.ndarray, n_thin: int, fwhm: float, profile: Profile = "gaussian") -> np.ndarray:
    """The acquisition matrix A: ``thick = A @ thin`` along the through-plane axis.

    Args:
        thick_centres: centres of the thick slices in thin-voxel units, shape [thick].
        n_thin: number of thin slices, centres at 0 .. n_thin - 1.
        fwhm: slice thickness in thin-voxel units.
        profile: see `slice_profile`.

    Returns:
        float64 matrix [thick, thin]; every row sums to one. Where a slab reaches over the edge of the field of
        view, what lies inside it carries the whole weight.

    Raises:
        ValueError: a slice does not touch any thin voxel, or the thickness is not positive.
    """
    thick_centres = np.asarray(thick_centres, dtype=np.float64)
    distance = np.arange(n_thin, dtype=np.float64)[None, :] - thick_centres[:, None]
    weights = slice_profile(distance, fwhm, profile)
    total = weights.sum(axis=1, keepdims=True)
    if (total <= 0).any():
        lost = thick_centres[int(np.argmin(total))]
        raise ValueError(f"the slice centred at {lost:g} touches none of the {n_thin} thin voxels")
    matrix: np.ndarray = weights / total
    return matrix
