"""The line of the program for several stacks of one body: read, plan, make thin, place, combine, report, files.

    done = combine_volumes([axial, sagittal, coronal], lambda volume: model)
    done.save("combined.nii.gz")

What each stack acquired is thinned by the model first. Then the stacks are placed: where their headers say, and where
these are wrong, where they fit each other (`thinslice.compute.registration`, `thinslice.compute.motion`). At last one
volume is found that all acquisitions agree with (`thinslice.compute.combine`). The command line and `thinslice.combine`
call `combine_volumes`.
"""

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from thinslice.compute.combine import Joined, StackFit, combine_stacks
from thinslice.compute.consistency import check, check_agreement
from thinslice.compute.kept_slices import take_kept
from thinslice.compute.labels import fit_labels, interpolate_labels
from thinslice.compute.likeness import Likeness, measure_likeness
from thinslice.compute.motion import measure_motion, refine_motions
from thinslice.compute.registration import check_installed, register
from thinslice.compute.ringing import settle_profile
from thinslice.compute.stacks import Stack, VoxelGrid, go_on, straighten
from thinslice.compute.uncertainty import CHECKED_SHA256, Spread, map_combined_error
from thinslice.compute.upsample import upsample
from thinslice.errors import InputRefused, OutputRefused, PlanRefused
from thinslice.io import formats, nifti
from thinslice.io.affines import directions, gap_mm, outer_corners_mm
from thinslice.io.atomic import all_or_none
from thinslice.io.contrast import Contrast, compare_contrasts, contrast_beside
from thinslice.io.outputs import LABELS_NAME, PAGE_ENDINGS, Output, check_outputs, find_output, labels_beside
from thinslice.models.hounsfield import find_padding, locate_padding
from thinslice.models.interpolations import interpolation
from thinslice.models.protocol import Model
from thinslice.physics.interpolation import INTERPOLATIONS
from thinslice.pipeline import series_of, to_stored, type_of_thin
from thinslice.plan import Plan, make_plan
from thinslice.progress import Progress, no_progress, part_of
from thinslice.settings import Settings
from thinslice.volume import Volume, format_shape, through_plane_axis

if TYPE_CHECKING:  # pydicom takes a third of a second to import
    from thinslice.io.dicom.series import Series

logger = logging.getLogger(__name__)

Grid = Literal["first", "union"]
"""Where the combined volume lies: where the first stack does, or around all of them."""

LARGEST_REFINEMENT = 1_000_000
"""Voxels of the grid on which motion is refined; a finer one is taken that much coarser: a tenth of a millimetre is
seen on it as well, in seconds."""

FEWEST_SLICES = 5
"""A stack has more than that in practice; a localizer has three or so, far apart, and shows nothing between them."""

_HOW_EXPECTED = (
    "Mean error to be expected, from how far the network's answers to the stacks are apart, and from their noise; "
    "where one stack sees alone, from its answers to it and to its mirror image. What all of them get wrong alike it "
    "cannot show. Read it as a map: "
)
EXPECTED_IN_WORDS = {
    True: _HOW_EXPECTED
    + "on simulated stacks of MR it ranked the true error, and its size was right to a factor of 1.7.",
    False: _HOW_EXPECTED + "its size was not checked.",
}
"""How the expected error is read, by whether it was checked for the weights that made the stacks thin."""

MOST_VOXELS = 600_000_000
"""Voxels of an answer beyond which it is refused: conjugate gradients need ten times its room."""


OF_ONE_STACK = frozenset(
    {
        "stack-is-series", "stack-is-short", "stack-is-flat", "stack-given-twice", "stacks-of-two-contrasts",
        "stack-is-thin", "isotropic", "not-thinner", "one-slice", "factor-rounds-to-one",
    }
)  # fmt: skip
"""Codes of refusals that say of one stack that it cannot be of the others, which may be combined without it."""

PARALLEL_DEGREES = 30.0
"""Stacks whose slices lie at a smaller angle are of one direction: chunks of a spine follow its curve."""

CHUNK_SHARE = 0.5
"""Stacks of one direction that share less than this of their fields of view are chunks: each shows what another lacks.
"""


@dataclass(frozen=True, eq=False)
class SliceMotions:
    """How the slices of one stack moved beyond the stack.

    Attributes:
        motions: [slices, 4, 4] patient millimetres, from where its header says that each slice that is computed from
            lies to where it was found to lie.
        parts: how many motions there are: 2 of a stack whose every second slice moved, or as many as slices.
        moved_mm, turned_degrees: the largest from where the stack as a whole lies: of the middle of a slice, and its
            turn.
    """

    motions: np.ndarray
    parts: int
    moved_mm: float
    turned_degrees: float

    @classmethod
    def of(cls, stack: Stack, motions: np.ndarray) -> "SliceMotions":
        """Returns what is to be said of a stack.

        Args:
            stack: where it was found to lie.
            motions: its ``slice_motions``.
        """
        acquired, plan = take_kept(stack.acquired, stack.plan)
        moves = []
        for number, motion in enumerate(motions):
            index = [number if axis == plan.axis else (n - 1) / 2 for axis, n in enumerate(acquired.shape)]
            moves.append(measure_motion(motion, stack.motion @ acquired.affine @ [*index, 1]))
        moved_mm, turned_degrees = np.max(moves, axis=0)
        parts = len(np.unique(motions, axis=0))
        return cls(motions @ stack.motion, parts, float(moved_mm), float(turned_degrees))

    def describe(self) -> str:
        """Returns it in words."""
        who = "slices" if self.parts == len(self.motions) else f"{self.parts} packages of slices"
        return f"its {who} up to {self.moved_mm:.1f} mm and {self.turned_degrees:.1f} degrees from there"


@dataclass(frozen=True, eq=False)
class CombinedStack:
    """What became of one stack.

    Attributes:
        name: what messages call it.
        plan: by which it was made thin.
        motion: [4, 4] patient millimetres, from where its header says that it lies to where it was found to lie.
        moved_mm, turned_degrees: how far that moves its middle, and by how much it turns.
        likeness: to the stack that it was placed against, 1 for the first.
        fit: how well the combined volume agrees with it; None for a stack that was left out.
        left_out: why it was left out, None for one that was not.
        within: how its slices moved beyond that, None where they lie as the stack does.
    """

    name: str
    plan: Plan
    motion: np.ndarray
    moved_mm: float
    turned_degrees: float
    likeness: float
    fit: StackFit | None = None
    left_out: str | None = None
    within: SliceMotions | None = None

    def describe(self) -> str:
        """Returns one sentence for the terminal and the report."""
        return f"{self.name}: {f'left out: {self.left_out}' if self.left_out is not None else self.account()}"

    def account(self) -> str:
        """Returns where a stack was placed and how well it fits, without its name."""
        moved = "where its header says"
        if self.moved_mm >= 0.05 or self.turned_degrees >= 0.05:
            moved = f"moved by {self.moved_mm:.1f} mm and {self.turned_degrees:.1f} degrees"
        if self.within is not None:
            moved += f", {self.within.describe()}"
        fit = self.fit
        if fit is None:
            return moved
        if fit.share_seen == 0:
            # Of no difference nothing could be said, and it would read as a perfect fit.
            return f"{moved}, beside the grid of the answer: nothing of it is in there"
        words = [moved, f"differs by {fit.rms_percent:.2g} % RMS"]
        if fit.rms_in_noise is not None:
            words[-1] += f" ({fit.rms_in_noise:.2g} times its noise)"
        if abs(fit.gain - 1) >= 0.005:
            words.append(f"brightness divided by {fit.gain:.3g}")
        doubtful = int(np.count_nonzero(fit.slice_weights < 0.5))
        if doubtful:
            words.append(f"{doubtful} of its {len(fit.slice_weights)} slices count less, as they do not fit")
        return ", ".join(words)


@dataclass(frozen=True, eq=False, repr=False)
class Combined:
    """One volume from several stacks, and everything that is known of how it was made.

    Attributes:
        volume: the combined volume [x, y, z], in the units and the type of the first stack.
        held_by: uint8 on its grid, how many stacks hold each voxel.
        stacks: what became of each stack, those that were left out included.
        acquired: the stacks that went in, in the same order.
        seconds: how long it took, without reading and writing.
        notes: what had to be decided, in plain words.
        segmentation: labels on the combined grid, None without.
        facts: what else the JSON shall say.
        odd: by their names, stacks that were not even looked at, as they cannot be of these, and why.
        spread: from which the expected error is computed once it is asked for.
        like: the file whose grid it has, None for no such file.
    """

    volume: Volume
    held_by: Volume
    stacks: tuple[CombinedStack, ...]
    acquired: tuple[Volume, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    segmentation: Volume | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    odd: Mapping[str, str] = field(default_factory=dict)
    spread: Spread | None = None
    like: Path | None = None

    def __repr__(self) -> str:
        return f"<Combined: {describe_combination(self)}>"

    @property
    def array(self) -> np.ndarray:
        """The voxels [x, y, z]."""
        return self.volume.voxels

    @property
    def affine(self) -> np.ndarray:
        """[4, 4] float64, voxel index -> patient millimetres (RAS)."""
        return self.volume.affine

    @cached_property
    def expected_error(self) -> Volume | None:
        """The mean absolute error to be expected in cells of 3 mm, in its units; None where interpolations made it.

        Where one stack alone is seen its model computes once more, which takes as long as the first time.
        """
        found = None if self.spread is None else map_combined_error(self.spread)
        return None if found is None else found.volume

    def to_json(self) -> str:
        """Returns the report as readable JSON."""
        content = {
            **self.facts,
            "combined_from": [_stack_facts(stack) for stack in self.stacks],
            "odd": dict(self.odd),
            "shape": list(self.volume.shape),
            "affine": self.volume.affine.tolist(),
            "held_by": {
                str(count): int(np.count_nonzero(self.held_by.voxels == count))
                for count in range(int(self.held_by.voxels.max()) + 1)
            },
            "seconds": self.seconds,
            "notes": list(self.notes),
            "versions": self.stacks[0].plan.versions,
        }
        return json.dumps(content, indent=2) + "\n"

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        held_by: str | os.PathLike[str] | None = None,
        expected_error: str | os.PathLike[str] | None = None,
        labels_out: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
        anonymise: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Writes the volume and its report as JSON beside it, and whatever else is asked for: all files, or none.

        Args:
            path: a name in any format that is written, see `thinslice.io.formats`; of DICOM series also a folder, for a
                new series of the study of the first one.
            held_by: a file for the map of how many stacks hold each voxel.
            expected_error: a file for the map of `expected_error`.
            labels_out: where the segmentation goes; default: beside ``path``.
            report: an HTML file: a page on which the first stack as acquired and the combined volume are compared.
            anonymise: leaves the patient's identity out of a new DICOM series and of all that is written beside it.
            overwrite: whether files that are there already may be replaced; what went in never is.

        Raises:
            InputRefused: it cannot be made anonymous.
            OutputRefused: it may not be written there, there is no room, or no error is to be expected of it.
        """
        if labels_out is not None and self.segmentation is None:
            raise OutputRefused(
                got="`labels_out` without `labels`",
                need="both",
                next="give `labels`, or leave both out",
                code="labels-out",
            )
        series = series_of(self.acquired[0])
        places = find_places(path, held_by, expected_error, labels_out, report, self.segmentation is not None, series)
        read = [*self.acquired, *([self.segmentation] if self.segmentation is not None else [])]
        files = [*(volume.source for volume in read), self.like]
        check_places(places, [file for file in files if file is not None], overwrite)
        shown = self.without_identity() if anonymise else self
        if expected_error is not None and shown.expected_error is None:
            raise _no_expected_error(", ".join(sorted({stack.plan.model for stack in self.stacks})))
        try:
            if formats.ending(places["volume"]):
                with all_or_none([*places.values()], overwrite) as parts:
                    for name, part in zip(places, parts, strict=True):
                        shown._write_one(name, part)
            else:
                shown._write_series(places, anonymise, overwrite)
        except OSError as error:
            raise OutputRefused(
                place=os.fspath(path),
                got=f"'{error.strerror or error}'",
                need="room and permission there",
                next="free some room, or choose another place",
                code="cannot-write",
            ) from error

    def without_identity(self) -> "Combined":
        """Returns the same without what beside the images may name the patient: names of files and of series.

        Raises:
            InputRefused: not all of it came from DICOM series, or from such that can be made anonymous.
        """
        check_can_be_anonymous(self.acquired)
        named = dict.fromkeys([*(stack.name for stack in self.stacks), *self.odd])
        names = {name: f"stack {number + 1}" for number, name in enumerate(named)}

        def hide(text: str) -> str:
            # The longest first, as one name may begin another.
            for name in sorted(names, key=len, reverse=True):
                text = text.replace(name, names[name])
            return text

        stacks = [
            replace(
                stack,
                name=names[stack.name],
                left_out=None if stack.left_out is None else hide(stack.left_out),
                plan=replace(stack.plan, notes=tuple(map(hide, stack.plan.notes))),
            )
            for stack in self.stacks
        ]
        odd = {names[name]: hide(reason) for name, reason in self.odd.items()}
        return replace(self, stacks=tuple(stacks), notes=tuple(map(hide, self.notes)), odd=odd)

    def _write_series(self, places: dict[str, Path], anonymise: bool, overwrite: bool) -> None:
        """Writes a new DICOM series, and whatever else is asked for: all files, or none."""
        from thinslice.io.dicom.combined import images_of_combined
        from thinslice.io.dicom.derived import save

        used = [n for n, stack in enumerate(self.stacks) if stack.left_out is None]
        plan = self.stacks[0].plan
        description = " ".join(f"Stack {n + 1} of {len(self.stacks)}: {self.stacks[n].account()}." for n in used)
        key = json.dumps(
            [stack.plan.to_json() for stack in self.stacks] + [_motions_of(stack) for stack in self.stacks]
        )
        model = f"{plan.model} {plan.model_sha256 or ''}".strip()
        sources = [self.acquired[number] for number in used]
        images = list(images_of_combined(self.volume, sources, description, key, model, anonymise))
        folder = places["volume"]
        beside = {name: path for name, path in places.items() if name != "volume"}
        slices = [folder / f"IM{number:04d}.dcm" for number in range(1, len(images) + 1)]

        def find_stale() -> set[Path]:
            # An earlier series that is replaced may have had more slices, or labels.
            return {*folder.glob("IM*.dcm"), *folder.glob(LABELS_NAME)} - {*slices, *beside.values()}

        with all_or_none([*beside.values(), *slices], overwrite, find_stale) as parts:
            for name, part in zip(beside, parts, strict=False):
                self._write_one(name, part)
            for image, part in zip(images, parts[len(beside) :], strict=True):
                save(image, part)

    def _write_one(self, name: str, part: Path) -> None:
        if name == "json":
            part.write_text(self.to_json(), encoding="utf-8")
        elif name == "report":
            self.write_page(part)
        elif name == "labels" and self.segmentation is not None:
            formats.write(self.segmentation, part)
        else:
            maps = {
                "held_by": self.held_by,
                "expected_error": self.expected_error if name == "expected_error" else None,
            }
            formats.write(maps.get(name) or self.volume, part)

    def write_page(self, path: Path) -> None:
        """Writes a page on which the first stack and the combined volume are compared, with the map of stacks over it.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        from thinslice.reports.report_page import show_expected_error
        from thinslice.reports.viewer_page import Layer, Overlay, write_viewer_page

        first, name = self.acquired[0], self.stacks[0].name
        count, expected = int(self.held_by.voxels.max()), self.expected_error
        held_by = Overlay(
            "stacks that hold it",
            replace(self.held_by, voxels=self.held_by.voxels.astype(np.float32)),
            "stacks",
            float(count),
            "Where one stack alone holds a place, what is seen there is what the model made of it.",
        )
        checked = all(stack.plan.model_sha256 == CHECKED_SHA256 for stack in self.stacks if stack.left_out is None)
        in_words = "a map; " + (
            "checked against known truth of simulated stacks" if checked else "its size not checked"
        )
        write_viewer_page(
            path,
            title=f"{name} and what was combined",
            acquired=Layer(f"{name}, as acquired", first, staircase=True),
            others=[Layer("combined", self.volume, staircase=False)],
            overlays=[
                held_by,
                *([] if expected is None else [show_expected_error(expected, EXPECTED_IN_WORDS[checked])]),
            ],
            facts=[
                ("combined", describe_combination(self)),
                *[("stack", stack.describe()) for stack in self.stacks],
                ("expected error", "not known of an interpolation" if expected is None else in_words),
                ("time", f"{self.seconds:.1f} s"),
            ],
            notes=list(self.notes),
        )


def combine_volumes(
    scans: Sequence[Volume],
    model_for: Callable[[Volume], Model],
    *,
    names: Sequence[str] | None = None,
    contrasts: Sequence[Contrast] | None = None,
    spacing_mm: float | None = None,
    grid: Grid | Volume = "first",
    registration: bool = True,
    labels: Volume | None = None,
    settings: Settings | None = None,
    target: Path | None = None,
    progress: Progress = no_progress,
) -> Combined:
    """Finds the one volume that several stacks of a body agree with.

    Args:
        scans: the stacks, at least two, [x, y, z] each; the first one sets grid, brightness and type of the answer.
        model_for: chooses what makes a stack thin.
        names: what messages call them; default: the names of their files.
        contrasts: what is known of their contrasts; default: what their headers, or the JSON beside them, say.
        spacing_mm: distance between voxels along all axes; default: that which ``enhance`` gives the first stack.
        grid: ``first``, ``union``, or a volume whose grid the answer gets.
        registration: whether stacks are placed where they fit each other; else their headers are believed.
        labels: a segmentation of the first stack to bring along.
        settings: noise, interleaving and slice profile as for ``enhance``; a spacing or factor in it is not heeded.
        target: the file that the answer is meant for, which decides the values it can hold.
        progress: called with the share done, 0 .. 1.

    Raises:
        InputRefused: they are not several stacks of one body in one contrast.
        PlanRefused: one of them cannot be made thin.
    """
    started = perf_counter()
    names = list(names or _name_all(scans))
    # It refuses what is no spacing.
    Settings(spacing_mm=spacing_mm)
    _check_scans(scans, names, contrasts or [_contrast_of(scan) for scan in scans])
    if registration:
        check_installed()
    try:
        first_plan = make_plan(scans[0], Settings(model="cubic"), interpolation("cubic"))
    except (InputRefused, PlanRefused) as error:
        raise error.at(names[0]) from error
    if labels is not None:
        labels = _fit_labels(labels, first_plan)
    wanted = _find_grid(scans, first_plan, spacing_mm, grid)
    stacks = []
    for number, scan in enumerate(scans):
        part = part_of(progress, 0.4 * number / len(scans), 0.4 * (number + 1) / len(scans))
        stacks.append(_make_thin(scan, names[number], model_for(scan), settings or Settings(), wanted, part))
    stacks, likeness, left_out, beside = _place(stacks, names, registration, part_of(progress, 0.4, 0.6))
    used = [number for number in range(len(stacks)) if number not in left_out]
    if len(used) < 2:
        raise _nothing_fits(names, left_out)
    stacks, joined = _join(stacks, used, beside, wanted, registration, part_of(progress, 0.6, 1.0))
    fits = dict(zip(used, joined.fits, strict=True))
    described = tuple(
        _describe_stack(stack, names[number], likeness[number], fits.get(number), left_out.get(number))
        for number, stack in enumerate(stacks)
    )
    voxels = _in_type_of(scans[0], joined.voxels)
    volume = replace(scans[0], voxels=voxels, affine=wanted.affine, thickness_mm=None, notes=(), slice_axis=None)
    volume = to_stored(volume, target or Path(f"combined{formats.own_ending(scans[0])}"))
    seconds = round(perf_counter() - started, 3)  # as of `thinslice.pipeline`
    done = Combined(
        volume,
        Volume(joined.held_by, wanted.affine),
        described,
        tuple(scans),
        seconds,
        (
            *_notes_of_chunks(beside, names),
            *_notes(stacks, names, joined.held_by),
            *_notes_of_labels(labels, stacks[0]),
        ),
        None if labels is None else _bring_labels(labels, stacks[0].plan, wanted),
        spread=joined.spread,
        like=grid.source if isinstance(grid, Volume) else None,
    )
    logger.debug("%s in %.1f s", describe_combination(done), seconds)
    return done


def combine_fitting(
    scans: Sequence[Volume],
    model_for: Callable[[Volume], Model],
    *,
    names: Sequence[str] | None = None,
    contrasts: Sequence[Contrast] | None = None,
    grid: Grid | Volume | None = None,
    **more: Any,
) -> Combined:
    """Finds the one volume that stacks agree with that were found together, and not chosen by a person.

    One that cannot be of them (of two contrasts, thin, a localizer, a series of volumes, a copy) is left out with its
    reason, as long as two are left.

    Args:
        scans, model_for, names, contrasts, more: as of `combine_volumes`.
        grid: default: see `choose_grid`.

    Raises:
        InputRefused, PlanRefused: as of `combine_volumes`.
    """
    names = list(names or _name_all(scans))
    contrasts = list(contrasts or [_contrast_of(scan) for scan in scans])
    used, odd = list(range(len(scans))), {}
    while True:
        chosen = [scans[number] for number in used]
        try:
            done = combine_volumes(
                chosen,
                model_for,
                names=[names[number] for number in used],
                contrasts=[contrasts[number] for number in used],
                grid=grid or choose_grid(chosen),
                **more,
            )
        except (InputRefused, PlanRefused) as error:
            number = next((number for number in used if names[number] == error.place), -1)
            if len(used) <= 2 or number < 0 or error.code not in OF_ONE_STACK:
                raise
            logger.debug("%s is left out", names[number], exc_info=error)
            used.remove(number)
            odd[names[number]] = str(error).removeprefix(f"{error.place}: ")
        else:
            return replace(done, odd=odd)


def choose_grid(scans: Sequence[Volume]) -> Grid:
    """Returns the grid for stacks that nobody has looked at: around all of them where some are chunks of one direction.

    Example:
        >>> scan = Volume(np.zeros((40, 40, 10)), np.diag([1.0, 1.0, 4.0, 1.0]))
        >>> higher = np.array(scan.affine)
        >>> higher[2, 3] = 36.0
        >>> choose_grid([scan, scan]), choose_grid([scan, replace(scan, affine=higher)])
        ('first', 'union')
    """
    for one, other in itertools.combinations(scans, 2):
        share = max(_share_inside(one, other), _share_inside(other, one))
        if share < CHUNK_SHARE and _are_parallel(one, other):
            return "union"
    return "first"


def check_can_be_anonymous(scans: Sequence[Volume]) -> None:
    """Refuses stacks that cannot be made anonymous, before anything is computed.

    Raises:
        InputRefused: not all of them came from DICOM series, or from such that can be made anonymous.
    """
    for number, scan in enumerate(scans):
        series = series_of(scan)
        if series is None:
            raise InputRefused(
                place=_name_of(scan, number),
                got="`anonymise` for a scan that is no DICOM",
                need="DICOM series",
                next="leave it out",
                code="anonymise-without-dicom",
            )
        from thinslice.io.dicom.identity import check_can_hide

        check_can_hide(series)


def check_into_series(scans: Sequence[Volume], grid: Grid | Volume = "first") -> None:
    """Refuses stacks that cannot become a new DICOM series, before anything is computed.

    Raises:
        InputRefused: not all of them are DICOM series, of one patient and modality.
        OutputRefused: the grid is one that DICOM cannot say.
    """
    foreign = [_name_of(scan, number) for number, scan in enumerate(scans) if series_of(scan) is None]
    if foreign:
        raise InputRefused(
            place=foreign[0],
            got="a stack that is no DICOM series, for a new series",
            need="DICOM series alone",
            next="give a file as output, such as combined.nii.gz",
            code="series-of-other-formats",
        )
    from thinslice.io.dicom.combined import check_can_combine

    check_can_combine(scans, grid.affine if isinstance(grid, Volume) else scans[0].affine)


def describe_combination(done: Combined) -> str:
    """Returns what was combined, and to what, in words.

    As in: 3 stacks -> 256 x 256 x 150 voxels of 0.8 x 0.8 x 0.8 mm.
    """
    used = sum(stack.left_out is None for stack in done.stacks)
    spacing = " x ".join(f"{mm:.3g}" for mm in done.volume.spacing_mm)
    return f"{used} stacks -> {format_shape(done.volume.shape)} voxels of {spacing} mm"


def check_expects_error(model: str) -> None:
    """Refuses to tell the error to be expected of a model that is an interpolation, before anything is computed.

    Raises:
        OutputRefused: it is one.
    """
    if model in INTERPOLATIONS:
        raise _no_expected_error(model)


def _no_expected_error(models: str) -> OutputRefused:
    return OutputRefused(
        got=f"`expected_error` of stacks that {models} made thin",
        need="a network for each: of an interpolation it is not known",
        next="leave it out, or choose another `model`",
        code="no-expected-error",
    )


def find_places(
    path: str | os.PathLike[str],
    held_by: str | os.PathLike[str] | None = None,
    expected_error: str | os.PathLike[str] | None = None,
    labels_out: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    has_labels: bool = False,
    series: "Series | None" = None,
) -> dict[str, Path]:
    """Returns the files that `Combined.save` writes, by what they are: the volume comes last.

    Args:
        path, held_by, expected_error, labels_out, report: as for `Combined.save`.
        has_labels: whether there is a segmentation to write.
        series: the first stack, where it is a DICOM series: then ``path`` may be a folder for a new one.

    Raises:
        OutputRefused: the volume's name is that of no format that is written.
    """
    is_named = formats.ending(Path(path)) in formats.WRITABLE or os.fspath(path).endswith(("/", os.sep))
    if series is None and not is_named:
        raise OutputRefused(
            got="an output of another kind",
            need=f"a name that ends in {' or '.join(formats.WRITABLE)}",
            next="change it",
            place=path,
            code="output-ending",
        )
    answer = find_output(Path(), series, os.fspath(path), overwrite=True)
    places = {"json": answer.sidecar}
    if held_by is not None:
        places["held_by"] = Path(held_by)
    if expected_error is not None:
        places["expected_error"] = Path(expected_error)
    if has_labels:
        beside = answer.destination / LABELS_NAME if answer.is_into_series else labels_beside(answer.destination)
        places["labels"] = Path(labels_out) if labels_out is not None else beside
    if report is not None:
        places["report"] = Path(report)
    return places | {"volume": answer.destination}


def check_places(places: dict[str, Path], inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuses what may not be written, before anything is computed.

    Raises:
        OutputRefused: see `thinslice.io.outputs.check_outputs`.
    """
    endings: dict[str, tuple[str, ...]] = {"json": (), "report": PAGE_ENDINGS}
    is_series = not formats.ending(places["volume"])
    words = {"json": "the JSON of the answer", "labels": "the labels"}
    words |= {name: f"`{name}`" for name in ("held_by", "expected_error", "report")}
    check_outputs(
        [
            Output(
                path,
                words.get(name, "the answer"),
                # A name without a known ending is that of a folder for a DICOM series, or else refused before.
                () if is_series and name == "volume" else endings.get(name, formats.WRITABLE),
                is_series and name == "volume",
            )
            for name, path in places.items()
        ],
        inputs,
        overwrite,
    )


# ---- what goes in


def _name_all(scans: Sequence[Volume]) -> list[str]:
    """Returns what messages call the stacks: names of files, or paths where two files have one name."""
    short = [_name_of(scan, number) for number, scan in enumerate(scans)]
    return [
        str(scan.source) if scan.source is not None and short.count(name) > 1 else name
        for scan, name in zip(scans, short, strict=True)
    ]


def _name_of(scan: Volume, number: int) -> str:
    series = series_of(scan)
    if series is not None:
        return series.label
    return scan.source.name if scan.source is not None else f"stack {number + 1}"


def _check_scans(scans: Sequence[Volume], names: Sequence[str], contrasts: Sequence[Contrast]) -> None:
    """Refuses what cannot be combined whatever is computed."""
    if len(scans) < 2:
        raise InputRefused(
            got=f"{len(scans)} stack" if scans else "no stack",
            need="two or more of one body",
            next="give all of them, or make the one thin with enhance",
            code="one-stack",
        )
    for scan, name in zip(scans, names, strict=True):
        if scan.voxels.ndim != 3:
            raise InputRefused(
                place=name,
                got=f"a series of {scan.voxels.shape[3]} volumes",
                need="one volume a stack",
                next="take one volume out of it, or make it thin with enhance",
                code="stack-is-series",
            )
        slices = scan.shape[through_plane_axis(scan)]
        if slices < FEWEST_SLICES:
            raise InputRefused(
                place=name,
                got=f"{slices} slices, as of a localizer",
                need=f"a stack of {FEWEST_SLICES} at least",
                next="leave it out",
                code="stack-is-short",
            )
        if scan.measured is not None:
            raise InputRefused(
                place=name,
                got="slices that are tilted, uneven or incomplete",
                need="an even stack at right angles",
                next="leave it out; enhance makes it thin by itself",
                code="stack-is-uneven",
            )
        if not np.any(scan.voxels != scan.voxels.flat[0]):
            raise InputRefused(
                place=name,
                got="the same value everywhere",
                need="a scan",
                next="leave it out",
                code="stack-is-flat",
            )
    _check_different(scans, names)
    patients = {series.images[0].patient for series in map(series_of, scans) if series is not None}
    if len(patients) > 1:
        raise InputRefused(
            got=f"series of {len(patients)} patients (PatientID)",
            need="series of one",
            next="leave the others out",
            code="dicom-several-patients",
        )
    # Each with each: two that say much may differ where the first one is silent.
    for one, other in itertools.combinations(range(len(scans)), 2):
        match = compare_contrasts(contrasts[one], contrasts[other])
        if match.is_same is False:
            raise InputRefused(
                place=names[other],
                got=f"another contrast than {names[one]} ({'; '.join(match.reasons)})",
                need="stacks of one contrast",
                next="combine those of each contrast by themselves",
                code="stacks-of-two-contrasts",
            )


def _fit_labels(labels: Volume, plan: Plan) -> Volume:
    """Returns a segmentation as the grid of the first stack holds it; refuses what is none of it."""
    labels = fit_labels(labels, plan)
    if labels.voxels.ndim != 3:
        raise InputRefused(
            got=f"a series of {labels.voxels.shape[3]} segmentations",
            need="one, of the first stack",
            next="take one out of it",
            code="labels-are-series",
        )
    return labels


def _check_different(scans: Sequence[Volume], names: Sequence[str]) -> None:
    """Refuses a stack that is given twice: it would count twice, and stand for two that agree."""
    for number, scan in enumerate(scans):
        for before in range(number):
            other = scans[before]
            is_there = scan.shape == other.shape and np.allclose(scan.affine, other.affine, atol=1e-3)
            if is_there and np.array_equal(scan.voxels, other.voxels):
                raise InputRefused(
                    place=names[number],
                    got=f"the same slices as {names[before]}" if names[number] != names[before] else "it twice",
                    need="different stacks",
                    next="give each of them once",
                    code="stack-given-twice",
                )


def _contrast_of(scan: Volume) -> Contrast:
    series = series_of(scan)
    if series is not None:
        from thinslice.io.dicom.contrast import contrast_of_series

        return contrast_of_series(series)
    return contrast_beside(scan.source or Path())


def _make_thin(scan: Volume, name: str, model: Model, settings: Settings, grid: VoxelGrid, progress: Progress) -> Stack:
    """Returns a stack with its thin slices, as far apart as the voxels of the grid, if the model has such a factor."""
    axis = through_plane_axis(scan)
    thick_mm = scan.spacing_mm[axis]
    within_mm = max(mm for other, mm in enumerate(scan.spacing_mm) if other != axis)
    finest_mm = min(float(np.linalg.norm(grid.affine[:3, a])) for a in range(3))
    factor = thick_mm / max(within_mm, finest_mm)
    envelope = model.envelope
    if envelope is not None:
        factor = min(factor, envelope.factor[1])
        if not envelope.has_factor(factor):
            known = [one for one in envelope.only_factors or () if one <= factor]
            model, factor = (model, float(max(known))) if known else (interpolation("cubic"), factor)
    if factor <= 1:
        raise InputRefused(
            place=name,
            got=f"slices {thick_mm:.3g} mm apart, no farther than pixels or the voxels of the answer",
            need="stacks of thick slices",
            next="leave it out, or give a smaller `spacing_mm`",
            code="stack-is-thin",
        )
    padding = find_padding(scan)
    beyond = None
    if padding is not None:
        beyond = locate_padding(scan.voxels, padding)
        if beyond.all():
            raise InputRefused(
                place=name,
                got=f"nothing but padding ({padding:g})",
                need="a scan",
                next="leave it out",
                code="stack-is-flat",
            )
    try:
        # Air has no noise to find; what goes on from line to line would seem to have one.
        planned = (
            scan if beyond is None else replace(scan, voxels=np.where(beyond, scan.voxels[~beyond].min(), scan.voxels))
        )
        plan = make_plan(planned, replace(settings, model=model.name, factor=factor, spacing_mm=None), model)
        if beyond is not None:
            scan = replace(scan, voxels=go_on(scan.voxels, beyond))
        plan = settle_profile(scan, plan, model)
        done = upsample(scan, plan, model, progress=progress)
        check_agreement(check(scan, done.volume, plan), plan)
    except (InputRefused, PlanRefused) as error:
        raise error.at(name) from error
    if padding is not None:
        note = f"voxels of {padding:g} are padding: they are not compared, and stay where no stack sees more"
        plan = replace(plan, padding=padding, notes=(*plan.notes, note))
    return Stack(scan, plan, done.volume, beyond=beyond, model=model, fell_back=done.fell_back)


# ---- where the answer lies


def _find_grid(scans: Sequence[Volume], plan: Plan, spacing_mm: float | None, grid: Grid | Volume) -> VoxelGrid:
    """Returns the grid of the answer, on which at least one stack lies."""
    if isinstance(grid, Volume):
        if spacing_mm is not None:
            raise InputRefused(
                got="`spacing_mm` and a volume as `grid`",
                need="one of them",
                next="leave one of them out",
                code="two-grids",
            )
        found = VoxelGrid(grid.shape, np.array(grid.affine, np.float64))
    elif grid == "first" and spacing_mm is None:
        found = VoxelGrid(plan.shape_thin, np.array(plan.affine_thin))
    else:
        found = _box_around(scans[:1] if grid == "first" else scans, np.array(plan.affine_thin), spacing_mm)
    if np.prod(found.shape, dtype=np.float64) > MOST_VOXELS:
        raise InputRefused(
            got=f"a grid of {format_shape(found.shape)} voxels",
            need=f"{MOST_VOXELS:,} at most",
            next="give a larger `spacing_mm`" + ("" if grid == "first" else ", or `grid='first'`"),
            code="grid-too-large",
        )
    box = Volume(np.broadcast_to(np.float32(0), found.shape), found.affine)
    if not any(_share_inside(scan, box) > 0 or _share_inside(box, scan) > 0 for scan in scans):
        raise InputRefused(
            place=getattr(grid, "source", None) or "",
            got="a grid where no stack lies",
            need="one that meets them",
            next="give `grid='first'` or `grid='union'`",
            code="grid-sees-nothing",
        )
    return found


def _box_around(scans: Sequence[Volume], first: np.ndarray, spacing_mm: float | None) -> VoxelGrid:
    """Returns a grid around the outer edges of some fields of view, along the axes of the thin first stack."""
    own_mm = np.linalg.norm(first[:3, :3], axis=0)
    spacing = own_mm if spacing_mm is None else np.full(3, float(spacing_mm))
    along = directions(first)
    edges = np.concatenate([outer_corners_mm(scan.affine, scan.shape) for scan in scans]) @ np.linalg.inv(along).T
    low, high = edges.min(axis=0), edges.max(axis=0)
    # Rounded first: an extent of 96.0000001 voxels has 96 of them.
    x, y, z = (max(int(n), 1) for n in np.ceil(np.round((high - low) / spacing, 3)))
    affine = np.eye(4)
    affine[:3, :3] = along * spacing
    affine[:3, 3] = along @ ((low + high) / 2 - (np.array([x, y, z]) - 1) / 2 * spacing)
    return VoxelGrid((x, y, z), affine)


# ---- where the stacks lie


def _place(
    stacks: list[Stack], names: Sequence[str], registration: bool, progress: Progress
) -> tuple[list[Stack], list[float], dict[int, str], dict[int, int]]:
    """Returns the stacks where they fit, how alike each is to one placed before it, and which do not fit and why.

    The last are those whose likeness nobody can tell, as they only touch another one, beside which their headers put
    them.
    """
    placed, likeness, reasons = {0: stacks[0]}, [1.0] + [0.0] * (len(stacks) - 1), {}
    beside: dict[int, int] = {}
    closeness = {
        (number, other): _closeness(stacks[number].acquired, stacks[other].acquired)
        for number in range(1, len(stacks))
        for other in range(len(stacks))
        if number != other
    }
    tried: set[tuple[int, int]] = set()
    while pairs := [
        pair
        for pair, (share, continues, _) in closeness.items()
        if pair[0] not in placed
        and pair[1] in placed
        and pair not in tried
        # What neither meets nor continues another stack is tried once, to say so.
        and (share > 0 or continues or pair[0] not in reasons)
    ]:
        # The pair that shares most comes next: chunks of a spine are linked by their neighbours. A stack that does not
        # fit one is tried with others, and once more when further ones are placed.
        number, other = max(pairs, key=lambda pair: closeness[pair])
        tried.add((number, other))
        moving, fixed = stacks[number].thin, stacks[other].thin
        if registration:
            found = register(moving, fixed)
            motion, alike = found.motion, found.likeness
        else:
            motion, alike = np.eye(4), measure_likeness(moving, fixed)
        neighbours = [one for one in placed if _continues(stacks[number].acquired, stacks[one].acquired)]
        if alike.value == 0 and neighbours:
            # Too little is common to measure anything, and both headers count from one place.
            beside[number] = other = neighbours[0]
            motion = np.eye(4)
        if number in beside or alike.is_same_body:
            stacks[number] = replace(stacks[number], motion=placed[other].motion @ motion)
            placed[number] = stacks[number]
        if number in placed or number not in reasons or alike.value > likeness[number]:
            likeness[number], reasons[number] = alike.value, _reason(alike, names[other])
        progress(len(placed) / len(stacks))
    progress(1.0)
    left_out = {number: reason for number, reason in sorted(reasons.items()) if number not in placed}
    return stacks, likeness, left_out, beside


def _closeness(one: Volume, other: Volume) -> tuple[float, bool, float]:
    """Returns what pairs of stacks are ordered by: what they share, and where they share nothing how near they are."""
    return _share_inside(one, other), _continues(one, other), -gap_mm(one.affine, one.shape, other.affine, other.shape)


def _continues(one: Volume, other: Volume) -> bool:
    """Tells whether two chunks of one direction touch or overlap, by headers that count from one place."""
    nearest_mm = max(*one.spacing_mm, *other.spacing_mm)
    is_near = gap_mm(one.affine, one.shape, other.affine, other.shape) <= nearest_mm
    return is_near and _are_parallel(one, other) and _in_one_frame(one, other)


def _are_parallel(one: Volume, other: Volume) -> bool:
    """Tells whether the slices of two stacks lie in one direction."""
    normals = [directions(scan.affine)[:, through_plane_axis(scan)] for scan in (one, other)]
    return bool(abs(normals[0] @ normals[1]) > np.cos(np.radians(PARALLEL_DEGREES)))


def _in_one_frame(one: Volume, other: Volume) -> bool:
    """Tells whether headers say that two stacks are measured from one place: DICOM's frame of reference, or a scanner.

    What no header says counts as no.
    """
    first, second = series_of(one), series_of(other)
    if first is not None and second is not None:
        frame = first.images[0].frame_of_reference
        return bool(frame) and frame == second.images[0].frame_of_reference
    return nifti.is_in_scanner(one) and nifti.is_in_scanner(other)


def _share_inside(one: Volume, other: Volume) -> float:
    """Returns the share of a volume's field of view that lies in that of another, on a coarse lattice of points."""
    lattice = [np.linspace(0, n - 1, min(n, 12)) for n in one.shape]
    index = np.stack([*np.meshgrid(*lattice, indexing="ij"), np.ones([len(line) for line in lattice])], axis=-1)
    place = index.reshape(-1, 4) @ np.linalg.solve(other.affine, one.affine).T
    limit = np.array(other.shape)
    return float(np.mean(np.all((place[:, :3] >= -0.5) & (place[:, :3] <= limit - 0.5), axis=1)))


def _reason(alike: Likeness, other: str) -> str:
    if alike.overlap == 0:
        return f"its field of view does not meet that of {other}"
    return (
        f"it does not look like {other} where both see (likeness {alike.value:.2f}): another body or contrast, or too "
        "little in common"
    )


def _nothing_fits(names: Sequence[str], left_out: Mapping[int, str]) -> InputRefused:
    reasons = "; ".join(f"{names[number]}: {reason}" for number, reason in left_out.items())
    return InputRefused(
        got=f"no stack that fits {names[0]} ({reasons})",
        need="stacks of one body in one contrast",
        next="give one first that belongs to the others, or make them thin one by one with enhance",
        code="stacks-do-not-fit",
    )


def _refine(stacks: list[Stack], used: Sequence[int], grid: VoxelGrid, progress: Progress) -> list[Stack]:
    """Returns the stacks where their own slices fit those of the others."""
    voxels = float(np.prod(grid.shape, dtype=np.float64))
    coarser = max((voxels / LARGEST_REFINEMENT) ** (1 / 3), 1.0)
    shape = [max(round(n / coarser), 1) for n in grid.shape]
    steps = [n / m for n, m in zip(grid.shape, shape, strict=True)]
    affine = np.array(grid.affine)
    affine[:3, 3] += affine[:3, :3] @ [(step - 1) / 2 for step in steps]
    affine[:3, :3] *= steps
    found = refine_motions(
        [stacks[number] for number in used], VoxelGrid((shape[0], shape[1], shape[2]), affine), progress
    )
    placed = list(stacks)
    for number, refined in zip(used, found, strict=True):
        placed[number] = refined.stack
    return placed


def _join(
    stacks: list[Stack],
    used: Sequence[int],
    beside: Mapping[int, int],
    grid: VoxelGrid,
    registration: bool,
    progress: Progress,
) -> tuple[list[Stack], Joined]:
    """Returns the stacks where they lie, their slices too, and the volume that they agree with."""
    placed = _refine(stacks, used, grid, part_of(progress, 0.0, 0.3)) if registration else list(stacks)
    for number, other in beside.items():
        # A sliver says too little of where a stack lies: it stays with the one that it was placed beside.
        placed[number] = replace(stacks[number], motion=placed[other].motion)
    joined = combine_stacks([placed[number] for number in used], grid, part_of(progress, 0.3, 0.6))
    if any(placed[number].slice_motions is not None for number in used):
        for number, fit in zip(used, joined.fits, strict=True):
            placed[number] = _make_thin_anew(placed[number], grid, joined.voxels * np.float32(fit.gain))
        joined = combine_stacks([placed[number] for number in used], grid, part_of(progress, 0.7, 1.0))
    progress(1.0)
    return placed, joined


def _make_thin_anew(stack: Stack, grid: VoxelGrid, voxels: np.ndarray) -> Stack:
    """Returns a stack whose thin slices are made of slices that lie evenly apart, if its own do not."""
    if stack.slice_motions is None or stack.model is None:
        return stack
    straight, plan = straighten(stack, grid, voxels)
    done = upsample(straight, plan, stack.model)
    # Of slices that were left out nothing new is known.
    fell_back = done.fell_back if stack.plan.every == 1 else stack.fell_back
    return replace(stack, thin=done.volume, fell_back=fell_back)


# ---- what comes out


def _describe_stack(
    stack: Stack, name: str, likeness: float, fit: StackFit | None, left_out: str | None
) -> CombinedStack:
    middle = stack.acquired.affine @ [*((n - 1) / 2 for n in stack.acquired.shape), 1]
    moved_mm, turned_degrees = measure_motion(stack.motion, middle)
    within = None if stack.slice_motions is None else SliceMotions.of(stack, stack.slice_motions)
    return CombinedStack(name, stack.plan, stack.motion, moved_mm, turned_degrees, likeness, fit, left_out, within)


def _motions_of(stack: CombinedStack) -> list[object]:
    """Returns the motion of a stack, and those of its slices where they have their own."""
    return list(stack.motion.tolist() if stack.within is None else stack.within.motions.tolist())


def _stack_facts(stack: CombinedStack) -> dict[str, object]:
    """Returns what the JSON says of a stack."""
    within = stack.within
    facts: dict[str, object] = {
        "name": stack.name,
        "left_out": stack.left_out,
        "motion": stack.motion.tolist(),
        "moved_mm": round(stack.moved_mm, 3),
        "turned_degrees": round(stack.turned_degrees, 3),
        "within": None if within is None else dataclasses.asdict(within) | {"motions": within.motions.tolist()},
        "likeness": round(stack.likeness, 3),
    }
    if stack.fit is not None:
        facts["fit"] = dataclasses.asdict(stack.fit) | {
            "slice_weights": [round(float(one), 3) for one in stack.fit.slice_weights]
        }
    return facts | {"plan": dataclasses.asdict(stack.plan)}


def _in_type_of(first: Volume, voxels: np.ndarray) -> np.ndarray:
    """Returns the voxels in the type that an answer to the first stack has; whole numbers are rounded and clipped."""
    kind = np.dtype(type_of_thin(first))
    if kind.kind not in "iu":
        return voxels.astype(kind, copy=False)
    limits = np.iinfo(kind)
    rounded: np.ndarray = np.clip(np.rint(voxels), limits.min, limits.max).astype(kind)
    return rounded


def _notes(stacks: Sequence[Stack], names: Sequence[str], held_by: np.ndarray) -> list[str]:
    notes = [f"{name}: {note}" for name, stack in zip(names, stacks, strict=True) for note in stack.plan.notes]
    empty = float(np.mean(held_by == 0))
    if empty > 0.001:
        is_padded = any(stack.plan.padding is not None for stack in stacks)
        notes.append(
            f"{100 * empty:.3g} % of the voxels are held by no stack, and are {'padding' if is_padded else 'dark'}"
        )
    alone = float(np.mean(held_by == 1))
    if alone > 0.001:
        notes.append(
            f"{100 * alone:.3g} % of the voxels are held by one stack alone: there it is nearly what enhance gives"
        )
    return notes


def _notes_of_chunks(beside: Mapping[int, int], names: Sequence[str]) -> list[str]:
    return [
        f"{names[number]} hardly overlaps {names[other]}: it lies where its header says, and neither its place nor its "
        "brightness could be compared"
        for number, other in beside.items()
    ]


def _notes_of_labels(labels: Volume | None, first: Stack) -> list[str]:
    """Returns what had to be decided about the segmentation that is brought along."""
    if labels is None:
        return []
    notes = [f"labels: {note}" for note in labels.notes]
    if first.slice_motions is not None:
        far = SliceMotions.of(first, first.slice_motions)
        notes.append(
            f"labels: they stay where they were drawn, though slices of their stack moved by up to {far.moved_mm:.1f} "
            "mm: they lie as far beside what they show"
        )
    return notes


def _bring_labels(labels: Volume, plan: Plan, grid: VoxelGrid) -> Volume:
    """Returns the segmentation of the first stack on the grid of the answer; 0 where that does not see."""
    thin = interpolate_labels(labels, plan)
    # The first stack lies where its header says.
    to_thin = np.linalg.solve(thin.affine, grid.affine)
    out = np.zeros(grid.shape, thin.voxels.dtype)
    y, z = np.meshgrid(np.arange(grid.shape[1]), np.arange(grid.shape[2]), indexing="ij")
    for x in range(grid.shape[0]):
        place = [np.rint(to_thin[a, 0] * x + to_thin[a, 1] * y + to_thin[a, 2] * z + to_thin[a, 3]) for a in range(3)]
        index = [one.astype(int) for one in place]
        inside = np.logical_and.reduce([(i >= 0) & (i < n) for i, n in zip(index, thin.shape, strict=True)])
        out[x][inside] = thin.voxels[index[0][inside], index[1][inside], index[2][inside]]
    return replace(labels, voxels=out, affine=grid.affine, thickness_mm=None)
