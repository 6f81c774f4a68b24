"""Thin to thick, its transpose, and the projection back onto what was acquired.

Arrays here have the through-plane axis first: thin [thin, ...], thick [thick, ...]. The matrix A [thick, thin] comes
from `thinslice.profile`; nothing else in the project blurs.
"""

import numpy as np

NOISE_LEVEL = 0.01
"""Default regularisation of the projection, see `damping_of`.

It is the assumed noise-to-signal power of an acquired slice: with 0 the acquired noise is reproduced to the last
bit, with 0.01 the components that A nearly destroys are not amplified.
"""


def thicken(thin: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the scanner would acquire: A x. Shapes [thin, ...] -> [thick, ...], see `along_first_axis`."""
    return along_first_axis(matrix, thin)


def spread(thick: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The adjoint of `thicken`: At y. Shapes [thick, ...] -> [thin, ...], see `along_first_axis`."""
    return along_first_axis(matrix.T, thick)


def damping_of(matrix: np.ndarray, noise: float = NOISE_LEVEL) -> float:
    """``noise`` in the units of A At: relative to its median row sum.

    That sum is what an inner slice keeps of a flat image, the largest eigenvalue of a long stack. The outermost slices,
    of which only a half lies inside the field of view on the centres grid, have no say in it.
    """
    return float(noise * np.median(matrix @ matrix.sum(axis=0)))


def correction_matrix(matrix: np.ndarray, damping: float) -> np.ndarray:
    """At (A At + damping * I)^-1, [thin, thick].

    Applied to ``thick - A thin`` it gives the smallest change of ``thin`` (in the least-squares sense) that agrees
    with the acquired slices: the null-space projection of inverse problems.

    Args:
        matrix: A [thick, thin].
        damping: see `damping_of`; for a piece of a stack, that of the whole stack.
    """
    correction: np.ndarray = np.linalg.solve(matrix @ matrix.T + damping * np.eye(len(matrix)), matrix).T
    return correction


def project(thin: np.ndarray, thick: np.ndarray, matrix: np.ndarray, noise: float = NOISE_LEVEL) -> np.ndarray:
    """The answer nearest to ``thin`` that agrees with the acquired slices: x + At(A At + d I)^-1 (y - A x).

    Args:
        thin: an answer [thin, ...], any float dtype.
        thick: the acquired slices [thick, ...].
        matrix: A [thick, thin].
        noise: gives the damping d, see `damping_of`; 0 makes ``thicken(result) == thick`` to rounding.
    """
    repair = correction_matrix(matrix, damping_of(matrix, noise))
    answer: np.ndarray = thin + along_first_axis(repair, thick - thicken(thin, matrix))
    return answer


def along_first_axis(matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
    """``matrix`` [m, n] applied to the first axis of ``array`` [n, ...] -> [m, ...].

    Computed in the array's dtype if that is a float one, otherwise in float32.
    """
    array = array if array.dtype.kind == "f" else array.astype(np.float32)
    flat = array.reshape(len(array), -1)
    product: np.ndarray = matrix.astype(array.dtype, copy=False) @ flat
    return product.reshape(len(matrix), *array.shape[1:])
