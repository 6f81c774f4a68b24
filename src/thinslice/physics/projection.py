"""The projection of an answer onto what was acquired: the smallest smooth change that makes the two agree.

Arrays here have the through-plane axis first: thin [thin, ...], thick [thick, ...]. The matrix A [thick, thin] comes
from `thinslice.physics.acquisition.Acquisition`, whole or some of its rows.
"""

from collections.abc import Iterator

import numpy as np

from thinslice.physics.acquisition import apply_along_first_axis

NOISE_LEVEL = 0.003
"""Default regularisation of the projection, see `scale_damping`.

It is the assumed noise-to-signal power of an acquired slice: with 0 the acquired noise is reproduced to the last
bit, with more the components that A nearly destroys are not amplified. With 0.003 six real scans came back to 0.06 %
RMS and 0.9 % at worst of their range (0.01: 0.19 % and 2.9 %) for at most 0.09 dB of noisy ones.
"""

CORRELATION_LENGTH = 0.5
"""L of `smooth_adjoint_matrix`, in slice spacings: the shortest that leaves no ripple (0.1 % at x4; LOG.md)."""

BAND = 16
"""Lines of a slice that are computed together: what then is in use fits into a processor's cache."""

ANSWER_ERROR = 0.02
"""How far a good answer, made thick again, is from slices without noise, in intensity ranges.

99 % of the cells of good answers are nearer (`thinslice.compute.guard.DISAGREEMENT`). Of 0.005 to 0.04 it was the best
compromise on five volumes of `iso_train` with noise of 0 to 5 %: less loses up to 0.16 dB of clean scans, more up to
0.11 dB of noisy ones (LOG.md).
"""


def noise_to_signal(noise: float) -> float:
    """Returns the regularisation of the projection for noisy slices: the more noise, the less they are followed.

    Args:
        noise: standard deviation of the noise of the slices, in intensity ranges.

    Example:
        >>> noise_to_signal(0.0) == NOISE_LEVEL, round(noise_to_signal(0.02), 3)
        (True, 1.003)
    """
    return NOISE_LEVEL + (noise / ANSWER_ERROR) ** 2


def smooth_adjoint_matrix(matrix: np.ndarray, factor: float) -> np.ndarray:
    """Returns W At, the adjoint smoothed along the slice axis, so that a correction shows no slice edges.

    W is the covariance exp(-d^2 / 2 L^2) of a smooth anatomy, d in slice spacings, mirrored at both ends of the field
    of view. With W = I a flat correction would come back with a ripple of 10 % (Gaussian), a straight one as a
    staircase (box).

    Args:
        matrix: A [thick, thin].
        factor: thin slices per slice spacing.

    Returns:
        float64 [thin, thick].
    """
    position = np.arange(matrix.shape[1]) / factor
    length = matrix.shape[1] / factor
    here, there = position[:, None], position[None, :]
    edge = 0.5 / factor
    # The field of view ends half a thin voxel beyond the outermost centres: there lie the two mirrors.
    distances = (here - there, here + there + 2 * edge, 2 * (length - edge) - here - there)
    covariance = sum(np.exp(-0.5 * (d / CORRELATION_LENGTH) ** 2) for d in distances)
    smoothed: np.ndarray = covariance @ matrix.T
    return smoothed


def scale_damping(matrix: np.ndarray, factor: float, noise: float = NOISE_LEVEL) -> float:
    """Returns the noise level in the units of A W At: relative to its median row sum.

    That sum is what an inner slice keeps of a flat image, the largest eigenvalue of a long stack. The outermost slices,
    of which only a half lies inside the field of view on the centres grid, have no say in it.

    Args:
        matrix: A [thick, thin].
        factor: thin slices per slice spacing.
        noise: assumed noise-to-signal power of an acquired slice, see `NOISE_LEVEL`.
    """
    return float(noise * np.median((matrix @ smooth_adjoint_matrix(matrix, factor)).sum(axis=1)))


def correction_matrix(matrix: np.ndarray, factor: float, damping: float) -> np.ndarray:
    """Returns the matrix that turns what is missing in the thick slices into a correction of the thin ones.

    Applied to ``thick - A thin`` it gives the smallest change of ``thin``, in the norm of W, that agrees with the
    acquired slices: the null-space projection of inverse problems, with a smooth range.

    Args:
        matrix: A [thick, thin].
        factor: thin slices per slice spacing.
        damping: see `scale_damping`; for a piece of a stack, that of the whole stack.

    Returns:
        W At (A W At + damping * I)^-1, float64 [thin, thick].
    """
    smoothed = smooth_adjoint_matrix(matrix, factor)
    # Solved from the right, as A W At is symmetric: X S = B is S Xt = Bt.
    correction: np.ndarray = np.linalg.solve(matrix @ smoothed + damping * np.eye(len(matrix)), smoothed.T).T
    return correction


def project(
    thin: np.ndarray, thick: np.ndarray, matrix: np.ndarray, factor: float, noise: float = NOISE_LEVEL
) -> np.ndarray:
    """Returns the answer nearest to ``thin`` that agrees with the acquired slices.

    Args:
        thin: an answer [thin, ...], any float dtype.
        thick: the acquired slices [thick, ...].
        matrix: A [thick, thin].
        factor: thin slices per slice spacing.
        noise: gives the damping d, see `scale_damping`; 0 makes ``A result == thick`` to rounding.

    Returns:
        x + W At (A W At + d I)^-1 (y - A x), shape and dtype of ``thin``.

    Example:
        >>> matrix = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
        >>> answer = project(np.zeros(4), np.array([2.0, 4.0]), matrix, factor=2.0, noise=0.0)
        >>> answer.round(2)
        array([1.63, 2.37, 3.63, 4.37])
        >>> (matrix @ answer).round(6)
        array([2., 4.])
    """
    repair = correction_matrix(matrix, factor, scale_damping(matrix, factor, noise))
    answer: np.ndarray = thin + apply_along_first_axis(repair, thick - apply_along_first_axis(matrix, thin))
    return answer


def cut_into_bands(stack: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Yields indices that cut a stack [n, h, w] into bands: `BAND` lines of its in-plane axis that is slower in memory.

    Cut along the faster axis, every line of a band would be torn out of its cache lines.
    """
    slower = 1 if abs(stack.strides[1]) >= abs(stack.strides[2]) else 2
    for top in range(0, stack.shape[slower], BAND):
        yield (*[slice(None)] * slower, slice(top, top + BAND))
