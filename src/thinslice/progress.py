"""How far a computation is: a function that is called with the share done, from 0 to 1."""

from collections.abc import Callable

Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""


def no_progress(share: float) -> None:
    """Does nothing, for callers who do not want to know how far a computation is."""


def part_of(progress: Progress, begin: float, end: float) -> Progress:
    """Returns the progress of a part of the work that lies between two shares of the whole.

    Example:
        >>> shares = []
        >>> second_half = part_of(shares.append, 0.5, 1.0)
        >>> second_half(0.5)
        >>> shares
        [0.75]
    """
    return lambda share: progress(begin + share * (end - begin))
