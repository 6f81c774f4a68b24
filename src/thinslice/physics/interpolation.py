"""The baselines: nearest, linear, cubic and Lanczos interpolation, each as a matrix [thin, thick].

An interpolation of slices is linear in the slices, so a matrix says all there is to say, and the same matrix serves
the evaluation, the network (which predicts a residual over cubic) and the training. All take the positions of the thin
slices in thick-slice index units [thin], which need not be whole or lie between the outermost slices, and the number
of thick slices.
"""

from collections.abc import Callable

import numpy as np

CARDINAL_REACH = 8
"""Beyond so many samples the spline that interpolates one of them is left out: it has fallen to 3e-5 there."""

LANCZOS_LOBES = 3
"""Half width of the windowed sinc in thick slices, the usual choice (Duchon, J. Appl. Meteorol. 18:1016, 1979)."""


def nearest_matrix(position: np.ndarray, n_thick: int) -> np.ndarray:
    """Returns the matrix by which each thin slice repeats the thick slice it lies in: the staircase.

    Example:
        >>> nearest_matrix(np.array([0.25, 0.75]), n_thick=2)
        array([[1., 0.],
               [0., 1.]])
    """
    # Not rint, which rounds halves to even: halfway between slices it would go up and down in turns.
    index = np.clip(np.floor(np.asarray(position) + 0.5).astype(int), 0, n_thick - 1)
    weights: np.ndarray = np.eye(n_thick)[index]
    return weights


def linear_matrix(position: np.ndarray, n_thick: int) -> np.ndarray:
    """Returns the matrix of straight lines between slice centres, the outermost slices held beyond them.

    Example:
        >>> linear_matrix(np.array([-0.25, 0.25]), n_thick=2)
        array([[1.  , 0.  ],
               [0.75, 0.25]])
    """
    index = np.clip(position, 0, n_thick - 1)
    weights: np.ndarray = np.maximum(0.0, 1.0 - np.abs(index[:, None] - np.arange(n_thick)[None, :]))
    return weights


def cubic_matrix(position: np.ndarray, n_thick: int) -> np.ndarray:
    """Returns the matrix of cubic B-spline interpolation with mirrored ends, as in `scipy.ndimage`.

    There it is order 3, mode "mirror". Through the acquired slices it goes exactly (Unser, IEEE Signal Process. Mag.
    16(6):22-38, 1999).

    Example:
        >>> cubic_matrix(np.array([1.5]), n_thick=4).round(3)
        array([[-0.125,  0.625,  0.625, -0.125]])
    """
    if n_thick == 1:
        return np.ones((len(position), 1))
    # A spline of the samples themselves would blur: the coefficients are those whose spline passes through them.
    knots = _mirrored_weights(np.arange(n_thick, dtype=np.float64), n_thick, _cubic_spline, reach=2)
    return _mirrored_weights(position, n_thick, _cubic_spline, reach=2) @ np.linalg.inv(knots)


def lanczos_matrix(position: np.ndarray, n_thick: int) -> np.ndarray:
    """Returns the matrix of the windowed sinc with three lobes, rows normalised to one, mirrored ends.

    Example:
        >>> lanczos_matrix(np.array([3.0]), n_thick=7).round(3) + 0.0
        array([[0., 0., 0., 1., 0., 0., 0.]])
    """
    weights = _mirrored_weights(position, n_thick, _lanczos_kernel, reach=LANCZOS_LOBES)
    # The windowed sinc does not quite sum to one: unnormalised, a flat image would come back in waves.
    rows: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return rows


INTERPOLATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "nearest": nearest_matrix,
    "linear": linear_matrix,
    "cubic": cubic_matrix,
    "lanczos": lanczos_matrix,
}
"""Each interpolation by its name."""


def cardinal_spline(x: np.ndarray) -> np.ndarray:
    """Returns the weight of a sample at a distance from it in cubic B-spline interpolation without ends.

    It is 1 at the sample and 0 at all others. Between them it is the sum of B-splines with the coefficients of a single
    sample, sqrt(3) (sqrt(3) - 2)^|k| (Unser, IEEE Signal Process. Mag. 16(6):22-38, 1999).

    Args:
        x: distances in samples, any shape; up to `CARDINAL_REACH`, beyond which there is nothing.

    Example:
        >>> cardinal_spline(np.array([0.0, 0.5, 1.0, 1.5])).round(3) + 0.0
        array([ 1.   ,  0.6  ,  0.   , -0.127])
    """
    weights = np.zeros(np.shape(x))
    # Nearly all distances in a large matrix are too large, and of all knots only the four nearest count.
    near = np.abs(x) <= CARDINAL_REACH
    within = np.asarray(x)[near]
    start = np.floor(within).astype(int)
    part = within - start
    splines = ((1 - part) ** 3 / 6, _cubic_spline(part), _cubic_spline(1 - part), part**3 / 6)
    weights[near] = sum(
        _COEFFICIENTS[np.abs(start + step)] * spline for step, spline in zip(range(-1, 3), splines, strict=True)
    )
    return weights


_COEFFICIENTS = np.sqrt(3) * (np.sqrt(3) - 2) ** np.arange(CARDINAL_REACH + 3)
"""Of the B-splines that are 1 at one sample together, and 0 at all others; see `cardinal_spline`."""


def _cubic_spline(x: np.ndarray) -> np.ndarray:
    """Returns the cubic B-spline, zero from two slices on."""
    x = np.abs(x)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0.0))


def _lanczos_kernel(x: np.ndarray) -> np.ndarray:
    """Returns the sinc under the central lobe of a wider sinc."""
    return np.where(np.abs(x) < LANCZOS_LOBES, np.sinc(x) * np.sinc(x / LANCZOS_LOBES), 0.0)


def _mirrored_weights(
    position: np.ndarray, n_thick: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int
) -> np.ndarray:
    """Returns kernel weights [positions, thick]; slices beyond the ends are the mirror images of those inside."""
    weights = np.zeros((len(position), n_thick))
    rows = np.arange(len(position))
    start = np.floor(position).astype(int)
    period = max(2 * (n_thick - 1), 1)
    # One step more above than below, as the position lies between ``start`` and ``start + 1``.
    for step in range(-reach, reach + 2):
        index = start + step
        # The mirror goes through the outermost centres, which are not doubled; where it is short, several folds.
        folded = np.abs(index) % period
        inside = np.where(folded < n_thick, folded, period - folded)
        np.add.at(weights, (rows, inside), kernel(position - index))
    return weights
