"""Recipes: each is a short list of stages, read top to bottom, and ends with model files.

A stage says where thin volumes come from, what is learnt from them (which network, how they are made thick, which
loss), for how long, and which weights it starts from. ``thinslice train NAME`` runs one.
"""

import csv
import hashlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from thinslice.errors import InputRefused, ModelRefused
from thinslice.networks.contract import Network
from thinslice.training.corpus import Thin, load_isotropic, load_thick
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit, join_world, training_length
from thinslice.training.planes import Shrinking
from thinslice.training.tasks import Planes, Slabs, Task

CT_SHARE = 0.6
"""Of the slices of every CT scan, from the first on: what is learnt from. Scores come from the last third."""

GENTLER = 0.5
"""Share of the full rates for weights that are already good: at the full rate they forget first (LOG.md)."""


@dataclass(frozen=True)
class Stage:
    """One training from one source.

    Attributes:
        name: folder of its checkpoint and log inside the output folder.
        sources: folder under ``--data`` -> how often drawn; how it is read follows from its name, see `load_sources`.
        task: what is learnt.
        schedule: how long and how fast.
        start: name of an earlier stage whose averaged weights are the start, None for fresh ones.
        model: name of the model file that it ends with, None for a stage that only prepares another.
    """

    name: str
    sources: dict[str, float]
    task: Task = field(default_factory=Slabs)
    schedule: Schedule = field(default_factory=Schedule)
    start: str | None = None
    model: str | None = None


def default() -> list[Stage]:
    """The embedded weights: near-isotropic MR, every geometry in one training."""
    return [Stage("iso", {"iso_train": 1.0}, schedule=Schedule(save_every=200), model="default")]


def planes() -> list[Stage]:
    """Both networks of Georgescu et al., for x2 and x4, for MR and for CT."""
    return [
        Stage(
            f"{scanner}-{part}-x{factor}",
            {source: 1.0},
            Planes(part, Shrinking(factor), hounsfield=scanner == "ct"),
            Schedule(steps=4000, save_every=200),
            model=f"planes-{scanner}.{part}-x{factor}",
        )
        for scanner, source in (("mr", "iso_train"), ("ct", "ct"))
        for part in ("in-plane", "depth")
        for factor in (2, 4)
    ]


RECIPES: dict[str, Callable[[], list[Stage]]] = {"default": default, "planes": planes}


def run(
    recipe: str,
    data: Path,
    out: Path,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    start: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Run a recipe by its name, see `run_stages`.

    Raises:
        ModelRefused: there is no such recipe.
    """
    if recipe not in RECIPES:
        raise ModelRefused(f"got recipe {recipe!r}; need one of {', '.join(RECIPES)}; next: choose one of them")
    return run_stages(RECIPES[recipe](), data, out, resume, minutes, steps, start, report)


def run_stages(
    stages: list[Stage],
    data: Path,
    out: Path,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    start: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Run the stages of a recipe; returns the model files, ``out/NAME.onnx``, each with its card beside it.

    Args:
        stages: in order.
        data: folder that holds the stages' source folders.
        out: checkpoints, logs and models go here.
        resume: continue from the checkpoints in ``out``.
        start: a model file whose weights the first stage starts from; default: fresh ones.
        minutes, steps: length of the whole recipe instead of its own, shared out over the stages as that is.
        report: receives progress lines.

    Raises:
        InputRefused: a source folder is missing or empty, or ``out`` holds another run and ``resume`` is off.
    """
    stages = _of_length(list(stages), minutes, steps)
    seed = 0
    if start is not None:
        stages[0] = replace(stages[0], schedule=_gentler(stages[0].schedule))
        seed = int(_lineage(start)["sha256"][:8], 16)  # not the batches that made the start
    if not resume and any((out / stage.name / "checkpoint.pt").exists() for stage in stages):
        raise InputRefused(
            f"got {out}, which holds an earlier training; need an empty folder; next: --resume, or another -o"
        )
    rank, world, device = join_world()
    report = report if rank == 0 else _silent
    trained: dict[str, Network] = {}
    models = []
    for number, stage in enumerate(stages):
        corpus = load_sources(data, stage.sources)
        report(f"{stage.name}: {len(corpus)} volumes")
        torch.manual_seed(0)
        network = stage.task.make_network()
        if start is not None and number == 0:
            load_weights(network, start)
        if stage.start is not None:
            network.load_state_dict(trained[stage.start].state_dict())
        batch_at = _numbered(stage.task, seed, corpus)
        network = fit(network, batch_at, stage.task.loss, out / stage.name, stage.schedule, resume, report)
        trained[stage.name] = network
        if stage.model is None:
            continue
        models.append(out / f"{stage.model}.onnx")
        if rank == 0:
            card = make_card(stage.model, _behind(stage, stages), data) | {
                "started_from": _lineage(start) if start is not None else None,
                "trained": {s.name: training_length(out / s.name) for s in _behind(stage, stages)},
                "processes": f"{world} x {device.type}",
            }
            digest = export(network, card, models[-1])
            report(f"wrote {models[-1]} (sha256 {digest[:12]})")
    return models


def load_sources(data: Path, sources: dict[str, float]) -> list[Thin]:
    """The volumes of a stage: of folders named ``iso...`` any axis may become thick, of others the in-plane ones.

    Of computed tomography (``ct``), which has no folder of its own to be scored on, the first slices are learnt from.
    """
    corpus: list[Thin] = []
    for name, weight in sources.items():
        folder = data / name
        if not folder.is_dir():
            raise InputRefused(f"got --data {data}, which has no folder {name}; need it; next: check --data")
        share = CT_SHARE if name == "ct" else 1.0
        thin = load_isotropic(folder) if name.startswith("iso") else load_thick(folder, share)
        corpus += [replace(volume, weight=volume.weight * weight) for volume in thin]
    return corpus


def make_card(name: str, stages: Sequence[Stage], data: Path) -> dict[str, Any]:
    """Where the weights come from and what they are valid for."""
    return {
        "name": name,
        "recipe": [asdict(stage) for stage in stages],
        "commit": _commit(),
        "data": [row for stage in stages for name in stage.sources for row in _manifest_rows(data, name)],
        "envelope": stages[-1].task.envelope,
    }


def _lineage(start: Path) -> dict[str, Any]:
    """What a model file says of its own training, for the card of what begins with its weights."""
    card = read_card(start)
    known = {key: card.get(key) for key in ("commit", "trained", "processes", "started_from")}
    return {"sha256": hashlib.sha256(start.read_bytes()).hexdigest(), **known}


def _silent(line: str) -> None:
    """What the other processes of a parallel training have to say."""


def _gentler(schedule: Schedule) -> Schedule:
    return replace(schedule, rate=GENTLER * schedule.rate, muon_rate=GENTLER * schedule.muon_rate)


def _of_length(stages: list[Stage], minutes: float | None, steps: int | None) -> list[Stage]:
    """The stages as they are, or sharing so many minutes or steps in proportion to their own steps."""
    whole = sum(stage.schedule.steps for stage in stages)

    def share(schedule: Schedule) -> Schedule:
        part = schedule.steps / whole
        if steps is not None:
            return replace(schedule, minutes=None, steps=max(1, round(steps * part)))
        return schedule if minutes is None else replace(schedule, minutes=minutes * part)

    return [replace(stage, schedule=share(stage.schedule)) for stage in stages]


def _behind(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The stages whose weights a stage builds on, and itself, in order."""
    chain = [stage]
    while chain[0].start is not None:
        chain.insert(0, next(s for s in stages if s.name == chain[0].start))
    return chain


def _numbered(task: Task, seed: int, corpus: Sequence[Thin]) -> Callable[[int], Any]:
    return lambda number: task.batch_at(number, seed, corpus)


def _manifest_rows(data: Path, folder: str) -> list[dict[str, str]]:
    """Name, licence and source of every volume of a folder, from the data set's manifest if it has one."""
    manifest = data / "manifest.csv"
    files = sorted(path.name for path in (data / folder).glob("*.nii*"))
    if not manifest.exists():
        return [{"file": f"{folder}/{name}"} for name in files]
    with manifest.open(newline="") as lines:
        rows = {row["file"]: row for row in csv.DictReader(lines)}
    keys = ("file", "licence", "source")
    return [{k: rows.get(f"{folder}/{name}", {"file": name}).get(k, "unknown") for k in keys} for name in files]


def _commit() -> str:
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
