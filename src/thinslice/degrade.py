"""Thin to thick, its transpose, and the projection back onto what was acquired.

Arrays here have the through-plane axis first: thin [thin, ...], thick [thick, ...]. The matrix A [thick, thin] comes
from `thinslice.profile`; nothing else in the project blurs.
"""

import numpy as np

NOISE_LEVEL = 0.01
"""Default regularisation of the projection, relative to the largest eigenvalue of A At.

It is the assumed noise-to-signal power of an acquired slice: with 0 the acquired noise is reproduced to the last
bit, with 0.01 the components that A nearly destroys are not amplified.
"""


def thicken(thin: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the scanner would acquire: A x. Shapes [thin, ...] -> [thick, ...], dtype of ``thin``."""
    return along_first_axis(matrix, thin)


def spread(thick: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The adjoint of `thicken`: At y. Shapes [thick, ...] -> [thin, ...], dtype of ``thick``."""
    return along_first_axis(matrix.T, thick)


def correction_matrix(matrix: np.ndarray, noise: float = NOISE_LEVEL) -> np.ndarray:
    """At (A At + noise * e1 * I)^-1, [thin, thick], where e1 is the largest eigenvalue of A At.

    Applied to ``thick - A thin`` it gives the smallest change of ``thin`` (in the least-squares sense) that agrees
    with the acquired slices: the null-space projection of inverse problems.
    """
    gram = matrix @ matrix.T
    damping = noise * np.linalg.eigvalsh(gram)[-1]
    return np.linalg.solve(gram + damping * np.eye(len(gram)), matrix).T


def project(thin: np.ndarray, thick: np.ndarray, matrix: np.ndarray, noise: float = NOISE_LEVEL) -> np.ndarray:
    """The answer nearest to ``thin`` that agrees with the acquired slices: x + At(A At + n I)^-1 (y - A x).

    Args:
        thin: an answer [thin, ...], any float dtype.
        thick: the acquired slices [thick, ...].
        matrix: A [thick, thin].
        noise: see `NOISE_LEVEL`; 0 makes ``thicken(result) == thick`` to rounding.
    """
    return thin + along_first_axis(correction_matrix(matrix, noise), thick - thicken(thin, matrix))


def along_first_axis(matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
    """``matrix`` [m, n] applied to the first axis of ``array`` [n, ...] -> [m, ...], in the array's dtype."""
    flat = array.reshape(len(array), -1)
    return (matrix.astype(array.dtype, copy=False) @ flat).reshape(len(matrix), *array.shape[1:])
