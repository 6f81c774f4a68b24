"""Padding: one value in all voxels that the scanner did not see. It is computed as air, and put back where it was."""

import numpy as np


def fill_padding(voxels: np.ndarray, padding: float | None) -> np.ndarray:
    """Returns voxels, of any shape, with the smallest other value instead of the padding.

    Far from all others as that value often is, it would stretch the intensity range, look like an edge between the
    slices and be spread by whatever interpolates. The same array comes back where there is nothing to fill.

    Args:
        voxels: of the scan.
        padding: the value; None where there is none.

    Example:
        >>> fill_padding(np.array([-3024, -1000, 40]), -3024).tolist()
        [-1000, -1000, 40]
    """
    if padding is None:
        return voxels
    where = voxels == padding
    if not where.any() or where.all():
        return voxels
    return np.where(where, voxels[~where].min(), voxels)
