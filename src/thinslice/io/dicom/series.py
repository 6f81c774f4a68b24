"""A folder of DICOM files -> its series: split into stacks, sorted, measured, or refused by name and reason.

A stack that is tilted or uneven, or lacks a slice here and there, is read as what it is: `Series.grid` is the upright,
even grid that holds its slices, and says where in it each one lies (`thinslice.io.upright`). How the images of a series
become stacks is written in `thinslice.io.dicom.stacks`, and whose images are of one series in
`thinslice.io.dicom.identifiers`.
"""

import logging
import os
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from thinslice.errors import InputRefused
from thinslice.files import walk
from thinslice.io.archives import START_BYTES, is_packed
from thinslice.io.atomic import looks_like_dicom
from thinslice.io.dicom.headers import IN_TIME, SEGMENTATIONS, WHERE_DOUBLED, Image, printable, read_images
from thinslice.io.dicom.identifiers import Origin, find_origins, without_shared_uids
from thinslice.io.dicom.packed import unpack
from thinslice.io.dicom.places import (
    SAME_PLACE_MM,
    UNEVEN_SHARE,
    by,
    by_orientation,
    find_positions,
    fit_even_places,
    mend_directions,
    normal_of,
)
from thinslice.io.dicom.stacks import (
    LEAST_IN_A_STACK,
    NAMES,
    NO_SCANS,
    PART,
    SAME_THICKNESS,
    Part,
    find_stacks,
    has_same_voxels,
    name_files,
)
from thinslice.io.refusals import refused, without_place
from thinslice.physics.straightening import (
    SHORTEST_STEP,
    TILT_DEGREES,
    WIDEST_GAP,
    UprightGrid,
    find_upright_grid,
)

logger = logging.getLogger(__name__)

TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""DICOM's left-posterior-superior (LPS) -> RAS."""


@dataclass(frozen=True)
class Series:
    """One stack of parallel slices.

    Attributes:
        folder: where its first file lies; an archive where it is packed in one.
        label: series number, description, and what tells this stack from the others of its series.
        distinction: the last of these, empty where there are no others.
        images: in the order of the array's last axis.
        affine: [4, 4] float64; the array is [columns, rows from the last to the first, slices]: voxel -> mm (RAS).
        thickness_mm: None where the header is silent.
        residual_mm: largest distance of a slice from its even place.
        notes: what had to be decided.
        index: which of the stacks of its series it is, from 0.
        files: all files of its series, those of other stacks and what was left out among them.
        grid: the upright, even grid that the affine is of, where the slices themselves lie on none.
    """

    folder: Path
    label: str
    distinction: str
    images: tuple[Image, ...]
    affine: np.ndarray
    thickness_mm: float | None
    residual_mm: float
    notes: tuple[str, ...]
    index: int
    files: tuple[Path, ...] = ()
    grid: UprightGrid | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns the number of columns, rows and slices of the grid that the affine is of."""
        return self.grid.shape if self.grid is not None else self.shape_acquired

    @property
    def shape_acquired(self) -> tuple[int, int, int]:
        """Returns the number of columns, rows and slices of what was acquired."""
        rows, columns = self.images[0].shape
        return columns, rows, len(self.images)


@dataclass(frozen=True)
class Unusable:
    """A series, a part of one, or a file, that is no scan that could be made thinner.

    Attributes:
        label: what it is called; a file's name where it belongs to no series.
        folder: where it lies.
        refusal: why, without a name.
        computed: whether thinslice computed it.
    """

    label: str
    folder: Path
    refusal: InputRefused
    computed: bool = False

    @property
    def reason(self) -> str:
        """Tells why, on one line: what was got, what is needed, what to do next."""
        return str(self.refusal)

    @property
    def what(self) -> str:
        """What was got."""
        return self.refusal.got

    @property
    def is_scan(self) -> bool:
        """Whether it might have been a stack of slices: a page, a localizer or an image beside a stack is none."""
        return self.refusal.code not in NO_SCANS and not self.computed


@dataclass(frozen=True)
class Study:
    """What a folder holds, each in the order of series numbers.

    Attributes:
        series: what can be read.
        unusable: what cannot, and why.
        notes: what else lies there.
    """

    series: tuple[Series, ...]
    unusable: tuple[Unusable, ...]
    notes: tuple[str, ...]


def find_study(
    path: Path, computed_too: bool = False, below: bool = True, names: Collection[str] | None = None
) -> Study:
    """Finds the series at a path: of one file, or of all files in a folder and, with ``below``, in the folders in it.

    With ``names`` only the files of these names in the folder are looked at.

    Slices that thinslice computed are nothing to compute from: they are found unusable but for ``computed_too``. Hidden
    files and what is no DICOM are left alone; headers are read, voxels are not.

    Raises:
        OSError: the folder cannot be listed.
    """
    images: list[Image] = []
    broken: list[Unusable] = []
    others = 0
    for file in _files(path, broken, below) if names is None else [path / name for name in names]:
        try:
            found = _read_file(file, broken) if looks_like_dicom(file) else []
        except (InputRefused, OSError) as error:
            refusal = without_place(error) if isinstance(error, InputRefused) else _no_access(error)
            broken.append(Unusable(printable(file.name), file.parent, refusal))
            continue
        images += found
        others += not found
    # Beside scans it is no scan that fails; alone it is refused, and the refusal says what to do with it.
    drawn = [image for image in images if image.sop_class in SEGMENTATIONS]
    drawn = drawn if len(drawn) < len(images) else []
    images = [image for image in images if not drawn or image.sop_class not in SEGMENTATIONS]
    once, copies, resent = _without_copies([image if computed_too else _acquired(image) for image in images])
    series, unusable = _sort(once, resent)
    damaged_in = {one.folder for one in broken}
    series = [_noting_damage(one, damaged_in) for one in series]
    logger.debug("%s: %d images, %d series, %d unusable", path, len(images), len(series), len(unusable) + len(broken))
    notes = []
    if drawn:
        shown = ", ".join(sorted(printable(image.path.name) for image in drawn)[:3])
        notes.append(f"{len(drawn)} segmentation(s) ({shown}) left alone: `labels` brings one along with its series")
    if others:
        notes.append(f"{others} file(s) hold no DICOM image and were left alone")
    if copies:
        notes.append(f"{copies} image(s) were there twice and are read once")
    if len(patients := {image.patient for image in images}) > 1:
        notes.append(f"these are images of {len(patients)} patients (PatientID)")
    return Study(tuple(series), (*unusable, *broken), tuple(notes))


def find_study_uid(folder: Path) -> str:
    """Returns the StudyInstanceUID of the first image directly in a folder; nothing where none can be read."""
    broken: list[Unusable] = []
    try:
        for file in _files(folder, broken, below=False):
            if looks_like_dicom(file) and (images := _read_file(file, broken)):
                return images[0].study_uid
    except (InputRefused, OSError) as error:
        logger.debug("%s: no study is known", folder, exc_info=error)
    return ""


def _read_file(file: Path, broken: list[Unusable]) -> list[Image]:
    """Returns the images of a file, or of all files that are packed in it; adds what is damaged in there to broken."""
    with open(file, "rb") as raw:
        if not is_packed(raw.read(START_BYTES)):
            return read_images(file)
    unpacked = unpack(file)
    images = []
    for one in unpacked.files:
        try:
            images += [replace(image, file=file, unpacked=unpacked) for image in read_images(one)]
        except InputRefused as refusal:  # noqa: PERF203 - one damaged file must not hide the others
            broken.append(Unusable(f"{printable(file.name)}, {one.name}", file.parent, without_place(refusal)))
    return images


def _files(path: Path, broken: list[Unusable], below: bool) -> Iterable[Path]:
    """Yields every file at, or also below, a path, links followed; adds folders without permission to ``broken``."""
    if not path.is_dir():
        yield path
        return
    os.scandir(path).close()  # a folder that cannot be listed is an error, not an empty one

    def complain(error: OSError) -> None:
        folder = Path(error.filename)
        broken.append(Unusable(printable(folder.name), folder.parent, _no_access(error)))

    for folder, _, inner, files in walk(path, complain=complain):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (folder / name for name in sorted(files) if not name.startswith("."))
        if not below:
            return


def _acquired(image: Image) -> Image:
    if not image.computed:
        return image
    got, way = "slices that were computed by thinslice", "choose the series they came from"
    return replace(image, problem=refused(got, "acquired ones", way, code="dicom-computed"))


def _no_access(error: OSError) -> InputRefused:
    return refused(f"no access ({error.strerror})", "a readable file", "check its permissions", code="no-access")


def _noting_damage(series: Series, damaged_in: set[Path]) -> Series:
    if series.folder not in damaged_in:
        return series
    note = "a damaged file lies beside these slices, and may have been one of them"
    return replace(series, notes=(*series.notes, note))


def _without_copies(images: list[Image]) -> tuple[list[Image], int, list[Image]]:
    """Returns the images without copies, how many there are of the same name, and the copies of other names."""
    kept: list[Image] = []
    resent: list[Image] = []
    for same in by(images, _all_facts):
        of_these: list[Image] = []
        for image in same:
            twin = next((other for other in of_these if has_same_voxels(image, other)), None)
            if twin is None:
                of_these.append(image)
            elif twin.sop_uid != image.sop_uid:
                resent.append(image)
        kept += of_these
    copies = len(images) - len(kept) - len(resent)
    return without_shared_uids(kept), copies, resent


_OF_A_FILE = frozenset({"path", "file", "sop_uid", "voxels_at", "problem", "unpacked"})
"""What differs between an image and its copy."""

_FACTS = tuple(one.name for one in fields(Image) if one.name not in _OF_A_FILE)
"""All that a header says of an image but how it is called and in which file it lies."""


def _all_facts(image: Image) -> Hashable:
    return tuple(getattr(image, name) for name in _FACTS)


# ---- series into stacks


def _sort(images: list[Image], resent: list[Image]) -> tuple[list[Series], list[Unusable]]:
    """Returns the series, in order, and what is none; ``resent`` are images that are left out as copies."""
    origins = find_origins(images)
    series: list[Series] = []
    unusable: list[Unusable] = []
    for origin in sorted(origins, key=_order_of_series):
        parts = sorted(find_stacks(origin.images), key=_order_of_part)
        files = tuple(sorted({image.file for image in origin.images}))
        notes = (*origin.notes, *_note_copies(origin, resent))
        found = [_series_or_not(_label(part.images[0]), part, index, notes, files) for index, part in enumerate(parts)]
        series += _noting_parts([one for one in found if isinstance(one, Series)])
        unusable += [one for one in found if isinstance(one, Unusable)]
    return series, _each_once(unusable)


def _note_copies(origin: Origin, resent: Sequence[Image]) -> tuple[str, ...]:
    names = {(image.patient, image.study_uid, image.series_uid) for image in origin.images}
    copies = [image for image in resent if (image.patient, image.study_uid, image.series_uid) in names]
    if not copies:
        return ()
    return (f"exported twice under other names, and read once: {name_files(copies)}",)


def _order_of_series(origin: Origin) -> tuple[object, ...]:
    first = origin.images[0]
    return first.patient, first.study_uid, first.number or 0, first.series_uid


def _order_of_part(part: Part) -> tuple[object, ...]:
    return part.problem is not None, _in_order(part.images[0], part.phase)


def _each_once(unusable: Sequence[Unusable]) -> list[Unusable]:
    """Returns one for all that are called alike and refused for one reason, with their number."""
    alike: dict[tuple[str, str], list[Unusable]] = {}
    for one in unusable:
        alike.setdefault((one.label, one.reason), []).append(one)
    return [same[0] if len(same) == 1 else _counted(same) for same in alike.values()]


def _counted(same: Sequence[Unusable]) -> Unusable:
    refusal = same[0].refusal
    got = f"{refusal.got}, {len(same)} times over"
    return replace(same[0], refusal=refused(got, refusal.need, refusal.next, code=refusal.code))


def _in_order(image: Image, phase: int) -> tuple[object, ...]:
    """Returns what stacks of one series are ordered by: what tells them apart, whatever their files are called."""
    # Times after the number of the phase, which counts on over midnight.
    facts = dict(zip(WHERE_DOUBLED, image.where_doubled, strict=True))
    timeless = [fact for name, fact in facts.items() if name not in IN_TIME]
    return (
        image.sop_class,
        *map(_natural, (*image.among, *timeless)),
        phase,
        *(_natural(facts[name]) for name in IN_TIME),
        image.frame_of_reference,
        image.orientation or (),
        image.shape,
        image.position or (),
    )


def _natural(fact: str) -> tuple[float, str]:
    try:
        return float(fact), fact
    except ValueError:
        return float("inf"), fact


def _series_or_not(
    label: str, part: Part, index: int, notes: tuple[str, ...], files: tuple[Path, ...]
) -> Series | Unusable:
    try:
        if part.problem is not None:
            raise part.problem
        found = _series(label, part.distinction, part.images, index)
        return replace(found, notes=(*notes, *part.notes, *found.notes), files=files)
    except InputRefused as refusal:
        computed = all(image.computed for image in part.images)
        return Unusable(label + part.distinction, _place_of(part.images[0]), refusal, computed)


def _noting_parts(of_one_series: list[Series]) -> list[Series]:
    """Returns the stacks of a series; those that are stations of one acquisition say how they lie to the others."""
    noted = []
    for one in of_one_series:
        base, found, _ = one.distinction.rpartition(PART)
        others = [
            other for other in of_one_series if other is not one and other.distinction.rpartition(PART)[0] == base
        ]
        notes = [_describe_neighbour(one, other) for other in others] if found else []
        noted.append(replace(one, notes=(*notes, *one.notes)))
    return noted


def _describe_neighbour(one: Series, other: Series) -> str:
    """Returns how far two stations are apart, or overlap, in words."""
    normal = normal_of(one.images[0])
    ends = [np.sort(find_positions(part.images) @ normal)[[0, -1]] for part in (one, other)]
    apart_mm = float(max(ends[0][0], ends[1][0]) - min(ends[0][1], ends[1][1]))
    if apart_mm > 0:
        return f"{apart_mm:.4g} mm lie between its last slice and that of {other.label}, with no slice there"
    return f"overlaps {other.label} by {-apart_mm:.4g} mm: each is done by itself; combine makes one volume of them"


def _place_of(image: Image) -> Path:
    """Returns the folder that its file lies in, or the archive."""
    return image.file if image.unpacked else image.file.parent


def _label(image: Image) -> str:
    number = "" if image.number is None else f"{image.number} "
    return (number + image.description).strip() or image.file.parent.name or image.path.name


# ---- one stack, measured


def _series(label: str, distinction: str, images: list[Image], index: int) -> Series:
    """Returns the stack, sorted and measured.

    Raises:
        InputRefused: it is no stack of parallel slices.
    """
    _check_usable(images)
    normal = normal_of(images[0])
    along = find_positions(images) @ normal
    images = [images[i] for i in np.argsort(along, kind="stable")]  # a left-handed array, as dcm2niix writes it
    start, step, residual_mm = fit_even_places(find_positions(images))
    is_even = _check_distances(images, np.sort(along), residual_mm)
    images, mended = mend_directions(images, step)
    affine = _affine(images[0], start, step)
    # The slices of a tilted gantry run along another line than their normal.
    degrees = float(np.degrees(np.arccos(np.clip(step @ normal_of(images[0]) / np.linalg.norm(step), -1, 1))))
    grid = None
    if is_even and degrees <= TILT_DEGREES:
        _check_not_thinned_out(images, float(np.linalg.norm(step)))
    else:
        grid = _upright_grid(images, affine)
        affine, residual_mm = grid.affine, _residual_mm(grid)
    thickness_mm = _thickness_mm(images)
    notes = mended + _notes(images, float(np.linalg.norm(affine[:3, 2])), residual_mm, thickness_mm, grid)
    folder = _place_of(images[0])
    name = label + distinction
    return Series(folder, name, distinction, tuple(images), affine, thickness_mm, residual_mm, notes, index, grid=grid)


def _upright_grid(images: Sequence[Image], affine: np.ndarray) -> UprightGrid:
    """Returns the even grid at right angles that holds all slices, see `thinslice.physics.straightening`."""
    between_rows, _ = images[0].spacing_mm or ()
    along_column = np.array((images[0].orientation or ())[3:])
    # The array's first row is the image's last, see `_affine`.
    corner = along_column * between_rows * (images[0].shape[0] - 1)
    rows, columns = images[0].shape
    return find_upright_grid(affine, (columns, rows, len(images)), 2, (find_positions(images) + corner) @ TO_RAS)


def _residual_mm(grid: UprightGrid) -> float:
    """Returns the largest distance of a slice from an even place."""
    return float(np.abs(grid.places - np.rint(grid.places)).max() * np.linalg.norm(grid.affine[:3, 2]))


def _check_usable(images: list[Image]) -> None:
    problems = [image.problem for image in images if image.problem]
    if problems:
        count = f" ({len(problems)} of {len(images)} images)" if len(problems) < len(images) else ""
        raise refused(problems[0].got + count, problems[0].need, problems[0].next, code=problems[0].code)
    orientations = len(by_orientation(images))
    if orientations > 1:
        got = f"{len(images)} slices in {orientations} orientations (a localizer, or rotating projections)"
        need = f"parallel slices, {LEAST_IN_A_STACK} at least in each orientation"
        raise refused(got, need, "choose another series", code="dicom-orientations")
    if len(images) == 1:
        raise refused(
            "a single slice",
            "the whole stack",
            "name the folder that all its slices lie in",
            code="one-slice",
        )
    _check_whole_concatenation(images)
    thick = {image.thickness_mm for image in images}
    stated = [mm for mm in thick if mm is not None]
    if len(stated) > 1 and max(stated) > SAME_THICKNESS * min(stated):
        got = f"slices from {min(stated):g} to {max(stated):g} mm thick in one stack"
        raise refused(got, "one thickness", "export them as series of their own", code="dicom-thicknesses")


def _check_whole_concatenation(images: list[Image]) -> None:
    parts = {image.part for image in images if image.part is not None}
    for uid, _, total in parts:
        there = {number for other, number, _ in parts if other == uid}
        if len(there) < total:
            got = f"{len(there)} of the {total} files of a concatenation"
            raise refused(got, "all", "export the series again", code="dicom-missing-slices")


def _check_distances(images: Sequence[Image], along: np.ndarray, residual_mm: float) -> bool:
    """Returns whether slices are even, but for what scanners round; refuses those that are no one stack.

    Raises:
        InputRefused: several images at one place, or distances that no single stack has.
    """
    steps_mm = np.diff(along)
    doubled = int((steps_mm < SAME_PLACE_MM).sum())
    if doubled:
        where = int(np.argmin(steps_mm))
        got = (
            f"{len(images)} images at {len(images) - doubled} places (such as {images[where].path.name} and "
            f"{images[where + 1].path.name}), and nothing in their headers that tells them apart"
        )
        way = "leave one of the two out, or export the phases as series of their own"
        raise refused(got, "one image a place", way, code="dicom-doubled")
    if residual_mm <= UNEVEN_SHARE * float(steps_mm.mean()):
        return True
    usual_mm = float(np.median(steps_mm))
    where = int(np.argmax(steps_mm))
    if steps_mm[where] > WIDEST_GAP * usual_mm:
        # Whoever lacks so many slices has a part that is too short to be a stack of its own.
        got = (
            f"{len(images)} slices {usual_mm:.4g} mm apart, and {steps_mm[where]:.4g} mm between "
            f"{images[where].path.name} and {images[where + 1].path.name}"
        )
        need = f"at most {WIDEST_GAP:g} spacings from one to the next, or {LEAST_IN_A_STACK} slices on both sides"
        raise refused(got, need, "export the series again", code="dicom-missing-slices")
    if steps_mm.min() < SHORTEST_STEP * usual_mm:
        got = f"slices from {steps_mm.min():.4g} to {steps_mm.max():.4g} mm apart"
        raise refused(got, "distances of one stack", "export the series again, or choose another", code="dicom-uneven")
    return False


def _check_not_thinned_out(images: Sequence[Image], spacing_mm: float) -> None:
    """Refuses a stack of every second, third ... slice, if stated spacing and numbers of images agree on that."""
    # Thinned out evenly, a stack looks sound: two facts must agree that it is not.
    stated = {image.stated_spacing_mm for image in images}
    numbers = [image.instance for image in images if image.instance is not None]
    every = round(spacing_mm / (stated.copy().pop() or spacing_mm)) if len(stated) == 1 else 1
    steps = {abs(int(step)) for step in np.diff(numbers)}
    if every > 1 and steps == {every} and len(numbers) == len(images):
        got = (
            f"every {every}. slice only (images {numbers[0]}, {numbers[1]} ..., {spacing_mm:.4g} mm apart where "
            f"SpacingBetweenSlices says {spacing_mm / every:.4g})"
        )
        raise refused(got, "all", "export the series again", code="dicom-missing-slices")


def _thickness_mm(images: Sequence[Image]) -> float | None:
    stated = [image.thickness_mm for image in images if image.thickness_mm is not None]
    return float(np.median(stated)) if stated else None


def _notes(
    images: Sequence[Image],
    spacing_mm: float,
    residual_mm: float,
    thickness_mm: float | None,
    grid: UprightGrid | None,
) -> tuple[str, ...]:
    measured = f"slices {spacing_mm:.6g} mm apart by least squares over {len(images)} positions, none farther than "
    # Of uneven slices the reader tells how far they are apart.
    notes = [measured + f"{residual_mm:.2g} mm from its even place"] if grid is None else []
    if thickness_mm is not None and abs(thickness_mm - spacing_mm) > 0.01 * spacing_mm:
        kind = "a gap" if thickness_mm < spacing_mm else "an overlap"
        notes.append(
            f"slices {thickness_mm:g} mm thick: {kind} of {abs(thickness_mm - spacing_mm):.4g} mm between them"
        )
    stated = [image.stated_spacing_mm for image in images if image.stated_spacing_mm is not None]
    if stated and abs(stated[0] - spacing_mm) > 0.01 * spacing_mm:
        notes.append(f"SpacingBetweenSlices says {stated[0]:g} mm; the positions are used")
    kinds = [name for at, name in enumerate(NAMES.values()) if len({image.among[at] for image in images}) > 1]
    if kinds:
        notes.append(f"{' and '.join(kinds)} differ along the stack, whose slices are even: it is read as one")
    counts = {image.stated_images for image in images if image.stated_images}
    if len(counts) == 1 and len(images) < min(counts):
        notes.append(f"the header counts {min(counts)} images in the acquisition, this stack has {len(images)}")
    return tuple(notes)


def _affine(image: Image, start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns the affine of [columns, rows from the last to the first, slices]; ``start`` and ``step`` in mm, LPS."""
    along_row, along_column = np.reshape(image.orientation or (), (2, 3))
    between_rows, between_columns = image.spacing_mm or ()
    affine = np.eye(4)
    affine[:3, 0] = along_row * between_columns
    affine[:3, 1] = -along_column * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = start + along_column * between_rows * (image.shape[0] - 1)
    affine[:3] = TO_RAS @ affine[:3]
    return affine
