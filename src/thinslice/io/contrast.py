"""Whether two scans have one contrast, as far as their headers say; see `thinslice.compute.likeness` where they do not.

Nothing here is sharp: of one contrast, echo and repetition times of a transverse and a sagittal stack differ, as more
slices need more time. The limits lie between what differs within a protocol and what makes another image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thinslice.io.atomic import read_object
from thinslice.io.formats import sidecar_path

ECHO_RATIO = 1.4
"""Echo times of one contrast differ by no larger a factor: 80 and 110 ms are both T2, 30 and 80 ms are not."""

ECHO_MS = 5.0
"""Nor do spin echoes matter that differ by less: 9 and 14 ms are both T1."""

GRADIENT_ECHO_MS = 0.6
"""Of gradient echoes half a cycle of fat against water is 1.1 ms at 3 T: they may differ by less than that."""

REPETITION_RATIO = 2.5
"""T1 takes 500 to 900 ms, T2 2500 to 6000: within a contrast the number of slices decides."""

INVERSION_RATIO = 1.25
"""Inversion nulls one tissue: fat at 150 to 180 ms, fluid at 1700 to 2500 ms."""

FLIP_DEGREES = 15.0
"""Of gradient echoes; for spin echoes the angle is that of refocusing, and it hardly matters."""

FAT_SUPPRESSED = frozenset({"FS", "FATSAT", "FAT SAT", "SPIR", "SPAIR", "WE", "WATER EXCITATION"})
"""Values of ScanOptions of images without the signal of fat."""

KINDS = frozenset((
    "P", "PHASE", "R", "REAL", "I", "IMAGINARY", "ADC", "EADC", "TRACEW", "FA", "W", "WATER", "F", "FAT", "IP",
    "IN_PHASE", "OP", "OPP_PHASE", "OUT_PHASE", "SUB", "SUBTRACTION", "T1_MAP", "T2_MAP", "T2_STAR_MAP", "CBF",
    "CBV", "MTT", "PERFUSION", "DIFFUSION", "MTC",
))  # fmt: skip
"""Values of ImageType, from the third on, of images that show something else than the magnitude of the signal."""

PREPARED = frozenset({"MTC"})
"""Values of SequenceVariant that change the contrast: magnetisation transfer."""

SEQUENCES = frozenset({"SE", "GR", "IR", "EP"})
"""Values of ScanningSequence that say how the signal is made; RM, research, says nothing."""


@dataclass(frozen=True)
class Contrast:
    """Holds what a header says of a scan's contrast; None, or empty, where it is silent.

    Attributes:
        modality: MR or CT.
        echo_ms, repetition_ms, inversion_ms, flip_degrees: of MR.
        sequence: values of ScanningSequence, those of `SEQUENCES`.
        prepared: values of SequenceVariant, those of `PREPARED`.
        is_fat_suppressed: by a pulse or by exciting water alone; fat that is nulled has an inversion time.
        kinds: values of ImageType, those of `KINDS`.
        has_agent: whether a contrast agent was given.
        b_value: of diffusion, s/mm^2.
        kernel: of CT.
    """

    modality: str = ""
    echo_ms: float | None = None
    repetition_ms: float | None = None
    inversion_ms: float | None = None
    flip_degrees: float | None = None
    sequence: frozenset[str] = frozenset()
    prepared: frozenset[str] = frozenset()
    is_fat_suppressed: bool | None = None
    kinds: frozenset[str] = frozenset()
    has_agent: bool | None = None
    b_value: float | None = None
    kernel: str = ""


@dataclass(frozen=True)
class ContrastMatch:
    """Says whether two scans have one contrast.

    Attributes:
        is_same: None where the headers do not tell.
        reasons: what differs, in plain words; empty unless they are different.
        notes: what differs and does not matter.
    """

    is_same: bool | None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def compare_contrasts(one: Contrast, other: Contrast) -> ContrastMatch:
    """Returns whether two scans have one contrast, as far as their headers say.

    Example:
        >>> t1 = Contrast("MR", echo_ms=10.0, repetition_ms=600.0)
        >>> compare_contrasts(t1, replace(t1, repetition_ms=750.0)).is_same
        True
        >>> compare_contrasts(t1, Contrast("MR", echo_ms=95.0, repetition_ms=4000.0)).reasons
        ('echo times of 10 and 95 ms', 'repetition times of 600 and 4000 ms')
        >>> compare_contrasts(t1, Contrast()).is_same is None
        True
    """
    reasons = [reason for compare in _COMPARISONS if (reason := compare(one, other))]
    notes = []
    if one.kernel and other.kernel and one.kernel != other.kernel:
        notes.append(f"reconstructed with the kernels {one.kernel} and {other.kernel}")
    if reasons:
        return ContrastMatch(False, tuple(reasons), tuple(notes))
    return ContrastMatch(True if _says_enough(one) and _says_enough(other) else None, (), tuple(notes))


def contrast_beside(path: Path, inherited: Sequence[Path] = ()) -> Contrast:
    """Returns what the JSON beside a scan says (BIDS, dcm2niix); an empty one where there is none.

    Args:
        path: the scan.
        inherited: JSON of BIDS that holds for it too, the nearest last: field by field the nearest one that speaks is
            believed, and what lies beside the scan before all of them.
    """
    beside = sidecar_path(path)
    facts: dict[str, Any] = {}
    for file in (*inherited, *([] if beside is None else [beside])):
        facts |= read_object(file)
    found = contrast_from_facts(facts)
    in_seconds = (found.echo_ms, found.repetition_ms, found.inversion_ms)
    # BIDS counts in seconds, DICOM in milliseconds.
    echo_ms, repetition_ms, inversion_ms = (None if s is None else 1000 * s for s in in_seconds)
    return replace(found, echo_ms=echo_ms, repetition_ms=repetition_ms, inversion_ms=inversion_ms)


def contrast_from_facts(facts: Mapping[str, Any]) -> Contrast:
    """Returns the contrast of header elements by their DICOM names, times as they stand there.

    Args:
        facts: numbers as numbers or text; several values as a list, or joined by backslashes.
    """
    sequence = _words(facts.get("ScanningSequence"))
    options = _words(facts.get("ScanOptions"))
    agent = _words(facts.get("ContrastBolusAgent")) | _words(facts.get("ContrastBolusIngredient"))
    # Where a header names its sequence it is a whole one, and its silence about a pulse or an agent means none.
    is_whole = bool(sequence) or _number(facts.get("EchoTime")) is not None or bool(_words(facts.get("Modality")))
    image_type = facts.get("ImageType")
    values = image_type.split("\\") if isinstance(image_type, str) else list(image_type or [])
    return Contrast(
        modality=next(iter(_words(facts.get("Modality"))), ""),
        echo_ms=_number(facts.get("EchoTime")),
        repetition_ms=_number(facts.get("RepetitionTime")),
        # Zero is how some say that there was none.
        inversion_ms=_number(facts.get("InversionTime")) or None,
        flip_degrees=_number(facts.get("FlipAngle")),
        sequence=sequence & SEQUENCES,
        prepared=_words(facts.get("SequenceVariant")) & PREPARED,
        is_fat_suppressed=True if options & FAT_SUPPRESSED else False if is_whole else None,
        kinds=_words([str(value) for value in values[2:]]) & KINDS,
        has_agent=True if agent - {"NONE", "NO"} else False if is_whole else None,
        b_value=_number(facts.get("DiffusionBValue")),
        kernel=str(facts.get("ConvolutionKernel") or ""),
    )


def _says_enough(contrast: Contrast) -> bool:
    """Whether what a header says is enough to call two contrasts one."""
    # Hounsfield units are a contrast of their own; that of MR is made by both times.
    return contrast.modality == "CT" or (contrast.echo_ms is not None and contrast.repetition_ms is not None)


def _differ_in_modality(one: Contrast, other: Contrast) -> str:
    if not one.modality or not other.modality or one.modality == other.modality:
        return ""
    return f"{one.modality} and {other.modality}"


def _differ_in_sequence(one: Contrast, other: Contrast) -> str:
    if one.sequence and other.sequence and one.sequence != other.sequence:
        return f"sequences {_join(one.sequence)} and {_join(other.sequence)}"
    if one.prepared != other.prepared:
        return "magnetisation transfer in one alone"
    return ""


def _differ_in_kind(one: Contrast, other: Contrast) -> str:
    if one.kinds == other.kinds:
        return ""
    return f"images of {_join(one.kinds) or 'magnitude'} and {_join(other.kinds) or 'magnitude'}"


def _differ_in_echo(one: Contrast, other: Contrast) -> str:
    if one.echo_ms is None or other.echo_ms is None:
        return ""
    nearest_ms = GRADIENT_ECHO_MS if "GR" in one.sequence | other.sequence else ECHO_MS
    ratio = 1.0 if abs(one.echo_ms - other.echo_ms) <= nearest_ms else _ratio(one.echo_ms, other.echo_ms)
    # Where gradient echoes differ by more, fat and water have turned against each other: no factor makes up for that.
    is_other = ratio > (1.0 if nearest_ms == GRADIENT_ECHO_MS else ECHO_RATIO)
    return f"echo times of {one.echo_ms:g} and {other.echo_ms:g} ms" if is_other else ""


def _differ_in_repetition(one: Contrast, other: Contrast) -> str:
    if one.repetition_ms is None or other.repetition_ms is None:
        return ""
    if _ratio(one.repetition_ms, other.repetition_ms) <= REPETITION_RATIO:
        return ""
    return f"repetition times of {one.repetition_ms:g} and {other.repetition_ms:g} ms"


def _differ_in_inversion(one: Contrast, other: Contrast) -> str:
    if one.inversion_ms is None and other.inversion_ms is None:
        return ""
    if one.inversion_ms is None or other.inversion_ms is None:
        silent, stated = (one, other) if one.inversion_ms is None else (other, one)
        # A header that says nothing of its times says nothing of an inversion either.
        return f"an inversion time of {stated.inversion_ms:g} ms and none" if silent.echo_ms is not None else ""
    if _ratio(one.inversion_ms, other.inversion_ms) <= INVERSION_RATIO:
        return ""
    return f"inversion times of {one.inversion_ms:g} and {other.inversion_ms:g} ms"


def _differ_in_flip(one: Contrast, other: Contrast) -> str:
    if one.flip_degrees is None or other.flip_degrees is None or "GR" not in one.sequence & other.sequence:
        return ""
    if abs(one.flip_degrees - other.flip_degrees) <= FLIP_DEGREES:
        return ""
    return f"flip angles of {one.flip_degrees:g} and {other.flip_degrees:g} degrees"


def _differ_in_fat(one: Contrast, other: Contrast) -> str:
    if {one.is_fat_suppressed, other.is_fat_suppressed} != {True, False}:
        return ""
    return "fat suppressed in one alone"


def _differ_in_agent(one: Contrast, other: Contrast) -> str:
    return "a contrast agent in one alone" if {one.has_agent, other.has_agent} == {True, False} else ""


def _differ_in_diffusion(one: Contrast, other: Contrast) -> str:
    # Without diffusion weighting a header says 0, or nothing.
    first, second = one.b_value or 0.0, other.b_value or 0.0
    return f"b-values of {first:g} and {second:g}" if abs(first - second) > 1 else ""


_COMPARISONS: tuple[Callable[[Contrast, Contrast], str], ...] = (
    _differ_in_modality,
    _differ_in_kind,
    _differ_in_sequence,
    _differ_in_echo,
    _differ_in_repetition,
    _differ_in_inversion,
    _differ_in_flip,
    _differ_in_fat,
    _differ_in_agent,
    _differ_in_diffusion,
)
"""Each says in plain words what differs, or nothing; the order is that of the reasons."""


def _ratio(one: float, other: float) -> float:
    """Returns how many times the larger of two times is the smaller."""
    return max(one, other) / max(min(one, other), 1e-6)


def _join(words: frozenset[str]) -> str:
    return "/".join(sorted(words))


def _words(value: Any) -> frozenset[str]:
    """Returns the values of an element in capitals."""
    if value is None:
        return frozenset()
    values = value.split("\\") if isinstance(value, str) else value if hasattr(value, "__iter__") else [value]
    return frozenset(word for part in values for word in [str(part).strip().upper()] if word)


def _number(value: Any) -> float | None:
    # True is a number to Python.
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
