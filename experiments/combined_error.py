"""Does the expected error of a combined volume say where it is wrong, and by how much?

    python experiments/combined_error.py --data DATA [--keep]

From the middle of scans stacks are made as by experiments/combine.py: three across each other, the first two of them,
and the first with half the slices of the second, so that one stack alone sees one half. Without noise and with 2 % of
it. On crops of 72^3 of eight volumes of `iso_train` the two constants of
`thinslice.compute.uncertainty.map_combined_error` are fitted: least squares of the logarithm of expected over true in
the ten tenths of the cells, in rising order of what is expected. ``--keep`` leaves that out. On crops of 96^3 of
`iso_dev`, other people, nothing is fitted. One line a case, of the cells of the foreground:

    rank       Spearman correlation of the expected error with the true one (mean absolute, in the cell)
    expected   mean expected error over mean true error, and the same of each tenth of the cells
    alone      where one stack alone sees: how far the answer is from its thin slices, mean absolute, in percent of the
               intensity range, and the true error there of both
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from combine import make_stacks
from scipy.optimize import minimize
from scipy.stats import spearmanr

from thinslice.compute.combine import combine_stacks
from thinslice.compute.stacks import Stack, VoxelGrid
from thinslice.compute.uncertainty import (
    JOINT_SCALE,
    NOISE_LEFT,
    POWER,
    average_in_cells,
    choose_cell_size,
    map_combined_error,
)
from thinslice.evaluation.metrics import foreground
from thinslice.models.engine import EngineSettings
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.pipeline import enhance_volume, read_scan
from thinslice.settings import Settings
from thinslice.volume import Volume

FITTED = (
    "brain_flair_openms_x07",
    "brain_t1_child3y",
    "brain_t2_m2307",
    "brain_t1_ds011_03",
    "brain_t1_osprey_01",
    "brain_t1_coregqa",
    "brain_flair_stroke",
    "brain_t2_stroke",
)
NOISE = (0.0, 2.0)
TENTHS = 10


@dataclass(frozen=True)
class Case:
    """The cells of the foreground of one combined volume, in intensity ranges."""

    name: str
    true: np.ndarray
    expected: np.ndarray
    apart: np.ndarray
    noise: float
    alone: str

    def expect(self, scale: float, share: float) -> np.ndarray:
        """Returns what other constants would let expect."""
        now = (JOINT_SCALE * self.apart**POWER) ** 2 + (NOISE_LEFT * self.noise) ** 2
        then = (scale * self.apart**POWER) ** 2 + (share * self.noise) ** 2
        return np.sqrt(np.maximum(self.expected**2 - now, 0) + then)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="fit nothing: only check what is in use")
    arguments = parser.parse_args()
    model = find_model("default", EngineSettings(threads=1))
    if not arguments.keep:
        paths = [arguments.data / "iso_train" / f"{name}.nii.gz" for name in FITTED]
        print_fit([case for path in paths for case in find_cases(path, 72, model)])
    for path in sorted((arguments.data / "iso_dev").glob("*.nii.gz")):
        for case in find_cases(path, 96, model):
            print(describe(case))
            sys.stdout.flush()
    return 0


def find_cases(path: Path, side: int, model: Model) -> list[Case]:
    """Returns all cases of one scan."""
    found, volume = [], read_scan(path)
    for noise in NOISE:
        truth, stacks, _ = make_stacks(volume, side, noise, False, model)
        half = stacks[1].acquired
        half = replace(half, voxels=half.voxels[:, : half.shape[1] // 2])
        done = enhance_volume(half, Settings(factor=4.0, profile="gaussian"), model)
        kinds = {"three": stacks, "two": stacks[:2], "partly": [stacks[0], Stack(half, done.plan, done.volume)]}
        for kind, used in kinds.items():
            name = f"{path.name.split('.')[0]:24} {noise:g} % {kind:6}"
            found.append(find_case(name, truth, [replace(one, model=model) for one in used]))
    return found


def find_case(name: str, truth: Volume, stacks: Sequence[Stack]) -> Case:
    joined = combine_stacks(stacks, VoxelGrid(truth.shape, truth.affine))
    expected, unit = map_combined_error(joined.spread), joined.spread.unit
    size = choose_cell_size(truth.spacing_mm, truth.shape)
    nothing, solid = np.zeros(truth.shape), foreground(truth.voxels)
    inside = average_in_cells(solid.astype(float), nothing, size) > 0.5
    true = average_in_cells(joined.voxels, truth.voxels, size)[inside] / unit
    single, thin = solid & (joined.held_by == 1), stacks[0].thin.voxels
    alone = ""
    if single.any():
        apart, *errors = (
            100 * np.abs(one - other)[single].mean() / unit
            for one, other in ((joined.voxels, thin), (joined.voxels, truth.voxels), (thin, truth.voxels))
        )
        alone = f"  alone {apart:.3f} % apart, errors {errors[0]:.2f} and {errors[1]:.2f} %"
    spread = joined.spread
    return Case(name, true, expected.volume.voxels[inside] / unit, spread.apart[inside], spread.noise, alone)


def ratios(case: Case, expected: np.ndarray) -> np.ndarray:
    """Returns expected over true error of each tenth of the cells, from the least expected to the most."""
    parts = np.array_split(np.argsort(expected), TENTHS)
    return np.array([expected[part].mean() / case.true[part].mean() for part in parts])


def print_fit(cases: Sequence[Case]) -> None:
    def misfit(constants: np.ndarray) -> float:
        return float(np.mean([np.log(ratios(case, case.expect(*constants))) ** 2 for case in cases]))

    scale, share = minimize(misfit, [JOINT_SCALE, NOISE_LEFT], method="Nelder-Mead").x
    print(f"In use: {JOINT_SCALE:g} x spread ^ {POWER:g}, {NOISE_LEFT:g} of the noise.")
    print(f"Fitted to `iso_train`: {scale:.3f} x spread ^ {POWER:g}, {share:.3f} of the noise.")


def describe(case: Case) -> str:
    of_tenths = " ".join(f"{ratio:.2f}" for ratio in ratios(case, case.expected))
    rank, ratio = spearmanr(case.expected, case.true)[0], case.expected.mean() / case.true.mean()
    return f"{case.name}  rank {rank:.2f}  expected {ratio:.2f} ({of_tenths}){case.alone}"


if __name__ == "__main__":
    sys.exit(main())
