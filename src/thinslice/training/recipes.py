"""Recipes: each is a short list of stages, read top to bottom, and ends with model files.

A stage says where thin volumes come from, what is learnt from them (which network, how they are made thick, which
loss), for how long, and which weights it starts from. ``thinslice train NAME`` runs one.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from thinslice.errors import InputRefused, ModelRefused, OutputRefused
from thinslice.io.atomic import whole_or_not
from thinslice.models.plane_networks import Part
from thinslice.networks.contract import Network
from thinslice.training.clips import find_clips, holds_clips, load_clips
from thinslice.training.corpus import AcquisitionRanges, TrainingVolume, load_isotropic, load_thick
from thinslice.training.export import export, load_weights, read_card
from thinslice.training.fit import Schedule, fit, join_world, training_length
from thinslice.training.manifest import UNKNOWN, provenance
from thinslice.training.objectives import Objective, PlaneObjective, SlabObjective
from thinslice.training.planes import Shrinking

CT_SHARE = 0.6
"""Of the slices of every CT scan, from the first on: what is learnt from. Scores come from the last third."""

GENTLER = 0.5
"""Share of the full rates for weights that are already good: at the full rate they forget first (LOG.md)."""


_PLANES: tuple[tuple[Part, int], ...] = (("in-plane", 2), ("in-plane", 4), ("depth", 2), ("depth", 4))


@dataclass(frozen=True)
class Stage:
    """One training from one source.

    Attributes:
        name: folder of its checkpoint and log inside the output folder.
        sources: folder under ``--data`` -> how often drawn; how it is read follows from what it is, see `load_sources`.
        task: what is learnt.
        schedule: how long and how fast.
        start: name of an earlier stage whose averaged weights are the start, None for fresh ones.
        model: name of the model file that it ends with, None for a stage that only prepares another.
    """

    name: str
    sources: dict[str, float]
    objective: Objective = field(default_factory=SlabObjective)
    schedule: Schedule = field(default_factory=Schedule)
    start: str | None = None
    model: str | None = None


def default() -> list[Stage]:
    """The embedded weights: near-isotropic MR, every geometry in one training."""
    return [Stage("iso", {"iso_train": 1.0}, schedule=Schedule(save_every=200), model="default")]


def default_large() -> list[Stage]:
    """`default` for a GPU: steps of 32 times as many pixels, in patches of four times as many, so edges matter less."""
    schedule = Schedule(steps=10_000, batches=4, save_every=500)
    return [Stage("iso", {"iso_train": 1.0}, SlabObjective(patches=12, size=96), schedule, model="default")]


def video_mr(kept: float = 1.0) -> list[Stage]:
    """Stages 1 and 2 of Wang et al. (ISBI 2024, arXiv 2406.05974): pre-training on video, then near-isotropic MR.

    Video clips are volumes whose slices are frames; what lies between the frames that are kept is predicted. A quarter
    of all steps goes there, and all of them together are as many as those of `default`.

    Unlike theirs: the network of `default`, any open clips, 2 to 4 times fewer frames, four patches of two slabs (what
    a clip of 16 frames has room for), averaged weights handed on. Their stage 3 learns from the target scans.

    Args:
        kept: share of batches in which every n-th frame is kept, as in the paper; the frames of the others are averaged
            under a slice profile, as a scanner would.
    """
    ranges = AcquisitionRanges(factor=(2.0, 4.0), whole=(2, 3, 4), fractional=False, kept=kept, ends="slices")
    return [
        Stage(
            "video",
            {"video": 1.0},
            SlabObjective(ranges=ranges, patches=4, slabs=2),
            Schedule(steps=5_000, save_every=200),
        ),
        Stage(
            "iso",
            {"iso_train": 1.0},
            schedule=Schedule(steps=15_000, save_every=200),
            start="video",
            model="video-mr" if kept else "video-mr-average",
        ),
    ]


def planes() -> list[Stage]:
    """The embedded networks for planes: for x2 and x4, for MR, and from there for CT, of which there is less."""

    def objective(part: Part, factor: int, hounsfield: bool) -> PlaneObjective:
        narrow = part == "depth" and factor == 2  # which has the most pixels to go through for what it adds
        widths = {"width": 16 if narrow else 32, "fine_width": 16}
        return PlaneObjective(part, Shrinking(factor), widths, hounsfield=hounsfield, patches=8 // factor)

    mr = [_planes_stage("mr", "iso_train", part, factor, objective(part, factor, False)) for part, factor in _PLANES]
    for_ct = [objective(part, factor, True) for part, factor in _PLANES]
    schedule = with_gentle_rates(Schedule(steps=4000, save_every=200))
    return mr + [
        replace(
            _planes_stage("ct", "ct", objective.part, objective.shrinking.factor, objective),
            schedule=schedule,
            start=stage.name,
        )
        for objective, stage in zip(for_ct, mr, strict=True)
    ]


def planes_paper() -> list[Stage]:
    """After Georgescu et al.: the image anew, their widths, bicubic downscaling and blur, Adam at 1e-3.

    Unlike theirs: larger patches, intensities 0 .. 1, a warm-up and a decaying rate, averaged weights, the depth rate
    (theirs is 1e-4 in-plane), and no ReLU where the two answers are made.
    """
    return [
        replace(
            _planes_stage(
                scanner,
                source,
                part,
                factor,
                PlaneObjective(
                    part,
                    Shrinking(factor, scanner=0.0),
                    {"residual": False, "fine_width": 32},
                    hounsfield=scanner == "ct",
                    patches=8 // factor,
                ),
            ),
            schedule=Schedule(steps=8000, save_every=200, rate=1e-3, muon_rate=0.0, weight_decay=0.0),
        )
        for scanner, source in (("mr", "iso_train"), ("ct", "ct"))
        for part, factor in _PLANES
    ]


def _planes_stage(scanner: str, source: str, part: Part, factor: int, objective: PlaneObjective) -> Stage:
    return Stage(
        f"{scanner}-{part}-x{factor}",
        {source: 1.0},
        objective,
        Schedule(steps=8000, save_every=200),
        model=f"planes-{scanner}.{part}-x{factor}",
    )


RECIPES: dict[str, Callable[[], list[Stage]]] = {
    "default": default,
    "default-large": default_large,
    "video-mr": video_mr,
    "video-mr-average": partial(video_mr, kept=0.0),
    "planes": planes,
    "planes-paper": planes_paper,
}


def run(
    recipe: str,
    data: Path,
    out: Path,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    start: Path | None = None,
    more_sources: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Run a recipe by its name, see `run_stages`.

    Args:
        more_sources: further folders under ``data``; each is learnt from by the stages that learn from such as it.

    Raises:
        InputRefused: no stage learns from folders such as one of ``more_sources``.
        ModelRefused: there is no such recipe.
    """
    if recipe not in RECIPES:
        raise ModelRefused(f"got recipe {recipe!r}; need one of {', '.join(RECIPES)}; next: choose one of them")
    asked = _asked(out, resume, start, more_sources)
    stages = RECIPES[recipe]()
    for name in asked["more_sources"]:
        stages = _also_from(name, stages, data)
    start = Path(asked["start"]) if asked["start"] is not None else None
    return run_stages(stages, data, out, resume, minutes, steps, start, report, asked=asked)


def _asked(out: Path, resume: bool, start: Path | None, more_sources: Sequence[str]) -> dict[str, Any]:
    """What a run learns from and begins with: as it was begun, where it is resumed."""
    asked = {"start": None if start is None else str(start), "more_sources": list(more_sources)}
    known = _known(out) if resume else {}
    for key, option in (("start", "--start-from"), ("more_sources", "--add-source")):
        if key in known and asked[key] not in (known[key], None, []):
            raise InputRefused(
                f"got {out}, a training that was begun with another {option} ({known[key]}); need the same to resume "
                f"it; next: leave {option} out, or take another -o"
            )
        asked[key] = known.get(key, asked[key])
    return asked


def _also_from(name: str, stages: Sequence[Stage], data: Path) -> list[Stage]:
    """The stages, with one more source for those that learn from folders such as it."""
    kind = _kind_of(_folder_of(data, name))
    fits = [any(_kind_of(_folder_of(data, source)) == kind for source in stage.sources) for stage in stages]
    if not any(fits):
        known = sorted({source for stage in stages for source in stage.sources})
        raise InputRefused(
            f"got --add-source {name}, a folder of {_KINDS[kind]}; need one such as {', '.join(known)}, which this "
            "recipe learns from; next: choose another recipe, or name a folder of near-isotropic volumes iso..."
        )
    pairs = zip(stages, fits, strict=True)
    return [replace(stage, sources=stage.sources | {name: 1.0}) if fit else stage for stage, fit in pairs]


def run_stages(
    stages: list[Stage],
    data: Path,
    out: Path,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    start: Path | None = None,
    report: Callable[[str], None] = print,
    seed: int = 0,
    asked: dict[str, Any] | None = None,
) -> list[Path]:
    """Run the stages of a recipe; returns the model files, ``out/NAME.onnx``, each with its card beside it.

    Args:
        stages: in order.
        data: folder that holds the stages' source folders.
        out: checkpoints, logs and models go here.
        resume: continue from the checkpoints in ``out``.
        start: a model file whose weights the first stage starts from, or a folder with the files of an earlier run of
            the same recipe, each of which its stage starts from; default: fresh ones.
        minutes, steps: length of the whole recipe instead of its own, shared out over the stages as that is. A resumed
            run keeps its length unless another is given.
        report: receives progress lines.
        seed: of the first weights and of the batches.
        asked: what else is kept of the wish, for a run that resumes it.

    Raises:
        InputRefused: a source folder is missing or empty, or ``out`` holds another run and ``resume`` is off.
        ModelRefused: a start does not fit.
    """
    if not resume and any((out / stage.name / "checkpoint.pt").exists() for stage in stages):
        raise InputRefused(
            f"got {out}, which holds an earlier training; need an empty folder; next: --resume, or another -o"
        )
    for file in [] if resume else [out / f"{stage.model}.onnx" for stage in stages if stage.model is not None]:
        if file.exists():
            raise OutputRefused(f"{file}: got a model that is there already; need an empty folder; next: another -o")
    for source in dict.fromkeys(name for stage in stages for name in stage.sources):
        _folder_of(data, source)
    starts = _starts(stages, start)
    stages = _needed(stages, starts)
    stages = share_length(stages, *(_length_of(out, minutes, steps) if resume else (minutes, steps)))
    rank, world, device = join_world()
    report = report if rank == 0 else _silent
    trained: dict[str, Network] = {}
    models = []
    for stage in stages:
        corpus = load_sources(data, stage.sources)
        left_out = _left_out(data, stage.sources)
        report(
            f"{stage.name}: {len(corpus)} volumes"
            + (f"; {len(left_out)} clips left out, whose licence is share-alike" if left_out else "")
        )
        torch.manual_seed(seed)
        network, batches, schedule = stage.objective.make_network(), seed, stage.schedule
        begin = starts.get(stage.name)
        if begin is not None:
            load_weights(network, begin)
            schedule = with_gentle_rates(schedule)
            batches += int(describe_start(begin)["sha256"][:8], 16)  # not the batches that made the start
        elif stage.start is not None:
            network.load_state_dict(trained[stage.start].state_dict())
        if rank == 0:
            _keep_wish(out, minutes, steps, asked or {})
        batch_at = _numbered(stage.objective, batches, corpus)
        network = fit(network, batch_at, stage.objective.loss, out / stage.name, schedule, resume, report)
        trained[stage.name] = network
        if stage.model is None:
            continue
        models.append(out / f"{stage.model}.onnx")
        if rank == 0 and not is_model_of(models[-1], training_length(out / stage.name)):
            behind = _behind(stage, stages, starts)
            card = make_card(stage.model, behind, data) | {
                "started_from": describe_start(starts[behind[0].name]) if behind[0].name in starts else None,
                "trained": {s.name: training_length(out / s.name) for s in behind},
                "processes": f"{world} x {device.type}",
            }
            digest = export(network, card, models[-1])
            report(f"wrote {models[-1]} (sha256 {digest[:12]})")
    return models


def load_sources(data: Path, sources: dict[str, float]) -> list[TrainingVolume]:
    """The volumes of a stage. How a folder is read follows from what it is.

    One named ``iso...`` holds near-isotropic volumes, of which any axis may become thick. One that holds clips and no
    NIfTI is read as clips, whose time becomes thick. Any other holds thick scans, of which the in-plane axes do.

    Of computed tomography (``ct``), which has no folder of its own to be scored on, the first slices are learnt from.
    """
    corpus: list[TrainingVolume] = []
    for name, weight in sources.items():
        folder = _folder_of(data, name)
        kind = _kind_of(folder)
        if kind == "isotropic":
            thin = load_isotropic(folder)
        elif kind == "clips":
            thin = load_clips(folder)
        else:
            thin = load_thick(folder, CT_SHARE if name == "ct" else 1.0)
        corpus += [replace(volume, weight=volume.weight * weight) for volume in thin]
    return corpus


Kind = Literal["isotropic", "clips", "thick"]

_KINDS: dict[Kind, str] = {"isotropic": "near-isotropic volumes", "clips": "video clips", "thick": "thick scans"}


def _kind_of(folder: Path) -> Kind:
    if folder.name.startswith("iso"):
        return "isotropic"
    return "clips" if holds_clips(folder) else "thick"


def _left_out(data: Path, sources: Iterable[str]) -> list[str]:
    """The clips of a stage that are not learnt from because of their licence."""
    folders = [data / name for name in sources if _kind_of(data / name) == "clips"]
    return [f"{folder.name}/{path.name}" for folder in folders for path in find_clips(folder)[1]]


def _folder_of(data: Path, name: str) -> Path:
    if not (data / name).is_dir():
        raise InputRefused(f"got --data {data}, which has no folder {name}; need it; next: check --data")
    return data / name


def make_card(name: str, stages: Sequence[Stage], data: Path) -> dict[str, Any]:
    """Where the weights come from and what they are valid for."""
    left_out = [file for stage in stages for file in _left_out(data, stage.sources)]
    return {
        "name": name,
        "recipe": [asdict(stage) | {"learns": type(stage.objective).__name__} for stage in stages],
        "commit": current_commit(),
        "data": [row for stage in stages for name in stage.sources for row in _attribution(data / name)],
        "envelope": stages[-1].objective.envelope,
    } | ({"left_out_as_share_alike": left_out} if left_out else {})


def describe_start(start: Path) -> dict[str, Any]:
    """What a model file says of its own training, for the card of what begins with its weights."""
    card = read_card(start)
    known = {key: card.get(key) for key in ("commit", "trained", "processes", "started_from")}
    return {"sha256": hashlib.sha256(start.read_bytes()).hexdigest(), **known}


def _starts(stages: Sequence[Stage], start: Path | None) -> dict[str, Path]:
    """Name of a stage -> the model file that it starts from."""
    if start is None:
        return {}
    if not start.is_dir():
        return {stages[0].name: start}
    files = {stage.name: start / f"{stage.model}.onnx" for stage in stages if stage.model is not None}
    found = {name: path for name, path in files.items() if path.exists()}
    if not found:
        raise ModelRefused(
            f"got --start-from {start}, which holds no model of this recipe; need {next(iter(files.values())).name}; "
            "next: give the output folder of an earlier run"
        )
    return found


def _keep_wish(out: Path, minutes: float | None, steps: int | None, asked: dict[str, Any]) -> None:
    """For `_asked` and `_length_of`; a length that is known already stays, unless another is given."""
    length = {} if minutes is None and steps is None else {"minutes": minutes, "steps": steps}
    with whole_or_not(out / "wish.json") as temporary:
        temporary.write_text(json.dumps(_known(out) | asked | length) + "\n")


def _length_of(out: Path, minutes: float | None, steps: int | None) -> tuple[float | None, int | None]:
    """What is asked for, else what the run in ``out`` was begun with."""
    if minutes is None and steps is None:
        return _known(out).get("minutes"), _known(out).get("steps")
    return minutes, steps


def _known(out: Path) -> dict[str, Any]:
    file = out / "wish.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return known


def is_model_of(model: Path, length: dict[str, float]) -> bool:
    """Whether a model file was made at the end of a training of that length: then a resumed run leaves it alone."""
    try:
        return bool(list(read_card(model)["trained"].values())[-1] == length)
    except (ModelRefused, KeyError, IndexError):
        return False


def _silent(line: str) -> None:
    """What the other processes of a parallel training have to say."""


def with_gentle_rates(schedule: Schedule) -> Schedule:
    """For weights that are good already, see `GENTLER`."""
    return replace(schedule, rate=GENTLER * schedule.rate, muon_rate=GENTLER * schedule.muon_rate)


def share_length(stages: list[Stage], minutes: float | None, steps: int | None) -> list[Stage]:
    """The stages as they are, or sharing so many minutes or steps in proportion to their own steps."""
    whole = sum(stage.schedule.steps for stage in stages)

    def share(schedule: Schedule) -> Schedule:
        part = schedule.steps / whole
        if steps is not None:
            return replace(schedule, minutes=None, steps=max(1, round(steps * part)))
        return schedule if minutes is None else replace(schedule, minutes=minutes * part)

    return [replace(stage, schedule=share(stage.schedule)) for stage in stages]


def _behind(stage: Stage, stages: Sequence[Stage], starts: Mapping[str, Path]) -> list[Stage]:
    """The stages of this run whose weights a stage builds on, and itself, in order."""
    chain = [stage]
    while chain[0].start is not None and chain[0].name not in starts:
        chain.insert(0, next(s for s in stages if s.name == chain[0].start))
    return chain


def _needed(stages: Sequence[Stage], starts: Mapping[str, Path]) -> list[Stage]:
    """The stages that a model file comes of: one that only prepares another is not, where that has a start already."""
    used = [s for stage in stages if stage.model is not None for s in _behind(stage, stages, starts)]
    return [stage for stage in stages if stage in used]


def _numbered(objective: Objective, seed: int, corpus: Sequence[TrainingVolume]) -> Callable[[int], Any]:
    return lambda number: objective.batch_at(number, seed, corpus)


def _attribution(folder: Path) -> list[dict[str, Any]]:
    """Name, licence and source of all that is learnt from in a folder; of clips one row for all of one source."""
    known = provenance(folder)
    if _kind_of(folder) == "clips":
        together: dict[tuple[str, ...], list[str]] = {}
        for path in find_clips(folder)[0]:
            row = known.get(path.name, UNKNOWN)
            together.setdefault((row["licence"], row["source"]), []).append(f"{folder.name}/{path.name}")
        return [{"files": files, "licence": key[0], "source": key[1]} for key, files in together.items()]
    learnt = {"slices": f"first {CT_SHARE:.0%}"} if folder.name == "ct" else {}
    names = sorted(path.name for path in folder.glob("*.nii*"))
    return [{"file": f"{folder.name}/{name}", **known.get(name, UNKNOWN), **learnt} for name in names]


def current_commit() -> str:
    """Of the source that runs, "unknown" where it is not under version control."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return answer.stdout.strip() or "unknown"
