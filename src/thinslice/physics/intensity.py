"""The intensity range of a scan: the scale on which networks work and differences are told."""

from collections.abc import Sequence

import numpy as np


def intensity_range(voxels: np.ndarray) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles of the finite voxels, a unit apart at least where the scan is flat.

    They set the scale on which a network works. Nothing is clipped to them.
    """
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    if finite.size == 0:
        return 0.0, 1.0
    percentiles = _counted_percentiles if finite.dtype.kind in "iu" and finite.itemsize <= 2 else np.percentile
    low, high = (float(value) for value in percentiles(finite, [0.5, 99.5]))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1.0


def _counted_percentiles(voxels: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """`np.percentile` of small whole numbers, exactly, by counting them: several times faster than sorting."""
    least = int(voxels.min())
    counts = np.zeros(int(voxels.max()) - least + 1, np.intp)
    for part in np.atleast_2d(voxels):
        counts += np.bincount(part.ravel(order="K").astype(np.intp) - least, minlength=len(counts))
    rank = np.asarray(shares) / 100 * (voxels.size - 1)
    ranks = np.array([np.floor(rank), np.ceil(rank)])
    below, above = np.searchsorted(np.cumsum(counts), ranks, side="right") + least
    answer: np.ndarray = below + (above - below) * (rank - ranks[0])
    return answer
