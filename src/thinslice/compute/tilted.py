"""Tilted slices on their upright grid: what is computed from, what lies beyond them, and the way back to them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from thinslice.physics.straightening import hold, inside, shift_slice, straighten
from thinslice.plan import Plan
from thinslice.volume import Measured, Volume


def acquired_slices(volume: Volume, plan: Plan) -> np.ndarray:
    """Returns what an answer is computed from: the acquired slices at their places, straightened; [x, y, n, t].

    Beyond their edges slices that were shifted are held.
    """
    found = volume.measured
    voxels = volume.voxels
    if found is not None:
        if found.voxels.ndim > voxels.ndim:  # the first volume of a series
            found = replace(found, voxels=found.voxels[..., 0])
        voxels = straighten(found, plan.shape_thick, plan.axis, plan.padding)
    return voxels if voxels.ndim == 4 else voxels[..., None]


def mirror(volume: Volume, plan: Plan) -> tuple[Volume, Plan]:
    """Returns the mirror image of a scan along all three axes, on the same affine, and its plan."""
    back = (slice(None, None, -1),) * 3
    uneven = plan.alternation.mirrored(plan.n_thick)
    plan = replace(plan, alternating_gain=uneven.gain, alternating_shift_px=uneven.shift_px)
    found = volume.measured
    if found is None:
        return replace(volume, voxels=volume.voxels[back]), plan
    within = [axis for axis in range(3) if axis != plan.axis]
    room = [plan.shape_thick[axis] - found.shape[axis] for axis in within]
    places = tuple(plan.n_thick - 1 - place for place in reversed(found.places))
    offsets_px = tuple((room[0] - one, room[1] - other) for one, other in reversed(found.offsets_px))
    if plan.offsets_px is None:
        offsets_px = found.offsets_px
    mirrored = replace(found, voxels=found.voxels[back], places=places, offsets_px=offsets_px)
    plan = replace(
        plan,
        places=None if plan.places is None else places,
        offsets_px=None if plan.offsets_px is None else offsets_px,
    )
    return replace(volume, voxels=volume.voxels[back], measured=mirrored), plan


def outside_value(measured: Measured, plan: Plan) -> float:
    """Returns what stands where the scanner saw nothing: the padding of the scan, else its darkest value."""
    return plan.padding if plan.padding is not None else float(measured.voxels.min())


def blank_outside(voxels: np.ndarray, plan: Plan, positions: np.ndarray, value: float, in_plane: int = 1) -> None:
    """Puts a value wherever slices on the upright grid lie beyond the field of view of the acquired ones, in place.

    Args:
        voxels: [x, y, z] or [x, y, z, t].
        plan: of tilted slices.
        positions: of the slices along ``plan.axis``, in thick-slice index units.
        value: see `outside_value`.
        in_plane: how many times larger than in ``plan.shape_thick`` the slices are.
    """
    stack = np.moveaxis(voxels, plan.axis, 0)
    for index, part in enumerate(fields_of_view(plan, positions, in_plane)):
        outside = np.ones(stack.shape[1:3], bool)
        outside[part] = False
        stack[index][outside] = value


def held_beyond(thin: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns thin slices [thin, h, w] held beyond the field of view and where there is padding, as they were computed.

    What stands there instead is no disagreement with the acquired slices.
    """
    if plan.offsets_px is None:
        return thin
    outside = np.ones(thin.shape, bool)
    for one, part in zip(outside, fields_of_view(plan, plan.positions(), plan.in_plane), strict=True):
        one[part] = False
    if plan.padding is not None:
        outside |= thin == plan.padding
    return hold(thin, outside)


def fields_of_view(plan: Plan, positions: np.ndarray, in_plane: int = 1) -> Iterator[tuple[slice, slice]]:
    """Yields which part of each slice on the upright grid lies in the field of view of tilted slices."""
    within = [axis for axis in range(3) if axis != plan.axis]
    assert plan.shape_acquired is not None
    assert plan.offsets_px is not None
    own = plan.shape_acquired[within[0]] * in_plane, plan.shape_acquired[within[1]] * in_plane
    shape = plan.shape_thick[within[0]] * in_plane, plan.shape_thick[within[1]] * in_plane
    places = np.arange(plan.n_acquired) if plan.places is None else np.array(plan.places)
    offsets = np.array(plan.offsets_px) * in_plane
    for position in positions:
        yield inside(
            (float(np.interp(position, places, offsets[:, 0])), float(np.interp(position, places, offsets[:, 1]))),
            own,
            shape,
        )


def back_to_acquired(image: np.ndarray, plan: Plan, index: int) -> np.ndarray:
    """Returns a slice [h, w] of the upright grid as an acquired slice sees it, from where that lies."""
    if plan.offsets_px is None:
        return image
    within = [axis for axis in range(3) if axis != plan.axis]
    assert plan.shape_acquired is not None
    rows, columns = plan.offsets_px[index]
    own = plan.shape_acquired[within[0]], plan.shape_acquired[within[1]]
    return shift_slice(image, (-rows, -columns), own)


def acquired_voxels(volume: Volume) -> np.ndarray:
    """Returns the voxels that the scanner acquired, those of the file."""
    if volume.measured is None:
        return volume.voxels
    found = volume.measured.voxels
    return found if found.ndim == volume.voxels.ndim else found[..., 0]


def shown_acquired(volume: Volume, plan: Plan) -> Volume:
    """Returns the scan as people may see it: on an upright grid without what was held beyond the acquired slices."""
    if volume.measured is None or plan.offsets_px is None:
        return volume
    voxels = np.array(volume.voxels)
    blank_outside(voxels, plan, np.arange(plan.n_thick), outside_value(volume.measured, plan))
    return replace(volume, voxels=voxels)
