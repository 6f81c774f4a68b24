"""The stacks that are to be combined: how each of them sees the grid of the answer, and what it says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from thinslice.compute.kept_slices import take_kept
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import make_even
from thinslice.physics.noise import MOST_BELOW_ZERO
from thinslice.physics.stack_acquisition import StackAcquisition, resample
from thinslice.plan import Plan
from thinslice.volume import Volume

WHOLLY_SEEN = 0.98
"""Samples of which a smaller share lies inside the grid of the answer are not compared: they saw what it lacks."""

TAPER_SPACINGS = 2.0
"""Over so many slice spacings a stack says less and less towards the edges of its field of view: no seam shows."""

LEAST_SAY = 1e-3
"""Of a stack at the very edge of its field of view: where it is the only one, it is all there is."""

COMPARED_ABOVE = 0.2
"""Voxels brighter than this, in intensity ranges above the dark end, are compared in brightness: others are air."""

FEWEST_COMPARED = 500
"""Fewer voxels that two stacks share say nothing of their brightness."""


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """A grid of voxels in the patient.

    Attributes:
        shape: its size.
        affine: [4, 4] float64, voxel index -> patient millimetres (RAS).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Stack:
    """One stack of a body: what was acquired, and what `thinslice.compute.upsample.upsample` made of it.

    Attributes:
        acquired: its thick slices [x, y, z].
        plan: by which they were made thin: slice profile, noise, what alternates, padding.
        thin: the thin slices.
        motion: [4, 4] patient millimetres -> patient millimetres: from where the header says that it lies to where it
            lies in the body.
    """

    acquired: Volume
    plan: Plan
    thin: Volume
    motion: np.ndarray = field(default_factory=lambda: np.eye(4))


@dataclass(eq=False)
class ObservedStack:
    """What one stack says of the grid of the answer, in the brightness of the first stack (`observe`).

    Attributes:
        acquisition: how it sees the grid.
        samples: its thick slices, float32, in intensity ranges above what is dark in the first stack.
        counted: float32, 1 for samples that see inside the grid and are no padding, else 0.
        thin: its thin slices on the grid, float32, in the same units.
        say: float32, how much it has to say at each voxel of the grid: 1 well inside its field of view, 0 outside.
        noise: standard deviation of the noise of its samples, in the same units; None where it is not known.
        gain: its brightness over that of the first stack, which was divided out.
    """

    acquisition: StackAcquisition
    samples: np.ndarray
    counted: np.ndarray
    thin: np.ndarray
    say: np.ndarray
    noise: float | None
    gain: float = 1.0

    @property
    def samples_per_voxel(self) -> float:
        """How many of its samples there are for each voxel of the grid, where it sees."""
        of_voxel, of_sample = self.acquisition.affine, self.acquisition.stack_affine
        return float(abs(np.linalg.det(of_voxel[:3, :3]) / np.linalg.det(of_sample[:3, :3])))

    def noise_or(self, least: float) -> float:
        """Returns its noise, or ``least`` where that is less or not known."""
        return max(self.noise or 0.0, least)

    def residual(self, volume: np.ndarray) -> np.ndarray:
        """Returns what was acquired less what a volume on the grid would give, 0 for samples that do not count."""
        found: np.ndarray = self.counted * (self.samples - self.acquisition.forward(volume))
        return found


def observe(stacks: Sequence[Stack], grid: VoxelGrid) -> tuple[list[ObservedStack], float, float]:
    """Returns what each stack says of a grid, what is dark in the first one, and the width of its intensity range.

    Brightness is matched to that of the first stack: by one factor, the median of the ratios of what two stacks share.
    A stack that shares nothing with the first is matched to one that does.
    """
    low, high = intensity_range(stacks[0].thin.voxels)
    width = high - low
    # Brightness is a factor over what has none: zero, but in Hounsfield units air.
    low = low if low < -MOST_BELOW_ZERO * width else 0.0
    observed = [_observe_one(stack, grid, low, width) for stack in stacks]
    matched, waiting = [observed[0]], list(observed[1:])
    while waiting:
        # The one that shares most with those that are matched comes next; it may be what links a further one to them.
        shares = [max(float(np.minimum(one.say, other.say).sum()) for other in matched) for one in waiting]
        one = waiting.pop(int(np.argmax(shares)))
        _divide_by(one, _find_gain(one, matched))
        matched.append(one)
    return observed, low, width


def observe_moved(one: ObservedStack, stack: Stack, grid: VoxelGrid, low: float, width: float) -> ObservedStack:
    """Returns what a stack says of a grid from where it lies now, in the brightness that was found before.

    Args:
        one: what it said from where it was.
        stack: with its motion as it is now.
        grid, low, width: as given to `observe` and as it returned them.
    """
    again = _observe_one(stack, grid, low, width)
    _divide_by(again, one.gain)
    return again


def find_say(shape: tuple[int, int, int], affine: np.ndarray, grid: VoxelGrid, taper_mm: float) -> np.ndarray:
    """Returns how much a volume has to say at each voxel of a grid: 1 well inside its edges, 0 outside, float32.

    Args:
        shape, affine: of the volume.
        grid: where it is asked.
        taper_mm: over which it falls to the edge, at most a quarter of the volume's width.

    Example:
        >>> find_say((8, 1, 1), np.eye(4), VoxelGrid((5, 1, 1), np.diag([2.0, 1.0, 1.0, 1.0])), 2.0).ravel()
        array([0.25, 1.  , 1.  , 0.75, 0.  ], dtype=float32)
    """
    between = np.linalg.solve(affine, grid.affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
    say = np.ones(grid.shape, np.float32)
    inside = np.ones(grid.shape, bool)
    for axis in range(3):
        line = [between[axis, 0] * i, between[axis, 1] * j, between[axis, 2] * k + between[axis, 3]]
        position = sum(one.astype(np.float32) for one in line)
        width = shape[axis] / 2
        depth = (width - np.abs(position - (width - 0.5))) * np.float32(spacing_mm[axis])
        inside &= depth >= 0
        # A stack of one slice has an inside as well.
        taper = min(taper_mm, shape[axis] * spacing_mm[axis] / 4)
        say *= np.clip(depth / np.float32(taper), LEAST_SAY, 1)
    return say * inside


def _observe_one(stack: Stack, grid: VoxelGrid, low: float, width: float) -> ObservedStack:
    acquired, plan = take_kept(stack.acquired, stack.plan)
    acquired = _as_fine_as(acquired, stack.motion, plan.axis, grid)
    acquisition = StackAcquisition(
        grid.shape,
        grid.affine,
        acquired.shape,
        stack.motion @ acquired.affine,
        plan.axis,
        plan.thickness_mm,
        plan.profile,
    )
    counted = (acquisition.coverage >= WHOLLY_SEEN).astype(np.float32)
    if plan.padding is not None:
        counted *= acquired.voxels != plan.padding
    slices = make_even(np.moveaxis(acquired.voxels, plan.axis, 0), plan.alternation)
    samples = ((np.moveaxis(slices, 0, plan.axis) - low) / width).astype(np.float32)
    there = stack.motion @ stack.thin.affine
    thin = resample(stack.thin.voxels.astype(np.float32), there, grid.shape, grid.affine)
    thin -= np.float32(low)
    thin /= np.float32(width)
    say = find_say(stack.thin.shape, there, grid, TAPER_SPACINGS * plan.spacing_thick_mm[plan.axis])
    own_low, own_high = intensity_range(acquired.voxels)
    # The plan counts noise in the range of its own slices.
    noise = None if plan.slice_noise is None else plan.slice_noise * (own_high - own_low) / width
    return ObservedStack(acquisition, samples, counted, thin, say, noise)


def _divide_by(one: ObservedStack, gain: float) -> None:
    """Takes the brightness of a stack out of what it says."""
    one.samples /= np.float32(gain)
    one.thin /= np.float32(gain)
    one.gain = gain
    one.noise = None if one.noise is None else one.noise / gain


def _as_fine_as(acquired: Volume, motion: np.ndarray, axis: int, grid: VoxelGrid) -> Volume:
    """Returns a stack whose pixels are averaged to the size of the voxels of a grid, where these are larger.

    What is finer than its voxels the grid cannot hold: asked to agree with it, the answer would be a checkerboard.
    """
    # The voxel of the grid that lies along each side of a pixel.
    between = np.linalg.solve(grid.affine[:3, :3], motion[:3, :3] @ acquired.affine[:3, :3])
    voxel_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)[np.abs(between * 1.0).argmax(axis=0)]
    count = [
        n if a == axis else min(n, max(round(n * mm / voxel), 1))
        for a, (n, mm, voxel) in enumerate(zip(acquired.shape, acquired.spacing_mm, voxel_mm, strict=True))
    ]
    if count == list(acquired.shape):
        return acquired
    larger = [n / m for n, m in zip(acquired.shape, count, strict=True)]
    affine = np.array(acquired.affine)
    affine[:3, 3] += affine[:3, :3] @ [(step - 1) / 2 for step in larger]
    affine[:3, :3] *= larger
    shape = (count[0], count[1], count[2])
    return replace(acquired, voxels=resample(acquired.voxels, acquired.affine, shape, affine), affine=affine)


def _find_gain(one: ObservedStack, others: Sequence[ObservedStack]) -> float:
    """Returns the brightness of a stack over that of others, 1 where they share too little to tell."""
    say = sum(other.say for other in others)
    mean = sum(other.say * other.thin for other in others) / np.maximum(say, LEAST_SAY)
    shared = (one.say > 0.5) & (say > 0.5) & (mean > COMPARED_ABOVE) & (one.thin > COMPARED_ABOVE * 0.1)
    if np.count_nonzero(shared) < FEWEST_COMPARED:
        return 1.0
    return float(np.exp(np.median(np.log(one.thin[shared] / mean[shared]))))
