"""The table of Wang et al. (ISBI 2024), repeated: does video pre-training help, does adaptation, to what?

    python experiments/adaptation.py --data DATA -o adaptation [--steps 800] [--adapt-steps 40] [--jobs 2]

It trains a network on video clips, one on near-isotropic MR, one on a quarter clips and then MR, and one by the
slice-profile average of clips (not gone on with), all for the same number of steps and with the same batches' size.

Simulated: the four scans of `iso_dev` are made thick (x4, Gaussian, touching). The other networks, an untrained one and
the embedded default are adapted to the four thick scans together (as many steps as scans times ``--adapt-steps``)
and to each scan by itself (``--adapt-steps`` each, so that both cost the same). The MR network and the default are also
trained on the thin truth of the four scans for as long, which is the upper bound; it is otherwise only scored on.

Real: the same networks are adapted to two knees, a prostate and a brain of `thick` likewise, which have no truth. What
the loss of the part held out says is told; and every model makes one of two orthogonal stacks of the same knee thin,
the answer is resampled into the slices of the other one, through the other's own slice profile, and compared with the
in-plane detail there.

All models are asked in one orientation; of the embedded default also the mean of two is scored (``enhance --fuse``).
What is there already is left alone, so a killed run goes on. It writes ``results.jsonl`` and ``real.jsonl``, a table of
each, and the learning curves as a picture.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from thinslice.compute.upsample import upsample
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr, ssim
from thinslice.io.atomic import whole_or_not
from thinslice.io.nifti import read, write
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.models.slab_network import SlabModel
from thinslice.physics.acquisition import Acquisition
from thinslice.plan import make_plan
from thinslice.settings import Settings
from thinslice.volume import Volume

FACTOR = 4.0
STARTS = ("nothing", "video", "video-average", "mr", "video+mr", "default")
ADAPTED = ("nothing", "video", "mr", "video+mr", "default")
HOW = ("none", "data-set", "per-scan")
VIDEO_SHARE = 0.25
CURVE_POINTS = 5
KNEES = ("knee_pdfs_sag", "knee_pdfs_cor")
REAL = (*KNEES, "prostate_t2_sag_px0000", "brain_flair_openms_l01_thick")
DETAIL_MM = 1.5
"""Only what is finer than a Gaussian of this sigma is compared between the knees: their contrast may drift."""

Record = dict[str, Any]


def main() -> int:
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    thick = make_thick(arguments.data, arguments.output)
    scans = {case: _one_file(arguments.data / "thick", case) for case in REAL}
    simulated = [(start, thick, "adapted", FACTOR, arguments) for start in ADAPTED]
    acquired = [(start, scans, "real", None, arguments) for start in ADAPTED]
    with get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        pool.starmap(train, [(start, arguments) for start in STARTS], chunksize=1)
        pool.starmap(adapt_start, simulated, chunksize=1)
        pool.starmap(upper_bound, [(start, thick, arguments) for start in ("mr", "default")], chunksize=1)
        pool.starmap(adapt_start, acquired, chunksize=1)
        scored = [(case, start, how, arguments) for start, how in cells() for case in sorted(thick)]
        records = pool.starmap(score, scored, chunksize=8)
        _keep(arguments.output / "results.jsonl", records)
        compared = [("cubic", "none"), *((start, how) for start in ADAPTED for how in HOW)]
        real = pool.starmap(score_real, [(*cell, scans, arguments) for cell in compared], chunksize=1)
        _keep(arguments.output / "real.jsonl", real)
    for name, text in (("table", table(records)), ("real", real_table(real))):
        (arguments.output / f"{name}.md").write_text(text)
        print(text)
    draw(arguments)
    return 0


def _one_file(folder: Path, case: str) -> Path:
    found = sorted(folder.glob(f"{case}.nii*"))
    if not found:
        sys.exit(f"got {folder} without {case}.nii.gz; need it to be compared; next: check --data")
    return found[0]


def make_thick(data: Path, out: Path) -> dict[str, Path]:
    """The simulated thick scans: case -> file."""
    made = {}
    for path in sorted((data / "iso_dev").glob("*.nii*")):
        case = path.name.split(".")[0]
        made[case] = out / "thick" / f"{case}.nii.gz"
        if not made[case].exists():
            made[case].parent.mkdir(parents=True, exist_ok=True)
            truth = read(path)
            _, thick = simulate(replace(truth, header=None), 2, FACTOR)
            write(thick, made[case])
    return made


def train(start: str, arguments: argparse.Namespace) -> None:
    """The network that an adaptation starts from, with its gain on the way; ``nothing`` has fresh weights."""
    import torch

    from thinslice.training.export import export
    from thinslice.training.recipes import load_recipe
    from thinslice.training.stages import Inputs, Stage

    _one_thread_each(arguments)
    out = arguments.output / "starts"
    if start == "default" or (out / f"{start}.onnx").exists():
        return
    torch.manual_seed(0)
    video, mr = load_recipe("video-mr-average" if start == "video-average" else "video-mr").stages()
    network = mr.network.build()
    share = {"nothing": (0, 0), "video": (1, 0), "video-average": (1, 0), "mr": (0, 1)}
    stages: list[tuple[Stage, float]] = list(
        zip((video, mr), share.get(start, (VIDEO_SHARE, 1 - VIDEO_SHARE)), strict=True)
    )
    scans = _scored(arguments)
    done, curve = 0, [(0, mean(_gain(network, *scan) for scan in scans))]
    for stage, part in stages:
        steps = round(part * arguments.steps)
        if not steps:
            continue
        corpus = stage.source.volumes(Inputs(arguments.data), {})
        network, points = _trained(network, stage.objective, corpus, steps, out / start / stage.name, scans)
        curve += [(done + step, gain) for step, gain in points]
        done += steps
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{start}.curve.json").write_text(json.dumps(curve))
    export(network, {"name": start, "envelope": mr.objective.envelope((), None)}, out / f"{start}.onnx")


def _trained(
    network: Any, objective: Any, corpus: Any, steps: int, folder: Path, scans: Sequence[Any], gentle: bool = False
) -> tuple[Any, list[tuple[int, float]]]:
    """A network after so many steps, and its mean gain over the scans on the way."""
    from thinslice.training.fit import Schedule, fit
    from thinslice.training.recipes.adapt import SCHEDULE

    known = folder / "curve.json"  # a run that is gone on with has the points before it there
    curve: list[tuple[int, float]] = [(s, g) for s, g in json.loads(known.read_text())] if known.exists() else []

    def check(step: int, average: Any) -> bool:
        if step and scans:
            curve[:] = [point for point in curve if point[0] < step]
            curve.append((step, mean(_gain(average, *scan) for scan in scans)))
            with whole_or_not(known) as temporary:
                temporary.write_text(json.dumps(curve))
        return False

    full = Schedule(warm_up=max(1, min(200, steps // 4)), ema=0.99)
    schedule = replace(
        SCHEDULE.gentle() if gentle else full,
        minutes=None,
        steps=steps,
        save_every=max(1, steps // CURVE_POINTS),
        side_by_side=False,
    )
    answer = fit(
        network.requires_grad_(True),  # what an earlier stage averaged does not learn
        objective.batches(corpus, 0, network),
        objective.loss,
        folder,
        schedule,
        resume=True,
        report=_silent,
        check=check,
    )
    return answer, curve


def adapt_start(
    start: str, thick: dict[str, Path], folder: str, factor: float | None, arguments: argparse.Namespace
) -> None:
    """Adapt one start to all scans together and to each by itself, at the same cost."""
    from thinslice.settings import Settings
    from thinslice.training.fit import Schedule
    from thinslice.training.recipes import adapt as adapting

    _one_thread_each(arguments)
    if start == "nothing":  # which has everything to learn, at the full rates
        usual = adapting.SCHEDULE
        full = Schedule()  # a start is trained at half of these rates
        rates = {"rate": 2 * full.rate, "muon_rate": 2 * full.muon_rate, "muon_decay": full.muon_decay}
        adapting.SCHEDULE = replace(usual, **rates)
    adapting.SCHEDULE = replace(adapting.SCHEDULE, side_by_side=False)
    model = str(start if start == "default" else arguments.output / "starts" / f"{start}.onnx")
    out = arguments.output / folder
    steps, paths = arguments.adapt_steps, list(thick.values())
    for how, length in (("data-set", steps * len(paths)), ("per-scan", steps)):
        adapting.adapt(
            paths,
            out / f"{start} {how}",
            Settings(model, factor=factor, profile="gaussian"),
            steps=length,
            per_scan=how == "per-scan",
            resume=True,
            report=_silent,
        )


def upper_bound(start: str, thick: dict[str, Path], arguments: argparse.Namespace) -> None:
    """A start trained on the thin truth of the four scans, for as long as an adaptation."""
    import torch

    from thinslice.models.registry import EMBEDDED
    from thinslice.networks.registry import Architecture
    from thinslice.training.batches import AcquisitionRanges
    from thinslice.training.export import export, load_weights
    from thinslice.training.objectives import SlabObjective
    from thinslice.training.volumes import TrainingVolume, normalise

    _one_thread_each(arguments)
    objective = SlabObjective(  # an acquisition near that of the scans, as an adaptation has it
        ranges=AcquisitionRanges(
            factor=(3.6, 4.4),
            thickness_over_spacing=(0.95, 1.05),
            typical=0.0,
            profiles=(("gaussian", 1.0),),
            noisy=0.1,
        )
    )
    truths = [normalise(truth.voxels) for truth, *_ in _scored(arguments)]
    corpus = [TrainingVolume(case, voxels, (2,), voxels.size**0.5) for case, voxels in zip(thick, truths, strict=True)]
    out = arguments.output / "adapted" / f"{start} truth.onnx"
    if out.exists():
        return
    torch.manual_seed(0)
    network = Architecture().build()
    load_weights(network, _start_file(start, arguments) if start != "default" else EMBEDDED / "default.onnx")
    steps = arguments.adapt_steps * len(thick)
    network, _ = _trained(network, objective, corpus, steps, out.with_suffix(".training"), (), gentle=True)
    export(network, {"name": f"{start} truth", "envelope": objective.envelope((), None)}, out)


def cells() -> Iterator[tuple[str, str]]:
    """Start and adaptation of every cell of the table."""
    for start in STARTS:
        yield from ((start, how) for how in (HOW if start in ADAPTED else HOW[:1]))
    yield from (("mr", "truth"), ("default", "truth"))


def score(case: str, start: str, how: str, arguments: argparse.Namespace) -> Record:
    """One scan by one cell's model: decibels above projected cubic."""
    truth, thick = _pair(arguments, case)
    model = find_model(_model_of(start, how, case, "adapted", arguments))
    answer, mask, span = _answer(thick, model), foreground(truth.voxels), data_range(truth.voxels)
    decibel = psnr(answer, truth.voxels, span, mask)
    reference = _decibels(truth, thick, find_model("cubic"))
    fused = psnr(_answer(thick, model, fuse=True), truth.voxels, span, mask) if start == "default" else None
    card: Any = model.card or {}
    return {
        "case": case,
        "start": start,
        "adaptation": how,
        "psnr_db": decibel,
        "ssim": ssim(answer, truth.voxels, span, mask),
        "gain_db": decibel - reference,
        "fused_gain_db": None if fused is None else fused - reference,
        "kept_start": None if how in ("none", "truth") else not card["adapted"],
    }


def _model_of(start: str, how: str, case: str, folder: str, arguments: argparse.Namespace) -> str:
    adapted = arguments.output / folder
    if how == "none":
        return start if start in ("default", "cubic") else str(_start_file(start, arguments))
    return str(adapted / f"{start} per-scan" / f"{case}.onnx" if how == "per-scan" else adapted / f"{start} {how}.onnx")


def _start_file(start: str, arguments: argparse.Namespace) -> Path:
    return Path(arguments.output / "starts" / f"{start}.onnx")


def _answer(thick: Volume, model: Model, fuse: bool = False) -> np.ndarray:
    settings = {"factor": FACTOR, "thickness_mm": thick.thickness_mm, "fuse": fuse}
    return upsample(thick, make_plan(thick, Settings(profile="gaussian", **settings), model), model).volume.voxels


def _decibels(truth: Volume, thick: Volume, model: Model) -> float:
    return psnr(_answer(thick, model), truth.voxels, data_range(truth.voxels), foreground(truth.voxels))


def _pair(arguments: argparse.Namespace, case: str) -> tuple[Volume, Volume]:
    (path,) = (arguments.data / "iso_dev").glob(f"{case}.nii*")
    return simulate(read(path), 2, FACTOR)


def _scored(arguments: argparse.Namespace) -> list[tuple[Volume, Volume, float]]:
    """Of every scan the truth, the thick scan, and the decibels of projected cubic."""
    pairs = [_pair(arguments, path.name.split(".")[0]) for path in sorted((arguments.data / "iso_dev").glob("*.nii*"))]
    cubic = find_model("cubic")
    return [(truth, thick, _decibels(truth, thick, cubic)) for truth, thick in pairs]


def _gain(network: Any, truth: Volume, thick: Volume, reference: float) -> float:
    """Of a network in training, over projected cubic."""
    import torch

    def run(slices: np.ndarray, geometry: np.ndarray, position: np.ndarray) -> np.ndarray:
        height, width = slices.shape[1:]
        even = np.pad(slices, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # quick; the table is made by the exported files
            answer = network(*(torch.from_numpy(a) for a in (even[None], geometry, position)))
        return np.asarray(answer[0, :, :height, :width].float().numpy())

    model = SlabModel("in training", "cubic", residual=run, context=network.context)
    return _decibels(truth, thick, model) - reference


def table(records: Sequence[Record]) -> str:
    """Markdown: gain over projected cubic, mean of the scans and each."""
    cases = list(dict.fromkeys(record["case"] for record in records))
    rows = ["| start | adaptation | mean gain dB | " + " | ".join(cases) + " | start kept | mean gain dB, fused |"]
    rows.append("|---|---|--:|" + "--:|" * (len(cases) + 2))
    for start, how in dict.fromkeys((record["start"], record["adaptation"]) for record in records):
        mine = [record for record in records if (record["start"], record["adaptation"]) == (start, how)]
        each = " | ".join(f"{next(r['gain_db'] for r in mine if r['case'] == case):+.3f}" for case in cases)
        kept = [record["kept_start"] for record in mine if record["kept_start"] is not None]
        starts = f"{sum(kept)} of {len(kept)}" if kept else ""
        fused = f"{mean(r['fused_gain_db'] for r in mine):+.3f}" if mine[0]["fused_gain_db"] is not None else ""
        gain = f"{mean(r['gain_db'] for r in mine):+.3f}"
        rows.append(f"| {start} | {how} | {gain} | {each} | {starts} | {fused} |")
    return "\n".join(rows) + "\n"


def draw(arguments: argparse.Namespace) -> None:
    """curves.png: gain on `iso_dev` while the starts are trained, and held-out losses while they are adapted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    for path in sorted((arguments.output / "starts").glob("*.curve.json")):
        steps, gains = zip(*json.loads(path.read_text()), strict=True)
        if len(steps) > 1:
            left.plot(steps, gains, marker="o", markersize=3, label=path.name.split(".")[0])
    left.axhline(0, color="grey", linewidth=0.5)
    left.set(xlabel="steps", ylabel="gain over projected cubic, mean of iso_dev, dB", title="pre-training")
    left.legend()
    for path in sorted((arguments.output / "adapted").glob("* data-set.json")):
        looks = json.loads(path.read_text())["validation"]["adapt"]["records"]
        losses = [100 * (look["held_out"] / looks[0]["held_out"] - 1) for look in looks]
        right.plot([look["step"] for look in looks], losses, marker="o", markersize=3, label=path.name.split(" ")[0])
    right.set(xlabel="steps", ylabel="held-out loss, change in %", title="data-set adaptation")
    right.legend()
    figure.tight_layout()
    figure.savefig(arguments.output / "curves.png", dpi=110)


def score_real(start: str, how: str, scans: dict[str, Path], arguments: argparse.Namespace) -> Record:
    """What can be said without truth: the change of the loss of the part held out, and what the two knees share."""
    stacks = {name: read(scans[name]) for name in KNEES}
    agreements = {}
    for seen, other in (KNEES, KNEES[::-1]):
        model = find_model(_model_of(start, how, seen, "real", arguments))
        plan = make_plan(stacks[seen], Settings(profile="gaussian"), model)
        agreements[seen] = agreement(upsample(stacks[seen], plan, model).volume, stacks[other])
    files = {"none": [], "data-set": [f"{start} data-set.json"]}
    cards = [
        json.loads((arguments.output / "real" / name).read_text())
        for name in files.get(how, [f"{start} per-scan/{case}.json" for case in scans])
    ]
    losses = [card["held_out_loss"]["after"] / card["held_out_loss"]["before"] for card in cards]
    return {
        "start": start,
        "adaptation": how,
        "agreement": agreements,
        "held_out_change": [loss - 1 for loss in losses],
        "kept_start": [not card["adapted"] for card in cards],
    }


def agreement(thin: Volume, other: Volume) -> float:
    """Correlation of the fine detail of an answer with that of the acquired slices of another stack, 0 .. 1.

    The answer is sampled where the other's thin slices would be, averaged by its slice profile, and both are
    high-passed within the slices; only where the answer has a field of view.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    axis = int(np.argmax(other.spacing_mm))
    inside = [mm for i, mm in enumerate(other.spacing_mm) if i != axis]
    times = round(other.spacing_mm[axis] / inside[0])
    count = other.shape[axis]
    fine = (np.arange(count * times) - (times - 1) / 2) / times
    index = np.stack(
        np.meshgrid(*[fine if i == axis else np.arange(n) for i, n in enumerate(other.shape)], indexing="ij")
    )
    to_thin = np.linalg.inv(thin.affine) @ other.affine
    place = np.tensordot(to_thin[:3, :3], index, axes=1) + to_thin[:3, 3].reshape(3, 1, 1, 1)
    sampled = map_coordinates(thin.voxels.astype(np.float32), place, order=1, cval=np.nan)
    centres_vox = (times - 1) / 2 + times * np.arange(count)
    acquisition = Acquisition(centres_vox, count * times, float(times), "gaussian")
    answer = acquisition.forward(np.moveaxis(sampled, axis, 0))
    truth = np.moveaxis(other.voxels.astype(np.float32), axis, 0)
    seen = np.isfinite(answer) & foreground(truth)
    sigma = [0.0, *(DETAIL_MM / mm for mm in inside)]

    def detail(image: np.ndarray) -> np.ndarray:
        weight = gaussian_filter(seen.astype(np.float32), sigma)
        smooth = gaussian_filter(np.where(seen, image, 0), sigma) / np.maximum(weight, 1e-3)
        fine: np.ndarray = (image - smooth)[seen]
        return fine

    return float(np.corrcoef(detail(answer), detail(truth))[0, 1])


def real_table(records: Sequence[Record]) -> str:
    """Markdown: agreement of the fine detail, for each of the two stacks that a model was given, and losses."""
    heads = [f"{name} thin, against the other" for name in KNEES] + ["held-out loss, mean change %", "start kept"]
    rows = ["| start | adaptation | " + " | ".join(heads) + " |", "|---|---|" + "--:|" * len(heads)]
    for record in records:
        each = " | ".join(f"{record['agreement'][name]:.4f}" for name in KNEES)
        change, kept = record["held_out_change"], record["kept_start"]
        losses = f"{100 * mean(change):+.1f} | {sum(kept)} of {len(kept)}" if change else " | "
        rows.append(f"| {record['start']} | {record['adaptation']} | {each} | {losses} |")
    return "\n".join(rows) + "\n"


def _one_thread_each(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // arguments.jobs))


def _keep(path: Path, records: Sequence[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


_silent: Callable[[str], None] = lambda line: None  # noqa: E731


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with video, iso_train, iso_dev and thick")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800, help="of every training of a start")
    parser.add_argument("--adapt-steps", type=int, default=40, help="of every adaptation, for each scan")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
