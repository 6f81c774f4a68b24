"""The envelope of a model: the scans it is valid for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinslice.settings import GRIDS, PROFILES

MOST_PIXELS = 4096
"""What a network may see around a pixel, or need a multiple of: more is none of ours."""

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
        learnt_mr_alone: it has learnt from magnetic resonance and nothing else.

    Raises:
        TypeError, ValueError: a range is not that of two numbers, or a profile or grid has another name than ours.
    """

    factor: tuple[float, float] = (1.0, float("inf"))
    thickness_over_spacing: tuple[float, float] = (0.0, float("inf"))
    profiles: tuple[str, ...] = PROFILES
    only_factors: tuple[int, ...] | None = None
    in_plane: tuple[int, ...] = (1,)
    grids: tuple[str, ...] = GRIDS
    hounsfield: bool = False
    learnt_mr_alone: bool = False

    def __post_init__(self) -> None:
        # What a model's file says of itself comes in here, and such a file may hold anything.
        for name in ("factor", "thickness_over_spacing"):
            low, high = getattr(self, name)
            if not all(isinstance(end, int | float) for end in (low, high)) or not low <= high:
                raise ValueError(f"{name} is {low} to {high}")
        for names, known in ((self.profiles, PROFILES), (self.grids, GRIDS)):
            if foreign := set(names) - set(known):
                raise ValueError(f"{', '.join(map(str, foreign))} is none of {', '.join(known)}")

    def nearest_count(self, wanted: int, spans: int) -> int:
        """Returns the number of thin spacings for so many thick ones, of those that it is valid for, nearest to one.

        Example:
            >>> Envelope(factor=(1.5, 10.0)).nearest_count(302, spans=20)
            200
        """
        # Counted, as a grid rounds to whole slices: the very end of an envelope may round to what lies beyond it.
        low, high = self.factor
        fewest, most = max(math.ceil((low - TOLERANCE) * spans), spans + 1), (high + TOLERANCE) * spans
        return max(min(wanted, wanted if math.isinf(most) else math.floor(most)), fewest)

    def has_factor(self, factor: float) -> bool:
        """Says whether the model is valid for a factor.

        Example:
            >>> Envelope(factor=(1.5, 8.0)).has_factor(8.0), Envelope(only_factors=(2, 4)).has_factor(3.0)
            (True, False)
        """
        low, high = self.factor
        known = self.only_factors is None or any(abs(factor - one) <= TOLERANCE for one in self.only_factors)
        return known and low - TOLERANCE <= factor <= high + TOLERANCE


def count_on(card: Mapping[str, Any], name: str, least: int = 0) -> int:
    """Returns a whole number on the card of a model, which may hold anything.

    Raises:
        KeyError, TypeError, ValueError: there is none, or one that no network of ours has.

    Example:
        >>> count_on({"reach": 12}, "reach")
        12
    """
    count = card[name]
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= MOST_PIXELS:
        raise ValueError(f"{name} is {str(count)[:40]}")
    return count
