"""One volume from several stacks of one body: the one that all acquisitions agree with.

Each stack ``y_k`` saw the volume ``x`` through its own operator ``A_k`` (`thinslice.physics.stack_acquisition`). The
answer minimises

    sum_k |A_k x - y_k|^2 / s_k^2  +  |(x - x0) / t|^2

The start ``x0`` is the mean of what the network made of each stack. What one stack resolves and another one does not
follows from the first term, so that no weights of frequencies are needed. ``s_k`` is the noise of a stack, and ``t`` at
each voxel how far the network's answers are apart there: where all of them agree the start is believed, and noise does
not come in; where they do not, which is at edges, what was acquired decides. Found by conjugate gradients.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from thinslice.compute.blur import blur
from thinslice.compute.stacks import ObservedStack, Stack, VoxelGrid, find_smooth_part, observe
from thinslice.compute.uncertainty import Spread, find_spread
from thinslice.models.blas import one_blas_thread
from thinslice.physics.noise import LEAST_NOISE
from thinslice.progress import Progress, no_progress, part_of

logger = logging.getLogger(__name__)

PULL = 0.5
"""The weight of the pull to the start over what noise alone would ask for: the network's errors are correlated."""

CLEAN_NOISE = 0.006
"""What stands for noise in stacks without any, in intensity ranges: the error of the model of the acquisition."""

AGREEMENT = 0.01
"""How far off answers that agree may be nevertheless, in intensity ranges."""

AROUND_VOX = 1.0
"""Standard deviation of the Gaussian within which answers are apart by so much: at one voxel chance decides."""

BELIEVED_NOISE = 0.012
"""Stacks with so much noise, in intensity ranges, are replaced by half with what the network made of them.

Made thick again, that is the same slices with less noise. In stacks without noise it would be less true.
"""

FAINT = np.float32(1e-6)
"""What a stack says beyond its field of view, where it goes on as it ends: it counts where no stack has more to say.

Were it dark there, samples beside it, which see a little of it, would make their neighbours brighter.
"""

MOST_STEPS = 15
"""Steps of conjugate gradients at most; five to eight are usual."""

ENOUGH = 2e-3
"""They end when the gradient has fallen to this share of its first value: what is left changes 0.01 dB."""

THREADS = 2
"""Stacks that are computed at the same time: each of them needs room for two further volumes meanwhile."""

OUTLYING = 3.0
"""A slice that is so many times farther from what the other stacks say than its neighbours are loses weight."""

NEIGHBOURS = 4
"""So many slices on either side of a slice are its neighbours in that."""


@dataclass(frozen=True, eq=False)
class StackFit:
    """Says how well a combined volume agrees with one of its stacks.

    Attributes:
        rms_percent: root mean square difference of its slices and those that the volume would give, in percent of the
            intensity range of the first stack.
        rms_in_noise: the same over the standard deviation of its noise; None where it has less than
            `thinslice.physics.noise.LEAST_NOISE`, or that is not known.
        gain: its brightness over that of the first stack, which was divided out.
        slice_weights: [slices], 1 for a slice that counts in full, less for one that does not fit.
        share_seen: the share of its samples that lie inside the grid.
    """

    rms_percent: float
    rms_in_noise: float | None
    gain: float
    slice_weights: np.ndarray
    share_seen: float


@dataclass(frozen=True, eq=False)
class Joined:
    """One volume from several stacks.

    Attributes:
        voxels: float32, on the grid, in the units of the first stack.
        held_by: uint8, how many stacks hold each voxel.
        fits: how well it agrees with each of the stacks.
        spread: how far the thin slices of the stacks are apart.
    """

    voxels: np.ndarray
    held_by: np.ndarray
    fits: tuple[StackFit, ...]
    spread: Spread


def combine_stacks(stacks: Sequence[Stack], grid: VoxelGrid, progress: Progress = no_progress) -> Joined:
    """Returns the volume that all stacks agree with.

    Args:
        stacks: of one body and one contrast, in any positions; the first one sets the brightness.
        grid: of the answer.
        progress: called with the share done, 0 .. 1.
    """
    # The products are many and small: threads of BLAS wait for each other, and one for each stack does not.
    with one_blas_thread:
        observed, low, width = observe(stacks, grid)
        progress(0.2)
        volume, weights, apart = join(observed, part_of(progress, 0.2, 1.0))
        fits = tuple(_measure_fit(one, volume, weights[k]) for k, one in enumerate(observed))
    held_by = np.asarray(sum((one.say > 0).astype(np.uint8) for one in observed))
    for k, fit in enumerate(fits):
        logger.debug("stack %d: %.3g %% from the volume, gain %.3f", k + 1, fit.rms_percent, fit.gain)
    volume *= np.float32(width)
    volume += np.float32(low)
    padding = [stack.plan.padding for stack in stacks if stack.plan.padding is not None]
    # What no stack holds is guessed from what is beside it, so that this does not suffer; nobody shall see it.
    volume[held_by == 0] = padding[0] if padding else low
    return Joined(volume, held_by, fits, find_spread(stacks, observed, apart, width))


def join(
    observed: Sequence[ObservedStack], progress: Progress = no_progress
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Returns the volume that stacks agree with, in their units, and what is known of it.

    That is for each stack the weights of its slices, and around each voxel the variance between the networks' answers.

    Args:
        observed: what the stacks say of a grid.
        progress: called with the share done.
    """
    weights = [find_slice_weights(k, observed) for k in range(len(observed))]
    noise = [one.noise_or(CLEAN_NOISE) for one in observed]
    # Weights are relative to the noise that all stacks have together.
    together = float(np.mean(np.array(noise) ** -2.0)) ** -0.5
    say = [
        one.trust(CLEAN_NOISE) * _across(weights[k], one) * np.float32((together / noise[k]) ** 2)
        for k, one in enumerate(observed)
    ]
    start, apart = find_start(observed)
    pull = np.float32((PULL * together) ** 2) / (apart + np.float32(AGREEMENT**2))
    # It is found again in the pull: meanwhile the room of a volume is spared.
    del apart
    gradient = np.zeros_like(start)
    density = pull.copy()
    for one, weight in zip(observed, say, strict=True):
        left = _replace_in_part(one) - one.acquisition.forward(start)
        # It could be explained within the slice profiles alone, and would come out as bands where these leave gaps.
        left -= find_smooth_part(one, left)
        gradient += one.acquisition.adjoint(weight * left)
        # What A^T A is for a flat image, as every row of A sums to one: samples for each voxel.
        density += np.float32((together / one.noise_or(CLEAN_NOISE)) ** 2 * one.samples_per_voxel)

    with ThreadPoolExecutor(min(len(observed), THREADS)) as workers:

        def apply(change: np.ndarray) -> np.ndarray:
            found: np.ndarray = pull * change

            def carry_back(k: int) -> np.ndarray:
                acquisition = observed[k].acquisition
                return acquisition.adjoint(say[k] * acquisition.forward(change))

            # Added in the order of the stacks, whichever is ready first: the answer is always the same.
            for part in workers.map(carry_back, range(len(observed))):
                found += part
            return found

        start += solve(apply, gradient, density, progress)
    apart = np.divide(np.float32((PULL * together) ** 2), pull, out=pull)
    apart -= np.float32(AGREEMENT**2)
    return start, weights, np.maximum(apart, 0, out=apart)


def find_start(observed: Sequence[ObservedStack]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of the thin slices of all stacks, and how far these are apart: their variance around a voxel."""
    mean, say = _find_mean(observed)
    apart: np.ndarray = sum((one.say + FAINT) * (one.thin - mean) ** 2 for one in observed) / say
    return mean, blur(apart, AROUND_VOX)


def _find_mean(observed: Sequence[ObservedStack]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of the thin slices of some stacks, and how much all of them have to say together."""
    say = np.asarray(sum(one.say + FAINT for one in observed))
    mean: np.ndarray = sum((one.say + FAINT) * one.thin for one in observed) / say
    return mean, say


def _replace_in_part(one: ObservedStack) -> np.ndarray:
    """Returns the samples of a stack, of which a part that grows with their noise is what the network made of them."""
    noise = one.noise or 0.0
    share = np.float32(noise**2 / (noise**2 + BELIEVED_NOISE**2))
    if not share:
        return one.samples
    return (1 - share) * one.samples + share * one.acquisition.forward(one.thin)


def solve(
    apply: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    density: np.ndarray,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Returns the solution of ``apply(x) = gradient`` by conjugate gradients, found from zero.

    Args:
        apply: a linear map, symmetric and positive.
        gradient: what it shall give.
        density: positive, of the same shape: what ``apply`` is roughly as a factor at each voxel.
        progress: called with the share done.
    """
    found = np.zeros_like(gradient)
    left = gradient.copy()
    direction = left / density
    size = first = float(np.vdot(left, direction))
    for step in range(MOST_STEPS):
        if size <= ENOUGH**2 * first or size <= 0:
            break
        seen = apply(direction)
        length = np.float32(size / float(np.vdot(direction, seen)))
        found += length * direction
        left -= length * seen
        scaled = left / density
        before, size = size, float(np.vdot(left, scaled))
        direction *= np.float32(size / before)
        direction += scaled
        progress((step + 1) / MOST_STEPS)
    progress(1.0)
    return found


def find_slice_weights(k: int, observed: Sequence[ObservedStack]) -> np.ndarray:
    """Returns for each slice of a stack how much it counts: less where it does not fit what the other stacks say.

    A slice during which the patient moved, or of which signal was lost, is much farther from what the others say than
    its neighbours are. Where no other stack sees, nothing is known, and a slice counts in full.
    """
    one = observed[k]
    axis = one.acquisition.axis
    others = [other for number, other in enumerate(observed) if number != k]
    count = one.samples.shape[axis]
    if not others:
        return np.ones(count, np.float32)
    mean, say = _find_mean(others)
    compared = one.counted * (one.acquisition.forward((say > 0.5).astype(np.float32)) > 0.9)
    within = tuple(other for other in range(3) if other != axis)
    total = compared.sum(axis=within)
    apart = (compared * one.residual(mean) ** 2).sum(axis=within) / np.maximum(total, 1)
    weights = np.ones(count, np.float32)
    known = np.flatnonzero(total >= 0.1 * one.samples.size / count)
    for index in known:
        near = known[np.abs(known - index) <= NEIGHBOURS]
        usual = max(float(np.median(apart[near])), CLEAN_NOISE**2)
        # Its weight falls with the square of what it has too much.
        weights[index] = min(1.0, OUTLYING**2 * usual / max(float(apart[index]), 1e-12))
    return weights


def _across(weights: np.ndarray, one: ObservedStack) -> np.ndarray:
    """Returns weights of slices in the shape of a stack that broadcasts."""
    shape = [1, 1, 1]
    shape[one.acquisition.axis] = len(weights)
    return weights.reshape(shape)


def _measure_fit(one: ObservedStack, volume: np.ndarray, weights: np.ndarray) -> StackFit:
    # Those that do not count shall not make the others look bad.
    counted = one.counted * (_across(weights, one) == 1)
    rms = float(np.sqrt((counted * one.residual(volume) ** 2).sum() / max(float(counted.sum()), 1.0)))
    is_noisy = one.noise is not None and one.noise >= LEAST_NOISE
    return StackFit(
        rms_percent=100 * rms,
        rms_in_noise=rms / one.noise if one.noise is not None and is_noisy else None,
        gain=one.gain,
        slice_weights=weights,
        share_seen=float(one.counted.mean()),
    )
