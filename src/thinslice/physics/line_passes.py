"""One-dimensional passes: every line of a volume is seen anew at positions that change evenly from line to line.

A rotation, a shear or a change of scale of a volume is three such passes, one along each axis (Catmull and Smith,
SIGGRAPH 1980). In each of them sample ``t`` of the line at ``(a, b)`` looks at position
``start + step * t + slope_a * a + slope_b * b`` of that line, through a kernel: an interpolation, or a slice profile.

Lines whose positions have the same fraction of a voxel share one matrix of weights, and are computed as one product.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np

FRACTIONS = 32
"""Fractions of a voxel that are told apart where positions differ from line to line: they are 1/64 off at most."""

BLOCK = 64
"""Voxels by which a block of samples that is computed as one product is long: most of a longer matrix is zeros."""

CHUNK = 2**21
"""Voxels that are copied together, so that what is in use beside the volumes stays below 50 MB."""


TILE = 32
"""Side in voxels of the cubes in which arrays are copied from one order of axes to another: 128 KB of float32."""


# Compared by identity: two arrays compared give an array, which is neither true nor false.
@dataclass(frozen=True, eq=False)
class LinePass:
    """Says how the samples of every line see its voxels.

    Attributes:
        n_voxels: voxels of a line.
        n_samples: samples of a line.
        step: voxels from one sample to the next, negative where they run the other way.
        start: position of the first sample of line (0, 0), in voxels.
        slopes: by how many voxels the positions lie farther in the next line along either of the two other axes.
        kernel: weights by distances in voxels (voxel minus sample), any shape; they are made to sum to one.
        reach: distance in voxels from which on the kernel is zero.
        is_extended: whether the outermost voxels go on beyond the ends of the line. Otherwise there is nothing there,
            and samples that reach over an end lose that part of their weight.

    Example:
        >>> halves = LinePass(4, 2, 2.0, 0.5, (0.0, 0.0), lambda d: np.maximum(1 - np.abs(d), 0), 1.0)
        >>> halves.forward(np.array([1.0, 3.0, 5.0, 9.0]).reshape(1, 1, 4), axis=2)
        array([[[2., 7.]]])
    """

    n_voxels: int
    n_samples: int
    step: float
    start: float
    slopes: tuple[float, float]
    kernel: Callable[[np.ndarray], np.ndarray]
    reach: float
    is_extended: bool = False

    def forward(self, voxels: np.ndarray, axis: int) -> np.ndarray:
        """Returns the samples of every line.

        Args:
            voxels: any shape of three axes, float32 or float64, in which it is computed; ``n_voxels`` along ``axis``.
            axis: along which the lines run; the two other axes, in their order, are those of ``slopes``.
        """
        if not any(self.slopes):
            return _product(self._matrix, voxels, axis)
        lines, slopes, order = self._arrange(voxels, axis)
        samples = np.empty((*lines.shape[:2], self.n_samples), voxels.dtype)
        for part, before, after, groups in self._parts(lines.shape[:2], slopes):
            padded = self._pad(lines[part], before, after)
            windows = _windows(padded, self._length)
            out = samples[part].reshape(-1, self.n_samples)
            for fraction, chosen, starts in groups:
                seen = windows[starts]
                found = np.empty((len(chosen), self.n_samples), voxels.dtype)
                for target, source, weights in self._blocks[fraction]:
                    found[:, target] = seen[:, source] @ weights.astype(voxels.dtype, copy=False)
                out[chosen] = found
        return samples.transpose(order)

    def adjoint(self, samples: np.ndarray, axis: int) -> np.ndarray:
        """Returns samples carried back to the voxels by the transpose of `forward`.

        Args:
            samples: as the answer of `forward`.
            axis: as there.
        """
        if not any(self.slopes):
            return _product(self._matrix.T, samples, axis)
        lines, slopes, order = self._arrange(samples, axis)
        voxels = np.empty((*lines.shape[:2], self.n_voxels), samples.dtype)
        for part, before, after, groups in self._parts(lines.shape[:2], slopes):
            own = lines[part].reshape(-1, self.n_samples)
            padded = np.zeros((len(own), before + self.n_voxels + after), samples.dtype)
            windows = _windows(padded, self._length)
            for fraction, chosen, starts in groups:
                values = own[chosen]
                carried = np.zeros((len(chosen), self._length), samples.dtype)
                for target, source, weights in self._blocks[fraction]:
                    carried[:, source] += values[:, target] @ weights.astype(samples.dtype, copy=False).T
                # Each line has a window of its own, so none is written to twice.
                windows[starts] = carried
            inside = padded[:, before : before + self.n_voxels]
            if self.is_extended:
                inside[:, 0] += padded[:, :before].sum(axis=1)
                inside[:, -1] += padded[:, before + self.n_voxels :].sum(axis=1)
            voxels[part] = inside.reshape(voxels[part].shape)
        return voxels.transpose(order)

    def _arrange(self, array: np.ndarray, axis: int) -> tuple[np.ndarray, tuple[float, float], list[int]]:
        """Returns a view with its lines along the last axis, the slopes along the others, and how to turn it back.

        The axis that is slower in memory comes first: parts are cut along it, and lines that lie side by side are
        copied together. The other way round every cache line would be fetched again and again.
        """
        first, second = (one for one in range(3) if one != axis)
        slopes = self.slopes
        if abs(array.strides[first]) < abs(array.strides[second]):
            first, second, slopes = second, first, slopes[::-1]
        order = (first, second, axis)
        return array.transpose(order), slopes, np.argsort(order).tolist()

    @cached_property
    def _lowest(self) -> int:
        """The first voxel that a line sees whose first sample lies between voxels 0 and 1."""
        return int(np.floor(min(0.0, self.step * (self.n_samples - 1)) - self.reach))

    @cached_property
    def _length(self) -> int:
        """The number of voxels that a line sees."""
        highest = int(np.ceil(max(0.0, self.step * (self.n_samples - 1)) + 1 + self.reach))
        return highest - self._lowest + 1

    @cached_property
    def _matrix(self) -> np.ndarray:
        """The weights [samples, voxels] of lines that are all alike."""
        positions = self.start + self.step * np.arange(self.n_samples)
        # A stack that lies beyond the grid altogether would otherwise need an endless line.
        positions = np.clip(positions, -2 * self.reach - 2, self.n_voxels + 2 * self.reach + 2)
        first, last = (
            int(edge) for edge in (np.floor(positions.min() - self.reach), np.ceil(positions.max() + self.reach))
        )
        seen = np.arange(min(first, 0), max(last + 1, self.n_voxels))
        weights = self._weights(seen[None, :] - positions[:, None])
        matrix = np.zeros((self.n_samples, self.n_voxels))
        if self.is_extended:
            np.add.at(matrix.T, np.clip(seen, 0, self.n_voxels - 1), weights.T)
        else:
            inside = (seen >= 0) & (seen < self.n_voxels)
            matrix[:, :] = weights[:, inside]
        return matrix

    @cached_property
    def _blocks(self) -> list[list[tuple[slice, slice, np.ndarray]]]:
        """For every fraction: samples, the voxels of a line's window that they see, and weights [voxels, samples]."""
        count = max(1, round(BLOCK / abs(self.step)))
        blocks: list[list[tuple[slice, slice, np.ndarray]]] = []
        for fraction in range(FRACTIONS):
            blocks.append([])
            for begin in range(0, self.n_samples, count):
                target = slice(begin, min(begin + count, self.n_samples))
                positions = self.step * np.arange(target.start, target.stop) + fraction / FRACTIONS - self._lowest
                source = slice(
                    max(int(np.floor(positions.min() - self.reach)), 0),
                    min(int(np.ceil(positions.max() + self.reach)) + 1, self._length),
                )
                distances = np.arange(source.start, source.stop)[:, None] - positions[None, :]
                blocks[-1].append((target, source, self._weights(distances.T).T.astype(np.float32)))
        return blocks

    def _weights(self, distances: np.ndarray) -> np.ndarray:
        """Returns the weights of the kernel, whose sums over the last axis are one."""
        weights = self.kernel(distances)
        total = weights.sum(axis=-1, keepdims=True)
        # Nothing at all is seen by a slice much thinner than the voxels, between two of them.
        normalised: np.ndarray = weights / np.where(total > 0, total, 1.0)
        return normalised

    def _parts(
        self, shape: tuple[int, ...], slopes: tuple[float, float]
    ) -> Iterator[tuple[slice, int, int, list[tuple[int, np.ndarray, np.ndarray]]]]:
        """Yields lines that are computed together: which, voxels to add at both ends, and groups of equal fraction.

        A group is its fraction, its lines, and where the windows of these begin in all padded lines one after another.
        """
        rows = max(1, CHUNK // (shape[1] * (self._length + self.n_voxels)))
        for begin in range(0, shape[0], rows):
            part = slice(begin, min(begin + rows, shape[0]))
            offsets = self.start + slopes[0] * np.arange(part.start, part.stop)[:, None]
            offsets = (offsets + slopes[1] * np.arange(shape[1])).ravel()
            whole, fractions = np.divmod(np.rint(offsets * FRACTIONS).astype(int), FRACTIONS)
            # A window beyond the line altogether sees nothing, or its end, wherever it lies.
            first = np.clip(whole + self._lowest, -self._length, self.n_voxels)
            before = max(0, -int(first.min()))
            after = max(0, int(first.max()) + self._length - self.n_voxels)
            starts = np.arange(len(first)) * (before + self.n_voxels + after) + before + first
            order = np.argsort(fractions, kind="stable")
            bounds = np.searchsorted(fractions[order], np.arange(FRACTIONS + 1))
            groups = [(f, order[low:high], starts[order[low:high]]) for f, (low, high) in enumerate(pairwise(bounds))]
            yield part, before, after, [group for group in groups if len(group[1])]

    def _pad(self, lines: np.ndarray, before: int, after: int) -> np.ndarray:
        """Returns the lines one after another, with voxels added at both ends."""
        count = lines.shape[0] * lines.shape[1]
        padded = np.zeros((count, before + self.n_voxels + after), lines.dtype)
        inside = padded[:, before : before + self.n_voxels]
        inside.reshape(lines.shape)[...] = lines  # a view: only the last axis is cut
        if self.is_extended:
            padded[:, :before] = inside[:, :1]
            padded[:, before + self.n_voxels :] = inside[:, -1:]
        return padded


def _windows(padded: np.ndarray, length: int) -> np.ndarray:
    """Returns a view [starts, length] of all runs of so many voxels in lines that lie one after another."""
    flat = padded.reshape(-1)
    return np.lib.stride_tricks.as_strided(
        flat, (max(flat.size - length + 1, 0), length), (flat.itemsize, flat.itemsize)
    )


def _product(matrix: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """Applies a matrix [m, n] along an axis of an array; the array itself where the matrix changes nothing."""
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
        return array
    matrix = matrix.astype(array.dtype, copy=False)
    # In the order in which the axes lie in memory it is one product, or one for each plane, without a copy.
    order = sorted(range(3), key=lambda one: -abs(array.strides[one]))
    lying = np.ascontiguousarray(array.transpose(order))
    where = order.index(axis)
    found: np.ndarray
    if where == 0:
        found = (matrix @ lying.reshape(len(lying), -1)).reshape(len(matrix), *lying.shape[1:])
    elif where == 1:
        found = matrix @ lying
    else:
        found = (lying.reshape(-1, lying.shape[2]) @ matrix.T).reshape(*lying.shape[:2], len(matrix))
    return found.transpose(np.argsort(order))


def to_contiguous(array: np.ndarray) -> np.ndarray:
    """Returns an array of three axes with its last axis fastest in memory.

    Cube by cube, as each fits into a processor's cache: of a large array whose axes lie in another order numpy would
    fetch every cache line many times.
    """
    if array.flags.c_contiguous:
        return array
    copied = np.empty(array.shape, array.dtype)
    for corner in product(*(range(0, size, TILE) for size in array.shape)):
        cube = tuple(slice(at, at + TILE) for at in corner)
        copied[cube] = array[cube]
    return copied
