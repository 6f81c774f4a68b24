"""Trains what finds the width of a scan's slice profile from the scan itself, and scores it.

    python experiments/slice_profile.py simulate DATA/iso_train stacks.npz --count 6000 --seed 1
    python experiments/slice_profile.py train stacks.npz slice-profile.npz
    python experiments/slice_profile.py simulate DATA/iso_dev unseen.npz --count 400 --seed 2
    python experiments/slice_profile.py score slice-profile.npz unseen.npz

Thin volumes are made thick along every axis, by every profile, at factors from 2 to 10, with noise, sharper or blurred
as scanners and their reconstructions make them; what is learnt is the standard deviation of the profile in slice
spacings, from `thinslice.physics.slice_statistics.measure`. People are held out by their files when `train` tells how
far off it is.
"""

import argparse
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from thinslice.io.nifti import read
from thinslice.models.slice_profile import Estimator
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.slice_statistics import measure, swap_axes, take_middle
from thinslice.training.volumes import normalise

PROFILES = {"gaussian": 0.35, "box": 0.35, "trapezoid": 0.1, "triangle": 0.1, "spin-echo": 0.1}
NETWORKS = 4
FOLDS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("simulate")
    verb.add_argument("folder", type=Path)
    verb.add_argument("out", type=Path)
    verb.add_argument("--count", type=int, default=6000)
    verb.add_argument("--seed", type=int, default=1)
    verb.set_defaults(run=lambda a: simulate(a.folder, a.out, a.count, a.seed))
    verb = verbs.add_parser("train")
    verb.add_argument("stacks", type=Path)
    verb.add_argument("out", type=Path)
    verb.set_defaults(run=lambda a: train(a.stacks, a.out))
    verb = verbs.add_parser("score")
    verb.add_argument("estimator", type=Path)
    verb.add_argument("stacks", type=Path)
    verb.set_defaults(run=lambda a: score(a.estimator, a.stacks))
    arguments = parser.parse_args()
    arguments.run(arguments)
    return 0


# ---- stacks


def simulate(folder: Path, out: Path, count: int, seed: int) -> None:
    """Writes the statistics of simulated stacks, and the width that each of them has."""
    paths = sorted(folder.glob("*.nii*"))
    volumes = [normalise(read(path).voxels).astype(np.float16) for path in paths]
    rows: dict[str, list[Any]] = {"measured": [], "sd": [], "factor": [], "slices": [], "volume": [], "width": []}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chosen = int(rng.integers(len(volumes)))
        thick, factor, width, sd = draw_stack(rng, volumes[chosen])
        low, high = intensity_range(thick)
        normalised = take_middle(((thick - low) / (high - low)).astype(np.float32))
        found = (measure(normalised, (factor, factor)), sd, factor, len(thick), paths[chosen].name, width)
        for column, value in zip(rows.values(), found, strict=True):
            column.append(value)
        if number % 100 == 99:
            print(f"{number + 1} of {count}", flush=True)
            np.savez(out, **{name: np.array(column) for name, column in rows.items()})
    np.savez(out, **{name: np.array(column) for name, column in rows.items()})


def draw_stack(rng: np.random.Generator, volume: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    """Returns thick slices [n, h, w], the factor, thickness over spacing, and the profile's standard deviation."""
    block = np.moveaxis(volume, int(rng.integers(3)), 0)
    block = block.transpose(0, 2, 1) if rng.random() < 0.5 else block
    factor = float(np.exp(rng.uniform(np.log(2), np.log(10))))
    factor = float(round(factor)) if rng.random() < 0.5 else factor
    thin = _cut(rng, block)
    # The native resolution of a scan is finer in one direction than in another, and slices are often interpolated.
    if rng.random() < 0.3:
        keep = rng.uniform(0.55, 1)
        thin = _blur(thin, (0, 1, 2), keep)
    elif rng.random() < 0.4:
        for axis in range(3):
            if rng.random() < (0.2 if axis == 0 else 0.7):
                thin = _blur(thin, (axis,), rng.uniform(0.5, 1))
    profile = str(rng.choice(list(PROFILES), p=list(PROFILES.values())))
    usual = rng.random() < 0.75
    width = float(rng.uniform(0.5, 1.3) if usual else np.exp(rng.uniform(np.log(0.4), np.log(2.2))))
    n = int(len(thin) / factor)
    centres = (len(thin) - factor * (n - 1) - 1) / 2 + factor * np.arange(n)
    thick = Acquisition(centres, len(thin), width * factor, profile).forward(thin)
    if rng.random() < 0.6:
        noise = float(rng.uniform(0, 0.03 if rng.random() < 0.8 else 0.06))
        thick = thick + noise * rng.standard_normal(thick.shape, dtype=np.float32)
        if rng.random() < 0.5:
            thick = np.hypot(thick, noise * rng.standard_normal(thick.shape, dtype=np.float32))
    return thick, factor, width, width * sd_over_fwhm(profile)


def _cut(rng: np.random.Generator, block: np.ndarray) -> np.ndarray:
    sides = [min(block.shape[0], int(rng.integers(96, 257)))]
    sides += [min(n, int(rng.integers(96, 193))) for n in block.shape[1:]]
    for _ in range(5):
        corner = [int(rng.integers(0, n - side + 1)) for n, side in zip(block.shape, sides, strict=True)]
        thin = block[tuple(slice(c, c + side) for c, side in zip(corner, sides, strict=True))].astype(np.float32)
        if (thin > 0.1).mean() > 0.15:
            break
    return thin


def _blur(thin: np.ndarray, axes: tuple[int, ...], keep: float) -> np.ndarray:
    """Returns the volume with only the lower frequencies along some axes, cut softly."""
    for axis in axes:
        frequency = np.fft.rfftfreq(thin.shape[axis])
        passed = np.clip((0.5 * keep + 0.03 - frequency) / 0.06, 0, 1)
        shape = [1, 1, 1]
        shape[axis] = -1
        spectrum = np.fft.rfft(thin, axis=axis) * passed.reshape(shape)
        thin = np.fft.irfft(spectrum, thin.shape[axis], axis=axis).astype(np.float32)
    return thin


# ---- training


def train(stacks: Path, out: Path) -> None:
    """Tells how far off the estimate is for people held out, then learns from all and writes the estimator."""
    data = np.load(stacks)
    people = np.unique(data["volume"])
    fold_of = dict(zip(people, np.random.default_rng(0).permutation(len(people)) % FOLDS, strict=True))
    folds = np.array([fold_of[one] for one in data["volume"]])
    errors, ratios = [], []
    for fold in range(2):
        estimator = fit(data["measured"][folds != fold], data["sd"][folds != fold], networks=2)
        sd, uncertainty = estimate_all(estimator, data["measured"][folds == fold])
        errors.append(np.abs(sd - data["sd"][folds == fold]))
        ratios.append(errors[-1] / uncertainty)
    error, ratio = np.concatenate(errors), np.concatenate(ratios)
    print(f"people held out: {error.mean():.4f} spacings off on average; over its uncertainty {ratio.mean():.2f}")
    estimator = fit(data["measured"], data["sd"], NETWORKS)
    # An error of a Gaussian is 0.8 standard deviations on average.
    calibration = float(ratio.mean() / np.sqrt(2 / np.pi))
    replace(estimator, calibration=calibration).save(out)


def fit(measured: np.ndarray, sd: np.ndarray, networks: int, epochs: int = 40) -> Estimator:
    """Returns an estimator trained on some stacks and their transposes."""
    import torch

    torch.set_num_threads(1)
    inputs, wanted = np.concatenate([measured, swap_axes(measured)]), np.concatenate([sd, sd]).astype(np.float32)
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    x, y = torch.from_numpy(Estimator.standardise(inputs, mean, scale)), torch.from_numpy(wanted)
    layers = [_fit_one(torch, x, y, seed, epochs) for seed in range(networks)]
    return Estimator(mean, scale, tuple(layers))


def _fit_one(torch: Any, x: Any, y: Any, seed: int, epochs: int) -> tuple[np.ndarray, ...]:
    torch.manual_seed(seed)
    nn = torch.nn
    network = nn.Sequential(
        nn.Linear(x.shape[1], 64),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 64),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 2),
    )
    batch, steps = 256, epochs * (len(x) // 256)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps + 1)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,))
        answer = network(x[chosen] + 0.1 * torch.randn(batch, x.shape[1]))
        error = Estimator.CENTRE + Estimator.SPREAD * answer[:, 0] - y[chosen]
        log_variance = answer[:, 1].clamp(-8, 2) - 3
        # The width by a robust loss, and then its variance by the likelihood, which must not weigh the width's errors.
        of_width = nn.functional.huber_loss(error, torch.zeros_like(error), delta=0.03)
        of_variance = (error.detach() ** 2 / log_variance.exp() + log_variance).mean()
        optimiser.zero_grad()
        (25 * of_width + 0.05 * of_variance).backward()
        optimiser.step()
        schedule.step()
    return tuple(p.detach().numpy() for p in network.parameters())


def estimate_all(estimator: Estimator, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = [estimator(one) for one in measured]
    return np.array([one.sd for one in found]), np.array([one.uncertainty for one in found])


def score(path: Path, stacks: Path) -> None:
    """Prints how far off an estimator is on stacks that it has not seen."""
    data = np.load(stacks)
    sd, uncertainty = estimate_all(Estimator.load(path), data["measured"])
    error = np.abs(sd - data["sd"])
    constant = np.abs(data["sd"] - np.median(data["sd"]))
    print(
        f"all {len(error)}: {error.mean():.4f} spacings off (a constant {constant.mean():.4f}), "
        f"{(error < 2 * uncertainty).mean():.0%} within two uncertainties"
    )
    for name in np.unique(data["volume"]):
        print(f"  {name}: {error[data['volume'] == name].mean():.4f}")
    for column, edges in (
        ("factor", (2, 3, 4.5, 6.5, 10.1)),
        ("slices", (0, 14, 20, 40, 300)),
        ("width", (0.4, 0.5, 1.3, 2.2)),
    ):
        for low, high in pairwise(edges):
            inside = (data[column] >= low) & (data[column] < high)
            if inside.any():
                print(f"  {column} {low:g} to {high:g}: {error[inside].mean():.4f} ({inside.sum()})")


if __name__ == "__main__":
    sys.exit(main())
