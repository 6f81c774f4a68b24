"""Stacks of slices made larger by networks for planes: in-plane, slice by slice, and in depth, plane by plane.

What Georgescu et al. 2020 (sec. III) do with their two networks; ``fuse`` is their "++": the same in several
orientations, and the median of the answers.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from thinslice.degrade import along_first_axis
from thinslice.interpolate import INTERPOLATIONS
from thinslice.runtime import WORKERS, Enlarge

BAND = 32
"""Planes that a network is shown at once."""


def enlarge_slices(
    slices: np.ndarray, factor: int, interpolation: str, network: Enlarge | None = None, fuse: bool = False
) -> np.ndarray:
    """Make every slice ``factor`` times larger along both of its axes, outer edges kept.

    Args:
        slices: [n, h, w] float32, normalised intensities.
        factor: whole.
        interpolation: what the network corrects, or the answer itself without a network.
        network: for planes of this factor along both axes.
        fuse: the median over the eight turns and flips of a slice.

    Returns:
        float32 [n, factor h, factor w].
    """
    _, height, width = slices.shape
    rows, columns = (enlarging_matrix(size, factor, interpolation).astype(np.float32) for size in (height, width))
    answer = np.empty((len(slices), factor * height, factor * width), np.float32)

    def fill(index: int) -> None:
        plane = slices[index : index + 1]
        base = rows @ plane @ columns.T
        if network is None:
            answer[index] = base[0]
        elif fuse:
            answer[index] = np.median([back(network(turn(plane), turn(base))) for turn, back in _turns()], axis=0)[0]
        else:
            answer[index] = network(plane, base)[0]

    _at_once(fill, range(len(slices)))
    return answer


def enlarge_depth(
    slices: np.ndarray, factor: int, interpolation: str, network: Enlarge, fuse: bool = False
) -> np.ndarray:
    """Make ``factor`` slices of every one, by planes that run through the slices; outer edges kept.

    Args:
        slices: [n, h, w] float32, normalised intensities.
        factor, interpolation: as above.
        network: for planes of this factor along their first axis.
        fuse: the mean over planes along both in-plane axes, each as it is and mirrored.

    Returns:
        float32 [factor n, h, w].
    """
    base = along_first_axis(enlarging_matrix(len(slices), factor, interpolation), slices)
    answer = np.zeros_like(base)
    ways = [(2, False), (2, True), (1, False), (1, True)] if fuse else [(2, False)]
    for along, mirrored in ways:  # planes [line, slice, along]
        small, large, out = (np.moveaxis(a, (0, along), (1, 2)) for a in (slices, base, answer))
        backwards = slice(None, None, -1 if mirrored else 1)

        def add(start: int, small=small, large=large, out=out, backwards=backwards) -> None:  # type: ignore[no-untyped-def]
            lines = slice(start, start + BAND)
            planes, bases = (np.ascontiguousarray(a[lines, :, backwards]) for a in (small, large))
            out[lines] += network(planes, bases)[:, :, backwards] / len(ways)

        _at_once(add, range(0, len(small), BAND))
    return answer


def enlarging_matrix(size: int, factor: int, interpolation: str) -> np.ndarray:
    """[factor * size, size] on the field-of-view grid."""
    return INTERPOLATIONS[interpolation]((np.arange(factor * size) - (factor - 1) / 2) / factor, size)


def _at_once(work: Callable[[int], None], items: range) -> None:
    """Some items beside each other; the first failure is raised, and nothing new is begun after it."""
    with ThreadPoolExecutor(WORKERS) as workers:
        jobs = [workers.submit(work, item) for item in items]
        try:
            for job in jobs:
                job.result()
        finally:
            workers.shutdown(cancel_futures=True)


def _turns() -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]]:
    """The eight turns and flips of planes [n, h, w], and what undoes each."""
    for turned in (False, True):
        for axes in ((), (1,), (2,), (1, 2)):

            def turn(planes, turned=turned, axes=axes):  # type: ignore[no-untyped-def]
                planes = planes.swapaxes(1, 2) if turned else planes
                return np.ascontiguousarray(np.flip(planes, axes))

            def back(planes, turned=turned, axes=axes):  # type: ignore[no-untyped-def]
                planes = np.flip(planes, axes)
                return planes.swapaxes(1, 2) if turned else planes

            yield turn, back
