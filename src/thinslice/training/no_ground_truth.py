"""Thin slices for those who have only thick ones (Xuan et al., Pattern Recognition 2021, arXiv 2003.12627).

    slices of the thick scans -> an auto-encoder -> an introspective one -> volumes that nobody acquired
    those volumes, made thick as the scans were -> the network of the default model, which never sees the scans

Nothing is paired with a scan: the only thick slices that the network sees are made of the synthesised volumes.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from thinslice.errors import InputRefused, OutputRefused, ThinsliceError
from thinslice.io.nifti import write
from thinslice.io.outputs import check_writable
from thinslice.io.synthetic import as_synthetic
from thinslice.models.interpolations import interpolation
from thinslice.models.protocol import Model
from thinslice.models.registry import find_model
from thinslice.networks.slab import SlabNet
from thinslice.networks.vae import SliceVae
from thinslice.settings import Profile
from thinslice.training.corpus import NEAR_FACTOR, NEAR_THICKNESS
from thinslice.training.divergence import DivergenceCheck
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit, training_length
from thinslice.training.model_outputs import find_start
from thinslice.training.objectives import SliceObjective, SyntheticSlabObjective
from thinslice.training.page import Comparison, write_page
from thinslice.training.recipes import (
    Stage,
    current_commit,
    describe_start,
    is_model_of,
    share_length,
    with_gentle_rates,
)
from thinslice.training.run_state import keep
from thinslice.training.slices import Stack, group_similar, make_stack
from thinslice.training.synthesis import VOXELS, Synthetic, make_synthetic, to_patient_space
from thinslice.training.usable_scans import find_usable_scans, one_line_reason

NAME = "no-ground-truth"
"""Of the recipe and of the model."""

MINUTES = 30.0
"""Of all trainings together, unless said otherwise."""

ADVERSARIAL = 0.25
"""Weight of what makes the auto-encoder introspective, as in the first author's code."""

MOST_VOXELS = 800_000_000
"""Acquired voxels that are learnt from, of all scans together, two bytes each."""

LEAST_PERSONS, HELD_OUT = 10, 0.1
"""From so many persons on, the slices of this share of them are not learnt from, only looked at."""

LOOKED_AT = 8
"""Batches, always the same, that show how well slices are made again."""

SHOWN = 6
"""Scans on the page."""

PAGE, VOLUMES = "report.html", "synthetic"
"""The page, and the folder of kept volumes, in the output folder."""

_WAY_ON = "--resume, if a training of this recipe is to be gone on with, or another -o"

NONE = "got no scan that can be learnt from; need thick slices; next: see the reason named for each"

_OF_SLICES = Schedule(
    steps=4_000, rate=1e-3, muon_rate=0.0, weight_decay=0.0, warm_up=100, ema=0.995, save_every=200, side_by_side=True
)


def no_ground_truth(adversarial: float = ADVERSARIAL) -> list[Stage]:
    """The recipe; 0 for ``adversarial`` leaves the introspective stage out."""
    plain = Stage("vae", {}, SliceObjective(), _OF_SLICES)
    introspective = Stage(
        "introvae",
        {},
        SliceObjective(adversarial=adversarial),
        replace(_OF_SLICES, steps=2_000, rate=2e-4),
        start="vae",
    )
    network = Stage(
        "network",
        {},
        SyntheticSlabObjective(),
        Schedule(steps=6_000, warm_up=100, save_every=200, side_by_side=True),
        model=NAME,
    )
    return [plain, *([introspective] if adversarial else []), network]


@dataclass(frozen=True)
class Wish:
    """What is asked for, besides how long: a run is resumed by the same wish only.

    Attributes:
        spacing_mm, factor, thickness_mm, profile: of all scans, see `thinslice.plan.make_plan`.
        start: sha256 of the model file that the network starts from, None for fresh weights.
        adversarial: see `no_ground_truth`.
    """

    spacing_mm: float | None = None
    factor: float | None = None
    thickness_mm: float | None = None
    profile: Profile = "gaussian"
    start: str | None = None
    adversarial: float = ADVERSARIAL


def run(
    paths: Sequence[Path],
    out: Path,
    wish: Wish = Wish(),
    start: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    keep_synthetic: bool = False,
    report: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
) -> Path:
    """Run the recipe on thick scans; returns the model file, ``out/no-ground-truth.onnx``.

    Args:
        paths: the scans. One that cannot be used is named and left out.
        out: checkpoints, logs, the page ``report.html`` and the model go here.
        wish: how the scans are planned, and which variant is trained.
        start: a model name or file that the network starts from; default: fresh weights.
        resume: continue from the checkpoints in ``out``.
        minutes, steps: length of all trainings together, `MINUTES` unless said otherwise. A resumed run keeps its own.
        keep_synthetic: write the synthesised volumes to ``out/synthetic``, for looking at.
        report, complain: receive progress lines, and a line about every scan that is left out.

    Raises:
        InputRefused: no scan can be used, or ``out`` holds another run.
        ModelRefused: the start does not fit.
        OutputRefused: ``out`` cannot be written to, or holds a model and ``resume`` is off.
    """
    check_writable(out)
    _check_alone()
    begun = _begun(out, resume)
    file = None if start is None else find_start(start, "--start-from")
    model: Model = interpolation("cubic")
    if start is not None and file is not None:
        load_weights(no_ground_truth()[-1].objective.make_network(), file)  # refused before any work
        model = find_model(start)
        wish = replace(wish, start=model.sha256)
    stacks = _learnable(paths, model, wish, report, complain)
    asked = {"recipe": NAME} | asdict(wish) | {"scans": sorted(stack.fingerprint for stack in stacks)}
    length = _begin_or_go_on(out, begun, asked, minutes, steps)
    stages = share_length(no_ground_truth(wish.adversarial), *length)
    learnt, looked_at = _split_by_person(stacks)
    _say_what_is_learnt_from(learnt, looked_at, report)
    vae, looks = auto_encoder(stages[:-1], learnt, looked_at, out, report)
    made = [make_synthetic(vae, stack, VOXELS // len(learnt)) for stack in learnt]
    parts = sum(one.thin.voxels.shape[1:] != stack.slices.shape[1:] for one, stack in zip(made, learnt, strict=True))
    report(
        f"synthesised {len(made)} volumes, {sum(one.thin.voxels.size for one in made) / 1e6:.0f} million voxels"
        + (f"; {parts} of them show a part of the field of view, as there is no room for more" if parts else "")
    )
    if keep_synthetic:
        _keep(made, learnt, out / VOLUMES)
        report(f"wrote them to {out / VOLUMES}, for looking at: what lies between the acquired slices is invented")
    network = network_of(stages[-1], made, file, out, report)
    answer = out / f"{NAME}.onnx"
    trained = {stage.name: training_length(out / stage.name) for stage in stages}
    if not is_model_of(answer, trained["network"]):
        card = _card(stages, stacks, learnt, made, model, file) | {"trained": trained, "looks": looks}
        digest = export(network, card, answer)
        report(f"wrote {answer} (sha256 {digest[:12]})")
    _show(out / PAGE, made, learnt, looks, trained)
    report(f"wrote {out / PAGE}: what was synthesised, beside the scans")
    return answer


def _check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputRefused(
            f"got {os.environ['WORLD_SIZE']} processes of torchrun; need one, which uses all cores; next: start it "
            "without torchrun"
        )


def _learnable(
    paths: Sequence[Path],
    model: Model,
    wish: Wish,
    report: Callable[[str], None],
    complain: Callable[[str], None],
) -> list[Stack]:
    """The slices of every scan that can be learnt from; the other scans are named.

    Raises:
        InputRefused: there is none.
    """
    stacks: list[Stack] = []
    room = MOST_VOXELS
    for scan in find_usable_scans(paths, model, asdict(wish), complain):
        try:
            if scan.volume.voxels.size > room:
                raise InputRefused(
                    f"got {MOST_VOXELS - room:,} voxels before it and {scan.volume.voxels.size:,} of its own; need "
                    f"at most {MOST_VOXELS:,} in all; next: nothing, if the others are enough"
                )
            stacks.append(make_stack(scan))
        except (ThinsliceError, MemoryError) as refusal:
            complain(f"{scan.label}: left out: {one_line_reason(scan.path, refusal)}")
            continue
        room -= scan.volume.voxels.size
        for note in scan.volume.notes:
            report(f"{scan.label}: note: {note}")
    if not stacks:
        raise InputRefused(NONE)
    return stacks


def _begun(out: Path, resume: bool) -> dict[str, Any]:
    """What the run in ``out`` was begun with; empty where there is none.

    Raises:
        InputRefused: another recipe was.
        OutputRefused: there is something that would be replaced, and ``resume`` is off.
    """
    kept = out / "wish.json"
    for there in () if resume else (kept, *(out / name for name in (f"{NAME}.onnx", f"{NAME}.json", PAGE, VOLUMES))):
        if there.exists():
            raise OutputRefused(f"{there}: got an output that is there already; need an empty folder; next: {_WAY_ON}")
    try:
        begun: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    except ValueError:
        begun = {"recipe": "what cannot be read"}
    if begun and begun.get("recipe") != NAME:
        raise InputRefused(f"{kept}: got the training of another recipe; need one of {NAME}; next: another -o")
    return begun


def _begin_or_go_on(
    out: Path, begun: dict[str, Any], asked: dict[str, Any], minutes: float | None, steps: int | None
) -> tuple[float | None, int | None]:
    """Keep what is asked for, or see that it is what a run was begun with; returns its length.

    Another length is refused too: the stages build on each other, so none can be lengthened by itself.
    """
    if minutes is None and steps is None:
        minutes, steps = (begun["minutes"], begun["steps"]) if begun else (MINUTES, None)
    asked = asked | {"minutes": minutes, "steps": steps}
    changed = [key.removesuffix("_mm") for key in asked if begun and begun.get(key) != asked[key]]
    if changed:
        raise InputRefused(
            f"got {out}, a training that was begun with another wish ({', '.join(changed)}); need the same to resume "
            "it; next: repeat the command that began it, or take another -o"
        )
    keep(out / "wish.json", asked)
    return minutes, steps


def _split_by_person(stacks: Sequence[Stack]) -> tuple[list[Stack], list[Stack]]:
    """What is learnt from and what is looked at: other persons, where there are enough of them, else the same."""
    persons = sorted({stack.person for stack in stacks}, key=lambda person: sha256(person.encode()).digest())
    if len(persons) < LEAST_PERSONS:
        return list(stacks), list(stacks)
    held_out = set(persons[: round(HELD_OUT * len(persons))])
    learnt, looked_at = ([s for s in stacks if (s.person in held_out) == seen] for seen in (False, True))
    return learnt, looked_at


def _say_what_is_learnt_from(
    learnt: Sequence[Stack], looked_at: Sequence[Stack], report: Callable[[str], None]
) -> None:
    apart = {stack.person for stack in looked_at} - {stack.person for stack in learnt}
    count = sum(len(stack.slices) for stack in learnt)
    report(
        f"{len(learnt)} scans, {count} slices to learn from"
        + (f"; the slices of {len(apart)} persons are looked at only" if apart else "")
    )
    kinds = group_similar(learnt)
    if len(kinds) > 1:
        some = "; ".join(f"{kind[0]} and {len(kind) - 1} more" if kind[1:] else kind[0] for kind in kinds)
        report(
            f"note: got scans that look unlike each other ({some}); need one anatomy in one orientation for the best "
            "auto-encoder; next: nothing, or train each kind by itself"
        )


def auto_encoder(
    stages: Sequence[Stage],
    learnt: Sequence[Stack],
    looked_at: Sequence[Stack],
    out: Path,
    report: Callable[[str], None],
) -> tuple[SliceVae, dict[str, Any]]:
    """The auto-encoder after its stages, each going on from the one before, and how well it made slices again.

    Where a stage diverges its last good weights are kept, at the worst those that it began with.
    """
    torch.manual_seed(0)
    vae = SliceVae(**stages[0].objective.make_network().settings)
    seen: dict[str, Any] = {}
    for stage in stages:
        report(f"{stage.name}:")
        watch = DivergenceCheck(
            [stage.objective.batch_at(n, 1, looked_at) for n in range(LOOKED_AT)], out / stage.name, report
        )
        network = SliceVae(**vae.settings)
        network.load_state_dict(vae.state_dict())
        vae = fit(
            network,
            _numbered(stage, learnt),
            stage.objective.loss,
            out / stage.name,
            stage.schedule,
            True,
            _silent,
            watch,
        )
        seen[stage.name] = {"looks": watch.looks, "diverged": watch.diverged}
        first, last = watch.looks[0]["error"], watch.looks[-1]["error"]
        if not watch.diverged and last > first:
            report(f"  note: {stage.name} ends with an error of {last:.4f}, where it began with {first:.4f}")
        if watch.diverged:
            good = watch.last_good()
            vae.load_state_dict(good["weights"])
            seen[stage.name]["went_back_to"] = good["step"]
            report(f"  {stage.name} diverged: went back to its weights after step {good['step']}")
    return vae, seen


def network_of(
    stage: Stage, made: Sequence[Synthetic], start: Path | None, out: Path, report: Callable[[str], None]
) -> SlabNet:
    """The network that learnt from synthesised volumes alone."""
    report(f"{stage.name}:")
    torch.manual_seed(0)
    network, schedule = stage.objective.make_network(), stage.schedule
    if start is not None:
        load_weights(network, start)
        schedule = with_gentle_rates(schedule)
    trained = fit(network, _numbered(stage, made), stage.objective.loss, out / stage.name, schedule, True, report)
    assert isinstance(trained, SlabNet)
    return trained


def _numbered(stage: Stage, corpus: Sequence[Any]) -> Callable[[int], Any]:
    return lambda number: stage.objective.batch_at(number, 0, corpus)


def _silent(line: str) -> None:
    """Where the looks are told instead."""


def _card(
    stages: Sequence[Stage],
    stacks: Sequence[Stack],
    learnt: Sequence[Stack],
    made: Sequence[Synthetic],
    model: Model,
    start: Path | None,
) -> dict[str, Any]:
    """Where the weights come from and what they are valid for, but for how long the training was."""
    from_these = {stack.fingerprint for stack in learnt}
    factors = [one.factor for one in made]
    ratios = [one.thickness_over_spacing for one in made]
    own = {
        "factor": (min(factors) * (1 - NEAR_FACTOR), max(factors) * (1 + NEAR_FACTOR)),
        "thickness_over_spacing": (min(ratios) * (1 - NEAR_THICKNESS), max(ratios) * (1 + NEAR_THICKNESS)),
        "profiles": sorted({one.profile for one in made}),
    }
    return {
        "name": NAME,
        "recipe": [asdict(stage) | {"learns": type(stage.objective).__name__} for stage in stages],
        "commit": current_commit(),
        "data": [
            stack.origin | {"fingerprint": stack.fingerprint, "learnt_from": stack.fingerprint in from_these}
            for stack in stacks
        ],
        "envelope": own if start is None else read_card(start)["envelope"],
        "started_from": None if start is None else describe_start(start),
        "processes": f"1 x {'cuda' if torch.cuda.is_available() else 'cpu'}",
    }


def _keep(made: Sequence[Synthetic], learnt: Sequence[Stack], folder: Path) -> None:
    """Write the synthesised volumes, marked as such in their headers and by their names."""
    for number, (one, stack) in enumerate(zip(made, learnt, strict=True), 1):
        write(
            as_synthetic(to_patient_space(one.thin.voxels, stack, one.corner)), folder / f"synthetic-{number:03}.nii.gz"
        )


def _show(
    path: Path, made: Sequence[Synthetic], learnt: Sequence[Stack], looks: dict[str, Any], trained: dict[str, Any]
) -> None:
    shown = [_compared(one, stack) for one, stack in list(zip(made, learnt, strict=True))[:SHOWN]]
    facts = [
        (f"{name}: length", f"{length['steps']} steps, {length['minutes']} min") for name, length in trained.items()
    ]
    away = "of the intensity range away (RMS)"
    facts += [
        (f"{name}: slices made again", "diverged" if each["diverged"] else f"{each['looks'][-1]['error']:.4f} {away}")
        for name, each in looks.items()
    ]
    words = (
        "On the left a scan as it was acquired, on the right the volume that was synthesised from its slices. What "
        "lies between the acquired slices is invented: such volumes teach the network, they are no answer, and must "
        "not be paired with the scan."
    )
    write_page("thinslice: synthesised volumes", words, facts, shown, path)


def _compared(one: Synthetic, stack: Stack) -> Comparison:
    """The part of a scan that a volume was synthesised from, and the volume."""
    rows, columns = (slice(at, at + n) for at, n in zip(one.corner, one.thin.voxels.shape[1:], strict=True))
    acquired = to_patient_space(stack.slices[:, rows, columns], stack, one.corner)
    return Comparison(stack.name, acquired, to_patient_space(one.thin.voxels, stack, one.corner), stack.plan.axis)
