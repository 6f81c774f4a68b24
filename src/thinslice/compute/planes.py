"""Enlarges the slices of a stack in-plane, one by one, by an interpolation or by a network for planes.

The first of the two networks of Georgescu et al. 2020 (sec. III); ``fuse`` is their "++": the same in several
orientations, and the median of the answers. The second is in `thinslice.models.plane_networks`.
"""

from collections.abc import Callable, Iterator

import numpy as np

from thinslice.compute.guard import GuardCount, find_suspect_cells, make_keep_map
from thinslice.models.plane_networks import enlarging_matrix, run_beside_each_other
from thinslice.models.protocol import WORKERS, Enlarger
from thinslice.physics.downscaling import downscaling_matrix
from thinslice.progress import Progress, no_progress


def enlarge_slices(
    slices: np.ndarray,
    factor: int,
    base: str,
    network: Enlarger | None = None,
    fuse: bool = False,
    progress: Progress = no_progress,
) -> tuple[np.ndarray, GuardCount]:
    """Makes every slice ``factor`` times larger along both of its axes, outer edges kept.

    Where the network's answer, made small again, is farther from the acquired slice than the interpolation is, it is
    not taken (`thinslice.compute.guard`).

    Args:
        slices: [n, h, w] float32, normalised intensities.
        factor: whole.
        base: the interpolation that the network corrects, or that is the answer itself without a network.
        network: for planes of this factor along both axes.
        fuse: the median over the eight turns and flips of a slice.
        progress: called with the share done, 0 .. 1.

    Returns:
        float32 [n, factor h, factor w], and the guard's count.
    """
    count, height, width = slices.shape
    margin = max(network.reach) if network is not None else 0
    rows, columns = (enlarging_matrix(size, factor, base, margin).astype(np.float32) for size in (height, width))
    small_rows, small_columns = (downscaling_matrix(size, factor).astype(np.float32) for size in (height, width))
    # `or None`, as without a margin the slice would end at -0, before it begins.
    inner = slice(factor * margin, -factor * margin or None)
    answer = np.empty((count, factor * height, factor * width), np.float32)
    bounds = (float(slices.min()), float(slices.max()))
    cells: list[np.ndarray] = []

    def disagreement(large: np.ndarray, plane: np.ndarray) -> np.ndarray:
        small: np.ndarray = small_rows @ large @ small_columns.T - plane
        return small

    def fill(index: int) -> None:
        # Edges are repeated as far as the network sees: it must never meet the zeros of its own convolutions.
        plane = np.pad(slices[index], margin, mode="edge")[None]
        enlarged = rows @ plane @ columns.T
        answer[index] = enlarged[0, inner, inner]
        if network is None:
            return
        turns = _turns() if fuse else [(_as_it_is, _as_it_is)]
        by_turns = [back(network(turn(plane), turn(enlarged))) for turn, back in turns]
        found = np.median(by_turns, axis=0)[0, inner, inner]
        # The guard sees what is not finite in ``found``; blended with a weight of 0 it would stay NaN.
        whole = np.where(np.isfinite(found), found, answer[index])
        by_network, by_base = (disagreement(a, slices[index]) for a in (whole, answer[index]))
        suspect = find_suspect_cells(_in_pixels(found, factor), by_network, by_base, bounds)
        # By several threads at once, which appending allows, and in any order, which a sum does not mind.
        cells.append(suspect)
        keep = make_keep_map(suspect, (height, width)).repeat(factor, axis=0).repeat(factor, axis=1)
        answer[index] += keep * (whole - answer[index])

    run_beside_each_other(fill, range(count), progress, network.workers if network is not None else WORKERS)
    return answer, sum((GuardCount().with_slab(c) for c in cells), GuardCount())


def _in_pixels(large: np.ndarray, factor: int) -> np.ndarray:
    """Returns [factor^2, h, w] of [factor h, factor w]: all that lies inside one small pixel, one after the other."""
    height, width = (size // factor for size in large.shape)
    return large.reshape(height, factor, width, factor).transpose(1, 3, 0, 2).reshape(factor**2, height, width)


def _as_it_is(planes: np.ndarray) -> np.ndarray:
    return planes


def _turns() -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]]:
    """Yields the eight turns and flips of planes [n, h, w], and what undoes each."""
    for turned in (False, True):
        for axes in ((), (1,), (2,), (1, 2)):
            # Defaults bind the values of this round: closures that are kept would all be the last turn.
            def turn(planes: np.ndarray, turned: bool = turned, axes: tuple[int, ...] = axes) -> np.ndarray:
                planes = planes.swapaxes(1, 2) if turned else planes
                return np.ascontiguousarray(np.flip(planes, axes))

            def back(planes: np.ndarray, turned: bool = turned, axes: tuple[int, ...] = axes) -> np.ndarray:
                planes = np.flip(planes, axes)
                return planes.swapaxes(1, 2) if turned else planes

            yield turn, back
