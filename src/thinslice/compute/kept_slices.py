"""Of slices that were interpolated before they were stored, only those that tell something are computed from."""

from dataclasses import replace

import numpy as np

from thinslice.physics.slice_statistics import take_acquired
from thinslice.plan import Plan
from thinslice.volume import Volume


def take_kept(volume: Volume, plan: Plan) -> tuple[Volume, Plan]:
    """Returns the slices of a scan that are computed from, and their plan; the answer's place is the same.

    Args:
        volume: the scan, ``plan.shape_thick``.
        plan: of all its slices.
    """
    if plan.every == 1:
        return volume, plan
    of_kept = plan.of_kept_slices()
    voxels = take_acquired(np.moveaxis(volume.voxels, plan.axis, 0), plan.first_kept, plan.every)
    affine = np.array(volume.affine, dtype=np.float64)
    affine[:3, 3] += plan.first_kept * affine[:3, plan.axis]
    affine[:3, plan.axis] *= plan.every
    return replace(volume, voxels=np.moveaxis(voxels, 0, plan.axis), affine=affine), of_kept


def give_to_all(of_kept: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns for every acquired slice what is known of the kept ones beside it, the larger of two.

    Args:
        of_kept: of the kept slices along ``plan.axis``, numbers or truth values.
        plan: of all slices.
    """
    place = (np.arange(plan.n_thick) - plan.first_kept) / plan.every
    last = of_kept.shape[plan.axis] - 1
    before, behind = (np.clip(at(place).astype(int), 0, last) for at in (np.floor, np.ceil))
    # Of both alike, so that a file that runs the other way has the same.
    larger: np.ndarray = np.maximum(of_kept.take(before, axis=plan.axis), of_kept.take(behind, axis=plan.axis))
    return larger
