"""Gaussian blurs of volumes, axis by axis."""

import numpy as np

from thinslice.physics.acquisition import apply_along_first_axis


def blur_along(volume: np.ndarray, axis: int, sigma_vox: float, is_mean: bool = False) -> np.ndarray:
    """Returns a volume blurred by a Gaussian along one axis.

    Args:
        volume: any shape, float32 or float64.
        axis: along which it is blurred.
        sigma_vox: standard deviation of the Gaussian.
        is_mean: whether the weights of what lies inside sum to one. Otherwise that of a voxel itself is one: divide by
            what weights of the volume give.

    Example:
        >>> blur_along(np.array([[0.0, 1.0, 0.0]]), 1, 1.0).round(2)
        array([[0.61, 1.  , 0.61]])
    """
    index = np.arange(volume.shape[axis])
    weights = np.exp(-0.5 * ((index[:, None] - index) / sigma_vox) ** 2)
    if is_mean:
        weights /= weights.sum(axis=1, keepdims=True)
    return np.moveaxis(apply_along_first_axis(weights, np.moveaxis(volume, axis, 0)), 0, axis)


def blur(volume: np.ndarray, sigma_vox: float) -> np.ndarray:
    """Returns the Gaussian mean around each voxel; along each axis the weights of what lies inside sum to one.

    Example:
        >>> blur(np.array([0.0, 0.0, 16.0, 0.0, 0.0]).reshape(5, 1, 1), 1.0).ravel().round(1)
        array([1.2, 4.1, 6.4, 4.1, 1.2])
    """
    for axis in range(volume.ndim):
        volume = blur_along(volume, axis, sigma_vox, is_mean=True)
    return np.ascontiguousarray(volume)
