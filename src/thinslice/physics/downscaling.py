"""Bicubic downscaling of pictures: how papers make images small, and how enlarged slices are made small again."""

import numpy as np

NARROWEST_SIGMA_VOX = 0.01
"""A Gaussian narrower than this changes nothing: its neighbours weigh e^-5000, and its square would underflow."""


def downscaling_matrix(n_small: int, factor: int, sigma_vox: float = 0.0) -> np.ndarray:
    """Returns the matrix of anti-aliased bicubic downscaling, as picture libraries do it: ``small = D @ large``.

    It stands for the acquisition in papers that shrink images instead of simulating a scanner (Georgescu et al., IEEE
    Access 2020, sec. IV); it has negative lobes and no slice profile.

    Args:
        n_small: number of pixels after.
        factor: how many times fewer pixels; a whole number.
        sigma_vox: of a three-tap Gaussian that is applied before, in large-image pixels; 0 for none.

    Returns:
        float64 [n_small, factor * n_small]; every row sums to one. Edges repeat under the Gaussian, and the bicubic
        kernel is cut there.

    Example:
        >>> downscaling_matrix(2, factor=2).round(3)
        array([[ 0.459,  0.459,  0.12 , -0.037],
               [-0.037,  0.12 ,  0.459,  0.459]])
    """
    # Pixels are areas with common outer edges: the first centre lies half a small pixel, less half a large one, inside.
    centres = (np.arange(n_small) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(factor * n_small)[None, :] - centres[:, None]) / factor
    # Keys' cubic with a = -0.5 (IEEE Trans. Acoust. 29:1153-1160, 1981), as wide as the small pixels: anti-aliased.
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    # Cut at the edges the kernel no longer sums to one, but a flat picture must stay flat.
    matrix: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return matrix @ _three_taps(factor * n_small, sigma_vox) if sigma_vox > NARROWEST_SIGMA_VOX else matrix


def _three_taps(n: int, sigma_vox: float) -> np.ndarray:
    """Returns the Gaussian as a matrix [n, n]: each pixel and its two neighbours, the edges repeated."""
    beside = np.exp(-0.5 / sigma_vox**2)
    taps = np.array([beside, 1.0, beside]) / (1 + 2 * beside)
    matrix = np.zeros((n, n))
    for step, weight in zip((-1, 0, 1), taps, strict=True):
        np.add.at(matrix, (np.arange(n), np.clip(np.arange(n) + step, 0, n - 1)), weight)
    return matrix
