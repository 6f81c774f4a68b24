"""How much better is one volume from several stacks than the best of them? Clean, with noise, and with motion.

    python experiments/combine.py DATA/iso_dev [--side 96] [--noise 0 2] [--model default]
    python experiments/combine.py DATA/iso_dev --within packages few [--stacks 1]

From the middle of every volume of a folder three stacks are made, one along each axis, x4, of touching Gaussian slices.
Each is made thin by the model; then they are combined. Where there is motion the second stack sees the body turned by 3
degrees and moved by 2.5 mm, by spline interpolation of order 5 from the whole volume and not by the operator that
combines; its header does not know, and the motion is found (`refine_motions`). One line a case: decibels over the
foreground of the best single stack, of the mean of the answers, and of what is combined, with the motion as it was and
as it was found; how far off the found motion is at the corners; and the same for the first two stacks alone.

With ``--within`` the body moves between the slices of stacks (``--stacks``, the second one unless told otherwise):
every second slice (*packages*), slices from one on (*sudden*), from slice to slice (*smooth*), or three slices of a
stack (*few*), by 1.5 mm and 2 degrees. One line a case: decibels of what is combined over the best stack that lies
still, with the headers believed, with stacks placed as a whole, with what moved within them, and with that as it was;
and how far off the slices lie in the middle half of their width, median and largest, without and with it.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from thinslice.compute.combine import combine_stacks
from thinslice.compute.motion import refine_motions
from thinslice.compute.stacks import Stack, VoxelGrid, straighten
from thinslice.compute.upsample import upsample
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.models.engine import EngineSettings
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.noise import add_noise
from thinslice.physics.stack_acquisition import resample
from thinslice.pipeline import enhance_volume, read_scan
from thinslice.settings import Settings
from thinslice.volume import Volume, grid_distance_mm

FACTOR = 4
DEGREES = 3.0
SHIFT_MM = 2.5
SEED = 5

WITHIN_MM, WITHIN_DEGREES = 1.5, 2.0
"""Of motion within a stack."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 2.0], help="in percent of the intensity range")
    parser.add_argument("--model", default="default")
    parser.add_argument("--within", nargs="*", default=[], choices=("still", "packages", "sudden", "smooth", "few"))
    parser.add_argument("--stacks", type=int, nargs="+", default=[1], help="which of the three move within, from 0")
    parser.add_argument("--only", nargs="*", help="names of volumes that contain one of these")
    arguments = parser.parse_args()
    model = find_model(arguments.model, EngineSettings(threads=1))
    for path in sorted(arguments.folder.glob("*.nii*")):
        if arguments.only and not any(word in path.name for word in arguments.only):
            continue
        volume = read_scan(path)
        if min(volume.shape) < arguments.side:
            continue
        for noise in arguments.noise:
            for within in arguments.within:
                line = _score_within(volume, arguments.side, noise, within, arguments.stacks, model)
                print(f"{path.name:32} noise {noise:g} %  {within:8} {line}", flush=True)
            if arguments.within:
                continue
            for is_moved in (False, True):
                print(f"{path.name:32} noise {noise:g} %  {_score(volume, arguments.side, noise, is_moved, model)}")
                sys.stdout.flush()
    return 0


def _score(volume: Volume, side: int, noise: float, is_moved: bool, model: Model) -> str:
    truth, stacks, motion = make_stacks(volume, side, noise, is_moved, model)
    grid = VoxelGrid(truth.shape, truth.affine)
    inside, width = foreground(truth.voxels), data_range(truth.voxels)

    def rate(answer: np.ndarray) -> float:
        return psnr(answer, truth.voxels, width, inside)

    placed = [stacks[0], replace(stacks[1], motion=motion), stacks[2]]
    single = [
        resample(one.thin.voxels, one.motion @ one.thin.affine, grid.shape, grid.affine).astype(np.float64)
        for one in placed
    ]
    best, mean = max(rate(one) for one in single), rate(np.mean(single, axis=0))
    started = perf_counter()
    combined = rate(combine_stacks(placed, grid).voxels)
    seconds = perf_counter() - started
    two = rate(combine_stacks(placed[:2], grid).voxels) - max(rate(one) for one in single[:2])
    line = (
        f"best {best:.2f}, mean {mean - best:+.2f}, combined {combined - best:+.2f} ({seconds:.1f} s), two {two:+.2f}"
    )
    if not is_moved:
        return line
    found = refine_motions(stacks, grid)
    moved = [one.stack for one in found]
    off_mm = grid_distance_mm(motion @ grid.affine, found[1].stack.motion @ grid.affine, grid.shape)
    header = rate(combine_stacks(stacks, grid).voxels) - best
    found_db = rate(combine_stacks(moved, grid).voxels) - best
    return f"{line}; moved: {header:+.2f} as its header says, {found_db:+.2f} found, {off_mm:.2f} mm off"


def _score_within(volume: Volume, side: int, noise: float, kind: str, moving: list[int], model: Model) -> str:
    truth, still, _ = make_stacks(volume, side, noise, False, model)
    grid = VoxelGrid(truth.shape, truth.affine)
    inside, width = foreground(truth.voxels), data_range(truth.voxels)
    rng = np.random.default_rng(SEED)
    stacks = list(still)
    true = [np.tile(np.eye(4), (side // FACTOR, 1, 1)) for _ in still]
    for k in moving:
        true[k] = _motions_within(kind, side // FACTOR, truth.affine, side, rng)
        stacks[k] = _move_slices(volume, still[k], true[k], truth, noise, rng, model)

    def rate(placed: list[Stack]) -> float:
        return psnr(_combine(placed, grid, model), truth.voxels, width, inside)

    def settle(placed: list[Stack]) -> list[Stack]:
        # Where the first stack moved within, where it lies as a whole is a matter of definition.
        apart = np.mean([t @ np.linalg.inv(f) for t, f in zip(true[0], _places(placed[0]), strict=True)], axis=0)
        left, _, right = np.linalg.svd(apart[:3, :3])
        apart[:3, :3] = left @ right
        back = np.linalg.inv(apart)
        return [
            replace(s, motion=apart @ s.motion, slice_motions=m if m is None else apart @ m @ back)
            for s, m in ((s, s.slice_motions) for s in placed)
        ]

    best = max(psnr(one.thin.voxels, truth.voxels, width, inside) for one in still)
    started = perf_counter()
    found = settle([one.stack for one in refine_motions(stacks, grid)])
    seconds = perf_counter() - started
    with patch("thinslice.compute.motion.ROUNDS_WITHIN", 0):
        whole = settle([one.stack for one in refine_motions(stacks, grid)])
    known = [
        replace(s, slice_motions=t) if k in moving else s for k, (s, t) in enumerate(zip(stacks, true, strict=True))
    ]
    known = [replace(s, plan=replace(s.plan, alternating_shift_px=(0.0, 0.0))) for s in known]
    split = [k for k, one in enumerate(found) if one.slice_motions is not None]
    off = [np.concatenate([_off_mm(placed[k], true[k]) for k in moving]) for placed in (whole, found)]
    apart = "; ".join(f"{np.median(each):.2f} and {each.max():.2f} mm off" for each in off)
    return (
        f"still {rate(still) - best:+.2f}, headers {rate(stacks) - best:+.2f}, whole {rate(whole) - best:+.2f}, within "
        f"{rate(found) - best:+.2f} ({seconds:.0f} s), known {rate(known) - best:+.2f}; {apart}; within stacks {split}"
    )


def _combine(stacks: list[Stack], grid: VoxelGrid, model: Model) -> np.ndarray:
    """Returns the combined volume, as `thinslice.combination` makes it."""
    joined = combine_stacks(stacks, grid)
    even = [
        one if one.slice_motions is None else _make_thin_anew(one, grid, joined.voxels * fit.gain, model)
        for one, fit in zip(stacks, joined.fits, strict=True)
    ]
    return joined.voxels if all(one.slice_motions is None for one in stacks) else combine_stacks(even, grid).voxels


def _make_thin_anew(stack: Stack, grid: VoxelGrid, voxels: np.ndarray, model: Model) -> Stack:
    even, plan = straighten(stack, grid, voxels)
    return replace(stack, thin=upsample(even, plan, model).volume)


def _places(stack: Stack) -> np.ndarray:
    """Returns where each slice lies, [slices, 4, 4], from where its header says."""
    count = stack.acquired.shape[stack.plan.axis]
    within = np.tile(np.eye(4), (count, 1, 1)) if stack.slice_motions is None else stack.slice_motions
    return within @ stack.motion


def _off_mm(stack: Stack, true: np.ndarray) -> np.ndarray:
    """Returns how far off each slice lies at the corners of the middle half of its width."""
    shape, axis = np.array(stack.acquired.shape), stack.plan.axis
    off = []
    for number, apart in enumerate(_places(stack) - true):
        corners = np.array([[*np.where(np.array(c), 0.75, 0.25) * (shape - 1), 1.0] for c in np.ndindex(2, 2, 2)])
        corners[:, axis] = number
        off.append(np.linalg.norm((corners @ stack.acquired.affine.T @ apart.T)[:, :3], axis=1).max())
    return np.array(off)


def _motions_within(kind: str, count: int, affine: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how each slice moves, [slices, 4, 4]."""
    middle = affine[:3, :3] @ np.full(3, (side - 1) / 2)

    def move(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
        motion = np.eye(4)
        motion[:3, :3] = Rotation.from_rotvec(np.deg2rad(WITHIN_DEGREES) * turn).as_matrix()
        motion[:3, 3] = middle + WITHIN_MM * shift - motion[:3, :3] @ middle
        return motion

    def once() -> np.ndarray:
        turn, shift = rng.standard_normal((2, 3))
        return move(turn / np.linalg.norm(turn), shift / np.linalg.norm(shift))

    motions = np.tile(np.eye(4), (count, 1, 1))
    if kind == "packages":
        motions[1::2] = once()
    elif kind == "sudden":
        motions[6 * count // 10 :] = once()
    elif kind == "few":
        for number in rng.choice(count, 3, replace=False):
            motions[number] = once()
    elif kind == "smooth":
        ways = ndimage.gaussian_filter1d(rng.standard_normal((count, 6)), count / 8, axis=0)
        ways /= np.abs(ways).max(axis=0) * np.sqrt(3)
        motions = np.stack([move(way[:3], way[3:]) for way in ways])
    return motions


def _move_slices(
    volume: Volume, stack: Stack, motions: np.ndarray, truth: Volume, noise: float, rng, model: Model
) -> Stack:
    """Returns a stack of which each slice sees the body where it has moved to by then."""
    axis, side = stack.plan.axis, truth.shape[0]
    corner = [(size - side) // 2 for size in volume.shape]
    low, high = intensity_range(truth.voxels)
    thick = np.array(stack.acquired.voxels)
    for motion in np.unique(motions, axis=0):
        if np.array_equal(motion, np.eye(4)):
            continue
        thin = _seen_after(volume, truth.affine, corner, motion, side)
        centres = (FACTOR - 1) / 2 + FACTOR * np.arange(side // FACTOR)
        moved = Acquisition(centres, side, float(FACTOR), "gaussian", axis).forward(thin)
        moved = add_noise(moved, noise / 100 * (high - low), False, rng)
        chosen = np.expand_dims((motions == motion).all(axis=(1, 2)), [a for a in range(3) if a != axis])
        thick = np.where(chosen, moved, thick)
    scan = replace(stack.acquired, voxels=thick.astype(np.float32))
    done = enhance_volume(scan, Settings(factor=float(FACTOR), profile="gaussian"), model)
    return Stack(scan, done.plan, done.volume)


def make_stacks(
    volume: Volume, side: int, noise: float, is_moved: bool, model: Model
) -> tuple[Volume, list[Stack], np.ndarray]:
    """Returns the middle of a volume, three stacks of it as their headers have them, and the motion of the second."""
    corner = [(size - side) // 2 for size in volume.shape]
    # Only lengths matter here.
    affine = np.diag([*volume.spacing_mm, 1.0])
    voxels = volume.voxels[tuple(slice(at, at + side) for at in corner)].astype(np.float32)
    low, high = intensity_range(voxels)
    motion = _motion(affine, side) if is_moved else np.eye(4)
    rng = np.random.default_rng(SEED)
    stacks = []
    for axis in range(3):
        thin = voxels if axis != 1 or not is_moved else _seen_after(volume, affine, corner, motion, side)
        centres = (FACTOR - 1) / 2 + FACTOR * np.arange(side // FACTOR)
        thick = Acquisition(centres, side, float(FACTOR), "gaussian", axis).forward(thin)
        thick = add_noise(thick, noise / 100 * (high - low), False, rng)
        there = affine.copy()
        there[axis, 3] = (FACTOR - 1) / 2 * affine[axis, axis]
        there[axis, axis] *= FACTOR
        scan = Volume(thick, there, thickness_mm=float(there[axis, axis]))
        done = enhance_volume(scan, Settings(factor=float(FACTOR), profile="gaussian"), model)
        stacks.append(Stack(scan, done.plan, done.volume))
    return Volume(voxels, affine), stacks, motion


def _motion(affine: np.ndarray, side: int) -> np.ndarray:
    """Returns a turn about the middle and a shift, from where the header says to where the stack lies."""
    middle = affine[:3, :3] @ np.full(3, (side - 1) / 2)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.deg2rad(DEGREES) * np.array([1, -1, 1]) / np.sqrt(3)).as_matrix()
    motion[:3, 3] = middle + SHIFT_MM * np.array([0.6, -0.64, 0.48]) - motion[:3, :3] @ middle
    return motion


def _seen_after(volume: Volume, affine: np.ndarray, corner: list[int], motion: np.ndarray, side: int) -> np.ndarray:
    """Returns what lies at the voxels of the moved middle, from the whole volume."""
    between = np.linalg.solve(affine, motion @ affine)
    index = np.stack(np.meshgrid(*[np.arange(side, dtype=float)] * 3, indexing="ij"))
    at = np.einsum("ij,j...->i...", between[:3, :3], index) + (between[:3, 3] + corner)[:, None, None, None]
    moved: np.ndarray = ndimage.map_coordinates(volume.voxels.astype(np.float64), at, order=5, mode="nearest")
    return moved.astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
