"""A data set: every scan below a folder, or every chosen image of a BIDS data set, and where its answer goes."""

import errno
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thinslice.datasets.bids import (
    Choice,
    check_labels,
    check_not_raw,
    check_output,
    derivative_facts,
    derivative_path,
    find_images,
    inherited_sidecars,
)
from thinslice.datasets.job import Job, Outcome, key_of_series
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import is_inside, looks_like_dicom
from thinslice.io.formats import ending, name_to_write, sidecar_path, stem_of, without_voxel_files
from thinslice.io.outputs import check_writable, names_of_series
from thinslice.settings import Settings

THUMBNAILS, PAGES = "thumbnails", "reports"
"""Folders of the output with a small picture and, on request, a page of every scan."""


@dataclass(frozen=True)
class Orders:
    """What holds for every scan of a run: see `thinslice.datasets.job.Job`."""

    settings: Settings
    model_sha256: str | None
    pages: bool = False
    redo: bool = False
    threads: int = 1
    run: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Found:
    """The jobs of a run, by name, and the scans that cannot be one."""

    jobs: list[Job]
    failed: list[Outcome]


def find_in_folder(source: Path, output: Path, orders: Orders) -> Found:
    """Every scan in a folder and below; a folder of DICOM slices is one, see `apart_by_series`. The output keeps paths.

    Hidden files and folders are left alone, and so is the output where it lies inside.

    Raises:
        InputRefused: it is no folder, or holds no scan.
        OutputRefused: the output is the folder itself, holds it, lies in raw data of BIDS, or cannot be written to.
    """
    if not source.is_dir():
        raise InputRefused(
            f"{source}: got no folder; need a folder of scans; next: check the name, or use 'thinslice enhance' for one"
        )
    raw, out = os.path.realpath(source), os.path.realpath(output)
    if raw == out:
        raise OutputRefused(f"{output}: got the folder of the scans as output; need another; next: choose a new folder")
    if is_inside(raw, out):
        raise OutputRefused(f"{output}: got an output that holds the scans; need another; next: choose a new folder")
    check_not_raw(output)
    check_writable(output)
    scans, closed = _scans_below(source, output)
    if not scans and not closed:
        raise without_any_scan(source)
    found = _harmless([_job_in_folder(path, source, output, orders) for path in scans], source, output)
    return _apart(replace(found, failed=closed + found.failed))


def find_in_bids(dataset: Path, output: Path, choice: Choice, orders: Orders) -> Found:
    """The chosen images of a BIDS data set.

    Raises:
        InputRefused, OutputRefused: see `find_images` and `check_output` of `thinslice.datasets.bids`.
    """
    check_labels(choice)
    check_output(dataset, output)
    check_not_raw(output)
    check_writable(output)
    images, closed = find_images(dataset, choice)
    found = _harmless([_job_in_bids(path, dataset, output, orders) for path in images], dataset, output)
    return _apart(replace(found, failed=[*_unreadable(closed, dataset), *found.failed]))


def without_any_scan(source: Path) -> InputRefused:
    """To be raised for a folder that holds nothing to compute from."""
    return InputRefused(f"{source}: got a folder without any scan; need one with scans; next: check the name")


def shard(found: Found, index: int, count: int) -> Found:
    """Every ``count``-th scan, from the ``index``-th on, counted from 1: together the shards are the data set."""
    first = [failed for failed in found.failed if index == 1]
    return Found(found.jobs[index - 1 :: count], first)


def apart_by_series(found: Found, source: Path, output: Path) -> Found:
    """Where a folder holds several DICOM series, each is a scan; what is no scan is named. Their headers are read."""
    jobs, failed = [], list(found.failed)
    for job in found.jobs:
        if os.path.isdir(job.source):
            of_folder, others = _jobs_of_study(job, output)
            jobs += of_folder
            failed += others
        else:
            jobs.append(job)
    harmless = _harmless(jobs, source, output)
    return _apart(replace(harmless, failed=failed + harmless.failed))


def _jobs_of_study(job: Job, output: Path) -> tuple[list[Job], list[Outcome]]:
    from thinslice.io.dicom.series import find_study

    try:
        study = find_study(job.source, below=False)
    except OSError as error:
        return [], [replace(one, name=job.name) for one in _unreadable([error], job.source)]
    others = [Outcome(f"{job.name}/{one.label}", "refused", one.reason) for one in study.unusable]
    if len(study.series) == 1:
        return [job], others
    folder = job.destination.with_name(stem_of(job.destination))
    jobs = []
    for series, name in zip(study.series, names_of_series(study), strict=True):
        target = folder / f"{name}.nii.gz"
        there = _places(target, output, pages=job.page is not None)
        files = tuple(sorted({image.path.name for image in series.images}))
        of_series = replace(job, name=f"{job.name}/{name}", series=key_of_series(series), files=files)
        jobs.append(replace(of_series, destination=target, **there))
    return jobs, others


def _scans_below(source: Path, output: Path) -> tuple[list[Path], list[Outcome]]:
    """The scans, and the folders that cannot be read. Links are followed last, and each folder is searched once."""
    out = os.path.realpath(output)
    scans: list[Path] = []
    closed: list[OSError] = []
    seen: set[str] = set()
    tops = [source]
    for top in tops:
        for place, folders, names in os.walk(top, onerror=closed.append):
            folder = Path(place)
            if (real := os.path.realpath(folder)) in seen or is_inside(real, out):
                folders.clear()
                continue
            seen.add(real)
            if not os.access(folder, os.X_OK):
                closed.append(PermissionError(errno.EACCES, os.strerror(errno.EACCES), place))
                folders.clear()
                continue
            below = sorted(name for name in folders if not name.startswith("."))
            folders[:] = [name for name in below if not (folder / name).is_symlink()]
            tops += [folder / name for name in below if (folder / name).is_symlink()]
            files = sorted(folder / name for name in names if not name.startswith("."))
            scans += [file for file in files if ending(file)]
            if any(not ending(file) and looks_like_dicom(file) for file in without_voxel_files(files)):
                scans.append(folder)
    return sorted(scans), _unreadable(closed, source)


def _unreadable(closed: Sequence[OSError], source: Path) -> list[Outcome]:
    way_out = "need one that can be read; next: see to its permissions"
    return [
        Outcome(os.path.relpath(error.filename, source), "failed", f"got '{error.strerror}' for a folder; {way_out}")
        for error in closed
    ]


def _job_in_folder(path: Path, source: Path, output: Path, orders: Orders) -> Job:
    relative = path.relative_to(source) if path != source else Path(path.name)
    name = name_to_write(path.name) if ending(path) else f"{path.name}.nii.gz"
    return _job(path, relative.as_posix(), output, (output / relative).with_name(name), orders)


def _job_in_bids(path: Path, dataset: Path, output: Path, orders: Orders) -> Job:
    target = derivative_path(path, dataset, output)
    job = _job(path, path.relative_to(dataset).as_posix(), output, target, orders)
    inherited = inherited_sidecars(path, dataset)
    return replace(job, inherited=inherited, facts=derivative_facts(path, dataset), resolution=True)


def _job(path: Path, name: str, output: Path, target: Path, orders: Orders) -> Job:
    return Job(
        name=name,
        source=path,
        destination=target,
        settings=orders.settings,
        model_sha256=orders.model_sha256,
        redo=orders.redo,
        threads=orders.threads,
        run=orders.run,
        **_places(target, output, orders.pages),
    )


def _places(target: Path, output: Path, pages: bool) -> dict[str, Any]:
    """Of a job, what lies elsewhere than its answer."""
    beside = target.relative_to(output).with_name(stem_of(target))
    page = output / PAGES / f"{beside}.html"
    thumbnail = output / THUMBNAILS / f"{beside}.png"
    return {"thumbnail": thumbnail, "page": page if pages else None, "earlier_page": page}


def _harmless(jobs: Sequence[Job], source: Path, output: Path) -> Found:
    """Nothing is written to the place of an input or its JSON, nor by way of a link into the folder of the inputs."""
    raw, out = os.path.realpath(source), os.path.realpath(output)
    real = _Real()
    inputs = set()
    for job in jobs:
        for scan in (job.source, Path(real(job.source))):
            inputs |= {real(file) for file in (scan, sidecar_path(scan)) if file is not None}
    harmless, failed = [], []
    for job in jobs:
        targets = [job.destination, job.sidecar, job.thumbnail, *([job.earlier_page] if job.earlier_page else [])]
        places = [real(target) for target in targets]
        bad = [place for place in places if place in inputs or (is_inside(place, raw) and not is_inside(place, out))]
        if bad:
            reason = (
                f"got the input {bad[0]} as the place of an answer, by way of a link; need an output apart from the "
                "scans; next: choose a new folder"
            )
            failed.append(Outcome(job.name, "failed", reason))
        else:
            harmless.append(job)
    return Found(harmless, failed)


class _Real:
    """As `os.path.realpath`, but each folder is looked up once."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}

    def __call__(self, path: Path) -> str:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        place = os.path.join(self.folders[folder], name)
        return os.path.realpath(place) if os.path.islink(place) else place


def _apart(found: Found) -> Found:
    """No two answers share a name: the first keeps it; letter case does not count, as on Windows and macOS."""
    taken: dict[str, Job] = {}
    failed = list(found.failed)
    for job in found.jobs:
        other = taken.setdefault(str(job.sidecar).casefold(), job)
        if other is not job:
            reason = (
                f"got a scan whose answer would have the name of that of {other.name}; need two names; "
                "next: rename or move one of them"
            )
            failed.append(Outcome(job.name, "failed", reason))
    return Found(list(taken.values()), failed)
