"""How much better is one volume from several stacks than the best of them? Clean, with noise, and with motion.

    python experiments/combine.py DATA/iso_dev [--side 96] [--noise 0 2] [--model default]

From the middle of every volume of a folder three stacks are made, one along each axis, x4, of touching Gaussian slices.
Each is made thin by the model; then they are combined. Where there is motion the second stack sees the body turned by 3
degrees and moved by 2.5 mm, by spline interpolation of order 5 from the whole volume and not by the operator that
combines; its header does not know, and the motion is found (`refine_motions`). One line a case: decibels over the
foreground of the best single stack, of the mean of the answers, and of what is combined, with the motion as it was and
as it was found; how far off the found motion is at the corners; and the same for the first two stacks alone.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from thinslice.compute.combine import combine_stacks
from thinslice.compute.motion import refine_motions
from thinslice.compute.stacks import Stack, VoxelGrid
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 2.0], help="in percent of the intensity range")
    parser.add_argument("--model", default="default")
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
    moved = [replace(one, motion=place.motion) for one, place in zip(stacks, found, strict=True)]
    off_mm = grid_distance_mm(motion @ grid.affine, found[1].motion @ grid.affine, grid.shape)
    header = rate(combine_stacks(stacks, grid).voxels) - best
    found_db = rate(combine_stacks(moved, grid).voxels) - best
    return f"{line}; moved: {header:+.2f} as its header says, {found_db:+.2f} found, {off_mm:.2f} mm off"


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
