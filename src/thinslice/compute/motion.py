"""Motion between stacks, found by the operator: where a stack has to lie for the others to explain its slices.

Registration of thin volumes compares what networks made of the stacks. Here a stack's own slices are compared with what
the other stacks say that it must have seen, slice profile and all, and its place is improved by the steps of Gauss and
Newton: three angles, three shifts, and one factor of brightness. Likewise the places of its packages (every second
slice, acquired in one pass) and of its single slices, where that explains clearly more
(`thinslice.compute.motion_evidence`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thinslice.compute.combine import join
from thinslice.compute.motion_evidence import Evidence, find_slopes_mm, gather
from thinslice.compute.stacks import Stack, VoxelGrid, find_misfit, observe, observe_moved
from thinslice.models.blas import one_blas_thread
from thinslice.physics.split_acquisition import SplitAcquisition
from thinslice.physics.stack_acquisition import StackAcquisition
from thinslice.progress import Progress, no_progress, part_of
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

PACKAGES = (2, 3, 4)
"""Every second, third or fourth slice is acquired in one pass; more passes than that are hardly used."""

SLICES_OF_A_PACKAGE = 3
"""With fewer, packages say no more than single slices do."""

LEAST_EXPLAINED = 0.25
"""Share of the squares that packages have to explain beyond what one motion does, of samples that their motion was not
found from. Packages that had moved by 1.5 mm and 2 degrees explained 0.46 to 0.59. Where nothing had moved it was 0.001
at most with the slice profile as it was, but up to 0.19 in small crops with one that was estimated (LOG.md)."""

LEAST_OF_SLICES = 0.45
"""Likewise for single slices: 0.43 to 0.53 where they had moved by a millimetre or two, up to 0.35 where they had not.
"""

SPILL = 0.15
"""Share of what the stack that moved most within explains, from which on another one has moved as well: what it says
wrongly, and has left unseen, is put down to the others. Where it alone had moved, they explained up to 0.11 of that."""

ROUNDS_WITHIN = 2
"""What moved within stacks is decided so many times: the second time the others lie where they were found. What
moved in one stack is then no longer put down to another one."""


UNEVEN_SAY = 0.1
"""How much the thin slices of a stack count that were made from slices which moved: their staircases would be taken for
motion of the other stacks. What was acquired counts in full."""


@dataclass(frozen=True, eq=False)
class RefinedMotion:
    """How one stack was moved.

    Attributes:
        stack: where it was found to lie, its slices too.
        moved_mm: how far the middle of the stack was moved by what was found.
        turned_degrees: by which angle it was turned.
        rms_before, rms_after: root mean square difference of its slices and what the others say of them, in intensity
            ranges; None where the stack stayed, as it is the first one or shares too little with the others.
    """

    stack: Stack
    moved_mm: float
    turned_degrees: float
    rms_before: float | None = None
    rms_after: float | None = None


def refine_motions(stacks: Sequence[Stack], grid: VoxelGrid, progress: Progress = no_progress) -> list[RefinedMotion]:
    """Returns where the stacks lie, found from where they are thought to lie; the first one stays.

    Where packages or single slices of a stack have moved by themselves, that is found as well: of the first stack
    against its place as a whole, which stays.

    Args:
        stacks: of one body, in any positions, not more than a few millimetres and degrees off.
        grid: on which they are compared; it may be coarser than that of the answer.
        progress: called with the share done, 0 .. 1.
    """
    with one_blas_thread:
        placing = _Placing(stacks, grid)
        placing.place_stacks(part_of(progress, 0.0, 0.5))
        placing.place_within(part_of(progress, 0.5, 1.0))
    return [_describe(stack, moved, rms) for stack, moved, rms in zip(stacks, placing.stacks, placing.rms, strict=True)]


class _Placing:
    """The stacks where they lie by now, and what they say from there."""

    def __init__(self, stacks: Sequence[Stack], grid: VoxelGrid) -> None:
        self.stacks, self.grid = list(stacks), grid
        self.observed, self.low, self.width = observe(stacks, grid)
        self.first_motion = stacks[0].motion
        self.plans = [stack.plan for stack in stacks]
        self.rms: list[list[float]] = [[] for _ in stacks]

    def place_stacks(self, progress: Progress) -> None:
        """Places every stack but the first as a whole."""
        jobs = ROUNDS * max(len(self.stacks) - 1, 1)
        for number in range(ROUNDS):
            farthest_mm = 0.0
            for k in range(1, len(self.stacks)):
                farthest_mm = max(farthest_mm, self._place_whole(k, self._look_at(k)))
                progress((number * (len(self.stacks) - 1) + k) / jobs)
            if farthest_mm < SETTLED_MM:
                break
        progress(1.0)

    def place_within(self, progress: Progress) -> None:
        """Places packages and slices of the stacks in which these have clearly moved; else nothing is changed."""
        expected = [self._expect(k) for k in range(len(self.stacks))]
        logger.debug("motion within the stacks explains %s", ", ".join(f"{100 * one:.1f} %" for one in expected))
        # What one stack says wrongly is put down to the others: the one that gains most comes first.
        order = sorted(range(len(self.stacks)), key=lambda k: -expected[k])
        least = max(LEAST_EXPLAINED, SPILL * expected[order[0]])
        for number in range(ROUNDS_WITHIN if expected[order[0]] >= LEAST_EXPLAINED else 0):
            moved = [self._place_parts(k, least) for k in order]
            if not any(moved):
                break
            progress((number + 1) / ROUNDS_WITHIN)
        if self.stacks[0].motion is not self.first_motion or self.stacks[0].slice_motions is not None:
            self._keep_first()
        progress(1.0)

    def _look_at(self, k: int) -> "_Look":
        """Returns what compares a stack, wherever it lies, with what the others say."""
        others = [one for number, one in enumerate(self.observed) if number != k]
        # What they say against each other counts, and not what they say against the one that is to be placed.
        others = [
            replace(other, misfit=find_misfit(other, [more for more in others if more is not other]))
            for other in others
        ]
        known = np.greater(sum(other.say for other in others), 0.5).astype(np.float32)
        for other in others:
            if isinstance(other.acquisition, SplitAcquisition):
                other.say = other.say * np.float32(UNEVEN_SAY)
        volume, *_ = join(others)
        slopes = find_slopes_mm(volume, self.grid)
        return lambda acquisition: gather(self.observed[k], acquisition, volume, slopes, known)

    def _move(self, k: int, **places: Any) -> None:
        self.stacks[k] = replace(self.stacks[k], **places)
        self.observed[k] = observe_moved(self.observed[k], self.stacks[k], self.grid, self.low, self.width)

    def _place_whole(self, k: int, look: "_Look") -> float:
        """Places a stack as a whole, and returns how far a corner of it was moved."""
        one = self.observed[k].acquisition
        # One that was moved already is not where its header says, and may as well lie where it fits best.
        least_gain = CLEAR_GAIN if np.array_equal(self.stacks[k].motion, np.eye(4)) else 0.0
        motions, rms = _descend(look, one, np.zeros(one.stack_shape[one.axis], int), least_gain=least_gain)
        if not rms:
            return 0.0
        self.rms[k] += rms
        self._move(k, motion=motions[0] @ self.stacks[k].motion)
        return grid_distance_mm(one.stack_affine, motions[0] @ one.stack_affine, one.stack_shape)

    def _expect(self, k: int) -> float:
        """Returns the share of the squares of a stack that motion within it would explain."""
        evidence = self._look_at(k)(self.observed[k].acquisition)
        if evidence.count < FEWEST_SAMPLES:
            return 0.0
        whole, *within = (evidence.explained(groups) for groups in _groupings(len(evidence.centres_mm)))
        return max(within) - whole

    def _place_parts(self, k: int, least: float) -> bool:
        """Places the packages or slices of a stack, if they have clearly moved; returns whether they have."""
        if (before := self.stacks[k].slice_motions) is not None:
            # Decided anew, as the others lie better by now.
            mean = _mean_motion(self.observed[k].acquisition, before)
            self._move(k, motion=mean @ self.stacks[k].motion, slice_motions=None, plan=self.plans[k])
        look = self._look_at(k)
        if k > 0:
            self._place_whole(k, look)
        evidence = look(self.observed[k].acquisition)
        if evidence.count < FEWEST_SAMPLES:
            return False
        groups = _groupings(len(evidence.centres_mm))
        chosen, apart = groups[0], 1
        best = evidence.explained(chosen)
        for number, parts in enumerate(groups[1:], 1):
            are_slices = number == len(groups) - 1
            if (explained := evidence.explained(parts)) > best + (max(least, LEAST_OF_SLICES) if are_slices else least):
                best, chosen = explained, parts
                # Slices that are acquired one after the other move nearly alike: those of one package.
                apart = apart if are_slices else int(parts.max()) + 1
        if chosen is groups[0]:
            return False
        logger.debug("stack %d: %d motions within explain %.1f %%", k + 1, chosen.max() + 1, 100 * best)
        # What alternates in the slices' plane was evened out; it is found once more, with all else that moved.
        plan = replace(self.stacks[k].plan, alternating_shift_px=(0.0, 0.0))
        self._move(k, plan=plan, slice_motions=np.tile(np.eye(4), (len(chosen), 1, 1)))
        motions, rms = _descend(look, self.observed[k].acquisition, chosen, apart)
        self.rms[k] += rms
        if not rms or np.allclose(motions, np.eye(4)):
            # What was to be explained vanished with the first step: nothing has moved within.
            self._move(k, plan=self.plans[k], slice_motions=None)
            return False
        self._move(k, slice_motions=motions @ self.stacks[k].slice_motions)
        return True

    def _keep_first(self) -> None:
        """Brings the first stack as a whole back to where its header says, and all others with it."""
        first = self.stacks[0]
        mean = first.motion
        if first.slice_motions is not None:
            mean = _mean_motion(self.observed[0].acquisition, first.slice_motions) @ first.motion
        back = self.first_motion @ np.linalg.inv(mean)
        for k, stack in enumerate(self.stacks):
            motion = self.first_motion if k == 0 else back @ stack.motion
            within = stack.slice_motions
            if within is not None:
                within = back @ within @ stack.motion @ np.linalg.inv(motion)
            self.stacks[k] = replace(stack, motion=motion, slice_motions=within)


def _mean_motion(acquisition: StackAcquisition | SplitAcquisition, motions: np.ndarray) -> np.ndarray:
    """Returns the rigid motion that is nearest to the mean of motions of slices, about the middle of their stack."""
    middle = acquisition.stack_affine @ [*(np.array(acquisition.stack_shape) - 1) / 2, 1]
    left, _, right = np.linalg.svd(motions[:, :3, :3].mean(axis=0))
    mean = np.eye(4)
    mean[:3, :3] = left @ right
    mean[:3, 3] = (motions.mean(axis=0) @ middle)[:3] - mean[:3, :3] @ middle[:3]
    return mean


_Look = Callable[[StackAcquisition | SplitAcquisition], Evidence]


def _groupings(count: int) -> list[np.ndarray]:
    """Returns which slices may have moved together: all of them, those of each package, and each alone."""
    number = np.arange(count)
    return [0 * number, *(number % n for n in PACKAGES if count >= n * SLICES_OF_A_PACKAGE), number]


def _descend(
    look: "_Look",
    acquisition: StackAcquisition | SplitAcquisition,
    groups: np.ndarray,
    apart: int = 0,
    least_gain: float = 0.0,
) -> tuple[np.ndarray, list[float]]:
    """Returns the motions of the slices by which they fit, and the difference before and after; none if it is unknown.

    Args:
        look: what compares them with what the others say.
        acquisition: where they are thought to lie.
        groups: which of them move together.
        apart: see `Evidence.step`; it counts for single slices alone.
        least_gain: by so many times the mean square that is left the sum of squares has to fall, or they stay.
    """
    count = len(groups)
    unmoved = motions = best = np.tile(np.eye(4), (count, 1, 1))
    start = acquisition if isinstance(acquisition, SplitAcquisition) else SplitAcquisition(acquisition, unmoved)
    history: list[float] = []
    for _ in range(STEPS + 1):
        moved = replace(start, motions=motions @ start.motions)
        evidence = look(moved)
        if evidence.count < FEWEST_SAMPLES:
            return unmoved, []
        if history and evidence.rms >= min(history):
            break
        history.append(evidence.rms)
        best = motions
        steps = evidence.step(groups, apart if groups.max() + 1 == count else 0)
        motions = steps @ motions
        if _farthest_mm(moved, steps) < SMALL_MM:
            break
    gained = evidence.count * (history[0] ** 2 - history[-1] ** 2)
    if gained <= least_gain * history[-1] ** 2 or _farthest_mm(start, best) > FARTHEST_MM:
        # What is shared says too little, or the search has lost its way: they stay.
        return unmoved, [history[0]] * 2
    return best, [history[0], history[-1]]


def _farthest_mm(acquisition: SplitAcquisition, motions: np.ndarray) -> float:
    """Returns by how much motions of the slices move a corner of one of them at most."""
    return max(
        grid_distance_mm(part.stack_affine, motions[chosen.start] @ part.stack_affine, part.stack_shape)
        for chosen, part in acquisition.parts
    )


def _describe(stack: Stack, moved: Stack, rms: Sequence[float]) -> RefinedMotion:
    step = moved.motion @ np.linalg.inv(stack.motion)
    middle = stack.motion @ stack.acquired.affine @ [*(np.array(stack.acquired.shape) - 1) / 2, 1]
    before, after = (rms[0], rms[-1]) if rms else (None, None)
    return RefinedMotion(moved, *measure_motion(step, middle), before, after)


def measure_motion(motion: np.ndarray, place: np.ndarray) -> tuple[float, float]:
    """Returns by how many millimetres a motion moves a place [x, y, z, 1], and by how many degrees it turns.

    Example:
        >>> measure_motion(np.diag([-1.0, -1.0, 1.0, 1.0]), np.array([3.0, 0.0, 5.0, 1.0]))
        (6.0, 180.0)
    """
    shift_mm = float(np.linalg.norm((motion @ place - place)[:3]))
    turn = np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)
    return shift_mm, float(np.degrees(np.arccos(turn)))
