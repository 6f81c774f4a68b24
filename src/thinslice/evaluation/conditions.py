"""Says under which conditions scans are made thick: the slices, what is stated of them, and what disturbs them.

The defaults are the field's protocol: touching slices of a Gaussian profile, both stated, nothing else done to them.
This module imports nothing heavy, so that the command line can check conditions at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from thinslice.errors import PlanRefused
from thinslice.settings import PROFILES, Profile

NoiseKind = Literal["gaussian", "rician"]
"""The noise of a real image, or that of the magnitude of a complex one."""

NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)
"""The names of both."""

STATED = ("true", "none", "wrong")
"""What may be stated of the slices in one word; besides, a profile and its width, such as ``box:0.75``."""

MISMATCH_PROFILES: tuple[tuple[Profile, float], ...] = (
    ("gaussian", 0.75),
    ("gaussian", 1.0),
    ("gaussian", 1.25),
    ("box", 0.75),
    ("box", 1.0),
)
"""Profiles and widths (in slice spacings) of `make_mismatch_conditions`: standard deviations of 0.22 to 0.53 spacings,
with gaps, touching and overlapping, within what the embedded network is valid for."""


@dataclass(frozen=True)
class Condition:
    """How the truth is made thick, and what the program is then told of it.

    Attributes:
        factor: slice spacing in thin voxels.
        thickness_over_spacing: slice thickness over slice spacing; below 1 there are gaps, above 1 slices overlap.
        profile: shape of the slice profile.
        stated: what is stated of thickness and profile. ``true``: both, as they are; ``none``: neither; ``wrong``: a
            touching Gaussian whatever they are, or a touching box where that would be true; ``box:0.75`` and the like:
            that profile, so many slice spacings wide.
        noise_percent: standard deviation of noise in the slices, in percent of the truth's intensity range.
        noise_kind: see `NoiseKind`.
        brightness_percent: by how much every other slice is brighter, as of an interleaved acquisition.
        shift_px: by how many pixels every other slice is moved, along the first axis within the slices.

    Raises:
        PlanRefused: what is stated is none of these.

    Example:
        >>> str(Condition(4, 0.8, "box"))
        'x4 box, gap 20 %'
        >>> str(Condition(stated="none", noise_percent=3))
        'x4 gaussian, touching, noise 3 %, told nothing'
    """

    factor: float = 4.0
    thickness_over_spacing: float = 1.0
    profile: Profile = "gaussian"
    stated: str = "true"
    noise_percent: float = 0.0
    noise_kind: NoiseKind = "gaussian"
    brightness_percent: float = 0.0
    shift_px: float = 0.0

    def __post_init__(self) -> None:
        """Checks what is stated before anything is computed."""
        self.stated_profile()

    def __str__(self) -> str:
        gap = 100 * (1 - self.thickness_over_spacing)
        slabs = "touching" if abs(gap) < 0.05 else f"gap {gap:.3g} %" if gap > 0 else f"overlap {-gap:.3g} %"
        parts = [f"x{self.factor:g} {self.profile}", slabs]
        if self.noise_percent:
            parts.append(f"{'Rician ' * (self.noise_kind == 'rician')}noise {self.noise_percent:g} %")
        if self.brightness_percent:
            parts.append(f"every other slice {self.brightness_percent:+g} %")
        if self.shift_px:
            parts.append(f"every other slice {self.shift_px:g} px off")
        stated = {"true": None, "none": "nothing", "wrong": "a wrong profile"}.get(self.stated, self.stated)
        return ", ".join(parts if stated is None else [*parts, f"told {stated}"])

    def is_protocol(self) -> bool:
        """Returns whether all is stated as it is and nothing disturbs the slices, as in the field's protocol."""
        return self == Condition(self.factor, self.thickness_over_spacing, self.profile)

    def stated_profile(self) -> tuple[Profile, float] | None:
        """Returns the profile that is stated and its width in slice spacings; None if none is.

        Raises:
            PlanRefused: there is no such profile, or its width is no positive number.

        Example:
            >>> Condition(4, 0.75, "box", stated="wrong").stated_profile()
            ('gaussian', 1.0)
            >>> Condition(stated="wrong").stated_profile()
            ('box', 1.0)
        """
        if self.stated == "none":
            return None
        if self.stated == "true":
            return self.profile, self.thickness_over_spacing
        if self.stated == "wrong":
            is_common = (self.profile, self.thickness_over_spacing) == ("gaussian", 1.0)
            return "box" if is_common else "gaussian", 1.0
        name, _, width = self.stated.partition(":")
        for profile in get_args(Profile):
            if profile == name and _is_positive(width):
                return profile, float(width)
        raise PlanRefused(
            got=f"{self.stated!r} to be stated of the slices",
            need=f"{', '.join(STATED)}, or a profile and its width in slice spacings, such as box:0.75",
            next=f"choose one of them; profiles are {', '.join(PROFILES)}",
            code="unknown-choice",
        )


def make_conditions(
    factors: Sequence[float] = (4.0,),
    thickness_ratios: Sequence[float] = (1.0,),
    profiles: Sequence[Profile] = ("gaussian",),
    stated: Sequence[str] = ("true",),
    noise_percent: Sequence[float] = (0.0,),
    noise_kind: NoiseKind = "gaussian",
    brightness_percent: Sequence[float] = (0.0,),
    shift_px: Sequence[float] = (0.0,),
) -> list[Condition]:
    """Returns every combination, the first of each first.

    Raises:
        PlanRefused: see `Condition`.

    Example:
        >>> [str(one) for one in make_conditions(factors=[2, 4])]
        ['x2 gaussian, touching', 'x4 gaussian, touching']
    """
    slices = product(profiles, thickness_ratios, factors)
    rest = list(_disturbances(noise_percent, noise_kind, brightness_percent, shift_px))
    return [Condition(f, t, p, s, *more) for (p, t, f), s, more in product(slices, stated, rest)]


def make_mismatch_conditions(
    factors: Sequence[float] = (4.0,),
    noise_percent: Sequence[float] = (0.0,),
    noise_kind: NoiseKind = "gaussian",
    brightness_percent: Sequence[float] = (0.0,),
    shift_px: Sequence[float] = (0.0,),
) -> list[Condition]:
    """Returns every one of `MISMATCH_PROFILES` as the truth, with each of them stated, and with nothing stated.

    Example:
        >>> made = make_mismatch_conditions()
        >>> len(made), str(made[4]), str(made[5])
        (30, 'x4 gaussian, gap 25 %, told box:1', 'x4 gaussian, gap 25 %, told nothing')
    """
    stated = [*(f"{profile}:{width:g}" for profile, width in MISMATCH_PROFILES), "none"]
    rest = list(_disturbances(noise_percent, noise_kind, brightness_percent, shift_px))
    return [Condition(f, t, p, s, *more) for f, more, (p, t), s in product(factors, rest, MISMATCH_PROFILES, stated)]


def _disturbances(
    noise_percent: Sequence[float], kind: NoiseKind, brightness_percent: Sequence[float], shift_px: Sequence[float]
) -> Iterator[tuple[float, NoiseKind, float, float]]:
    """Yields every combination, in the order of the fields of `Condition`."""
    for noise, brightness, shift in product(noise_percent, brightness_percent, shift_px):
        yield noise, kind, brightness, shift


def _is_positive(text: str) -> bool:
    """Returns whether a text is a finite number above zero."""
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
