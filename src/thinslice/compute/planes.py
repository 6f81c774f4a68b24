"""Stacks of slices made larger by networks for planes: in-plane, slice by slice, and in depth, plane by plane.

What Georgescu et al. 2020 (sec. III) do with their two networks; ``fuse`` is their "++": the same in several
orientations, and the median or the mean of the answers. Planes are shown to a network with their edges repeated, as far
as it can see, so that it never meets the zeros with which convolutions fill what is missing.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from thinslice.compute.guard import GuardCount, find_suspect_cells, make_keep_map
from thinslice.models.engine import WORKERS, Enlarger
from thinslice.physics.downscaling import downscaling_matrix
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.progress import no_progress, part_of

PIXELS = 2**19
"""Of the enlarged planes that a network makes in one call."""


def enlarge_slices(
    slices: np.ndarray,
    factor: int,
    interpolation: str,
    network: Enlarger | None = None,
    fuse: bool = False,
    progress: Callable[[float], None] = no_progress,
) -> tuple[np.ndarray, GuardCount]:
    """Make every slice ``factor`` times larger along both of its axes, outer edges kept.

    Where the network's answer, made small again, is farther from the acquired slice than the interpolation is, it is
    not taken (`thinslice.compute.guard`).

    Args:
        slices: [n, h, w] float32, normalised intensities.
        factor: whole.
        interpolation: what the network corrects, or the answer itself without a network.
        network: for planes of this factor along both axes.
        fuse: the median over the eight turns and flips of a slice.
        progress: called with the share done, 0 .. 1.

    Returns:
        float32 [n, factor h, factor w], and the guard's count.
    """
    count, height, width = slices.shape
    margin = max(network.reach) if network is not None else 0
    rows, columns = (
        enlarging_matrix(size, factor, interpolation, margin).astype(np.float32) for size in (height, width)
    )
    small_rows, small_columns = (downscaling_matrix(size, factor).astype(np.float32) for size in (height, width))
    inner = slice(factor * margin, -factor * margin or None)
    answer = np.empty((count, factor * height, factor * width), np.float32)
    bounds = (float(slices.min()), float(slices.max()))
    cells: list[np.ndarray] = []

    def disagreement(large: np.ndarray, plane: np.ndarray) -> np.ndarray:
        small: np.ndarray = small_rows @ large @ small_columns.T - plane
        return small

    def fill(index: int) -> None:
        plane = np.pad(slices[index], margin, mode="edge")[None]
        base = rows @ plane @ columns.T
        answer[index] = base[0, inner, inner]
        if network is None:
            return
        turns = _turns() if fuse else [(_as_it_is, _as_it_is)]
        said = np.median([back(network(turn(plane), turn(base))) for turn, back in turns], axis=0)[0, inner, inner]
        whole = np.where(np.isfinite(said), said, answer[index])
        by_network, by_base = (disagreement(a, slices[index]) for a in (whole, answer[index]))
        suspect = find_suspect_cells(_in_pixels(said, factor), by_network, by_base, bounds)
        cells.append(suspect)
        keep = make_keep_map(suspect, (height, width)).repeat(factor, axis=0).repeat(factor, axis=1)
        answer[index] += keep * (whole - answer[index])

    _at_once(fill, range(count), progress, network.workers if network is not None else WORKERS)
    return answer, sum((GuardCount().with_slab(c) for c in cells), GuardCount())


def enlarge_depth(
    slices: np.ndarray,
    beyond: int,
    factor: int,
    interpolation: str,
    network: Enlarger,
    fuse: bool = False,
    progress: Callable[[float], None] = no_progress,
) -> np.ndarray:
    """Make ``factor`` slices of every one, by planes that run through the slices; outer edges kept.

    Args:
        slices: [beyond + n + beyond, h, w] float32, normalised intensities.
        beyond: slices at both ends that are only looked at.
        factor, interpolation: as above.
        network: for planes of this factor along their first axis.
        fuse: the mean over planes along both in-plane axes, each as it is and mirrored.
        progress: as above.

    Returns:
        float32 [factor n, h, w].
    """
    matrix = enlarging_matrix(len(slices), factor, interpolation).astype(np.float32)
    wanted = slice(factor * beyond, len(matrix) - factor * beyond)
    answer = np.zeros((wanted.stop - wanted.start, *slices.shape[1:]), np.float32)
    ways = [(2, False), (2, True), (1, False), (1, True)] if fuse else [(2, False)]

    def look(along: int, mirrored: bool, told: Callable[[float], None]) -> None:
        seen, out = (np.moveaxis(a, (0, along), (1, 2)) for a in (slices, answer))  # [line, slice, along]
        backwards = slice(None, None, -1 if mirrored else 1)
        margin = network.reach[1]
        at_once = max(1, PIXELS // (len(matrix) * (seen.shape[2] + 2 * margin)))

        def add(start: int) -> None:
            lines = slice(start, start + at_once)
            planes = np.pad(seen[lines, :, backwards], ((0, 0), (0, 0), (margin, margin)), mode="edge")
            said = network(planes, np.matmul(matrix, planes))[:, wanted, margin : planes.shape[2] - margin]
            out[lines] += said[:, :, backwards] / np.float32(len(ways))

        _at_once(add, range(0, len(seen), at_once), told, network.workers)

    for way, (along, mirrored) in enumerate(ways):
        look(along, mirrored, part_of(progress, way / len(ways), (way + 1) / len(ways)))
    return answer


def enlarging_matrix(size: int, factor: int, interpolation: str, margin: int = 0) -> np.ndarray:
    """[factor * n, n] on the field-of-view grid, n = size + 2 margin."""
    n = size + 2 * margin
    return INTERPOLATIONS[interpolation]((np.arange(factor * n) - (factor - 1) / 2) / factor, n)


def _in_pixels(large: np.ndarray, factor: int) -> np.ndarray:
    """[factor h, factor w] -> [factor^2, h, w]: all that lies inside one small pixel, one after the other."""
    height, width = (size // factor for size in large.shape)
    return large.reshape(height, factor, width, factor).transpose(1, 3, 0, 2).reshape(factor**2, height, width)


def _at_once(work: Callable[[int], None], items: range, progress: Callable[[float], None], workers: int) -> None:
    """Some items beside each other; the first failure is raised, and nothing new is begun after it."""
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            for done, job in enumerate(jobs, 1):
                job.result()
                progress(done / len(jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def _as_it_is(planes: np.ndarray) -> np.ndarray:
    return planes


def _turns() -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]]:
    """The eight turns and flips of planes [n, h, w], and what undoes each."""
    for turned in (False, True):
        for axes in ((), (1,), (2,), (1, 2)):

            def turn(planes: np.ndarray, turned: bool = turned, axes: tuple[int, ...] = axes) -> np.ndarray:
                planes = planes.swapaxes(1, 2) if turned else planes
                return np.ascontiguousarray(np.flip(planes, axes))

            def back(planes: np.ndarray, turned: bool = turned, axes: tuple[int, ...] = axes) -> np.ndarray:
                planes = np.flip(planes, axes)
                return planes.swapaxes(1, 2) if turned else planes

            yield turn, back
