"""Thin slices for those who have only thick ones (Xuan et al., Pattern Recognition 2021, arXiv 2003.12627).

    slices of the thick scans -> an auto-encoder -> an introspective one -> volumes that nobody acquired
    those volumes, made thick as the scans were -> the network of the default model, which never sees the scans

Nothing is paired with a scan: the only thick slices that the network sees are made of the synthesised volumes.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from thinslice.errors import InputRefused, ThinsliceError
from thinslice.io.nifti import write
from thinslice.io.outputs import check_writable
from thinslice.io.synthetic import as_synthetic
from thinslice.models.interpolations import interpolation
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.networks.registry import Architecture
from thinslice.settings import Settings
from thinslice.training.export import load_weights
from thinslice.training.fit import Schedule
from thinslice.training.model_outputs import find_start
from thinslice.training.objectives import SliceObjective, SyntheticSlabObjective
from thinslice.training.page import Comparison, write_page
from thinslice.training.run_state import RunFolder
from thinslice.training.runner import Outcome, check_one_process, check_unused, find_starts, run_stages, share_length
from thinslice.training.slices import Stack, group_similar, make_stack
from thinslice.training.sources import AcquiredSlices, SyntheticVolumes
from thinslice.training.stages import Inputs, Recipe, Report, Stage
from thinslice.training.synthesis import Synthetic, to_patient_space
from thinslice.training.usable_scans import find_usable_scans, no_usable_scan, one_line_reason, plan_settings
from thinslice.training.validation import DivergenceCheck

logger = logging.getLogger(__name__)

NAME = "no-ground-truth"
"""Of the recipe and of the model."""

MINUTES = 30.0
"""Of all trainings together, unless another length is given."""

ADVERSARIAL = 0.25
"""Weight of what makes the auto-encoder introspective, as in the first author's code."""

MOST_VOXELS = 800_000_000
"""Acquired voxels that are learnt from, of all scans together, two bytes each."""

LEAST_PERSONS = 10
"""From so many persons on, the slices of some are not learnt from, only validated with."""

HELD_OUT = 0.1
"""Share of the persons whose slices are not learnt from."""

SHOWN = 6
"""Scans on the page."""

PAGE = "report.html"
"""The page in the output folder: what was synthesised, beside the scans."""

VOLUMES = "synthetic"
"""The folder of kept volumes in the output folder."""

ENCODER = Architecture("slice-vae", draws=2)
"""The auto-encoder. Its first weights are the second ones that the seed gives, as they always were."""

OF_SLICES = Schedule(
    steps=4_000, rate=1e-3, muon_rate=0.0, weight_decay=0.0, warm_up=100, ema=0.995, save_every=200, side_by_side=True
)
"""How the auto-encoder learns."""


def stages(adversarial: float = ADVERSARIAL) -> list[Stage]:
    """Returns three stages; 0 for ``adversarial`` leaves the introspective one out."""
    plain = Stage(
        "vae", AcquiredSlices(), objective=SliceObjective(), network=ENCODER, schedule=OF_SLICES, check=DivergenceCheck
    )
    introspective = replace(
        plain,
        name="introvae",
        objective=SliceObjective(adversarial=adversarial),
        schedule=replace(OF_SLICES, steps=2_000, rate=2e-4),
        start="vae",
    )
    encoders = [plain, introspective] if adversarial else [plain]
    network = Stage(
        "network",
        SyntheticVolumes(encoders[-1].name),
        objective=SyntheticSlabObjective(),
        schedule=Schedule(steps=6_000, warm_up=100, save_every=200, side_by_side=True),
        model=NAME,
    )
    return [*encoders, network]


def train_on_scans(
    paths: Sequence[Path],
    output: Path,
    settings: Settings | None = None,
    start_from: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    keep_synthetic: bool = False,
    adversarial: float = ADVERSARIAL,
    report: Report = print,
    complain: Report = print,
) -> Path:
    """Runs the recipe on thick scans; returns the model file, ``output/no-ground-truth.onnx``.

    Args:
        paths: the scans. One that cannot be used is named and left out.
        output: checkpoints, logs, the page ``report.html`` and the model go here.
        settings: spacing, factor, thickness and profile of all scans; a run is resumed by the same ones only.
        start_from: a model name or file that the network starts from; None: fresh weights.
        resume: continue from the checkpoints in ``output``.
        minutes: length of all trainings together, `MINUTES` where neither is given. A resumed run keeps its own.
        steps: likewise.
        keep_synthetic: write the synthesised volumes to ``output/synthetic``, for looking at.
        adversarial: see `stages`.
        report: receives progress lines.
        complain: receives a line about every scan that is left out.

    Raises:
        InputRefused: no scan can be used, or ``output`` holds another run.
        ModelRefused: the start does not fit.
        OutputRefused: ``output`` cannot be written to, holds a model and ``resume`` is off, or is in use.
    """
    settings = settings or Settings()
    check_writable(output)
    check_one_process()
    folder, recipe = RunFolder(output), stages(adversarial)
    check_unused(folder, recipe, resume, (output / PAGE, output / VOLUMES))
    with folder:
        settle = folder.complete if resume else dict  # without `resume` what was begun and came to nothing is replaced
        length: dict[str, Any] = {"minutes": minutes, "steps": steps}
        kept = settle({"recipe": NAME} | length)  # another recipe is refused before any scan is read
        if kept["minutes"] is None and kept["steps"] is None:
            length["minutes"] = MINUTES
        model, file = _planning_model(recipe[-1], start_from)
        stacks = _read_stacks(paths, model, settings, report, complain)
        # The start by its content: a file that was replaced under its name is another one.
        request: dict[str, Any] = {"recipe": NAME, "start": None if file is None else model.sha256}
        request |= plan_settings(settings) | {"adversarial": adversarial}
        request |= {"scans": sorted(stack.fingerprint for stack in stacks)} | length
        request = settle(request)
        learnt, validation = split_by_person(stacks)
        _note_unlike_scans(learnt, report)
        recipe = share_length(recipe, request["minutes"], request["steps"])
        inputs, starts = Inputs(scans=learnt, validation=validation), find_starts(recipe, file)
        done = run_stages(recipe, inputs, folder, request, starts=starts, report=report)
        if keep_synthetic:
            _write_volumes(done.volumes, learnt, output / VOLUMES)
            report(f"wrote {output / VOLUMES}, for looking at: what lies between the acquired slices is invented")
        _write_page(output / PAGE, done, learnt)
        report(f"wrote {output / PAGE}: what was synthesised, beside the scans")
        return done.models[0]


RECIPE = Recipe(stages, train_on_scans)


def _planning_model(stage: Stage, start: str | Path | None) -> tuple[Model, Path | None]:
    """Returns the model by which the scans are planned, and the file that the network starts from, if any.

    Raises:
        ModelRefused: it is no model of the network; refused before any work.
    """
    if start is None:
        return interpolation("cubic"), None
    file = find_start(start, "start_from")
    load_weights(stage.network.build(), file)
    return find_model(start), file


def _read_stacks(
    paths: Sequence[Path], model: Model, settings: Settings, report: Report, complain: Report
) -> list[Stack]:
    """Returns the slices of every scan that can be learnt from; the other scans are named.

    Raises:
        InputRefused: there is none.
    """
    stacks: list[Stack] = []
    room = MOST_VOXELS
    for scan in find_usable_scans(paths, model, settings, complain):
        try:
            if scan.volume.voxels.size > room:
                raise InputRefused(
                    got=f"{MOST_VOXELS - room:,} voxels before it and {scan.volume.voxels.size:,} of its own",
                    need=f"at most {MOST_VOXELS:,} in all",
                    next="nothing, if the others are enough",
                    code="too-many-voxels",
                )
            stacks.append(make_stack(scan))
        except (ThinsliceError, MemoryError) as refusal:
            complain(f"{scan.label}: left out: {one_line_reason(scan.path, refusal)}")
            continue
        room -= scan.volume.voxels.size
        for note in scan.volume.notes:
            report(f"{scan.label}: note: {note}")
    if not stacks:
        raise no_usable_scan()
    return stacks


def split_by_person(stacks: Sequence[Stack]) -> tuple[list[Stack], list[Stack]]:
    """Returns what is learnt from and what is validated with: other persons where there are enough, else the same."""
    # By their hashes: as good as drawn, and the same in every run.
    persons = sorted({stack.person for stack in stacks}, key=lambda person: sha256(person.encode()).digest())
    if len(persons) < LEAST_PERSONS:
        return list(stacks), list(stacks)
    held_out = set(persons[: round(HELD_OUT * len(persons))])
    logger.debug("%d of %d persons are held out", len(held_out), len(persons))
    learnt, validation = ([s for s in stacks if (s.person in held_out) == seen] for seen in (False, True))
    return learnt, validation


def _note_unlike_scans(learnt: Sequence[Stack], report: Report) -> None:
    kinds = group_similar(learnt)
    if len(kinds) > 1:
        some = "; ".join(f"{kind[0]} and {len(kind) - 1} more" if kind[1:] else kind[0] for kind in kinds)
        report(
            f"note: got scans that look unlike each other ({some}); need one anatomy in one orientation for the best "
            "auto-encoder; next: nothing, or train each kind by itself"
        )


# ---- what is shown


def _write_volumes(made: Sequence[Synthetic], learnt: Sequence[Stack], folder: Path) -> None:
    """Writes the synthesised volumes, marked as such in their headers and by their names."""
    for number, (one, stack) in enumerate(zip(made, learnt, strict=True), 1):
        volume = to_patient_space(one.thin.voxels, stack, one.corner)
        write(as_synthetic(volume), folder / f"synthetic-{number:03}.nii.gz")


def _write_page(path: Path, done: Outcome, learnt: Sequence[Stack]) -> None:
    facts = [
        (f"{name}: length", f"{length['steps']} steps, {length['minutes']} min")
        for name, length in done.lengths.items()
    ]
    for name, check in done.checks.items():
        found = check.validation()
        error = found["records"][-1]["error"]
        how = "diverged" if found["diverged"] else f"{error:.4f} of the intensity range away (RMS)"
        facts.append((f"{name}: slices made again", how))
    words = (
        "On the left a scan as it was acquired, on the right the volume that was synthesised from its slices. What "
        "lies between the acquired slices is invented: such volumes teach the network, they are no answer, and must "
        "not be paired with the scan."
    )
    pairs = list(zip(done.volumes, learnt, strict=True))[:SHOWN]
    write_page("thinslice: synthesised volumes", words, facts, [_comparison(*pair) for pair in pairs], path)


def _comparison(one: Synthetic, stack: Stack) -> Comparison:
    """Returns the part of a scan that a volume was synthesised from, and the volume."""
    rows, columns = (slice(at, at + n) for at, n in zip(one.corner, one.thin.voxels.shape[1:], strict=True))
    acquired = to_patient_space(stack.slices[:, rows, columns], stack, one.corner)
    return Comparison(stack.name, acquired, to_patient_space(one.thin.voxels, stack, one.corner), stack.plan.axis)
