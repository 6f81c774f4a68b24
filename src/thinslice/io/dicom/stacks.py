"""The images of one series -> its stacks, and what is left out of them, with the reason.

A series, in the words of DICOM, is what one protocol gave: it may hold several stacks, such as two echoes, the b-values
of diffusion or the phases of a heart, and images that are no part of any, such as one that shows where the others lie.
Names and numbers of files say nothing reliable about that, so the places of the slices decide wherever they can:

1. What is no slice of a scan (a dose page, a localizer) is left out. Images of other classes, frames of reference or
   kinds of grey are apart, and so are those of another orientation or grid.
2. What lies evenly, one image a place, is one stack, whatever else differs along it: but for two contrasts whose slices
   alternate.
3. Else images are parted by the facts that are made to tell stacks apart (`AMONG`).
4. Where images still lie at the same places, the first of further facts (`WHERE_DOUBLED`, and the dimensions of an
   enhanced file) that gives each stack all of the places parts them: a fact that only changes along the stack, such as
   a time, does not. Of an acquisition that was interrupted, the last volume may have some of the places only.
5. Images that nothing tells apart but the time at which, or the number under which, they came at their place are the
   phases of a dynamic series: the n-th of each place are the n-th volume.
6. What is parted by a hole, by another thickness of its slices, or into stations that overlap, is several stacks.
7. One or two images beside a stack are left out.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from thinslice.errors import InputRefused
from thinslice.io.dicom.decode import decode, decode_compressed
from thinslice.io.dicom.headers import AMONG, IN_TIME, WHERE_DOUBLED, Image
from thinslice.io.dicom.places import (
    SAME_PLACE_MM,
    UNEVEN_SHARE,
    are_among_places,
    are_same_places,
    by,
    by_grid,
    by_orientation,
    by_place,
    even_spacing_mm,
    find_places,
    find_positions,
    normal_of,
    usual_spacing_mm,
)
from thinslice.io.refusals import refused
from thinslice.physics.straightening import WIDEST_GAP

logger = logging.getLogger(__name__)

LEAST_IN_A_STACK = 3
"""In a series of several orientations each has at least so many slices, or it is no set of stacks."""

SAME_THICKNESS = 1.01
"""Slices whose thicknesses differ by no larger a factor are equally thick: headers round."""

PART = ", part "
"""What the names of the stations of one acquisition have before their numbers."""

NO_SCANS = frozenset(
    {
        "dicom-not-a-scan",
        "dicom-segmentation",
        "dicom-colour",
        "dicom-mosaic",
        "dicom-localizer",
        "dicom-projection",
        "dicom-phase",
        "dicom-odd-image",
        "dicom-interrupted",
    }
)
"""Codes of refusals of what is no stack of slices: where all stacks of a study were done nothing is missing."""

NO_PLACE = frozenset({"dicom-missing-element", "dicom-bad-geometry"})
"""Codes of refusals of images that do not say where they lie: pages of numbers do not, nor do damaged slices."""

NAMES = dict(zip(AMONG, ("image type", "echo", "b", "phase", "stack"), strict=True))
"""What the facts that tell stacks apart are called in the name of one."""

PHASE = AMONG.index("TemporalPositionIdentifier")
"""Which of these facts counts the volumes of a dynamic series."""

CONTRASTS = ("EchoTime", "EffectiveEchoTime", "KVP", "ConvolutionKernel")
"""Facts of `WHERE_DOUBLED` that no stack of one contrast has two values of in turn; it may have two inversion times."""

SAME_VALUE = 1.02
"""Two echo times are those of one contrast where they differ by no larger a factor: scanners round and adjust them."""

NOON = 120_000.0
"""Noon as DICOM writes a time: hours, minutes and seconds in one number."""

MOST_FRAMES = 2**24
"""More frames than a file can have."""

MOST_NAMED = 3
"""So many files at most are named in one sentence."""

_TEMPORAL = frozenset(
    name for name, word in WHERE_DOUBLED.items() if word in ("phase", "acquisition", "time", "phase at")
)
"""Facts that count the volumes of a dynamic series."""


@dataclass(frozen=True)
class Part:
    """Some images of a series.

    Attributes:
        distinction: what tells them from the others of the series, in words.
        images: what may be a stack, or is none.
        notes: what had to be decided.
        problem: why they are left out; None for what may be a stack.
        phase: which volume of a dynamic series it is where only the order of its images tells, from 1; else 0.
    """

    distinction: str
    images: list[Image]
    notes: tuple[str, ...] = ()
    problem: InputRefused | None = None
    phase: int = 0


@dataclass
class _Findings:
    """What is found out about the images of one group while they are parted."""

    notes: list[str] = field(default_factory=list)
    broken: list[Part] = field(default_factory=list)


def find_stacks(images: list[Image]) -> list[Part]:
    """Returns the stacks of one series, and what is none, each with what tells it apart.

    Args:
        images: of one series, without copies.
    """
    pages, slices = _without_pages(images)
    parts = [part for group in by(slices, _kind) for part in _of_one_group(group, images)]
    stacks, odd = _without_odd_ones(parts)
    found = [*stacks, *pages, *odd]
    notes = tuple(
        f"left out: {name_files(part.images)}: {part.problem.got}" for part in found if part.problem is not None
    )
    return [part if part.problem else replace(part, notes=(*part.notes, *notes)) for part in found]


def _kind(image: Image) -> tuple[str, str, str]:
    return image.sop_class, image.frame_of_reference, image.grey


# ---- what is no slice


def _without_pages(images: list[Image]) -> tuple[list[Part], list[Image]]:
    """Returns what is no slice of a scan, by reason, and the others; all of them where nothing would be left."""
    usable = [image for image in images if not image.problem]
    shapes, types = {one.shape for one in usable}, {one.among[0] for one in usable}
    has_stack = len(usable) >= LEAST_IN_A_STACK
    is_page = [_is_page(image, has_stack, shapes, types) for image in images]
    if all(is_page):
        # A whole series of them: one refusal for each kind, named as stacks are.
        return [], images
    pages = [image for image, is_one in zip(images, is_page, strict=True) if is_one]
    found = by(pages, lambda image: (image.problem.code, image.problem.got) if image.problem else None)
    parts = [Part(_called(group, images), group, problem=_why_page(group)) for group in found]
    return parts, [image for image, is_one in zip(images, is_page, strict=True) if not is_one]


def _is_page(image: Image, has_stack: bool, shapes: set[tuple[int, int]], types: set[str]) -> bool:
    """Tells whether an image that cannot be used is none of the slices of its series."""
    code = image.problem.code if image.problem else ""
    if code in NO_SCANS:
        return True
    # A slice that has lost its place looks like the others; a page of numbers has another size or says another type.
    return code in NO_PLACE and has_stack and (image.shape not in shapes or image.among[0] not in types)


def _why_page(images: Sequence[Image]) -> InputRefused | None:
    problem = images[0].problem
    if problem is None or problem.code in NO_SCANS:
        return problem
    count = "one image" if len(images) == 1 else f"{len(images)} images"
    got = f"{count} without a place, of another size or type than the slices"
    return refused(got, "a stack of slices", "leave it out", code="dicom-odd-image")


def _called(images: Sequence[Image], series: list[Image]) -> str:
    """Returns the end of a label: the names of a few files; of many, what tells them apart."""
    few = len({image.path for image in images}) <= MOST_NAMED
    return f", {name_files(images)}" if few else _distinction(images[0], series) or f", {name_files(images)}"


def name_files(images: Sequence[Image]) -> str:
    """Returns the names of the files of images, of many the first ones."""
    names = list(dict.fromkeys(image.path.name for image in images))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


# ---- what is no part of a stack


def _without_odd_ones(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    """Returns the parts, and those of one or two images that are left out, as they lie beside whole stacks."""
    stacks = [part for part in parts if len(part.images) >= LEAST_IN_A_STACK and not part.problem]
    few = [part for part in parts if len(part.images) < LEAST_IN_A_STACK and not part.problem and _is_sound(part)]
    # A slice that lies where the stack goes on is one of it, whatever its header says: without it that is not whole.
    odd = [part for part in few if not any(_goes_on(part.images, stack.images) for stack in stacks)]
    in_stacks = sum(len(part.images) for part in stacks)
    if not stacks or 2 * sum(len(part.images) for part in odd) > in_stacks:
        return parts, []
    ids = set(map(id, odd))
    series = [image for part in parts for image in part.images]
    left_out = [replace(part, problem=_odd(part, stacks), distinction=_called(part.images, series)) for part in odd]
    return [part for part in parts if id(part) not in ids], left_out


def _is_sound(part: Part) -> bool:
    return not any(image.problem for image in part.images)


def _goes_on(images: list[Image], stack: list[Image]) -> bool:
    """Tells whether images lie at the next places of a stack, or at places that are missing in it."""
    if any(image.problem for image in stack) or len(by_orientation([*stack, *images])) > 1:
        return False
    places = find_places(stack)
    if len(by_grid([*stack, *images])) > 1 or len(places) < len(stack) or len(places) < LEAST_IN_A_STACK:
        return False
    step_mm = float(np.median(np.diff(places)))
    index = (find_positions(images) @ normal_of(stack[0]) - places[0]) / step_mm
    # Among slices that are uneven themselves any place is one of the stack.
    is_even = (np.abs(index - np.round(index)) <= UNEVEN_SHARE) | (usual_spacing_mm(stack) is None)
    is_near = (index > -LEAST_IN_A_STACK) & (index < len(places) + LEAST_IN_A_STACK - 1)
    return bool((is_even & is_near).all()) and not are_among_places(places[0] + index * step_mm, places)


def _odd(part: Part, stacks: Sequence[Part]) -> InputRefused:
    """Returns why one or two images are left out of a series with stacks."""
    count = "one image" if len(part.images) == 1 else f"{len(part.images)} images"
    image, others = part.images[0], [other for stack in stacks for other in stack.images]
    if len(by_orientation([*others, image])) > len(by_orientation(others)):
        what = "of another orientation than the slices of the stack"
    elif image.shape not in {other.shape for other in others}:
        what = f"of another size ({image.shape[1]} x {image.shape[0]}) than the slices of the stack"
    else:
        what = f"of another kind than the slices of the stack{part.distinction}"
    return refused(f"{count} {what}", "a stack of slices", "leave it out", code="dicom-odd-image")


# ---- what is one stack, and what is several


def _of_one_group(group: list[Image], images: list[Image]) -> Iterator[Part]:
    """Yields the parts of images of one class, frame of reference and kind of grey."""
    if any(image.problem for image in group):
        for part in by(group, lambda image: image.among):
            yield from _of_one_kind(_distinction(part[0], images), part)
        return
    turned = sorted(by_orientation(group), key=lambda one: one[0].orientation or ())
    whole = [one for one in turned if len(one) >= LEAST_IN_A_STACK]
    if len(turned) > 1 and not whole:
        # A few slices in each of many orientations are a localizer, or projections that rotate: refused as a whole.
        yield Part("", group)
        return
    numbers = {id(one): number for number, one in enumerate(whole, 1)}
    for one in turned:
        number = f", orientation {numbers[id(one)]} of {len(whole)}" if id(one) in numbers and len(whole) > 1 else ""
        grids = by_grid(one)
        for grid in grids:
            rows, columns = grid[0].shape
            size = f", {columns} x {rows}" if len(grids) > 1 else ""
            yield from _of_one_grid(number + size, grid, images)


def _of_one_grid(label: str, grid: list[Image], images: list[Image]) -> Iterator[Part]:
    """Yields the stacks of images of one orientation and grid."""
    # Step 2: if all of it is one even stack, no fact that differs along it parts it.
    if len(grid) >= LEAST_IN_A_STACK and even_spacing_mm(grid) is not None:
        alternating = _alternating_contrasts(grid)
        if not alternating:
            kind = _distinction(grid[0], images) if len({image.among for image in grid}) == 1 else ""
            yield from _runs(Part(kind + label, grid))
            return
        yield from (replace(part, distinction=part.distinction + label) for part in alternating)
        return
    # Step 3: the facts that are made to tell stacks apart.
    parts = [(part, _distinction(part[0], images)) for part in by(grid, lambda image: image.among)]
    whole, broken = _interrupted_phases(parts)
    for part, distinction in whole:
        yield from _of_one_kind(distinction + label, part)
    yield from broken


def _of_one_kind(label: str, images: list[Image]) -> Iterator[Part]:
    """Yields the stacks of images that differ in place alone, or in what may differ along a stack."""
    if any(image.problem for image in images):
        yield Part(label, images)
        return
    findings = _Findings()
    for part in list(_split(label, images, [*_facts_of(images)], findings)):
        # Uneven by themselves two contrasts may be even stacks each.
        contrasts = _alternating_contrasts(part.images) if len(find_places(part.images)) == len(part.images) else []
        if contrasts:
            yield from (replace(one, distinction=part.distinction + one.distinction) for one in contrasts)
        else:
            yield from _runs(replace(part, notes=tuple(dict.fromkeys(findings.notes))))
    yield from findings.broken


def _distinction(image: Image, series: list[Image]) -> str:
    """Returns the facts that not all images of the series share, in words."""
    values = zip(*(other.among for other in series if not other.problem or image.problem), strict=True)
    differ = [len(set(of_all)) > 1 for of_all in values]
    return "".join(
        f", {NAMES[fact]} {value}".rstrip()
        for fact, value, differs in zip(AMONG, image.among, differ, strict=True)
        if differs
    )


def _alternating_contrasts(images: list[Image]) -> list[Part]:
    """Returns the stacks of several contrasts whose slices alternate; none where they do not.

    Each is even, but for slices that are missing, and as many times farther apart as there are of them.
    """
    asked: list[tuple[str, Callable[[Image], str]]] = [
        (NAMES[name], partial(_among, AMONG.index(name))) for name in ("EchoNumbers", "ImageType", "DiffusionBValue")
    ]
    asked += [(WHERE_DOUBLED[name], partial(_fact, list(WHERE_DOUBLED).index(name))) for name in CONTRASTS]
    together_mm = usual_spacing_mm(images)
    for word, value in asked:
        groups = _by_value(images, value)
        spacings = [usual_spacing_mm(group) for group in groups]
        known = [mm for mm in spacings if mm is not None]
        if len(groups) < 2 or len(known) < len(groups) or max(known) > (1 + UNEVEN_SHARE) * min(known):
            continue
        if together_mm is not None and min(known) < (len(groups) - 0.5) * together_mm:
            continue  # as near as all are together: what differs here and there along one stack
        ends = [find_places(group)[[0, -1]] for group in groups]
        overlap = max(first for first, _ in ends) < min(last for _, last in ends)
        if overlap:
            return [Part(f", {word} {value(group[0])}".rstrip(), group) for group in groups]
    return []


# ---- runs of one thickness, and stations


def _runs(part: Part) -> Iterator[Part]:
    """Yields the parts of images of one kind: slices of one thickness, and without a hole; stations that overlap.

    Where one would be too short to be a stack all of it is yielded, to be refused when it is measured.
    """
    for thickness, group in _by_thickness(part.images):
        stations = _stations(group)
        for number, images in enumerate(stations, 1):
            which = f"{PART}{number} of {len(stations)}" if len(stations) > 1 else ""
            yield replace(part, distinction=part.distinction + thickness + which, images=images)


def _by_thickness(images: list[Image]) -> list[tuple[str, list[Image]]]:
    """Returns the slices of each thickness, where one comes after the other along the stack; and what to call them."""
    runs: list[list[Image]] = []
    for at in np.argsort(_along(images), kind="stable"):
        if runs and _is_as_thick(runs[-1][-1], images[at]):
            runs[-1].append(images[at])
        else:
            runs.append([images[at]])
    # Thicknesses in turns, or one slice that differs, are none of several stacks.
    if len(runs) < 2 or min(map(len, runs)) < LEAST_IN_A_STACK or len(find_places(images)) < len(images):
        return [("", images)]
    # Where two runs follow each other both are stated: what is silent is as thick as what lies before it.
    names = [f", {max(image.thickness_mm or 0.0 for image in run):g} mm thick" for run in runs]
    which = [f", run {names[: at + 1].count(name)} of {names.count(name)}" for at, name in enumerate(names)]
    return [
        (name + part if names.count(name) > 1 else name, run)
        for name, part, run in zip(names, which, runs, strict=True)
    ]


def _is_as_thick(one: Image, other: Image) -> bool:
    """Tells whether the headers of two slices say one thickness; where one is silent, it says no other."""
    if not one.thickness_mm or not other.thickness_mm:
        return True
    thinner, thicker = sorted((one.thickness_mm, other.thickness_mm))
    return thicker <= SAME_THICKNESS * thinner


def _stations(images: list[Image]) -> list[list[Image]]:
    """Returns the stations of an acquisition: parts with a hole between them, or parts that overlap; else one part."""
    if len(images) < 2 * LEAST_IN_A_STACK or even_spacing_mm(images) is not None:
        return [images]
    return _overlapping(images) or _apart(images)


def _apart(images: list[Image]) -> list[list[Image]]:
    """Returns the parts between which there is more than `WIDEST_GAP`, if each of them is a stack."""
    along = _along(images)
    order = np.argsort(along, kind="stable")
    steps_mm = np.diff(along[order])
    # Where two images lie at one place there is no step.
    usual_mm = float(np.median(np.diff(find_places(images))))
    cuts = np.flatnonzero(steps_mm > WIDEST_GAP * usual_mm) + 1
    parts = [[images[i] for i in part] for part in np.split(order, cuts)]
    return parts if min(map(len, parts)) >= LEAST_IN_A_STACK else [images]


def _overlapping(images: list[Image]) -> list[list[Image]]:
    """Returns even parts that overlap at their ends, by the order in which the images are numbered; none if not so."""
    if any(image.instance is None or image.frame is not None for image in images):
        return []
    images = sorted(images, key=lambda image: image.instance or 0)
    steps_mm = np.diff(_along(images))
    usual_mm = float(np.median(steps_mm))
    # From one station to the next the numbers go on, and the places go back; two images at one place are no overlap.
    cuts = np.flatnonzero(np.sign(usual_mm) * steps_mm < -SAME_PLACE_MM) + 1
    parts = [[images[i] for i in part] for part in np.split(np.arange(len(images)), cuts)]
    if len(parts) < 2 or any(len(part) < LEAST_IN_A_STACK or even_spacing_mm(part) is None for part in parts):
        return []
    ends = sorted((float(_along(part).min()), float(_along(part).max())) for part in parts)
    # Slices that lie between those of another pass all along are of one stack, or of two contrasts.
    shared_mm = [one[1] - other[0] for one, other in pairwise(ends)]
    return parts if max(shared_mm) < min(high - low for low, high in ends) / 2 else []


def _along(images: Sequence[Image]) -> np.ndarray:
    """Returns the places [n] in mm along the normal of the first image, in the order of the images."""
    return np.asarray(find_positions(images) @ normal_of(images[0]))


def _among(at: int, image: Image) -> str:
    return image.among[at]


def _by_value(images: Sequence[Image], value: Callable[[Image], str]) -> list[list[Image]]:
    """Returns the images of each value of a fact; of numbers that hardly differ there is one group."""
    groups = by(images, value)
    try:
        numbers = [float(value(group[0])) for group in groups]
    except ValueError:
        return groups
    is_one = min(numbers) > 0 and max(numbers) <= SAME_VALUE * min(numbers)
    return [list(images)] if is_one else by(images, lambda image: float(value(image)))


# ---- several images at one place

_Fact = tuple[str, Callable[[Image], str]]
"""What a fact is called, and how it is read off an image."""


def _facts_of(images: Sequence[Image]) -> Iterator[_Fact]:
    """Yields the facts that may tell apart images at one place."""
    for at, name in enumerate(WHERE_DOUBLED):
        yield name, partial(_fact, at)
    # What each dimension of a file means need not be known: one that runs along the stack parts nothing.
    for at in range(max(len(image.dimensions) for image in images)):
        yield f"dimension {at + 1}", partial(_dimension, at)


def _fact(at: int, image: Image) -> str:
    return image.where_doubled[at]


def _dimension(at: int, image: Image) -> str:
    return image.dimensions[at] if at < len(image.dimensions) else ""


def _split(label: str, images: list[Image], facts: list[_Fact], findings: _Findings) -> Iterable[Part]:
    """Parts images that lie at the same places, by the first fact that gives each part all of the places.

    A fact that gives some of them to one part and some to another, such as the time of each slice, tells no stacks
    apart; what nothing parts is one stack, and refused when it is measured.

    Args:
        label: what tells these images from others already.
        images: of one orientation and grid.
        facts: those that were not tried yet.
        findings: what is left out, and notes, are added to these.
    """
    places = find_places(images)
    if len(places) == len(images):
        yield Part(label, images)
        return
    for at, (name, value) in enumerate(facts):
        groups = by(images, value)
        if len(groups) > 1 and all(are_same_places(find_places(group), places) for group in groups):
            for group in groups:
                called = f"{label}, {_word(name)} {value(group[0])}".rstrip(" ,")
                logger.debug("%d of %d images apart by %s %s", len(group), len(images), name, value(group[0]))
                yield from _split(called, group, facts[at + 1 :], findings)
            return
    once = _without_equal_voxels(images)
    if len(once) == len(places):
        copies = len(images) - len(once)
        findings.notes.append(f"{copies} image(s) are there twice, with other names and the same voxels: read once")
        yield Part(label, once)
        return
    whole, broken = _interrupted(label, images, facts)
    if whole:
        findings.broken += broken
        for called, group in whole:
            yield from _split(called, group, facts, findings)
        return
    yield from _in_order_of_time(label, images, findings)


def _word(name: str) -> str:
    return WHERE_DOUBLED.get(name, name)


def _without_equal_voxels(images: list[Image]) -> list[Image]:
    """Returns the images without those that lie where another one does and have its voxels."""
    once: list[Image] = []
    for place in by_place(images):
        kept: list[Image] = []
        for image in place:
            if not any(has_same_voxels(image, other) for other in kept):
                kept.append(image)
        once += kept
    return once


def has_same_voxels(one: Image, other: Image) -> bool:
    """Tells whether two images have the same size, scale and voxels, as they are stored."""
    if (one.shape, one.rescale, one.frame) != (other.shape, other.rescale, other.frame) or one.path == other.path:
        return False
    if one.compressed != other.compressed:
        # An archive may pack what it keeps: then the same bytes come out, and others are stored.
        first, second = (_decode(image) for image in (one, other))
        return first is not None and second is not None and np.array_equal(first, second)
    return _hash_voxels(one.path, one.voxels_at) == _hash_voxels(other.path, other.voxels_at)


def _decode(image: Image) -> np.ndarray | None:
    """Returns the stored values of a file; None where they cannot be decoded, which is told when it is read."""
    try:
        return next(decode_compressed([image.path])) if image.compressed else decode(image.path)
    except (InputRefused, OSError):
        return None


@lru_cache(maxsize=4)
def _hash_voxels(path: Path, start: int) -> bytes:
    # A few are kept: a file of many frames is compared once, and one that changes later is read anew.
    return hashlib.sha256(path.read_bytes()[start:]).digest()


# ---- dynamic series


def _interrupted_phases(
    parts: list[tuple[list[Image], str]],
) -> tuple[list[tuple[list[Image], str]], list[Part]]:
    """Returns parts of other values of `AMONG`, without a last phase that has some of the places of the others only."""
    whole, broken = [], []
    for part, distinction in parts:
        rest = [other for other, _ in parts if _without_phase(other[0]) == _without_phase(part[0])]
        rest = [other for other in rest if other is not part]
        fullest = max(rest, key=lambda other: len(find_places(other)), default=part)
        if (
            part[0].among[PHASE]
            and len(find_places(part)) < len(find_places(fullest))
            and are_among_places(find_places(part), find_places(fullest))
        ):
            broken.append(_broken(distinction, part, len(find_places(fullest))))
        else:
            whole.append((part, distinction))
    return whole, broken


def _without_phase(image: Image) -> tuple[str, ...]:
    return image.among[:PHASE] + image.among[PHASE + 1 :]


def _broken(distinction: str, images: list[Image], count: int) -> Part:
    got = f"a volume of {len(images)} of {count} slices (interrupted, or files are missing)"
    problem = refused(got, "all slices of a volume", "leave it out", code="dicom-interrupted")
    return Part(distinction, images, problem=problem)


def _interrupted(
    label: str, images: list[Image], facts: Sequence[_Fact]
) -> tuple[list[tuple[str, list[Image]]], list[Part]]:
    """Returns whole volumes and what there is of one that was interrupted, by the first fact that counts volumes."""
    places = find_places(images)
    for name, value in facts:
        if name not in _TEMPORAL and not name.startswith("dimension"):
            continue
        groups = by(images, value)
        whole = [group for group in groups if are_same_places(find_places(group), places)]
        rest = [group for group in groups if group not in whole]
        if not whole or len(rest) != 1 or len(find_places(rest[0])) < len(rest[0]):
            continue
        # A few slices beside a single volume were acquired again: which of them count cannot be known.
        if len(whole) > 1 or 2 * len(rest[0]) >= len(places):
            named = [(f"{label}, {_word(name)} {value(group[0])}".rstrip(" ,"), group) for group in whole]
            called = f"{label}, {_word(name)} {value(rest[0][0])}".rstrip(" ,")
            return named if len(whole) > 1 else [(label, whole[0])], [_broken(called, rest[0], len(places))]
    return [], []


def _in_order_of_time(label: str, images: list[Image], findings: _Findings) -> Iterable[Part]:
    """Yields the n-th images of all places as the n-th volume, in the order of their times, else of their numbers.

    Where the places hold different numbers of images, the volumes that all of them have are whole, and one more was
    interrupted. What has no such order is one part, and refused when it is measured.
    """
    at_places = by_place(images)
    counts = [len(place) for place in at_places]
    least, most = min(counts), max(counts)
    # With one image at most places, the others are no second volume: which of them is right cannot be known.
    if most - least > 1 or least == 1:
        yield Part(label, images)
        return
    for name, read in _orders():
        values = _over_midnight([[read(image) for image in place] for place in at_places])
        if any(np.isnan(place).any() or len(set(place)) < len(place) for place in values):
            continue
        if most > least and not _lack_the_last(values):
            continue
        ordered = [
            [image for _, image in sorted(zip(times, place, strict=True), key=lambda pair: pair[0])]
            for times, place in zip(values, at_places, strict=True)
        ]
        findings.notes.append(f"phases are told apart by the order of {name} at each place alone")
        for number in range(least):
            yield Part(f"{label}, phase {number + 1}", [place[number] for place in ordered], phase=number + 1)
        if most > least:
            rest = [place[least] for place in ordered if len(place) > least]
            findings.broken.append(_broken(f"{label}, phase {most}", rest, len(counts)))
        return
    yield Part(label, images)


def _lack_the_last(values: list[list[float]]) -> bool:
    """Tells whether the places with one image less than others lack the last one, as after an interruption.

    Were it another one, images of several phases would become one volume. Either the volumes came one after the other,
    and all images of each before those of the next; or the places did, and the last of them is the short one.
    """
    most = max(map(len, values))
    ranks = [[sorted(place)[number] for place in values if len(place) > number] for number in range(most)]
    if all(max(one) < min(following) for one, following in pairwise(ranks)):
        return True
    in_turn = sorted(values, key=min)
    are_apart = all(max(one) < min(following) for one, following in pairwise(in_turn))
    return are_apart and all(len(place) == most for place in in_turn[:-1])


def _orders() -> Iterator[tuple[str, Callable[[Image], float]]]:
    """Yields what images of one place can be ordered by; each gives NaN where an image is silent."""
    for name in IN_TIME:
        yield name, partial(_time, list(WHERE_DOUBLED).index(name))
    yield "InstanceNumber", _number


def _time(at: int, image: Image) -> float:
    text = image.where_doubled[at]
    if list(WHERE_DOUBLED)[at].endswith("DateTime"):
        # The time alone: with the date before it, a number has not enough digits for the fractions of a second.
        text = text[8:].partition("+")[0].partition("-")[0]
    try:
        return float(text)
    except ValueError:
        return np.nan


def _over_midnight(values: list[list[float]]) -> list[list[float]]:
    """Returns clock times (HHMMSS) that go on after midnight, where those before and after it are given."""
    flat = [value for place in values for value in place]
    if max(flat) - min(flat) < NOON:
        return values
    return [[value + 2 * NOON if value < NOON else value for value in place] for place in values]


def _number(image: Image) -> float:
    # The frames of one file are counted, those of several files by these.
    return np.nan if image.instance is None else image.instance + (image.frame or 0) / MOST_FRAMES
