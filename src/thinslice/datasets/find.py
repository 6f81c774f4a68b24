"""A data set: every scan below a folder, or every chosen image of a BIDS data set, and where its answer goes."""

import errno
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinslice.datasets.bids import (
    Choice,
    check_labels,
    check_not_raw,
    check_output,
    combined_facts,
    derivative_facts,
    derivative_path,
    find_images,
    group_stacks,
    inherited_sidecars,
    segmentation_path,
)
from thinslice.datasets.groups import find_odd
from thinslice.datasets.job import ONE_THREAD, Extra, Group, Job, Outcome, key_of_series
from thinslice.errors import InputRefused, OutputRefused
from thinslice.files import walk
from thinslice.io.atomic import is_inside, looks_like_dicom
from thinslice.io.formats import ending, name_to_write, sidecar_path, stem_of, without_voxel_files
from thinslice.io.outputs import check_writable, labels_beside, names_of_series
from thinslice.models.engine import EngineSettings
from thinslice.settings import Settings

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series

logger = logging.getLogger(__name__)

THUMBNAILS = "thumbnails"
"""Folder of the output with a small picture of every scan, for the overview."""

PAGES = "reports"
"""Folder of the output with a page of every scan, where such are made."""

FIGURES = "figures"
"""Folder of the output with a figure of every scan, where such are made."""


OF_ONE_SCAN = ("factor", "grid", "in_plane", "fuse", "projection")
"""Settings that say something about one scan, or about a grid that several do not share: a group has their defaults."""


@dataclass(frozen=True)
class Orders:
    """Says what holds for every scan of a run: see `thinslice.datasets.job.Job`.

    Attributes:
        settings: what is asked for.
        model_sha256: of the model that is meant.
        extras: what is made beside the answers.
        labels: a folder with segmentations to bring along, at the scans' paths; their formats may be others.
        redo: compute even what was done already, and replace what something else has written.
        engine: how a network is run for one scan.
        run: which run this is.
        combine: whether scans that belong together become one volume.
        registration: whether such scans are placed where they fit each other; else their headers are believed.
    """

    settings: Settings
    model_sha256: str | None
    extras: frozenset[Extra] = frozenset()
    labels: Path | None = None
    redo: bool = False
    engine: EngineSettings = ONE_THREAD
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    combine: bool = False
    registration: bool = True


@dataclass(frozen=True)
class Found:
    """Holds the jobs of a run, by name, and the scans that cannot be one."""

    jobs: list[Job]
    failed: list[Outcome]


def find_in_folder(source: Path, output: Path, orders: Orders) -> Found:
    """Finds every scan in a folder and below; the output keeps their paths.

    A folder of DICOM slices is one scan, see `split_by_series`. Hidden files and folders are left alone, and so are the
    output and the segmentations where they lie inside.

    Raises:
        InputRefused: it is no folder, or holds no scan.
        OutputRefused: the output is the folder itself, holds it, lies in raw data of BIDS, or cannot be written to.
    """
    if not source.is_dir():
        raise InputRefused(
            got="no folder",
            need="a folder of scans",
            next="check the name, or use 'thinslice enhance' for one",
            place=source,
            code="not-a-folder",
        )
    raw, out = os.path.realpath(source), os.path.realpath(output)
    # Compared as real paths: a link would hide that the two are one.
    if raw == out:
        raise _output_holds(output, "is the folder of the scans")
    if is_inside(raw, out):
        raise _output_holds(output, "holds the scans")
    _check_labels_folder(orders.labels, output)
    check_not_raw(output)
    check_writable(output)
    scans, unreadable = _scans_below(source, [output, *([orders.labels] if orders.labels is not None else [])])
    if not scans and not unreadable:
        raise without_any_scan(source)
    jobs = [_job_in_folder(path, source, output, orders) for path in scans]
    found = reject_outputs_over_inputs(jobs, source, output)
    logger.debug("%s: %d scans", source, len(found.jobs))
    return reject_shared_names(replace(found, failed=unreadable + found.failed))


def find_in_bids(dataset: Path, output: Path, choice: Choice, orders: Orders) -> Found:
    """Finds the chosen images of a BIDS data set; those to combine by name alone, see `sort_visits`.

    Raises:
        InputRefused, OutputRefused: see `find_images` and `check_output` of `thinslice.datasets.bids`.
    """
    check_labels(choice)
    check_output(dataset, output)
    _check_labels_folder(orders.labels, output)
    check_not_raw(output)
    check_writable(output)
    images, unreadable = find_images(dataset, choice)
    jobs = [_job_in_bids(path, dataset, output, orders) for path in images]
    if orders.combine:
        alone = {job.source: job for job in jobs}
        # In the place of the first of them, so that every shard has its share of groups.
        groups = {group.stacks[0]: group for group in group_stacks(images, dataset, output)}
        others = {path for group in groups.values() for path in group.stacks[1:]}
        jobs = [
            _job_of_visit(
                [alone[path] for path in groups[job.source].stacks],
                {},
                groups[job.source].derivative,
                dataset,
                output,
                orders,
            )
            if job.source in groups
            else job
            for job in jobs
            if job.source not in others
        ]
    found = reject_outputs_over_inputs(jobs, dataset, output)
    return reject_shared_names(replace(found, failed=[*_unreadable(unreadable, dataset), *found.failed]))


def sort_visits(found: Found, dataset: Path, output: Path, orders: Orders) -> Found:
    """Takes out of the groups of a BIDS data set what cannot be of the others by its header; it stands alone.

    Args:
        found: the scans of this shard, see `find_in_bids`: the headers of no other shard are read.
        dataset, output, orders: as given to `find_in_bids`.
    """
    jobs: list[Job] = []
    for job in found.jobs:
        if job.group is None:
            jobs.append(job)
            continue
        odd = find_odd([scan.source for scan in job.scans], {scan.source: scan.inherited for scan in job.scans})
        chosen = [scan for scan in job.scans if scan.source not in odd]
        if len(chosen) < 2:
            jobs += job.scans
            continue
        alone = [scan for scan in job.scans if scan.source in odd]
        reasons = {scan.name: odd[scan.source] for scan in alone}
        jobs += [_job_of_visit(chosen, reasons, job.destination, dataset, output, orders), *alone]
    allowed = reject_outputs_over_inputs(jobs, dataset, output)
    return reject_shared_names(replace(allowed, failed=found.failed + allowed.failed))


def _job_of_visit(
    members: Sequence[Job], odd: Mapping[str, str], target: Path, dataset: Path, output: Path, orders: Orders
) -> Job:
    places = _places(target, output)
    places["extras"]["labels"] = segmentation_path(target)
    facts = combined_facts([member.source for member in members], dataset)
    return _job_of_group(members, odd, target, output, facts, places, orders)


def _job_of_group(
    members: Sequence[Job],
    odd: Mapping[str, str],
    target: Path,
    output: Path,
    facts: dict[str, Any],
    places: dict[str, Any],
    orders: Orders,
) -> Job:
    """Makes the job of scans that become one volume: that of the first, but for where it goes and what is asked for."""
    defaults: dict[str, Any] = {
        setting.name: setting.default for setting in fields(Settings) if setting.name in OF_ONE_SCAN
    }
    return replace(
        members[0],
        name=target.relative_to(output).as_posix(),
        destination=target,
        settings=replace(orders.settings, **defaults),
        facts=facts,
        # A figure compares one scan with its answer.
        wanted=members[0].wanted - {"figure"},
        group=Group(tuple(members), odd, orders.registration),
        **places,
    )


def _output_holds(output: Path, what: str) -> OutputRefused:
    return OutputRefused(
        got=f"an output that {what}",
        need="another",
        next="choose a new folder",
        place=output,
        code="output-holds-input",
    )


def _check_labels_folder(labels: Path | None, output: Path) -> None:
    """Refuses a folder of segmentations that holds the answers or lies among them: both have the scans' paths."""
    if labels is None:
        return
    if not labels.is_dir():
        raise InputRefused(
            got="no folder",
            need="a folder with segmentations at the scans' paths",
            next="correct `labels`",
            place=labels,
            code="labels-not-a-folder",
        )
    drawn, out = os.path.realpath(labels), os.path.realpath(output)
    if is_inside(drawn, out) or is_inside(out, drawn):
        raise _output_holds(output, "holds the segmentations, or lies among them")


def without_any_scan(source: Path) -> InputRefused:
    """Returns the error for a folder that holds nothing to compute from."""
    return InputRefused(
        got="a folder without any scan",
        need="one with scans",
        next="check the name",
        place=source,
        code="folder-without-scans",
    )


def shard(found: Found, index: int, count: int) -> Found:
    """Returns every ``count``-th scan, from the ``index``-th on, counted from 1: all shards are the data set."""
    # What cannot be done is named by one of the shards, not by each.
    first = [failed for failed in found.failed if index == 1]
    return Found(found.jobs[index - 1 :: count], first)


def gather_studies(found: Found, source: Path) -> Found:
    """Puts the folders of each DICOM study together, so that one shard has all of it; a header of each is read.

    Args:
        found: the scans of all shards, see `find_in_folder`.
        source: the folder that they lie in.

    Raises:
        InputRefused: there is no DICOM, and nothing else says which scans of a folder belong together.
    """
    from thinslice.io.dicom.series import find_study_uid

    studies: dict[object, list[Job]] = {}
    for job in found.jobs:
        if os.path.isdir(job.source):
            studies.setdefault(find_study_uid(job.source) or job.name, []).append(job)
    if not studies:
        raise InputRefused(
            got="`combine` for a folder without DICOM, where nothing says which scans belong together",
            need="DICOM studies, or a BIDS data set (BIDS_DIR OUT_DIR participant)",
            next="leave it out, or name the stacks of one body to 'thinslice combine'",
            place=source,
            code="nothing-to-combine",
        )
    first = {jobs[0].name: jobs for jobs in studies.values()}
    others = {job.name for jobs in studies.values() for job in jobs[1:]}
    gathered = [
        replace(job, group=Group(tuple(first[job.name]))) if len(first.get(job.name, ())) > 1 else job
        for job in found.jobs
        if job.name not in others
    ]
    return replace(found, jobs=gathered)


def split_by_series(found: Found, source: Path, output: Path, orders: Orders) -> Found:
    """Makes each of several DICOM series in a folder a scan, and names what is no scan. Their headers are read.

    Where that is asked for, the series of a study that belong together become one volume, in the place of the first.
    """
    jobs: list[Job] = []
    failed = list(found.failed)
    for job in found.jobs:
        of_study: list[tuple[Job, Series]] = []
        for folder in job.scans:
            if os.path.isdir(folder.source):
                of_folder, others = _jobs_of_folder(folder, output, orders)
                of_study += of_folder
                failed += others
            else:
                jobs.append(folder)
        jobs += _combined_where_fit(of_study, output, orders) if orders.combine else [one for one, _ in of_study]
    allowed = reject_outputs_over_inputs(jobs, source, output)
    return reject_shared_names(replace(allowed, failed=failed + allowed.failed))


def _combined_where_fit(found: "Sequence[tuple[Job, Series]]", output: Path, orders: Orders) -> list[Job]:
    """Returns a job for each group of series of a study that belong together, and those of the others."""
    from thinslice.io.dicom.groups import find_groups
    from thinslice.io.dicom.series import Study

    def in_order(one: "tuple[Job, Series]") -> tuple[object, ...]:
        image = one[1].images[0]
        return image.patient, image.study_uid, image.number or 0, image.series_uid, one[1].index

    job_of = {id(series): job for job, series in found}
    jobs = {job.name: job for job, _ in found}
    for group in find_groups(Study(tuple(series for _, series in sorted(found, key=in_order)), (), ())).groups:
        members = [job_of[id(series)] for series in group.series]
        first = members[0].destination
        target = first.with_name(f"{stem_of(first)}_combined.nii.gz")
        facts = {"group": group.name, "group_notes": list(group.notes)}
        jobs[members[0].name] = _job_of_group(members, {}, target, output, facts, _places(target, output), orders)
        for member in members[1:]:
            del jobs[member.name]
    return list(jobs.values())


def _jobs_of_folder(job: Job, output: Path, orders: Orders) -> "tuple[list[tuple[Job, Series]], list[Outcome]]":
    from thinslice.io.dicom.series import find_study

    try:
        study = find_study(job.source, below=False)
    except OSError as error:
        return [], [replace(one, name=job.name) for one in _unreadable([error], job.source)]
    others = [
        Outcome(f"{job.name}/{one.label}", "refused" if one.is_scan else "no-scan", one.reason)
        for one in study.unusable
    ]
    if len(study.series) == 1:
        return [(job, study.series[0])], others
    # One series is called after its folder; several get a folder of that name, and their own names in it.
    folder = job.destination.with_name(stem_of(job.destination))
    jobs = []
    for series, name in zip(study.series, names_of_series(study), strict=True):
        target = folder / f"{name}.nii.gz"
        # All of its series, also what was left out: what is found in a part of it might be another stack.
        files = tuple(file.name for file in series.files)
        of_series = replace(job, name=f"{job.name}/{name}", series=key_of_series(series), files=files)
        labels = None if orders.labels is None else orders.labels / target.relative_to(output)
        jobs.append((replace(of_series, destination=target, labels=labels, **_places(target, output)), series))
    return jobs, others


def _scans_below(source: Path, left_alone: Sequence[Path]) -> tuple[list[Path], list[Outcome]]:
    """Finds the scans, and the folders that cannot be read. Links are followed last, each folder is searched once."""
    others = [os.path.realpath(folder) for folder in left_alone]
    scans: list[Path] = []
    unreadable: list[OSError] = []
    # Real paths, so that two links to a folder, or one into itself, are followed once.
    seen: set[str] = set()
    tops = [source]  # grows while we walk: a link to a folder may lead back to one that holds it
    for top in tops:
        for folder, real, folders, names in walk(top, follow_links=False, complain=unreadable.append):
            if real in seen or any(is_inside(real, other) for other in others):
                folders.clear()
                continue
            seen.add(real)
            if not os.access(folder, os.X_OK):  # its names can be read, but not what they are
                unreadable.append(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder)))
                folders.clear()
                continue
            below = sorted(name for name in folders if not name.startswith("."))
            # In place: `walk` goes down into what is left of its own list.
            folders[:] = [name for name in below if not os.path.islink(folder / name)]
            tops += [folder / name for name in below if os.path.islink(folder / name)]
            files = sorted(folder / name for name in names if not name.startswith("."))
            scans += [file for file in files if ending(file)]
            # The first that is found is enough: of a series of thousands of files one is opened.
            if any(not ending(file) and looks_like_dicom(file) for file in without_voxel_files(files)):
                scans.append(folder)
    return sorted(scans), _unreadable(unreadable, source)


def _unreadable(errors: Sequence[OSError], source: Path) -> list[Outcome]:
    way_out = "need one that can be read; next: see to its permissions"
    return [
        Outcome(os.path.relpath(error.filename, source), "failed", f"got '{error.strerror}' for a folder; {way_out}")
        for error in errors
    ]


def _job_in_folder(path: Path, source: Path, output: Path, orders: Orders) -> Job:
    # Slices that lie in the folder of the data set itself make it a scan, which has no path within it.
    relative = path.relative_to(source) if path != source else Path(path.name)
    name = name_to_write(path.name) if ending(path) else f"{path.name}.nii.gz"
    target = (output / relative).with_name(name)
    return _job(path, relative.as_posix(), target, target.relative_to(output), _places(target, output), orders)


def _job_in_bids(path: Path, dataset: Path, output: Path, orders: Orders) -> Job:
    target, relative = derivative_path(path, dataset, output), path.relative_to(dataset)
    places = _places(target, output)
    places["extras"]["labels"] = segmentation_path(target)
    job = _job(path, relative.as_posix(), target, relative, places, orders)
    inherited = inherited_sidecars(path, dataset)
    return replace(job, inherited=inherited, facts=derivative_facts(path, dataset), resolution=True)


def _job(path: Path, name: str, target: Path, drawn: Path, places: dict[str, Any], orders: Orders) -> Job:
    """Makes the job of one scan; ``drawn`` is where its segmentation lies in the folder of these."""
    return Job(
        name=name,
        source=path,
        destination=target,
        settings=orders.settings,
        model_sha256=orders.model_sha256,
        wanted=orders.extras | ({"labels"} if orders.labels is not None else set()),
        labels=None if orders.labels is None else orders.labels / drawn,
        redo=orders.redo,
        engine=orders.engine,
        run=orders.run,
        **places,
    )


def _places(target: Path, output: Path) -> dict[str, Any]:
    """Returns where all lies that may be made beside an answer."""
    beside = target.relative_to(output).with_name(stem_of(target))
    extras = {
        "page": output / PAGES / f"{beside}.html",
        "figure": output / FIGURES / f"{beside}.png",
        "labels": labels_beside(target),
    }
    return {"thumbnail": output / THUMBNAILS / f"{beside}.png", "extras": extras}


def reject_outputs_over_inputs(jobs: Sequence[Job], source: Path, output: Path) -> Found:
    """Sets aside every job that would write to the place of an input or its JSON, or by a link into their folder."""
    raw, out = os.path.realpath(source), os.path.realpath(output)
    real = _Real()
    # A link in the output may lead anywhere; what counts is where a file would really be written.
    inputs = set()
    # All inputs before any answer: it may be the input of another scan that an answer lands on.
    drawn = {os.path.realpath(job.labels.parent) for job in jobs if job.labels is not None}
    for source_of in (one.source for job in jobs for one in job.scans):
        for scan in (source_of, Path(real(source_of))):
            inputs |= {real(file) for file in (scan, sidecar_path(scan)) if file is not None}
    allowed, failed = [], []
    for job in jobs:
        places = [real(place) for place in (job.destination, job.sidecar, job.thumbnail, *job.extras.values())]
        # The output may lie in the folder of the scans; what is forbidden is all else in there.
        bad = [
            place
            for place in places
            if place in inputs
            or os.path.dirname(place) in drawn
            or (is_inside(place, raw) and not is_inside(place, out))
        ]
        if bad:
            reason = (
                f"got the input {bad[0]} as the place of an answer, by way of a link; need an output apart from the "
                "scans; next: choose a new folder"
            )
            failed.append(Outcome(job.name, "failed", reason))
        else:
            allowed.append(job)
    return Found(allowed, failed)


class _Real:
    """Finds real paths as `os.path.realpath` does, but looks up each folder once."""

    def __init__(self) -> None:
        # `os.path.realpath` asks the system for every part of every path: too slow for six places of each of 100,000
        # scans.
        self.folders: dict[str, str] = {}

    def __call__(self, path: Path) -> str:
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        place = os.path.join(self.folders[folder], name)
        return os.path.realpath(place) if os.path.islink(place) else place


def reject_shared_names(found: Found) -> Found:
    """Sets aside every job with the name of another's answer: the first keeps it; letter case does not count."""
    taken: dict[str, Job] = {}
    jobs, failed = [], list(found.failed)
    for job in found.jobs:
        # a scan called a_labels takes the name of the labels of a: both are known by their stems, as is the JSON
        places = [job.destination, *([job.extras["labels"]] if "labels" in job.wanted else [])]
        # File systems of macOS and Windows take A.nii and a.nii for one file.
        names = [str(place.with_name(stem_of(place))).casefold() for place in places]
        other = next((taken[name] for name in names if name in taken), None)
        if other is None:
            jobs.append(job)
            taken |= dict.fromkeys(names, job)
            continue
        reason = (
            f"got a scan whose answer would have the name of that of {other.name}; need two names; "
            "next: rename or move one of them"
        )
        failed.append(Outcome(job.name, "failed", reason))
    return Found(jobs, failed)
