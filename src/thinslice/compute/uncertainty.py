"""Maps where not to trust an answer: how far a network's answers to a scan and to its mirror image are apart.

A network that is sure answers both alike. Half the distance between the two answers, averaged over small cells,
ranks the true error, on other people and at other factors too. A power of it, the same for all scans, is the error to
be expected (docs/report.md). It knows nothing of what both answers get wrong alike.

Several stacks of one body say it by themselves: where the network's answers to them are far apart, the volume that is
combined from them is less sure (docs/combine.md). Only where one stack sees alone its mirror image is asked.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinslice.compute.stacks import ObservedStack, Stack, VoxelGrid
from thinslice.compute.tilted import mirror
from thinslice.compute.upsample import upsample
from thinslice.io.scratch import allocate
from thinslice.models.protocol import Model
from thinslice.physics.intensity import intensity_range
from thinslice.physics.stack_acquisition import resample
from thinslice.physics.straightening import find_gaps
from thinslice.plan import Plan
from thinslice.progress import no_progress, part_of
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

CELL_MM = 3.0
"""Side in millimetres of the cells over which distances are averaged: smaller ones hold mostly noise."""

SCALE = 3.35
"""Factor of the power law ``expected error = SCALE * distance ** POWER``, both in intensity ranges of the scan.

Fitted to the scans of other people by experiments/uncertainty.py; docs/report.md tells how well it holds.
"""

POWER = 0.81
"""Exponent of that power law, without a unit; fitted together with `SCALE`."""

JOINT_SCALE = 0.47
"""Of a combined volume, factor of ``JOINT_SCALE * spread ** POWER``, in intensity ranges; the spread is the standard
deviation of the mean of the answers to the stacks. Fitted to `iso_train` by experiments/combined_error.py."""

NOISE_LEFT = 0.95
"""Share of the noise of the stacks that is in a combined volume, of two stacks and of three; fitted with it."""

ALONE = 0.25
"""Where a stack sees a cell alone by a larger share its mirror image is asked. Of two, one of which has twice as much
to say as the other, it is 0.13."""

CHECKED_SHA256 = "679b39187b11299d91f0d68ebc08d5499eb3ef73078a676c19b224141c05cd53"
"""SHA-256 of the weights for which the expected error was compared with known truth: the embedded `default`.

A hash and not a name, because every model that is trained anew may be called `default` too. Where the embedded weights
change, docs/report.md has to be measured again before this does.
"""


def is_checked(model: Model) -> bool:
    """Tells whether the expected error was compared with known truth for the weights of this model."""
    return model.sha256 == CHECKED_SHA256


@dataclass(frozen=True)
class Uncertainty:
    """The error to be expected of an answer.

    Attributes:
        volume: mean absolute error expected in each cell, in the scan's own units; the affine is that of the cells.
        unit: one intensity range of the scan, in its own units.
    """

    volume: Volume
    unit: float


def map_expected_error(
    volume: Volume,
    thin: Volume,
    plan: Plan,
    model: Model,
    fell_back: np.ndarray | None = None,
    progress: Callable[[float], None] = no_progress,
) -> Uncertainty | None:
    """Runs the network once more, on the mirror image, and returns the error that its two answers let expect.

    It takes as long as the answer took without `fuse`, or twice that for fused planes. Of a 4-D series the first volume
    is looked at. Where the guard took the network back, or a slice is missing, nothing is known: there stands the
    largest value of all.

    Args:
        volume: the scan, [x, y, z] or [x, y, z, t].
        thin: its answer, as `upsample` gives it.
        plan, model: what it was computed with.
        fell_back: bool [x, y, z], the voxels of the scan where the guard took the network back, see
            `thinslice.compute.upsample.Upsampled`.
        progress: called with the share done, 0 .. 1.

    Returns:
        The expected error in cells, or None for an interpolation, which answers every mirror image alike.
    """
    if not model.adds:
        return None
    thick = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
    answer = thin.voxels if thin.voxels.ndim == 3 else thin.voxels[..., 0]
    low, high = intensity_range(thick)
    size = choose_cell_size(plan.spacing_thin_mm, plan.shape_thin)
    logger.debug("expected error in cells of %s voxels; checked: %s", size, is_checked(model))
    distance = _distance(replace(volume, voxels=thick), answer, plan, model, size, progress)
    expected = SCALE * (distance / (high - low)) ** POWER * (high - low)
    affine = make_cell_affine(thin.affine, size)
    # There both answers are the interpolation's and so near each other, which would look like certainty.
    if fell_back is not None:
        expected[_cells_with(fell_back, volume.affine, expected.shape, affine)] = expected.max()
    # In a gap both answers rest on the same slices around it.
    for before, step in find_gaps(np.array(plan.places)) if plan.places is not None else ():
        first = plan.places[before] if plan.places is not None else 0.0
        expected[_cells_between(first + 0.5, first + step - 0.5, size[plan.axis], plan)] = expected.max()
    return Uncertainty(Volume(expected.astype(np.float32), affine), high - low)


@dataclass(frozen=True, eq=False)
class Spread:
    """How far the answers to several stacks are apart, in cells of a grid, and where there is only one of them.

    Attributes:
        cells: the grid of the cells.
        held: bool, the cells that a stack sees.
        apart: float32, standard deviation of the mean of the answers that each cell has, in intensity ranges of the
            first stack; 0 where there are none.
        alone: for every stack, float32, the share to which it sees a cell alone.
        gains: for every stack, its brightness over that of the first one.
        noise: standard deviation of the noise of the stacks, their mean, in intensity ranges of the first one.
        stacks: those that somewhere see alone; None for the others.
        has_model: whether a network made each of them thin.
        unit: one intensity range of the first stack, in its own units.
    """

    cells: VoxelGrid
    held: np.ndarray
    apart: np.ndarray
    alone: tuple[np.ndarray, ...]
    gains: tuple[float, ...]
    noise: float
    stacks: tuple[Stack | None, ...]
    has_model: bool
    unit: float


def find_spread(
    stacks: Sequence[Stack], observed: Sequence[ObservedStack], variance: np.ndarray, unit: float
) -> Spread:
    """Returns how far the answers to stacks are apart.

    Args:
        stacks, observed: the stacks, and what they say of a grid.
        variance: of the answers around their mean at each voxel of the grid, as the stacks have their say there.
        unit: one intensity range of the first stack.
    """
    grid = observed[0].acquisition
    spacing_mm = [float(mm) for mm in np.linalg.norm(grid.affine[:3, :3], axis=0)]
    size = choose_cell_size(spacing_mm, grid.shape)
    say = np.asarray(sum(one.say for one in observed))
    held = say > 0
    say = np.where(held, say, np.float32(1))
    # How many stacks there are, where one that has little to say counts for little.
    count = say**2 / np.maximum(sum(one.say**2 for one in observed), np.finfo(np.float32).tiny)
    nothing = np.broadcast_to(np.float32(0), held.shape)
    share = average_in_cells(held, nothing, size)

    def in_cells(values: np.ndarray) -> np.ndarray:
        mean: np.ndarray = average_in_cells(held * values, nothing, size) / np.maximum(share, 1e-6)
        return mean.astype(np.float32)

    # What n answers are apart from their mean makes the mean of them uncertain by 1 / (n - 1) of it; of one nothing is
    # known, and between one and two so little that the mirror image makes up for the rest.
    apart = in_cells(np.sqrt(variance / np.maximum(count - 1, 1)))
    single = np.clip(2 - count, 0, 1) / say
    alone = tuple(in_cells(single * one.say) for one in observed)
    return Spread(
        VoxelGrid((apart.shape[0], apart.shape[1], apart.shape[2]), make_cell_affine(grid.affine, size)),
        share > 0,
        apart,
        alone,
        tuple(one.gain for one in observed),
        float(np.mean([one.noise_or(0.0) for one in observed])),
        tuple(stack if part.max() > ALONE else None for stack, part in zip(stacks, alone, strict=True)),
        all(stack.model is not None and stack.model.adds for stack in stacks),
        unit,
    )


def map_combined_error(spread: Spread) -> Uncertainty | None:
    """Returns the error to be expected of a volume from several stacks.

    Where one of them sees alone the network is run once more on the mirror image of its slices, as by
    `map_expected_error`.

    Returns:
        The expected error in cells, 0 where no stack sees; None where one of them was made thin by an interpolation,
        of which nothing is known.
    """
    if not spread.has_model:
        return None
    square = (JOINT_SCALE * spread.apart**POWER) ** 2 + (NOISE_LEFT * spread.noise) ** 2
    for stack, alone, gain in zip(spread.stacks, spread.alone, spread.gains, strict=True):
        if stack is None or stack.model is None:
            continue
        own = map_expected_error(stack.acquired, stack.thin, stack.plan, stack.model, stack.fell_back)
        assert own is not None  # as the model adds something
        affine = stack.motion @ own.volume.affine
        there = resample(own.volume.voxels, affine, spread.cells.shape, spread.cells.affine)
        square += alone * (np.maximum(there, 0) / np.float32(gain * spread.unit)) ** 2
    expected = spread.unit * np.where(spread.held, np.sqrt(square), 0)
    return Uncertainty(Volume(expected.astype(np.float32), spread.cells.affine), spread.unit)


def _distance(
    volume: Volume,
    answer: np.ndarray,
    plan: Plan,
    model: Model,
    size: tuple[int, int, int],
    progress: Callable[[float], None],
) -> np.ndarray:
    """Returns half the mean distance, in each cell, between the answers to the scan and to its mirror image."""
    # A fused answer is the same for the mirror image, nearly: the distance would say nothing.
    plain = replace(plan, fuse=False)
    if not plan.fuse:
        return average_in_cells(answer, _run_mirrored(volume, plain, model, progress), size) / 2
    alone = _run(volume, plain, model, part_of(progress, 0, 0.5))
    if model.fused_is_mirrored:
        # The fused answer is the mean of both: its distance to one of them is half that between them, and the other one
        # need not be computed. A median of many answers, as of planes, is no such mean.
        return average_in_cells(answer, alone, size)
    return average_in_cells(alone, _run_mirrored(volume, plain, model, part_of(progress, 0.5, 1)), size) / 2


def _run_mirrored(volume: Volume, plan: Plan, model: Model, progress: Callable[[float], None]) -> np.ndarray:
    """Returns the answer to the mirror image, mirrored back."""
    # The affine stays: with a mirrored one `upsample` would turn the stack back before the network sees it.
    return _run(*mirror(volume, plan), model, progress)[::-1, ::-1, ::-1]


def _run(volume: Volume, plan: Plan, model: Model, progress: Callable[[float], None]) -> np.ndarray:
    """Returns the answer in float32; a large one is kept in a file, as this is the third such array in use."""
    out = allocate(plan.shape_thin, np.float32, Path(tempfile.gettempdir()))
    return upsample(volume, plan, model, out, progress).volume.voxels


def _cells_with(
    mask: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], affine_of_cells: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Returns the indices of the cells in which voxels of a mask have their centres."""
    index = np.argwhere(mask)
    there = np.linalg.solve(affine_of_cells, affine @ np.c_[index, np.ones(len(index))].T)[:3]
    cells = np.clip(np.rint(there).astype(int), 0, np.array(shape)[:, None] - 1)
    return tuple(cells)


def _cells_between(low: float, high: float, size: int, plan: Plan) -> tuple[slice | np.ndarray, ...]:
    """Returns the indices of the cells that have a thin slice between two places, in thick-slice index units."""
    among = (plan.positions() > low) & (plan.positions() < high)
    cells: list[slice | np.ndarray] = [slice(None)] * 3
    cells[plan.axis] = np.unique(np.flatnonzero(among) // size)
    return tuple(cells)


def choose_cell_size(spacing_mm: Sequence[float], shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns how many voxels of a grid a cell has along each axis: about `CELL_MM`, one at least."""
    x, y, z = (min(max(1, round(CELL_MM / mm)), count) for mm, count in zip(spacing_mm, shape, strict=True))
    return x, y, z


def average_in_cells(one: np.ndarray, other: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Returns the mean absolute difference of two volumes [x, y, z] in cells of ``size`` voxels, the last of fewer.

    Example:
        >>> one = np.array([1.0, 3.0, 5.0]).reshape(3, 1, 1)
        >>> average_in_cells(one, np.zeros((3, 1, 1)), (2, 1, 1)).ravel()
        array([2., 5.])
    """
    starts = [np.arange(0, n, s) for n, s in zip(one.shape, size, strict=True)]
    counts = [np.diff(start, append=n) for start, n in zip(starts, one.shape, strict=True)]
    means = np.empty([len(start) for start in starts])
    # Slab by slab: the differences of the whole in float64 would take twice the room of the answer.
    for z, start in enumerate(starts[2]):
        slab = slice(start, start + size[2])
        apart = np.abs(one[..., slab].astype(np.float64) - other[..., slab]).sum(axis=2)
        apart = np.add.reduceat(np.add.reduceat(apart, starts[0], axis=0), starts[1], axis=1)
        means[..., z] = apart / (counts[0][:, None] * counts[1] * counts[2][z])
    return means


def make_cell_affine(affine: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Returns the affine of a grid of cells whose first begins with the first voxel of ``affine``.

    Example:
        >>> make_cell_affine(np.eye(4), (3, 3, 1))[:3]
        array([[3., 0., 0., 1.],
               [0., 3., 0., 1.],
               [0., 0., 1., 0.]])
    """
    cells = np.array(affine, np.float64)
    cells[:3, 3] += cells[:3, :3] @ (np.array(size) - 1) / 2
    cells[:3, :3] *= size
    return cells
