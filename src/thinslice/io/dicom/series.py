"""A folder of DICOM files -> its series: split into stacks, sorted, measured, or refused by name and reason.

Nothing is resampled to look regular: a stack that is tilted, gapped or uneven is refused.

How files become stacks. A series, in the words of DICOM, is what one protocol gave: it may hold several stacks, such as
two echoes, the b-values of diffusion or the phases of a heart. Names and numbers of files say nothing reliable about
that, so the places of the slices decide wherever they can:

1. Copies of one image count once. Images of other classes, frames of reference or kinds of grey are apart.
2. What lies evenly, one image a place, is one stack, whatever else differs along it.
3. Else images are parted by the facts that are made to tell stacks apart (`AMONG`), then by orientation and grid.
4. Where images still lie at the same places, the first of further facts (`WHERE_DOUBLED`) that gives each stack all of
   the places parts them: a fact that only changes along the stack, such as a time, does not.
5. Each stack is measured; what is no even stack of parallel slices is refused by name and reason.
"""

import logging
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from thinslice.errors import InputRefused
from thinslice.io.atomic import looks_like_dicom
from thinslice.io.dicom.headers import AMONG, WHERE_DOUBLED, Image, printable, read_images
from thinslice.io.refusals import refused, without_place

logger = logging.getLogger(__name__)

SAME_DIRECTION = 1e-4
"""Cosines that differ by less are those of one orientation: 0.03 mm at the edge of a large image."""

SAME_PLACE_MM = 1e-2
"""Slices closer together than this lie at one place."""

UNEVEN_SHARE = 0.02
"""The largest distance of a slice from its even place, in slice spacings."""

TILT_DEGREES = 0.1
"""The largest angle between the line of the slices and their normal: more is a tilted gantry."""

LEAST_IN_A_STACK = 3
"""In a series of several orientations each has at least so many slices, or it is no set of stacks."""

TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""DICOM's left-posterior-superior (LPS) -> RAS."""

_NAMES = dict(zip(AMONG, ("image type", "echo", "b", "phase", "stack"), strict=True))
"""What the facts that tell stacks apart are called in the name of one."""

_DOUBLED_NAMES = dict(
    zip(
        WHERE_DOUBLED,
        ("TE", "TE", "gradient", "TI", "trigger", "trigger", "phase", "acquisition", "time", "kernel", "series number"),
        strict=True,
    )
)
"""What those are called that tell apart what lies at one place."""


@dataclass(frozen=True)
class Series:
    """One stack of parallel slices, evenly spaced.

    Attributes:
        folder: where its first file lies.
        label: series number, description, and what tells this stack from the others of its series.
        distinction: the last of these, empty where there are no others.
        images: in the order of the array's last axis.
        affine: [4, 4] float64; the array is [columns, rows from the last to the first, slices]: voxel -> mm (RAS).
        thickness_mm: None where the header is silent.
        residual_mm: largest distance of a slice from its even place.
        notes: what had to be decided.
        index: which of the stacks of its series it is, from 0.
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns the number of columns, rows and slices."""
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
            found = read_images(file) if looks_like_dicom(file) else []
        except (InputRefused, OSError) as error:
            refusal = without_place(error) if isinstance(error, InputRefused) else _no_access(error)
            broken.append(Unusable(printable(file.name), file.parent, refusal))
            continue
        images += found
        others += not found
    once, copies = _without_copies([image if computed_too else _acquired(image) for image in images])
    series, unusable = _sort(once)
    damaged_in = {one.folder for one in broken}
    series = [_noting_damage(one, damaged_in) for one in series]
    logger.debug("%s: %d images, %d series, %d unusable", path, len(images), len(series), len(unusable) + len(broken))
    notes = []
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
            if looks_like_dicom(file) and (images := read_images(file)):
                return images[0].study_uid
    except (InputRefused, OSError) as error:
        logger.debug("%s: no study is known", folder, exc_info=error)
    return ""


def _files(path: Path, broken: list[Unusable], below: bool) -> Iterable[Path]:
    """Yields every file at, or also below, a path, links followed; adds folders without permission to ``broken``."""
    if not path.is_dir():
        yield path
        return
    next(iter(os.scandir(path)), None)  # a folder that cannot be listed is an error, not an empty one
    been: set[str] = set()

    def complain(error: OSError) -> None:
        folder = Path(error.filename)
        broken.append(Unusable(printable(folder.name), folder.parent, _no_access(error)))

    for folder, inner, files in os.walk(path, onerror=complain, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in been else sorted(name for name in inner if not name.startswith("."))
        if real not in been:
            yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))
        been.add(real)
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


def _without_copies(images: list[Image]) -> tuple[list[Image], int]:
    """Returns the images without copies, and how many these were; what differs under one name cannot be used."""
    named: dict[tuple[str, str, str, int | None], list[Image]] = {}
    for image in images:
        named.setdefault((image.patient, image.series_uid, image.sop_uid or str(image.path), image.frame), []).append(
            image
        )
    kept = []
    for same in named.values():
        first = same[0]
        other = next((image for image in same[1:] if not _is_copy(first, image)), None)
        if other is None:
            kept.append(first)
            continue
        got = f"{first.path.name} and {other.path.name}, which differ, under one SOPInstanceUID"
        problem = refused(got, "a name for each image", "export the series again", code="dicom-uid-twice")
        kept += [replace(image, problem=image.problem or problem) for image in same]
    return kept, len(images) - len(kept)


def _is_copy(one: Image, other: Image) -> bool:
    """Tells whether two images have the same place and the same voxels."""
    if (one.position, one.shape, one.rescale) != (other.position, other.shape, other.rescale):
        return False
    first, second = (image.path.read_bytes()[image.voxels_at :] for image in (one, other))
    return first == second


# ---- series into stacks


def _sort(images: list[Image]) -> tuple[list[Series], list[Unusable]]:
    groups = _grouped(images, lambda image: (image.patient, image.study_uid, image.series_uid))
    series: list[Series] = []
    unusable: list[Unusable] = []
    for group in sorted(groups, key=lambda g: (g[0].patient, g[0].study_uid, g[0].number or 0, g[0].series_uid)):
        stacks = sorted(_stacks(group), key=lambda stack: _in_order(stack[1][0]))
        for index, (distinction, stack) in enumerate(stacks):
            found = _series_or_not(_label(group[0]), distinction, stack, index)
            series += [found] if isinstance(found, Series) else []
            unusable += [found] if isinstance(found, Unusable) else []
    return series, unusable


def _in_order(image: Image) -> tuple[object, ...]:
    """Returns what stacks of one series are ordered by: what tells them apart, whatever their files are called."""
    facts = [_natural(fact) for fact in (*image.among, *image.where_doubled)]
    return (
        image.sop_class,
        *facts,
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


def _series_or_not(label: str, distinction: str, images: list[Image], index: int) -> Series | Unusable:
    try:
        return _series(label, distinction, images, index)
    except InputRefused as refusal:
        computed = all(image.computed for image in images)
        return Unusable(label + distinction, images[0].path.parent, refusal, computed)


def _grouped(images: Iterable[Image], key: Callable[[Image], Hashable]) -> list[list[Image]]:
    groups: dict[Hashable, list[Image]] = {}
    for image in images:
        groups.setdefault(key(image), []).append(image)
    return list(groups.values())


def _stacks(images: list[Image]) -> Iterable[tuple[str, list[Image]]]:
    """Yields (what tells it apart, images) of each stack of one series, and of what is none."""
    for group in _grouped(images, lambda image: (image.sop_class, image.frame_of_reference, image.grey)):
        # Step 2: if all of it is one even stack, no fact that differs along it parts it.
        usable = [image for image in group if not image.problem]
        if len(usable) == len(group) and _is_one_stack(group):
            yield "", group
            continue
        # Step 3: the facts that are made to tell stacks apart.
        for part in _grouped(group, lambda image: image.among):
            yield from _of_one_kind(_distinction(part[0], images), part)


def _is_one_stack(images: list[Image]) -> bool:
    """Tells whether all images lie evenly, one at each place: then nothing that differs among them makes two stacks."""
    if len(_by_orientation(images)) > 1 or len(_by_grid(images)) > 1:
        return False
    places = _places(images)
    if len(places) < len(images) or len(images) < LEAST_IN_A_STACK:
        return False
    _, step, residual_mm = _fit(_positions(images)[np.argsort(_positions(images) @ _normal(images[0]))])
    return residual_mm <= UNEVEN_SHARE * float(np.linalg.norm(step))


def _of_one_kind(distinction: str, images: list[Image]) -> Iterable[tuple[str, list[Image]]]:
    """Yields the stacks of images that differ in orientation, grid and place alone, each with what tells it apart."""
    if any(image.problem for image in images):
        yield distinction, images
        return
    turned = sorted(_by_orientation(images), key=lambda group: group[0].orientation or ())
    # A few slices in each of many orientations are a localizer, or projections that rotate: refused as a whole.
    if len(turned) > 1 and min(map(len, turned)) < LEAST_IN_A_STACK:
        yield distinction, images
        return
    for number, group in enumerate(turned, 1):
        orientation = f", orientation {number} of {len(turned)}" if len(turned) > 1 else ""
        grids = _by_grid(group)
        for grid in grids:
            rows, columns = grid[0].shape
            size = f", {columns} x {rows}" if len(grids) > 1 else ""
            facts = list(range(len(WHERE_DOUBLED)))
            yield from _split_by_distinguishing_fact(distinction + orientation + size, grid, facts)


def _by_grid(images: list[Image]) -> list[list[Image]]:
    return _grouped(images, lambda image: (image.shape, tuple(round(mm, 4) for mm in image.spacing_mm or ())))


def _label(image: Image) -> str:
    number = "" if image.number is None else f"{image.number} "
    return (number + image.description).strip() or image.path.parent.name or image.path.name


def _distinction(image: Image, series: list[Image]) -> str:
    """Returns the facts that not all images of the series share, in words."""
    values = zip(*(other.among for other in series), strict=True)
    differ = [len(set(of_all)) > 1 for of_all in values]
    return "".join(
        f", {_NAMES[fact]} {value}".rstrip()
        for fact, value, differs in zip(AMONG, image.among, differ, strict=True)
        if differs
    )


def _by_orientation(images: list[Image]) -> list[list[Image]]:
    groups: list[list[Image]] = []
    for image in images:
        # With the first of each group: cosines differ in their last digits from slice to slice.
        home = next((g for g in groups if _largest_difference(image, g[0]) < SAME_DIRECTION), None)
        if home is None:
            groups.append([image])
        else:
            home.append(image)
    return groups


def _largest_difference(one: Image, other: Image) -> float:
    """Returns the largest difference between the cosines of two orientations."""
    return float(np.abs(np.subtract(one.orientation or (), other.orientation or ())).max(initial=0.0))


def _split_by_distinguishing_fact(
    label: str, images: list[Image], facts: list[int]
) -> Iterable[tuple[str, list[Image]]]:
    """Parts images that lie at the same places, by the first fact that gives each part all of the places.

    A fact that gives some of them to one part and some to another, such as the time of each slice, tells no stacks
    apart; what no fact parts is one stack, and refused when it is measured.

    Args:
        label: what tells these images from others already.
        images: of one orientation and grid.
        facts: indices into `WHERE_DOUBLED` of the facts that were not tried yet.
    """
    places = _places(images)
    if len(places) == len(images):
        yield label, images
        return
    for at, fact in enumerate(facts):
        groups = _grouped(images, partial(_value, fact))
        if len(groups) > 1 and all(_same(_places(group), places) for group in groups):
            for group in groups:
                value = group[0].where_doubled[fact]
                called = f"{label}, {_DOUBLED_NAMES[WHERE_DOUBLED[fact]]} {value}".rstrip()
                logger.debug("%d of %d images apart by %s %s", len(group), len(images), WHERE_DOUBLED[fact], value)
                yield from _split_by_distinguishing_fact(called, group, facts[at + 1 :])
            return
    yield label, images


def _value(fact: int, image: Image) -> str:
    return image.where_doubled[fact]


def _places(images: list[Image]) -> np.ndarray:
    """Returns the places [n] in mm along the normal of the images, each once, in order."""
    along = np.sort(_positions(images) @ _normal(images[0]))
    return along[np.diff(along, prepend=-np.inf) > SAME_PLACE_MM]


def _same(places: np.ndarray, others: np.ndarray) -> bool:
    return len(places) == len(others) and bool(np.allclose(places, others, rtol=0, atol=SAME_PLACE_MM))


# ---- one stack, measured


def _positions(images: Sequence[Image]) -> np.ndarray:
    """Returns [n, 3] mm, LPS."""
    return np.array([image.position for image in images], np.float64).reshape(-1, 3)


def _normal(image: Image) -> np.ndarray:
    rows, columns = np.reshape(image.orientation or np.eye(3)[:2], (2, 3))
    normal = np.cross(rows, columns)
    return np.asarray(normal / np.linalg.norm(normal))


def _series(label: str, distinction: str, images: list[Image], index: int) -> Series:
    """Returns the stack, sorted and measured.

    Raises:
        InputRefused: it is no even stack of parallel slices.
    """
    _check_usable(images)
    normal = _normal(images[0])
    along = _positions(images) @ normal
    images = [images[i] for i in np.argsort(along, kind="stable")]  # a left-handed array, as dcm2niix writes it
    start, step, residual_mm = _fit(_positions(images))
    spacing_mm = float(np.linalg.norm(step))
    _check_even(images, np.sort(along), spacing_mm, residual_mm)
    # The slices of a tilted gantry run along another line than their normal.
    degrees = float(np.degrees(np.arccos(np.clip(step @ normal / spacing_mm, -1, 1))))
    if degrees > TILT_DEGREES:
        got = f"slices that are shifted sideways from one to the next (tilted gantry, {degrees:.1f} degrees)"
        way = "have it reconstructed without tilt, or straighten it with dcm2niix"
        raise refused(got, "a stack at right angles", way, code="dicom-tilted")
    thickness_mm = _thickness_mm(images)
    notes = _notes(images, spacing_mm, residual_mm, thickness_mm)
    affine = _affine(images[0], start, step)
    folder = images[0].path.parent
    name = label + distinction
    return Series(folder, name, distinction, tuple(images), affine, thickness_mm, residual_mm, notes, index)


def _check_usable(images: list[Image]) -> None:
    problems = [image.problem for image in images if image.problem]
    if problems:
        count = f" ({len(problems)} of {len(images)} images)" if len(problems) < len(images) else ""
        raise refused(problems[0].got + count, problems[0].need, problems[0].next, code=problems[0].code)
    orientations = len(_by_orientation(images))
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
    if len(stated) > 1 and max(stated) > 1.01 * min(stated):
        got = f"slices from {min(stated):g} to {max(stated):g} mm thick in one stack"
        raise refused(got, "one thickness", "export them as series of their own", code="dicom-thicknesses")


def _check_whole_concatenation(images: list[Image]) -> None:
    parts = {image.part for image in images if image.part is not None}
    for uid, _, total in parts:
        there = {number for other, number, _ in parts if other == uid}
        if len(there) < total:
            got = f"{len(there)} of the {total} files of a concatenation"
            raise refused(got, "all", "export the series again", code="dicom-missing-slices")


def _fit(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fits even places to positions [n, 3] by least squares: returns the first, the step, and the largest distance."""
    # Over all positions, not from the first to the last alone: each was rounded in its header.
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    middle = positions.mean(axis=0)
    step = index @ (positions - middle) / (index @ index)
    even = middle + index[:, None] * step
    return even[0], step, float(np.linalg.norm(positions - even, axis=1).max())


def _check_even(images: Sequence[Image], along: np.ndarray, spacing_mm: float, residual_mm: float) -> None:
    steps_mm = np.diff(along)
    doubled = int((steps_mm < SAME_PLACE_MM).sum())
    if doubled:
        where = int(np.argmin(steps_mm))
        got = (
            f"{len(images)} images at {len(images) - doubled} places (such as {images[where].path.name} and "
            f"{images[where + 1].path.name}), and nothing in their headers that tells them apart"
        )
        raise refused(got, "one image a place", "export the phases as series of their own", code="dicom-doubled")
    if residual_mm <= UNEVEN_SHARE * spacing_mm:
        _check_not_thinned_out(images, spacing_mm)
        return
    # Steps over a gap are multiples of the usual step: then slices are missing, else they are uneven.
    usual_mm = float(np.median(steps_mm[steps_mm < 1.1 * steps_mm.min()]))
    jumps = steps_mm / usual_mm
    missing = np.round(jumps) - 1
    if np.abs(jumps - np.round(jumps)).max() < 0.1 and missing.max() >= 1:
        where = int(np.argmax(missing))
        got = (
            f"{len(images)} slices {usual_mm:.4g} mm apart of which {int(missing.sum())} are missing (between "
            f"{images[where].path.name} and {images[where + 1].path.name})"
        )
        raise refused(got, "all", "export the series again", code="dicom-missing-slices")
    got, way = (
        f"slices from {steps_mm.min():.4g} to {steps_mm.max():.4g} mm apart",
        "export the series again, or choose another",
    )
    raise refused(got, "even distances", way, code="dicom-uneven")


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
    images: Sequence[Image], spacing_mm: float, residual_mm: float, thickness_mm: float | None
) -> tuple[str, ...]:
    measured = f"slices {spacing_mm:.6g} mm apart by least squares over {len(images)} positions, none farther than "
    notes = [measured + f"{residual_mm:.2g} mm from its even place"]
    if thickness_mm is not None and abs(thickness_mm - spacing_mm) > 0.01 * spacing_mm:
        kind = "a gap" if thickness_mm < spacing_mm else "an overlap"
        notes.append(
            f"slices {thickness_mm:g} mm thick: {kind} of {abs(thickness_mm - spacing_mm):.4g} mm between them"
        )
    stated = [image.stated_spacing_mm for image in images if image.stated_spacing_mm is not None]
    if stated and abs(stated[0] - spacing_mm) > 0.01 * spacing_mm:
        notes.append(f"SpacingBetweenSlices says {stated[0]:g} mm; the positions are used")
    kinds = [name for at, name in enumerate(_NAMES.values()) if len({image.among[at] for image in images}) > 1]
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
