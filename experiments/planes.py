"""The claims of Georgescu et al. (IEEE Access 2020), repeated: does the intermediate loss help, does the blur?

    python experiments/planes.py train --data DATA -o out [--steps 600] [--only NAME ...]
    python experiments/planes.py score --data DATA -o out [--models planes-mr planes-ct]

``train`` makes one small model per claim, scanner, part and factor, and skips those that are there already. ``score``
measures them, or any models of the package, in two protocols, and writes ``results.jsonl`` and a table with mean
differences and their paired 95 % intervals over the scans.

*Pictures*, the paper's: 8 bits, anti-aliased bicubic downscaling, PSNR (255) and SSIM (7 x 7) of every slice, averaged
over the slices that show something. *Slices*, what a scanner does: a Gaussian profile as wide as the factor, PSNR and
SSIM (7 x 7 x 7) over the foreground of the volume. MR: `iso_dev`. CT: the last third of the slices of `ct`, of which
training saw the first 60 %.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student
from skimage.metrics import structural_similarity

from thinslice.enlarge import enlarge_depth, enlarge_slices, enlarging_matrix
from thinslice.metrics import data_range, foreground, psnr, ssim
from thinslice.nifti import read
from thinslice.plan import intensity_range, make_plan, through_plane_axis
from thinslice.profile import downscaling_matrix, profile_matrix
from thinslice.runtime import Model, Part
from thinslice.upsample import upsample
from thinslice.volume import Volume
from thinslice.weights import find_model

BASELINES = ("nearest", "linear", "cubic", "lanczos")
FACTORS = (2, 4)
PARTS: tuple[Part, ...] = ("in-plane", "depth")
LAST = 0.66
"""Where the slices of a CT scan begin that are scored."""

CLAIMS: dict[str, tuple[float, tuple[float, float], float]] = {
    "none": (0.0, (0.0, 0.0), 0.0),
    "blur": (0.0, (0.0, 0.5), 0.5),
    "loss": (1.0, (0.0, 0.0), 0.0),
    "loss-fixed": (1.0, (0.5, 0.5), 0.5),
    "loss-blur": (1.0, (0.0, 0.5), 0.5),
}
"""Name -> weight of the intermediate loss, range of the Gaussian's sigma, share of the patches that get it."""


def main() -> int:
    arguments = _arguments()
    return (train if arguments.verb == "train" else score)(arguments)


def train(arguments: argparse.Namespace) -> int:
    """One model for every claim, scanner, part and factor; the paper's downscaling only."""
    from thinslice.training.recipes import run_stages

    for claim in arguments.only or CLAIMS:
        stages, folder = claimed(claim), arguments.output / claim
        if len(list(folder.glob("*.onnx"))) < len(stages):
            run_stages(stages, arguments.data, folder, resume=folder.exists(), steps=arguments.steps * len(stages))
    return 0


def claimed(claim: str) -> list[Any]:
    """The stages of the recipe ``planes`` with the loss and the blur of a claim."""
    from thinslice.training.recipes import planes
    from thinslice.training.tasks import Planes

    weight, sigma, share = CLAIMS[claim]
    stages = []
    for stage in planes():
        task, model = stage.task, stage.model
        assert isinstance(task, Planes)
        assert model is not None
        shrinking = replace(task.shrinking, scanner=0.0, sigma_vox=sigma, blurred=share)
        task = replace(task, shrinking=shrinking, intermediate=weight)
        stages.append(replace(stage, task=task, model=model.replace("planes", claim)))
    return stages


def score(arguments: argparse.Namespace) -> int:
    """Every model and baseline on every scan, in both protocols."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = arguments.models or [str(arguments.output / claim / claim) for claim in CLAIMS]
    records = []
    with (arguments.output / "results.jsonl").open("w") as lines:
        for scanner, case, volume in scans(arguments.data):
            models = {name: _for_scanner(name, scanner) for name in names}
            for record in scores(scanner, case, volume, {name: model for name, model in models.items() if model}):
                records.append(record)
                lines.write(json.dumps(record) + "\n")
                lines.flush()
    text = table(records)
    (arguments.output / "table.md").write_text(text)
    print(text)
    return 0


def scans(data: Path) -> Iterator[tuple[str, str, Volume]]:
    """Scanner, name and volume; slices along the last axis."""
    for path in sorted((data / "iso_dev").glob("*.nii*")):
        yield "mr", path.name.split(".")[0], read(path)
    for path in sorted((data / "ct").glob("*.nii*")):
        volume = read(path)
        assert through_plane_axis(volume) == 2, f"{path}: slices along axis {through_plane_axis(volume)}"
        first = round(LAST * volume.shape[2])
        yield "ct", path.name.split(".")[0], replace(volume, voxels=volume.voxels[:, :, first:])


def scores(scanner: str, case: str, volume: Volume, models: dict[str, Model]) -> Iterator[dict[str, Any]]:
    """All answers to one scan."""
    truth = np.moveaxis(volume.voxels, 2, 0).astype(np.float32)
    low, high = intensity_range(truth)
    truth = (truth - low) / (high - low)
    for part in PARTS:
        for factor in FACTORS:
            cropped = _whole(truth, factor, part)
            if min(cropped.shape) < 4 * factor:
                continue
            for protocol, measure in (("pictures", pictures), ("slices", slices)):
                for name, model in [*((b, find_model(b)) for b in BASELINES), *models.items()]:
                    if model.planes and (part, factor) not in model.planes:
                        continue
                    for projected, decibel, likeness in measure(cropped, part, factor, model):
                        yield {
                            "scanner": scanner,
                            "case": case,
                            "part": part,
                            "factor": factor,
                            "protocol": protocol + (", projected" if projected else ""),
                            "model": Path(name).name,
                            "psnr_db": decibel,
                            "ssim": likeness,
                        }


def pictures(truth: np.ndarray, part: Part, factor: int, model: Model) -> Iterator[tuple[bool, float, float]]:
    """The paper's protocol: [slices, h, w] in 0 .. 1 -> mean PSNR and SSIM over its slices, in 8 bits."""
    bits = np.clip(np.rint(255 * truth), 0, 255)
    small = _shrunk(bits, part, factor, downscaling_matrix)
    small = np.clip(np.rint(small), 0, 255).astype(np.float32)
    answer = np.clip(np.rint(255 * _enlarged(small / 255, part, factor, model)), 0, 255)
    shown = [index for index, plane in enumerate(bits) if (plane > 12).mean() > 0.05]
    decibel, likeness = [], []
    for index in shown:
        error = float(np.mean((answer[index] - bits[index]) ** 2))
        if error > 0:  # an equal slice has no PSNR
            decibel.append(10 * np.log10(255**2 / error))
        likeness.append(structural_similarity(answer[index], bits[index], data_range=255))
    yield False, float(np.mean(decibel)), float(np.mean(likeness))


def slices(truth: np.ndarray, part: Part, factor: int, model: Model) -> Iterator[tuple[bool, float, float]]:
    """What a scanner does: PSNR and SSIM over the foreground, in depth also with the projection."""
    mask, span = foreground(truth), data_range(truth)

    def gaussian(size: int, factor: int) -> np.ndarray:
        return profile_matrix((np.arange(size) + 0.5) * factor - 0.5, factor * size, float(factor))

    small = _shrunk(truth, part, factor, gaussian).astype(np.float32)
    if part == "in-plane":
        answer = _enlarged(small, part, factor, model)
        yield False, psnr(answer, truth, span, mask), ssim(answer, truth, span, mask)
        return
    acquired = Volume(np.moveaxis(small, 0, 2), np.diag([1.0, 1.0, float(factor), 1.0]))
    for projected in (False, True):
        plan = make_plan(acquired, factor=factor, projection=projected)
        answer = np.moveaxis(upsample(acquired, plan, model).volume.voxels, 2, 0)
        yield projected, psnr(answer, truth, span, mask), ssim(answer, truth, span, mask)


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: mean PSNR, SSIM, and the difference to Lanczos with its paired interval over the scans."""
    rows = ["| scanner | part | factor | protocol | model | n | PSNR dB | SSIM | above Lanczos dB (95 %) | smallest |"]
    rows.append("|---|---|--:|---|---|--:|--:|--:|--:|--:|")
    keys = ("scanner", "part", "factor", "protocol")
    for group in dict.fromkeys(tuple(r[k] for k in keys) for r in records):
        mine = [r for r in records if tuple(r[k] for k in keys) == group]
        lanczos = {r["case"]: r["psnr_db"] for r in mine if r["model"] == "lanczos"}
        for model in dict.fromkeys(r["model"] for r in mine):
            own = [r for r in mine if r["model"] == model]
            gains = [r["psnr_db"] - lanczos[r["case"]] for r in own]
            decibel, likeness = mean(r["psnr_db"] for r in own), mean(r["ssim"] for r in own)
            rows.append(
                f"| {' | '.join(map(str, group))} | {model} | {len(own)} | {decibel:.2f} | {likeness:.4f} | "
                f"{mean(gains):+.2f}{_interval(gains)} | {min(gains):+.2f} |"
            )
    return "\n".join(rows) + "\n"


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    return f" ± {student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5:.2f}"


def _for_scanner(name: str, scanner: str) -> Model | None:
    """A model of that name for MR or CT; None for one that is meant for the other."""
    for wish in (name, f"{name}-{scanner}"):
        try:
            model = find_model(wish)
        except Exception:  # there is no such model; the next name may be one
            continue
        suits = model.envelope is None or model.envelope.hounsfield == (scanner == "ct")
        return model if suits else None
    return None


def _whole(truth: np.ndarray, factor: int, part: Part) -> np.ndarray:
    """Cropped to whole small pixels along the axes that shrink."""
    depth, height, width = (n // factor * factor for n in truth.shape)
    return truth[:depth] if part == "depth" else truth[:, :height, :width]


def _shrunk(truth: np.ndarray, part: Part, factor: int, make: Any) -> np.ndarray:
    depth, height, width = (n // factor for n in truth.shape)
    if part == "depth":
        return np.einsum("mn,nhw->mhw", make(depth, factor), truth)
    return make(height, factor) @ truth @ make(width, factor).T


def _enlarged(small: np.ndarray, part: Part, factor: int, model: Model) -> np.ndarray:
    network = model.planes.get((part, factor))
    small = np.ascontiguousarray(small, np.float32)
    if part == "in-plane":
        return enlarge_slices(small, factor, model.base, network)
    if network is None:
        return np.einsum("mn,nhw->mhw", enlarging_matrix(len(small), factor, model.base), small)
    context = model.context
    around = small[np.clip(np.arange(-context, len(small) + context), 0, len(small) - 1)]
    return enlarge_depth(around, factor, model.base, network)[factor * context : -factor * context]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "score"))
    parser.add_argument("--data", type=Path, required=True, help="folder with iso_train, iso_dev and ct")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600, help="of every network")
    parser.add_argument("--only", nargs="*", choices=CLAIMS, help="claims to train")
    parser.add_argument("--models", nargs="*", help="score these instead of the claims")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
