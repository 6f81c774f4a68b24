"""Puts slices that are tilted, uneven or incomplete on an upright, even grid, and keeps what was acquired beside them.

Everything else in the package may take a stack for one of slices at right angles and equal distances. Where the answer
has to agree with what was acquired, `Volume.measured` says what that was, and where.
"""

import logging
from dataclasses import replace

import numpy as np

from thinslice.io.affines import shear_notes
from thinslice.models.hounsfield import find_padding
from thinslice.physics.straightening import (
    GAP,
    UprightGrid,
    even_matrix,
    find_coarse_parts,
    find_gaps,
    find_upright_grid,
    is_even,
    straighten,
)
from thinslice.volume import Measured, Volume, through_plane_axis

logger = logging.getLogger(__name__)

MOST_EMPTY = 0.34
"""The largest share of slices that may be missing and filled with one value: with more it is no stack to speak of."""

ALIKE = 0.5
"""The least correlation of the two slices around empty ones: then the body goes on from one to the other."""


def make_upright(volume: Volume) -> Volume:
    """Returns a scan on an upright, even grid; the same object if it is on one and has no empty slice.

    Args:
        volume: any scan. Its slices may be shifted sideways from one to the next, as its affine says, and some between
            others may hold nothing but one value: then they are missing.

    Example:
        >>> tilted = np.diag([1.0, 1.0, 4.0, 1.0])
        >>> tilted[1, 2] = 1.0
        >>> upright = make_upright(Volume(np.ones((8, 8, 5), np.float32), tilted))
        >>> upright.shape, upright.affine[:3, 2]
        ((8, 12, 5), array([0., 0., 4.]))
    """
    if volume.measured is not None:
        return volume
    axis = through_plane_axis(volume)
    count = volume.shape[axis]
    if count < 2:
        return volume
    origins_mm = volume.affine[:3, 3] + np.arange(count)[:, None] * volume.affine[:3, axis]
    empty = find_empty_slices(volume.voxels, axis)
    kept = np.setdiff1d(np.arange(count), empty)
    grid = find_upright_grid(volume.affine, volume.shape, axis, origins_mm[kept])
    if not grid.degrees and not len(empty):
        return volume
    # Even as the file has them: a step that was fitted again would differ in its last digits.
    grid = replace(grid, places=kept.astype(np.float64))
    if not grid.degrees:
        grid = replace(grid, affine=volume.affine, shape=volume.shape)
    # Of the angle the grid says more than the reader could.
    stated = [note for note in volume.notes if not grid.degrees or note not in shear_notes(volume.affine)]
    notes = [*stated, *([_note_on_empty(volume.voxels, axis, empty)] if len(empty) else [])]
    acquired = np.take(volume.voxels, kept, axis=axis) if len(empty) else volume.voxels
    return put_on(grid, replace(volume, voxels=acquired, notes=tuple(notes)), axis, volume.shape, kept)


def put_on(
    grid: UprightGrid,
    volume: Volume,
    axis: int,
    shape: tuple[int, int, int] | None = None,
    numbers: np.ndarray | None = None,
) -> Volume:
    """Returns the acquired slices of a scan on an upright grid, and notes on what that took.

    Args:
        grid: of `thinslice.physics.straightening.find_upright_grid`.
        volume: the acquired slices in the order of ``grid.places``; its affine does not count.
        axis: the array axis across them.
        shape: of the file, if that has further slices.
        numbers: those of the slices in the file, from 0, if that has further ones.
    """
    places = tuple(float(place) for place in grid.places)
    offsets_px = tuple((float(one), float(other)) for one, other in grid.offsets_px)
    measured = Measured(volume.voxels, grid.affine_acquired, shape or volume.shape, places, offsets_px)
    padding = find_padding(volume)
    voxels = straighten(measured, grid.shape, axis, padding)
    if not is_even(grid.places):
        voxels = put_at_even_places(voxels, grid.places, grid.shape[axis], axis, padding)
    logger.debug("%d slices on an upright grid of %s: %s", len(places), grid.shape, measured.places)
    numbers = np.arange(len(places)) if numbers is None else numbers
    notes = (*volume.notes, *_notes_on(grid, volume.shape, axis, numbers))
    return replace(volume, voxels=voxels, affine=grid.affine, notes=notes, measured=measured)


def put_at_even_places(
    slices: np.ndarray, places: np.ndarray, count: int, axis: int, padding: float | None = None
) -> np.ndarray:
    """Returns slices [x, y, z, ...] at uneven places as they look at 0 .. count - 1; float.

    Padding is that of the nearest slice, as the mean of it and anatomy would be neither.
    """
    stack = np.moveaxis(slices, axis, 0)
    kind = stack.dtype if stack.dtype.kind == "f" else np.float32 if stack.dtype.itemsize <= 2 else np.float64
    where = stack == padding if padding is not None else None
    if where is not None and not where.all():
        stack = np.where(where, stack[~where].min(), stack)
    matrix = even_matrix(places, count)
    flat = stack.reshape(len(stack), -1).astype(kind, copy=False)
    even = (matrix.astype(kind) @ flat).reshape(count, *stack.shape[1:])
    if where is not None:
        nearest = np.abs(np.asarray(places)[None, :] - np.arange(count)[:, None]).argmin(axis=1)
        even[where[nearest]] = padding
    return np.moveaxis(even, 0, axis)


def _notes_on(grid: UprightGrid, shape: tuple[int, int, int], axis: int, numbers: np.ndarray) -> list[str]:
    """Returns what to say of slices that are tilted, uneven or incomplete."""
    notes = []
    spacing_mm = float(np.linalg.norm(grid.affine[:3, axis]))
    if grid.degrees:
        size = " x ".join(str(n) for other, n in enumerate(grid.shape) if other != axis)
        was = " x ".join(str(n) for other, n in enumerate(shape) if other != axis)
        notes.append(
            f"slices are shifted sideways from one to the next, by {grid.degrees:.1f} degrees (a tilted gantry, or a "
            f"sheared affine): straightened within the slices, so that the answer is upright; it has {size} pixels for "
            f"{was}, to hold all of them"
        )
    gaps = find_gaps(grid.places)
    for before, step in gaps:
        notes.append(describe_gap(int(numbers[before]), int(numbers[before + 1]), step, spacing_mm))
    if gaps:
        notes.append("what lies in a gap is computed from the slices around it alone, and is the least certain")
    steps_mm = np.diff(grid.places) * spacing_mm
    for first, last in find_coarse_parts(grid.places):
        notes.append(
            f"slices {int(numbers[first]) + 1} to {int(numbers[last]) + 1} are {steps_mm[first]:.4g} mm apart, where "
            f"{spacing_mm:.4g} mm are usual: all are used at their true positions"
        )
    if not np.array_equal(grid.places, np.rint(grid.places)):
        usual = steps_mm[np.diff(grid.places) <= GAP]
        notes.append(
            f"slices are from {usual.min():.4g} to {usual.max():.4g} mm apart: the answer has to agree with them at "
            f"their true positions; it is computed from slices at even places {spacing_mm:.4g} mm apart"
        )
    return notes


def describe_gap(before: int, behind: int, step: float, spacing_mm: float) -> str:
    """Returns a gap in words.

    Args:
        before, behind: the numbers of the slices around it, from 0.
        step: how far these are apart, in usual spacings.
        spacing_mm: the usual spacing.

    Example:
        >>> describe_gap(6, 7, 2.0, 4.0)
        '1 slice is missing between slices 7 and 8, which are 8 mm apart (4 mm are usual)'
    """
    missing = max(round(step) - 1, 1)
    verb = "slice is" if missing == 1 else "slices are"
    return (
        f"{missing} {verb} missing between slices {before + 1} and {behind + 1}, which are {step * spacing_mm:.4g} mm "
        f"apart ({spacing_mm:.4g} mm are usual)"
    )


def find_empty_slices(voxels: np.ndarray, axis: int) -> np.ndarray:
    """Returns the numbers of slices that hold nothing but one value, the same in all of them, amid others that do.

    Args:
        voxels: [x, y, z] or [x, y, z, t]; of a series a slice counts that is empty in all volumes.
        axis: across the slices.

    Example:
        >>> body = np.add.outer(np.arange(64.0).reshape(8, 8), np.arange(6.0))
        >>> body[..., 3] = 0
        >>> find_empty_slices(body, 2)
        array([3])
    """
    nothing = np.empty(0, int)
    stack = np.moveaxis(voxels, axis, 0)
    lowest = np.array([one.min() for one in stack])
    flat = np.array([low == one.max() for low, one in zip(lowest, stack, strict=True)])
    full = np.flatnonzero(~flat)
    if len(full) < 4:
        return nothing
    # At the ends nothing is missing: there the body, or what was masked, has ended.
    empty = np.flatnonzero(flat[full[0] : full[-1]]) + full[0]
    if not len(empty) or len(empty) > MOST_EMPTY * len(stack) or len(set(lowest[empty])) > 1:
        return nothing
    for one in empty:
        before, behind = stack[full[full < one][-1]], stack[full[full > one][0]]
        if not np.corrcoef(before.ravel(), behind.ravel())[0, 1] > ALIKE:
            return nothing
    return np.asarray(empty)


def _note_on_empty(voxels: np.ndarray, axis: int, empty: np.ndarray) -> str:
    value = float(np.take(voxels, empty[0], axis=axis).flat[0])
    numbers = ", ".join(str(one + 1) for one in empty)
    word, verb = ("slice", "holds") if len(empty) == 1 else ("slices", "hold")
    return f"{word} {numbers} of the file {verb} nothing but {value:g}: taken for missing"
