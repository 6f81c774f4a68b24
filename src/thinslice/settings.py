"""What one enhancement may be asked: declared once, checked once, and the same on every surface.

The command line makes its options from the fields of `Settings`, `thinslice.enhance` takes them by name, and a data
set, an adaptation and a reader study build the same object. This module imports nothing heavy, so that
``thinslice --help`` answers at once.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args

from thinslice.errors import PlanRefused

Profile = Literal["gaussian", "box", "trapezoid", "triangle", "spin-echo"]
"""Shapes of the slice profile, see `thinslice.physics.profile.slice_profile`."""

PROFILES: tuple[str, ...] = get_args(Profile)
"""The names of all slice profiles."""

Grid = Literal["fov", "centres"]
"""What a grid of thin slices keeps: the outer edges of the field of view, or the outermost slice centres."""

GRIDS: tuple[str, ...] = get_args(Grid)
"""The names of all grids."""


def _option(help: str, metavar: str | None = None, kind: Any = None) -> dict[str, Any]:
    """Returns what the command line says of a setting.

    Args:
        help: one line on what it means.
        metavar: what stands for its value in the help; None for a flag or a choice.
        kind: how text becomes its value: a function, or a tuple of the choices; None for a flag.
    """
    return {"help": help, "metavar": metavar, "kind": kind}


@dataclass(frozen=True)
class Settings:
    """What is asked of one enhancement, or of every one of a data set.

    Attributes:
        model: name of an embedded model or of an interpolation, or the path of a model file.
        spacing_mm: wanted distance between slices in millimetres; None: the coarser of the two in-plane spacings.
        factor: alternatively, how many times closer the slices shall be.
        thickness_mm: slice thickness in millimetres; None: what the scan states, and what its slices show.
        profile: shape of the slice profile; None: found, see `thinslice.models.slice_profile.find_profile`.
        grid: ``fov`` keeps the outer edges of the field of view, ``centres`` the outermost slice centres.
        in_plane: enlarges the slices themselves first, so many times along both of their axes.
        fuse: runs a network in several orientations and joins its answers: slower, a little better.
        projection: makes the answer agree with the acquired slices.
        denoise: smooths clear noise that neighbouring pixels do not share, where there is nothing else.
        interleaving: corrects brightness and shifts that clearly alternate from slice to slice.
        noise: regularisation of that projection, see `thinslice.physics.projection.NOISE_LEVEL`; None: by the noise of
            the slices.
        force: gives an answer even where it contradicts the acquired slices, see
            `thinslice.compute.consistency.check_agreement`; the report says so.

    Raises:
        PlanRefused: a value that is right for no scan.

    Example:
        >>> Settings(factor=4, profile="box").factor
        4
        >>> Settings(factor=4, spacing_mm=1.0)
        Traceback (most recent call last):
            ...
        thinslice.errors.PlanRefused: got `spacing_mm=1` and `factor=4`; need one of them; next: leave one out
    """

    model: str = field(
        default="default",
        metadata=_option(
            "default (embedded network), planes-mr or planes-ct (networks that enlarge in-plane too), a model file "
            "(.onnx), nearest, linear, cubic or lanczos",
            "MODEL",
            str,
        ),
    )
    spacing_mm: float | None = field(
        default=None, metadata=_option("wanted slice spacing; default: as in-plane", "MM", float)
    )
    factor: float | None = field(default=None, metadata=_option("wanted number of times closer slices", "K", float))
    thickness_mm: float | None = field(
        default=None,
        metadata=_option(
            "slice thickness; default: what the scan or the JSON beside it says, and its slices show", "MM", float
        ),
    )
    profile: Profile | None = field(
        default=None, metadata=_option("slice profile; default: found from the scan", None, PROFILES)
    )
    grid: Grid = field(
        default="fov",
        metadata=_option(
            "keep the outer edges of the field of view (fov, default) or the outermost slice centres", None, GRIDS
        ),
    )
    in_plane: int = field(
        default=1, metadata=_option("enlarge the slices themselves first, K times along each side", "K", int)
    )
    fuse: bool = field(
        default=False,
        metadata=_option("run a network in several orientations and join its answers: slower, a little better"),
    )
    projection: bool = field(
        default=True, metadata=_option("leave the model's answer as it is, not made to agree with the scan")
    )
    denoise: bool = field(default=True, metadata=_option("leave the noise of the slices as it is, unsmoothed"))
    interleaving: bool = field(
        default=True,
        metadata=_option("leave brightness and shifts that alternate from slice to slice as they are, uncorrected"),
    )
    force: bool = field(
        default=False, metadata=_option("write an answer even where it contradicts the acquired slices, and say so")
    )
    # Without metadata, and so without an option of the command line (see `thinslice.cli.options.add_settings`).
    noise: float | None = None

    def __post_init__(self) -> None:
        # All checks are here, so that whoever builds the object has checked it: a data set checks the settings in a
        # record of an earlier version by building them again.
        for name in ("spacing_mm", "factor", "thickness_mm", "noise"):
            _check_number(name, getattr(self, name), zero_allowed=name == "noise")
        if self.spacing_mm is not None and self.factor is not None:
            raise PlanRefused(
                got=f"`spacing_mm={self.spacing_mm:g}` and `factor={self.factor:g}`",
                need="one of them",
                next="leave one out",
                code="spacing-and-factor",
            )
        # Below the check of numbers, which refuses NaN: no comparison holds of that, and it would pass here.
        if self.factor is not None and self.factor <= 1:
            raise PlanRefused(
                got=f"`factor={self.factor:g}`",
                need="a number above 1",
                next="correct it or leave it out",
                code="not-thinner",
            )
        if self.profile is not None:
            _check_choice("profile", self.profile, PROFILES)
        _check_choice("grid", self.grid, GRIDS)
        for name in ("fuse", "projection", "denoise", "interleaving", "force"):
            _check_flag(name, getattr(self, name))
        if not (isinstance(self.model, str) and self.model):
            raise PlanRefused(
                got=f"`model={self.model!r}`",
                need="the name of a model, or the path of its file",
                next="correct it or leave it out",
                code="not-a-model",
            )
        # `bool` is a whole number for Python, but for nobody else.
        if not isinstance(self.in_plane, Integral) or isinstance(self.in_plane, bool) or self.in_plane < 1:
            raise PlanRefused(
                got=f"`in_plane={self.in_plane!r}`",
                need="a whole number from 1 on",
                next="correct it or leave it out",
                code="not-a-whole-number",
            )

    def asks_for_spacing(self) -> bool:
        """Returns whether the distance between the thin slices was asked for, one way or the other."""
        return self.spacing_mm is not None or self.factor is not None

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain data; ``Settings(**data)`` gives back equal ones."""
        return dataclasses.asdict(self)


def _check_number(name: str, value: object, zero_allowed: bool) -> None:
    if value is None:
        return
    # `Real` and not `float`: numpy's numbers are numbers too. So is True for Python, but for nobody else.
    if not isinstance(value, Real) or isinstance(value, bool):
        raise PlanRefused(
            got=f"`{name}={value!r}`", need="a number", next="correct it or leave it out", code="not-a-number"
        )
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        raise PlanRefused(
            got=f"`{name}={float(value):g}`",
            need="a positive number",
            next="correct it or leave it out",
            code="not-a-positive-number",
        )


def _check_flag(name: str, value: object) -> None:
    # By name, as numpy's are flags too, and numpy is too heavy for this module.
    if type(value).__name__ not in ("bool", "bool_"):
        raise PlanRefused(
            got=f"`{name}={value!r}`", need="True or False", next="correct it or leave it out", code="not-a-flag"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PlanRefused(
            got=f"`{name}={value}`", need=" or ".join(choices), next="choose one of them", code="unknown-choice"
        )
