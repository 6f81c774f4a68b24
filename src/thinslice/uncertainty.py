"""Where not to trust an answer: what a network says to the scan and to its mirror image, and how far these are apart.

A network that is sure says the same to both. Half the distance between the two answers, averaged over small cells,
ranks the true error, on other people and at other factors too. A power of it, the same for all scans, is the error to
be expected (docs/report.md). It knows nothing of what both answers get wrong alike.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinslice.enlarge import untold
from thinslice.nifti import allocate
from thinslice.plan import Plan, intensity_range
from thinslice.runtime import Model
from thinslice.upsample import upsample
from thinslice.volume import Volume

CELL_MM = 3.0
"""Side of the cells over which distances are averaged."""

SCALE, POWER = 3.35, 0.81
"""Expected error = SCALE * distance ** POWER, in intensity ranges; fitted by experiments/uncertainty.py."""


@dataclass(frozen=True)
class Uncertainty:
    """The error to be expected of an answer.

    Attributes:
        volume: mean absolute error expected in each cell, in the scan's own units; the affine is that of the cells.
        unit: one intensity range of the scan, in its own units.
    """

    volume: Volume
    unit: float


def expected_error(
    volume: Volume, thin: Volume, plan: Plan, model: Model, progress: Callable[[float], None] = untold
) -> Uncertainty | None:
    """Ask the network once more, and compare; None for an interpolation, which says the same to every mirror image.

    Takes as long as the answer took without --fuse. Of a 4-D series the first volume is looked at.

    Args:
        volume: the scan.
        thin: its answer, as `upsample` gives it.
        plan, model: what it was computed with.
        progress: called with the share done, 0 .. 1.
    """
    if not model.adds:
        return None
    thick = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
    answer = thin.voxels if thin.voxels.ndim == 3 else thin.voxels[..., 0]
    other = _asked_otherwise(replace(volume, voxels=thick), plan, model, progress)
    low, high = intensity_range(thick)
    size = cell_size(plan)
    distance = cell_means(answer, other, size) / (2 if not plan.fuse else 1)
    expected = SCALE * (distance / (high - low)) ** POWER * (high - low)
    return Uncertainty(Volume(expected.astype(np.float32), cell_affine(thin.affine, size)), high - low)


def _asked_otherwise(volume: Volume, plan: Plan, model: Model, progress: Callable[[float], None]) -> np.ndarray:
    """The answer to the mirror image, mirrored back; that to the scan alone where the answer is the mean of both."""
    out = allocate(plan.shape_thin, np.float32, Path(tempfile.gettempdir()))
    plain = replace(plan, fuse=False)
    if plan.fuse:
        upsample(volume, plain, model, out, progress)
        return out
    mirrored = replace(volume, voxels=volume.voxels[::-1, ::-1, ::-1])
    upsample(mirrored, plain, model, out, progress)
    return out[::-1, ::-1, ::-1]


def cell_size(plan: Plan) -> tuple[int, int, int]:
    """Thin voxels along each axis of a cell: some `CELL_MM`, one at least."""
    x, y, z = (
        min(max(1, round(CELL_MM / mm)), count) for mm, count in zip(plan.spacing_thin_mm, plan.shape_thin, strict=True)
    )
    return x, y, z


def cell_means(one: np.ndarray, other: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Mean absolute difference of two volumes [x, y, z] in cells of ``size`` voxels; what is left over is left out."""
    counts = [n // s for n, s in zip(one.shape, size, strict=True)]
    means = np.empty(counts)
    for z in range(counts[2]):
        slab = slice(z * size[2], (z + 1) * size[2])
        apart = np.abs(one[..., slab].astype(np.float64) - other[..., slab])
        apart = apart[: counts[0] * size[0], : counts[1] * size[1]].mean(axis=2)
        means[..., z] = apart.reshape(counts[0], size[0], counts[1], size[1]).mean(axis=(1, 3))
    return means


def cell_affine(affine: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Of a grid of cells whose first begins with the first voxel of ``affine``."""
    cells = np.array(affine, np.float64)
    cells[:3, 3] += cells[:3, :3] @ (np.array(size) - 1) / 2
    cells[:3, :3] *= size
    return cells
