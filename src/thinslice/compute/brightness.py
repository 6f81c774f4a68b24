"""Smooth differences in brightness between stacks: coils see one direction of slices otherwise than another."""

from collections.abc import Sequence

import numpy as np

from thinslice.compute.blur import blur_along

BLOCK_MM = 6.0
"""Brightness is compared on a grid so coarse: it changes slowly."""

SMOOTH_MM = 20.0
"""Standard deviation of the neighbourhood whose brightness is compared: anatomy is finer, a coil's field is not."""

LIMITS = (0.4, 2.5)
"""Ratios of brightness beyond these are no field of a coil, but anatomy that one of the stacks does not see."""

LITTLE = 1e-3
"""Where less is common than this share of the most, brightness is taken to be the same."""


def find_field(one: np.ndarray, other: np.ndarray, weight: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns the brightness of one volume over that of another, smooth, float32 of their shape.

    Args:
        one, other: volumes on one grid, zero where nothing is.
        weight: how much each voxel counts: 0 where only one of them sees.
        spacing_mm: of the voxels.

    Example:
        >>> other = np.ones((12, 12, 12), np.float32)
        >>> float(find_field(1.5 * other, other, other, (6.0, 6.0, 6.0)).mean().round(2))
        1.5
    """
    block = [max(round(BLOCK_MM / mm), 1) for mm in spacing_mm]
    sigma = [SMOOTH_MM / (mm * size) for mm, size in zip(spacing_mm, block, strict=True)]
    # Weighted by the brightness of both: noise and air have no say, and where the two differ by chance neither wins.
    numerator, denominator = (_smooth(_blocks(weight * volume, block), sigma) for volume in (one, other))
    little = LITTLE * denominator.max()
    if little <= 0:
        return np.ones(one.shape, np.float32)
    field = np.clip((numerator + little) / (denominator + little), *LIMITS)
    return _enlarge(field, one.shape, block).astype(np.float32)


def _smooth(volume: np.ndarray, sigma_vox: Sequence[float]) -> np.ndarray:
    for axis, sigma in enumerate(sigma_vox):
        volume = blur_along(volume, axis, sigma)
    return volume


def _blocks(volume: np.ndarray, block: Sequence[int]) -> np.ndarray:
    """Returns the sums over blocks of voxels; the last ones may be smaller."""
    for axis, size in enumerate(block):
        volume = np.add.reduceat(volume, np.arange(0, volume.shape[axis], size), axis=axis, dtype=np.float64)
    return volume


def _enlarge(coarse: np.ndarray, shape: Sequence[int], block: Sequence[int]) -> np.ndarray:
    """Returns a coarse volume on straight lines between the middles of its blocks."""
    for axis, (count, size) in enumerate(zip(shape, block, strict=True)):
        place = np.clip((np.arange(count) + 0.5) / size - 0.5, 0, coarse.shape[axis] - 1)
        first = np.minimum(place.astype(int), max(coarse.shape[axis] - 2, 0))
        second = np.minimum(first + 1, coarse.shape[axis] - 1)
        share = (place - first).reshape([count if other == axis else 1 for other in range(3)])
        coarse = coarse.take(first, axis=axis) * (1 - share) + coarse.take(second, axis=axis) * share
    return coarse
