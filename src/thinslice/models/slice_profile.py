"""Decides what the slice profile of a scan is: what is told, what the scan states, and what its own slices show.

What counts for an answer is the standard deviation of the profile in slice spacings: told 0.1 too much, a network can
fall below plain cubic interpolation (LOG.md, 2026-11-30). A header states a thickness at best, whose meaning differs
by half from one shape of profile to another; so the scan itself is asked, by an `Estimator` that was trained on
simulated stacks (`experiments/slice_profile.py`), and both count as much as they are sure.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.models.envelope import Envelope
from thinslice.models.hounsfield import is_hounsfield
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import Alternation, make_even
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.slice_statistics import (
    MOST_SLICES,
    Interpolation,
    find_first_acquired,
    find_interpolation,
    measure,
    swap_axes,
    take_acquired,
    take_middle,
)
from thinslice.settings import Profile, Settings
from thinslice.volume import Volume

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded" / "slice-profile.npz"
"""The trained estimator."""

STEPS = (1.5, 12.0)
"""Slice spacings over pixel spacings for which the estimate is made: a little more than the 2 to 10 it learnt from."""

FEWEST_SLICES = 5
"""Stacks with fewer slices tell nothing of their profile."""

USUAL = (0.31, 0.15)
"""Mean and standard deviation, in slice spacings, of what is expected where no thickness is stated: from slices with a
gap of half (0.15) to Gaussian ones that overlap (0.5). Wide, as the slices themselves are surer."""

RECONSTRUCTED = (0.33, 0.05)
"""Likewise, of computed tomography: its slices are reconstructed, or averaged, without gaps between them. A box as wide
as the spacing has 0.289; the bells of helical scans are wider (0.364 where one was fitted; LOG.md, 2026-11-30)."""

STATED = (0.345, 0.045)
"""Likewise, over the stated thickness: from a box (0.289) to a Gaussian (0.425), and headers are a little off."""

NARROWEST = 0.115
"""Narrower profiles than a box of 0.4 spacings are not computed with: no scanner leaves so wide gaps."""

FEWEST_PIXELS = 16
"""Of slices smaller than this nothing is estimated either."""

DOUBT = 2.5
"""Estimates that are so many standard deviations apart contradict each other, which is told."""

PLAUSIBLE = (0.25, 2.5)
"""Thickness over spacing of real scans: from wide gaps to slices that overlap by more than half. A header that states
another one, against what the slices show, is wrong."""

ADVICE = "give `profile` and `thickness_mm` if you know them"

BY_SOFTNESS: tuple[Profile, ...] = ("gaussian", "triangle", "spin-echo", "trapezoid", "box")
"""The shapes from that which is widest for its full width at half maximum to that which is narrowest."""

BELIEVED = (0.25, 0.47)
"""Standard deviations over a stated thickness that it is believed with: from a box (0.289) to a Gaussian (0.425), and
an error of the estimate more."""

INTERPOLATED = "the slices were interpolated before they were stored"
"""How a note begins that says so."""

EVEN = Alternation()
"""Nothing alternates from slice to slice."""

Source = Literal["told", "stated", "estimated", "assumed"]
"""Where a profile is from: the user, the scan's header and its slices, its slices alone, or nothing but the spacing."""


@dataclass(frozen=True)
class Estimate:
    """What is known of a slice profile.

    Attributes:
        sd: its standard deviation, in spacings of the slices that tell something (``every``).
        uncertainty: the standard deviation of the error of that.
        interpolated: whether the slices were interpolated before they were stored.
        every: 2 where every other slice tells as much as all of them, as those between were interpolated, else 1.
        first: where the first of those was acquired, half-way between two slices perhaps; None where it is not clear.
    """

    sd: float
    uncertainty: float
    interpolated: bool = False
    every: int = 1
    first: float | None = 0

    def combined(self, other: "Estimate") -> "Estimate":
        """Returns the mean of two independent estimates, each weighted by how sure it is.

        Example:
            >>> Estimate(0.2, 0.05).combined(Estimate(0.3, 0.05)).sd
            0.25
        """
        weights = [one.uncertainty**-2 for one in (self, other)]
        mean = (weights[0] * self.sd + weights[1] * other.sd) / sum(weights)
        return Estimate(float(mean), float(sum(weights) ** -0.5))

    def contradicts(self, other: "Estimate") -> bool:
        """Says whether two independent estimates are farther apart than their uncertainties explain."""
        return bool(abs(self.sd - other.sd) > DOUBT * np.hypot(self.uncertainty, other.uncertainty))


@dataclass(frozen=True)
class FoundProfile:
    """The slice profile that is computed with.

    Attributes:
        thickness_mm: full width at half maximum.
        profile: its shape.
        source: where it is from.
        uncertainty: standard deviation of the error of the profile's standard deviation, in slice spacings; None where
            it was told, or nothing is known of it.
        every: every so many-th slice shall be computed from, see `Estimate`.
        first: the first of them.
        notes: the same in plain words.
    """

    thickness_mm: float
    profile: Profile
    source: Source
    uncertainty: float | None = None
    every: int = 1
    first: float = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimator:
    """Small networks that read the width of the slice profile from statistics of a stack; the mean of them counts.

    Attributes:
        mean, scale: of the statistics in training (`thinslice.physics.slice_statistics.measure`).
        networks: of each the weights and biases of its three layers, as torch keeps them.
        calibration: what the uncertainty that they state is multiplied by: it was found on people held out.
    """

    mean: np.ndarray
    scale: np.ndarray
    networks: tuple[tuple[np.ndarray, ...], ...]
    calibration: float = 1.0

    CENTRE: ClassVar[float] = 0.35
    SPREAD: ClassVar[float] = 0.15
    BEYOND: ClassVar[float] = 5.0

    def __call__(self, measured: np.ndarray) -> Estimate:
        """Returns the width, the same for a stack and its transpose."""
        both = np.stack([measured, swap_axes(measured)])
        x = self.standardise(both, self.mean, self.scale)
        answers = np.stack([_run(network, x) for network in self.networks])
        sd = np.maximum(self.CENTRE + self.SPREAD * answers[..., 0], 0.0)
        variance = np.exp(np.clip(answers[..., 1], -8, 2) - 3).mean() + sd.var()
        # Statistics beyond any that were seen: the answer is a guess there.
        beyond = float((np.abs(x) >= self.BEYOND).mean())
        return Estimate(float(sd.mean()), float(self.calibration * np.sqrt(variance) * (1 + 20 * beyond)))

    @staticmethod
    def standardise(measured: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Returns statistics as the networks see them, float32."""
        limit = Estimator.BEYOND
        standardised: np.ndarray = np.clip((np.nan_to_num(measured) - mean) / scale, -limit, limit)
        return standardised.astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes a file that `load` reads."""
        arrays = {f"network{n}.{i}": a for n, network in enumerate(self.networks) for i, a in enumerate(network)}
        arrays |= {"mean": self.mean, "scale": self.scale, "calibration": np.array(self.calibration)}
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> "Estimator":
        """Reads a file of `save`."""
        with np.load(path) as file:
            names = sorted({name.split(".")[0] for name in file.files if name.startswith("network")})
            networks = tuple(tuple(file[f"{name}.{i}"] for i in range(6)) for name in names)
            return Estimator(file["mean"], file["scale"], networks, float(file["calibration"]))


def find_profile(
    volume: Volume,
    axis: int,
    settings: Settings,
    envelope: Envelope | None,
    alternation: Alternation = EVEN,
    may_leave_out: bool = True,
) -> FoundProfile:
    """Returns the slice profile of a scan: what is told is obeyed, the rest is found.

    Where the shape is told and no thickness is, the slices are taken to be as thick as they are far apart. Where
    nothing can be found, the profile is a box of the stated thickness, else of the spacing: a box that is wrong costs
    less than a Gaussian that is wrong (LOG.md, 2026-11-30).

    Args:
        volume: the scan.
        axis: across the slices.
        settings: what is told, ``thickness_mm`` and ``profile``.
        envelope: what the model is valid for; None: anything.
        alternation: what alternates from slice to slice, which is taken out before the slices are looked at.
        may_leave_out: whether slices that were interpolated may be left out of the computation.

    Raises:
        PlanRefused: the thickness is not a positive number.
    """
    spacing_mm = volume.spacing_mm[axis]
    stated_mm, notes = _stated_thickness_mm(volume, axis, settings)
    if settings.profile is not None:
        if find_interpolation(_middle_of(volume, axis, alternation)) != "none":
            notes.append(f"{INTERPOLATED}: all are computed from, as their profile is told")
        return FoundProfile(float(stated_mm or spacing_mm), settings.profile, "told", notes=tuple(notes))
    seen = estimate(volume, axis, alternation)
    if seen is None:
        of = "the slice thickness" if stated_mm is not None else "the slice spacing, as no thickness is stated"
        notes.append(
            f"the slice profile is not known, and cannot be estimated from these slices: taken for a box of "
            f"{stated_mm or spacing_mm:g} mm ({of}); {ADVICE}"
        )
        source: Source = "assumed" if settings.thickness_mm is None else "told"
        return FoundProfile(float(stated_mm or spacing_mm), "box", source, notes=tuple(notes))
    spacing_mm *= seen.every
    of_ct = is_hounsfield(volume.voxels)
    expected, found, is_believed = _weigh(seen, of_ct, spacing_mm, stated_mm)
    logger.debug("slice profile: %s from the slices, %s expected, %s from both", seen, expected, found)
    every = seen.every if may_leave_out and seen.first is not None else 1
    apart_mm = volume.spacing_mm[axis] * every
    sd = max(found.sd, NARROWEST) * spacing_mm / apart_mm
    shapes = _shapes_for(of_ct, envelope)
    if settings.thickness_mm is not None:
        profile, thickness_mm = _shape_nearest(sd * apart_mm / settings.thickness_mm, shapes), settings.thickness_mm
        notes.append(f"the slices look most like a {profile} of that thickness; give `profile` if you know it")
    else:
        profile, thickness_mm = _profile_with(sd, apart_mm, stated_mm if is_believed else None, shapes, envelope)
        both = "the slices and the stated thickness" if stated_mm is not None and is_believed else "the slices"
        width = f"{found.sd * spacing_mm:.3g} mm ({found.sd:.2f} +- {found.uncertainty:.2f} slice spacings)"
        notes.append(
            f"the slice profile is estimated from {both}: standard deviation {width}, taken for a {profile} of "
            f"{thickness_mm:.3g} mm; {ADVICE}"
        )
    if seen.interpolated:
        notes.append(_describe_interpolation(seen, every))
    if seen.contradicts(expected):
        notes.append(
            f"the slices look {'thicker' if seen.sd > expected.sd else 'thinner'} than expected (standard deviation "
            f"{seen.sd * spacing_mm:.3g} instead of {expected.sd * spacing_mm:.3g} mm)"
            + ("" if is_believed else ", and are believed")
        )
    source = "stated" if stated_mm is not None and is_believed else "estimated"
    source = source if settings.thickness_mm is None else "told"
    return FoundProfile(
        float(thickness_mm),
        profile,
        source,
        found.uncertainty,
        every,
        (seen.first or 0) if every > 1 else 0,
        tuple(notes),
    )


def _stated_thickness_mm(volume: Volume, axis: int, settings: Settings) -> tuple[float | None, list[str]]:
    """Returns the thickness that is told, or that is stated with the scan across these slices; None if neither is."""
    if settings.thickness_mm is not None:
        stated_mm, notes = settings.thickness_mm, []
        ratio = stated_mm / volume.spacing_mm[axis]
        if not PLAUSIBLE[0] <= ratio <= PLAUSIBLE[1]:
            notes.append(
                f"a thickness of {stated_mm:g} mm is {ratio:.3g} times the slice spacing, which no usual scan has "
                f"({PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}): check `thickness_mm`"
            )
    elif volume.thickness_mm is None:
        return None, []
    elif volume.slice_axis not in (None, axis):
        names = "first", "second", "third"
        return None, [
            f"the slice thickness of {volume.thickness_mm:g} mm that is stated with the scan is that across the "
            f"{names[volume.slice_axis or 0]} axis of the array; made thin is the {names[axis]}, the coarsest"
        ]
    else:
        stated_mm, notes = volume.thickness_mm, [f"slice thickness {volume.thickness_mm:g} mm as stated with the scan"]
    if not (np.isfinite(stated_mm) and stated_mm > 0):
        raise PlanRefused(
            got=f"a slice thickness of {stated_mm:g} mm",
            need="a positive number",
            next="give `thickness_mm` in millimetres",
            code="not-a-positive-number",
        )
    return stated_mm, notes


def _describe_interpolation(seen: Estimate, every: int) -> str:
    """Returns what a note says of slices that were interpolated."""
    if every > 1:
        which = "every second one" if seen.first in (0, 1) else "those that lie half-way between each two"
        return f"{INTERPOLATED}: the answer is computed from {which}, which tell as much as all"
    if seen.first is None:
        return f"{INTERPOLATED}, and it is not clear which of them were acquired: all are computed from"
    return f"{INTERPOLATED}: all are computed from"


def _weigh(seen: Estimate, of_ct: bool, spacing_mm: float, stated_mm: float | None) -> tuple[Estimate, Estimate, bool]:
    """Returns what is expected of a profile, what follows from that and the slices, and whether the former counts.

    Nothing is expected so surely that clear evidence would not count. A thickness that scanners have is stated by one,
    though, and has its say even then: what looks unlike it may be no anatomy.
    """
    is_plausible = False
    if stated_mm is not None:
        mean, spread = (share * stated_mm / spacing_mm for share in STATED)
        expected = Estimate(mean, spread)
        is_plausible = PLAUSIBLE[0] <= stated_mm / spacing_mm <= PLAUSIBLE[1]
    else:
        expected = Estimate(*(RECONSTRUCTED if of_ct else USUAL))
    is_believed = is_plausible or not seen.contradicts(expected)
    return expected, seen.combined(expected if is_believed else Estimate(*USUAL)), is_believed


def _shapes_for(of_ct: bool, envelope: Envelope | None) -> list[Profile]:
    """Returns the shapes that a model may be told, the widest for its full width first."""
    known = BY_SOFTNESS if envelope is None else [shape for shape in BY_SOFTNESS if shape in envelope.profiles]
    return [shape for shape in known if not (of_ct and shape == "spin-echo")]


def estimate(volume: Volume, axis: int, alternation: Alternation = EVEN) -> Estimate | None:
    """Estimates the standard deviation of the slice profile from the slices alone.

    Of a 4-D series the first volume is looked at, of a large scan the middle.

    Args:
        volume: the scan.
        axis: across the slices.
        alternation: as in `find_profile`.

    Returns:
        None where the scan tells nothing: few slices, slices hardly farther apart than pixels, or all the same.
    """
    interpolation, first = _find_interpolation(_middle_of(volume, axis, alternation))
    every = 2 if interpolation == "halved" else 1
    # Where it is not clear which slices were acquired, half of them still look more like acquired ones than all.
    thick = take_acquired(_even_slices(volume, axis, alternation), first or 0, every)
    steps = [every * volume.spacing_mm[axis] / mm for other, mm in enumerate(volume.spacing_mm) if other != axis]
    for side in (0, 1):
        # Pixels much finer than the slices are joined: what they add is finer than any slice profile.
        while steps[side] > STEPS[1]:
            thick = _join_pairs(thick, side + 1)
            steps[side] /= 2
    thick = take_middle(thick)
    low, high = intensity_range(thick)
    flat = not np.any(thick != thick[:1])
    if len(thick) < FEWEST_SLICES or min(thick.shape[1:]) < FEWEST_PIXELS or min(steps) < STEPS[0] or flat:
        return None
    normalised = ((thick.astype(np.float64) - low) / (high - low)).astype(np.float32)
    found = _embedded()(measure(normalised, (steps[0], steps[1])))
    # Rounded, so that a scan stored in another order of axes, which is summed in another order, gets the same plan.
    return Estimate(round(found.sd, 3), round(found.uncertainty, 3), interpolation != "none", every, first)


def _even_slices(volume: Volume, axis: int, alternation: Alternation) -> np.ndarray:
    """Returns the slices [n, h, w], of a 4-D series those of its first volume, without what alternates."""
    voxels = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
    return make_even(np.moveaxis(voxels, axis, 0), alternation)


def _middle_of(volume: Volume, axis: int, alternation: Alternation) -> np.ndarray:
    """Returns the middle of the slices, float32; its first one is the first, third, ... of all."""
    thick = _even_slices(volume, axis, alternation)
    start = max(len(thick) - MOST_SLICES, 0) // 4 * 2
    return take_middle(thick[start : start + MOST_SLICES]).astype(np.float32)


def _find_interpolation(middle: np.ndarray) -> tuple[Interpolation, float | None]:
    """Returns whether slices were interpolated, and the first of those that were acquired; None: it is not clear."""
    found = find_interpolation(middle)
    return found, find_first_acquired(middle) if found == "halved" else 0


def _shape_nearest(ratio: float, shapes: Sequence[Profile]) -> Profile:
    """Returns the shape whose standard deviation over its full width is nearest to a ratio."""
    return min(shapes, key=lambda shape: abs(sd_over_fwhm(shape) - ratio))


def _profile_with(
    sd: float, spacing_mm: float, stated_mm: float | None, shapes: Sequence[Profile], envelope: Envelope | None
) -> tuple[Profile, float]:
    """Returns shape and full width of a profile with a standard deviation, in slice spacings, that a model may have.

    A stated thickness is kept, with the shape that comes nearest, unless no shape comes near. Else it is a Gaussian,
    which is what networks are told in training where the shape is not known, or the next shape whose width is within
    the envelope.
    """
    if stated_mm is not None and BELIEVED[0] <= sd * spacing_mm / stated_mm <= BELIEVED[1]:
        return _shape_nearest(sd * spacing_mm / stated_mm, shapes), stated_mm
    low, high = envelope.thickness_over_spacing if envelope is not None else (0.0, np.inf)
    widths = {shape: sd / sd_over_fwhm(shape) for shape in shapes}
    # Where no shape has a width that the model is valid for, the one that misses it by least, cut to that width.
    misses = [abs(widths[shape] - np.clip(widths[shape], low, high)) for shape in shapes]
    shape = shapes[int(np.argmin(misses))]
    return shape, float(np.clip(widths[shape], low, high) * spacing_mm)


def _join_pairs(thick: np.ndarray, axis: int) -> np.ndarray:
    """Returns the means of neighbouring pixels."""
    even = thick.shape[axis] // 2 * 2
    first, second = (np.take(thick, range(start, even, 2), axis=axis).astype(np.float64) for start in (0, 1))
    return (first + second) / 2


def _run(network: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    """Returns the answers [n, 2] of a network of three layers, with x * sigmoid(x) between them."""
    for number in range(0, len(network), 2):
        x = x @ network[number].T + network[number + 1]
        if number + 2 < len(network):
            x = x / (1 + np.exp(-x))
    return x


@cache
def _embedded() -> Estimator:
    return Estimator.load(EMBEDDED)
