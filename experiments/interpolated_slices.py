"""How surely slices that were interpolated are recognised, and what is gained by computing from those acquired.

    python experiments/interpolated_slices.py recognise DATA/iso_train --count 400
    python experiments/interpolated_slices.py enhance DATA/iso_dev/*.nii.gz

`recognise` makes thin volumes thick as `experiments/slice_profile.py` does, with slices up to 2.2 times as thick as
they are far apart, with and without noise. It prints how many times less power lies beyond half of the ranks than
within, of slices as they were acquired and of the same interpolated to twice as many, and where the acquired ones are
said to lie.
`enhance` prints PSNR over the foreground of `default`, nothing told, and of plain cubic interpolation: of slices that
were interpolated to twice as many, and of overlapping ones, which must not be taken for those.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from slice_profile import draw_stack

from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.io.nifti import read
from thinslice.models.registry import find_model
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interpolation import cubic_matrix, linear_matrix
from thinslice.physics.slice_statistics import (
    FEWEST_FOR_RANK,
    HALF_RANKS,
    drop_of_power,
    find_first_acquired,
    take_middle,
)
from thinslice.pipeline import enhance_volume
from thinslice.settings import Settings
from thinslice.training.volumes import normalise
from thinslice.volume import Volume

STEPS = 200
"""Every other stack is rounded to so many steps of its range, as 8 bits are."""

SIDE = 96
"""Voxels along the sides of the middle of a volume that is enhanced."""

WHOLE, HALF = 0.0, 0.5
"""Where the first acquired slice lies: at the first slice that is stored, or between the first two."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("recognise")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--count", type=int, default=400)
    verb.set_defaults(run=lambda a: recognise(a.folder, a.count))
    verb = verbs.add_parser("enhance")
    verb.add_argument("scans", type=Path, nargs="+")
    verb.set_defaults(run=lambda a: enhance(a.scans))
    arguments = parser.parse_args()
    arguments.run(arguments)
    return 0


def by_lines(stack: np.ndarray, first: float) -> np.ndarray:
    """Twice as many slices [2 n, ...], between those acquired on straight lines."""
    return _at(linear_matrix, stack, first)


def by_splines(stack: np.ndarray, first: float) -> np.ndarray:
    """The same by cubic splines."""
    return _at(cubic_matrix, stack, first)


def by_zeros(stack: np.ndarray, first: float) -> np.ndarray:
    """The same by zeros in k-space, in which the stack repeats itself."""
    count = len(stack)
    frequency = np.arange(count // 2 + 1)
    shift = np.exp(-2j * np.pi * frequency * first / (2 * count))
    spectrum = np.fft.rfft(stack, axis=0) * shift.reshape(-1, *[1] * (stack.ndim - 1))
    return (2 * np.fft.irfft(spectrum, 2 * count, axis=0)).astype(np.float32)


def _at(matrix: Callable[[np.ndarray, int], np.ndarray], stack: np.ndarray, first: float) -> np.ndarray:
    place = np.clip((np.arange(2 * len(stack)) - first) / 2, 0, len(stack) - 1)
    return np.tensordot(matrix(place, len(stack)), stack, axes=1).astype(np.float32)


INTERPOLATIONS = {"lines": by_lines, "splines": by_splines, "zeros": by_zeros}


def recognise(folder: Path, count: int) -> None:
    """Prints the smallest and the largest drop of power of each kind, and where the acquired slices are said to lie."""
    volumes = [normalise(read(path).voxels).astype(np.float16) for path in sorted(folder.glob("*.nii*"))]
    drops: dict[str, list[float]] = {}
    found: dict[str, Counter[str]] = {}
    for number in range(count):
        rng = np.random.default_rng([31, number])
        thick = draw_stack(rng, volumes[int(rng.integers(len(volumes)))])[0]
        low, high = intensity_range(thick)
        thick = take_middle(((thick - low) / (high - low)).astype(np.float32))
        stacks = {"acquired": thick}
        for name, interpolate in INTERPOLATIONS.items():
            for first, where in ((WHOLE, "first"), (HALF, "between")):
                stacks[f"{name}, {where}"] = interpolate(thick[:32], first)
        for name, stack in stacks.items():
            stack = np.round(STEPS * stack) / STEPS if number % 2 else stack
            if len(stack) < FEWEST_FOR_RANK:
                continue
            drops.setdefault(name, []).append(drop_of_power(stack, HALF_RANKS))
            if name != "acquired":
                place = find_first_acquired(stack)
                found.setdefault(name, Counter())["not clear" if place is None else f"{place:g}"] += 1
    for name, values in drops.items():
        places = ", ".join(f"{place}: {n}" for place, n in sorted(found.get(name, Counter()).items()))
        print(f"{name:18s} {len(values):4d}  {min(values):12.3g} to {max(values):9.3g} times less  {places}")


def enhance(paths: Sequence[Path]) -> None:
    """Prints PSNR of `default` with nothing told, and of plain cubic interpolation."""
    for path in paths:
        scan = read(path)
        first = [max((n - SIDE) // 2, 0) for n in scan.shape]
        part = scan.voxels[tuple(slice(f, f + SIDE) for f in first)]
        scan = replace(scan, voxels=np.ascontiguousarray(part, dtype=np.float32))
        truth, acquired = simulate(scan, 2, 4, 1.0, "box")
        # The rule that holds for a stack of all slices: four thin ones a slice, of which the outer edges are kept.
        for name, interpolate in INTERPOLATIONS.items():
            stack = np.moveaxis(interpolate(np.moveaxis(acquired.voxels, 2, 0), HALF), 0, 2)
            _print_gain(f"{path.name}: by {name} to twice as many", truth, _with_slices(acquired, stack, 2))
        for profile in ("box", "gaussian"):
            truth, overlapping = simulate(scan, 2, 2, 2.0, profile)
            _print_gain(f"{path.name}: {profile}, twice as thick as far apart", truth, overlapping)


def _with_slices(acquired: Volume, voxels: np.ndarray, finer: int) -> Volume:
    """The scan with so many times more slices, between the same outer edges."""
    affine = np.array(acquired.affine)
    affine[:3, 3] -= (finer - 1) / (2 * finer) * affine[:3, 2]
    affine[:3, 2] /= finer
    return replace(acquired, voxels=np.ascontiguousarray(voxels), affine=affine, thickness_mm=None)


def _print_gain(name: str, truth: Volume, thick: Volume) -> None:
    thick = replace(thick, thickness_mm=None)
    factor = truth.shape[2] / thick.shape[2]
    mask, span = foreground(truth.voxels), data_range(truth.voxels)
    found = []
    for settings in (Settings(factor=factor), Settings(factor=factor, model="cubic", projection=False)):
        done = enhance_volume(thick, settings, find_model(settings.model))
        found.append(psnr(done.array, truth.voxels, span, mask))
    print(f"{name}: {found[0]:.2f} dB, plain cubic {found[1]:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
