"""Adapt a model to thick scans, without any thin truth: stage 3 of Wang et al. (ISBI 2024).

The scans teach themselves (`thinslice.training.self_supervision`). A part of them is held out. Only if the loss there
falls, and does so more than that of the slice direction may rise, is the adapted network kept; else the model file
holds the starting one, and its card says so.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.io.atomic import whole_or_not
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.networks.slab import SlabNet
from thinslice.settings import Profile
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit, save_whole
from thinslice.training.losses import projected_loss
from thinslice.training.model_outputs import (
    check_answer,
    check_model_name,
    find_adapted_models,
    find_start,
    name_models,
)
from thinslice.training.recipes import current_commit, describe_start
from thinslice.training.run_state import Unfinished, keep
from thinslice.training.self_supervision import (
    VOXELS,
    TargetScan,
    in_plane_batch_at,
    make_target_scan,
    self_supervised_batch_at,
    thicker_slices_batch_at,
)
from thinslice.training.usable_scans import UsableScan, find_usable_scans, one_line_reason

SCHEDULE = Schedule(
    minutes=10.0, rate=1e-4, muon_rate=2e-3, muon_decay=0.0, warm_up=10, ema=0.99, save_every=80, side_by_side=True
)
"""A fifth of Muon's rate, half of AdamW's, in the starting model's own recipe: at more it forgets first (LOG.md)."""

PATCHES, SIZE, SLABS = 3, 48, 4
"""Of a batch, as in the default recipe."""

WATCHED, MOST_WATCHED = 12, 24
"""Batches of either kind, always the same, whose mean losses are looked at: at least so many, two of every scan where
that is not more than so many."""

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How far the weights may go from the starting ones towards the adapted ones: all of the way is often too far."""

LEAST_GAIN = 0.002
"""The losses must fall by this share at least, or the starting model is kept."""

PATIENCE, NOT_BEFORE = 3, 0.4
"""The training ends after so many looks without a new best, but not within the first part of its time."""

NONE = "got no scan that can be learnt from; need thick slices; next: see the reason named for each"

PREPARING = 0.4
"""Share of the time after which no further scan is prepared for lessons."""

MOST_SCANS = 64
"""Scans that one model learns from at most: what is made of them lies in memory."""

WRITING_SECONDS = 4.0
"""Of the time that is given, what is left for writing and checking the model file."""


@dataclass(frozen=True)
class Job:
    """One model to be made: of which scans, where it goes, and what was asked for."""

    scans: list[UsableScan]
    answer: Path
    wish: dict[str, Any]


@dataclass(frozen=True)
class Adapted:
    """What came of one adaptation.

    Attributes:
        model: the file.
        scans: the names of those it was adapted to.
        adapted: False where the held-out loss did not fall and the file holds the starting model.
        held_out: that loss before and at its best, as shares of the intensity range.
        steps, minutes: of the training.
        new: False where the file was there already.
    """

    model: Path
    scans: tuple[str, ...]
    adapted: bool
    held_out: tuple[float, float]
    steps: int
    minutes: float
    new: bool = True


def adapt(
    paths: Sequence[Path],
    out: Path,
    start: str | Path = "default",
    minutes: float = 10.0,
    per_scan: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    spacing_mm: float | None = None,
    factor: float | None = None,
    thickness_mm: float | None = None,
    profile: Profile = "gaussian",
    steps: int | None = None,
    report: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
) -> list[Adapted]:
    """Adapt a model to thick scans; they may differ in spacing, size, contrast and orientation.

    What is unfinished lies in a folder beside the answer, NAME.adapting; called again with the same scans and the same
    start, it goes on from there.

    Args:
        paths: the scans. One that cannot be used is named and left out.
        out: the model file, NAME.onnx or NAME; with ``per_scan`` a folder NAME with a model file for each scan.
        start: model that the adaptation starts from: an embedded name or a file of the same network.
        minutes: of one adaptation, preparations included.
        per_scan: adapt to every scan by itself.
        resume: finished answers stay as they are, instead of being refused.
        overwrite: finished answers are replaced.
        spacing_mm, factor, thickness_mm, profile: of all scans, see `thinslice.plan.make_plan`; the lessons are of that
            factor.
        steps: length in steps instead of minutes, for experiments.
        report, complain: receive progress lines, and a line about every scan that is left out.

    Raises:
        InputRefused: no scan can be used.
        ModelRefused: the start is not a network of the default kind.
        OutputRefused: the answer exists already, or its name means something else to ``--model``.
    """
    begun = monotonic()
    out = out.with_suffix("") if out.suffix == ".onnx" else out
    with Unfinished(out.with_name(f"{out.name}.adapting") if out.name else out) as unfinished:
        resume = resume or unfinished.folder.exists()  # some of its models may be there already
        check_model_name(out, per_scan, resume or overwrite)
        file = find_start(start)
        network = SlabNet()
        load_weights(network, file)
        model = find_model(start)
        wish = {
            "start": model.sha256,
            "spacing_mm": spacing_mm,
            "factor": factor,
            "thickness_mm": thickness_mm,
            "profile": profile,
            "minutes": None if steps else minutes,
            "steps": steps,
        }
        usable = list(find_usable_scans(paths, model, wish, complain))
        if not usable:
            raise InputRefused(NONE)
        jobs = _jobs(usable, out, per_scan, wish)
        for job in jobs:
            check_answer(job.answer, file)
        there = [_what_is_there(job, unfinished, resume, overwrite) for job in jobs]
        done = []
        begun = monotonic() if per_scan else begun
        for job, (earlier, known) in zip(jobs, there, strict=True):
            if per_scan and len(jobs) > 1:
                report(f"{job.scans[0].label}:")
            if earlier is not None:
                report(f"{job.answer} is there already")
                unfinished.clear(job.answer)
                done.append(earlier)
                continue
            late = begun + 60 * PREPARING * minutes if steps is None and known is None else None
            learnt, skipped = _targets(job.scans, known["not_reached"] if known else [], model, late, complain)
            if not learnt:
                continue
            if known is None:
                unfinished.begin(job.answer, job.wish | {"not_reached": skipped})
            twin = SlabNet(**network.settings)
            twin.load_state_dict(network.state_dict())
            done.append(_one(twin, learnt, job, file, unfinished.work_on(job.answer), begun, report))
            unfinished.finish(job.answer)
            begun = monotonic()
        for other in unfinished.close():
            report(f"{other} holds the unfinished work of another command; next: repeat that, or delete it")
    if not done:
        raise InputRefused(NONE)
    return done


def _jobs(scans: Sequence[UsableScan], out: Path, per_scan: bool, wish: dict[str, Any]) -> list[Job]:
    """What is to be made: one model for all scans, or one for each."""
    if not per_scan:
        about = wish | {"scans": sorted(scan.fingerprint for scan in scans)}
        return [Job(list(scans), out.with_name(f"{out.name}.onnx"), about)]
    names = name_models([scan.path for scan in scans], [scan.fingerprint for scan in scans], find_adapted_models(out))
    return [
        Job([scan], out / f"{name}.onnx", wish | {"scans": [scan.fingerprint]})
        for scan, name in zip(scans, names, strict=True)
    ]


def _what_is_there(
    job: Job, unfinished: Unfinished, resume: bool, overwrite: bool
) -> tuple[Adapted | None, dict[str, Any] | None]:
    """The finished answer to a wish, or what is known of an unfinished one, or neither.

    Raises:
        OutputRefused: there is an answer, or work, of another wish, which may not be replaced.
    """
    made = unfinished.is_made(job.answer)
    earlier = _finished(job) if resume and (not overwrite or made) else None
    if earlier is not None and made:
        return earlier, None
    known = unfinished.known(job.answer, job.wish, overwrite)
    if known is not None:  # the answer may be there already, but was not noted as finished
        return None, known
    if earlier is None and job.answer.exists() and not overwrite:
        raise OutputRefused(
            f"{job.answer}: got a model of other scans, or of another start; need a free name to go on with; "
            "next: choose another, or replace it with --overwrite"
        )
    return earlier, None


def _one(
    network: SlabNet,
    learnt: Sequence[tuple[UsableScan, TargetScan]],
    job: Job,
    start: Path,
    work: Path,
    begun: float,
    report: Callable[[str], None],
) -> Adapted:
    """Adapt one network and write its model file; its time began at ``begun``."""
    scans, targets = [scan for scan, _ in learnt], [target for _, target in learnt]
    answer, wish = job.answer, job.wish
    around = network.context + 1
    seed = int(wish["scans"][0][:8], 16)
    answered = SlabNet(**network.settings)
    answered.load_state_dict(network.state_dict())
    watch = _Watch(network, targets, work, around, report)
    schedule = _schedule(work, wish, begun, watch)
    watch.schedule = schedule
    fit(
        network,
        lambda number: self_supervised_batch_at(number, seed, targets, PATCHES, SIZE, SLABS, around),
        projected_loss,
        work,
        schedule,
        resume=True,
        report=lambda line: None,
        watch=watch,
    )
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    before, best = watch.looks[0], watch.best()
    adapted = best["score"] < 1 - LEAST_GAIN
    if adapted:
        answered.load_state_dict(torch.load(watch.weights_of(best), weights_only=True))
    held_out = (before["held_out"], best["held_out"] if adapted else before["held_out"])
    known = read_card(start)
    card = {
        "name": answer.stem,
        "recipe": [{"name": "adapt", "learns": "TargetScan", "schedule": asdict(schedule)}],
        "commit": current_commit(),
        "data": known.get("data", []),
        "envelope": known["envelope"],
        "started_from": describe_start(start),
        "adapted": adapted,
        "adapted_to": [
            {"file": scan.path.name, "fingerprint": scan.fingerprint, "factor": scan.plan.factor} for scan in scans
        ],
        "asked_for": wish,
        "held_out_loss": {"before": held_out[0], "after": held_out[1]},
        "share": best["share"] if adapted else 0.0,
        "looks": watch.looks,
        "trained": {"adapt": {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}},
        "processes": f"1 x {network.entry.weight.device.type}",
    }
    export(answered, card, work / "model.onnx")  # what a kill leaves of it goes with the folder
    answer.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work / "model.onnx", answer)  # which holds its card too
    os.replace(work / "model.json", answer.with_suffix(".json"))
    return Adapted(answer, tuple(scan.label for scan in scans), adapted, held_out, state["step"], state["seconds"] / 60)


class _Watch:
    """Looks at the losses now and then, keeps the best weights, and says when to stop.

    Two losses count alike, relative to the starting model's: the one of directions within slices, and the one of
    the slice direction itself, at the scale at which its truth is known, both on what is held out. Together they may
    not rise for any scan that is looked at. The weights looked at lie between the starting and the adapted ones
    (Wortsman et al., CVPR 2022): far out, the directions within the slices still gain while the slice direction loses
    (LOG.md).
    """

    def __init__(
        self,
        start: SlabNet,
        targets: list[TargetScan],
        work: Path,
        around: int,
        report: Callable[[str], None],
    ) -> None:
        self.network, self.work, self.report = start, work, report
        self.schedule = SCHEDULE
        self.start = {name: weight.clone() for name, weight in start.state_dict().items()}
        about = (PATCHES, SIZE, SLABS, around)
        count = min(max(WATCHED, 2 * len(targets)), MOST_WATCHED)
        turns: dict[int, list[int]] = {}
        for number in range(count):
            turns.setdefault(number * len(targets) // count, []).append(number)
        self.batches = {
            kind: [[batch_at(n, 1, [targets[i]], *about, held_out=True) for n in ns] for i, ns in turns.items()]
            for kind, batch_at in (("held_out", in_plane_batch_at), ("thicker", thicker_slices_batch_at))
        }
        self.looks: list[dict[str, Any]] = []
        self.begun = monotonic()
        if (work / "looks.jsonl").exists():
            self.looks = [json.loads(line) for line in (work / "looks.jsonl").read_text().splitlines()]
            self.begun -= self.looks[-1]["seconds"]

    def __call__(self, step: int, average: SlabNet) -> bool:
        """Record a look; True where nothing more is to be hoped for."""
        if step == 0 and self.looks:
            return False  # the first look was taken before the clock began
        self.looks = [look for look in self.looks if look["step"] < step]  # after a resumption the last comes again
        seen = [self._look(step, share, average) for share in (SHARES if step else (0.0,))]
        look, weights = min(seen, key=lambda pair: pair[0]["score"])
        self.looks.append(look)
        if self.best() is look:
            save_whole(weights, self.weights_of(look))
        with whole_or_not(self.work / "looks.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(look) + "\n" for look in self.looks))
        change, score = (100 * (value - 1) for value in (look["held_out"] / self.looks[0]["held_out"], look["score"]))
        self.report(f"  step {step}: held-out loss {change:+.1f} %, with the slice direction {score:+.1f} %")
        since = len(self.looks) - 1 - self.looks.index(self.best())
        return since >= PATIENCE and self._share_done(step) > NOT_BEFORE

    def _look(self, step: int, share: float, average: SlabNet) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The losses of weights so far from the start."""
        ends = {name: weight.cpu() for name, weight in average.state_dict().items()}
        weights = {name: torch.lerp(self.start[name], weight, share) for name, weight in ends.items()}
        mixed = SlabNet(**average.settings)
        mixed.load_state_dict(weights)
        mixed.to(average.entry.weight.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's stub
        each = {kind: [self._loss(mixed, batches) for batches in scans] for kind, scans in self.batches.items()}
        means = {kind: sum(losses) / len(losses) for kind, losses in each.items()}
        first: dict[str, Any] = self.looks[0] if self.looks else {"each": each, **means}
        score = sum(means[kind] / first[kind] for kind in means) / len(means)
        ratios = [[loss / was for loss, was in zip(each[kind], first["each"][kind], strict=True)] for kind in each]
        worst = max(sum(of_one) / len(of_one) for of_one in zip(*ratios, strict=True))
        seconds = round(monotonic() - self.begun, 1)
        found = {
            "step": step,
            "share": share,
            **means,
            "score": score,
            "worst": worst,
            "seconds": seconds,
            "each": each,
        }
        return found, weights

    def weights_of(self, look: dict[str, Any]) -> Path:
        """Where the weights of a look lie that was the best when it was taken."""
        return self.work / f"step-{look['step']}.pt"

    def best(self) -> dict[str, Any]:
        """The look with the smallest losses, of those whose held-out loss fell while no scan lost; else the first."""
        fell = [look for look in self.looks if look["held_out"] < self.looks[0]["held_out"] and look["worst"] <= 1]
        return min(fell, key=lambda look: look["score"], default=self.looks[0])

    def _share_done(self, step: int) -> float:
        if self.schedule.minutes is None:
            return step / self.schedule.steps
        return (monotonic() - self.begun) / 60 / self.schedule.minutes

    @staticmethod
    def _loss(network: SlabNet, batches: Sequence[Any]) -> float:
        device = network.entry.weight.device

        def one(batch: Any) -> float:
            with torch.no_grad():
                return projected_loss(network, batch, device).item()

        with ThreadPoolExecutor(max_workers=SCHEDULE.batches if SCHEDULE.side_by_side else 1) as workers:
            return sum(workers.map(one, batches)) / len(batches)


def _target(scan: UsableScan, model: Model, voxels: int, complain: Callable[[str], None]) -> TargetScan | None:
    try:
        return make_target_scan(scan.path.name, scan.volume, scan.plan, model, voxels)
    except (ThinsliceError, MemoryError) as refusal:
        complain(f"{scan.label}: left out: {one_line_reason(scan.path, refusal)}")
        return None


def _targets(
    scans: Sequence[UsableScan],
    not_reached: Sequence[str],
    model: Model,
    late: float | None,
    complain: Callable[[str], None],
) -> tuple[list[tuple[UsableScan, TargetScan]], list[str]]:
    """What can be learnt from each scan, and the fingerprints of those whose turn did not come before it was late.

    Scans that there is nothing to learn from are named and left out, and so are those that were not reached, and those
    beyond `MOST_SCANS`.
    """
    made: list[tuple[UsableScan, TargetScan]] = []
    skipped = list(not_reached)
    for scan in scans:
        too_late = made and late is not None and monotonic() > late
        if (too_late or len(made) == MOST_SCANS) and scan.fingerprint not in skipped:
            skipped.append(scan.fingerprint)
        if scan.fingerprint in skipped:
            complain(
                f"{scan.label}: left out: got {len(made)} others before it, and no time or room for more; need fewer; "
                f"next: nothing, if these are enough, or a larger --minutes (at most {MOST_SCANS} scans)"
            )
        elif (target := _target(scan, model, VOXELS // len(scans), complain)) is not None:
            made.append((scan, target))
    return made, skipped


def _finished(job: Job) -> Adapted | None:
    """What a model file says of itself, if it is the answer to the same wish, whatever its length."""
    if not job.answer.exists():
        return None
    card = read_card(job.answer)
    asked_for = card.get("asked_for", {})
    if any(asked_for.get(key) != job.wish[key] for key in job.wish.keys() - {"minutes", "steps"}):
        return None
    loss, trained = card["held_out_loss"], card["trained"]["adapt"]
    names = tuple(scan["file"] for scan in card["adapted_to"])
    losses = (loss["before"], loss["after"])
    return Adapted(job.answer, names, card["adapted"], losses, trained["steps"], trained["minutes"], new=False)


def _schedule(work: Path, wish: dict[str, Any], begun: float, watch: _Watch) -> Schedule:
    """How long is trained: what was kept when that began, or what is left of the time now, after a first look."""
    kept = work / "schedule.json"
    if kept.exists():
        return Schedule(**json.loads(kept.read_text()))
    if wish["steps"] is not None:
        schedule = replace(SCHEDULE, minutes=None, steps=wish["steps"])
    else:
        first = monotonic()
        watch(0, watch.network)
        last_look = len(SHARES) * (monotonic() - first)
        schedule = _left(wish["minutes"], monotonic() - begun + last_look + WRITING_SECONDS)
    keep(kept, asdict(schedule))
    return schedule


def _left(minutes: float, spent_seconds: float) -> Schedule:
    """The rest of the time, but a tenth of it at least."""
    return replace(SCHEDULE, minutes=max(minutes - spent_seconds / 60, 0.1 * minutes))
