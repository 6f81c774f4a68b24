"""The line of the program, written once: settings, scan, plan, thin slices, check, files.

    volume = read_scan(path)                                     # voxels, affine, what the header says
    done = enhance_volume(volume, Settings(factor=4), model)     # plan, upsample, check
    done.save("thin.nii.gz")                                     # whole files or none

The command line, the demo, a data set and `thinslice.enhance` all call `enhance_volume`, and `Enhanced` is the one
result that all of them write, show and sum up.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from thinslice.compute.consistency import Report, check_agreement, make_report
from thinslice.compute.cost import check_cost
from thinslice.compute.label_maps import check_is_scan
from thinslice.compute.labels import extend_to_grid, fit_labels, interpolate_labels
from thinslice.compute.ringing import settle_profile
from thinslice.compute.tilted import acquired_voxels, shown_acquired
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, OutputRefused
from thinslice.io import formats, nifti
from thinslice.io.affines import directions
from thinslice.io.atomic import all_or_none, looks_like_dicom, whole_or_not
from thinslice.io.formats import ending
from thinslice.io.outputs import (
    FIGURE_ENDINGS,
    LABELS_NAME,
    PAGE_ENDINGS,
    SEGMENTATION_NAME,
    Output,
    ScanOutput,
    check_outputs,
    find_output,
    find_study,
    labels_beside,
)
from thinslice.io.scratch import allocate
from thinslice.io.upright import make_upright
from thinslice.models.protocol import Model
from thinslice.plan import Plan, make_plan
from thinslice.progress import Progress, no_progress
from thinslice.settings import Settings
from thinslice.volume import Volume

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series

logger = logging.getLogger(__name__)

SEGMENTATION_ENDING = ".dcm"
"""How the name of a DICOM SEG ends among the slices of a new series."""


@dataclass(frozen=True)
class Places:
    """Where everything about one enhanced scan goes.

    Attributes:
        answer: the thin slices and the report beside them.
        labels: the segmentation that is brought along, None without one.
        page: the HTML page, None without one.
        figure: the PNG, None without one.
    """

    answer: ScanOutput
    labels: Path | None = None
    page: Path | None = None
    figure: Path | None = None

    @property
    def outputs(self) -> list[Output]:
        """All files that will be written, for `thinslice.io.outputs.check_outputs`."""
        way_out = "name a folder, or another file"
        label_endings = (*formats.WRITABLE, *((SEGMENTATION_ENDING,) if self.answer.is_into_series else ()))
        further = (
            (self.labels, f"the labels of {self.answer.name}", label_endings),
            (self.page, "`report`", PAGE_ENDINGS),
            (self.figure, "`figure`", FIGURE_ENDINGS),
        )
        return self.answer.outputs + [
            Output(path, what, endings, way_out=way_out) for path, what, endings in further if path is not None
        ]


@dataclass(frozen=True, repr=False)
class Enhanced:
    """A scan with thin slices, and everything that is known of how it was made.

    Attributes:
        volume: the thin slices: voxels [x, y, z] or [x, y, z, t], affine, and the header of the scan that went in.
            Whole numbers stay whole numbers, 8 bits become 16; a file's rescale is kept, and the voxels lie on its
            steps.
        plan: every decision.
        report: how well the thin slices agree with the acquired ones, the time it took, notes.
        acquired: the scan that went in; where its slices are tilted, uneven or incomplete, on an upright, even grid,
            with what was acquired in its ``measured``.
        model: what computed them.
        fell_back: bool [x, y, z], acquired voxels (of a series of its first volume) where the guard took the network
            back to interpolation; None if nowhere.
        clipped: number of voxels that lay beyond what the whole numbers hold.
        segmentation: a segmentation of the acquired slices that is brought along, on their grid; None without one.
    """

    volume: Volume
    plan: Plan
    report: Report
    acquired: Volume
    model: Model
    fell_back: np.ndarray | None = None
    clipped: int = 0
    segmentation: Volume | None = None

    def __repr__(self) -> str:
        return f"<Enhanced: {describe_slices(self.plan)}>"

    @property
    def array(self) -> np.ndarray:
        """The voxels [x, y, z] or [x, y, z, t]."""
        return self.volume.voxels

    @property
    def affine(self) -> np.ndarray:
        """[4, 4] float64, voxel index -> patient millimetres (RAS)."""
        return self.volume.affine

    def to_nibabel(self) -> Any:
        """Returns a nibabel image (NIfTI-1, or NIfTI-2 if that went in) that shares `array`; its header is `save`'s.

        Raises:
            OutputRefused: the grid does not fit into a header.
        """
        return nifti.to_image(self.volume)

    def labels_to_thin(self, segmentation: Volume | None = None) -> Volume:
        """Returns a segmentation of the acquired slices on the thin grid, see `thinslice.compute.labels`.

        Args:
            segmentation: on the grid of the acquired scan; default: the one that was given with it.

        Raises:
            InputRefused: it is on another grid, has fractions, or there is none.
        """
        drawn = segmentation if segmentation is not None else self.segmentation
        if drawn is None:
            raise InputRefused(
                got="no segmentation",
                need="one on the grid of the acquired scan",
                next="give it to enhance as `labels`, or here",
                code="no-labels",
            )
        return interpolate_labels(drawn, self.plan)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        labels_out: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
        figure: str | os.PathLike[str] | None = None,
        anonymise: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Writes the thin slices and the report as JSON beside them, with their segmentation: all of them, or nothing.

        Args:
            path: a name in any format that is written, see `thinslice.io.formats`; of a DICOM series also a folder, for
                a new series of the same study. `array` is what is written, on the steps of that format.
            labels_out: where the segmentation goes that was given to ``enhance``; default: beside ``path``.
            report: an HTML file to write as well: a page on which acquired and thin slices are compared.
            figure: a PNG file to write as well: acquired, cubic and thin slices in the re-sliced planes.
            anonymise: leaves the patient's identity out of a new DICOM series and of all that is written beside it.
            overwrite: whether files that are there already may be replaced; what went in never is.

        Raises:
            InputRefused: it cannot be made anonymous.
            OutputRefused: it may not be written there, or there is no room.
        """
        if labels_out is not None and self.segmentation is None:
            raise OutputRefused(
                got="`labels_out` without `labels`",
                need="both",
                next="give `labels`, or leave both out",
                code="labels-out",
            )
        shown = self.without_identity() if anonymise else self
        source = self.acquired.source or Path()
        # An array came from no file, for which `Path()` stands here.
        answer = find_output(source, series_of(self.acquired), os.fspath(path), overwrite)
        labels = None
        if self.segmentation is not None:
            labels = find_labels_place(answer, labels_out, has_segments(self.segmentation))
            check_labels_place(labels, self.segmentation)
        places = Places(
            answer, labels, None if report is None else Path(report), None if figure is None else Path(figure)
        )
        segmentation = self.segmentation.source if self.segmentation is not None else None
        # Before the voxels are copied and rounded below, which takes time and room.
        check_outputs(places.outputs, [file for file in (source, segmentation) if file is not None], overwrite)
        try:
            done = shown.stored_in(answer.destination)
            # Page and figure come last: whatever happens to them, the thin slices are there.
            done.write(places, anonymise)
            if places.page is not None:
                done.write_page(places.page, overwrite=overwrite)
            if places.figure is not None:
                done.write_figure(places.figure, overwrite)
        except OSError as error:
            raise OutputRefused(
                place=os.fspath(path),
                got=f"'{error.strerror or error}'",
                need="room and permission there",
                next="free some room, or choose another place",
                code="cannot-write",
            ) from error

    def without_identity(self) -> "Enhanced":
        """Returns the same without what beside the images may name the patient: names of files, the labels' header.

        Raises:
            InputRefused: it came from no DICOM series, or from one that no look at its headers can make anonymous.
        """
        series = series_of(self.acquired)
        if series is None:
            raise InputRefused(
                got="`anonymise` for a scan that is no DICOM",
                need="a DICOM series",
                next="leave it out",
                code="anonymise-without-dicom",
            )
        from thinslice.io.dicom.identity import check_can_hide

        check_can_hide(series)
        # A file, a folder or a series may be called after the patient, and the report and its page would say so.
        report = replace(self.report, source="")
        drawn = self.segmentation
        if drawn is not None:
            header = drawn.header.without_identity() if has_segments(drawn) else None
            drawn = replace(drawn, header=header)
        return replace(self, report=report, segmentation=drawn)

    def stored_in(self, target: Path) -> "Enhanced":
        """Returns the same as a file of that name, perhaps of another format than the scan's own, will hold it."""
        if formats.is_same_format(ending(target) or "", formats.own_ending(self.acquired)):
            return self
        # A copy, as rounding to what the file holds happens in place, and `self` may be saved in another format too.
        voxels = allocate(self.array.shape, self.array.dtype, target.parent)
        voxels[...] = self.array
        thin = to_stored(replace(self.volume, voxels=voxels), target)
        report = make_report(self.acquired, thin, self.plan, self.report.guard, self.report.seconds, self.clipped)
        # What contradicts the scan is only here because that was wanted.
        report = replace(report, notes=(*report.notes, *check_agreement(report.consistency, self.plan, is_forced=True)))
        # The name of the scan is kept: a report that is made again knows only that of the file.
        return replace(self, volume=thin, report=replace(report, source=self.report.source))

    def write(self, places: Places, anonymise: bool = False) -> None:
        """Writes the thin slices, the report and the segmentation: all files, or none. Pages and figures come after.

        Args:
            places: where; the thin slices must be as that place holds them, see `stored_in`.
            anonymise: without the identity of the patient of a new series; see `without_identity` for what lies beside.

        Raises:
            OutputRefused, OSError: they cannot be written.
        """
        answer = places.answer
        beside = [places.labels] if places.labels is not None else []
        slices = _slice_files(answer, self.plan.n_thin)

        def find_stale() -> set[Path]:  # an earlier series that is replaced may have had more slices, or labels
            if not answer.is_into_series:
                return set()
            names = ("IM*.dcm", LABELS_NAME, SEGMENTATION_NAME)
            return {file for name in names for file in answer.destination.glob(name)} - {*slices, *beside}

        with all_or_none([answer.sidecar, *beside, *slices], answer.overwrite, find_stale) as parts:
            self.report.save(parts[0])
            # The order of `parts` is that of the list above: the JSON, the segmentation where there is one, then the
            # slices.
            is_dicom = bool(beside) and beside[0].suffix.lower() == SEGMENTATION_ENDING
            images = _write_slices(self, parts[-len(slices) :], answer, anonymise, keep_headers=is_dicom)
            if is_dicom:
                from thinslice.io.dicom import segmentations

                segmentations.write(self.labels_to_thin(), images, parts[1])
            elif beside:
                formats.write(self.labels_to_thin(), parts[1])

    def write_page(self, path: Path, progress: Progress = no_progress, overwrite: bool = True) -> None:
        """Writes the page on which acquired, cubic and thin slices are compared; see `thinslice.reports.report_page`.

        Raises:
            OutputRefused: it is there by now, and may not be replaced.
            OSError: it cannot be written; nothing is left behind.
        """
        from thinslice.reports.report_page import write_report_page

        with whole_or_not(path, overwrite) as part:
            write_report_page(part, self, progress)

    def write_figure(self, path: Path, overwrite: bool = True) -> None:
        """Writes a PNG with acquired, cubic and thin slices in both re-sliced planes, at true aspect.

        Raises:
            OutputRefused: it is there by now, and may not be replaced.
            OSError: it cannot be written; nothing is left behind.
        """
        from thinslice.reports.report_page import write_figure

        with whole_or_not(path, overwrite) as part:
            write_figure(part, self)


def plan_volume(acquired: Volume, settings: Settings, model: Model, target: Path) -> Plan:
    """Makes the plan of a scan, and refuses what could not be done by it; nothing has been computed by then.

    Args:
        acquired, settings, model: as for `enhance_volume`.
        target: the file or folder that the answer is meant for, in whose folder there must be room.

    Raises:
        PlanRefused: it cannot be made thinner as asked, or not on this machine.
    """
    acquired = make_upright(acquired)
    plan = make_plan(acquired, settings, model)
    check_cost(acquired, plan, model, np.dtype(type_of_thin(acquired)).itemsize, target.parent)
    return plan


def enhance_volume(
    acquired: Volume,
    settings: Settings,
    model: Model,
    *,
    target: Path | None = None,
    labels: Volume | None = None,
    name: str | None = None,
    progress: Progress = no_progress,
) -> Enhanced:
    """Computes the thin slices of a scan: plan, upsample, check.

    Whole numbers stay whole numbers, but 8 bits become 16: between bright and dark slices an answer goes beyond
    0 .. 255, and clipped there it would not give the scan back when it is made thick again.

    Args:
        acquired: the scan with thick slices.
        settings: what is asked for.
        model: what computes the slices, from `thinslice.models.registry`.
        target: the file or folder that the answer is meant for, which decides the values it can hold, and in whose
            folder an answer lives until then that is too large for the memory; default: the scan's own format, and the
            system's folder for temporary files.
        labels: a segmentation of the acquired slices to bring along.
        name: what the report calls the scan; default: the name of its file.
        progress: called with the share done, 0 .. 1.

    Raises:
        PlanRefused: it cannot be made thinner as asked, or what was asked for contradicts the scan.
        InputRefused: the segmentation is not one of this scan, or the scan is a segmentation itself.
        OutputRefused: there is no room on the disk for an answer that is too large for the memory.
    """
    suspicion = check_is_scan(acquired)
    acquired = make_upright(acquired)
    if target is None:
        target = Path(tempfile.gettempdir()) / f"thin{formats.own_ending(acquired)}"
    plan = plan_volume(acquired, settings, model, target)
    if labels is not None:
        # Now, and not when they are interpolated: that would be after minutes of computing.
        labels = fit_labels(labels, plan)
    # Room is taken before anything is computed, so that a full disk is told of at once.
    out = allocate((*plan.shape_thin, *acquired.voxels.shape[3:]), type_of_thin(acquired), target.parent)
    started = perf_counter()
    plan = settle_profile(acquired, plan, model)
    done = upsample(acquired, plan, model, out, progress)
    seconds = round(perf_counter() - started, 3)  # here, so that the page and the report round the same number
    # The report is made of what the file will hold, on its steps, not of the numbers before they were rounded.
    thin = to_stored(done.volume, target)
    of_labels = [f"labels: {note}" for note in labels.notes] if labels is not None else []
    thin = replace(thin, notes=(*thin.notes, *suspicion, *of_labels))
    report = make_report(acquired, thin, plan, done.guard, seconds, done.clipped)
    report = replace(
        report, notes=(*report.notes, *check_agreement(report.consistency, plan, is_forced=settings.force))
    )
    if name is not None:
        report = replace(report, source=name)
    logger.debug("%s: %s in %.2f s", report.source or "a scan", describe_slices(plan), seconds)
    return Enhanced(thin, plan, report, shown_acquired(acquired, plan), model, done.fell_back, done.clipped, labels)


def read_scan(path: Path) -> Volume:
    """Reads the one scan at a path: a file of any format, or a folder with one DICOM series.

    Raises:
        InputRefused: there is none, or there are several, or it cannot be read.
    """
    study = find_study(path)
    if study is None:
        if path.is_dir():
            raise InputRefused(
                place=path,
                got="a folder without DICOM",
                need="one scan",
                next="name a file, or call enhance for each",
                code="folder-of-scans",
            )
        return formats.read(path)
    if len(study.series) == 1:
        from thinslice.io.dicom.pixels import read_series

        return read_series(study.series[0])
    if study.series:
        labels = ", ".join(one.label for one in study.series)
        raise InputRefused(
            place=path,
            got=f"{len(study.series)} series ({labels})",
            need="one",
            next="name the folder of one, or use the command line",
            code="several-series",
        )
    unusable = study.unusable[0]
    raise InputRefused(f"{path}: {unusable.label}: {unusable.reason}", code="unusable-series")


def read_labels(path: Path, scan: Volume) -> Volume:
    """Reads the segmentation of a scan: a file of any format, among them a DICOM SEG, or a folder with one of these.

    What covers a part of the scan alone, as a SEG and what 3D Slicer saves do, comes back on all of its grid.

    Raises:
        InputRefused: it cannot be read, or covers another scan's voxels.
    """
    if is_segmentation(path):
        from thinslice.io.dicom import segmentations

        if (file := segmentations.find_segmentation(path)) is not None:
            return extend_to_grid(segmentations.read(file, scan.spacing_mm, directions(scan.affine)), scan)
    labels = formats.read(path)
    nrrd = sys.modules.get("thinslice.io.nrrd")  # not imported: then it is no NRRD
    return extend_to_grid(labels, scan) if nrrd is not None and nrrd.is_cropped(labels) else labels


def is_segmentation(path: Path) -> bool:
    """Returns whether a path is a DICOM SEG, or a folder with one.

    Raises:
        InputRefused: contours instead, or several.
    """
    if not path.is_dir() and (ending(path) or not path.is_file() or not looks_like_dicom(path)):
        return False
    from thinslice.io.dicom import segmentations

    return segmentations.find_segmentation(path) is not None


def has_segments(labels: Volume | None) -> bool:
    """Returns whether labels came from a DICOM SEG, and can be written as one again."""
    module = sys.modules.get("thinslice.io.dicom.segmentations")  # not imported: then they did not
    return labels is not None and module is not None and isinstance(labels.header, module.Segmentation)


def series_of(volume: Volume) -> "Series | None":
    """Returns the DICOM series that a scan was read from, None for a file of another format."""
    module = sys.modules.get("thinslice.io.dicom.series")  # not imported: then there is none
    return volume.header if module is not None and isinstance(volume.header, module.Series) else None


def describe_slices(plan: Plan) -> str:
    """Returns the slices before and after, and the model, in words.

    As in: 20 slices x 4 mm -> 80 slices x 1 mm with default.
    """
    before, after = plan.spacing_thick_mm[plan.axis], plan.spacing_thin_mm[plan.axis]
    larger = f", each {plan.in_plane} times larger along both sides," if plan.in_plane > 1 else ""
    slices = f"{plan.n_acquired} slices x {before:.4g} mm -> {plan.n_thin} slices x {after:.4g} mm"
    return f"{slices}{larger} with {plan.model}"


def find_labels_place(
    answer: ScanOutput, labels_out: str | os.PathLike[str] | None = None, from_segments: bool = False
) -> Path:
    """Returns where the segmentation of a scan goes: where it was asked to, else beside the thin slices.

    Args:
        answer: where the thin slices go.
        labels_out: another place that was asked for.
        from_segments: whether it came from a DICOM SEG, and among the slices of a new series becomes one again.
    """
    if labels_out is not None:
        return Path(labels_out)
    in_series = SEGMENTATION_NAME if from_segments else LABELS_NAME
    return answer.destination / in_series if answer.is_into_series else labels_beside(answer.destination)


def check_labels_place(place: Path, labels: Volume) -> None:
    """Refuses a SEG as the place of labels that came from none: nothing says what its segments are.

    Raises:
        OutputRefused: it is one.
    """
    if place.suffix.lower() == SEGMENTATION_ENDING and not has_segments(labels):
        raise OutputRefused(
            got="a DICOM SEG as the place of labels that came from another format",
            need=f"labels from a DICOM SEG, which says what its segments are, or {' or '.join(formats.WRITABLE[:2])}",
            next="change `labels_out`",
            place=place,
            code="output-ending",
        )


def type_of_thin(acquired: Volume) -> str | np.dtype[Any]:
    """Returns the type of the voxels of an answer: whole numbers stay whole numbers, but 8 bits become 16."""
    kind = acquired_voxels(acquired).dtype
    if kind.kind in "iu":
        # Both 8-bit types: clipped to 0 .. 255 a knee, made thick again, differed from its scan by 32 % at worst
        # (LOG.md).
        return "int16" if kind.itemsize == 1 else kind
    return "float64" if kind == "float64" else "float32"


def to_stored(thin: Volume, target: Path) -> Volume:
    """Returns thin slices with the values that a file of that name, or else a new DICOM series, will hold."""
    if ending(target):
        return formats.as_stored(thin, target)
    from thinslice.io.dicom.derived import as_stored as as_stored_in_series

    return as_stored_in_series(thin)


# ---- files


def _slice_files(case: ScanOutput, slices: int) -> list[Path]:
    """Returns the file of the answer, or one for each slice of a new series."""
    if not case.is_into_series:
        return [case.destination]
    return [case.destination / f"IM{index:04d}.dcm" for index in range(1, slices + 1)]


def _write_slices(
    done: Enhanced, parts: Sequence[Path], case: ScanOutput, anonymise: bool, keep_headers: bool
) -> list[Any]:
    """Writes the thin slices; returns the headers of those of a new series, for what refers to them."""
    if not case.is_into_series:
        formats.write(done.volume, parts[0])
        return []
    from thinslice.io.dicom.derived import images, save
    from thinslice.io.dicom.segmentations import header_of

    found = done.report.consistency
    agreement = (
        f"Made thick again they differ from the acquired ones by {found.rms_percent:.2g} % RMS, "
        f"{found.worst_percent:.2g} % at worst, of the intensity range."
    )
    headers: list[Any] = []
    # Each slice is made when it is its turn: all of them together would be the whole series once more in memory.
    for image, part in zip(images(done.volume, done.acquired, done.plan, agreement, anonymise), parts, strict=True):
        save(image, part)
        headers += [header_of(image)] if keep_headers else []
    return headers
