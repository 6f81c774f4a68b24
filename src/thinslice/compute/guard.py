"""The guard: does a network's answer, before any projection, still agree with what the scanner acquired?

It needs no truth. The thin slices nearest to one acquired slice, a slab, are looked at in square cells. A cell is
suspect where the network's answer, made thick again, is farther from the acquired slice than the interpolation it
started from (and than a small amount that a good answer may reach), where it leaves the range of the scan, or where it
is not finite. There the network's correction is dropped, which leaves projected interpolation. What the acquired slices
cannot tell either way, no such test can see.
"""

from dataclasses import dataclass

import numpy as np

CELL = 32
"""Largest side of a cell in pixels; a slice is divided into equal ones."""

DISAGREEMENT = 0.02
"""RMS distance from the acquired slice within a cell that is always accepted, in intensity ranges of the scan.

On three `iso_dev` crops (x2 with a gap, x4, x8) 99 % of the cells of good answers were below 0.016, and the worst, at
0.021, was half as far as the interpolation there (LOG.md).
"""

NOISE_SHARE = 1.5
"""So many standard deviations of the slices' noise an answer may be away from them besides `DISAGREEMENT`.

An answer without any noise is one away, and sqrt(2) in the air of a magnitude image, where the noise is all above zero.
With 1.2 a perfect answer to slices with 3 % of such noise lost 16 % of its cells, with 1.5 none (LOG.md).
"""

MARGIN = 1.05
"""Above `DISAGREEMENT`, a cell may be this many times as far from the acquired slice as the interpolation is."""

ENORMOUS = 1e12
"""Stands for what is not finite, and is far above the square of any difference between normalised intensities."""

OVERSHOOT = 0.5
"""How far beyond the smallest and largest acquired value an answer may reach, in intensity ranges."""


@dataclass(frozen=True)
class GuardCount:
    """Counts the cells that were looked at, and those that fell back to interpolation.

    Example:
        >>> count = GuardCount().with_slab(np.array([[True, False]])) + GuardCount(cells=6, suspect=0)
        >>> count.suspect, count.cells, count.percent
        (1, 8, '12.5 %')
    """

    cells: int = 0
    suspect: int = 0

    @property
    def share(self) -> float:
        """The share of the cells that fell back, 0 .. 1."""
        # Interpolations are not guarded, so there may be no cells at all.
        return self.suspect / self.cells if self.cells else 0.0

    @property
    def percent(self) -> str:
        """The share as text, in three digits."""
        return f"{100 * self.share:.3g} %"

    def with_slab(self, cells: np.ndarray) -> "GuardCount":
        """Returns the count after one more slab, of which it is known which cells are suspect, bool of any shape."""
        return self + GuardCount(cells.size, int(cells.sum()))

    def __add__(self, other: "GuardCount") -> "GuardCount":
        return GuardCount(self.cells + other.cells, self.suspect + other.suspect)


def find_suspect_cells(
    answer: np.ndarray,
    by_network: np.ndarray,
    by_base: np.ndarray,
    bounds: tuple[float, float],
    noise: float = 0.0,
) -> np.ndarray:
    """Returns which cells of a slab must not be trusted.

    Args:
        answer: the network's answer [thin, h, w], before any projection, in normalised intensities.
        by_network: that answer made thick again, minus the acquired slice [h, w].
        by_base: the same for the interpolation that the network corrects.
        bounds: smallest and largest acquired value of the scan, in normalised intensities.
        noise: standard deviation of the noise of the acquired slices, in normalised intensities. An answer need not
            agree with a slice better than the slice agrees with itself.

    Returns:
        bool [ceil(h / CELL), ceil(w / CELL)].
    """
    always = np.hypot(DISAGREEMENT, NOISE_SHARE * noise)
    # What is not finite is found below, and no news: numpy shall not warn of it.
    with np.errstate(invalid="ignore", over="ignore"):
        distance, accepted = (np.sqrt(_cell_mean(d.astype(np.float64) ** 2)) for d in (by_network, by_base))
        outside = ((answer < bounds[0] - OVERSHOOT) | (answer > bounds[1] + OVERSHOOT)).any(axis=0)
        finite = np.isfinite(answer).all(axis=0)
        broken = _cell_mean((outside | ~finite).astype(np.float64)) > 0
        # Not "greater than": a comparison with NaN is false, and then the cell must be suspect.
        suspect: np.ndarray = ~(distance <= np.maximum(MARGIN * accepted, always)) | broken
        return suspect


def make_keep_map(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns how much of a network's correction is kept, float32 [h, w].

    It is 0 inside suspect cells, 1 far from them, and a ramp in the neighbouring cells, so that no seam is seen.

    Args:
        cells: which are suspect, from `find_suspect_cells`.
        shape: (h, w) in pixels.
    """
    keep = 1.0 - cells.astype(np.float32)
    around = np.pad(keep, 1, mode="edge")
    rows, columns = keep.shape
    # A neighbour of a suspect cell gets 0 at its centre too, so that the ramp is over before the suspect cell begins.
    shrunk = np.min([around[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)
    (ramp_y, own_y), (ramp_x, own_x) = ((_ramp(size), _shares(size) > 0) for size in shape)
    touched = own_y.T.astype(np.float32) @ cells.astype(np.float32) @ own_x.astype(np.float32) > 0
    return np.where(touched, np.float32(0), np.asarray(ramp_y.T @ shrunk @ ramp_x, np.float32))


def _cell_mean(image: np.ndarray) -> np.ndarray:
    """Returns the means of an image [h, w] over cells [ceil(h / CELL), ceil(w / CELL)]."""
    # Else one pixel would spoil the means of all cells: 0 times infinity is NaN.
    image = np.nan_to_num(image, nan=ENORMOUS, posinf=ENORMOUS, neginf=ENORMOUS)
    rows, columns = (_shares(size) for size in image.shape)
    mean: np.ndarray = rows @ image @ columns.T / (rows.sum(axis=1)[:, None] * columns.sum(axis=1))
    return mean


def _shares(size: int) -> np.ndarray:
    """Returns the share of each pixel in each cell [cells, size].

    The cells are equally wide, so that flipping an image flips them; a pixel may then lie in two.
    """
    count = -(-size // CELL)
    # In units of 1 / count of a pixel, in which the borders of pixels and of cells are whole numbers.
    pixel, cell = np.arange(size) * count, np.arange(count)[:, None] * size
    overlap = np.minimum(pixel + count, cell + size) - np.maximum(pixel, cell)
    shares: np.ndarray = np.maximum(overlap, 0) / count
    return shares


def _ramp(size: int) -> np.ndarray:
    """Returns the weights [cells, size] of linear interpolation between cell centres, held beyond the outermost."""
    count = -(-size // CELL)
    position = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    ramp: np.ndarray = np.maximum(0.0, 1.0 - np.abs(position - np.arange(count)[:, None]))
    return ramp
