"""The one runner: checks what is asked, begins or goes on, runs the stages, and writes checkpoints, logs and models.

`train_on_data` is for recipes that learn from a folder of sources. Those that learn from scans that shall be made thin,
`thinslice.training.recipes.no_ground_truth` and `thinslice.training.recipes.adapt`, prepare the scans and call
`run_stages` as it does.
"""

import hashlib
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from thinslice.errors import InputRefused, ModelRefused, OutputRefused
from thinslice.io.outputs import check_writable
from thinslice.networks.contract import Network
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit, join_world, training_length
from thinslice.training.recipes import load_recipe
from thinslice.training.run_state import RunFolder
from thinslice.training.sources import Folders, folder_of, with_source
from thinslice.training.stages import Check, Inputs, Report, Stage

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        networks: the network that each stage ended with, by its name.
        checks: the check of each stage that has one.
        lengths: steps and minutes behind each stage.
        volumes: what the last stage learnt from.
        models: the model files, in order.
    """

    networks: dict[str, Network] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    volumes: Sequence[Any] = ()
    models: list[Path] = field(default_factory=list)


# ---- recipes that learn from a folder of sources


def train(recipe: str, data: Path, out: Path, **options: Any) -> list[Path]:
    """Runs a recipe by its name; arguments and errors are those of `train_on_data`.

    Raises:
        ModelRefused: there is no such recipe, or it learns from scans, or ends without a model.
    """
    found = load_recipe(recipe)
    if found.train_on_scans is not None:
        raise ModelRefused(
            got=f"recipe {recipe}, which learns from scans",
            need="one that learns from a folder of sources",
            next="choose another recipe",
            code="recipe-learns-from-scans",
        )
    stages = found.stages()
    # Hours would be spent on it, with nothing to show for them.
    if not any(stage.model for stage in stages):
        raise ModelRefused(
            got=f"recipe {recipe}, no stage of which ends with a model file",
            need="one that does",
            next="say the name of the file as `model` of its last stage",
            code="recipe-without-model",
        )
    return train_on_data(stages, data, out, recipe=recipe, **options)


def train_on_data(
    stages: Sequence[Stage],
    data: Path,
    out: Path,
    recipe: str = "",
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    start_from: Path | None = None,
    add_source: Sequence[str] = (),
    report: Report = print,
    seed: int = 0,
) -> list[Path]:
    """Runs stages that learn from a folder of sources; returns the model files, ``out/NAME.onnx``, each with its card.

    Args:
        stages: in order.
        data: folder that holds the stages' source folders.
        out: checkpoints, logs and models go here.
        recipe: its name, by which alone a run in ``out`` is resumed.
        resume: continue from the checkpoints in ``out``.
        minutes: length of the whole recipe instead of its own, shared out over the stages as that is. A resumed run
            keeps its length unless another is given.
        steps: likewise.
        start_from: a model file whose weights the first stage starts from that trains such a network, or a folder with
            the files of an earlier run of the same recipe, each of which its stage starts from; None: fresh ones.
        add_source: further folders of ``data``; each is learnt from by the stages that learn from such as it.
        report: receives progress lines.
        seed: of the first weights and of the batches.

    Raises:
        InputRefused: a source folder is missing or empty, no stage learns from an added one, or ``out`` holds another
            run.
        ModelRefused: a start does not fit.
        OutputRefused: ``out`` holds a model and ``resume`` is off, or another run is at work in it.
    """
    rank, _, _ = join_world()
    if rank == 0:
        check_writable(out)
    folder = RunFolder(out)
    check_unused(folder, stages, resume)
    # One process holds the lock for all: the others would find the folder in use.
    with folder if rank == 0 else nullcontext():
        request: dict[str, Any] = {"recipe": recipe, "start_from": None if start_from is None else str(start_from)}
        request |= {"add_source": list(add_source), "minutes": minutes, "steps": steps}
        if resume:
            optional, length = ("start_from", "add_source"), ("minutes", "steps")
            request = folder.complete(request, optional, may_change=length)
        for name in request["add_source"]:
            stages = with_source(name, stages, data)
        for name in dict.fromkeys(n for s in stages if isinstance(s.source, Folders) for n in s.source.weights):
            folder_of(data, name)
        starts = find_starts(stages, request["start_from"])
        stages = share_length(needed_stages(stages, starts), request["minutes"], request["steps"])
        return run_stages(stages, Inputs(data), folder, request, starts=starts, seed=seed, report=report).models


# ---- all recipes


def check_unused(folder: RunFolder, stages: Sequence[Stage], resume: bool, others: Iterable[Path] = ()) -> None:
    """Refuses a folder that holds a training, or what would be replaced, unless it is resumed.

    Raises:
        InputRefused: it holds a training.
        OutputRefused: it holds a model, its card, or one of the ``others`` that the recipe writes.
    """
    if resume:
        return
    if any((folder.stage(stage.name) / "checkpoint.pt").exists() for stage in stages):
        raise InputRefused(
            got=f"{folder.folder}, which holds an earlier training",
            need="an empty folder",
            next="go on with it by `resume`, or choose another folder",
            code="training-exists",
        )
    models = [folder.folder / f"{stage.model}{end}" for stage in stages if stage.model for end in (".onnx", ".json")]
    for file in (*models, *others):
        if file.exists():
            raise OutputRefused(
                got="an output that is there already",
                need="an empty folder",
                next="choose another folder, or go on with a training of this recipe by `resume`",
                place=file,
                code="output-exists",
            )


def use_threads(count: int) -> None:
    """Makes trainings of this process compute with so many threads."""
    torch.set_num_threads(count)


def check_one_process() -> None:
    """Refuses several processes, for recipes that validate their weights.

    Raises:
        InputRefused: torchrun started more than one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputRefused(
            got=f"{os.environ['WORLD_SIZE']} processes of torchrun",
            need="one, which uses all cores",
            next="start it without torchrun",
            code="several-processes",
        )


def find_starts(stages: Sequence[Stage], start: str | Path | None) -> dict[str, Path]:
    """Returns the model file that stages start from, by their names.

    A file is for the first stage that trains such a network as the first model has; of a folder every stage takes its
    own.

    Raises:
        ModelRefused: the folder holds none of them.
    """
    if start is None:
        return {}
    if not Path(start).is_dir():
        wanted = next(stage for stage in stages if stage.model is not None).network
        return {next(stage.name for stage in stages if stage.network == wanted): Path(start)}
    files = {stage.name: Path(start) / f"{stage.model}.onnx" for stage in stages if stage.model is not None}
    found = {name: path for name, path in files.items() if path.exists()}
    if not found:
        raise ModelRefused(
            got=f"`start_from={start}`, which holds no model of this recipe",
            need=next(iter(files.values())).name,
            next="give the output folder of an earlier run",
            code="start-without-models",
        )
    return found


def run_stages(
    stages: Sequence[Stage],
    inputs: Inputs,
    folder: RunFolder,
    request: Mapping[str, Any],
    starts: Mapping[str, Path] | None = None,
    models: Path | None = None,
    card: Mapping[str, Any] | None = None,
    seed: int = 0,
    report: Report = print,
) -> Outcome:
    """Runs stages, each from where it was interrupted, and writes the models that they end with.

    Args:
        stages: in order.
        inputs: what they learn from.
        folder: checkpoints and logs go here.
        request: what is kept there of what was asked.
        starts: name of a stage -> the model file whose weights it starts from, at gentle rates (`Schedule.gentle`).
        models: folder of the model files; None: that of the checkpoints.
        card: facts for the model cards besides those that follow from the stages.
        seed: of the first weights and of the batches.
        report: receives progress lines.

    Raises:
        InputRefused: there is nothing to learn from.
        ModelRefused: a start does not fit.
        OutputRefused: there is no room.
    """
    rank, world, device = join_world()
    report = report if rank == 0 else _report_nothing
    starts = starts or {}
    for stage in stages:
        if stage.name in starts:  # refused before any work
            load_weights(stage.network.build(), starts[stage.name])
    done = Outcome()
    for stage in stages:
        done.volumes = stage.source.volumes(inputs, done.networks)
        if summary := stage.source.describe(inputs, done.volumes):
            report(f"{stage.name}: {summary}")
        # Only now: a run that finds nothing to learn from leaves no request that would refuse the next one.
        if rank == 0:
            folder.begin(request)
        _train_stage(stage, inputs, done, folder, starts.get(stage.name), seed, report)
        if stage.model is None:
            continue
        model = (models or folder.folder) / f"{stage.model}.onnx"
        done.models.append(model)
        behind = stages_behind(stage, stages, starts)
        trained = {one.name: done.lengths[one.name] for one in behind} if rank == 0 else {}
        # Of this length: a run that was lengthened since has other weights.
        if rank == 0 and not folder.is_finished(model, trained):
            facts = make_card(stage, behind, inputs, done, starts)
            facts |= {"trained": trained, "processes": f"{world} x {device.type}"} | dict(card or {})
            digest = _write_model(done.networks[stage.name], facts, model, folder.stage(stage.name))
            folder.finish(model, trained)
            report(f"wrote {model} (sha256 {digest[:12]})")
    return done


def _train_stage(
    stage: Stage, inputs: Inputs, done: Outcome, folder: RunFolder, start: Path | None, seed: int, report: Report
) -> None:
    """Trains the network of one stage and adds it to what is done."""
    rank, _, _ = join_world()
    # Weights and batches are drawn from the seed alone, whatever the stages before drew.
    torch.manual_seed(seed)
    network, schedule = stage.network.build(), stage.schedule
    if start is not None:
        load_weights(network, start)
        schedule = schedule.gentle()
        if inputs.data is not None:  # the start may have learnt from the same folders: not from the same batches again
            seed += int(describe_start(start)["sha256"][:8], 16)
    elif stage.start is not None:
        network.load_state_dict(done.networks[stage.start].state_dict())
    place = folder.stage(stage.name)
    check = None
    if stage.check is not None:
        check = stage.check.begin(stage.objective, network, inputs, place, report)
        schedule = check.fit_into(schedule)
    logger.debug("%s: %s", stage.name, schedule)
    batch_at = stage.objective.batches(done.volumes, seed, network)
    # A check tells of most steps, and more of each; the others are for slow machines, on which they come seldom.
    lines = report if check is None else partial(_report_steps, report)
    network = fit(network, batch_at, stage.objective.loss, place, schedule, True, lines, check)
    done.networks[stage.name] = network if check is None else check.choose(network)
    if check is not None:
        done.checks[stage.name] = check
    if rank == 0:
        done.lengths[stage.name] = training_length(place)


def _report_steps(report: Report, line: str) -> None:
    """Passes on the lines about steps alone."""
    if line.startswith("step"):
        report(line)


def _report_nothing(line: str) -> None:
    """Says nothing, as the other processes of a parallel training do."""


def _write_model(network: Network, card: dict[str, Any], model: Path, work: Path) -> str:
    """Writes a model file and its card by way of the stage's folder, so that a kill leaves nothing beside others.

    The card comes first: it is the model that says that all is done.
    """
    digest = export(network, card, work / "model.onnx")
    model.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work / "model.json", model.with_suffix(".json"))
    os.replace(work / "model.onnx", model)
    return digest


# ---- lengths


def share_length(stages: Sequence[Stage], minutes: float | None, steps: int | None) -> list[Stage]:
    """Returns the stages as they are, or sharing so many minutes or steps in proportion to their own steps."""
    whole = sum(stage.schedule.steps for stage in stages)

    def share(schedule: Schedule) -> Schedule:
        part = schedule.steps / whole
        if steps is not None:
            return replace(schedule, minutes=None, steps=max(1, round(steps * part)))
        return schedule if minutes is None else replace(schedule, minutes=minutes * part)

    return [replace(stage, schedule=share(stage.schedule)) for stage in stages]


# ---- which stage builds on which


def stages_behind(stage: Stage, stages: Sequence[Stage], starts: Mapping[str, Path]) -> list[Stage]:
    """Returns the stages of this run whose weights a stage builds on, and itself, in order.

    It builds on those that its source needs, and on the one that it starts from, unless a file takes that one's place.
    """
    named = {one.name: one for one in stages}
    start = () if stage.start is None or stage.name in starts else (stage.start,)
    behind = [one for name in (*start, *stage.source.needs) for one in stages_behind(named[name], stages, starts)]
    return [*{one.name: one for one in behind}.values(), stage]


def needed_stages(stages: Sequence[Stage], starts: Mapping[str, Path]) -> list[Stage]:
    """Returns the stages that a model comes of: one that only prepares another is not, where that has a start."""
    used = {one.name for stage in stages if stage.model for one in stages_behind(stage, stages, starts)}
    return [stage for stage in stages if stage.name in used]


# ---- the card


def make_card(
    stage: Stage, behind: Sequence[Stage], inputs: Inputs, done: Outcome, starts: Mapping[str, Path]
) -> dict[str, Any]:
    """Returns where the weights of a stage come from and what they are valid for."""
    start = next((starts[one.name] for one in behind if one.name in starts), None)
    sources: dict[str, list[Any]] = {"data": []}
    for one in behind:
        for key, rows in one.source.attribution(inputs).items():
            sources[key] = sources.get(key, []) + [row for row in rows if row not in sources.get(key, [])]
    known = None if start is None else read_card(start).get("envelope")
    facts: dict[str, Any] = {
        "name": stage.model,
        "recipe": [one.to_card() for one in behind],
        "commit": current_commit(),
        "envelope": stage.objective.envelope(done.volumes, known),
        "started_from": None if start is None else describe_start(start),
    }
    checks = {one.name: done.checks[one.name] for one in behind if one.name in done.checks}
    if checks:
        facts["validation"] = {name: check.validation() for name, check in checks.items()}
    return facts | sources | {key: fact for check in checks.values() for key, fact in check.verdict().items()}


def describe_start(start: Path) -> dict[str, Any]:
    """Returns what a model file says of its own training, for the card of what begins with its weights."""
    card = read_card(start)
    known = {key: card.get(key) for key in ("commit", "trained", "processes", "started_from")}
    return {"sha256": hashlib.sha256(start.read_bytes()).hexdigest(), **known}


def current_commit() -> str:
    """Returns the commit of the source that runs, "unknown" where it is not under version control."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return answer.stdout.strip() or "unknown"
