"""The series of a study that show one body in one contrast, and may become one volume; and why others may not.

How series become groups. Of one group are the stacks of one patient, study, frame of reference and modality whose
headers do not name different contrasts (`thinslice.io.contrast`) and whose fields of view touch. Directions do not
matter: stacks across each other, chunks of a spine one above the other and repeats all belong together.

Nothing is taken in that was not acquired slice by slice. Images that a workstation resampled are left out, because what
they show is not what the operator of an acquisition says. The one exception is CT: nearly every archive holds thick
slices in two or three directions that were averaged from thin ones of the same acquisition, which are gone. Each of
them is a true measurement of the same body then, and they are used where no thinner slices are there.
"""

import itertools
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from thinslice.errors import InputRefused
from thinslice.io.affines import directions, gap_mm
from thinslice.io.contrast import Contrast, compare_contrasts
from thinslice.io.dicom.contrast import contrast_of_series
from thinslice.io.dicom.headers import WHERE_DOUBLED, Image, quiet, read_dataset
from thinslice.io.dicom.headers import find_groups as functional_groups
from thinslice.io.dicom.series import Series, Study
from thinslice.io.refusals import without_place
from thinslice.volume import grid_distance_mm

logger = logging.getLogger(__name__)

LEAST_SLICES = 5
"""A stack of fewer slices is a localizer, or too little to be placed by what it shows."""

ACROSS_DEGREES = 60.0
"""Stacks of one series at a larger angle are a localizer's: those along discs of a spine differ by less."""

SAME_GRID_MM = 0.1
"""Stacks whose voxels of the same index lie closer are at the same places: headers round, tables move back."""

SCOUT = re.compile(
    r"(?i)(?<![a-z])(aah)?(locali[sz]ers?|loc|scouts?|surveys?|topograms?|scanograms?|3[- ]?plane)(?![a-z])"
)
"""Words that describe a localizer; its ImageType says so with some makers only."""

THIN_BELOW = 1.5
"""Slices fewer pixels apart are thin already: other stacks could add nothing to them but noise or its mean."""

AS_THIN = 1.05
"""Slices that are thicker by no more than this are as thin: headers round lengths."""

NO_MAGNITUDE = frozenset({"P", "PHASE", "R", "REAL", "I", "IMAGINARY"})
"""Kinds of image of which an average over a slice is no slice: waves in them cancel each other."""

MAPS = frozenset({
    "ADC", "EADC", "TRACEW", "FA", "SUB", "SUBTRACTION", "T1_MAP", "T2_MAP", "T2_STAR_MAP", "CBF", "CBV", "MTT",
})  # fmt: skip
"""Kinds of image that were computed from several others."""

REFORMATS = frozenset({"MPR", "REFORMATTED", "CURVED", "CPR", "RESAMPLED"})
"""Words in the values of ImageType of derived images that a workstation resampled.

Derived alone says little of MR: water of a Dixon acquisition and what was filtered or corrected for distortion is so
too, slice by slice, some of it even SECONDARY. Nor do the words alone: GE calls oblique acquisitions MPR.
"""

DIRECTIONS = frozenset({
    "AX", "AXIAL", "AXI", "TRA", "TRANS", "TRANSVERSE", "TRANSVERSAL", "SAG", "SAGITTAL", "COR", "CORONAL", "OBL",
    "OBLIQUE", "MPR",
})  # fmt: skip
"""Words that name a direction: a group of several is not called after one."""


@dataclass(frozen=True)
class SeriesGroup:
    """Holds stacks that may become one volume.

    Attributes:
        name: what to call it, unlike the others of the study: what descriptions share, else the contrast.
        series: two or more. The first has the most voxels, and of equal ones the lowest number: it sets brightness and,
            unless something else is asked for, the grid.
        notes: what had to be decided, in plain words.
    """

    name: str
    series: tuple[Series, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """Names a series that belongs to no group.

    Attributes:
        label: what it is called.
        reason: why, in plain words on one line.
        series: None if it could not be read.
    """

    label: str
    reason: str
    series: Series | None = None


@dataclass(frozen=True)
class StudyGroups:
    """Says what of a study may be combined.

    Attributes:
        groups: in the order of their lowest series numbers.
        left_out: in the order of series numbers, and then what could not be read.
    """

    groups: tuple[SeriesGroup, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One series that can be read.

    Attributes:
        series: the stack.
        index: its place in the study.
        contrast: what its header says of it.
        protocol: ProtocolName of its first slice.
        made_from: SOPInstanceUIDs of the images that its first slice was made from.
    """

    series: Series
    index: int
    contrast: Contrast
    protocol: str
    made_from: frozenset[str]

    @property
    def first(self) -> Image:
        """The first slice."""
        return self.series.images[0]

    @property
    def image_type(self) -> list[str]:
        """The values of ImageType in capitals."""
        return self.first.among[0].split("\\")

    @property
    def is_derived(self) -> bool:
        """Whether its slices were made from others, as its ImageType says."""
        return self.image_type[:1] == ["DERIVED"] or (self.image_type[1:2] == ["SECONDARY"] and not self.is_ct)

    @property
    def is_ct(self) -> bool:
        """Whether it is CT."""
        return self.first.modality == "CT"

    @property
    def voxels(self) -> int:
        """How many voxels it has."""
        return math.prod(self.series.shape)

    @property
    def spacing_mm(self) -> np.ndarray:
        """Distances [3] between voxels along the array axes."""
        return np.asarray(np.linalg.norm(self.series.affine[:3, :3], axis=0))


def find_groups(study: Study) -> StudyGroups:
    """Finds the series of a study that may be combined, and says of every other one why it is left out.

    The same study gives the same groups, whatever its files are called.

    Args:
        study: see `thinslice.io.dicom.series.find_study`.
    """
    found, reasons = _read_candidates(study)
    reasons |= {one.index: reason for one in found if (reason := _why_unfit(one, found))}
    groups: dict[int, SeriesGroup] = {}
    usable = sorted((one for one in found if one.index not in reasons), key=_in_order)
    for kind in _of_one_contrast(usable):
        reasons |= _why_repeated(kind)
        kept = [one for one in kind if one.index not in reasons]
        for part in _touching(kept):
            if len(part) == 1:
                reasons[part[0].index] = _why_alone(part[0], kept)
            else:
                groups[min(one.index for one in part)] = _group(part)
    named = _with_unique_names([groups[index] for index in sorted(groups)])
    left_out = [LeftOut(study.series[at].label, reasons[at], study.series[at]) for at in sorted(reasons)]
    unreadable = [LeftOut(one.label, one.reason) for one in study.unusable]
    logger.debug("%d groups, %d of %d series left out", len(named), len(left_out), len(study.series))
    return StudyGroups(tuple(named), (*left_out, *unreadable))


def _read_candidates(study: Study) -> tuple[list[_Candidate], dict[int, str]]:
    """Returns what the headers of all series say; and of those that are unreadable by now, why, by their index."""
    found, reasons = [], {}
    for index, series in enumerate(study.series):
        image = series.images[0]
        try:
            contrast = contrast_of_series(series)
            wanted = ["ProtocolName", "SourceImageSequence", "PerFrameFunctionalGroupsSequence"]
            header = read_dataset(image.path, stop_before_pixels=True, specific_tags=wanted)
        except (InputRefused, OSError) as error:
            why = without_place(error) if isinstance(error, InputRefused) else f"no access ({error.strerror})"
            reasons[index] = str(why)
            continue
        with quiet():
            protocol = str(header.get("ProtocolName") or "")
            found.append(_Candidate(series, index, contrast, protocol, _sources_of(header, image)))
    return found, reasons


def _sources_of(header: Dataset, image: Image) -> frozenset[str]:
    """Returns the SOPInstanceUIDs of the images that one was made from, as far as its header says so."""
    places = [header]
    if image.frame is not None:
        places += functional_groups(header, "PerFrameFunctionalGroupsSequence", image.frame)
    items = [item for place in places for item in place.get("SourceImageSequence") or []]
    return frozenset(str(item.get("ReferencedSOPInstanceUID") or "") for item in items) - {""}


def _in_order(one: _Candidate) -> tuple[object, ...]:
    """Returns what candidates are sorted by: acquired before derived, most voxels first, then as in the study."""
    return one.is_derived, -one.voxels, one.index


# ---- why a series is left out, whatever else is there


def _why_unfit(one: _Candidate, others: Sequence[_Candidate]) -> str:
    """Returns why a series can be of no group; nothing if it can."""
    return next((reason for ask in _QUESTIONS if (reason := ask(one, others))), "")


def _is_computed(one: _Candidate, others: Sequence[_Candidate]) -> str:
    # An answer that goes in again would count as a measurement what was only guessed.
    is_ours = any(image.computed for image in one.series.images)
    return "computed by thinslice, not acquired" if is_ours else ""


def _has_few_slices(one: _Candidate, others: Sequence[_Candidate]) -> str:
    count = len(one.series.images)
    return f"{count} slices: fewer than {LEAST_SLICES} are no stack to combine" if count < LEAST_SLICES else ""


def _is_localizer(one: _Candidate, others: Sequence[_Candidate]) -> str:
    named = SCOUT.search(one.first.description) or SCOUT.search(one.protocol)
    if named:
        return f"a localizer, as its description says ({named.group()})"
    normal = directions(one.series.affine)[:, 2]
    for other in others:
        if other.first.series_uid == one.first.series_uid and other.first.patient == one.first.patient:
            cosine = abs(float(normal @ directions(other.series.affine)[:, 2]))
            if cosine < math.cos(math.radians(ACROSS_DEGREES)):
                return "a localizer: stacks across each other in one series"
    return ""


def _shows_something_else(one: _Candidate, others: Sequence[_Candidate]) -> str:
    if kinds := one.contrast.kinds & NO_MAGNITUDE:
        return f"images of phase, not of magnitude (ImageType {'/'.join(sorted(kinds))})"
    if kinds := one.contrast.kinds & MAPS:
        return f"a map that was computed from other images (ImageType {'/'.join(sorted(kinds))})"
    return ""


def _was_resampled(one: _Candidate, others: Sequence[_Candidate]) -> str:
    words = {word for value in one.image_type for word in re.split(r"[^A-Z]+", value)}
    if one.is_ct or not one.is_derived or not words & REFORMATS:
        return ""
    return f"resampled from other images, not acquired (ImageType {'/'.join(one.image_type)})"


def _shows_what_another_holds(one: _Candidate, others: Sequence[_Candidate]) -> str:
    if not one.is_derived:
        return ""
    for other in others:
        if other is one or not _may_belong(one, other):
            continue
        if one.made_from & {image.sop_uid for image in other.series.images}:
            return f"made from {other.series.label}, which is in this study"
        # Thick slices that were averaged from thin ones: these hold all that they show. Among reformats of several
        # directions the thinnest need not be what the others were made from.
        limit = one.spacing_mm.max() * (1 / THIN_BELOW if other.is_derived else AS_THIN)
        if one.is_ct and other.spacing_mm.max() <= limit and _do_touch(one, other):
            return f"resampled, and {other.series.label} of this study holds all of it in thinner slices"
    return ""


def _is_uneven(one: _Candidate, others: Sequence[_Candidate]) -> str:
    if one.series.grid is None:
        return ""
    return "its slices are tilted, uneven or incomplete: enhance makes it thin by itself"


def _is_thin(one: _Candidate, others: Sequence[_Candidate]) -> str:
    if one.spacing_mm[2] >= one.spacing_mm[:2].min() * THIN_BELOW:
        return ""
    return f"thin already: slices {one.spacing_mm[2]:.3g} mm apart with pixels of {one.spacing_mm[:2].min():.3g} mm"


_QUESTIONS: tuple[Callable[[_Candidate, Sequence[_Candidate]], str], ...] = (
    _is_computed,
    _has_few_slices,
    _is_localizer,
    _shows_something_else,
    _was_resampled,
    _shows_what_another_holds,
    _is_uneven,
    _is_thin,
)
"""Each returns a reason in plain words, or nothing; the first one counts."""


# ---- what belongs together


def _may_belong(one: _Candidate, other: _Candidate) -> bool:
    """Tells whether two are of one patient, study, space, modality and, as far as headers say, contrast."""
    first, second = one.first, other.first
    if (first.patient, first.study_uid, first.modality) != (second.patient, second.study_uid, second.modality):
        return False
    frames = {first.frame_of_reference, second.frame_of_reference} - {""}
    return len(frames) < 2 and compare_contrasts(one.contrast, other.contrast).is_same is not False


def _of_one_contrast(usable: Sequence[_Candidate]) -> list[list[_Candidate]]:
    """Puts each candidate to the first of the groups all of whose members it belongs to."""
    kinds: list[list[_Candidate]] = []
    for one in usable:
        home = next((kind for kind in kinds if all(_may_belong(one, other) for other in kind)), None)
        if home is None:
            kinds.append([one])
        else:
            home.append(one)
    return kinds


def _why_repeated(kind: Sequence[_Candidate]) -> dict[int, str]:
    """Returns by their index why stacks at the same places as others are left out; true repeats are not."""
    reasons: dict[int, str] = {}
    for at, one in enumerate(kind):
        same = [other for other in kind if other is not one and _is_same_grid(one, other)]
        of_series = [other for other in same if other.first.series_uid == one.first.series_uid]
        twins = [other for other in same if _is_same_acquisition(one, other)]
        before = [other.series.label for other in kind[:at] if other in twins]
        if of_series:
            reasons[one.index] = f"one of {len(of_series) + 1} images at the same places in one series: 4-D"
        elif before:
            reasons[one.index] = f"the same slices as {before[0]}, reconstructed or filtered in another way"
        elif one.contrast.has_agent and len(same) > len(twins):
            other = next(other.series.label for other in same if other not in twins)
            reasons[one.index] = f"at the same places as {other}: phases after a contrast agent"
    return reasons


def _is_same_grid(one: _Candidate, other: _Candidate) -> bool:
    if one.series.shape != other.series.shape:
        return False
    return grid_distance_mm(one.series.affine, other.series.affine, one.series.shape) < SAME_GRID_MM


def _is_same_acquisition(one: _Candidate, other: _Candidate) -> bool:
    """Tells whether slices at the same places are one acquisition, reconstructed or corrected twice.

    CT is not repeated to average noise out: what lies at the same places there has another kernel, or shows a phase.
    """
    if one.is_ct or one.is_derived != other.is_derived:
        return True
    at = list(WHERE_DOUBLED).index("AcquisitionTime")
    mine, theirs = ([image.where_doubled[at] for image in each.series.images] for each in (one, other))
    # Zeros are what some write instead of a time that might tell who it was.
    return mine == theirs and all(time.strip("0.") for time in mine)


def _touching(kind: Sequence[_Candidate]) -> list[list[_Candidate]]:
    """Parts candidates into those whose fields of view touch, be it by way of others; their order is kept."""
    parts: list[list[_Candidate]] = []
    for one in kind:
        near = [part for part in parts if any(_do_touch(one, other) for other in part)]
        parts = [part for part in parts if part not in near]
        parts.append([other for other in kind if other is one or any(other in part for part in near)])
    return sorted(parts, key=lambda part: _in_order(part[0]))


def _do_touch(one: _Candidate, other: _Candidate) -> bool:
    """Tells whether two fields of view are no farther apart than slices are."""
    apart_mm = gap_mm(one.series.affine, one.series.shape, other.series.affine, other.series.shape)
    return bool(apart_mm <= max(one.spacing_mm[2], other.spacing_mm[2]))


def _why_alone(one: _Candidate, kept: Sequence[_Candidate]) -> str:
    """Returns why there is no other one to combine it with."""
    if others := [other.series.label for other in kept if other is not one]:
        return f"touches no other stack of its contrast: {', '.join(others)}"
    return "the only stack of its contrast in this study"


# ---- what a group is called


def _group(part: Sequence[_Candidate]) -> SeriesGroup:
    first = part[0]
    notes: list[str] = []
    for other in part[1:]:
        match = compare_contrasts(first.contrast, other.contrast)
        between = f"{first.series.label} and {other.series.label}"
        if match.is_same is None:
            notes.append(f"{between}: headers do not say whether they have one contrast")
        notes += [f"{between}: {note}" for note in match.notes]
    if derived := [one.series.label for one in part if one.is_derived and one.is_ct]:
        notes.append(f"{', '.join(derived)}: resampled from thin slices that are not in this study")
    texts = [f"{one.first.description} {one.protocol}" for one in part]
    name = " ".join(shared_words(texts)) or _contrast_in_words(first)
    return SeriesGroup(name, tuple(one.series for one in part), tuple(notes))


def shared_words(texts: Sequence[str]) -> list[str]:
    """Returns the words that all texts have, as the first writes them; without numbers and directions.

    Example:
        >>> shared_words(["T2_TSE sag 3mm", "t2_tse tra 4mm", "T2 TSE COR"])
        ['T2', 'TSE']
    """
    words = [re.findall(r"[^\W_]+", text) for text in texts]
    of_all = set.intersection(*({word.upper() for word in of_one} for of_one in words))
    kept = {word.upper(): word for word in reversed(words[0]) if word.upper() in of_all - DIRECTIONS}
    # In the order of the first text, each once.
    return [kept.pop(word.upper()) for word in words[0] if word.upper() in kept and not word.isdigit()]


def _contrast_in_words(one: _Candidate) -> str:
    """Returns modality and times."""
    found = one.contrast
    times = {"TE": found.echo_ms, "TR": found.repetition_ms, "TI": found.inversion_ms}
    return " ".join([one.first.modality, *(f"{name} {ms:g}" for name, ms in times.items() if ms is not None)])


def _with_unique_names(groups: Sequence[SeriesGroup]) -> list[SeriesGroup]:
    """Returns the groups with numbers after names that came before, in capitals or not: folders may be called so."""
    taken: set[str] = set()
    named = []
    for group in groups:
        numbered = (f"{group.name} {number}" if number > 1 else group.name for number in itertools.count(1))
        name = next(name for name in numbered if name.upper() not in taken)
        taken.add(name.upper())
        named.append(replace(group, name=name))
    return named
