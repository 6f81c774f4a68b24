"""The slice profile: how sensitive a thick slice is to the anatomy at a distance from its centre."""

import numpy as np

from thinslice.settings import PROFILES, Profile

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


def downscaling_matrix(n_thick: int, factor: int, sigma_vox: float = 0.0) -> np.ndarray:
    """Anti-aliased bicubic downscaling, as picture libraries do it: ``thick = A @ thin``.

    It stands for the acquisition in papers that shrink images instead of simulating a scanner (Georgescu et al. 2020,
    sec. IV); it has negative lobes and no slice profile.

    Args:
        n_thick: size after.
        factor: whole.
        sigma_vox: of a three-tap Gaussian that is applied before, in thin-voxel units; 0 for none.

    Returns:
        float64 [n_thick, factor * n_thick]; every row sums to one. Edges repeat under the Gaussian, and the bicubic
        kernel is cut there.
    """
    centres = (np.arange(n_thick) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(factor * n_thick)[None, :] - centres[:, None]) / factor
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    matrix: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return matrix @ _three_taps(factor * n_thick, sigma_vox) if sigma_vox > 0.01 else matrix  # e^-5000


def _three_taps(n: int, sigma_vox: float) -> np.ndarray:
    beside = np.exp(-0.5 / sigma_vox**2)
    taps = np.array([beside, 1.0, beside]) / (1 + 2 * beside)
    matrix = np.zeros((n, n))
    for step, weight in zip((-1, 0, 1), taps, strict=True):
        np.add.at(matrix, (np.arange(n), np.clip(np.arange(n) + step, 0, n - 1)), weight)
    return matrix
