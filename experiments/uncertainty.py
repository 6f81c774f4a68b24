"""Does the distance between a network's answers to a scan and to its mirror image say where the answer is wrong?

    python experiments/uncertainty.py --data DATA -o uncertainty

Thin scans are made thick (x2, x4, x6; Gaussian, touching) and computed back by `default`. On `iso_train` the power law
of `thinslice.compute.uncertainty` is fitted to all cells of the foreground together. On `iso_dev`, other people,
nothing is fitted; there, for every scan and factor, of the cells of the foreground:

    rank         Spearman correlation of the expected error with the true one (mean absolute, in the cell)
    by edges     the same for what costs nothing: the step between the acquired slices around the cell
    sparsified   mean true error when the half of the cells with the largest expected error is left out, over that when
                 nothing is; in brackets, when the half with the largest true error is (the best that can be)
    expected     mean expected error over mean true error

``--keep`` leaves the power law as it is and looks at `iso_dev` alone: enough to say of new weights whether it holds.

Writes ``results.md`` and ``sparsification.png``: the mean error of what is left, against the share left out.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from thinslice.compute.uncertainty import POWER, SCALE, average_in_cells, choose_cell_size, map_expected_error
from thinslice.compute.upsample import upsample
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import foreground
from thinslice.io.formats import read
from thinslice.models.registry import find_model
from thinslice.plan import make_plan
from thinslice.settings import Settings

FACTORS = (2.0, 4.0, 6.0)
SHARES = np.linspace(0, 0.95, 20)


def cells(path, factor, model):
    """Expected error, true error, and step between slices, in intensity ranges, of each foreground cell."""
    truth, thick = simulate(read(path), 2, factor)
    plan = make_plan(thick, Settings(spacing_mm=truth.spacing_mm[2], profile="gaussian"), model)
    thin = upsample(thick, plan, model).volume
    expected = map_expected_error(thick, thin, plan, model)
    size = choose_cell_size(plan.spacing_thin_mm, plan.shape_thin)
    true = average_in_cells(thin.voxels, truth.voxels, size) / expected.unit
    nothing = np.zeros_like(truth.voxels)
    inside = average_in_cells(foreground(truth.voxels).astype(float), nothing, size) > 0.5
    below = np.clip(np.floor(plan.positions()).astype(int), 0, plan.n_thick - 2)
    steps = np.abs(np.diff(thick.voxels.astype(float), axis=2))[..., below]
    edges = average_in_cells(steps, nothing, size) / expected.unit
    return (expected.volume.voxels / expected.unit)[inside], true[inside], edges[inside]


def fit(found):
    """(scale, power) of error = scale * distance ** power: least squares of logarithms of bin means."""
    distance = np.concatenate([(expected / SCALE) ** (1 / POWER) for expected, _, _ in found])
    true = np.concatenate([true for _, true, _ in found])
    order = np.argsort(distance)
    bins = np.array_split(order, 50)
    middle = np.log([distance[b].mean() for b in bins]), np.log([true[b].mean() for b in bins])
    power, scale = np.polyfit(*middle, 1)
    return float(np.exp(scale)), float(power)


def sparsified(order, true):
    """Mean true error of what is left when the first SHARES of the cells in ``order`` are left out, over all."""
    ordered = true[order]
    return np.array([ordered[int(share * len(ordered)) :].mean() for share in SHARES]) / true.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="fit nothing: only check what is in use")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = find_model("default")
    lines = [f"In use: error = {SCALE:g} x distance ^ {POWER:g}."]
    if not arguments.keep:
        learnt = sorted((arguments.data / "iso_train").glob("*.nii.gz"))
        scale, power = fit([cells(path, f, model) for path in learnt for f in FACTORS])
        lines.append(f"Fitted to `iso_train`: error = {scale:.2f} x distance ^ {power:.2f}.")
    lines += [
        "",
        "| scan | factor | rank | by edges | sparsified (best) | expected over true |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    paths = sorted((arguments.data / "iso_dev").glob("*.nii.gz"))
    figure, axes = plt.subplots(1, len(paths), figsize=(3.2 * len(paths), 3), sharey=True, layout="constrained")
    for axis, path in zip(axes, paths, strict=True):
        for factor in FACTORS:
            expected, true, edges = cells(path, factor, model)
            ours, best = sparsified(np.argsort(-expected), true), sparsified(np.argsort(-true), true)
            half = int(np.argmin(np.abs(SHARES - 0.5)))
            lines.append(
                f"| {path.name.split('.')[0]} | {factor:g} | {spearmanr(expected, true)[0]:.2f} | "
                f"{spearmanr(edges, true)[0]:.2f} | {ours[half]:.2f} ({best[half]:.2f}) | "
                f"{expected.mean() / true.mean():.2f} |"
            )
            print(lines[-1], flush=True)
            if factor == 4:
                by_edges = sparsified(np.argsort(-edges), true)
                for curve, name in ((ours, "expected error"), (by_edges, "edges"), (best, "true error")):
                    axis.plot(100 * SHARES, curve, label=name)
        axis.set(title=path.name.split(".")[0], xlabel="cells left out, %", ylim=(0, 1.05))
    axes[0].set_ylabel("mean error of the rest")
    axes[0].legend()
    figure.savefig(arguments.output / "sparsification.png", dpi=120)
    (arguments.output / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
