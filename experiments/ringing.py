"""Does the test for ringing tell profiles that are assumed too wide from right ones? What does narrowing them gain?

    python experiments/ringing.py --data DATA/iso_train [--seeds 1 2] [--model default]

Every volume of a folder is made thick along an axis that changes from one to the next, at a factor and with noise drawn
by chance (none, 1 %, 3 %), by each profile of `CASES`; then what was assumed is tested as `enhance` tests it. Only the
middle `SIDE` pixels of the slices are looked at. For each difference of the standard deviations, in slice spacings, the
table says how many ring, what all gain over plain cubic interpolation, and what those that ring gain before and after
their profile is narrowed.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinslice.compute.ringing import RINGING, settle_profile
from thinslice.compute.upsample import upsample
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.models.engine import EngineSettings
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.physics.profile import sd_over_fwhm
from thinslice.pipeline import read_scan
from thinslice.plan import Plan, make_plan
from thinslice.settings import Profile, Settings
from thinslice.volume import Volume

SIDE = 64
SLICES = 160
FACTORS = (2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
NOISE = (0.0, 0.0, 0.01, 0.03)

CASES: dict[tuple[Profile, float], list[tuple[Profile, float]]] = {
    ("gaussian", 1.0): [("gaussian", 1.0), ("gaussian", 1.25)],
    ("box", 1.0): [("box", 1.0), ("gaussian", 1.0)],
    ("box", 0.75): [("box", 0.75), ("box", 1.0), ("gaussian", 1.0)],
}
"""True profile and width in spacings -> what is assumed."""


@dataclass(frozen=True)
class Found:
    """One assumption: how far its standard deviation is off, how it rings, and decibels over plain cubic."""

    off: float
    noise: float
    ringing: float | None
    gain: float
    narrowed: float | None


def main() -> int:
    arguments = _arguments()
    model = find_model(arguments.model, EngineSettings(threads=1))
    found = [
        one
        for seed in arguments.seeds
        for index, path in enumerate(sorted(arguments.data.glob("*.nii*")))
        for one in look_at(path, index, seed, model)
    ]
    print(f"| assumed too wide by | noise | n | measured | ring above {RINGING} | gain dB | of these, narrowed |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, low, high in (("0", -0.01, 0.01), ("0.07", 0.01, 0.1), ("0.1 to 0.2", 0.1, 0.3)):
        for noise in ("to 1 %", "3 %"):
            line = [f for f in found if low < f.off <= high and (f.noise > 0.02) == (noise == "3 %")]
            print(f"| {name} | {noise} | {len(line)} | {_cells(line)} |")
    return 0


def look_at(path: Path, index: int, seed: int, model: Model) -> list[Found]:
    """Every case of one volume."""
    draw = np.random.default_rng((seed, index))
    scan, axis = read_scan(path), (index + seed) % 3
    wanted = [SLICES if a == axis else SIDE for a in range(3)]
    middle = tuple(slice(max(n - w, 0) // 2, (n + w) // 2) for n, w in zip(scan.shape, wanted, strict=True))
    cube = Volume(np.ascontiguousarray(np.moveaxis(scan.voxels[middle], axis, 2)).astype(np.float32), np.eye(4))
    found = []
    for true, assumed in CASES.items():
        factor, noise = draw.choice(FACTORS), draw.choice(NOISE)
        if cube.shape[2] / factor < 8:
            factor = 4.0
        truth, thick = simulate(cube, 2, factor, true[1], true[0])
        added = draw.standard_normal(thick.shape) * noise * np.percentile(truth.voxels, 99.5)
        thick = replace(thick, voxels=(thick.voxels + added).astype(np.float32))
        for profile, width in assumed:
            off = width * sd_over_fwhm(profile) - true[1] * sd_over_fwhm(true[0])
            found.append(_compare(truth, thick, profile, width, off, float(noise), model))
            print(path.name, axis, factor, noise, *true, profile, width, found[-1], file=sys.stderr, flush=True)
    return found


def _compare(
    truth: Volume, thick: Volume, profile: Profile, width: float, off: float, noise: float, model: Model
) -> Found:
    factor = truth.shape[2] / thick.shape[2]
    cubic = find_model("cubic")
    plain = make_plan(thick, Settings(model="cubic", factor=factor, projection=False), cubic)
    obeyed = make_plan(thick, Settings(factor=factor, profile=profile, thickness_mm=width * factor), model)
    plan = replace(obeyed, profile_source="estimated")
    reference = _decibels(truth, thick, plain, cubic)
    settled = settle_profile(thick, plan, model)
    gain = _decibels(truth, thick, plan, model) - reference
    if settled.thickness_mm == plan.thickness_mm:
        return Found(off, noise, settled.ringing, gain, None)
    told = settle_profile(thick, obeyed, model)
    return Found(off, noise, told.ringing, gain, _decibels(truth, thick, settled, model) - reference)


def _decibels(truth: Volume, thick: Volume, plan: Plan, model: Model) -> float:
    voxels = upsample(thick, plan, model).volume.voxels
    return psnr(voxels, truth.voxels, data_range(truth.voxels), foreground(truth.voxels))


def _cells(line: list[Found]) -> str:
    measured = [one for one in line if one.ringing is not None]
    rings = [one for one in measured if one.ringing is not None and one.ringing > RINGING]
    gains = [one.gain for one in line]
    after = [(one.gain, one.narrowed) for one in rings if one.narrowed is not None]
    change = "" if not after else " -> ".join(f"{mean:+.2f}" for mean in np.mean(after, axis=0))
    worst = f" (smallest {min(gains):+.2f})" if gains else ""
    share = f"{len(rings)} ({100 * len(rings) / max(len(measured), 1):.1f} %)"
    return f"{len(measured)} | {share} | {np.mean(gains) if gains else 0:+.2f}{worst} | {change}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--model", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
