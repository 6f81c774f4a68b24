"""One scan of a data set: done once, whole or not at all, and known again on the next run.

The answer, its picture and its JSON are written into a hidden folder beside the answer, and renamed; the JSON comes
last and says that all is there. It holds what the answer was made of: hashes of the scan and of the model, and the
wish. A scan whose JSON says the same is not computed again; anything else is.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from thinslice.compute.consistency import Report
from thinslice.errors import InputRefused, ModelRefused, OutputRefused, ThinsliceError
from thinslice.io.atomic import hold_lock, read_object
from thinslice.io.formats import has_detached_voxels, read, sidecar_path, stem_of, write
from thinslice.io.sidecars import thickness_in
from thinslice.models.engine import EngineSettings
from thinslice.models.protocol import Model
from thinslice.models.registry import identify, models_for
from thinslice.physics.intensity import intensity_range
from thinslice.pipeline import enhance_volume
from thinslice.plan import Plan
from thinslice.reports.picture import Picture, draw_side_by_side, find_picture_centre, reslice_planes, write_picture
from thinslice.settings import Settings
from thinslice.volume import Volume, fingerprint, through_plane_axis

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series

State = Literal["done", "kept", "thin", "refused", "failed", "left"]
"""Computed now; computed earlier; thin already, left out; not to be made thinner as wished; anything else that went
wrong; not reached before the run ended."""

THICK_FROM = 1.4
"""Slices this many times farther apart than pixels are thick; the embedded networks know factors from here on."""

THUMBNAIL_SIDE = 180

_CHUNK_BYTES = 1 << 20

_MOVING = "moving"
"""The file of the hidden folder that says that answers are being moved into their places."""


@dataclass(frozen=True)
class Job:
    """One scan to be done.

    Attributes:
        name: what to call it: its path within the data set.
        source: the scan, or a folder with the files of a DICOM series.
        destination: the answer; its JSON lies beside it.
        settings: what is asked for.
        model_sha256: of the model that is meant, see `thinslice.models.registry.identify`.
        thumbnail: a small picture of acquired and computed planes, for the overview.
        page: a page to look at as well, see `thinslice.reports.report_page.write_report_page`.
        earlier_page: where an earlier run may have written a page; that of another answer is removed.
        inherited: JSON of BIDS that holds for the scan too, the nearest last; what lies beside it comes first.
        facts: what else the JSON shall say.
        resolution: whether the JSON shall also tell the ``Resolution`` as BIDS does.
        redo: compute even what was done already, and replace what something else has written.
        threads: of the processor, for this job.
        run: which run this is, so that a job that has to be repeated, since a worker died with its outcome, is known.
        series: which of several in the folder, see `key_of_series`.
        files: the names of its files.
    """

    name: str
    source: Path
    destination: Path
    settings: Settings
    model_sha256: str | None
    thumbnail: Path
    page: Path | None = None
    earlier_page: Path | None = None
    inherited: tuple[Path, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    resolution: bool = False
    redo: bool = False
    threads: int = 1
    run: str = ""
    series: tuple[str, int] | None = None
    files: tuple[str, ...] | None = None

    @property
    def sidecar(self) -> Path:
        """The JSON beside the answer."""
        found = sidecar_path(self.destination)
        assert found is not None, "a job writes a scan"
        return found

    @property
    def stage(self) -> Path:
        """The hidden folder for what is unfinished."""
        return self.destination.with_name(f".thinslice-{stem_of(self.destination)}.part")

    @property
    def lock(self) -> Path:
        """The file that one process holds while it works on this."""
        return self.destination.with_name(f".thinslice-{stem_of(self.destination)}.lock")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name, state: which, and how it ended.
        reason: why it was left out, refused, or has failed.
        seconds: reading and writing included; of a scan that was done earlier, what the network took then.
        rms_percent, worst_percent: see `thinslice.compute.consistency.Consistency`; None without an answer.
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
    """Do one job, unless it was done already; whatever goes wrong is told in the outcome, never raised."""
    started = perf_counter()
    try:
        with hold_lock(job.lock):
            series = _series(job)
            made_of = _made_of(job, series)
            kept = _done_earlier(job, made_of)
            if kept is not None and not (job.redo and kept.state == "kept"):
                _sweep(job)
                _remove(job.stage)
                return kept
            done = _do(job, series, made_of)
        return dataclasses.replace(done, seconds=perf_counter() - started)
    except _ThinAlready as thin:
        state: State = "thin"
        reason = str(thin)
    except (OutputRefused, InputRefused, OSError, MemoryError) as error:
        state, reason = "failed", reason_of(error).removeprefix(f"{job.source}: ")
    except ThinsliceError as error:
        state, reason = "refused", reason_of(error).removeprefix(f"{job.source}: ")
    except Exception as error:  # one scan must not end a run of a million
        state, reason = "failed", f"got an unforeseen {type(error).__name__} ({reason_of(error)}); next: report it"
    return Outcome(job.name, state, reason, perf_counter() - started)


def key_of_series(series: "Series") -> tuple[str, int]:
    """What tells a DICOM series, or a stack of one, from all others of its folder."""
    return series.images[0].series_uid, series.index


def clean_up(job: Job) -> None:
    """Remove what a job that was killed has left behind; not while another process works on it.

    Where it was killed between the renames the hidden folder stays: it says that an answer without its JSON is ours.
    """
    with suppress(OSError), hold_lock(job.lock, wait=False):
        _sweep(job)
        if not _is_torn(job.stage):
            _remove(job.stage)


def reason_of(error: BaseException) -> str:
    """One line about an error: what was got, what is needed, what to do next."""
    if isinstance(error, MemoryError):
        return "got a scan larger than the free memory; need a smaller one, or a worker with more; next: --workers 1"
    if isinstance(error, OSError) and error.strerror:
        # the name is that of a temporary file
        return f"got '{error.strerror}'; need room and permission in the output folder; next: see to it, and run again"
    return " ".join(str(error).split()) or type(error).__name__


# ---- what an answer is made of


def _made_of(job: Job, series: "Series | None") -> dict[str, Any]:
    """All that decides what the answer will be; a network is known by its hash, wherever its file lies now."""
    settings = job.settings.to_dict()
    if job.model_sha256 is not None:
        del settings["model"]
    if series is None and os.path.exists(job.source) and not os.path.isfile(job.source):  # a pipe would never end
        raise InputRefused(f"got {job.name}, which is no file; need a scan; next: take it out of the data set")
    try:
        input_sha256 = _hash_of_scan(job.source) if series is None else _hash_of_series(series)
        if job.inherited:
            input_sha256 = _joined([input_sha256, *map(_sha256, job.inherited)])
    except OSError as error:
        raise _unreadable(job, error) from None
    return {"input_sha256": input_sha256, "model_sha256": job.model_sha256, "settings": settings}


def _unreadable(job: Job, error: OSError) -> InputRefused:
    what = Path(error.filename).name if error.filename else job.name
    return InputRefused(
        f"got '{error.strerror}' for {what}; need a scan and JSON that can be read; next: check links and permissions"
    )


def _hash_of_scan(path: Path) -> str:
    """Of the bytes of a scan, and of the JSON beside it, which tells the slice thickness.

    Of a header whose voxels are elsewhere, of these voxels.
    """
    beside = sidecar_path(path)
    facts = [_sha256(beside)] if beside is not None and os.path.lexists(beside) else []
    if has_detached_voxels(path):
        volume = read(path)
        return _joined([fingerprint(volume), str(volume.thickness_mm), *facts])
    return _joined([_sha256(path), *facts])


def _hash_of_series(series: "Series") -> str:
    return _joined([str(series.index), *sorted(_sha256(file) for file in {image.path for image in series.images})])


def _joined(hashes: Any) -> str:
    return hashlib.sha256("\n".join(hashes).encode(errors="surrogateescape")).hexdigest()


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _done_earlier(job: Job, made_of: dict[str, Any]) -> Outcome | None:
    """What the JSON tells about an answer of the very same; None where there is none, or where a part is missing."""
    content = read_object(job.sidecar)
    record = content.get("batch")
    try:
        if not isinstance(record, dict) or {key: record.get(key) for key in made_of} != made_of:
            return None
        if job.destination.stat().st_size != record["answer_bytes"]:
            return None
        if not job.thumbnail.stat().st_size:
            return None
        if job.page is not None and _sha256(job.page) != record.get("page_sha256"):
            return None
        found = content["consistency"]
        return Outcome(
            job.name,
            "done" if job.run and record.get("run") == job.run else "kept",
            seconds=float(content["seconds"]),
            rms_percent=float(found["rms_percent"]),
            worst_percent=float(found["worst_percent"]),
            slices=_slices(Plan.from_json(json.dumps(content["plan"]))),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _slices(plan: Plan) -> str:
    before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    return f"{plan.n_thick} x {before:.4g} mm -> {plan.n_thin} x {after:.4g} mm"


# ---- models, once per process


@lru_cache(maxsize=2)
def _models(wish: str, sha256: str | None, threads: int) -> Callable[[Volume], Model]:
    """The model of a name, kept by a worker for all its scans; another hash is another model."""
    found = identify(wish)
    if found != sha256:
        raise ModelRefused(
            f"got model {wish} with sha256 {str(found)[:16]}... on this worker; need {str(sha256)[:16]}..., which the "
            "run was started with; next: give all machines the same file, and restart workers that hold an older one"
        )
    return models_for(wish, EngineSettings(threads=threads))


# ---- the work


class _ThinAlready(Exception):
    """The scan is as thin as it is fine: there is nothing to do."""


def _do(job: Job, series: "Series | None", made_of: dict[str, Any]) -> Outcome:
    torn = _is_torn(job.stage)
    with _stage(job) as unfinished:
        volume = _read(job, series)
        _check_thick(volume, job.settings)
        model = _models(job.settings.model, job.model_sha256, job.threads)(volume)
        done = enhance_volume(volume, job.settings, model, target=job.destination, name=job.name)
        plan, thin, report = done.plan, done.volume, done.report
        parts = {target: _part(job, target) for target in (job.destination, job.sidecar)}
        write(thin, parts[job.destination])
        extras = {target: _part(job, target) for target in (job.thumbnail, job.page) if target is not None}
        for part in extras.values():
            part.parent.mkdir(parents=True, exist_ok=True)
        _draw(volume, thin, plan, extras[job.thumbnail])
        if job.page is not None:
            done.write_page(extras[job.page])
        record = made_of | {"answer_bytes": parts[job.destination].stat().st_size, "run": job.run}
        if job.page is not None:
            record["page_sha256"] = _sha256(extras[job.page])
        _save_json(parts[job.sidecar], job, plan, report, record)
        for part in parts.values():
            _to_disk(part)
        earlier = read_object(job.sidecar).get("batch")
        stale = torn or (isinstance(earlier, dict) and "page_sha256" in earlier)
        unfinished()
        job.sidecar.unlink(missing_ok=True)
        if job.page is None and job.earlier_page is not None and stale:
            job.earlier_page.unlink(missing_ok=True)
        for target, part in (extras | parts).items():  # the JSON comes last
            os.replace(part, target)
    found = report.consistency
    return Outcome(job.name, "done", "", 0.0, found.rms_percent, found.worst_percent, _slices(plan))


def _series(job: Job) -> "Series | None":
    """That of a folder with DICOM slices; None of a file."""
    if not os.path.isdir(job.source):
        return None
    from thinslice.io.dicom.series import find_study

    try:
        study = find_study(job.source, below=False, names=job.files)
    except OSError as error:
        raise _unreadable(job, error) from None
    chosen = [one for one in study.series if job.series in (None, key_of_series(one))]
    if len(chosen) == 1:
        return chosen[0]
    found = f"{len(study.series)} DICOM series and {len(study.unusable)} that cannot be used"
    raise InputRefused(f"{job.name}: got {found}; need the one that was found at first; next: run again")


def _read(job: Job, series: "Series | None") -> Volume:
    if series is None:
        return _inherit(read(job.source), job.inherited)
    from thinslice.io.dicom.pixels import read_series

    return read_series(series)


def _inherit(volume: Volume, files: Sequence[Path]) -> Volume:
    """With the slice thickness of the nearest file that tells it, where neither the scan nor its own JSON does."""
    for file in reversed(files):
        if volume.thickness_mm is None:
            thickness_mm, notes = thickness_in(file)
            volume = dataclasses.replace(volume, thickness_mm=thickness_mm, notes=(*volume.notes, *notes))
    return volume


def _check_thick(volume: Volume, settings: Settings) -> None:
    axis = through_plane_axis(volume)
    fine = [mm for index, mm in enumerate(volume.spacing_mm) if index != axis]
    thick_mm = volume.spacing_mm[axis]
    if not settings.asks_for_spacing() and thick_mm / max(fine) < THICK_FROM:
        raise _ThinAlready(f"slices {thick_mm:.3g} mm apart, {max(fine):.3g} mm in-plane")


def _draw(volume: Volume, thin: Volume, plan: Plan, path: Path) -> None:
    window, centre = intensity_range(volume.voxels), find_picture_centre(volume)
    if plan.in_plane > 1:
        x, y, z = (
            index if axis == plan.axis else index * plan.in_plane + plan.in_plane // 2
            for axis, index in enumerate(centre)
        )
        finer = (x, y, z)
    else:
        finer = centre
    acquired = Picture("acquired", reslice_planes(volume, plan.axis, centre)[0], window, staircase=True)
    computed = Picture("computed", reslice_planes(thin, plan.axis, finer)[0], window)
    write_picture(draw_side_by_side([[acquired, computed]], long_side=THUMBNAIL_SIDE), path)


def _save_json(path: Path, job: Job, plan: Plan, report: Report, record: dict[str, Any]) -> None:
    """What the `Report` tells, after the facts of the job and before the record of what the answer is made of."""
    facts = dict(job.facts)
    if job.resolution:
        mm = " x ".join(f"{spacing:.4g}" for spacing in plan.spacing_thin_mm)
        facts["Resolution"] = f"{mm} mm, computed from slices {plan.spacing_thick_mm[plan.axis]:.4g} mm apart"
    content = facts | json.loads(report.to_json()) | {"batch": record}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---- files


def _part(job: Job, target: Path) -> Path:
    """Where a file is made before it is moved: in its target's folder, or one in that, so that a rename can do it."""
    if target.parent == job.destination.parent:
        return job.stage / target.name
    return target.with_name(f".thinslice-{target.name}.part")


def _sweep(job: Job) -> None:
    """Remove parts that lie elsewhere than in the hidden folder beside the answer."""
    for target in (job.thumbnail, job.page or job.earlier_page):
        if target is not None and (part := _part(job, target)).parent != job.stage:
            with suppress(OSError):
                part.unlink()


def _to_disk(path: Path) -> None:
    """What is renamed before it is on the disk may be empty after a power cut."""
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
def _stage(job: Job) -> Iterator[Callable[[], None]]:
    """The hidden folder is there for a while, empty; what to call before the first answer is moved into its place.

    Where the folder says that answers were being moved, an answer without its JSON is ours, left by a run that was
    killed; else it is not, and stays what it is.

    Raises:
        OutputRefused: something else has written a file of that name.
    """
    stage = job.stage
    torn = _is_torn(stage)
    record = read_object(job.sidecar).get("batch")
    if not (torn or job.redo or isinstance(record, dict)):
        for path in (job.destination, job.sidecar):
            if os.path.lexists(path):
                raise OutputRefused(
                    f"got {path.name} in the output folder, without the JSON of a run of 'thinslice batch' beside it; "
                    "need a free name; next: move it, choose another folder, or give --overwrite"
                )
    stage.mkdir(exist_ok=True)
    _empty(stage)

    def unfinished() -> None:
        nonlocal torn
        torn = True
        (stage / _MOVING).touch()

    try:
        yield unfinished
    except BaseException:
        _sweep(job)
        if torn:
            _empty(stage)
        else:
            _remove(stage)
        raise
    _sweep(job)
    _remove(stage)
