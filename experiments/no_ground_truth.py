"""The reasoning of Xuan et al. (Pattern Recognition 2021), repeated: what may a network learn from without thin scans?

    python experiments/no_ground_truth.py --data DATA -o no-ground-truth [--steps 800] [--coder-steps 4000] [--jobs 2]

Simulated: every volume of `iso_train` is made thick (x4, Gaussian, touching) along each of its axes. From these thick
slices alone an auto-encoder learns, plain and then introspective. The same network then learns, for as many steps, from

    iv            the method: volumes synthesised by the introspective auto-encoder, made thick
    iv-bare       the same from the decoder's answers alone, without the detail that codes do not hold
    iv-plain      as iv-bare, by the plain auto-encoder
    iv-all        as iv-bare, with as many slices as the thin scan would have (otherwise half)
    iii, iii-all  volumes that cubic interpolation made, as many slices, made thick
    ...-2         the same as iv, iv-bare and iii with other first weights and other batches
    iv-default    as iv-bare, from the embedded default weights at half the rates; beside it those weights as they are
    ii            pairs of a real thick scan and the volume synthesised from it, which the paper warns against
    v             the thin truth, made thick: the supervised upper bound
    vi            as iv-bare, with a box of half the thickness for a slice profile, which is wrong

All are scored on the four scans of `iso_dev`, of other people, made thick likewise; their truth is used for nothing
else. Scored too: i and i-plain, the auto-encoders' own interpolation of these scans. Every answer is projected onto the
acquired slices.

Real: an auto-encoder, and networks by `iv`, `iv-bare`, `iii`, `ii` and `vi`, learn from the six scans of `thick`, where
no truth is known: brains, knees, a prostate. Two orthogonal stacks of one knee are made thin by each, and compared with
each other's in-plane detail as in `adaptation.py`; a knee and a brain are drawn.

What is there already is left alone, so a killed run goes on by the same command. It writes weights, models,
``results.jsonl``, ``real.jsonl``, a table of each, and pictures. With a GPU, all is trained there first; the rest needs
none.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from adaptation import KNEES, agreement

from thinslice.compute.upsample import upsample
from thinslice.errors import ThinsliceError
from thinslice.evaluation.benchmark import simulate
from thinslice.evaluation.metrics import data_range, foreground, psnr, ssim
from thinslice.io.nifti import read
from thinslice.models.interpolations import interpolation
from thinslice.models.registry import EMBEDDED, find_model
from thinslice.physics.acquisition import Acquisition
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interpolation import cubic_matrix
from thinslice.physics.projection import correction_matrix, project, scale_damping
from thinslice.plan import make_plan
from thinslice.reports.picture import Picture, draw_side_by_side, find_picture_centre, reslice_planes, write_picture
from thinslice.settings import Settings
from thinslice.volume import Volume, fingerprint

FACTOR = 4.0
CODERS = ("plain", "introspective")
ARMS = (
    "iv",
    "iv-2",
    "iv-bare",
    "iv-bare-2",
    "iv-plain",
    "iv-all",
    "iv-default",
    "iii",
    "iii-2",
    "iii-all",
    "ii",
    "v",
    "vi",
)
REAL_ARMS = ("iv", "iv-bare", "iii", "ii", "vi")
SLABS, SIZE, PATCHES = 4, 48, 3
SHOWN, SHOWN_REAL = "brain_t1gd_mrgd", ("knee_pdfs_sag", "brain_t2w_openms_l04_thick")

Record = dict[str, Any]


def main() -> int:
    arguments = _arguments()
    _keep_request(arguments)
    with _workers(arguments) as pool:
        _all(pool, train_coders, [(where, arguments) for where in ("simulated", "real")])
        arms = [("simulated", arm) for arm in ARMS] + [("real", arm) for arm in REAL_ARMS]
        _all(pool, train_arm, [(*arm, arguments) for arm in arms])
    if arguments.train_only:
        return 0
    for where, arm in arms:
        export_arm(where, arm, arguments)
    with _workers(arguments) as pool:
        paths = sorted((arguments.data / "iso_dev").glob("*.nii*"))
        records = [record for found in _all(pool, score, [(path, arguments) for path in paths]) for record in found]
        compared = ("cubic", "i", "i-plain", *REAL_ARMS)
        real = _all(pool, score_real, [(arm, arguments) for arm in compared])
        _all(pool, draw_real, [(case, arguments) for case in SHOWN_REAL])
    for name, rows, text in (("results", records, table(records)), ("real", real, real_table(real))):
        (arguments.output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (arguments.output / f"{name}.md").write_text(text)
        print(text)
    return 0


def _workers(arguments: argparse.Namespace) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(arguments.jobs, get_context("spawn"), max_tasks_per_child=1)


def _all(pool: ProcessPoolExecutor, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [job.result() for job in [pool.submit(work, *request) for request in calls]]


def _keep_request(arguments: argparse.Namespace) -> None:
    """What is there already was made by the same request."""
    request = {"data": str(arguments.data), "steps": arguments.steps, "coder_steps": arguments.coder_steps}
    file = arguments.output / "request.json"
    if file.exists() and json.loads(file.read_text()) != request:
        sys.exit(f"got {file}, of another request; need the same; next: another -o")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(request))


# ---- what is learnt from


def targets(where: str, data: Path) -> tuple[list[Any], list[np.ndarray]]:
    """The slices of the thick scans, and of simulated ones the thin truth [slices, h, w], which only `v` may see."""
    from thinslice.training.slices import make_stack
    from thinslice.training.usable_scans import UsableScan
    from thinslice.training.volumes import normalise

    stacks, truths = [], []
    for path in sorted((data / ("thick" if where == "real" else "iso_train")).glob("*.nii*")):
        volume = read(path)
        pairs = [(None, volume)] if where == "real" else [simulate(volume, axis, FACTOR) for axis in range(3)]
        for truth, thick in pairs:
            try:
                request = {} if where == "real" else {"factor": FACTOR, "thickness_mm": thick.thickness_mm}
                plan = make_plan(thick, Settings(profile="gaussian", **request), interpolation("cubic"))
                stacks.append(make_stack(UsableScan(path.name, path, thick, plan, fingerprint(thick))))
            except ThinsliceError as refusal:  # crops that are too small
                print(f"{path.name}: left out: {refusal}")
                continue
            if truth is not None:
                truths.append(np.moveaxis(normalise(truth.voxels), plan.axis, 0).astype(np.float16))
    return stacks, truths


def train_coders(where: str, arguments: argparse.Namespace) -> None:
    """The auto-encoder of slices, after its plain and after its introspective stage."""
    import torch

    from thinslice.training.fit import save_whole
    from thinslice.training.recipes import no_ground_truth
    from thinslice.training.run_state import RunFolder
    from thinslice.training.runner import run_stages, share_length
    from thinslice.training.stages import Inputs

    torch.set_num_threads(max(1, torch.get_num_threads() // min(2, arguments.jobs)))
    out = arguments.output / where
    if all((out / f"{coder}.pt").exists() for coder in CODERS):
        return
    stacks, _ = targets(where, arguments.data)
    stages = share_length(no_ground_truth.stages()[:2], None, arguments.coder_steps)
    for coder, count in zip(CODERS, (1, 2), strict=True):
        done = run_stages(stages[:count], Inputs(scans=stacks, validation=stacks), RunFolder(out / "coders"), {})
        vae = done.networks[stages[count - 1].name]
        found = {name: check.validation() for name, check in done.checks.items()}
        (out / f"{coder}.json").write_text(json.dumps(found))  # whether it diverged, and what was gone back to
        state = {name: weight.cpu() for name, weight in vae.state_dict().items()}
        save_whole(state, out / f"{coder}.pt")


def coder_of(where: str, coder: str, arguments: argparse.Namespace) -> Any:
    import torch

    from thinslice.training.recipes.no_ground_truth import ENCODER

    vae = ENCODER.build()
    vae.load_state_dict(torch.load(arguments.output / where / f"{coder}.pt", weights_only=True))
    return vae.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def corpus_of(where: str, arm: str, arguments: argparse.Namespace) -> list[Any]:
    """What an arm but `ii` learns from: volumes, each with the acquisition that it is made thick by."""
    from thinslice.training.synthesis import Synthetic, slices_per_acquired_slice, synthesise, synthetic_slice_positions
    from thinslice.training.volumes import TrainingVolume

    stacks, truths = targets(where, arguments.data)
    coder = None if arm == "v" or arm.startswith("iii") else "plain" if arm == "iv-plain" else "introspective"
    vae = coder_of(where, coder, arguments) if coder else None
    corpus = []
    for index, stack in enumerate(stacks):
        plan, n = stack.plan, len(stack.slices)
        rate = plan.factor if arm.endswith("-all") else slices_per_acquired_slice(plan.factor)
        if arm == "v":
            voxels = truths[index]
        elif vae is None:
            weights = cubic_matrix(synthetic_slice_positions(n, rate), n).astype(np.float32)
            voxels = np.tensordot(weights, stack.slices.astype(np.float32), axes=1).astype(np.float16)
        else:
            voxels = synthesise(vae, stack, rate, detail=arm in ("iv", "iv-2"))
        about = (plan.factor, plan.thickness_over_spacing, plan.profile)
        about = (plan.factor, 0.5 * plan.thickness_over_spacing, "box") if arm == "vi" else about
        corpus.append(Synthetic(TrainingVolume(stack.name, voxels, (0,), voxels.size**0.5), *about))
    return corpus


def paired_batch_at(step: int, pairs: Sequence[tuple[Any, np.ndarray]], context: int) -> Any:
    """Real thick slices and the volume that was synthesised from them: what the product has no way to do."""
    from thinslice.training.batches import BLANK, THICK_SCAN_RANGES, TRIES, Batch, geometry_of_block

    rng = np.random.default_rng([0, step])
    weights = np.array([volume.size**0.5 for _, volume in pairs])
    stack, volume = pairs[int(rng.choice(len(pairs), p=weights / weights.sum()))]
    factor = len(volume) / len(stack.slices)
    geometry = geometry_of_block(factor, 1.0, "gaussian", (factor - 1) / 2, SLABS, context)
    inner = np.concatenate(geometry.thin_positions)
    thick, truth = [], []
    for _ in range(PATCHES):
        for _ in range(TRIES):
            first = int(rng.integers(0, max(len(stack.slices) - SLABS, 0) + 1))
            top, left = (int(rng.integers(0, side - SIZE + 1)) for side in stack.slices.shape[1:])
            if stack.slices[first + SLABS // 2, top + SIZE // 2, left + SIZE // 2] > BLANK:
                break
        seen = np.clip(first + np.arange(-context, SLABS + context), 0, len(stack.slices) - 1)
        thin = np.clip(round(first * factor) + inner, 0, len(volume) - 1)
        at = (slice(top, top + SIZE), slice(left, left + SIZE))
        gain = float(np.exp(rng.uniform(np.log(0.5), np.log(1.6)))) * (-1.0 if rng.random() < 0.1 else 1.0)
        offset = float(rng.uniform(-0.15, 0.15)) + (1.0 if gain < 0 else 0.0)
        flips = tuple(slice(None, None, int(rng.choice((-1, 1)))) for _ in range(3))
        order = (0, 2, 1) if rng.random() < 0.5 else (0, 1, 2)
        noise = rng.uniform(*THICK_SCAN_RANGES.noise) if rng.random() < THICK_SCAN_RANGES.noisy else 0.0
        for images, block in ((thick, stack.slices[(seen, *at)]), (truth, volume[(thin, *at)])):
            images.append(block.astype(np.float32)[flips].transpose(order) * np.float32(gain) + np.float32(offset))
        thick[-1] += np.float32(noise) * rng.standard_normal(thick[-1].shape, np.float32)
    wide = np.ascontiguousarray(np.stack(thick), np.float32)
    position = (inner - geometry.thick_centres[0]) / factor
    cubic = np.einsum("pt,bthw->bphw", cubic_matrix(position, wide.shape[1]).astype(np.float32), wide)
    own = geometry.thick_centres[context : len(geometry.thick_centres) - context]
    matrix = Acquisition(own - inner[0], len(inner), factor, "gaussian").matrix()
    correction = correction_matrix(matrix, factor, scale_damping(matrix, factor))
    arrays = (wide, cubic, np.stack(truth), matrix.astype(np.float32), correction.astype(np.float32))
    return Batch(geometry, *arrays)


# ---- training


def train_arm(where: str, arm: str, arguments: argparse.Namespace) -> None:
    """One network, from scratch; its averaged weights go to ``WHERE/ARM.pt``."""
    import torch

    from thinslice.networks.registry import Architecture
    from thinslice.training.export import load_weights
    from thinslice.training.fit import Schedule, fit, save_whole
    from thinslice.training.objectives import SyntheticSlabObjective
    from thinslice.training.synthesis import synthesise

    torch.set_num_threads(max(1, torch.get_num_threads() // arguments.jobs))
    out = arguments.output / where
    if (out / f"{arm}.pt").exists():
        return
    objective = SyntheticSlabObjective(patches=PATCHES, size=SIZE, slabs=SLABS)
    seed = 1 if arm.endswith("-2") else 0
    torch.manual_seed(seed)
    network = Architecture().build()
    batch_at: Callable[[int], Any]
    if arm == "ii":
        stacks, _ = targets(where, arguments.data)
        vae = coder_of(where, "introspective", arguments)
        pairs = [(stack, synthesise(vae, stack, stack.plan.factor, detail=False)) for stack in stacks]
        batch_at = lambda number: paired_batch_at(number, pairs, network.context + 1)  # noqa: E731
    else:
        corpus = corpus_of(where, arm, arguments)
        batch_at = objective.batches(corpus, seed, network)
    schedule = Schedule(steps=arguments.steps, warm_up=max(1, min(100, arguments.steps // 4)), ema=0.99)
    if arm == "iv-default":
        load_weights(network, EMBEDDED / "default.onnx")
        schedule = schedule.gentle()
    network = fit(network, batch_at, objective.loss, out / arm, schedule, resume=True, report=_silent)
    save_whole({name: weight.cpu() for name, weight in network.state_dict().items()}, out / f"{arm}.pt")
    print(f"{where} {arm}: trained", flush=True)


def export_arm(where: str, arm: str, arguments: argparse.Namespace) -> None:
    import torch

    from thinslice.networks.registry import Architecture
    from thinslice.training.export import export

    out = arguments.output / where
    network = Architecture().build()
    network.load_state_dict(torch.load(out / f"{arm}.pt", weights_only=True))
    envelope = {"factor": (1.4, 10.5), "thickness_over_spacing": (0.55, 1.35), "profiles": ["gaussian", "box"]}
    export(network, {"name": arm, "envelope": envelope}, out / f"{arm}.onnx")


# ---- scores


def score(path: Path, arguments: argparse.Namespace) -> list[Record]:
    """One scan by cubic, the auto-encoders' own interpolation and every network, all projected."""
    truth, thick = simulate(read(path), 2, FACTOR)
    mask, span = foreground(truth.voxels), data_range(truth.voxels)
    found = {name: _answer(thick, name) for name in ("cubic", "default")}
    for name, coder in (("i", "introspective"), ("i-plain", "plain")):
        found[name] = (own_answer("simulated", thick, coder, arguments).voxels, 0.0)
    for arm in ARMS:
        found[arm] = _answer(thick, str(arguments.output / "simulated" / f"{arm}.onnx"))
    case = path.name.split(".")[0]
    if case == SHOWN:
        shown = [(name, replace(truth, voxels=found[name][0]), False) for name in ("cubic", "i", "iii", "iv", "v")]
        draw([("acquired", thick, True), *shown, ("truth", truth, False)], thick, arguments.output / "simulated.png")
    cubic = psnr(found["cubic"][0], truth.voxels, span, mask)
    records = []
    for arm, (answer, guarded) in found.items():
        decibel = psnr(answer, truth.voxels, span, mask)
        scores = {"psnr_db": decibel, "gain_db": decibel - cubic, "ssim": ssim(answer, truth.voxels, span, mask)}
        records.append({"case": case, "arm": arm, "guard": guarded, **scores})
    return records


def _answer(thick: Volume, name: str) -> tuple[np.ndarray, float]:
    """A model's answer, and the share of its cells that the guard took back to interpolation."""
    model = find_model(name)
    settings = Settings(factor=FACTOR, thickness_mm=thick.thickness_mm, profile="gaussian")
    plan = make_plan(thick, settings, model)
    answer = upsample(thick, plan, model)
    return answer.volume.voxels, answer.guard.suspect / max(answer.guard.cells, 1)


def own_answer(where: str, thick: Volume, coder: str, arguments: argparse.Namespace) -> Volume:
    """The auto-encoder's own interpolation of a scan, projected."""
    from thinslice.training.slices import make_stack
    from thinslice.training.synthesis import synthesise
    from thinslice.training.usable_scans import UsableScan

    settings = Settings(factor=FACTOR if where == "simulated" else None, profile="gaussian")
    plan = make_plan(thick, settings, interpolation("cubic"))
    stack = make_stack(UsableScan("", Path("scan.nii.gz"), thick, plan, ""))
    low, high = intensity_range(thick.voxels)
    thin = synthesise(coder_of(where, coder, arguments), stack, plan.factor, detail=False).astype(np.float32)
    acquired = np.moveaxis(thick.voxels, plan.axis, 0).astype(np.float32)
    answer = project(thin * (high - low) + low, acquired, plan.acquisition().matrix(), plan.factor)
    return Volume(np.moveaxis(answer, 0, plan.axis), np.array(plan.affine_thin))


def score_real(arm: str, arguments: argparse.Namespace) -> Record:
    """What two orthogonal stacks of one knee share; each was made thin by what learnt from both."""
    stacks = {name: _real(name, arguments) for name in KNEES}
    found = {}
    for seen, other in (KNEES, KNEES[::-1]):
        found[seen] = agreement(_real_answer(stacks[seen], arm, arguments), stacks[other])
    return {"arm": arm, "agreement": found}


def _real(name: str, arguments: argparse.Namespace) -> Volume:
    return read(next((arguments.data / "thick").glob(f"{name}.nii*")))


def _real_answer(thick: Volume, arm: str, arguments: argparse.Namespace) -> Volume:
    if arm in ("i", "i-plain"):
        return own_answer("real", thick, "introspective" if arm == "i" else "plain", arguments)
    model = find_model("cubic" if arm == "cubic" else str(arguments.output / "real" / f"{arm}.onnx"))
    return upsample(thick, make_plan(thick, Settings(profile="gaussian"), model), model).volume


def draw_real(case: str, arguments: argparse.Namespace) -> None:
    """A real scan, and its thin slices by several arms."""
    thick = _real(case, arguments)
    answers = {name: _real_answer(thick, name, arguments) for name in ("cubic", "i", "iii", "iv")}
    columns = [("acquired", thick, True), *((name, volume, False) for name, volume in answers.items())]
    draw(columns, thick, arguments.output / f"{case}.png")


def table(records: Sequence[Record]) -> str:
    """Markdown: gain over projected cubic, mean of the scans and each."""
    cases = list(dict.fromkeys(record["case"] for record in records))
    rows = ["| arm | PSNR dB | SSIM | mean gain dB | " + " | ".join(cases) + " | guard % |"]
    rows.append("|---|" + "--:|" * (len(cases) + 4))
    for arm in dict.fromkeys(record["arm"] for record in records):
        mine = [record for record in records if record["arm"] == arm]
        each = " | ".join(f"{next(r['gain_db'] for r in mine if r['case'] == case):+.3f}" for case in cases)
        means = [mean(record[key] for record in mine) for key in ("psnr_db", "ssim", "gain_db", "guard")]
        rows.append(f"| {arm} | {means[0]:.2f} | {means[1]:.4f} | {means[2]:+.3f} | {each} | {100 * means[3]:.1f} |")
    return "\n".join(rows) + "\n"


def real_table(records: Sequence[Record]) -> str:
    """Markdown: agreement of the fine detail, for each of the two stacks that a model was given."""
    heads = [f"{name} thin, against the other" for name in KNEES]
    rows = ["| learnt from | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    rows += [f"| {r['arm']} | " + " | ".join(f"{r['agreement'][name]:.4f}" for name in KNEES) + " |" for r in records]
    return "\n".join(rows) + "\n"


def draw(columns: Sequence[tuple[str, Volume, bool]], thick: Volume, path: Path) -> None:
    """Scans over one field of view in both planes across the slices, in the thick one's window; True: in steps."""
    axis, window, centre = int(np.argmax(thick.spacing_mm)), intensity_range(thick.voxels), find_picture_centre(thick)
    planes = [reslice_planes(volume, axis, centre) for _, volume, _ in columns]
    rows = [
        [Picture(text, pair[row], window, steps) for (text, _, steps), pair in zip(columns, planes, strict=True)]
        for row in range(2)
    ]
    write_picture(draw_side_by_side(rows), path)


_silent: Callable[[str], None] = lambda line: None  # noqa: E731


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with iso_train, iso_dev and thick")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800, help="of every network")
    parser.add_argument("--coder-steps", type=int, default=6000, help="of the auto-encoder, both stages together")
    parser.add_argument("--jobs", type=int, default=2, help="processes beside each other")
    parser.add_argument("--train-only", action="store_true", help="stop before anything is scored")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
