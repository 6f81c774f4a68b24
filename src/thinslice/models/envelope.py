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

    Example:
        >>> network = Envelope(factor=(1.5, 10.0))
        >>> network.has_factor(1.45), network.has_factor(1.5)
        (False, True)
        >>> Envelope(only_factors=(2, 4)).smallest_factor
        2
    """

    factor: tuple[float, float] = (1.0, float("inf"))
    thickness_over_spacing: tuple[float, float] = (0.0, float("inf"))
    profiles: tuple[str, ...] = PROFILES
    only_factors: tuple[int, ...] | None = None
    in_plane: tuple[int, ...] = (1,)
    grids: tuple[str, ...] = GRIDS
    hounsfield: bool = False

    @property
    def smallest_factor(self) -> float:
        """The smallest factor that the model is valid for; infinite where it adds no slices at all."""
        if self.only_factors is None:
            return self.factor[0]
        return min(self.only_factors, default=float("inf"))

    def has_factor(self, factor: float) -> bool:
        """Whether the model is valid for a factor."""
        low, high = self.factor
        if self.only_factors is not None and not any(abs(factor - known) <= TOLERANCE for known in self.only_factors):
            return False
        return low - TOLERANCE <= factor <= high + TOLERANCE
