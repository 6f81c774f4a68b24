"""Cuts slices into pieces that a network can see at once, and says how its answers are joined."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tile:
    """One piece of a slice, as rows and columns.

    Attributes:
        read: what the network sees, margin included.
        keep: what is kept of its answer.
        write: where that is in the slice.
    """

    read: tuple[slice, slice]
    keep: tuple[slice, slice]
    write: tuple[slice, slice]


def tiles(height: int, width: int, limit: int, margin: int) -> Iterator[Tile]:
    """Covers a slice with pieces of at most ``limit`` pixels a side, margins included.

    With a margin at least as wide as the network's reach, tiled equals whole to rounding.

    Raises:
        ValueError: the margins take all of a piece.

    Example:
        >>> [tile.write[1] for tile in tiles(10, 10, limit=8, margin=1)][:2]
        [slice(0, 6, None), slice(6, 10, None)]
    """
    for read_y, keep_y, write_y in _spans(height, limit, margin):
        for read_x, keep_x, write_x in _spans(width, limit, margin):
            yield Tile((read_y, read_x), (keep_y, keep_x), (write_y, write_x))


def _spans(length: int, limit: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    # Whole where it fits: margins are computed twice.
    if length <= limit:
        yield slice(0, length), slice(0, length), slice(0, length)
        return
    step = limit - 2 * margin
    if step < 1:
        raise ValueError(f"limit is {limit}, margin {margin}; a tile needs more than two margins")
    for start in range(0, length, step):
        stop = min(start + step, length)
        # No margin beyond the border: there the network meets the same zeros as in the whole slice.
        low, high = max(start - margin, 0), min(stop + margin, length)
        yield slice(low, high), slice(start - low, stop - low), slice(start, stop)


def padded(stack: np.ndarray, multiple: int) -> np.ndarray:
    """Returns [n, h, w] with h and w rounded up to a multiple, the edge repeated.

    Example:
        >>> padded(np.zeros((1, 3, 4)), 2).shape
        (1, 4, 4)
    """
    rows, columns = (-size % multiple for size in stack.shape[1:])
    if rows == 0 and columns == 0:
        return stack
    # Repeated, not dark: a border between anatomy and nothing would be something to see.
    return np.pad(stack, ((0, 0), (0, rows), (0, columns)), mode="edge")
