"""Recipes: each is a short list of stages, read top to bottom, and ends with a model file.

A stage says where thin volumes come from, how they are made thick, which network learns, for how long, and which
weights it starts from. ``thinslice train NAME`` runs one.
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
from thinslice.networks.contract import SlabNetwork
from thinslice.networks.slab import SlabNet
from thinslice.training.corpus import Ranges, Thin, batch_at, load_isotropic, load_thick
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit, join_world, training_length

VALID_FACTOR = (1.5, 10.0)
VALID_THICKNESS = (0.6, 1.3)
GENTLER = 0.5
"""Share of the full rates for weights that are already good: at the full rate they forget first (LOG.md)."""


@dataclass(frozen=True)
class Stage:
    """One training from one source.

    Attributes:
        name: folder of its checkpoint and log inside the output folder.
        sources: folder under ``--data`` -> how it is read and how often drawn.
        network: settings of `SlabNet`.
        ranges: what acquisitions are drawn from.
        schedule: how long and how fast.
        patches, size, slabs: of a batch; in-plane pixels; thick slices whose thin content is predicted.
        start: name of an earlier stage whose averaged weights are the start, None for fresh ones.
    """

    name: str
    sources: dict[str, float]
    network: dict[str, Any]
    ranges: Ranges = field(default_factory=Ranges)
    schedule: Schedule = field(default_factory=Schedule)
    patches: int = 3
    size: int = 48
    slabs: int = 4
    start: str | None = None


def default() -> list[Stage]:
    """The embedded weights: near-isotropic MR, every geometry in one training."""
    return [Stage(name="iso", sources={"iso_train": 1.0}, network={}, schedule=Schedule(save_every=200))]


RECIPES: dict[str, Callable[[], list[Stage]]] = {"default": default}


def run(
    recipe: str,
    data: Path,
    out: Path,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    start: Path | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Run a recipe; returns the model file, ``out/RECIPE.onnx``, with its card beside it.

    Args:
        recipe: a key of `RECIPES`.
        data: folder that holds the stages' source folders.
        out: checkpoints, logs and the model go here.
        resume: continue from the checkpoints in ``out``.
        start: a model file whose weights the first stage starts from; default: fresh ones.
        minutes, steps: length of the last stage instead of the recipe's own.
        report: receives progress lines.

    Raises:
        ModelRefused: there is no such recipe.
        InputRefused: a source folder is missing or empty, or ``out`` holds another run and ``resume`` is off.
    """
    if recipe not in RECIPES:
        raise ModelRefused(f"got recipe {recipe!r}; need one of {', '.join(RECIPES)}; next: choose one of them")
    stages = RECIPES[recipe]()
    if minutes is not None or steps is not None:
        last = stages[-1]
        length = {"minutes": minutes} if steps is None else {"minutes": None, "steps": steps}
        stages[-1] = replace(last, schedule=replace(last.schedule, **length))
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
    trained: dict[str, SlabNetwork] = {}
    for stage in stages:
        corpus = load_sources(data, stage.sources)
        report(f"{stage.name}: {len(corpus)} volumes")
        torch.manual_seed(0)
        network = SlabNet(**stage.network)
        if start is not None and stage is stages[0]:
            load_weights(network, start)
        if stage.start is not None:
            network.load_state_dict(trained[stage.start].state_dict())
        batches = _batches(corpus, stage, network.context, seed)
        trained[stage.name] = fit(network, batches, out / stage.name, stage.schedule, resume, report)
    path = out / f"{recipe}.onnx"
    if rank != 0:
        return path
    card = make_card(recipe, stages, data) | {
        "started_from": _lineage(start) if start is not None else None,
        "trained": {stage.name: training_length(out / stage.name) for stage in stages},
        "processes": f"{world} x {device.type}",
    }
    digest = export(trained[stages[-1].name], card, path)
    report(f"wrote {path} (sha256 {digest[:12]})")
    return path


def load_sources(data: Path, sources: dict[str, float]) -> list[Thin]:
    """The volumes of a stage: of folders named ``iso...`` any axis may become thick, of others the in-plane ones."""
    corpus: list[Thin] = []
    for name, weight in sources.items():
        folder = data / name
        if not folder.is_dir():
            raise InputRefused(f"got --data {data}, which has no folder {name}; need it; next: check --data")
        load = load_isotropic if name.startswith("iso") else load_thick
        corpus += [replace(thin, weight=thin.weight * weight) for thin in load(folder)]
    return corpus


def make_card(recipe: str, stages: Sequence[Stage], data: Path) -> dict[str, Any]:
    """Where the weights come from and what they are valid for."""
    return {
        "name": recipe,
        "recipe": [asdict(stage) for stage in stages],
        "commit": _commit(),
        "data": [row for stage in stages for name in stage.sources for row in _manifest_rows(data, name)],
        "envelope": {
            "factor": VALID_FACTOR,
            "thickness_over_spacing": VALID_THICKNESS,
            "profiles": ["gaussian", "box"],
        },
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


def _batches(corpus: Sequence[Thin], stage: Stage, context: int, seed: int) -> Callable[[int], Any]:
    def batches(step: int) -> Any:
        return batch_at(step, seed, corpus, stage.ranges, stage.patches, stage.size, stage.slabs, context + 1)

    return batches


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
