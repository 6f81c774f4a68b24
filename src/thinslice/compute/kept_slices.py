"""Of slices that were interpolated before they were stored, only those that tell something are computed from."""

from dataclasses import replace

import numpy as np

from thinslice.plan import Plan
from thinslice.volume import Volume, runs_backwards


def take_kept(volume: Volume, plan: Plan, thin: np.ndarray) -> tuple[Volume, Plan, np.ndarray]:
    """Returns the slices of a scan that are computed from, their plan, and the answer as it lies to them.

    They are counted in the patient, however the file stores the scan, so that the answer is the same; where the file
    runs the other way, slices and answer are turned.

    Args:
        volume: the scan, ``plan.shape_thick``.
        plan: of all its slices.
        thin: the answer, ``plan.shape_thin``; a view of it is returned.
    """
    if plan.every == 1:
        return volume, plan, thin
    turned = runs_backwards(volume.affine, plan.axis)
    affine = np.array(volume.affine, dtype=np.float64)
    if turned:
        affine[:3, 3] += (plan.n_thick - 1) * affine[:3, plan.axis]
    affine[:3, plan.axis] *= -plan.every if turned else plan.every
    voxels = turn(volume.voxels, plan, turned)[along(plan, slice(None, None, plan.every))]
    return replace(volume, voxels=voxels, affine=affine), plan.of_kept_slices(), turn(thin, plan, turned)


def give_to_all(of_kept: np.ndarray, plan: Plan, turned: bool) -> np.ndarray:
    """Returns for every acquired slice what is known of the kept one before it."""
    repeated = of_kept.repeat(plan.every, axis=plan.axis)[along(plan, slice(0, plan.n_thick))]
    return turn(repeated, plan, turned)


def turn(array: np.ndarray, plan: Plan, turned: bool) -> np.ndarray:
    """Returns a view with its slices the other way round, if they are turned."""
    return array[along(plan, slice(None, None, -1))] if turned else array


def along(plan: Plan, chosen: slice) -> tuple[slice, ...]:
    """Returns an index that chooses slices across the slice axis, and all of the other axes."""
    return (*(slice(None),) * plan.axis, chosen)
