"""Adapt a model to thick scans, without any thin truth: stage 3 of Wang et al. (ISBI 2024, arXiv 2406.05974).

The scans teach themselves (`thinslice.training.self_supervision`). A part of them is held out. Only if the loss there
falls, and does so more than that of the slice direction may rise, is the adapted network kept; else the model file
holds the starting one, and its card says so (`thinslice.training.validation.HeldOutCheck`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.networks.registry import Architecture
from thinslice.settings import Settings
from thinslice.training.export import load_weights, read_card
from thinslice.training.fit import Schedule
from thinslice.training.model_outputs import (
    check_answer,
    check_model_name,
    find_adapted_models,
    find_start,
    name_models,
)
from thinslice.training.objectives import SelfSupervisedObjective
from thinslice.training.run_state import RunFolder
from thinslice.training.runner import check_one_process, run_stages, share_length
from thinslice.training.self_supervision import VOXELS, TargetScan, make_target_scan
from thinslice.training.sources import ScansThemselves
from thinslice.training.stages import Inputs, Recipe, Report, Stage
from thinslice.training.usable_scans import (
    UsableScan,
    find_usable_scans,
    no_usable_scan,
    one_line_reason,
    plan_settings,
)
from thinslice.training.validation import HeldOutCheck

logger = logging.getLogger(__name__)

NETWORK = Architecture("slab")
"""The network that is adapted: that of the default model."""

OBJECTIVE = SelfSupervisedObjective()
"""What it learns."""

SCHEDULE = Schedule(
    minutes=10.0, rate=2e-4, muon_rate=4e-3, muon_decay=0.0, warm_up=10, ema=0.99, save_every=80, side_by_side=True
)
"""How it learns: at half of these rates (`Schedule.gentle`), a fifth of Muon's rate and half of AdamW's in the starting
model's own recipe; at more it forgets first (LOG.md)."""

STAGE = "adapt"
"""The name of the one stage."""

PREPARING = 0.4
"""Share of the time after which no further scan is prepared."""

MOST_SCANS = 64
"""Scans that one model learns from at most: what is made of them lies in memory."""


def stages(model: str = "adapted") -> list[Stage]:
    """Returns one stage.

    Args:
        model: name of the model file.
    """
    return [
        Stage(
            STAGE,
            ScansThemselves(),
            objective=OBJECTIVE,
            network=NETWORK,
            schedule=SCHEDULE,
            check=HeldOutCheck,
            model=model,
        )
    ]


@dataclass(frozen=True)
class Job:
    """One model to be made.

    Attributes:
        scans: that it learns from.
        answer: the model file.
        request: what was asked for: a run is gone on with by the same request only.
    """

    scans: list[UsableScan]
    answer: Path
    request: dict[str, Any]


@dataclass(frozen=True)
class Adapted:
    """What came of one adaptation.

    Attributes:
        model: the file.
        scans: the names of those it was adapted to.
        adapted: False where the held-out loss did not fall and the file holds the starting model.
        held_out: that loss before and at its best, as shares of the intensity range.
        steps: of the training.
        minutes: of the training.
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
    output: Path,
    settings: Settings | None = None,
    minutes: float = 10.0,
    per_scan: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    steps: int | None = None,
    report: Report = print,
    complain: Report = print,
    begun: float | None = None,
) -> list[Adapted]:
    """Adapts a model to thick scans; they may differ in spacing, size, contrast and orientation.

    What is unfinished lies in a folder beside the answer, NAME.adapting; called again with the same scans and the same
    start, it goes on from there.

    Args:
        paths: the scans. One that cannot be used is named and left out.
        output: the model file, NAME.onnx or NAME; with ``per_scan`` a folder NAME with a model file for each scan.
        settings: ``model`` is what the adaptation starts from, an embedded name or a file of the same network; spacing,
            factor, thickness and profile are those of all scans, and it learns at about that factor.
        minutes: of one adaptation, preparations included.
        per_scan: adapt to every scan by itself.
        resume: finished answers stay as they are, instead of being refused.
        overwrite: finished answers are replaced.
        steps: length in steps instead of minutes, for experiments.
        report: receives progress lines.
        complain: receives a line about every scan that is left out.
        begun: when the minutes began (`time.monotonic`); default: now.

    Raises:
        InputRefused: no scan can be used.
        ModelRefused: the start is not a network of the default kind.
        OutputRefused: the answer exists already, its name means something else to ``model``, or is in use.
    """
    begun = monotonic() if begun is None else begun
    settings = settings or Settings()
    check_one_process()
    output = output.with_suffix("") if output.suffix == ".onnx" else output
    folder = RunFolder(output.with_name(f"{output.name}.adapting") if output.name else output)
    resume = resume or folder.folder.exists()  # some of its models may be there already
    check_model_name(output, per_scan, resume or overwrite)
    with folder:
        start = find_start(settings.model, "model")
        load_weights(NETWORK.build(), start)  # refused before any work
        model = find_model(settings.model)
        request = {"recipe": STAGE, "start": model.sha256} | plan_settings(settings)
        request |= {"minutes": None if steps else minutes, "steps": steps}
        usable = list(find_usable_scans(paths, model, settings, complain))
        if not usable:
            raise no_usable_scan()
        jobs = _find_jobs(usable, output, per_scan, request)
        for job in jobs:
            check_answer(job.answer, start)
        # All of them before the first one is begun: a refusal must not come after hours.
        there = [_find_earlier(job, folder, resume, overwrite) for job in jobs]
        done = []
        # Every model has its own minutes: the first one must not pay for the reading of all scans.
        begun = monotonic() if per_scan else begun
        for job, (earlier, known) in zip(jobs, there, strict=True):
            if per_scan and len(jobs) > 1:
                report(f"{job.scans[0].label}:")
            if earlier is not None:
                report(f"{job.answer} is there already")
                folder.clear(job.answer)
                done.append(earlier)
                continue
            # What goes on learns from what it was begun with, however long that takes to prepare this time.
            late = begun + 60 * PREPARING * minutes if steps is None and known is None else None
            learnt, skipped = _prepare(job.scans, known["not_reached"] if known else [], model, late, complain)
            if learnt:
                done.append(_run(job, learnt, skipped, folder, start, known is None, begun, report))
                begun = monotonic()
        for other in folder.close():
            report(f"{other} holds the unfinished work of another command; next: repeat that, or delete it")
    if not done:
        raise no_usable_scan()
    return done


RECIPE = Recipe(stages, adapt)


def _find_jobs(scans: Sequence[UsableScan], output: Path, per_scan: bool, request: dict[str, Any]) -> list[Job]:
    """Returns what is to be made: one model for all scans, or one for each."""
    if not per_scan:
        # Sorted: the same scans in another order are the same request.
        about = request | {"scans": sorted(scan.fingerprint for scan in scans)}
        return [Job(list(scans), output.with_name(f"{output.name}.onnx"), about)]
    names = name_models(
        [scan.path for scan in scans], [scan.fingerprint for scan in scans], find_adapted_models(output)
    )
    return [
        Job([scan], output / f"{name}.onnx", request | {"scans": [scan.fingerprint]})
        for scan, name in zip(scans, names, strict=True)
    ]


def _find_earlier(
    job: Job, folder: RunFolder, resume: bool, overwrite: bool
) -> tuple[Adapted | None, dict[str, Any] | None]:
    """Returns the finished answer to a request, or what an unfinished run was begun with, or neither.

    Raises:
        OutputRefused: there is an answer, or a run, of another request, which may not be replaced.
    """
    made = folder.is_finished(job.answer)
    earlier = _find_finished(job) if resume and (not overwrite or made) else None
    if earlier is not None and made:
        return earlier, None
    known = _find_begun(job, folder, overwrite)
    if known is not None:  # the answer may be there already, but was not noted as finished
        return None, known
    if earlier is None and job.answer.exists() and not overwrite:
        raise OutputRefused(
            got="a model of other scans, or of another start",
            need="a free name to go on with",
            next="choose another, or replace it with `overwrite`",
            place=job.answer,
            code="model-of-another-request",
        )
    return earlier, None


def _find_finished(job: Job) -> Adapted | None:
    """Returns what a model file says of itself, if it is the answer to the same request, whatever its length."""
    if not job.answer.exists():
        return None
    card = read_card(job.answer)
    asked_for = card.get("asked_for", {})
    if any(asked_for.get(key) != job.request[key] for key in job.request.keys() - {"recipe", "minutes", "steps"}):
        return None
    loss, trained = card["held_out_loss"], card["trained"][STAGE]
    names = tuple(scan["file"] for scan in card["adapted_to"])
    losses = (loss["before"], loss["after"])
    return Adapted(job.answer, names, card["adapted"], losses, trained["steps"], trained["minutes"], new=False)


def _find_begun(job: Job, folder: RunFolder, overwrite: bool) -> dict[str, Any] | None:
    """Returns what an unfinished run was begun with, if that was the same request.

    Raises:
        OutputRefused: it was another, and may not be replaced.
    """
    run = folder.run_for(job.answer)
    try:
        if not run.changes(job.request):
            return run.request() or None
    except InputRefused:  # an earlier version began it
        if not overwrite:
            raise
    if overwrite:
        return None
    raise OutputRefused(
        got="the unfinished work of another command (other scans, another start or length)",
        need="that command to go on with it",
        next="repeat that, choose another `output`, or give the work up with `overwrite`",
        place=run.folder,
        code="unfinished-work",
    )


def _prepare(
    scans: Sequence[UsableScan], not_reached: Sequence[str], model: Model, late: float | None, complain: Report
) -> tuple[list[tuple[UsableScan, TargetScan]], list[str]]:
    """Returns what can be learnt from each scan, and the fingerprints of those whose turn did not come in time.

    Scans that there is nothing to learn from are named and left out, and so are those that were not reached, and those
    beyond `MOST_SCANS`.

    Args:
        scans: in order.
        not_reached: fingerprints of those that were left out when the run was begun.
        model: the starting model.
        late: time (`time.monotonic`) after which no further scan is prepared; one always is.
        complain: receives a line about every scan that is left out.
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
                f"next: nothing, if these are enough, or a larger `minutes` (at most {MOST_SCANS} scans)"
            )
        elif (target := _prepare_one(scan, model, VOXELS // len(scans), complain)) is not None:
            made.append((scan, target))
    return made, skipped


def _prepare_one(scan: UsableScan, model: Model, voxels: int, complain: Report) -> TargetScan | None:
    try:
        return make_target_scan(scan.path.name, scan.volume, scan.plan, model, voxels)
    except (ThinsliceError, MemoryError) as refusal:
        logger.debug("%s cannot be learnt from", scan.path, exc_info=refusal)
        complain(f"{scan.label}: left out: {one_line_reason(scan.path, refusal)}")
        return None


def _run(
    job: Job,
    learnt: Sequence[tuple[UsableScan, TargetScan]],
    not_reached: Sequence[str],
    folder: RunFolder,
    start: Path,
    is_new: bool,
    begun: float,
    report: Report,
) -> Adapted:
    """Adapts one network and writes its model file; its time began at ``begun``."""
    if is_new:
        folder.clear(job.answer)
    recipe = share_length(stages(job.answer.stem), job.request["minutes"], job.request["steps"])
    done = run_stages(
        recipe,
        Inputs(scans=learnt, begun=begun),
        folder.run_for(job.answer),
        job.request | {"not_reached": list(not_reached)},
        starts={STAGE: start},
        models=job.answer.parent,
        card={"asked_for": job.request, "data": read_card(start).get("data", [])},
        # From its own scans: what else is adapted in the same call has no say.
        seed=int(job.request["scans"][0][:8], 16),
        report=report,
    )
    # Noted first, removed then: after a kill in between, the next call finds it finished and removes the rest.
    folder.finish(job.answer, done.lengths[STAGE])
    folder.clear(job.answer)
    verdict, length = done.checks[STAGE].verdict(), done.lengths[STAGE]
    losses = (verdict["held_out_loss"]["before"], verdict["held_out_loss"]["after"])
    labels = tuple(scan.label for scan, _ in learnt)
    return Adapted(job.answer, labels, verdict["adapted"], losses, int(length["steps"]), length["minutes"])
