"""Slices that lie neither one behind the other nor evenly: shifted within their planes, and seen at even places.

With a tilted gantry each slice lies a little aside of the one before. Shifted back by parts of a pixel they are a
stack at right angles. Where distances differ, or a slice is missing, a smooth curve through the slices tells what
would lie at even places; what was acquired is what the answer has to agree with, at the places where it was.
"""

from dataclasses import dataclass

import numpy as np

from thinslice.volume import Measured

LOBES = 8
"""Half width in pixels of the windowed sinc that shifts slices.

By half a pixel and back, a CT of a chest lost 0.1 % of its range (RMS), a sharp MR of a head 0.5 %; cubic splines lost
twice that, and 6 lobes a fifth more.
"""

TILT_DEGREES = 0.1
"""The largest angle between the line of the slices and their normal: more is a tilted gantry."""

WHOLE_PX = 1e-3
"""Shifts that are so near to whole pixels are made by whole ones, which leaves every value as it is."""

SAME_PLACE = 0.02
"""A slice that is no farther from an even place, in slice spacings, lies there: headers round positions."""

LATTICE = 0.1
"""Steps that are all so near to multiples of the usual step are those of even slices of which some are missing."""

GAP = 1.5
"""Steps of more slice spacings are gaps, in which at least one slice is missing."""

FEWEST_COARSE = 3
"""So many equal steps in a row are a coarser part of a stack: scanners change the distance, files get lost singly."""

WIDEST_GAP = 4.5
"""The largest distance of two slices of one stack, in usual spacings: three slices in a row may be missing.

Across more a smooth curve is no more than a guess, and what lies on both sides are two stations of an acquisition.
"""

WIDEST_GAP_OF_NETWORKS = 2.5
"""The largest that a network is asked to fill: one may be missing.

There its answer was 1.0 to 1.4 dB nearer to the truth than a cubic curve; with two in a row it gained 0.1 dB (LOG.md).
"""

SHORTEST_STEP = 0.2
"""Slices that are closer, in usual steps, are no single stack."""


@dataclass(frozen=True, eq=False)
class UprightGrid:
    """An even grid at right angles that holds all slices of a stack.

    Attributes:
        affine: [4, 4], voxel index -> patient millimetres.
        shape: large enough for all slices.
        places, offsets_px: where the slices lie in it, see `thinslice.volume.Measured`.
        degrees: by how much the line of the slices is off their normal; 0 where that is not worth a shift.
        affine_acquired: [4, 4] of the slices in a row as they are, tilted or not, at their mean distance.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    places: np.ndarray
    offsets_px: np.ndarray
    degrees: float
    affine_acquired: np.ndarray


def find_upright_grid(
    affine: np.ndarray, shape: tuple[int, int, int], axis: int, origins_mm: np.ndarray
) -> UprightGrid:
    """Returns the even grid at right angles that holds parallel slices.

    Args:
        affine: [4, 4] of the slices in a row, of which the columns within the slices count.
        shape: of the array, of which the sizes within the slices count.
        axis: the array axis across the slices.
        origins_mm: [n, 3], the centre of the first voxel of each slice; they ascend along one side of the slices.

    Example:
        >>> origins_mm = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 4.0], [0.0, 2.0, 8.0]])
        >>> grid = find_upright_grid(np.diag([1.0, 2.0, 4.0, 1.0]), (8, 8, 3), 2, origins_mm)
        >>> grid.shape, round(grid.degrees, 1), grid.offsets_px[:, 1]
        ((8, 9, 3), 14.0, array([0. , 0.5, 1. ]))
    """
    within = [other for other in range(3) if other != axis]
    pixels = np.array(affine[:3, within], np.float64)
    normal = np.cross(pixels[:, 0], pixels[:, 1])
    normal /= np.linalg.norm(normal)
    normal *= np.sign(normal @ (origins_mm[-1] - origins_mm[0])) or 1.0
    steps = np.linalg.solve(np.column_stack([pixels, normal]), (origins_mm - origins_mm[0]).T)
    offsets_px, along_mm = steps[:2].T, steps[2]
    spacing_mm, places = find_even_places(along_mm)
    # Not of the last slice alone: those between may lie aside of both ends.
    aside_mm = np.linalg.norm(offsets_px @ pixels.T, axis=1).max()
    degrees = float(np.degrees(np.arctan2(aside_mm, along_mm[-1])))
    if degrees <= TILT_DEGREES:
        degrees, offsets_px = 0.0, np.zeros_like(offsets_px)
    room = np.ceil(np.ptp(offsets_px, axis=0) - WHOLE_PX)
    # In the middle of whole pixels, so that a file that runs the other way has the same grid.
    first = offsets_px.min(axis=0) - (room - np.ptp(offsets_px, axis=0)) / 2
    # Headers round: an axis along which nothing moves keeps its pixels.
    first[room == 0], offsets_px[:, room == 0] = 0.0, 0.0
    offsets_px = offsets_px - first
    upright = np.array(affine, np.float64)
    upright[:3, axis] = normal * spacing_mm
    upright[:3, 3] = origins_mm[0] + pixels @ first + normal * (along_mm - places * spacing_mm).mean()
    sizes = list(shape)
    sizes[axis] = round(float(places[-1])) + 1
    for side, other in enumerate(within):
        sizes[other] += int(room[side])
    return UprightGrid(upright, (sizes[0], sizes[1], sizes[2]), places, offsets_px, degrees, affine)


def straighten(measured: Measured, shape: tuple[int, int, int], axis: int, padding: float | None = None) -> np.ndarray:
    """Returns acquired slices shifted to their places within an upright grid, each where it lies along the slice axis.

    Beyond its edges, and those of padding, a slice is held: an edge there would be taken for anatomy. Padding is moved
    by whole pixels.

    Args:
        measured: the slices.
        shape: of the grid; as many slices as there are stay.
        axis: the array axis across them.
        padding: the value of what the scanner did not see; None if there is none.

    Returns:
        [x, y, z] or [x, y, z, t], the voxels themselves where nothing has to be shifted; else float32, or float64 where
        float32 would lose digits.
    """
    within = [other for other in range(3) if other != axis]
    if not np.any(measured.offsets_px):
        return measured.voxels
    kind = np.float32 if measured.voxels.dtype.itemsize <= 2 or measured.voxels.dtype == np.float32 else np.float64
    size = shape[within[0]], shape[within[1]]
    stacks = np.moveaxis(measured.voxels, axis, 0)
    straight = np.empty((len(stacks), *size, *stacks.shape[3:]), kind)
    where = stacks == padding if padding is not None else None
    for index, (along_rows, along_columns) in enumerate(measured.offsets_px):
        offset = along_rows, along_columns
        for at in np.ndindex(*stacks.shape[3:]):
            one = stacks[(index, ..., *at)]
            mask = None if where is None else where[(index, ..., *at)]
            moved = shift_slice(one if mask is None else hold(one, mask), offset, size)
            if mask is not None:
                moved[shift_mask(mask, offset, size)] = padding
            straight[(index, ..., *at)] = moved
    return np.moveaxis(straight, 0, axis)


def find_even_places(along_mm: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the spacing in mm of even slices, and where some uneven ones lie among them, in these spacings.

    The first and the last lie at even places. Slices of which some are missing lie at even places all.

    Args:
        along_mm: [n] positions along the normal of the slices, ascending, two at least.

    Example:
        >>> find_even_places(np.array([0.0, 4.0, 8.0, 16.0]))
        (4.0, array([0., 1., 2., 4.]))
        >>> find_even_places(np.array([0.0, 4.0, 9.0, 12.0]))
        (4.0, array([0.  , 1.  , 2.25, 3.  ]))
    """
    along_mm = np.asarray(along_mm, np.float64)
    steps_mm = np.diff(along_mm)
    shortest = float(np.median(steps_mm[steps_mm < 1.1 * steps_mm.min()]))
    times = np.rint(steps_mm / shortest)
    single = "".join("1" if one == 1 else " " for one in times)
    # Where they come singly among wider ones, the short steps are no usual ones.
    is_usual = single.count("1") * 2 >= len(times) or "1" * FEWEST_COARSE in single
    if is_usual and np.abs(steps_mm / shortest - times).max() < LATTICE:
        places = np.concatenate([[0.0], np.cumsum(times)])
        # Over all positions, not from the first to the last alone: each was rounded in its header.
        centred = places - places.mean()
        spacing_mm = float(centred @ along_mm / (centred @ centred))
        if np.abs((along_mm - along_mm.mean()) / spacing_mm - centred).max() <= SAME_PLACE:
            return spacing_mm, places
    usual_mm = float(np.median(steps_mm))
    extent_mm = float(along_mm[-1] - along_mm[0])
    count = round(extent_mm / usual_mm)
    if not find_coarse_parts(along_mm / usual_mm):
        # As many as there are, and those that are missing: a spacing that is a little off would shift all the rest.
        count = int(np.where(steps_mm > GAP * usual_mm, np.rint(steps_mm / usual_mm), 1).sum())
    spacing_mm = extent_mm / max(count, 1)
    return spacing_mm, (along_mm - along_mm[0]) / spacing_mm


def find_even_run(places: np.ndarray) -> slice:
    """Returns the longest run of slices that lie at even places one after the other.

    Example:
        >>> find_even_run(np.array([0.0, 1.0, 3.0, 4.0, 5.0, 7.0]))
        slice(2, 5, None)
    """
    there = np.abs(places - np.rint(places)) <= SAME_PLACE
    best, first = slice(0, 0), 0
    for at in range(1, len(places) + 1):
        goes_on = at < len(places) and there[at - 1] and there[at] and round(float(places[at] - places[at - 1])) == 1
        if not goes_on:
            if at - first > best.stop - best.start:
                best = slice(first, at)
            first = at
    return best


def is_even(places: np.ndarray | tuple[float, ...]) -> bool:
    """Tells whether slices lie at all even places from the first on."""
    return bool(np.array_equal(places, np.arange(len(places))))


def find_gaps(places: np.ndarray) -> list[tuple[int, float]]:
    """Returns the gaps among slices: the number of the slice before each, from 0, and how many spacings it is wide.

    Where `FEWEST_COARSE` steps in a row are equally wide nothing is missing: that part of the stack is coarser.

    Example:
        >>> find_gaps(np.array([0.0, 1.0, 3.0, 4.1]))
        [(1, 2.0)]
        >>> find_gaps(np.array([0.0, 1.0, 2.0, 4.0, 6.0, 8.0]))
        []
    """
    steps = np.diff(places)
    coarse = {at for first, last in find_coarse_parts(places) for at in range(first, last)}
    return [(int(at), float(steps[at])) for at in np.flatnonzero(steps > GAP) if int(at) not in coarse]


def find_coarse_parts(places: np.ndarray) -> list[tuple[int, int]]:
    """Returns the first and the last slice of each part of a stack in which distances are larger, but equal.

    Example:
        >>> find_coarse_parts(np.array([0.0, 1.0, 2.0, 4.0, 6.0, 8.0]))
        [(2, 5)]
    """
    steps = np.diff(places)
    parts = []
    first = 0
    for at in range(1, len(steps) + 1):
        if at == len(steps) or abs(steps[at] - steps[first]) > LATTICE * steps[first]:
            if steps[first] > GAP and at - first >= FEWEST_COARSE:
                parts.append((first, at))
            first = at
    return parts


def find_missing(places: np.ndarray, count: int) -> np.ndarray:
    """Returns which of the even places 0 .. count - 1 have no slice near them.

    Example:
        >>> find_missing(np.array([0.0, 1.2, 3.0, 4.0]), 5)
        array([2])
    """
    apart = np.abs(np.asarray(places)[None, :] - np.arange(count)[:, None]).min(axis=1)
    return np.flatnonzero(apart >= 0.5)


def even_matrix(places: np.ndarray, count: int) -> np.ndarray:
    """Returns the matrix [count, n] of the smooth curve through slices at some places, seen at 0 .. count - 1.

    The curve is the natural choice for uneven places: the cubic spline through all of them, mirrored at both ends, as
    `thinslice.physics.interpolation.cubic_matrix` is for even ones. A slice that lies at an even place is kept as it
    is.

    Args:
        places: [n] of the slices, ascending from 0 to ``count - 1``.
        count: even places.

    Example:
        >>> even_matrix(np.array([0.0, 1.0, 3.0, 4.0]), 5).round(3) + 0.0
        array([[ 1. ,  0. ,  0. ,  0. ],
               [ 0. ,  1. ,  0. ,  0. ],
               [-0.3,  0.8,  0.8, -0.3],
               [ 0. ,  0. ,  1. ,  0. ],
               [ 0. ,  0. ,  0. ,  1. ]])
    """
    places = np.asarray(places, np.float64)
    matrix = _spline_matrix(places, np.arange(count, dtype=np.float64))
    nearest = np.abs(places[None, :] - np.arange(count)[:, None]).argmin(axis=1)
    there = np.abs(places[nearest] - np.arange(count)) <= SAME_PLACE
    matrix[there] = np.eye(len(places))[nearest[there]]
    return matrix


def _spline_matrix(places: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the matrix [at, n] of the cubic spline through values at ``places``, whose slope is 0 at both ends."""
    n = len(places)
    steps = np.diff(places)
    # Its second derivatives m solve a tridiagonal system, L m = R values (de Boor, A Practical Guide to Splines, IV).
    left, right = np.zeros((n, n)), np.zeros((n, n))
    for i in range(1, n - 1):
        before, behind = steps[i - 1], steps[i]
        left[i, i - 1 : i + 2] = before, 2 * (before + behind), behind
        right[i, i - 1 : i + 2] = 6 / before, -6 / before - 6 / behind, 6 / behind
    left[0, :2] = left[-1, -1:-3:-1] = 2.0, 1.0
    right[0, :2] = -6 / steps[0] ** 2, 6 / steps[0] ** 2
    right[-1, -1:-3:-1] = -6 / steps[-1] ** 2, 6 / steps[-1] ** 2
    curvature = np.linalg.solve(left, right)
    index = np.clip(np.searchsorted(places, at, side="right") - 1, 0, n - 2)
    step = steps[index]
    b = (at - places[index]) / step
    a = 1 - b
    rows = np.eye(n)
    spline: np.ndarray = (
        a[:, None] * rows[index]
        + b[:, None] * rows[index + 1]
        + ((a**3 - a) * step**2 / 6)[:, None] * curvature[index]
        + ((b**3 - b) * step**2 / 6)[:, None] * curvature[index + 1]
    )
    return spline


def shift_matrix(offset_px: float, n_in: int, n_out: int) -> np.ndarray:
    """Returns the matrix [n_out, n_in] by which lines that begin ``offset_px`` inside another grid are seen on that.

    Beyond its ends a line is held. A shift by whole pixels leaves every value as it is.

    Example:
        >>> shift_matrix(1.0, n_in=2, n_out=4)
        array([[1., 0.],
               [1., 0.],
               [0., 1.],
               [0., 1.]])
    """
    matrix = np.zeros((n_out, n_in))
    if abs(offset_px - round(offset_px)) < WHOLE_PX:
        matrix[np.arange(n_out), np.clip(np.arange(n_out) - round(offset_px), 0, n_in - 1)] = 1.0
        return matrix
    place = np.arange(n_out) - offset_px
    first = np.floor(place).astype(int)
    rows = np.arange(n_out)
    total = np.zeros(n_out)
    for step in range(1 - LOBES, LOBES + 1):
        index = first + step
        weight = _windowed_sinc(place - index)
        total += weight
        np.add.at(matrix, (rows, np.clip(index, 0, n_in - 1)), weight)
    # The windowed sinc does not quite sum to one: unnormalised, a flat image would come back in waves.
    matrix /= total[:, None]
    return matrix


def shift_slice(image: np.ndarray, offset_px: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Returns a slice [h, w] that begins ``offset_px`` inside a grid of some shape, as seen on that grid; float64."""
    rows, columns = (
        shift_matrix(offset, n_in, n_out) for offset, n_in, n_out in zip(offset_px, image.shape, shape, strict=True)
    )
    shifted = image.astype(np.float64)
    # Where nothing moves there is nothing to multiply by, and most tilts are along one axis.
    if offset_px[0] or shape[0] != image.shape[0]:
        shifted = rows @ shifted
    if offset_px[1] or shape[1] != image.shape[1]:
        shifted = shifted @ columns.T
    return shifted


def shift_mask(mask: np.ndarray, offset_px: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Returns marks or labels [h, w] on another grid, each from the pixel that is nearest; see `shift_slice`."""
    rows, columns = (
        np.clip(np.floor(np.arange(n_out) - offset + 0.5).astype(int), 0, n_in - 1)
        for offset, n_in, n_out in zip(offset_px, mask.shape, shape, strict=True)
    )
    return np.asarray(mask[rows[:, None], columns[None, :]])


def hold(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns an image [..., h, w] in which what is marked has the value of the nearest pixel that is not.

    It is looked for in the same column, and where nothing else is there, in the same row.

    Example:
        >>> hold(np.array([[7, 1], [7, 7]]), np.array([[True, False], [True, True]]))
        array([[1, 1],
               [1, 1]])
    """
    for axis in (-2, -1):
        if not mask.any():
            break
        image, mask = _hold_along(np.moveaxis(image, axis, -1), np.moveaxis(mask, axis, -1))
        image, mask = np.moveaxis(image, -1, axis), np.moveaxis(mask, -1, axis)
    return image


def _hold_along(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Does the same within lines along the last axis; returns as well what is still marked, as no line has anything."""
    size = image.shape[-1]
    at = np.broadcast_to(np.arange(size), image.shape)
    before = np.maximum.accumulate(np.where(mask, -size, at), axis=-1)
    behind = np.minimum.accumulate(np.where(mask, 2 * size, at)[..., ::-1], axis=-1)[..., ::-1]
    nearest = np.where(at - before <= behind - at, before, behind)
    return np.take_along_axis(image, np.clip(nearest, 0, size - 1), axis=-1), (before < 0) & (behind >= size)


def inside(offset_px: tuple[float, float], own: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the part of a grid of some shape that a slice of ``own`` shape covers with at least half of its pixels.

    Example:
        >>> inside((1.4, 0.0), own=(4, 4), shape=(6, 4))
        (slice(1, 5, None), slice(0, 4, None))
    """
    first = [int(np.floor(offset + 0.5)) for offset in offset_px]
    rows, columns = (
        slice(max(start, 0), min(start + n, whole)) for start, n, whole in zip(first, own, shape, strict=True)
    )
    return rows, columns


def _windowed_sinc(x: np.ndarray) -> np.ndarray:
    """Returns the sinc under the central lobe of a wider sinc."""
    return np.where(np.abs(x) < LOBES, np.sinc(x) * np.sinc(x / LOBES), 0.0)
