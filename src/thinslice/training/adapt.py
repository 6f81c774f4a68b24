"""Adapt a model to thick scans, without any thin truth: stage 3 of Wang et al. (ISBI 2024).

The scans teach themselves (`thinslice.training.targets`). A part of them is held out. Only if the loss there
falls, and does so more than that of the slice direction may rise, is the adapted network kept; else the model file
holds the starting one, and its card says so.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from thinslice.cases import told_apart
from thinslice.errors import InputRefused, ModelRefused, OutputRefused, ThinsliceError
from thinslice.files import whole_or_not
from thinslice.interpolate import INTERPOLATIONS
from thinslice.networks.slab import SlabNet
from thinslice.nifti import read
from thinslice.plan import Plan, make_plan
from thinslice.profile import Profile
from thinslice.runtime import Model, load_model
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit
from thinslice.training.losses import projected_loss
from thinslice.training.recipes import lineage, this_commit
from thinslice.training.targets import (
    VOXELS,
    Target,
    lesson_at,
    make_target,
    target_batch_at,
    thicker_batch_at,
)
from thinslice.training.unfinished import Unfinished
from thinslice.volume import Volume, fingerprint
from thinslice.weights import EMBEDDED, embedded_names, planes_files

SCHEDULE = Schedule(
    minutes=10.0, rate=1e-4, muon_rate=2e-3, muon_decay=0.0, warm_up=10, ema=0.99, save_every=80, side_by_side=True
)
"""A fifth of the rates that the starting model was trained with: at more it forgets first (LOG.md)."""

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

CLOSING_SECONDS = 15.0
"""Of the time that is given, what the last look, and writing and checking the model file, take at most."""


@dataclass(frozen=True)
class Scan:
    """A thick scan that can be learnt from, and what will be done to it."""

    label: str
    path: Path
    volume: Volume
    plan: Plan
    fingerprint: str


@dataclass(frozen=True)
class Adapted:
    """What came of one adaptation.

    Attributes:
        model: the file.
        scans: the names of those it was adapted to.
        adapted: False where the held-out loss did not fall and the file holds the starting model.
        held_out: that loss before and at its best, as shares of the intensity range.
        steps, minutes: of the training.
    """

    model: Path
    scans: tuple[str, ...]
    adapted: bool
    held_out: tuple[float, float]
    steps: int
    minutes: float


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
    """Adapt a model to thick scans (NIfTI files); they may differ in spacing, size, contrast and orientation.

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
    if not out.name:
        raise OutputRefused(f"got -o {out}; need a name for the model; next: choose one, such as my-model")
    unfinished = Unfinished(out.with_name(f"{out.name}.adapting"))
    resume = resume or unfinished.folder.exists()  # some of its models may be there already
    _check_name(out, per_scan, resume or overwrite)
    file = _file_of(start)
    network = SlabNet()
    load_weights(network, file)
    model = load_model(file, name=str(start) if str(start) in embedded_names() else None)
    wished = {"spacing_mm": spacing_mm, "factor": factor, "thickness_mm": thickness_mm, "profile": profile}
    labels = told_apart(paths)
    usable = [scan for path in paths if (scan := _usable(path, labels[path], model, wished, complain)) is not None]
    if not usable:
        raise InputRefused(NONE)
    groups = [[scan] for scan in usable] if per_scan else [usable]
    answers = [out / f"{name}.onnx" for name in _names(usable)] if per_scan else [out.with_name(f"{out.name}.onnx")]
    wishes = [
        {
            "scans": sorted(scan.fingerprint for scan in group),
            "start": model.sha256,
            **wished,
            "minutes": None if steps else minutes,
            "steps": steps,
        }
        for group in groups
    ]
    plans = [_what_is_there(*pair, unfinished, resume, overwrite) for pair in zip(answers, wishes, strict=True)]
    done = []
    for group, answer, wish, (earlier, known) in zip(groups, answers, wishes, plans, strict=True):
        if per_scan and len(groups) > 1:
            report(f"{group[0].label}:")
        if earlier is not None:
            report(f"{answer} is there already")
            unfinished.clear(answer)
            done.append(earlier)
            continue
        late = begun + 60 * PREPARING * minutes if steps is None and known is None else None
        learnt, skipped = _targets(group, known["not_reached"] if known else [], model, late, complain)
        if not learnt:
            continue
        if known is None:
            length = replace(SCHEDULE, minutes=None, steps=steps) if steps else _left(minutes, monotonic() - begun)
            unfinished.begin(answer, wish | {"schedule": asdict(length), "not_reached": skipped})
        else:
            length = Schedule(**known["schedule"])
        twin = SlabNet(**network.settings)
        twin.load_state_dict(network.state_dict())
        targets, scans = [target for _, target in learnt], [scan for scan, _ in learnt]
        done.append(_one(twin, targets, scans, file, answer, unfinished.work_on(answer), length, wish, report))
        unfinished.finish(answer)
        begun = monotonic()
    for other in unfinished.close():
        report(f"{other} holds the unfinished work of another command; next: repeat that, or delete it")
    if not done:
        raise InputRefused(NONE)
    return done


def _what_is_there(
    answer: Path, wish: dict[str, Any], unfinished: Unfinished, resume: bool, overwrite: bool
) -> tuple[Adapted | None, dict[str, Any] | None]:
    """The finished answer to a wish, or what is known of an unfinished one, or neither.

    Raises:
        OutputRefused: there is an answer, or work, of another wish, which may not be replaced.
    """
    earlier = _finished(answer, wish) if resume and (not overwrite or unfinished.is_made(answer)) else None
    if earlier is not None and unfinished.is_made(answer):
        return earlier, None
    known = unfinished.known(answer, wish, overwrite)
    if known is not None:  # the answer may be there already, but was not noted as finished
        return None, known
    if earlier is None and answer.exists() and not overwrite:
        raise OutputRefused(
            f"{answer}: got a model of other scans, or of another start; need a free name to go on with; "
            "next: choose another, or replace it with --overwrite"
        )
    return earlier, None


def _one(
    network: SlabNet,
    targets: list[Target],
    scans: Sequence[Scan],
    start: Path,
    answer: Path,
    work: Path,
    schedule: Schedule,
    wish: dict[str, Any],
    report: Callable[[str], None],
) -> Adapted:
    """Adapt one network and write its model file."""
    around = network.context + 1
    seed = int(wish["scans"][0][:8], 16)
    answered = SlabNet(**network.settings)
    answered.load_state_dict(network.state_dict())
    watch = _Watch(network, targets, work, around, schedule, report)
    fit(
        network,
        lambda number: lesson_at(number, seed, targets, PATCHES, SIZE, SLABS, around),
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
        "recipe": [{"name": "adapt", "learns": "Target", "schedule": asdict(schedule)}],
        "commit": this_commit(),
        "data": known.get("data", []),
        "envelope": known["envelope"],
        "started_from": lineage(start),
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
    the slice direction itself, at the scale at which its truth is known, both on what is held out. The weights looked
    at lie between the starting and the adapted ones (Wortsman et al., CVPR 2022): far out, the directions within the
    slices still gain while the slice direction loses (LOG.md).
    """

    def __init__(
        self,
        start: SlabNet,
        targets: list[Target],
        work: Path,
        around: int,
        schedule: Schedule,
        report: Callable[[str], None],
    ) -> None:
        self.work, self.schedule, self.report = work, schedule, report
        self.start = {name: weight.clone() for name, weight in start.state_dict().items()}
        about = (PATCHES, SIZE, SLABS, around)
        count = min(max(WATCHED, 2 * len(targets)), MOST_WATCHED)
        turns = [(number, 1, [targets[number * len(targets) // count]]) for number in range(count)]
        self.unseen = [target_batch_at(*turn, *about, unseen=True) for turn in turns]
        self.thicker = [thicker_batch_at(*turn, *about, unseen=True) for turn in turns]
        self.looks: list[dict[str, float]] = []
        self.begun = monotonic()
        if (work / "looks.jsonl").exists():
            self.looks = [json.loads(line) for line in (work / "looks.jsonl").read_text().splitlines()]
            self.begun -= self.looks[-1]["seconds"]

    def __call__(self, step: int, average: SlabNet) -> bool:
        """Record a look; True where nothing more is to be hoped for."""
        self.looks = [look for look in self.looks if look["step"] < step]  # after a resumption the last comes again
        seen = [self._look(step, share, average) for share in (SHARES if step else (0.0,))]
        look, weights = min(seen, key=lambda pair: pair[0]["score"])
        self.looks.append(look)
        if self.best() is look:
            with whole_or_not(self.weights_of(look)) as temporary:
                torch.save(weights, temporary)
        with whole_or_not(self.work / "looks.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(look) + "\n" for look in self.looks))
        change, score = (100 * (value - 1) for value in (look["held_out"] / self.looks[0]["held_out"], look["score"]))
        self.report(f"  step {step}: held-out loss {change:+.1f} %, with the slice direction {score:+.1f} %")
        since = len(self.looks) - 1 - self.looks.index(self.best())
        return since >= PATIENCE and self._share_done(step) > NOT_BEFORE

    def _look(self, step: int, share: float, average: SlabNet) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """The losses of weights so far from the start."""
        ends = {name: weight.cpu() for name, weight in average.state_dict().items()}
        weights = {name: torch.lerp(self.start[name], weight, share) for name, weight in ends.items()}
        mixed = SlabNet(**average.settings)
        mixed.load_state_dict(weights)
        mixed.to(average.entry.weight.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's stub
        losses = {"held_out": self._loss(mixed, self.unseen), "thicker": self._loss(mixed, self.thicker)}
        first = self.looks[0] if self.looks else losses
        score = sum(losses[name] / first[name] for name in losses) / len(losses)
        seconds = round(monotonic() - self.begun, 1)
        return {"step": step, "share": share, **losses, "score": score, "seconds": seconds}, weights

    def weights_of(self, look: dict[str, float]) -> Path:
        """Where the weights of a look lie that was the best when it was taken."""
        return self.work / f"step-{look['step']}.pt"

    def best(self) -> dict[str, float]:
        """The look with the smallest losses, of those whose held-out loss fell; the first one where none did."""
        fell = [look for look in self.looks if look["held_out"] < self.looks[0]["held_out"]]
        return min(fell, key=lambda look: look["score"], default=self.looks[0])

    def _share_done(self, step: int) -> float:
        if self.schedule.minutes is None:
            return step / self.schedule.steps
        return (monotonic() - self.begun) / 60 / self.schedule.minutes

    @staticmethod
    def _loss(network: SlabNet, batches: Sequence[Any]) -> float:
        with torch.no_grad():
            device = network.entry.weight.device
            return sum(projected_loss(network, batch, device).item() for batch in batches) / len(batches)


def _usable(
    path: Path, label: str, model: Model, wished: dict[str, Any], complain: Callable[[str], None]
) -> Scan | None:
    """A scan and its plan, or None after saying why not."""
    try:
        volume = read(path)
        plan = make_plan(
            volume,
            **wished,
            model=model.name,
            model_sha256=model.sha256,
            envelope=model.envelope,
        )
    except (ThinsliceError, OSError, MemoryError) as refusal:
        complain(f"{label}: left out: {_reason(path, refusal)}")
        return None
    return Scan(label, path, volume, plan, fingerprint(volume))


def _target(scan: Scan, model: Model, voxels: int, complain: Callable[[str], None]) -> Target | None:
    try:
        return make_target(scan.path.name, scan.volume, scan.plan, model, voxels)
    except (ThinsliceError, MemoryError) as refusal:
        complain(f"{scan.label}: left out: {_reason(scan.path, refusal)}")
        return None


def _targets(
    scans: Sequence[Scan], not_reached: Sequence[str], model: Model, late: float | None, complain: Callable[[str], None]
) -> tuple[list[tuple[Scan, Target]], list[str]]:
    """What can be learnt from each scan, and the fingerprints of those whose turn did not come before it was late.

    Scans that there is nothing to learn from are named and left out, and so are those that were not reached.
    """
    made: list[tuple[Scan, Target]] = []
    skipped = list(not_reached)
    for scan in scans:
        too_late = late is not None and monotonic() > late and made
        if too_late and scan.fingerprint not in skipped:
            skipped.append(scan.fingerprint)
        if scan.fingerprint in skipped:
            complain(
                f"{scan.label}: left out: got no time to learn from it after {len(made)} others; need more; "
                "next: a larger --minutes, if it matters"
            )
        elif (target := _target(scan, model, VOXELS // len(scans), complain)) is not None:
            made.append((scan, target))
    return made, skipped


def _file_of(start: str | Path) -> Path:
    """The model file that a name stands for, as for ``--model``."""
    if str(start) in embedded_names() and (EMBEDDED / f"{start}.onnx").exists():
        return EMBEDDED / f"{start}.onnx"
    if str(start) in (*embedded_names(), *INTERPOLATIONS):
        raise ModelRefused(
            f"got --model {start}, which is no network of the kind that can be adapted; need default, or a file that "
            "'thinslice train default', 'train video-mr' or 'adapt' wrote; next: choose one of them"
        )
    with_suffix = Path(f"{start}.onnx")
    return with_suffix if with_suffix.is_file() and not str(start).endswith(".onnx") else Path(start)


def _reason(path: Path, error: Exception) -> str:
    """One line, without the name of the scan, which is said before it."""
    if isinstance(error, MemoryError):
        return "got a scan larger than the free memory; need a smaller one; next: crop it, or use a larger machine"
    line = " ".join(str(error).split())
    return line.removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")


def _names(scans: Sequence[Scan]) -> list[str]:
    """A name for the model of each scan, that of its file where no other has it."""
    stems = [scan.path.name.removesuffix(".gz").removesuffix(".nii") for scan in scans]
    names: list[str] = []
    for stem in stems:
        numbered = (name for number in count(1) if (name := f"{stem}-{number}") not in (*stems, *names))
        names.append(stem if stems.count(stem) == 1 else next(numbered))
    return names


def _check_name(out: Path, per_scan: bool, may_exist: bool) -> None:
    if str(out) in (*embedded_names(), *INTERPOLATIONS):
        raise OutputRefused(
            f"got -o {out}, a name that --model already has; need one of your own; next: choose another name"
        )
    if planes_files(out):
        raise OutputRefused(
            f"{out}: got the name of networks for planes, which --model would find first; need one of your own; next: "
            "choose another -o"
        )
    file = out.with_name(f"{out.name}.onnx")
    if per_scan and out.exists() and not out.is_dir():
        raise OutputRefused(f"{out}: got a file; need a name for a folder; next: choose another -o")
    if per_scan and file.exists():
        raise OutputRefused(f"{file}: got a model file of the name that a folder shall have; next: choose another -o")
    if not per_scan and out.is_dir():
        raise OutputRefused(f"{out}: got a folder; need a name for a model file; next: choose another -o")
    there = file if not per_scan else out
    if there.exists() and not may_exist:
        raise OutputRefused(f"{there}: got an output that exists already; next: choose another, or add --overwrite")


def _finished(answer: Path, wish: dict[str, Any]) -> Adapted | None:
    """What a model file says of itself, if it is the answer to the same wish."""
    if not answer.exists():
        return None
    card = read_card(answer)
    asked_for = card.get("asked_for", {})
    if any(asked_for.get(key) != wish[key] for key in wish.keys() - {"minutes", "steps"}):
        return None
    loss, trained = card["held_out_loss"], card["trained"]["adapt"]
    names = tuple(scan["file"] for scan in card["adapted_to"])
    losses = (loss["before"], loss["after"])
    return Adapted(answer, names, card["adapted"], losses, trained["steps"], trained["minutes"])


def _left(minutes: float, spent_seconds: float) -> Schedule:
    seconds = max(60 * minutes - spent_seconds - CLOSING_SECONDS, 6 * minutes)
    return replace(SCHEDULE, minutes=seconds / 60)
