"""Motion between stacks, found by the operator: where a stack has to lie for the others to explain its slices.

Registration of thin volumes compares what networks made of the stacks. Here a stack's own slices are compared with what
the other stacks say that it must have seen, slice profile and all, and its place is improved by the steps of Gauss and
Newton: three angles, three shifts, and one factor of brightness.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from thinslice.compute.combine import join
from thinslice.compute.stacks import WHOLLY_SEEN, ObservedStack, Stack, VoxelGrid, find_misfit, observe, observe_moved
from thinslice.models.blas import one_blas_thread
from thinslice.physics.stack_acquisition import StackAcquisition
from thinslice.progress import Progress, no_progress
from thinslice.volume import grid_distance_mm

logger = logging.getLogger(__name__)

ROUNDS = 2
"""Every stack is placed anew so many times: the second time the others lie where they were found."""

SETTLED_MM = 0.2
"""Where no stack was moved by more, the others lay well enough, and the second time is left out."""

STEPS = 4
"""Steps of Gauss and Newton in each round; from 1 mm and 1 degree off two of them do."""

SMALL_MM = 0.01
"""A step that moves no corner of the stack by more is the last one."""

OUTLIER_DEVIATIONS = 3.0
"""Samples that are so many robust standard deviations off have no more say than those at that distance (Huber)."""

CLEAR_GAIN = 100.0
"""By so many times the mean square that is left the sum of squares has to fall, or a stack stays where its header says:
a body that is nearly round fits turned as well. Six numbers that mean nothing gain 6 where samples err independently.
As these err alike around a place it was 64 at most where nothing had moved, and 149 at least after 0.1 mm and 0.1
degrees, in crops of 64 voxels with up to 5 % noise (LOG.md)."""

FARTHEST_MM = 20.0
"""A stack of which a corner would be moved by more stays: registration comes first, and leaves less than a voxel.
Without it, a header that was wrong by 3 degrees and 2.5 mm moved corners of a head by half as much."""

FEWEST_SAMPLES = 500
"""Stacks that share fewer samples with the others stay where they are."""


@dataclass(frozen=True, eq=False)
class RefinedMotion:
    """How one stack was moved.

    Attributes:
        motion: [4, 4] patient millimetres -> patient millimetres, that of the stack and what was found beyond it.
        moved_mm: how far the middle of the stack was moved by what was found.
        turned_degrees: by which angle it was turned.
        rms_before, rms_after: root mean square difference of its slices and what the others say of them, in intensity
            ranges; None where the stack stayed, as it is the first one or shares too little with the others.
    """

    motion: np.ndarray
    moved_mm: float
    turned_degrees: float
    rms_before: float | None = None
    rms_after: float | None = None


def refine_motions(stacks: Sequence[Stack], grid: VoxelGrid, progress: Progress = no_progress) -> list[RefinedMotion]:
    """Returns where the stacks lie, found from where they are thought to lie; the first one stays.

    Args:
        stacks: of one body, in any positions, not more than a few millimetres and degrees off.
        grid: on which they are compared; it may be coarser than that of the answer.
        progress: called with the share done, 0 .. 1.
    """
    with one_blas_thread:
        return _refine(stacks, grid, progress)


def _refine(stacks: Sequence[Stack], grid: VoxelGrid, progress: Progress) -> list[RefinedMotion]:
    observed, low, width = observe(stacks, grid)
    current = list(stacks)
    rms: list[list[float]] = [[] for _ in stacks]
    jobs = ROUNDS * (len(stacks) - 1)
    for number in range(ROUNDS):
        farthest_mm = 0.0
        for k in range(1, len(stacks)):
            # One that was moved already is not where its header says, and may as well lie where it fits best.
            least_gain = CLEAR_GAIN if np.array_equal(current[k].motion, np.eye(4)) else 0.0
            motion, before, after = _place(observed[k], [*observed[:k], *observed[k + 1 :]], grid, least_gain)
            if before is not None and after is not None:
                rms[k] += [before, after]
                affine, shape = observed[k].acquisition.stack_affine, observed[k].acquisition.stack_shape
                farthest_mm = max(farthest_mm, grid_distance_mm(affine, motion @ affine, shape))
                current[k] = replace(current[k], motion=motion @ current[k].motion)
                observed[k] = observe_moved(observed[k], current[k], grid, low, width)
            progress((number * (len(stacks) - 1) + k) / jobs)
        if farthest_mm < SETTLED_MM:
            break
    progress(1.0)
    return [_describe(stack, moved, rms[k]) for k, (stack, moved) in enumerate(zip(stacks, current, strict=True))]


def _place(
    one: ObservedStack, others: Sequence[ObservedStack], grid: VoxelGrid, least_gain: float
) -> tuple[np.ndarray, float | None, float | None]:
    """Returns the motion that brings a stack to where it fits, and its difference from the others before and after."""
    # What they say against each other counts, and not what they say against the one that is to be placed.
    others = [
        replace(other, misfit=find_misfit(other, [more for more in others if more is not other])) for other in others
    ]
    volume, *_ = join(others)
    known = np.greater(sum(other.say for other in others), 0.5).astype(np.float32)
    slopes = _slopes_mm(volume, grid)
    acquisition, motion = one.acquisition, np.eye(4)
    history: list[float] = []
    for _ in range(STEPS + 1):
        counted = (acquisition.coverage >= WHOLLY_SEEN) & (one.counted > 0) & (acquisition.forward(known) > 0.9)
        if np.count_nonzero(counted) < FEWEST_SAMPLES:
            return np.eye(4), None, None
        seen = acquisition.forward(volume)[counted].astype(np.float64)
        steep = np.stack([acquisition.forward(slope)[counted] for slope in slopes]).astype(np.float64)
        gain, left, robust = _compare(one.samples[counted].astype(np.float64), seen)
        history.append(float(np.sqrt(np.average(left**2, weights=robust))))
        centre = acquisition.stack_affine @ [*(np.array(acquisition.stack_shape) - 1) / 2, 1]
        places = _places_mm(acquisition, counted) - centre[:3, None]
        # A turn w about the centre and a shift t move a sample by w x p + t: it sees g . (w x p + t) more.
        causes = np.stack([*(gain * np.cross(places, steep, axis=0)), *(gain * steep), seen], axis=1)
        normal = (causes * robust[:, None]).T @ causes
        found = np.linalg.lstsq(normal, (causes * robust[:, None]).T @ left, rcond=None)[0]
        step = _rigid(found[:3], found[3:6], centre[:3])
        motion = step @ motion
        moved = replace(acquisition, stack_affine=step @ acquisition.stack_affine)
        farthest_mm = grid_distance_mm(acquisition.stack_affine, moved.stack_affine, acquisition.stack_shape)
        acquisition = moved
        if farthest_mm < SMALL_MM:
            break
    moved_mm = grid_distance_mm(one.acquisition.stack_affine, acquisition.stack_affine, acquisition.stack_shape)
    gained = np.count_nonzero(counted) * (history[0] ** 2 - history[-1] ** 2)
    if gained <= least_gain * history[-1] ** 2 or moved_mm > FARTHEST_MM:
        # What is shared says too little, or the search has lost its way: the stack stays.
        return np.eye(4), history[0], history[0]
    return motion, history[0], history[-1]


def _compare(samples: np.ndarray, seen: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the brightness of samples over what is seen, what is left between them, and robust weights."""
    gain = float(np.vdot(samples, seen) / max(np.vdot(seen, seen), 1e-12))
    left = samples - gain * seen
    deviation = 1.4826 * float(np.median(np.abs(left))) + 1e-9
    return gain, left, np.minimum(1.0, OUTLIER_DEVIATIONS * deviation / np.maximum(np.abs(left), 1e-12))


def _slopes_mm(volume: np.ndarray, grid: VoxelGrid) -> list[np.ndarray]:
    """Returns the gradient of a volume on a grid along the three patient axes, per millimetre."""
    along = np.stack(np.gradient(volume))
    to_voxels = np.linalg.inv(grid.affine[:3, :3])
    return [np.einsum("a,axyz->xyz", to_voxels[:, patient].astype(volume.dtype), along) for patient in range(3)]


def _places_mm(acquisition: StackAcquisition, chosen: np.ndarray) -> np.ndarray:
    """Returns where some samples of a stack lie, [3, samples]."""
    affine = acquisition.stack_affine
    places: np.ndarray = affine[:3, :3] @ np.stack(np.nonzero(chosen)) + affine[:3, 3:]
    return places


def _rigid(turn: np.ndarray, shift: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Returns the motion that turns about a point by a vector, whose length is the angle, and then shifts."""
    angle = float(np.linalg.norm(turn))
    x, y, z = turn / angle if angle > 0 else turn
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    motion = np.eye(4)
    motion[:3, :3] = rotation
    motion[:3, 3] = centre + shift - rotation @ centre
    return motion


def _describe(stack: Stack, moved: Stack, rms: Sequence[float]) -> RefinedMotion:
    step = moved.motion @ np.linalg.inv(stack.motion)
    middle = stack.motion @ stack.acquired.affine @ [*(np.array(stack.acquired.shape) - 1) / 2, 1]
    shift = float(np.linalg.norm((step @ middle - middle)[:3]))
    cosine = np.clip((np.trace(step[:3, :3]) - 1) / 2, -1, 1)
    before, after = (rms[0], rms[-1]) if rms else (None, None)
    return RefinedMotion(moved.motion, shift, float(np.degrees(np.arccos(cosine))), before, after)
