"""How the default model does on anatomies and scanners it never saw: the in-plane detail of thick scans as truth.

    python benchmarks/in_plane.py DATA/ct DATA/thick [--factor 4] [--model default]

Thick scans have no thin truth across their slices, but along them they are fine. Each in-plane axis in turn is made
thick by a Gaussian slice profile, and the model's answer is compared with projected cubic interpolation: foreground
PSNR over the middle slices. In-plane pixels are often interpolated by the scanner, so the decibels say less than those
of `thinslice evaluate`; their sign says whether the model harms what it was not trained on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.io.nifti import read
from thinslice.models.registry import find_model
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume, through_plane_axis

SLICES, SIDE = 8, 192
"""Middle slices, and pixels around the middle of each, that are looked at."""


def main() -> int:
    arguments = _arguments()
    models = [find_model(name) for name in ("cubic", arguments.model)]
    print(f"| scan | axis | projected cubic dB | {models[1].name} dB | gain dB | guard % |")
    print("|---|--:|--:|--:|--:|--:|")
    gains = []
    for path in sorted(path for folder in arguments.folders for path in folder.glob("*.nii*")):
        for axis in (1, 2):
            cubic, ours, guard = scores(middle_of(path), axis, arguments.factor, models)
            gains.append(ours - cubic)
            print(
                f"| {path.name.split('.')[0]} | {axis} | {cubic:.2f} | {ours:.2f} | {gains[-1]:+.2f} | {guard:.2f} |",
                flush=True,
            )
    print(f"| mean, smallest of {len(gains)} | | | | {np.mean(gains):+.2f}, {min(gains):+.2f} | |")
    return 0


def middle_of(path: Path) -> Volume:
    """The middle of a scan, slices along the first axis, as if its voxels were cubes."""
    scan = read(path)
    voxels = np.moveaxis(scan.voxels, through_plane_axis(scan), 0)
    wanted = (SLICES, SIDE, SIDE)
    middle = tuple(slice(max(n // 2 - m // 2, 0), n // 2 + m // 2) for n, m in zip(voxels.shape, wanted, strict=True))
    return Volume(np.ascontiguousarray(voxels[middle], np.float32), np.eye(4))


def scores(volume: Volume, axis: int, factor: float, models: list) -> tuple[float, float, float]:
    """PSNR of both models and the share of the second that the guard took back, in percent."""
    truth, thick = simulate(volume, axis, factor)
    mask, span = foreground(truth.voxels), data_range(truth.voxels)
    found, guard = [], 0.0
    for model in models:
        factor = truth.shape[axis] / thick.shape[axis]
        plan = make_plan(thick, Settings(factor=factor, profile="gaussian"), model)
        answer = upsample(thick, plan, model)
        found.append(psnr(answer.volume.voxels, truth.voxels, span, mask))
        guard = 100 * answer.guard.share
    return found[0], found[1], guard


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--factor", type=float, default=4.0)
    parser.add_argument("--model", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
