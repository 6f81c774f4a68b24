"""Decides what the slice profile of a scan is: what is told, what the scan states, and what its own slices show.

What counts for an answer is the standard deviation of the profile in slice spacings: told 0.1 too much, a network can
fall below plain cubic interpolation (LOG.md, 2026-11-30). A header states a thickness at best, whose meaning differs
by half from one shape of profile to another; so the scan itself is asked, by an `Estimator` that was trained on
simulated stacks (`experiments/slice_profile.py`), and both count as much as they are sure.
"""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from thinslice.errors import PlanRefused
from thinslice.models.envelope import TOLERANCE, Envelope
from thinslice.models.hounsfield import is_hounsfield
from thinslice.physics.intensity import intensity_range
from thinslice.physics.interleaving import Alternation, make_even
from thinslice.physics.profile import sd_over_fwhm
from thinslice.physics.slice_statistics import Interpolation, find_interpolation, measure, swap_axes, take_middle
from thinslice.settings import Profile, Settings
from thinslice.volume import Volume, runs_backwards

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

RESOLVED = 2.355
"""Full width at half maximum of a Gaussian over its standard deviation."""

NARROWEST = 0.115
"""Narrower profiles than a box of 0.4 spacings are not computed with: no scanner leaves so wide gaps."""

FEWEST_PIXELS = 16
"""Of slices smaller than this nothing is estimated either."""

DOUBT = 2.5
"""Estimates that are so many standard deviations apart contradict each other, which is told."""

ADVICE = "give `profile` and `thickness_mm` if you know them"

BY_SOFTNESS: tuple[Profile, ...] = ("gaussian", "triangle", "spin-echo", "trapezoid", "box")
"""The shapes from that which is widest for its full width at half maximum to that which is narrowest."""

BELIEVED = (0.25, 0.47)
"""Standard deviations over a stated thickness that it is believed with: from a box (0.289) to a Gaussian (0.425), and
an error of the estimate more."""

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
        every: every so many-th slice tells as much as all of them; 1 unless they were interpolated.
    """

    sd: float
    uncertainty: float
    interpolated: bool = False
    every: int = 1

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
        notes: the same in plain words.
    """

    thickness_mm: float
    profile: Profile
    source: Source
    uncertainty: float | None = None
    every: int = 1
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
    factor: float | None = None,
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
        factor: of the stored slices. Where the model is not valid for that of the slices that tell something, all of
            them are computed from; None: it is.

    Raises:
        PlanRefused: the thickness is not a positive number.
    """
    spacing_mm = volume.spacing_mm[axis]
    stated_mm = volume.thickness_mm if settings.thickness_mm is None else settings.thickness_mm
    notes = []
    if settings.thickness_mm is None and stated_mm is not None:
        notes.append(f"slice thickness {stated_mm:g} mm as stated with the scan")
    if stated_mm is not None and not (np.isfinite(stated_mm) and stated_mm > 0):
        raise PlanRefused(
            got=f"a slice thickness of {stated_mm:g} mm",
            need="a positive number",
            next="give `thickness_mm` in millimetres",
            code="not-a-positive-number",
        )
    if settings.profile is not None:
        return FoundProfile(float(stated_mm or spacing_mm), settings.profile, "told", None, 1, tuple(notes))
    seen = estimate(volume, axis, alternation)
    if seen is None:
        of = "the slice thickness" if stated_mm is not None else "the slice spacing, as no thickness is stated"
        notes.append(
            f"the slice profile is not known, and cannot be estimated from these slices: taken for a box of "
            f"{stated_mm or spacing_mm:g} mm ({of}); {ADVICE}"
        )
        return FoundProfile(float(stated_mm or spacing_mm), "box", "assumed", None, 1, tuple(notes))
    spacing_mm *= seen.every
    expected = _expected(volume, spacing_mm, stated_mm)
    contradicts = seen.contradicts(expected)
    # Without a header's word nothing is expected so surely that clear evidence would not count.
    found = seen.combined(Estimate(*USUAL) if contradicts and stated_mm is None else expected)
    logger.debug("slice profile: %s from the slices, %s expected, %s from both", seen, expected, found)
    every = seen.every if factor is None or _has_factor(envelope, factor * seen.every) else 1
    sd, apart_mm = max(found.sd, NARROWEST) * seen.every / every, spacing_mm * every / seen.every
    profile, thickness_mm = _profile_with(sd, apart_mm, stated_mm, envelope)
    if settings.thickness_mm is not None:
        thickness_mm = float(settings.thickness_mm)
    both = "the slices and the stated thickness" if stated_mm is not None else "the slices"
    notes.append(
        f"the slice profile is estimated from {both}: standard deviation {found.sd * spacing_mm:.3g} mm "
        f"({found.sd:.2f} +- {found.uncertainty:.2f} slice spacings), taken for a {profile} of {thickness_mm:.3g} mm; "
        f"{ADVICE}"
    )
    if seen.interpolated:
        notes.append(
            f"the slices were interpolated before they were stored, and resolve no more than slices "
            f"{RESOLVED * found.sd * spacing_mm:.2g} mm thick"
            + (f": the answer is computed from every {_ordinal(every)} one" if every > 1 else "")
        )
    elif contradicts:
        notes.append(
            f"the slices look {'thicker' if seen.sd > expected.sd else 'thinner'} than expected (standard deviation "
            f"{seen.sd * spacing_mm:.3g} instead of {expected.sd * spacing_mm:.3g} mm)"
        )
    source: Source = "estimated" if stated_mm is None else "stated"
    return FoundProfile(thickness_mm, profile, source, found.uncertainty, every, tuple(notes))


def _expected(volume: Volume, spacing_mm: float, stated_mm: float | None) -> Estimate:
    """Returns what is expected of a profile before the slices are looked at."""
    if stated_mm is not None:
        mean, spread = (share * stated_mm / spacing_mm for share in STATED)
        return Estimate(mean, spread)
    return Estimate(*(RECONSTRUCTED if is_hounsfield(volume.voxels) else USUAL))


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
    voxels = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
    thick = make_even(np.moveaxis(voxels, axis, 0), alternation)
    # As in the patient: of a file that runs the other way, other slices would be left out.
    thick = thick[::-1] if runs_backwards(volume.affine, axis) else thick
    interpolation, every = _find_interpolation(thick)
    thick = thick[::every]
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
    return Estimate(round(found.sd, 3), round(found.uncertainty, 3), interpolation != "none", every)


def _find_interpolation(thick: np.ndarray) -> tuple[Interpolation, int]:
    """Returns whether slices were interpolated, and every how many-th of them tells as much as all."""
    middle, every = take_middle(thick).astype(np.float32), 1
    first = found = find_interpolation(middle)
    while found == "halved" and len(thick) // (2 * every) >= FEWEST_SLICES:
        every *= 2
        middle = middle[::2]
        found = find_interpolation(middle)
    return first, every


def _profile_with(
    sd: float, spacing_mm: float, stated_mm: float | None, envelope: Envelope | None
) -> tuple[Profile, float]:
    """Returns shape and full width of a profile with a standard deviation, in slice spacings, that a model may have.

    A stated thickness is kept, with the shape that comes nearest, unless no shape comes near. Else it is a Gaussian,
    which is what networks are told in training where the shape is not known, or the next shape whose width is within
    the envelope.
    """
    shapes = [shape for shape in BY_SOFTNESS if envelope is None or shape in envelope.profiles]
    if stated_mm is not None:
        ratio = sd * spacing_mm / stated_mm
        shapes.sort(key=lambda shape: abs(sd_over_fwhm(shape) - ratio))
        if BELIEVED[0] <= ratio <= BELIEVED[1]:
            return shapes[0], stated_mm
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


def _has_factor(envelope: Envelope | None, factor: float) -> bool:
    """Says whether a model is valid for a factor."""
    if envelope is None:
        return True
    low, high = envelope.factor
    known = envelope.only_factors is None or any(abs(factor - one) <= TOLERANCE for one in envelope.only_factors)
    return known and low - TOLERANCE <= factor <= high + TOLERANCE


def _ordinal(number: int) -> str:
    return {2: "second", 4: "fourth"}.get(number, f"{number}th")


@cache
def _embedded() -> Estimator:
    return Estimator.load(EMBEDDED)
