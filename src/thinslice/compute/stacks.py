"""The stacks that are to be combined: how each of them sees the grid of the answer, and what it says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from thinslice.compute.blur import blur_along
from thinslice.compute.brightness import find_field
from thinslice.compute.kept_slices import take_kept
from thinslice.models.hounsfield import is_hounsfield
from thinslice.models.protocol import Model
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import make_even
from thinslice.physics.split_acquisition import SplitAcquisition
from thinslice.physics.stack_acquisition import StackAcquisition, resample
from thinslice.plan import Plan
from thinslice.volume import Volume

WHOLLY_SEEN = 0.98
"""Samples of which a smaller share lies inside the grid of the answer are not compared: they saw what it lacks."""

TAPER_SPACINGS = 4.0
"""Over so many slice spacings a stack says less and less towards the edges of its field of view: over two a step in
brightness was seen in fat, which is not alike in all directions."""

LEAST_SAY = 1e-3
"""Of a stack at the very edge of its field of view: where it is the only one, it is all there is."""

COMPARED_ABOVE = 0.2
"""Voxels brighter than this, in intensity ranges above the dark end, are compared in brightness: others are air."""

FEWEST_COMPARED = 500
"""Fewer voxels that two stacks share say nothing of their brightness."""


AIR_BELOW = 0.02
"""Voxels darker than this, in intensity ranges above the dark end, have no brightness to compare."""

MISFIT_BLUR = 0.5
"""Standard deviation of the Gaussian within slices that is compared, in slice spacings of the other stacks."""

SMOOTH_SPACINGS = 1.0
"""Standard deviation of the Gaussian that tells what changes slowly, in slice spacings: no network errs so coarsely."""

MISFIT_AROUND = 1.0
"""Likewise of the neighbourhood over which it is averaged."""

LEAST_BLUR_PX = 0.3
"""A Gaussian of fewer pixels blurs nothing, and falls between them."""

REAL = 0.99
"""Averaged pixels of which a smaller share was seen are not compared: the rest of them is padding."""

HALF_REAL = 0.5
"""A stack holds the voxels of the answer of which it has seen as much."""

LITTLE_WEIGHT = 1e-3
"""Where less counts than this share of a sample, nothing is known."""

USUAL_MISFIT = 0.006
"""Of stacks that were simulated, with noise and without: 0.004 to 0.010; of one CT acquisition 0.010. Of knees 0.043 to
0.052, of prostates that moved 0.1 (LOG.md)."""

MISFIT_WEIGHT = 2.0
"""What samples may be off by, over the misfit beyond the usual one: with it each of three knees is predicted best by
the other two (LOG.md)."""


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
        acquired: its thick slices [x, y, z], without padding, see `go_on`.
        plan: by which they were made thin: slice profile, noise, what alternates; the value of the padding that was
            taken off.
        thin: the thin slices.
        motion: [4, 4] patient millimetres -> patient millimetres: from where the header says that it lies to where it
            lies in the body.
        slice_motions: [slices, 4, 4] likewise, by which each slice that is computed from has moved beyond that; None
            where they lie as the stack does.
        beyond: bool [x, y, z], where the acquired slices had padding; None where they had none.
        model: what made it thin; None where that is not known.
        fell_back: bool [x, y, z], acquired voxels where the guard took the network back; None: nowhere.
    """

    acquired: Volume
    plan: Plan
    thin: Volume
    motion: np.ndarray = field(default_factory=lambda: np.eye(4))
    slice_motions: np.ndarray | None = None
    beyond: np.ndarray | None = None
    model: Model | None = None
    fell_back: np.ndarray | None = None


@dataclass(eq=False)
class ObservedStack:
    """What one stack says of the grid of the answer, in the brightness of the first stack (`observe`).

    Attributes:
        acquisition: how it sees the grid.
        samples: its thick slices, float32, in intensity ranges above what is dark in the first stack.
        counted: float32, 1 for samples that see inside the grid and hold no padding, else 0.
        thin: its thin slices on the grid, float32, in the same units.
        say: float32, how much it has to say at each voxel of the grid: 1 well inside its field of view, 0 outside it
            and where it has padding.
        noise: standard deviation of the noise of its samples, in the same units; None where it is not known.
        gain: its brightness over that of the first stack, which was divided out.
        field: the same where it changes smoothly over the grid, divided out as well; None where it does not.
        misfit: float32 of the samples' shape, how far what is around each sample is from what the other stacks say of
            it, in what both resolve: of bodies that moved, flowed or were seen in another light. In the same units,
            what is usual taken away; None where it is not known.
    """

    acquisition: StackAcquisition | SplitAcquisition
    samples: np.ndarray
    counted: np.ndarray
    thin: np.ndarray
    say: np.ndarray
    noise: float | None
    gain: float = 1.0
    field: np.ndarray | None = None
    misfit: np.ndarray | None = None

    @property
    def samples_per_voxel(self) -> float:
        """How many of its samples there are for each voxel of the grid, where it sees."""
        of_voxel, of_sample = self.acquisition.affine, self.acquisition.stack_affine
        return float(abs(np.linalg.det(of_voxel[:3, :3]) / np.linalg.det(of_sample[:3, :3])))

    def noise_or(self, least: float) -> float:
        """Returns its noise, or ``least`` where that is less or not known."""
        return max(self.noise or 0.0, least)

    def trust(self, least: float) -> np.ndarray:
        """Returns how much each sample counts: 1 where nothing but noise is off, less where it fits no other stack."""
        if self.misfit is None:
            return self.counted
        noise = self.noise_or(least)
        trusted: np.ndarray = self.counted * (noise**2 / (noise**2 + (MISFIT_WEIGHT * self.misfit) ** 2))
        return trusted

    def residual(self, volume: np.ndarray) -> np.ndarray:
        """Returns what was acquired less what a volume on the grid would give, 0 for samples that do not count."""
        found: np.ndarray = self.counted * (self.samples - self.acquisition.forward(volume))
        return found


def go_on(voxels: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Returns voxels that go on into padding as they end: each takes the value of the nearest other one in its line.

    Beside padding that was left, or air in its stead, tissue would be computed darker than it is.

    Args:
        voxels: [x, y, z].
        beyond: bool, where the padding is; not everywhere.

    Example:
        >>> line = np.array([-2000, -2000, 5, 7, -2000]).reshape(1, 1, 5)
        >>> go_on(line, line == -2000).ravel()
        array([5, 5, 5, 7, 7])
    """
    voxels, known = voxels.copy(), ~beyond
    for axis in range(3):
        lines, there = np.moveaxis(voxels, axis, 0), np.moveaxis(known, axis, 0)
        count = len(lines)
        place = np.arange(count, dtype=np.int32)[:, None]
        # Plane by plane, as the places of a whole large scan would need several times its room.
        for number in range(lines.shape[1]):
            seen = there[:, number]
            before = np.maximum.accumulate(np.where(seen, place, -count), axis=0)
            behind = np.minimum.accumulate(np.where(seen, place, 2 * count)[::-1], axis=0)[::-1]
            nearest = np.where(place - before <= behind - place, before, behind)
            has_one = (nearest >= 0) & (nearest < count)
            found = np.take_along_axis(lines[:, number], np.where(has_one, nearest, place), axis=0)
            lines[:, number] = found
            there[:, number] = has_one
        if known.all():
            break
    return voxels


def observe(stacks: Sequence[Stack], grid: VoxelGrid) -> tuple[list[ObservedStack], float, float]:
    """Returns what each stack says of a grid, what is dark in the first one, and the width of its intensity range.

    Brightness is matched to that of the first stack: by one factor, the median of the ratios of what two stacks share,
    and by what changes smoothly beyond it (`thinslice.compute.brightness`). A stack that shares nothing with the first
    is matched to one that does. Hounsfield units are left as they are.
    """
    first = stacks[0]
    seen = first.thin.voxels if first.beyond is None else first.thin.voxels[~_beyond_thin(first.beyond, first)]
    low, high = intensity_range(seen)
    width = high - low
    # Brightness is a factor over what has none: zero, but in Hounsfield units air.
    low = low if is_hounsfield(stacks[0].acquired.voxels) else 0.0
    observed = [_observe_one(stack, grid, low, width) for stack in stacks]
    matched, waiting = [observed[0]], list(observed[1:])
    while waiting:
        # The one that shares most with those that are matched comes next; it may be what links a further one to them.
        shares = [max(float(np.minimum(one.say, other.say).sum()) for other in matched) for one in waiting]
        one = waiting.pop(int(np.argmax(shares)))
        if low == 0:
            _divide_by(one, _find_gain(one, matched), None)
            _divide_by(one, 1.0, _find_field(one, matched, grid))
        matched.append(one)
    for k, one in enumerate(observed):
        one.misfit = find_misfit(one, [other for number, other in enumerate(observed) if number != k])
    return observed, low, width


def observe_moved(one: ObservedStack, stack: Stack, grid: VoxelGrid, low: float, width: float) -> ObservedStack:
    """Returns what a stack says of a grid from where it lies now, in the brightness that was found before.

    Args:
        one: what it said from where it was.
        stack: with its motion as it is now.
        grid, low, width: as given to `observe` and as it returned them.
    """
    again = _observe_one(stack, grid, low, width)
    _divide_by(again, one.gain, one.field)
    again.misfit = one.misfit
    return again


def straighten(stack: Stack, grid: VoxelGrid, volume: np.ndarray) -> tuple[Volume, Plan]:
    """Returns the slices of a stack as it would have acquired them without motion within it, and their plan.

    Each sample changes by the difference that a volume has there and here, so that what the volume lacks is kept.

    Args:
        stack: with ``slice_motions``.
        grid: of the volume.
        volume: what all stacks agree with, in the brightness of this one.
    """
    acquired, plan = take_kept(stack.acquired, stack.plan)
    moved = _find_acquisition(stack, acquired, plan, grid)
    whole = _find_acquisition(replace(stack, slice_motions=None), acquired, plan, grid)
    known = (moved.coverage >= WHOLLY_SEEN) & (whole.coverage >= WHOLLY_SEEN)
    if stack.beyond is not None:
        real, _ = take_kept(replace(stack.acquired, voxels=_as_share(~stack.beyond)), stack.plan)
        known &= real.voxels > HALF_REAL
    straight = acquired.voxels + known * (whole.forward(volume) - moved.forward(volume))
    # Padding has gone on into what is beside it (`go_on`), as when they were made thin first.
    return replace(acquired, voxels=straight.astype(np.float32)), replace(plan, padding=None)


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


def _find_acquisition(
    stack: Stack, acquired: Volume, plan: Plan, grid: VoxelGrid
) -> StackAcquisition | SplitAcquisition:
    """Returns how a stack sees a grid.

    Args:
        stack: where it lies, and its slices.
        acquired, plan: its slices that are computed from, and their plan.
        grid: that it sees.
    """
    there = stack.motion @ acquired.affine
    whole = StackAcquisition(grid.shape, grid.affine, acquired.shape, there, plan.axis, plan.thickness_mm, plan.profile)
    return whole if stack.slice_motions is None else SplitAcquisition(whole, stack.slice_motions)


def _observe_one(stack: Stack, grid: VoxelGrid, low: float, width: float) -> ObservedStack:
    acquired, plan = take_kept(stack.acquired, stack.plan)
    # Before anything is averaged: the range of the slices, in which the plan counts noise, is that of what was seen.
    real = None
    if stack.beyond is not None:
        real, _ = take_kept(replace(stack.acquired, voxels=_as_share(~stack.beyond)), stack.plan)
    own_low, own_high = intensity_range(acquired.voxels if real is None else acquired.voxels[real.voxels > HALF_REAL])
    acquired = _as_fine_as(acquired, stack.motion, plan.axis, grid)
    acquisition = _find_acquisition(stack, acquired, plan, grid)
    counted = (acquisition.coverage >= WHOLLY_SEEN).astype(np.float32)
    if real is not None:
        counted *= np.abs(_as_fine_as(real, stack.motion, plan.axis, grid).voxels - 1) <= 1 - REAL
    slices = make_even(np.moveaxis(acquired.voxels, plan.axis, 0), plan.alternation)
    samples = ((np.moveaxis(slices, 0, plan.axis) - low) / width).astype(np.float32)
    there = stack.motion @ stack.thin.affine
    thin = resample(stack.thin.voxels.astype(np.float32), there, grid.shape, grid.affine)
    thin -= np.float32(low)
    thin /= np.float32(width)
    say = find_say(stack.thin.shape, there, grid, TAPER_SPACINGS * plan.spacing_thick_mm[plan.axis])
    if stack.beyond is not None:
        say *= resample(_as_share(~_beyond_thin(stack.beyond, stack)), there, grid.shape, grid.affine) > HALF_REAL
    noise = None if plan.slice_noise is None else plan.slice_noise * (own_high - own_low) / width
    return ObservedStack(acquisition, samples, counted, thin, say, noise)


def _as_share(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.float32)


def _beyond_thin(beyond: np.ndarray, stack: Stack) -> np.ndarray:
    """Returns where the thin slices of a stack are padding: where the acquired slice next to each of them is."""
    axis = stack.plan.axis
    between = np.linalg.solve(stack.acquired.affine, stack.thin.affine)
    place = np.rint(between[axis, axis] * np.arange(stack.thin.shape[axis]) + between[axis, 3]).astype(int)
    there: np.ndarray = beyond.take(np.clip(place, 0, beyond.shape[axis] - 1), axis=axis)
    return there


def _divide_by(one: ObservedStack, gain: float, field: np.ndarray | None) -> None:
    """Divides what a stack says by a factor, and by what changes smoothly."""
    one.samples /= np.float32(gain)
    one.thin /= np.float32(gain)
    one.gain *= gain
    one.noise = None if one.noise is None else one.noise / gain
    if field is not None:
        one.thin /= field
        seen = one.acquisition.forward(field)
        # Beyond the grid nothing is known, and nothing counts.
        one.samples /= np.where(seen > 0, seen, 1)
        one.field = field


def _find_field(one: ObservedStack, others: Sequence[ObservedStack], grid: VoxelGrid) -> np.ndarray:
    """Returns the smooth brightness of a stack over that of others."""
    say = sum(other.say for other in others)
    mean = sum(other.say * other.thin for other in others) / np.maximum(say, LEAST_SAY)
    weight = np.minimum(one.say, say) * ((one.thin > AIR_BELOW) & (mean > AIR_BELOW))
    spacing_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return find_field(one.thin, mean, weight, (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])))


def find_misfit(one: ObservedStack, others: Sequence[ObservedStack]) -> np.ndarray | None:
    """Returns how far a stack is from what others say of it around each sample, less what is usual; None: not known.

    What is compared is blurred within the slices to what slices as thick as those of the others resolve. Networks make
    mistakes in finer detail, and noise is averaged out.
    """
    if not others:
        return None
    say = sum(other.say for other in others)
    known = np.greater(say, 0.5).astype(np.float32)
    counted = one.counted * (one.acquisition.forward(known) > 0.9)
    mean = sum(other.say * other.thin for other in others) / np.maximum(say, LEAST_SAY)
    apart = counted * (one.samples - one.acquisition.forward(mean))
    across_mm = max(float(np.linalg.norm(o.acquisition.stack_affine[:3, o.acquisition.axis])) for o in others)
    weight = _blur_within(counted, one, MISFIT_BLUR * across_mm)
    square = counted * (_blur_within(apart, one, MISFIT_BLUR * across_mm) / np.maximum(weight, LITTLE_WEIGHT)) ** 2
    # Around a sample: where one is far off by chance, its neighbours are not.
    weight = _blur_within(counted, one, MISFIT_AROUND * across_mm)
    around = np.sqrt(_blur_within(square, one, MISFIT_AROUND * across_mm) / np.maximum(weight, LITTLE_WEIGHT))
    found: np.ndarray = np.maximum(around - np.float32(USUAL_MISFIT), 0).astype(np.float32)
    return found


def find_smooth_part(one: ObservedStack, left: np.ndarray) -> np.ndarray:
    """Returns what changes slowly, within the slices and across them, of what is left of the samples of a stack.

    Stacks differ in it by their brightness, and not by what they resolve: of simulated ones it is next to nothing.

    Args:
        one: the stack.
        left: what was acquired less what a volume would give.
    """
    axis = one.acquisition.axis
    sigma_mm = SMOOTH_SPACINGS * float(np.linalg.norm(one.acquisition.stack_affine[:3, axis]))
    weighted, weight = (
        blur_along(_blur_within(each, one, sigma_mm), axis, SMOOTH_SPACINGS)
        for each in (one.counted * left, one.counted)
    )
    smooth: np.ndarray = weighted / np.maximum(weight, LITTLE_WEIGHT)
    return smooth


def _blur_within(samples: np.ndarray, one: ObservedStack, sigma_mm: float) -> np.ndarray:
    """Returns samples of a stack blurred within its slices, not normalised."""
    for axis in range(3):
        if axis != one.acquisition.axis:
            pixel_mm = float(np.linalg.norm(one.acquisition.stack_affine[:3, axis]))
            samples = blur_along(samples, axis, max(sigma_mm / pixel_mm, LEAST_BLUR_PX))
    return samples


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
