"""What noise, uneven brightness and shifts of the slices cost, and whether they are found.

    python experiments/imperfect_slices.py DATA/iso_train/*.nii.gz --find
    python experiments/imperfect_slices.py DATA/iso_dev/*.nii.gz

Central crops of thin scans are made thick along their third axis (Gaussian, touching; x4 unless told otherwise) and
spoilt. With ``--find`` a line for every kind says what is found in them: median and extremes over the scans. Without,
one line for every scan and kind says by how many dB `default`, told the profile, is above plain cubic interpolation of
the same slices (foreground).
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import shift

from thinslice.compute.upsample import upsample
from thinslice.evaluation.metrics import data_range, foreground, psnr
from thinslice.io.formats import read
from thinslice.models.registry import find_model
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import find_alternation
from thinslice.physics.noise import estimate_noise
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

Spoil = Callable[[np.ndarray], np.ndarray]


def gaussian(share: float) -> Spoil:
    """Adds noise, in intensity ranges of the slices [h, w, n]."""

    def spoil(thick: np.ndarray) -> np.ndarray:
        low, high = intensity_range(thick)
        noise = np.random.default_rng(0).normal(scale=share * (high - low), size=thick.shape)
        return (thick + noise).astype(np.float32)

    return spoil


def rician(share: float) -> Spoil:
    """The magnitude of complex noise and the slices."""

    def spoil(thick: np.ndarray) -> np.ndarray:
        low, high = intensity_range(thick)
        real, imaginary = np.random.default_rng(0).normal(scale=share * (high - low), size=(2, *thick.shape))
        return np.hypot(np.maximum(thick, 0) + real, imaginary).astype(np.float32)

    return spoil


def uneven(gain: float) -> Spoil:
    """Makes every other slice brighter."""
    return lambda thick: thick * np.where(np.arange(thick.shape[2]) % 2, np.float32(1 + gain), np.float32(1))


def shifted(lines: float) -> Spoil:
    """Moves every other slice by so many pixels along its first axis."""

    def spoil(thick: np.ndarray) -> np.ndarray:
        moved = [
            shift(one, (lines * (i % 2), 0), order=3, mode="nearest") for i, one in enumerate(np.moveaxis(thick, 2, 0))
        ]
        return np.stack(moved, axis=2)

    return spoil


KINDS: dict[str, Spoil] = {
    "as it is": gaussian(0),
    "noise 1 %": gaussian(0.01),
    "noise 3 %": gaussian(0.03),
    "noise 5 %": gaussian(0.05),
    "noise 3 %, magnitude": rician(0.03),
    "every other slice + 5 %": uneven(0.05),
    "every other slice + 10 %": uneven(0.10),
    "every other slice half a pixel off": shifted(0.5),
}


def thicken(path: Path, factor: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a scan, at most ``side`` voxels wide, and its thick slices."""
    voxels = read(path).voxels
    inside = tuple(slice(max((n - side) // 2, 0), max((n - side) // 2, 0) + side) for n in voxels.shape)
    thin = voxels[inside].astype(np.float32)
    count = thin.shape[2] // factor
    thin = thin[..., : count * factor]
    centres = factor * np.arange(count) + (factor - 1) / 2
    return thin, Acquisition(centres, count * factor, factor, "gaussian", axis=2).forward(thin)


def find(paths: list[Path], factor: int, side: int) -> None:
    """Prints what is found in the slices."""
    stacks = [thicken(path, factor, side)[1] for path in paths]
    print(f"noise found, % of the range after it was added, {len(paths)} scans, x{factor}")
    for kind, spoil in KINDS.items():
        spoilt = [np.moveaxis(spoil(one), 2, 0) for one in stacks]
        noise = [100 * (estimate_noise(one) or 0.0) for one in spoilt]
        alternating = [find_alternation(one) for one in spoilt]
        gains = [100 * (one.gain - 1) for one in alternating if one.gain != 1] or [0.0]
        shifts = [float(np.hypot(*one.shift_px)) for one in alternating if any(one.shift_px)] or [0.0]
        clear = sum(one.is_clear for one in alternating)
        print(
            f"{kind:36s} noise median {np.median(noise):.2f}, {min(noise):.2f} to {max(noise):.2f}; clear in {clear}: "
            f"gain {np.mean(gains):+.1f} ({np.std(gains):.1f}) %, shift {np.mean(shifts):.2f} ({np.std(shifts):.2f}) px"
        )


def score(paths: list[Path], factor: int, side: int) -> None:
    """Prints the gain over plain cubic interpolation."""
    cubic, network = find_model("cubic"), find_model("default")
    settings = Settings(factor=factor, profile="gaussian")
    plain = replace(settings, projection=False)
    for path in paths:
        truth, clean = thicken(path, factor, side)
        inside, peak = foreground(truth), data_range(truth)
        for kind, spoil in KINDS.items():
            thick = Volume(np.ascontiguousarray(spoil(clean)), np.diag([1.0, 1.0, factor, 1.0]))
            decibel = []
            for model, asked in ((cubic, plain), (network, settings)):
                plan = make_plan(thick, asked, model)
                answer = upsample(thick, plan, model)
                decibel.append(psnr(answer.volume.voxels, truth, peak, inside))
            told = f"noise {100 * (plan.slice_noise or 0):.2f} %, guard {answer.guard.percent}"
            print(f"{path.name:32s} {kind:36s} cubic {decibel[0]:.2f}, default {decibel[1] - decibel[0]:+.2f}; {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--find", action="store_true")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--side", type=int, default=96)
    arguments = parser.parse_args()
    (find if arguments.find else score)(arguments.scans, arguments.factor, arguments.side)


if __name__ == "__main__":
    main()
