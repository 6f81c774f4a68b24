"""One scan of a data set, or several that become one volume: done once, whole or not at all, and known again.

The answer, its picture and its JSON are written into a hidden folder beside the answer, and renamed; the JSON comes
last and says that all is there. Its ``batch`` says what the answer was made of:

    input_sha256    the bytes of the scan, of the JSON beside it, and of JSON of BIDS that holds for it
    model_sha256    of the model file, wherever it lies now; null for an interpolation
    settings        what was asked for, but for the model's name where its hash is known
    labels_sha256   the segmentation that was brought along, where one was
    precision       of a network's numbers, where it is not fp32
    registration    of several scans that became one volume, whose hashes are joined: whether they were placed anew

A scan whose JSON says the same is not computed again; anything else is. A setting that was not there yet when the
record was written had its default. Version 0.1 called ``settings`` ``wish``, and is understood.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from thinslice.combination import Combined, combine_fitting, describe_combination
from thinslice.compute.label_maps import describe_labels
from thinslice.compute.labels import fit_labels
from thinslice.errors import InputRefused, ModelRefused, OutputRefused, PlanRefused, ThinsliceError, reason_of
from thinslice.files import check_is_regular, make_folder
from thinslice.io.atomic import HIDDEN, hold_lock, locked_folders, read_object
from thinslice.io.contrast import Contrast, contrast_beside
from thinslice.io.formats import has_detached_voxels, read, sidecar_path, stem_of, write
from thinslice.io.outputs import find_namesake
from thinslice.io.sidecars import thickness_in
from thinslice.models.engine import EngineSettings
from thinslice.models.envelope import Envelope
from thinslice.models.protocol import Model
from thinslice.models.registry import identify, models_for
from thinslice.physics.intensity import intensity_range
from thinslice.pipeline import Enhanced, enhance_volume, plan_volume, read_labels, series_of
from thinslice.plan import Plan
from thinslice.reports.picture import Picture, draw_side_by_side, find_picture_centre, reslice_planes, write_picture
from thinslice.settings import Settings
from thinslice.volume import Volume, fingerprint, through_plane_axis

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series

logger = logging.getLogger(__name__)

State = Literal["done", "kept", "thin", "no-scan", "labels", "refused", "failed", "left"]
"""Computed now; computed earlier; thin already, left out; DICOM that is no stack of slices, left out; a segmentation,
left alone; not to be made thinner as asked; anything else that went wrong; not reached before the run ended."""

Extra = Literal["page", "figure", "labels"]
"""What may be made beside an answer: a page to look at, a figure for a paper, the segmentation that is brought along.
"""

THICK_FROM = 1.4
"""Slices this many times farther apart than pixels are thick for a model that takes any scan; others say so by their
envelope (`thinslice.models.envelope`). No unit. Between factors 1 and 2, 1.4 is as near to the one as to the other."""

ONE_THREAD = EngineSettings(threads=1)
"""How a network is run where nothing else is asked for: workers share the cores, so one thread each is never too many.
"""

THUMBNAIL_SIDE = 180
"""Pixels along the longest side of the small picture: a page of two thousand of them still opens at once."""

LONGEST_NAME_BYTES = 255
"""Of the name of a file on all file systems in use, but for a few that take less."""

_CHUNK_BYTES = 1 << 20
"""Bytes of a file that are hashed at a time."""

_MOVING = "moving"
"""The file of the hidden folder that says that answers are being moved into their places."""


@dataclass(frozen=True)
class Job:
    """Describes one scan to be done.

    Attributes:
        name: what to call it: its path within the data set.
        source: the scan, or a folder with the files of a DICOM series.
        destination: the answer; its JSON lies beside it.
        settings: what is asked for.
        model_sha256: of the model that is meant, see `thinslice.models.registry.identify`.
        thumbnail: a small picture of acquired and computed planes, for the overview.
        extras: where lies what may be made beside the answer; what an earlier run made of another answer is removed.
        wanted: what of these is made.
        labels: a segmentation on the grid of the scan, or one of the same name in another format; None without one.
        inherited: JSON of BIDS that holds for the scan too, the nearest last; what lies beside it comes first.
        facts: what else the JSON shall say.
        resolution: whether the JSON shall also tell the ``Resolution`` as BIDS does.
        redo: compute even what was done already, and replace what something else has written.
        engine: how a network is run for this job.
        run: which run this is, so that a job that has to be repeated, since a worker died with its outcome, is known.
        series: which of several in the folder, see `key_of_series`.
        files: the names of its files.
        group: what becomes one volume with it, instead; then all that speaks of one scan above is that of the first.
    """

    name: str
    source: Path
    destination: Path
    settings: Settings
    model_sha256: str | None
    thumbnail: Path
    extras: Mapping[Extra, Path] = field(default_factory=dict)
    wanted: frozenset[Extra] = frozenset()
    labels: Path | None = None
    inherited: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    resolution: bool = False
    redo: bool = False
    engine: EngineSettings = ONE_THREAD
    run: str = ""
    series: tuple[str, int] | None = None
    files: tuple[str, ...] | None = None
    group: "Group | None" = None

    @property
    def scans(self) -> tuple["Job", ...]:
        """Returns the job of each scan that goes in: those of a group, or itself."""
        return (self,) if self.group is None else self.group.members

    @property
    def sidecar(self) -> Path:
        """Returns the place of the JSON beside the answer."""
        found = sidecar_path(self.destination)
        assert found is not None, "a job writes a scan"
        return found

    @property
    def stage(self) -> Path:
        """Returns the hidden folder for what is unfinished."""
        return self.destination.with_name(_hidden_name(stem_of(self.destination), ".part"))

    @property
    def lock(self) -> Path:
        """Returns the file that one process holds while it works on this."""
        return self.destination.with_name(_hidden_name(stem_of(self.destination), ".lock"))


@dataclass(frozen=True)
class Group:
    """Holds scans that become one volume.

    Attributes:
        members: the jobs that they would be alone, two or more; the first one sets grid and brightness.
        odd: by their names, scans that were found with them, do not belong to them, and are jobs of their own; and why.
        registration: whether they are placed where they fit each other; else their headers are believed.
    """

    members: tuple[Job, ...]
    odd: Mapping[str, str] = field(default_factory=dict)
    registration: bool = True


@dataclass(frozen=True)
class Outcome:
    """Says what became of a job.

    Attributes:
        name, state: which, and how it ended.
        reason: why it was left out, refused, or has failed; of one volume from several scans, which were left out.
        seconds: reading and writing included; of a scan that was done earlier, what the network took then.
        rms_percent, worst_percent: see `thinslice.compute.consistency.Consistency`; None without an answer. Of several
            scans that became one volume the former is that of the scan that fits worst, and the latter None.
        slices: before and after, as words.
    """

    name: str
    state: State
    reason: str = ""
    seconds: float = 0.0
    rms_percent: float | None = None
    worst_percent: float | None = None
    slices: str = ""


def run_job(job: Job) -> Outcome:
    """Does one job, unless it was done already; whatever goes wrong is in the outcome, never raised."""
    return _attempt(job, _run)


def preview_job(job: Job) -> Outcome:
    """Says what `run_job` would do: reads the scan and plans it; nothing is computed, and nothing written.

    What would be computed is left as it is, with the slices that it has and would get.
    """
    return _attempt(job, _preview)


def _run(job: Job) -> Outcome:
    started = perf_counter()
    with hold_lock(job.lock):
        inputs = [(scan, _series(scan)) for scan in job.scans]
        made_of = _made_of(job, inputs)
        kept = _done_earlier(job, made_of)
        if kept is not None and not (job.redo and kept.state == "kept"):
            logger.debug("%s: done earlier", job.name)
            _sweep(job)
            _remove(job.stage)
            return kept
        done = _do(job, inputs, made_of)
    return dataclasses.replace(done, seconds=perf_counter() - started)


def _preview(job: Job) -> Outcome:
    inputs = [(scan, _series(scan)) for scan in job.scans]
    kept = _done_earlier(job, _made_of(job, inputs))
    if kept is not None and not job.redo:
        return kept
    _check_free(job, _is_torn(job.stage))
    volumes = [_read(*one)[0] for one in inputs]
    if job.group is not None:  # whether they fit is known when they have been made thin
        return Outcome(job.name, "left", "would be computed", slices=f"{len(volumes)} stacks into one volume")
    model, labels = _prepare(job, volumes[0])
    plan = plan_volume(volumes[0], job.settings, model, job.destination)
    if labels is not None:
        fit_labels(labels, plan)
    return Outcome(job.name, "left", "would be computed", slices=_slices(plan))


def _attempt(job: Job, work: Callable[[Job], Outcome]) -> Outcome:
    started = perf_counter()
    state: State
    try:
        return work(job)
    except _IsLabels as labels:
        state, reason = "labels", str(labels)
    except _ThinAlready as thin:
        state, reason = "thin", str(thin)
    except _NotTogether as refusal:
        state, reason = "refused", str(refusal)
    # Above ThinsliceError, the root of the first two: `refused` is left for what can be read and not be made thinner.
    except (OutputRefused, InputRefused, OSError, MemoryError) as error:
        # the file that the system complains of is a temporary one, which says nothing to anybody
        state, reason = "failed", reason_of(error, name_file=False)
    except ThinsliceError as error:
        state, reason = "refused", reason_of(error)
    except Exception as error:  # one scan must not end a run of a million
        logger.debug("%s: unforeseen", job.name, exc_info=error)
        state, reason = "failed", f"got an unforeseen {type(error).__name__} ({reason_of(error)}); next: report it"
    reason = reason.removeprefix(f"{job.source}: ")
    return Outcome(job.name, state, reason, perf_counter() - started)


def key_of_series(series: "Series") -> tuple[str, int]:
    """Returns what tells a DICOM series, or a stack of one, from all others of its folder."""
    first = series.images[0]
    return f"{first.series_uid or series.label} {first.number}", series.index


def clean_up(job: Job) -> None:
    """Removes what a job that was killed has left behind; not while another process works on it.

    Where it was killed between the renames the hidden folder stays: it says that an answer without its JSON is ours.
    """
    with suppress(OSError), hold_lock(job.lock, wait=False):
        _sweep(job)
        if not _is_torn(job.stage):
            _remove(job.stage)


# ---- what an answer is made of


def _made_of(job: Job, inputs: Sequence[tuple[Job, "Series | None"]]) -> dict[str, Any]:
    """Returns all that decides the answer; a network is known by its hash, wherever its file lies now."""
    settings = job.settings.to_dict()
    if job.model_sha256 is not None:
        del settings["model"]
    hashes = [_hash_of_input(scan, series) for scan, series in inputs]
    found: dict[str, Any] = {
        "input_sha256": hashes[0] if job.group is None else _joined(hashes),
        "model_sha256": job.model_sha256,
        "settings": settings,
    }
    try:
        found |= {} if job.labels is None else {"labels_sha256": _hash_of_scan(_find_labels(job))}
    except OSError as error:
        raise _unreadable(job, error) from error
    # An interpolation runs no network, so its answer has no such precision; records from before there was a choice
    # have none either.
    precision = job.engine.precision
    found |= {} if precision == "fp32" or job.model_sha256 is None else {"precision": precision}
    return found | ({} if job.group is None else {"registration": job.group.registration})


def _hash_of_input(job: Job, series: "Series | None") -> str:
    """Returns a hash of a scan, and of JSON that holds for it."""
    if series is None and os.path.exists(job.source) and not os.path.isfile(job.source):  # a pipe would never end
        raise InputRefused(
            got=f"{job.name}, which is no file", need="a scan", next="take it out of the data set", code="not-a-file"
        )
    try:
        found = _hash_of_scan(job.source) if series is None else _hash_of_series(series)
        return _joined([found, *map(_sha256, job.inherited)]) if job.inherited else found
    except OSError as error:
        raise _unreadable(job, error) from error


def _is_made_of(record: Mapping[str, Any], made_of: Mapping[str, Any]) -> bool:
    """Says whether an earlier answer, by the record in its JSON, is what would be computed now."""
    # `precision` is looked at even where it is fp32 now, and not named: the earlier one may have been another.
    others = made_of.keys() - {"settings"} | {"precision"}
    if {key: record.get(key) for key in others} != {key: made_of.get(key) for key in others}:
        return False
    earlier = record.get("settings", record.get("wish"))
    try:
        # Built, not compared as text: a setting that did not exist then has its default in both.
        return Settings(**earlier) == Settings(**made_of["settings"])
    except (TypeError, PlanRefused):  # written by hand, or by a version that knows more settings
        return False


def _unreadable(job: Job, error: OSError) -> InputRefused:
    what = Path(error.filename).name if error.filename else job.name
    return InputRefused(
        got=f"'{error.strerror}' for {what}",
        need="a scan and JSON that can be read",
        next="check links and permissions",
        code="no-access",
    )


def _find_labels(job: Job) -> Path:
    assert job.labels is not None, "a job with a segmentation"
    return find_namesake(job.labels.parent, job.labels)


def _hash_of_scan(path: Path) -> str:
    """Returns a hash of the bytes of a scan, and of the JSON beside it, which tells the slice thickness.

    Of a header whose voxels are elsewhere, of these voxels.
    """
    beside = sidecar_path(path)
    # A pipe of that name is no JSON, and is not looked at by the reader either.
    has_facts = beside is not None and (beside.is_file() or beside.is_symlink())
    facts = [_sha256(beside)] if beside is not None and has_facts else []
    if has_detached_voxels(path):
        volume = read(path)
        return _joined([fingerprint(volume), str(volume.thickness_mm), *facts])
    return _joined([_sha256(path), *facts])


def _hash_of_series(series: "Series") -> str:
    # By content alone: copied or renamed slices are the same series.
    return _joined([str(series.index), *sorted(_sha256(file) for file in {image.path for image in series.images})])


def _joined(hashes: Any) -> str:
    # Names of files are hashed too, and need not be UTF-8.
    return hashlib.sha256("\n".join(hashes).encode(errors="surrogateescape")).hexdigest()


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    left = check_is_regular(path)
    with open(path, "rb") as stream:
        # No more than there was: a file to which another program goes on writing has no end.
        while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
            found.update(chunk)
            left -= len(chunk)
    return found.hexdigest()


def _done_earlier(job: Job, made_of: dict[str, Any]) -> Outcome | None:
    """Returns the outcome of an earlier run with the very same answer; None without one, or where a part is missing."""
    content = read_object(job.sidecar)
    record = content.get("batch")
    try:
        if not isinstance(record, dict) or not _is_made_of(record, made_of):
            return None
        # Its size shows an answer that was cut off; to hash it would mean to read all answers in every run.
        if job.destination.stat().st_size != record["answer_bytes"]:
            return None
        if not job.thumbnail.stat().st_size:
            return None
        if any(_sha256(job.extras[extra]) != record.get(_key_of(extra)) for extra in job.wanted):
            return None
        # a worker may die when its scan is done and before the leading process knows: the repetition is no "kept"
        state: State = "done" if job.run and record.get("run") == job.run else "kept"
        if job.group is not None:
            return Outcome(job.name, state, seconds=float(content["seconds"]), **record["outcome"])
        found = content["consistency"]
        return Outcome(
            job.name,
            state,
            seconds=float(content["seconds"]),
            rms_percent=float(found["rms_percent"]),
            worst_percent=float(found["worst_percent"]),
            slices=_slices(Plan.from_json(json.dumps(content["plan"]))),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key_of(extra: Extra) -> str:
    """Returns what the record calls the hash of what was made beside the answer."""
    return {"page": "page_sha256", "figure": "figure_sha256", "labels": "thin_labels_sha256"}[extra]


def _slices(plan: Plan) -> str:
    before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    return f"{plan.n_thick} x {before:.4g} mm -> {plan.n_thin} x {after:.4g} mm"


# ---- models, once per process


@lru_cache(maxsize=2)
def _models(name: str, sha256: str | None, engine: EngineSettings) -> Callable[[Volume], Model]:
    """Returns the model of a name, kept by a worker for all its scans; another hash is another model."""
    found = identify(name)
    if found != sha256:
        raise ModelRefused(
            got=f"model {name} with sha256 {str(found)[:16]}... on this worker",
            need=f"{str(sha256)[:16]}..., which the run was started with",
            next="give all machines the same file, and restart workers that hold an older one",
            code="another-model-on-worker",
        )
    return models_for(name, engine)


# ---- the work


class _NotTogether(Exception):
    """The scans can be read, and are not several stacks of one body in one contrast."""


class _ThinAlready(Exception):
    """The scan is as thin as it is fine: there is nothing to do."""


class _IsLabels(Exception):
    """The file is a segmentation: made thin as an image it would get labels that nobody drew."""


def _do(job: Job, inputs: Sequence[tuple[Job, "Series | None"]], made_of: dict[str, Any]) -> Outcome:
    with _stage(job) as begin_to_move:
        # Without the lock of the folder, which is held for the moves alone: others write their answers meanwhile.
        if job.group is None:
            done: Enhanced | Combined = _compute(job, _read(*inputs[0])[0])
        else:
            done = _combine(job, job.group, [_read(*one) for one in inputs])
        outcome = _outcome(job.name, done)
        parts = _write_parts(job, done, made_of, outcome)
        # An `enhance` of the same scan may end in this instant; its files and ours must not mix.
        with locked_folders([job.destination.parent]):
            stale = begin_to_move()
            # The old JSON first: a run that is killed between the moves must not leave it beside the new answer.
            job.sidecar.unlink(missing_ok=True)
            for place in stale:
                place.unlink(missing_ok=True)
            for target, part in parts.items():  # the JSON comes last
                os.replace(part, target)
    return outcome


def _outcome(name: str, done: Enhanced | Combined) -> Outcome:
    if isinstance(done, Enhanced):
        found = done.report.consistency
        return Outcome(name, "done", "", 0.0, found.rms_percent, found.worst_percent, _slices(done.plan))
    left_out = {stack.name: stack.left_out for stack in done.stacks if stack.left_out is not None}
    reason = "; ".join(f"left out: {one}: {why}" for one, why in {**done.odd, **left_out}.items())
    rms_percent = max(stack.fit.rms_percent for stack in done.stacks if stack.fit is not None)
    return Outcome(name, "done", reason, 0.0, rms_percent, None, describe_combination(done))


def _combine(job: Job, group: Group, scans: Sequence[tuple[Volume, Contrast | None]]) -> Combined:
    contrasts = [contrast for _, contrast in scans if contrast is not None]
    try:
        done = combine_fitting(
            [scan for scan, _ in scans],
            _models(job.settings.model, job.model_sha256, job.engine),
            names=[member.name for member in group.members],
            contrasts=contrasts or None,
            spacing_mm=job.settings.spacing_mm,
            registration=group.registration,
            labels=None if job.labels is None else read(_find_labels(job)),
            settings=job.settings,
            target=job.destination,
        )
    except (InputRefused, PlanRefused) as error:
        if error.code == "combine-not-installed":  # which is no fault of these scans
            raise
        raise _NotTogether(reason_of(error)) from error
    return dataclasses.replace(done, odd={**group.odd, **done.odd})


def _compute(job: Job, volume: Volume) -> Enhanced:
    model, labels = _prepare(job, volume)
    return enhance_volume(volume, job.settings, model, target=job.destination, labels=labels, name=job.name)


def _prepare(job: Job, volume: Volume) -> tuple[Model, Volume | None]:
    """Returns the model for a scan and the segmentation that is brought along; leaves out what is none, or thin."""
    # A DICOM series says by its class that it is an image.
    if series_of(volume) is None and (reason := describe_labels(volume)):
        raise _IsLabels(f"{reason}; `labels` brings it along with its scan")
    choose = _models(job.settings.model, job.model_sha256, job.engine)
    try:
        model = choose(volume)
    except ModelRefused:  # in a folder of models none is this scan's own; a scan that is thin does not need one
        _check_thick(volume, job.settings, None)
        raise
    _check_thick(volume, job.settings, model.envelope)
    return model, None if job.labels is None else read_labels(_find_labels(job), volume)


def _check_thick(volume: Volume, settings: Settings, envelope: Envelope | None) -> None:
    """Leaves out a scan that is thin for every model, or for one that takes smaller factors."""
    smallest = THICK_FROM
    if envelope is not None and envelope.only_factors is None:
        smallest = min(smallest, envelope.factor[0])
    thick_mm, in_plane_mm = spacings_mm(volume)
    if not settings.asks_for_spacing() and thick_mm / in_plane_mm < smallest:
        raise _ThinAlready(describe_spacings(volume))


def spacings_mm(volume: Volume) -> tuple[float, float]:
    """Returns the distance of slices, and the coarser one of pixels."""
    axis = through_plane_axis(volume)
    return volume.spacing_mm[axis], max(mm for index, mm in enumerate(volume.spacing_mm) if index != axis)


def describe_spacings(volume: Volume) -> str:
    """Returns how far slices and pixels are apart, in words."""
    thick_mm, in_plane_mm = spacings_mm(volume)
    return f"slices {thick_mm:.3g} mm apart, {in_plane_mm:.3g} mm in-plane"


def _write_parts(job: Job, done: Enhanced | Combined, made_of: dict[str, Any], outcome: Outcome) -> dict[Path, Path]:
    """Makes all files beside their places; returns what is to be moved from where, in that order."""
    extras = {job.extras[extra]: _part(job, job.extras[extra]) for extra in sorted(job.wanted)}
    beside = {job.thumbnail: _part(job, job.thumbnail)} | extras
    # The order of what is returned is that of the moves: the JSON is last, since it says that all is there.
    parts = {target: _part(job, target) for target in (job.destination, job.sidecar)}
    write(done.volume, parts[job.destination])
    for part in beside.values():
        make_folder(part.parent)
    _draw(done, beside[job.thumbnail])
    record = made_of | {"answer_bytes": parts[job.destination].stat().st_size, "run": job.run}
    if job.group is not None:
        # What the summary of the next run says, which may keep it.
        record["outcome"] = {name: getattr(outcome, name) for name in ("reason", "rms_percent", "slices")}
    for extra in sorted(job.wanted):
        part = extras[job.extras[extra]]
        _write_extra(extra, done, part)
        record[_key_of(extra)] = _sha256(part)
    _save_json(parts[job.sidecar], job, done, record)
    for part in parts.values():
        _to_disk(part)
    return beside | parts


def _write_extra(extra: Extra, done: Enhanced | Combined, part: Path) -> None:
    if extra == "page":
        done.write_page(part)
    elif isinstance(done, Enhanced):
        if extra == "figure":
            done.write_figure(part)
        else:
            write(done.labels_to_thin(), part)
    else:
        assert done.segmentation is not None, "a group has no figure, and labels where they are wanted"
        write(done.segmentation, part)


def _series(job: Job) -> "Series | None":
    """Returns the DICOM series of the job; None where its scan is a file."""
    if not os.path.isdir(job.source):
        return None
    from thinslice.io.dicom.series import find_study

    try:
        study = find_study(job.source, below=False, names=job.files)
    except OSError as error:
        raise _unreadable(job, error) from error
    chosen = [one for one in study.series if job.series in (None, key_of_series(one))]
    if len(chosen) == 1:
        return chosen[0]
    found = f"{len(study.series)} DICOM series and {len(study.unusable)} that cannot be used"
    raise InputRefused(
        got=found, need="the one that was found at first", next="run again", place=job.name, code="series-changed"
    )


def _read(job: Job, series: "Series | None") -> tuple[Volume, Contrast | None]:
    """Reads a scan; and what JSON says of its contrast, None of a DICOM series, whose header says it."""
    if series is None:
        return read_inheriting(job.source, job.inherited)
    from thinslice.io.dicom.pixels import read_series

    return read_series(series), None


def read_inheriting(path: Path, inherited: Sequence[Path]) -> tuple[Volume, Contrast]:
    """Reads an image of BIDS with what JSON says of it: its own, and the files that hold for it too, nearest last."""
    return inherit_thickness(read(path), inherited), contrast_beside(path, inherited)


def inherit_thickness(volume: Volume, files: Sequence[Path]) -> Volume:
    """Adds the slice thickness of the nearest file that tells it, where neither the scan nor its own JSON does."""
    for file in reversed(files):
        if volume.thickness_mm is None:
            thickness_mm, notes = thickness_in(file)
            volume = dataclasses.replace(volume, thickness_mm=thickness_mm, notes=(*volume.notes, *notes))
    return volume


def _draw(done: Enhanced | Combined, path: Path) -> None:
    """Draws the small picture: one plane across the slices, as acquired and as computed, through the same place."""
    volume = done.acquired if isinstance(done, Enhanced) else done.acquired[0]
    axis = done.plan.axis if isinstance(done, Enhanced) else done.stacks[0].plan.axis
    window, centre = intensity_range(volume.voxels), find_picture_centre(volume)
    acquired = Picture("acquired", reslice_planes(volume, axis, centre)[0], window, staircase=True)
    computed = Picture("computed", reslice_planes(done.volume, axis, _in_answer(centre, done))[0], window)
    write_picture(draw_side_by_side([[acquired, computed]], long_side=THUMBNAIL_SIDE), path)


def _in_answer(centre: tuple[int, int, int], done: Enhanced | Combined) -> tuple[int, int, int]:
    """Returns the voxel of the answer at a voxel of the scan; of an enhanced one the place within slices matters."""
    if isinstance(done, Combined):
        # The first stack lies where its header says, and the axes of the answer are its own.
        place = done.acquired[0].affine @ [*centre, 1]
        index = np.rint(np.linalg.solve(done.volume.affine, place)[:3])
        x, y, z = np.clip(index, 0, np.array(done.volume.shape) - 1).astype(int).tolist()
        return x, y, z
    plan = done.plan
    if plan.in_plane == 1:
        return centre
    x, y, z = (
        index if axis == plan.axis else index * plan.in_plane + plan.in_plane // 2 for axis, index in enumerate(centre)
    )
    return x, y, z


def _save_json(path: Path, job: Job, done: Enhanced | Combined, record: dict[str, Any]) -> None:
    """Writes what the answer tells of itself, after the facts of the job and before what it was made of."""
    facts = dict(job.facts)
    if job.resolution and isinstance(done, Enhanced):
        plan = done.plan
        mm = " x ".join(f"{spacing:.4g}" for spacing in plan.spacing_thin_mm)
        facts["Resolution"] = f"{mm} mm, computed from slices {plan.spacing_thick_mm[plan.axis]:.4g} mm apart"
    text = done.report.to_json() if isinstance(done, Enhanced) else done.to_json()
    content = facts | json.loads(text) | {"batch": record}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---- files


def _part(job: Job, target: Path) -> Path:
    """Returns where a file is made before it is moved: in its target's folder, or one in that; a rename can do it."""
    if target.parent == job.destination.parent:
        return job.stage / target.name
    return target.with_name(_hidden_name(target.name, ".part"))


def _hidden_name(name: str, suffix: str) -> str:
    """Returns what lies hidden beside a file while that is made; the same for the same name, in every run.

    Example:
        >>> _hidden_name("scan", ".lock")
        '.thinslice-scan.lock'
    """
    hidden = f"{HIDDEN}{name}{suffix}"
    if len(os.fsencode(hidden)) <= LONGEST_NAME_BYTES:
        return hidden
    return f"{HIDDEN}{_joined([name])}{suffix}"  # a name that just fits would not with ours around it


def _sweep(job: Job) -> None:
    """Removes parts that lie elsewhere than in the hidden folder beside the answer."""
    for target in (job.thumbnail, *job.extras.values()):
        if (part := _part(job, target)).parent != job.stage:
            with suppress(OSError):
                part.unlink()


def _to_disk(path: Path) -> None:
    """Waits until a file is on the disk: renamed before, it may be empty after a power cut."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def _is_torn(stage: Path) -> bool:
    return (stage / _MOVING).exists()


def _empty(stage: Path) -> None:
    for leftover in stage.iterdir():
        if leftover.name != _MOVING:
            leftover.unlink()


@contextmanager
def _stage(job: Job) -> Iterator[Callable[[], list[Path]]]:
    """Makes the hidden folder, empty, and removes it at the end.

    Lends what to call before the first answer is moved into its place; it returns what an earlier answer leaves behind
    that has to go. Where the folder says that answers were being moved, an answer without its JSON is ours, left by a
    run that was killed; else it is not, and stays what it is.

    Raises:
        OutputRefused: something else has written a file of that name, before or meanwhile.
    """
    # Deterministic, not random: what a killed run left here is found, and removed or finished, by the next.
    stage = job.stage
    torn = _is_torn(stage)
    _check_free(job, torn)
    stage.mkdir(exist_ok=True)
    _empty(stage)

    def begin_to_move() -> list[Path]:
        nonlocal torn
        _check_free(job, torn)
        record = _record_of(job) or {}
        ours = {extra for extra in job.extras if _key_of(extra) in record} | (_moved_before(stage) if torn else set())
        torn = True
        (stage / _MOVING).write_text(" ".join(sorted(ours | job.wanted)))
        return [job.extras[extra] for extra in job.extras.keys() & ours - job.wanted]

    try:
        yield begin_to_move
    except BaseException:
        _sweep(job)
        if torn:
            _empty(stage)
        else:
            _remove(stage)
        raise
    _sweep(job)
    _remove(stage)


def _moved_before(stage: Path) -> set[str]:
    """Returns what was beside the answer that a run was moving when it was killed, or was about to remove."""
    return set((stage / _MOVING).read_text().split()) or {"page"}  # version 0.1 wrote no more than that


def _record_of(job: Job) -> dict[str, Any] | None:
    """Returns what the JSON says that the answer was made of; None where no run of a data set wrote it."""
    record = read_object(job.sidecar).get("batch")
    return record if isinstance(record, dict) else None


def _check_free(job: Job, torn: bool) -> None:
    """Refuses to replace what something else than a run of a data set has written."""
    record = _record_of(job)
    if torn or job.redo:
        return
    files = [] if record is not None else [job.destination, job.sidecar]
    if "labels" in job.wanted and _key_of("labels") not in (record or {}):
        files.append(job.extras["labels"])
    for path in files:
        if os.path.lexists(path):
            raise OutputRefused(
                got=f"{path.name} in the output folder, without the JSON of a run of 'thinslice batch' beside it",
                need="a free name",
                next="move it, choose another folder, or give `overwrite=True`",
                code="output-exists",
            )
