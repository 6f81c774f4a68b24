"""The envelope of a model: the scans it is valid for."""

from dataclasses import dataclass

from thinslice.settings import GRIDS, PROFILES

TOLERANCE = 1e-6
"""How far beyond its ends an envelope is still valid, without a unit: the rounding of millimetres."""


@dataclass(frozen=True)
class Envelope:
    """The scans that a model is valid for, both ends of every range included.

    Attributes:
        factor: slice spacing before over slice spacing after.
        thickness_over_spacing: slice thickness over slice spacing of the thick slices.
        profiles: shapes of their slice profile.
        only_factors: the only factors that it has, None for any within ``factor``.
        in_plane: the factors by which it can enlarge the slices themselves.
        grids: where the thin slices may lie.
        hounsfield: it needs computed tomography, see `thinslice.models.hounsfield`.
    """

    factor: tuple[float, float] = (1.0, float("inf"))
    thickness_over_spacing: tuple[float, float] = (0.0, float("inf"))
    profiles: tuple[str, ...] = PROFILES
    only_factors: tuple[int, ...] | None = None
    in_plane: tuple[int, ...] = (1,)
    grids: tuple[str, ...] = GRIDS
    hounsfield: bool = False
