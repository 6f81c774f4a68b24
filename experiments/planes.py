"""The claims of Georgescu et al. (IEEE Access 2020), repeated: does the intermediate loss help, does the blur?

    python experiments/planes.py --data DATA -o claims [--steps 300] [--seeds 2] [--jobs 2] [--only NAME ...]
    python experiments/planes.py --data DATA -o scores --models planes-mr planes-ct default

The first trains one small network for every cell of `CELLS`, seed, scanner, part and factor (those that are there
already are left alone), all from the same number of patches, scores them on the middle of the MR scans, and writes the
claims with their paired intervals. The second scores models of the package on whole scans, also fused, and in all three
directions. Both write ``results.jsonl`` and tables, in two protocols:

*Pictures*, the paper's: 8 bits, anti-aliased bicubic downscaling, PSNR (255) and SSIM (7 x 7) of every slice, averaged
over the slices that show something. *Slices*, what a scanner does: a Gaussian profile as wide as the factor, PSNR and
SSIM (7 x 7 x 7) over the foreground of the volume, in depth with and without the projection.

MR: `iso_dev`, thick along the last axis. CT: the last third of the slices of `ct`, of which training saw the first
60 %; these are the same two people. CT slices are 2-3 mm apart and have no thinner truth, so that "depth" is there an
in-plane axis, and half of the fused planes run along the slices. A model that is not for planes is scored in depth
alone, by `upsample`, in pictures without the projection.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from glob import escape
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student
from skimage.metrics import structural_similarity

from thinslice.compute.planes import enlarge_slices
from thinslice.compute.upsample import upsample
from thinslice.evaluation.metrics import data_range, foreground, psnr, ssim
from thinslice.io.nifti import read
from thinslice.models.plane_networks import PlanesModel, enlarge_depth, enlarging_matrix
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.models.slab_network import SlabModel
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.downscaling import downscaling_matrix
from thinslice.physics.intensity import intensity_range
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume, through_plane_axis

BASELINES = ("nearest", "linear", "cubic", "lanczos")
FACTORS = (2, 4)
PARTS = ("in-plane", "depth", "both")
LAST = 0.66
"""Where the slices of a CT scan begin that are scored."""

NO_BLUR, FIXED, VARIOUS = (0.0, 0.0), (0.5, 0.5), (0.0, 0.5)
"""Range of the Gaussian's sigma in pixels; half of the patches get it."""

CELLS: dict[str, tuple[str, float, tuple[float, float]]] = {
    "plain": ("planes", 0.0, NO_BLUR),
    "plain-fixed": ("planes", 0.0, FIXED),
    "plain-various": ("planes", 0.0, VARIOUS),
    "loss": ("planes", 1.0, NO_BLUR),
    "loss-fixed": ("planes", 1.0, FIXED),
    "loss-various": ("planes", 1.0, VARIOUS),
    "paper-plain-various": ("planes-paper", 0.0, VARIOUS),
    "paper-loss-various": ("planes-paper", 1.0, VARIOUS),
}
"""Name -> recipe, weight of the intermediate loss, blur. "planes" corrects cubic interpolation and is trained by Muon;
"planes-paper" makes the image anew and is trained by Adam. All see the paper's downscaling alone."""

CLAIMS = {
    "intermediate loss, no blur": ("loss", "plain"),
    "intermediate loss, fixed sigma": ("loss-fixed", "plain-fixed"),
    "intermediate loss, various sigmas": ("loss-various", "plain-various"),
    "intermediate loss, the paper's network": ("paper-loss-various", "paper-plain-various"),
    "fixed sigma instead of none": ("loss-fixed", "loss"),
    "various sigmas instead of none": ("loss-various", "loss"),
    "various sigmas instead of a fixed one": ("loss-various", "loss-fixed"),
}
"""What is claimed -> the cell with it, the cell without it."""

Record = dict[str, Any]
GROUP = ("scanner", "part", "factor", "protocol")


def main() -> int:
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.models:
        once = [(name, False) for name in arguments.models]
        names = once + [(name, True) for name in arguments.models if isinstance(find_model(name), PlanesModel)]
        records = score(arguments, names, PARTS, middle=1.0)
        text = table(records)
    else:
        runs = list(product(arguments.only or CELLS, range(arguments.seeds)))
        folders = list(beside(arguments.jobs, train, [(cell, seed, arguments) for cell, seed in runs]))
        records = score(arguments, [(str(folder), False) for folder in folders], PARTS[:2], middle=0.5)
        for record in records:
            record["model"], _, record["seed"] = record["model"].partition(" seed ")
        text = table(records) + "\n" + claims(records)
    (arguments.output / "table.md").write_text(text)
    print(text)
    return 0


def beside(jobs: int, work: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Some calls beside each other, each in a process of its own; their answers in order."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes:
        yield from processes.map(work, *zip(*calls, strict=True))


def train(cell: str, seed: int, arguments: argparse.Namespace) -> Path:
    """All networks of one cell, unless they are there; returns the path of their family without scanner."""
    import torch

    from thinslice.training.objectives import PlaneObjective
    from thinslice.training.recipes import load_recipe
    from thinslice.training.runner import train_on_data
    from thinslice.training.sources import CT_SHARE

    recipe, weight, sigma = CELLS[cell]
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // arguments.jobs))
    assert LAST > CT_SHARE, "the slices of a CT scan that are scored must not have been learnt from"
    folder = arguments.output / f"{cell} seed {seed} steps {arguments.steps}"
    stages = []
    for stage in load_recipe(recipe).stages():
        objective = stage.objective
        assert isinstance(objective, PlaneObjective)
        shrinking = replace(objective.shrinking, scanner=0.0, sigma_vox=sigma, blurred=0.5)
        objective = replace(objective, shrinking=shrinking, intermediate=weight)
        model = f"{cell} seed {seed}-{stage.model.removeprefix('planes-')}" if stage.model else None
        schedule = replace(stage.schedule, steps=arguments.steps, warm_up=min(200, -(-arguments.steps // 4)))
        stages.append(replace(stage, objective=objective, model=model, schedule=schedule, start=None))
    if len(list(folder.glob("*.onnx"))) < len(stages):
        train_on_data(stages, arguments.data, folder, cell, resume=folder.exists(), seed=seed)
    return folder / f"{cell} seed {seed}"


def score(
    arguments: argparse.Namespace, names: Sequence[tuple[str, bool]], parts: Sequence[str], middle: float
) -> list[Record]:
    """Every model, fused or not, and every baseline on every scan, in both protocols.

    ``middle``: share of an MR scan along each axis that is scored.
    """
    calls = [
        (path, scanner, part, factor, names, middle)
        for scanner, path in scans(arguments.data)
        for part, factor in product(parts, FACTORS)
        if (scanner, part) != ("ct", "both")
    ]
    records = []
    with (arguments.output / "results.jsonl").open("w") as lines:
        for made in beside(arguments.jobs, score_one, calls):
            records += made
            lines.writelines(json.dumps(record) + "\n" for record in made)
            lines.flush()
    return records


def scans(data: Path) -> list[tuple[str, Path]]:
    """Scanner and file."""
    return [(s, path) for s, f in (("mr", "iso_dev"), ("ct", "ct")) for path in sorted((data / f).glob("*.nii*"))]


def voxels(path: Path, scanner: str, middle: float) -> np.ndarray:
    """What is scored of a scan [slices, h, w]."""
    volume = read(path)
    axis = through_plane_axis(volume) if scanner == "ct" else 2
    slices = np.moveaxis(volume.voxels, axis, 0).astype(np.float32)
    if scanner == "ct":
        return slices[round(LAST * len(slices)) :]
    edges = [round(n * (1 - middle) / 2) for n in slices.shape]
    return slices[tuple(slice(edge, n - edge) for edge, n in zip(edges, slices.shape, strict=True))]


def score_one(
    path: Path, scanner: str, part: str, factor: int, names: Sequence[tuple[str, bool]], middle: float
) -> list[Record]:
    """All answers to one scan, one part and one factor."""
    models = [(base, find_model(base), False) for base in BASELINES]
    models += [(_title(name, fuse), _for_scanner(name, scanner), fuse) for name, fuse in names]
    slices = voxels(path, scanner, middle)
    truth = slices.swapaxes(0, 1) if scanner == "ct" and part == "depth" else slices
    truth = np.ascontiguousarray(_whole(truth, factor, part))
    about = {"scanner": scanner, "case": path.name.split(".")[0], "part": part, "factor": factor}
    return [
        about | {"model": title, "protocol": protocol, "psnr_db": decibel, "ssim": likeness}
        for title, model, fuse in models
        if model is not None and (part == "depth" or isinstance(model, PlanesModel) or not model.adds)
        for protocol, decibel, likeness in (
            *pictures(truth, part, factor, model, fuse),
            *thick_slices(truth, part, factor, model, fuse),
        )
    ]


def pictures(truth: np.ndarray, part: str, factor: int, model: Model, fuse: bool) -> Iterator[tuple[str, float, float]]:
    """The paper's protocol: [slices, h, w] -> mean PSNR and SSIM over its slices, in 8 bits."""
    low, high = intensity_range(truth)
    bits = np.clip(np.rint(255 * (truth - low) / (high - low)), 0, 255)
    small = np.clip(np.rint(_shrunk(bits, part, factor, downscaling_matrix)), 0, 255).astype(np.float32)
    answer = np.clip(np.rint(255 * _enlarged(small / 255, part, factor, model, fuse)), 0, 255)
    shown = [index for index, plane in enumerate(bits) if (plane > 12).mean() > 0.05]
    decibel, likeness = [], []
    for index in shown:
        error = float(np.mean((answer[index] - bits[index]) ** 2))
        if error > 0:  # an equal slice has no PSNR
            decibel.append(10 * np.log10(255**2 / error))
        likeness.append(structural_similarity(answer[index], bits[index], data_range=255))
    yield "pictures", float(np.mean(decibel)), float(np.mean(likeness))


def thick_slices(
    truth: np.ndarray, part: str, factor: int, model: Model, fuse: bool
) -> Iterator[tuple[str, float, float]]:
    """What a scanner does: PSNR and SSIM over the foreground, in depth also with the projection."""
    mask, span = foreground(truth), data_range(truth)
    small = _shrunk(truth, part, factor, gaussian).astype(np.float32)
    if part == "in-plane":
        low, high = intensity_range(small)
        answer = _enlarged((small - low) / (high - low), part, factor, model, fuse) * (high - low) + low
        yield "slices", psnr(answer, truth, span, mask), ssim(answer, truth, span, mask)
        return
    in_plane = factor if part == "both" else 1
    for projected in (False, True):
        answer = _thinned(small, factor, model, projection=projected, in_plane=in_plane, fuse=fuse)
        protocol = "slices, projected" if projected else "slices"
        yield protocol, psnr(answer, truth, span, mask), ssim(answer, truth, span, mask)


def gaussian(size: int, factor: int) -> np.ndarray:
    """[size, factor * size]: a Gaussian slice profile as wide as the factor."""
    return Acquisition((np.arange(size) + 0.5) * factor - 0.5, factor * size, float(factor), "gaussian").matrix()


def table(records: Sequence[Record]) -> str:
    """Markdown: mean PSNR, SSIM, and the difference to Lanczos with its paired interval over the scans."""
    rows = ["| scanner | part | factor | protocol | model | n | PSNR dB | SSIM | above Lanczos dB (95 %) | smallest |"]
    rows.append("|---|---|--:|---|---|--:|--:|--:|--:|--:|")
    for group, mine in _grouped(records):
        lanczos = _by_case(mine, "lanczos")
        for model in dict.fromkeys(r["model"] for r in mine):
            own, likeness = _by_case(mine, model), mean(r["ssim"] for r in mine if r["model"] == model)
            gains = [own[case] - lanczos[case] for case in own]
            rows.append(
                f"| {' | '.join(map(str, group))} | {model} | {len(own)} | {mean(own.values()):.2f} | {likeness:.4f} | "
                f"{mean(gains):+.2f}{_interval(gains)} | {min(gains):+.2f} |"
            )
    return "\n".join(rows) + "\n"


def claims(records: Sequence[Record]) -> str:
    """Markdown: what each claim is worth, paired over the scans, and how much the seeds differ about it."""
    pooled = [record | {"scanner": "all", "case": (record["scanner"], record["case"])} for record in records]
    rows = ["| claim | scanner | part | factor | protocol | scans | gain dB (95 % over scans) | by seed |"]
    rows.append("|---|---|---|--:|---|--:|--:|---|")
    for claim, (with_it, without) in CLAIMS.items():
        for group, mine in _grouped([*records, *pooled]):
            gains, *by_seed = (
                _paired(mine, with_it, without, seed)
                for seed in (None, *sorted({r["seed"] for r in mine if r["model"] == with_it}))
            )
            if gains:
                each = ", ".join(f"{mean(own):+.3f}" for own in by_seed)
                gain = f"{mean(gains):+.3f}{_interval(gains)}"
                rows.append(f"| {claim} | {' | '.join(map(str, group))} | {len(gains)} | {gain} | {each} |")
    return "\n".join(rows) + "\n"


def _paired(records: Sequence[Record], with_it: str, without: str, seed: str | None) -> list[float]:
    """Gain of every scan; none unless both were scored."""
    one, other = (_by_case(records, cell, seed) for cell in (with_it, without))
    return [one[case] - other[case] for case in one if case in other]


def _grouped(records: Sequence[Record]) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    for group in dict.fromkeys(tuple(r[k] for k in GROUP) for r in records):
        yield group, [r for r in records if tuple(r[k] for k in GROUP) == group]


def _by_case(records: Sequence[Record], model: str, seed: str | None = None) -> dict[str, float]:
    """Case -> PSNR, averaged over the seeds."""
    own = [r for r in records if r["model"] == model and seed in (None, r.get("seed"))]
    return {
        case: mean(r["psnr_db"] for r in own if r["case"] == case) for case in dict.fromkeys(r["case"] for r in own)
    }


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    return f" ± {student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5:.3f}"


def _title(name: str, fuse: bool) -> str:
    return Path(name).name + (", fused" if fuse else "")


def _for_scanner(name: str, scanner: str) -> Model | None:
    """A model of that name, or its member for MR or CT; None for one that is meant for the other."""
    family = Path(f"{name}-{scanner}")
    member = any(family.parent.glob(f"{escape(family.name)}.*.onnx"))
    model = find_model(str(family) if member else name)
    envelope = model.envelope if isinstance(model, PlanesModel) else None
    other = envelope is not None and envelope.hounsfield != (scanner == "ct")
    return None if other else model


def _whole(truth: np.ndarray, factor: int, part: str) -> np.ndarray:
    """Cropped to whole small pixels along the axes that shrink."""
    depth, height, width = (n // factor * factor for n in truth.shape)
    truth = truth[:depth] if part != "in-plane" else truth
    return truth[:, :height, :width] if part != "depth" else truth


def _shrunk(truth: np.ndarray, part: str, factor: int, make: Any) -> np.ndarray:
    depth, height, width = (n // factor for n in truth.shape)
    if part != "in-plane":
        truth = np.tensordot(make(depth, factor), truth, axes=1)
    if part != "depth":
        truth = make(height, factor) @ truth @ make(width, factor).T
    return truth


def _enlarged(small: np.ndarray, part: str, factor: int, model: Model, fuse: bool) -> np.ndarray:
    """By the networks alone, without the projection."""
    slices = np.ascontiguousarray(small, np.float32)
    if isinstance(model, SlabModel):
        return _thinned(slices, factor, model, projection=False)
    if part != "depth":
        network = model.planes["in-plane", factor] if isinstance(model, PlanesModel) else None
        slices, _ = enlarge_slices(slices, factor, model.base, network, fuse)
    if part == "in-plane":
        return slices
    if not isinstance(model, PlanesModel):
        return np.tensordot(enlarging_matrix(len(slices), factor, model.base), slices, axes=1)
    deep = model.planes["depth", factor]
    beyond = deep.reach[0]
    around = np.pad(slices, ((beyond, beyond), (0, 0), (0, 0)), mode="edge")
    return enlarge_depth(around, beyond, factor, model.base, deep, fuse)


def _thinned(slices: np.ndarray, factor: int, model: Model, **settings: Any) -> np.ndarray:
    """[slices, h, w], a factor of pixels apart, as `enhance` makes them thin."""
    acquired = Volume(np.moveaxis(slices, 0, 2), np.diag([1.0, 1.0, float(factor), 1.0]))
    envelope = replace(model.envelope, hounsfield=False) if model.envelope else None  # a part of a scan may lack fat
    plan = make_plan(
        acquired, Settings(factor=factor, profile="gaussian", **settings), replace(model, envelope=envelope)
    )
    return np.moveaxis(upsample(acquired, plan, model).volume.voxels, 2, 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with iso_train, iso_dev and ct")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="of every network")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other")
    parser.add_argument("--only", nargs="*", choices=CELLS, help="cells to train and score")
    parser.add_argument("--models", nargs="+", help="score these instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
