"""What alternates from slice to slice: the brightness and the in-plane place of the second, fourth, ... slices.

Scanners acquire every other slice first, and then those between. Where the first ones have saturated their neighbours,
or the patient has moved between the two passes, brightness or place go up and down from slice to slice, which no
anatomy does. Each slice is compared with the mean of its two neighbours; what alternates in that is theirs.
"""

from dataclasses import dataclass

import numpy as np

from thinslice.physics.intensity import intensity_range
from thinslice.physics.interpolation import cubic_matrix

FEWEST_SLICES = 8
"""Among fewer, chance alternates too often."""

MOST_SLICES = 48
"""So many in the middle of a stack are looked at, and of them the middle `MOST_PIXELS` along each side."""

MOST_PIXELS = 160
"""See `MOST_SLICES`; 320x320x36 takes 0.1 s so."""

FEWEST_PIXELS = 200
"""Slices with fewer pixels of anatomy say nothing."""

STANDARD_ERRORS = 4.0
"""What alternates is clear if it is so many times its standard error."""

FEWEST_TO_CHOOSE = 8
"""Of fewer slices all count, and of more three quarters at least: what agrees with nothing is rare."""

FEW = 4.0
"""A standard error from n slices is made (1 + this / n) times larger, about half as much as Student would."""

LEAST_GAIN = 0.02
"""A clear difference in brightness below this is left alone: it costs less than 0.1 dB."""

LEAST_SHIFT_PX = 0.2
"""A clear shift of fewer pixels is left alone: moving the slices would blur them by as much."""

MOST_SHIFT_PX = 3.0
"""More is not found by the slope of an image."""

TISSUE_ABOVE = 0.15
"""Pixels above this, in intensity ranges, are anatomy."""

HOUNSFIELD_ZERO = 0.2
"""Where zero lies higher in the intensity range, values are no brightness but Hounsfield units, and have no gain."""

ROUNDS = 3
"""How often the shift is measured, in slices moved by what was found before: the slope sees 60 to 99 % of a shift."""


@dataclass(frozen=True)
class Alternation:
    """Says how the second, fourth, ... slices of a stack differ from the others.

    Attributes:
        gain: their brightness over that of the others; 1 where nothing is clear.
        shift_px: how far their image lies behind that of the others along lines and columns; 0 where nothing is clear.
    """

    gain: float = 1.0
    shift_px: tuple[float, float] = (0.0, 0.0)

    @property
    def is_clear(self) -> bool:
        """Returns whether there is anything to correct."""
        return self != Alternation()

    def mirrored(self, count: int) -> "Alternation":
        """Returns that of the mirror image along all three axes of a stack of so many slices.

        Example:
            >>> Alternation(1.25, (0.5, 0.0)).mirrored(11), Alternation(1.25, (0.5, 0.0)).mirrored(10)
            (Alternation(gain=1.25, shift_px=(-0.5, 0.0)), Alternation(gain=0.8, shift_px=(0.5, 0.0)))
        """
        # Of an even number the second slice becomes a first one, and what lay behind lies before twice over.
        if count % 2 == 0:
            return Alternation(1 / self.gain, self.shift_px)
        return Alternation(self.gain, (0.0 - self.shift_px[0], 0.0 - self.shift_px[1]))


def find_alternation(thick: np.ndarray, padding: float | None = None) -> Alternation:
    """Returns what clearly alternates from slice to slice: above `STANDARD_ERRORS`, `LEAST_GAIN`, `LEAST_SHIFT_PX`.

    Args:
        thick: acquired slices [n, h, w], any numeric dtype.
        padding: a value that stands for what the scanner did not see.

    Example:
        >>> y, x = np.mgrid[-1:1:48j, -1:1:48j]
        >>> ball = np.stack([np.exp(-(x**2 + y**2 + z**2)) for z in np.linspace(-1, 1, 12)])
        >>> find_alternation(ball).is_clear
        False
        >>> ball[1::2] *= 1.1
        >>> round(find_alternation(ball).gain, 2)
        1.1
    """
    if len(thick) < FEWEST_SLICES or min(thick.shape[1:]) < 16:
        return Alternation()
    slices, zero = _middle(thick, padding)
    smooth = _smooth(slices)
    gain = 1.0
    if zero < HOUNSFIELD_ZERO:
        gain = float(np.exp(_if_clear(*_alternating(_log_ratios(smooth - np.float32(zero))), np.log1p(LEAST_GAIN))))
    return Alternation(gain, _find_shift(slices, smooth))


def make_even(thick: np.ndarray, alternation: Alternation) -> np.ndarray:
    """Returns the slices as if nothing alternated: the brightness of both kinds goes half the way, and so do places.

    Args:
        thick: acquired slices [n, h, w].
        alternation: of these slices.

    Returns:
        The same array if there is nothing to correct, else float32, or float64 where float32 would lose digits.

    Example:
        >>> stack = np.full((4, 8, 8), 100.0)
        >>> stack[1::2] = 121
        >>> make_even(stack, Alternation(gain=1.21))[:, 0, 0].round(6)
        array([110., 110., 110., 110.])
    """
    if not alternation.is_clear:
        return thick
    even = thick.astype(np.float32 if thick.dtype.itemsize <= 2 or thick.dtype == np.float32 else np.float64)
    for index, one in enumerate(even):
        sign = 1 if index % 2 else -1
        one *= alternation.gain ** (-sign / 2)
        for axis, shift in enumerate(alternation.shift_px):
            if shift:
                one[...] = np.moveaxis(_moved(np.moveaxis(one, axis, 0), sign * shift / 2), 0, axis)
    return even


def _find_shift(slices: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """Returns the shift along both axes, 0 where it is not clear."""
    found = [_alternating(places) for places in _places(smooth).T]
    shift = [_if_clear(*one, LEAST_SHIFT_PX) for one in found]
    for _ in range(ROUNDS - 1):
        if not any(shift):
            break
        moved = make_even(slices, Alternation(1.0, (shift[0], shift[1])))
        rest = [_alternating(places)[0] for places in _places(_smooth(moved)).T]
        # An axis along which nothing was clear at first stays where it is.
        shift = [now + more if now else 0.0 for now, more in zip(shift, rest, strict=True)]
    if max(np.abs(shift)) > MOST_SHIFT_PX:
        return 0.0, 0.0
    return shift[0], shift[1]


def _moved(image: np.ndarray, by: float) -> np.ndarray:
    """Returns an image [h, w] as seen ``by`` lines further; beyond the edges the outermost lines repeat."""
    place = np.clip(np.arange(len(image)) + by, 0, len(image) - 1)
    moved: np.ndarray = cubic_matrix(place, len(image)).astype(image.dtype) @ image
    return moved


def _middle(thick: np.ndarray, padding: float | None) -> tuple[np.ndarray, float]:
    """Returns the middle of a stack in intensity ranges, float32, and where zero lies."""
    n, h, w = thick.shape
    # By an even number of slices, so that the second slice of the part is a second one of the stack.
    first, top, left = max(n - MOST_SLICES, 0) // 4 * 2, max(h - MOST_PIXELS, 0) // 2, max(w - MOST_PIXELS, 0) // 2
    part = thick[first : first + MOST_SLICES, top : top + MOST_PIXELS, left : left + MOST_PIXELS]
    slices = part.astype(np.float32, order="C")
    if padding is not None:
        outside = slices == np.float32(padding)
        slices[outside] = slices[~outside].min() if not outside.all() else 0
    low, high = intensity_range(slices)
    slices -= np.float32(low)
    slices /= np.float32(high - low)
    return slices, -low / (high - low)


def _log_ratios(smooth: np.ndarray) -> np.ndarray:
    """Returns the log of the brightness of each inner slice over that of its neighbours, NaN if it is not known."""
    ratios = np.full(len(smooth) - 2, np.nan)
    for index in range(len(ratios)):
        # Every other pixel, as the images are smooth, and a median takes its time.
        before, here, behind = smooth[index : index + 3, :, ::2]
        around = (before + behind) / 2
        inside = (around > TISSUE_ABOVE) & (here > TISSUE_ABOVE)
        if inside.sum() >= FEWEST_PIXELS / 2:
            # Where the neighbours agree, the anatomy changes least.
            changes, ratio = np.abs(before - behind)[inside], here[inside] / around[inside]
            ratios[index] = np.log(np.median(ratio[changes <= np.median(changes)]))
    return ratios


def _places(smooth: np.ndarray) -> np.ndarray:
    """Returns how far each inner slice lies behind the mean of its neighbours [n, 2], NaN if it is not known.

    Least squares of their difference on the slope of their mean, together with a gain and an offset, in which pixels
    that do not fit (anatomy that is in one of them only) lose their weight.
    """
    places = np.full((len(smooth) - 2, 2), np.nan)
    inner = (slice(4, -4), slice(4, -4))
    for index in range(len(places)):
        before, here, behind = smooth[index : index + 3]
        around = (before + behind) / 2
        both = (here + around) / 2
        if (both > TISSUE_ABOVE).sum() < FEWEST_PIXELS:
            continue
        # Central differences, over two pixels.
        slopes = (both[3:-5, 4:-4] - both[5:-3, 4:-4]) / 2, (both[4:-4, 3:-5] - both[4:-4, 5:-3]) / 2
        causes = [one.ravel() for one in (*slopes, both[inner], np.ones_like(both[inner]))]
        places[index] = _robust_fit(np.stack(causes), (here - around)[inner].ravel())[:2]
    return places


def _robust_fit(causes: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Returns the coefficients [c] of the sum of causes [c, pixels] that is nearest to an effect [pixels]."""
    weight = np.ones_like(effect)
    for _ in range(3):
        weighted = causes * weight
        # A little of the diagonal, as a flat image has no slope to be divided by.
        found: np.ndarray = np.linalg.solve(weighted @ causes.T + 1e-6 * np.eye(len(causes)), weighted @ effect)
        missed = effect - found.astype(np.float32) @ causes
        spread = 1.4826 * np.median(np.abs(missed[::4])) + 1e-4
        weight = 1 / (1 + (missed / (2 * spread)) ** 2)  # Cauchy's
    return found


def _alternating(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of what alternates, positive if the second, fourth, ... slices have more, and its error.

    Args:
        values: of all slices but the first and the last, each compared with its neighbours.
    """
    # What changes slowly from slice to slice is anatomy.
    change = values[1:-1] / 2 - (values[:-2] + values[2:]) / 4
    signed = np.where(np.arange(len(change)) % 2, 1, -1) * change
    signed = signed[np.isfinite(signed)]
    if len(signed) < FEWEST_SLICES - 4:
        return 0.0, np.inf
    middle = np.median(signed)
    kept = signed[np.abs(signed - middle) <= 6 * 1.4826 * np.median(np.abs(signed - middle)) + 1e-9]
    # Among few there are no outliers to speak of, but two or three that agree by chance.
    if len(kept) < max(FEWEST_TO_CHOOSE, 0.75 * len(signed)):
        kept = signed
    # Neighbours share slices. If every slice differs by chance with variance v, these numbers have variance 1.09 v, and
    # their mean 4 v / n.
    error = np.sqrt(4 / 1.094) * kept.std() / np.sqrt(len(kept) - 1) if len(kept) > 1 else np.inf
    # Student: the fewer they are, the farther may be what chance makes.
    return float(kept.mean()), float(error * (1 + FEW / len(kept)))


def _if_clear(found: float, error: float, least: float) -> float:
    """Returns what was found, or 0 where it is not clear."""
    return found if abs(found) > max(least, STANDARD_ERRORS * error) else 0.0


def _smooth(slices: np.ndarray) -> np.ndarray:
    """Returns the slices after binomial smoothing in-plane, twice 1, 2, 1: their slope is less that of noise."""
    for axis in (1, 2):
        padded = np.pad(slices, [(2 * int(axis == a),) * 2 for a in range(3)], mode="edge")
        smooth, size = np.zeros_like(slices), slices.shape[axis]
        for at, weight in enumerate((1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)):
            smooth += np.float32(weight) * (padded[:, at : at + size] if axis == 1 else padded[:, :, at : at + size])
        slices = smooth
    return slices
